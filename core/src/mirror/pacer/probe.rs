//! How the guest's latency without copying is seen while there is a job: the copiers hold still for a moment.
#![forbid(unsafe_code)]

use super::guest::GuestLatency;
use crate::mirror::pace::Pace;

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
/// How long a glance measures, however many there are.
const GLANCE_NS: u64 = 40_000_000;
/// A probe that the guest interrupted by sending nothing goes on when it comes back within this.
const STALE_NS: u64 = 1_000_000_000;
/// After this time copies still on their way hang, and a hanging disk delays nobody else's requests.
const DRAIN_MAX_NS: u64 = 300_000_000;
/// Ticks that pass in any case until requests count: those that end now began before.
const SETTLE_TICKS: u32 = 2;

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
    /// What was counted before counts after it, too.
    keeps: bool,
}

impl Settling {
    /// The pace was changed, or is taken up again: then what was counted under it `keeps` its weight.
    pub(super) fn new(now_ns: u64, keeps: bool) -> Self {
        Self { begun_ns: now_ns, fit_ns: None, ticks: 0, keeps }
    }

    /// Whether what was counted before counts after it, too.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
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

/// What the copiers hold still for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A baseline where there is none, and nothing yet that evens out a moment in which the machine stalled.
    First,
    /// A baseline.
    Probe,
    /// Whether the baseline is less than was thought, and what is over the limit without copying: of that many moments tell
    /// more than a long one.
    Glance,
}

impl Purpose {
    /// How long it measures, if there are enough requests.
    fn long_ns(self) -> u64 {
        match self {
            Self::First => 2 * PROBE_NS,
            Self::Probe => PROBE_NS,
            Self::Glance => GLANCE_NS,
        }
    }
}

/// A time in which the copiers hold still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// What for.
    pub(super) purpose: Purpose,
    /// When it began.
    begun_ns: u64,
    /// Until the copies are gone; `None` = it measures.
    settling: Option<Settling>,
    /// The last tick.
    last_ns: u64,
    /// How long it has measured.
    measured_ns: u64,
    /// What it saw, the ticks dealt out in turns: a moment in which the machine stalled is in one or two of them.
    slices: [GuestLatency; SLICES],
    /// Ticks dealt out.
    ticks: usize,
}

impl Probe {
    /// Begins.
    pub(super) fn new(now_ns: u64, purpose: Purpose) -> Self {
        Self {
            purpose,
            begun_ns: now_ns,
            settling: Some(Settling::new(now_ns, false)),
            last_ns: now_ns,
            measured_ns: 0,
            slices: [GuestLatency::new(); SLICES],
            ticks: 0,
        }
    }

    /// Goes on; whether it is over.
    pub(super) fn tick(&mut self, now_ns: u64, guest: &GuestLatency, copying_bytes: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(std::mem::replace(&mut self.last_ns, now_ns));
        if let Some(settling) = &mut self.settling {
            if settling.is_over(now_ns, copying_bytes, Pace::HOLD) {
                self.settling = None;
            }
            return false;
        }
        self.measured_ns += passed_ns;
        self.slices[self.ticks % SLICES].add(guest);
        self.ticks += 1;
        let requests: u64 = self.slices.iter().map(GuestLatency::count).sum();
        let enough = self.purpose == Purpose::Glance || requests >= PROBE_REQUESTS;
        self.measured_ns >= if enough { self.purpose.long_ns() } else { PROBE_MAX_NS }
    }

    /// The guest was idle meanwhile, and the copiers were not. What was seen before still counts, unless it is long ago.
    #[must_use]
    pub(super) fn resumed(self, now_ns: u64) -> Option<Self> {
        let idle_ns = now_ns.saturating_sub(self.last_ns);
        let begun_ns = self.begun_ns.saturating_add(idle_ns);
        let settling = Some(Settling::new(now_ns, false));
        (idle_ns < STALE_NS).then_some(Self { begun_ns, settling, last_ns: now_ns, ..self })
    }

    /// How long the copiers have held still for it.
    pub(super) fn held_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.begun_ns)
    }

    /// How long it has measured.
    pub(super) fn measured_ns(&self) -> u64 {
        self.measured_ns
    }

    /// All that was seen.
    pub(super) fn all(&self) -> GuestLatency {
        let mut all = GuestLatency::new();
        self.slices.iter().for_each(|slice| all.add(slice));
        all
    }

    /// All that was seen, but for slices that stand out.
    pub(super) fn steady(&self) -> GuestLatency {
        let slices = &self.slices[..self.ticks.min(SLICES)];
        let mut p99s_ns = self.slices.map(|slice| slice.quantile_ns(0.99));
        let p99s_ns = &mut p99s_ns[..slices.len()];
        p99s_ns.sort_unstable();
        let few = slices.iter().any(|slice| slice.count() < SLICE_REQUESTS);
        let middle_ns = p99s_ns.get(slices.len() / 2).filter(|_| !few);
        let most_ns = middle_ns.map_or(u64::MAX, |p99_ns| p99_ns.saturating_mul(STANDS_OUT));
        let mut seen = GuestLatency::new();
        slices.iter().filter(|slice| slice.quantile_ns(0.99) <= most_ns).for_each(|slice| seen.add(slice));
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::spread;
    use super::*;

    /// What a first probe takes for steady, of ticks of 10 ms.
    fn steady_of(guest: impl Fn(u64) -> GuestLatency) -> GuestLatency {
        let mut probe = Probe::new(0, Purpose::First);
        assert!((1..100).any(|n| probe.tick(n * 10_000_000, &guest(n), 0)));
        probe.steady()
    }

    #[test]
    fn a_moment_in_which_the_machine_stalled_is_not_the_guests_latency() {
        for stalled in [0..0, 7..8, 11..13] {
            let seen = steady_of(|n| if stalled.contains(&n) { spread(5000, 300) } else { spread(100, 300) });
            let p99 = seen.quantile_ns(0.99);
            assert!((190_000..210_000).contains(&p99), "{stalled:?}: {p99}");
        }
    }

    #[test]
    fn a_guest_that_is_slow_half_of_the_time_is_slow() {
        assert!(steady_of(|n| spread(100 + n % 2 * 900, 300)).quantile_ns(0.99) > 1_500_000);
    }

    #[test]
    fn a_probe_waits_for_the_copies_but_not_for_ever() {
        let ms = 1_000_000;
        for (drained_after, ends_after) in [(0, 520), (50, 620), (9000, 1100)] {
            let (mut probe, guest) = (Probe::new(0, Purpose::Probe), spread(100, 5));
            let end = (1..1000).find(|n| {
                let left = u64::from(n * 10 <= drained_after);
                probe.tick(n * 10 * ms, &guest, left)
            });
            assert_eq!(end.map(|n| n * 10), Some(ends_after));
        }
    }

    /// Bursts shorter than a probe would hold the copiers in every one of them, and never know anything.
    #[test]
    fn a_probe_goes_on_in_the_next_burst() {
        let ms = 1_000_000;
        let mut probe = Probe::new(0, Purpose::Probe);
        let mut now_ms = 0;
        for burst in 0.. {
            if (0..20).any(|_| {
                now_ms += 10;
                probe.tick(now_ms * ms, &spread(100, 10), 0)
            }) {
                assert_eq!(burst, 2, "500 ms are in three of them");
                break;
            }
            now_ms += 50;
            probe = probe.resumed(now_ms * ms).unwrap();
        }
        assert!(probe.resumed((now_ms + 2000) * ms).is_none(), "that is long ago");
    }
}
