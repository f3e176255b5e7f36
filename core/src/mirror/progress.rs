//! Counters that workers keep, and what a host reads from them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::states::JobStatus;
use crate::units::bytes_u64;

/// One worker's counters, alone on its cache lines: another worker's count never slows this one down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// Bytes written to the target as data.
    copied: AtomicU64,
    /// Bytes made zero on the target without sending them.
    zeroed: AtomicU64,
    /// Bytes that needed no request.
    skipped: AtomicU64,
    /// Bytes of `copied` that had been copied before.
    recopied: AtomicU64,
    /// Bytes being copied now.
    in_flight: AtomicU64,
    /// Bytes that were claimed and are neither dirty nor being copied yet, because the pace or the speed limit says wait.
    open: AtomicU64,
    /// Requests made or under way.
    pieces: AtomicU64,
    /// Has data to copy and waits for its turn, where the pace is too slow for all.
    waits: AtomicBool,
    /// Requests sent again.
    retries: AtomicU64,
    /// Requests that failed for good.
    errors: AtomicU64,
}

/// Which counter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// Bytes written to the target as data.
    Copied,
    /// Bytes made zero on the target without sending them.
    Zeroed,
    /// Bytes that needed no request.
    Skipped,
    /// Bytes written as data once more, because the guest had written there; counted as copied, too.
    Recopied,
    /// Requests sent again.
    Retries,
    /// Requests that failed for good.
    Errors,
}

impl Tally {
    /// Adds to a counter. Only the worker that owns the tally writes it, so a load and a store do.
    pub(super) fn add(&self, count: Count, n: u64) {
        let counter = match count {
            Count::Copied => &self.copied,
            Count::Zeroed => &self.zeroed,
            Count::Skipped => &self.skipped,
            Count::Recopied => &self.recopied,
            Count::Retries => &self.retries,
            Count::Errors => &self.errors,
        };
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Sets how many requests are made or under way.
    pub(super) fn set_pieces(&self, pieces: usize) {
        self.pieces.store(bytes_u64(pieces), Ordering::Release);
    }

    /// Whether there are none.
    pub(super) fn is_still(&self) -> bool {
        self.pieces.load(Ordering::Acquire) == 0
    }

    /// Says whether the worker waits for its turn.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Release);
    }

    /// Whether it does.
    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Sets the bytes that were claimed and not begun.
    pub(super) fn set_open(&self, bytes: u64) {
        self.open.store(bytes, Ordering::Relaxed);
    }

    /// How many those are.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Sets the bytes being copied now.
    pub(super) fn set_in_flight(&self, bytes: u64) {
        self.in_flight.store(bytes, Ordering::Relaxed);
    }
}

/// What a job has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where the job stands.
    pub status: JobStatus,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk that were dealt with; not more than `disk_bytes`, though some may be dealt with again.
    pub done_bytes: u64,
    /// Bytes written to the target as data.
    pub copied_bytes: u64,
    /// Bytes made zero on the target without sending them.
    pub zeroed_bytes: u64,
    /// Bytes that needed no request.
    pub skipped_bytes: u64,
    /// Bytes of `copied_bytes` that were copied again because the guest had written there.
    pub recopied_bytes: u64,
    /// Bytes that guest writes took to both sides themselves.
    pub active_bytes: u64,
    /// Bytes being copied now.
    pub in_flight_bytes: u64,
    /// Bytes dealt with per second, over the last seconds.
    pub rate_bytes_per_s: u64,
    /// Time left at that rate; `None` while nothing moves.
    pub eta: Option<Duration>,
    /// Time since the job was started.
    pub elapsed: Duration,
    /// Requests sent again after a passing error or a short transfer.
    pub retries: u64,
    /// Requests that failed for good.
    pub errors: u64,
    /// Workers that share the job.
    pub workers: usize,
}

impl Progress {
    /// Adds up the workers' counters.
    #[must_use]
    pub(super) fn sum(tallies: &[Tally], disk_bytes: u64) -> Self {
        let mut p = Self { disk_bytes, workers: tallies.len(), ..Self::default() };
        for t in tallies {
            p.copied_bytes += t.copied.load(Ordering::Relaxed);
            p.zeroed_bytes += t.zeroed.load(Ordering::Relaxed);
            p.skipped_bytes += t.skipped.load(Ordering::Relaxed);
            p.recopied_bytes += t.recopied.load(Ordering::Relaxed);
            p.in_flight_bytes += t.in_flight.load(Ordering::Relaxed);
            p.retries += t.retries.load(Ordering::Relaxed);
            p.errors += t.errors.load(Ordering::Relaxed);
        }
        p.done_bytes = (p.copied_bytes + p.zeroed_bytes + p.skipped_bytes).min(disk_bytes);
        p
    }
}

/// The rate over the last seconds, from samples that the caller takes when it likes.
#[derive(Debug, Default)]
pub struct RateMeter {
    /// Samples, oldest first: time and bytes.
    samples: std::collections::VecDeque<(u64, u64)>,
}

/// How far back the rate looks.
const MEMORY_NS: u64 = 5_000_000_000;
/// Samples closer together than this are not kept.
const SPACING_NS: u64 = 50_000_000;

impl RateMeter {
    /// Takes a sample and returns bytes per second over what is remembered.
    pub fn sample(&mut self, now_ns: u64, bytes: u64) -> u64 {
        while self.samples.len() > 1 && self.samples.front().is_some_and(|(t, _)| t + MEMORY_NS < now_ns) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|(t, _)| t + SPACING_NS <= now_ns) {
            self.samples.push_back((now_ns, bytes));
        }
        let Some(&(then, had)) = self.samples.front() else { return 0 };
        let per_second = u128::from(bytes.saturating_sub(had)) * 1_000_000_000;
        u64::try_from(per_second / u128::from(now_ns.saturating_sub(then).max(1))).unwrap_or(u64::MAX)
    }

    /// Time to deal with `left_bytes` at `rate`; `None` while nothing moves.
    #[must_use]
    pub fn eta(left_bytes: u64, rate_bytes_per_s: u64) -> Option<Duration> {
        (rate_bytes_per_s > 0).then(|| {
            Duration::from_millis(
                u64::try_from(u128::from(left_bytes) * 1000 / u128::from(rate_bytes_per_s))
                    .unwrap_or(u64::MAX),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_last_seconds_only() {
        let mut meter = RateMeter::default();
        for tick in 0..200u64 {
            let bytes = if tick < 100 { tick * 1000 } else { 100_000 + (tick - 100) * 10 };
            meter.sample(tick * 100_000_000, bytes);
        }
        let rate = meter.sample(200 * 100_000_000, 101_000);
        assert!(rate.abs_diff(100) < 5, "{rate}");
        assert_eq!(RateMeter::eta(1000, rate.max(1)).unwrap().as_secs(), 1000 / rate);
        assert_eq!(RateMeter::eta(1000, 0), None);
    }
}
