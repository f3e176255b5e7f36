//! The speed limit, smooth: no burst longer than [`BURST_NS`] of the rate.
//!
//! One atomic word holds the time at which the next byte may start. A reservation moves it on by what the bytes take at
//! the limit; whoever's start lies in the future waits until then. Requests are cut to what the burst allows, so a slow
//! limit gives small requests evenly spread instead of large ones with long gaps.

use std::sync::atomic::{AtomicU64, Ordering};

/// The longest burst, as time at the limit.
const BURST_NS: u64 = 2_000_000;
/// Requests are not cut below this: smaller ones cost more than they smooth.
const SMALLEST_CUT_BYTES: u64 = 4096;

/// The limit that all workers of a job share.
#[derive(Debug)]
pub struct Limiter {
    /// Bytes per second; 0 = no limit.
    speed: AtomicU64,
    /// When the next byte may start, in nanoseconds.
    free_at_ns: AtomicU64,
    /// How often the speed was changed; reservations made before the last change are void.
    epoch: AtomicU64,
}

/// Permission to start at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Not before this time.
    pub start_ns: u64,
    /// Void when the limiter's epoch is another.
    pub epoch: u64,
}

impl Limiter {
    /// A limit of `speed_bytes_per_s`; 0 = none.
    #[must_use]
    pub fn new(speed_bytes_per_s: u64) -> Self {
        Self {
            speed: AtomicU64::new(speed_bytes_per_s),
            free_at_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// Changes the limit; what was reserved under the old one is void.
    pub fn set_speed(&self, bytes_per_s: u64) {
        self.speed.store(bytes_per_s, Ordering::Release);
        // Before the time is set back: who reserves at the old speed then sees the new epoch after it, and sets it back again.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.free_at_ns.store(0, Ordering::Release);
    }

    /// The limit in bytes per second; 0 = none.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed.load(Ordering::Acquire)
    }

    /// Whether a grant still holds.
    #[must_use]
    pub fn holds(&self, grant: Grant) -> bool {
        grant.epoch == self.epoch.load(Ordering::Acquire)
    }

    /// The largest request that is no burst.
    #[must_use]
    pub fn cut_bytes(&self) -> u64 {
        match self.speed() {
            0 => u64::MAX,
            speed => (speed / (1_000_000_000 / BURST_NS))
                .next_multiple_of(SMALLEST_CUT_BYTES)
                .max(SMALLEST_CUT_BYTES),
        }
    }

    /// Reserves `bytes` and says when they may start.
    #[must_use]
    pub fn reserve(&self, now_ns: u64, bytes: u64) -> Grant {
        let epoch = self.epoch.load(Ordering::Acquire);
        let speed = self.speed();
        if speed == 0 {
            return Grant { start_ns: now_ns, epoch };
        }
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(speed);
        let cost_ns = u64::try_from(cost).unwrap_or(u64::MAX);
        // An idle time shorter than the burst is made up for, so that rounding and late wake-ups do not lower the rate.
        let start_at = |free: u64| free.max(now_ns.saturating_sub(BURST_NS));
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        let advance = |free: u64| Some(start_at(free).saturating_add(cost_ns));
        // The closure never declines, so both arms hold the old value.
        let free = match self.free_at_ns.fetch_update(set, fetch, advance) {
            Ok(free) | Err(free) => free,
        };
        if epoch != self.epoch.load(Ordering::Acquire) {
            // The speed was changed meanwhile, and this has just pushed the new time on by the cost at the old speed.
            self.free_at_ns.store(0, Ordering::Release);
        }
        Grant { start_ns: start_at(free), epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a greedy worker in virtual time and returns the bytes granted and the largest amount inside any 10 ms.
    fn greedy(limiter: &Limiter, from_ns: u64, run_ns: u64) -> (u64, u64) {
        let (mut now, mut total) = (from_ns, 0);
        let mut log: Vec<(u64, u64)> = Vec::new();
        while now < from_ns + run_ns {
            let bytes = limiter.cut_bytes().min(1 << 20);
            let grant = limiter.reserve(now, bytes);
            now = now.max(grant.start_ns);
            total += bytes;
            log.push((now, bytes));
        }
        let window =
            |at: u64| log.iter().filter(|(t, _)| (at..at + 10_000_000).contains(t)).map(|(_, b)| b).sum();
        (total, log.iter().map(|&(t, _)| window(t)).max().unwrap_or(0))
    }

    #[test]
    fn the_rate_is_kept_and_no_burst_is_longer_than_it_may_be() {
        for speed in [100_000, 10_000_000, 500_000_000, 4_000_000_000u64] {
            let limiter = Limiter::new(speed);
            let (total, most_in_10ms) = greedy(&limiter, 5_000_000_000, 1_000_000_000);
            let slack = 2 * limiter.cut_bytes() + speed / 250;
            assert!(total.abs_diff(speed) <= slack, "{speed}: {total}");
            assert!(most_in_10ms <= speed / 100 + slack, "{speed}: {most_in_10ms} in 10 ms");
        }
    }

    #[test]
    fn a_new_speed_voids_what_was_reserved_under_the_old_one() {
        let limiter = Limiter::new(1);
        let _ = limiter.reserve(0, 4096);
        let grant = limiter.reserve(0, 4096);
        assert!(grant.start_ns > 4_000_000_000_000);
        limiter.set_speed(0);
        assert!(!limiter.holds(grant));
        assert_eq!(limiter.reserve(7, 1 << 30).start_ns, 7);
    }
}
