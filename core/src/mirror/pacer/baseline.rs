//! What the guest's p99 is without the job, and how it is measured while there is one: the copiers hold still for a
//! moment, which is called a probe.
#![forbid(unsafe_code)]

use super::evidence::{SHARE, sigmas};
use super::guest::GuestLatency;
use crate::mirror::estimate::to_f64;
use crate::mirror::pace::Pace;

/// Requests that a baseline is made of, if they come from probes that agree; more than this, and the old ones fade.
const ENOUGH_REQUESTS: u64 = 10_000;
/// With fewer than this the p99 is uncertain by a fifth and more.
const POOR_REQUESTS: u64 = 4000;
/// Probes agree when their medians differ by less than this, in percent,
const AGREE: u64 = 130;
/// and the requests over the p99 by no more than chance explains, in sigmas.
const AGREE_SIGMAS: f64 = 3.0;
/// The p99 is at most this, in percent of the p97; queues have 130 to 140.
const TAIL: u64 = 170;
/// What copying may add to the share of requests that are over a limit without it.
const ADDED_SHARE: f64 = SHARE / 2.0;
/// What a probe sees is cut into so many slices.
const SLICES: usize = 8;
/// A slice stands out when its p99 is more than so many times the middle one,
const STANDS_OUT: u64 = 2;
/// if each has so many requests; of fewer, the longest varies that much by chance.
const SLICE_REQUESTS: u64 = 100;
/// How long a probe measures.
const PROBE_NS: u64 = 100_000_000;
/// How long it does when the guest sends few requests.
const PROBE_MAX_NS: u64 = 500_000_000;
/// Requests that are few: their p99 would be one or two of them.
const PROBE_REQUESTS: u64 = 2000;
/// After this time copies still on their way hang, and a hanging disk delays nobody else's requests.
const DRAIN_MAX_NS: u64 = 300_000_000;
/// Ticks that pass in any case until requests count: those that end now began before.
const SETTLE_TICKS: u32 = 2;

/// The guest's latencies without copying; nothing is known at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Baseline {
    /// Requests that were measured.
    seen: GuestLatency,
    /// Their p99; `None` = nothing known.
    p99_ns: Option<u64>,
}

impl Baseline {
    /// The p99.
    pub(super) fn p99_ns(&self) -> Option<u64> {
        self.p99_ns
    }

    /// The share of requests that may be over a limit: one in a hundred, or more if nearly as many are without copying.
    pub(super) fn allowed_share(&self, limit_ns: u64) -> f64 {
        let alone = self.seen.over(limit_ns) / to_f64(self.seen.count().max(1));
        SHARE.max(alone + ADDED_SHARE)
    }

    /// Whether it is made of so few requests that another probe is worth it soon.
    pub(super) fn is_poor(&self) -> bool {
        self.seen.count() < POOR_REQUESTS
    }

    /// Takes in what a probe saw under the same load as before, or another; whether it is another baseline now.
    pub(super) fn learn(&mut self, probe: &GuestLatency, other_load: bool) -> bool {
        let (a, b) = (self.seen.quantile_ns(0.5), probe.quantile_ns(0.5));
        let expected = SHARE * to_f64(probe.count());
        let far = |p99_ns| sigmas(probe.over(p99_ns), expected).abs() > AGREE_SIGMAS;
        let median_is_other = a.max(b) * 100 > a.min(b) * AGREE;
        let is_other = median_is_other || self.p99_ns.is_none_or(far);
        // A longer tail alone may be a moment in which the machine stalled: it counts with the rest, not in its place.
        let longer_tail = !median_is_other && self.p99_ns.is_some_and(|p99| p99_of(probe) > p99);
        if other_load || (is_other && !longer_tail) {
            self.replace(probe);
            return is_other;
        }
        if self.seen.count() > ENOUGH_REQUESTS {
            self.seen.halve();
        }
        self.seen.add(probe);
        self.p99_ns = Some(p99_of(&self.seen));
        is_other
    }

    /// Forgets what was known.
    fn replace(&mut self, with: &GuestLatency) {
        self.seen = *with;
        self.p99_ns = (with.count() > 0).then(|| p99_of(with));
    }
}

/// The p99, but not what a machine that stalls now and then makes of it: with stalls in nearly one request of a hundred it
/// jumps between the time of a request and that of a stall, and a budget made from the latter would allow anything.
fn p99_of(seen: &GuestLatency) -> u64 {
    seen.quantile_ns(0.99).min(seen.quantile_ns(0.97).saturating_mul(TAIL) / 100)
}

/// Waits until a change of pace shows in what the guest's requests take.
///
/// First the copies on their way must fit the new pace. While they did not, guest requests queued up behind them; the
/// disk needs about the same time again until they are gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    /// When the pace was changed.
    begun_ns: u64,
    /// When the copies fitted it.
    fit_ns: Option<u64>,
    /// Ticks since then.
    ticks: u32,
}

impl Settling {
    /// The pace was changed.
    pub(super) fn new(now_ns: u64) -> Self {
        Self { begun_ns: now_ns, fit_ns: None, ticks: 0 }
    }

