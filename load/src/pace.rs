//! When each request of an open loop is to be sent.
//!
//! Request n has its time from the beginning, and keeps it whatever happens: latency counts from there, so a request that
//! a slow disk, a full queue or a late thread kept back shows the whole of its wait.
//!
//! A thread that sleeps for 66 us between any two requests would do little but wake up. So requests of one writer that
//! are closer together than [`TICK_NS`] share a time: a writer with 15,000 requests per second has one or two at a time,
//! 10,000 times a second, as fio does with its batches. Between two times it sleeps (in the ring while requests are under
//! way, in `clock_nanosleep` otherwise) and never spins. With a timer slack of 1 ns, set for the writers' threads only, it
//! sends a request 25 to 30 us late at the median (measured on a virtual machine with two cores: nearly all of it is the
//! wake-up); the default slack would add up to 50 us. How late it was is measured and reported with every period
//! ([`lateness`](crate::Period::lateness)). Lateness is part of the latency, with a job and without.
#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::time::Duration;

use rustix::thread::{ClockId, clock_nanosleep_relative, set_current_timer_slack};
use rustix::time::Timespec;

/// Requests of one writer that are closer together share a time.
pub const TICK_NS: u64 = 100_000;

/// The times of one writer's requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// When the first is due.
    start_ns: u64,
    /// Requests of this writer in [`Pace::span_ns`].
    requests: u64,
    /// See `requests`; the two together are the rate without rounding.
    span_ns: u64,
    /// How many were sent.
    sent: u64,
}

impl Pace {
    /// Requests for writer `number` of `writers`, which together send `per_s`; they take turns.
    pub(crate) fn new(start_ns: u64, per_s: u64, number: u16, writers: u16) -> Self {
        let span_ns = 1_000_000_000 * u64::from(writers);
        let start_ns = start_ns + span_ns / per_s.max(1) * u64::from(number) / u64::from(writers);
        Self { start_ns, requests: per_s.max(1), span_ns, sent: 0 }
    }

    /// When the next request is due.
    pub(crate) fn next_due_ns(&self) -> u64 {
        let after = u128::from(self.sent) * u128::from(self.span_ns) / u128::from(self.requests);
        let after = u64::try_from(after).unwrap_or(u64::MAX);
        let dense = self.span_ns / self.requests < TICK_NS;
        let after = if dense { after / TICK_NS * TICK_NS } else { after };
        self.start_ns.saturating_add(after)
    }

    /// The next request was sent.
    pub(crate) fn sent(&mut self) {
        self.sent += 1;
    }
}

/// Lets the calling thread's sleeps end when they should, and not up to 50 us later to save wake-ups.
pub(crate) fn sharpen_timers() {
    // Where it is forbidden the sleeps are less exact, and the lateness says so.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
}

/// Sleeps for so long, or a little less when a signal comes.
pub(crate) fn sleep(time: Duration) {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let request = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
    let _ = clock_nanosleep_relative(ClockId::Monotonic, &request);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the first `count` requests.
    fn times(mut pace: Pace, count: usize) -> Vec<u64> {
        let mut times = Vec::new();
        for _ in 0..count {
            times.push(pace.next_due_ns());
            pace.sent();
        }
        times
    }

    /// A rate that drifts would compare one load with another.
    #[test]
    fn a_second_has_exactly_the_requests_asked_for() {
        for (per_s, writers) in [(1, 1), (3, 2), (1000, 1), (30_000, 2), (30_000, 7), (999_983, 3)] {
            let in_a_second: usize = (0..writers)
                .map(|number| times(Pace::new(0, per_s, number, writers), 1_000_000))
                .map(|times| times.iter().filter(|at| **at < 10_000_000_000).count())
                .sum();
            let wanted = usize::try_from(per_s * 10).unwrap();
            let most = 1_000_000 * usize::from(writers);
            let slack = usize::from(writers) * 10;
            assert!(in_a_second.abs_diff(wanted.min(most)) <= slack, "{per_s}, {writers}: {in_a_second}");
        }
    }

    /// Bursts would measure themselves.
    #[test]
    fn dense_requests_share_a_time_and_others_have_their_own() {
        let dense = times(Pace::new(0, 15_000, 0, 1), 100);
        assert!(dense.iter().all(|at| at % TICK_NS == 0));
        let most = dense.chunk_by(|a, b| a == b).map(<[u64]>::len).max();
        assert_eq!(most, Some(2));
        let sparse = times(Pace::new(5, 1000, 1, 2), 3);
        assert_eq!(sparse, [1_000_005, 3_000_005, 5_000_005]);
    }
}
