//! The speed limit, smooth: no burst longer than [`BURST_NS`] of the rate.
//!
//! ```text
//! in every window of length w:  bytes that start <= rate * (w + BURST_NS) + the smallest request (4 KiB)
//! ```
//!
//! One atomic word holds the time at which the next byte may start. A reservation takes the next slot on that line of time,
//! as long as its bytes take at the limit, so slots never overlap. A slot may begin in the past, and may be used late, by
//! [`CREDIT_NS`] both together: that makes up for late wake-ups and rounding. What starts in a window of length w has its
//! slot in that window or within the credit before it, so it is not more than `rate * (w + CREDIT_NS)` and one request; and
//! requests are cut to what is left of the burst ([`CUT_NS`]), so that a slow limit gives small requests evenly spread instead
//! of large ones with long gaps. Only where not even the smallest request is that short does it come on top.
//!
//! A change of the limit voids the slots that were not used yet, and gives no new credit: what is in use may be one request,
//! and the next slot comes after it, at the faster of the two rates. So the bound holds across a change too, for the faster
//! rate.

use std::sync::atomic::{AtomicU64, Ordering};

/// The longest burst, as time at the limit.
const BURST_NS: u64 = 2_000_000;
/// The part of it by which a request may start later than its slot.
const CREDIT_NS: u64 = 1_500_000;
/// The part of it that one request takes.
const CUT_NS: u64 = BURST_NS - CREDIT_NS;
/// Requests are not cut below this: smaller ones cost more than they smooth.
const SMALLEST_CUT_BYTES: u64 = 4096;
/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// The limit that all workers of a job share.
#[derive(Debug)]
pub struct Limiter {
    /// Bytes per second; 0 = no limit.
    speed: AtomicU64,
    /// When the next slot begins, in nanoseconds.
    free_at_ns: AtomicU64,
    /// Changed whenever slots that were not used yet become void.
    epoch: AtomicU64,
}

/// Permission to start at a time: a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Not before this time.
    pub start_ns: u64,
    /// Where the slot ends.
    end_ns: u64,
    /// Void when the limiter's epoch is another.
    epoch: u64,
}

/// What so many bytes take at a speed, which is not 0. Rounded up: many small requests must not be faster than the limit.
fn cost_ns(bytes: u64, speed: u64) -> u64 {
    let cost = (u128::from(bytes) * u128::from(SECOND_NS)).div_ceil(u128::from(speed));
    u64::try_from(cost).unwrap_or(u64::MAX)
}