    /// Whether it shows from now on.
    pub(super) fn is_over(&mut self, now_ns: u64, copying_bytes: u64, pace: Pace) -> bool {
        let passed_ns = now_ns.saturating_sub(self.begun_ns);
        if self.fit_ns.is_none() && (copying_bytes <= pace.in_flight_bytes || passed_ns >= DRAIN_MAX_NS) {
            self.fit_ns = Some(now_ns);
        }
        let Some(fit_ns) = self.fit_ns else { return false };
        self.ticks += 1;
        self.ticks >= SETTLE_TICKS && now_ns.saturating_sub(fit_ns) >= fit_ns.saturating_sub(self.begun_ns)
    }
}

/// A probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// How long it measures.
    long_ns: u64,
    /// Until the copies are gone.
    settling: Settling,
    /// When measuring began.
    since_ns: Option<u64>,
    /// What it saw, the ticks dealt out in turns: a moment in which the machine stalled is in one or two of them.
    slices: [GuestLatency; SLICES],
    /// Ticks dealt out.
    ticks: usize,
}

impl Probe {
    /// Begins; twice as long when there is nothing yet that evens out a moment in which the machine stalled.
    pub(super) fn new(now_ns: u64, is_first: bool) -> Self {
        let long_ns = if is_first { 2 * PROBE_NS } else { PROBE_NS };
        Self {
            long_ns,
            settling: Settling::new(now_ns),
            since_ns: None,
            slices: [GuestLatency::new(); SLICES],
            ticks: 0,
        }
    }

    /// Goes on; what was seen, once it is over.
    pub(super) fn tick(
        &mut self,
        now_ns: u64,
        guest: &GuestLatency,
        copying_bytes: u64,
    ) -> Option<GuestLatency> {
        let Some(since_ns) = self.since_ns else {
            if self.settling.is_over(now_ns, copying_bytes, Pace::HOLD) {
                self.since_ns = Some(now_ns);
            }
            return None;
        };
        self.slices[self.ticks % SLICES].add(guest);
        self.ticks += 1;
        let enough = self.slices.iter().map(GuestLatency::count).sum::<u64>() >= PROBE_REQUESTS;
        let age_ns = now_ns.saturating_sub(since_ns);
        (age_ns >= if enough { self.long_ns } else { PROBE_MAX_NS }).then(|| self.seen())
    }

    /// All that was seen, but for slices that stand out.
    fn seen(&self) -> GuestLatency {
        let mut p99s_ns = self.slices.map(|slice| slice.quantile_ns(0.99));
        p99s_ns.sort_unstable();
        let few = self.slices.iter().any(|slice| slice.count() < SLICE_REQUESTS);
        let most_ns = if few { u64::MAX } else { p99s_ns[SLICES / 2].saturating_mul(STANDS_OUT) };
        let mut seen = GuestLatency::new();
        self.slices
            .iter()
            .filter(|slice| slice.quantile_ns(0.99) <= most_ns)
            .for_each(|slice| seen.add(slice));
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many requests between `from_us` and twice that.
    fn spread(from_us: u64, requests: u64) -> GuestLatency {
        let mut l = GuestLatency::new();
        (0..requests).for_each(|n| l.record(from_us * (1000 + 1000 * n / requests), 1));
        l
    }

    #[test]
    fn probes_that_agree_add_up_and_others_replace() {
        let mut b = Baseline::default();
        assert_eq!(b.p99_ns(), None);
        assert!(b.learn(&spread(100, 3000), false));
        assert!(!b.learn(&spread(100, 3000), false));
        let p99 = b.p99_ns().unwrap();
        assert!((198_000..220_000).contains(&p99), "{p99}");
        assert!(b.learn(&spread(300, 3000), false));
        assert!(b.p99_ns().unwrap() > 590_000);
        assert!(!b.learn(&spread(301, 10), false), "a few requests that fit");
        assert!(b.learn(&spread(900, 10), false), "a few that do not");
    }

    #[test]
    fn a_moment_in_which_the_machine_stalled_is_not_the_guests_latency() {
        let ms = 1_000_000;
        for stalled in [0..0, 7..8, 11..13] {
            let mut probe = Probe::new(0, true);
            let seen = (1..100).find_map(|n| {
                let guest = if stalled.contains(&n) { spread(5000, 300) } else { spread(100, 300) };
                probe.tick(n * 10 * ms, &guest, 0)
            });
            let p99 = p99_of(&seen.unwrap());
            assert!((190_000..210_000).contains(&p99), "{stalled:?}: {p99}");
        }
    }

    #[test]
    fn a_guest_that_is_slow_half_of_the_time_is_slow() {
        let mut probe = Probe::new(0, true);
        let seen = (1..100).find_map(|n| probe.tick(n * 10_000_000, &spread(100 + n % 2 * 900, 300), 0));
        assert!(p99_of(&seen.unwrap()) > 1_500_000);
    }

    #[test]
    fn a_probe_waits_for_the_copies_but_not_for_ever() {
        let ms = 1_000_000;
        for (drained_after, ends_after) in [(0, 520), (50, 620), (9000, 1100)] {
            let (mut probe, guest) = (Probe::new(0, false), spread(100, 5));
            let end = (1..1000).find(|n| {
                let left = u64::from(n * 10 <= drained_after);
                probe.tick(n * 10 * ms, &guest, left).is_some()
            });
            assert_eq!(end.map(|n| n * 10), Some(ends_after));
        }
    }
}