/// The largest request that is no burst at a speed; 0 = no limit.
fn cut_bytes(speed: u64) -> u64 {
    if speed == 0 {
        return u64::MAX;
    }
    let bytes = speed / (SECOND_NS / CUT_NS);
    (bytes - bytes % SMALLEST_CUT_BYTES).max(SMALLEST_CUT_BYTES)
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

    /// Changes the limit; what was reserved under the old one and not used yet is void.
    pub fn set_speed(&self, bytes_per_s: u64, now_ns: u64) {
        // Before the time is set back: who reserves at the old speed then sees the new epoch after it, and takes it back.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let old = self.speed.swap(bytes_per_s, Ordering::AcqRel);
        // Of the old slots one may have been used just now, so the first new one comes after as many bytes.
        let used_ns =
            if old == 0 || bytes_per_s == 0 { 0 } else { cost_ns(cut_bytes(old), old.max(bytes_per_s)) };
        self.free_at_ns.fetch_min(now_ns.saturating_add(used_ns), Ordering::AcqRel);
        // Once more: a slot that was taken in between may lie as far away as the old speed had put it.
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The limit in bytes per second; 0 = none.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed.load(Ordering::Acquire)
    }

    /// Whether a grant still holds: the limit is the same, and its time is not so long ago that to use it would be a burst.
    #[must_use]
    pub fn holds(&self, grant: Grant, now_ns: u64) -> bool {
        grant.epoch == self.epoch.load(Ordering::Acquire)
            && now_ns <= grant.start_ns.saturating_add(CREDIT_NS)
    }

    /// The largest request that is no burst.
    #[must_use]
    pub fn cut_bytes(&self) -> u64 {
        cut_bytes(self.speed())
    }

    /// Gives a slot back that was not used, which is possible as long as nobody has reserved behind it.
    fn give_back(&self, grant: Grant) {
        if grant.epoch == self.epoch.load(Ordering::Acquire) {
            let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
            // Somebody did: then its time is lost, and the rate is a little lower for once.
            let _ = self.free_at_ns.compare_exchange(grant.end_ns, grant.start_ns, set, fetch);
        }
    }

    /// Reserves `bytes` and says when they may start, instead of a slot that was not used, if there is one.
    #[must_use]
    pub fn reserve(&self, now_ns: u64, bytes: u64, instead_of: Option<Grant>) -> Grant {
        if let Some(grant) = instead_of {
            self.give_back(grant);
        }
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            let speed = self.speed();
            if speed == 0 {
                return Grant { start_ns: now_ns, end_ns: now_ns, epoch };
            }
            let cost_ns = cost_ns(bytes, speed);
            let start_at = |free: u64| free.max(now_ns.saturating_sub(CREDIT_NS));
            let advance = |free: u64| Some(start_at(free).saturating_add(cost_ns));
            // The closure never declines, so both arms hold the old value.
            let free = match self.free_at_ns.fetch_update(set, fetch, advance) {
                Ok(free) | Err(free) => free,
            };
            if epoch == self.epoch.load(Ordering::Acquire) {
                let start_ns = start_at(free);
                return Grant { start_ns, end_ns: start_ns.saturating_add(cost_ns), epoch };
            }
            if speed == self.speed() {
                // It was somebody else who took his slot back, as below. This one's time is lost, at the speed in force; were
                // it taken back too, those who reserve at the time would void each other's slots in turn.
                continue;
            }
            // The speed was changed meanwhile, and this may have pushed the new time on by the cost at the old speed. It is
            // taken back, not into the past, for that would be credit; and who reserved behind it must do so again.
            let back = |free: u64| Some(free.saturating_sub(cost_ns).max(now_ns).min(free));
            let _ = self.free_at_ns.fetch_update(set, fetch, back);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One millisecond.
    const MS: u64 = 1_000_000;

    /// Runs a greedy worker in virtual time and returns the bytes granted and the largest amount inside any 10 ms.
    fn greedy(limiter: &Limiter, from_ns: u64, run_ns: u64) -> (u64, u64) {
        let (mut now, mut total) = (from_ns, 0);
        let mut log: Vec<(u64, u64)> = Vec::new();
        while now < from_ns + run_ns {
            let bytes = limiter.cut_bytes().min(1 << 20);
            let grant = limiter.reserve(now, bytes, None);
            now = now.max(grant.start_ns);
            if now < from_ns + run_ns {
                total += bytes;
                log.push((now, bytes));
            }
        }
        let window =
            |at: u64| log.iter().filter(|(t, _)| (at..at + 10 * MS).contains(t)).map(|(_, b)| b).sum();
        (total, log.iter().map(|&(t, _)| window(t)).max().unwrap_or(0))
    }

    #[test]
    fn the_rate_is_kept_and_no_burst_is_longer_than_it_may_be() {
        for speed in [100_000, 10_000_000, 500_000_000, 2_000_000_000u64] {
            let limiter = Limiter::new(speed);
            let (total, most_in_10ms) = greedy(&limiter, 5_000_000_000, 1_000_000_000);
            let slack = speed / (1_000_000_000 / BURST_NS) + SMALLEST_CUT_BYTES;
            assert!(total.abs_diff(speed) <= slack, "{speed}: {total}");
            assert!(most_in_10ms <= speed / 100 + slack, "{speed}: {most_in_10ms} in 10 ms");
        }
    }

    #[test]
    fn a_new_speed_voids_what_was_reserved_under_the_old_one() {
        let limiter = Limiter::new(1);
        let _ = limiter.reserve(0, 4096, None);
        let grant = limiter.reserve(0, 4096, None);
        assert!(grant.start_ns > 4_000_000_000_000);
        limiter.set_speed(1_000_000_000, 5);
        assert!(!limiter.holds(grant, 5));
        assert!(limiter.reserve(7, 4096, None).start_ns < 10_000, "the old cost is gone");
        limiter.set_speed(0, 8);
        assert_eq!(limiter.reserve(9, 1 << 30, None).start_ns, 9);
    }

    /// A worker that is late by less than the burst must not lose its slot, or a slow limit would never be reached.
    #[test]
    fn late_wake_ups_do_not_lower_the_rate() {
        let (limiter, speed) = (Limiter::new(4 << 20), 4 << 20);
        let (mut now, mut total, mut grant) = (1_000 * MS, 0, None);
        while now < 2_000 * MS {
            let bytes = limiter.cut_bytes();
            let held = grant.filter(|&g| limiter.holds(g, now));
            let slot = held.unwrap_or_else(|| limiter.reserve(now, bytes, grant));
            grant = Some(slot);
            if slot.start_ns <= now {
                grant = None;
                total += bytes;
            } else {
                // Every third time by more than the credit.
                now = slot.start_ns + if total % 3 == 0 { 1_800_000 } else { 400_000 };
            }
        }
        assert!(total >= speed / 100 * 85, "{total} of {speed}");
    }

    /// splitmix64: chance that every run has alike.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (z ^ (z >> 27)) % below
        }
    }

    /// Workers that do what a copier does, and a host that changes the speed now and then.
    struct Crowd {
        limiter: Limiter,
        chance: Chance,
        grants: [Option<(Grant, u64)>; 3],
        now: u64,
        /// When each speed began.
        speeds: Vec<(u64, u64)>,
        /// Bytes that started, and when.
        log: Vec<(u64, u64)>,
    }

    impl Crowd {
        fn new(seed: u64) -> Self {
            let speed = Self::SPEEDS[usize::try_from(seed % 6).unwrap()];
            Self {
                limiter: Limiter::new(speed),
                chance: Chance(seed),
                grants: [None; 3],
                now: 3_000 * MS,
                speeds: vec![(0, speed)],
                log: Vec::new(),
            }
        }

        const SPEEDS: [u64; 6] = [100_000, 2_500_000, 20_000_000, 90_000_000, 700_000_000, 0];

        /// One worker looks for work, as `Copier::wait_for_grant` does; now and then it goes away with a slot in hand.
        fn work(&mut self, worker: usize) {
            let bytes = match self.grants[worker] {
                Some((grant, bytes)) if self.limiter.holds(grant, self.now) => bytes,
                given => {
                    let cut = self.limiter.cut_bytes().min(1 << 20) / 512;
                    let bytes = (self.chance.below(cut) + 1) * 512;
                    let grant = self.limiter.reserve(self.now, bytes, given.map(|(grant, _)| grant));
                    self.grants[worker] = Some((grant, bytes));
                    bytes
                }
            };
            let due = self.grants[worker].is_some_and(|(grant, _)| grant.start_ns <= self.now);
            if due && self.chance.below(8) > 0 {
                self.grants[worker] = None;
                self.log.push((self.now, bytes));
            }
        }

        fn run(&mut self, steps: u64) {
            for _ in 0..steps {
                let worker = usize::try_from(self.chance.below(3)).unwrap();
                self.work(worker);
                self.now += match self.chance.below(100) {
                    0 => self.chance.below(20 * MS),
                    1..20 => self.chance.below(2 * MS),
                    20..60 => self.chance.below(100_000),
                    _ => 0,
                };
                if self.chance.below(60) == 0 {
                    let speed = Self::SPEEDS[usize::try_from(self.chance.below(6)).unwrap()];
                    self.limiter.set_speed(speed, self.now);
                    self.speeds.push((self.now, speed));
                }
            }
        }

        /// The fastest rate in force between two times; `None` = there was no limit for a while.
        fn fastest(&self, from: u64, to: u64) -> Option<u64> {
            let ends = self.speeds.iter().skip(1).map(|s| s.0).chain([u64::MAX]);
            let in_force =
                self.speeds.iter().zip(ends).filter(|((begin, _), end)| *begin <= to && *end >= from);
            in_force
                .map(|((_, speed), _)| if *speed == 0 { None } else { Some(*speed) })
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .max()
        }
    }

    /// A guest feels every burst, however short: after idle times, across changes of the speed, with workers that come late
    /// or hold a slot for long, no window may hold more than its rate and the burst.
    #[test]
    fn no_window_holds_more_than_its_rate_and_one_burst() {
        let mut checked = 0;
        for seed in 0..300 {
            let mut crowd = Crowd::new(seed);
            crowd.run(1500);
            for (i, &(from, _)) in crowd.log.iter().enumerate() {
                let mut sum = 0;
                for &(to, bytes) in crowd.log[i..].iter().take(60) {
                    sum += bytes;
                    let Some(rate) = crowd.fastest(from, to) else { break };
                    let most = u128::from(rate) * u128::from(to - from + BURST_NS) / 1_000_000_000
                        + u128::from(SMALLEST_CUT_BYTES);
                    checked += 1;
                    assert!(
                        u128::from(sum) <= most,
                        "seed {seed}: {sum} bytes in {} ns at {rate}, {most} were allowed",
                        to - from
                    );
                }
            }
        }
        assert!(checked > 100_000, "{checked} windows");
    }
}
