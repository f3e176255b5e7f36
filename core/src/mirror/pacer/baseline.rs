//! What the guest's p99 is without the job, from moments in which the copiers hold still (`probe`).
#![forbid(unsafe_code)]

use super::evidence::{SHARE, sigmas};
use super::guest::GuestLatency;
use crate::mirror::estimate::to_f64;

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

    /// Whether it is made of so few requests that another probe is worth it soon.
    pub(super) fn is_poor(&self) -> bool {
        self.seen.count() < POOR_REQUESTS
    }

    /// Whether a probe saw requests of another kind: their median is another. Where none ended there is none.
    pub(super) fn is_of_others(&self, probe: &GuestLatency) -> bool {
        let (a, b) = (self.seen.quantile_ns(0.5), probe.quantile_ns(0.5));
        probe.count() > 0 && a.max(b) * 100 > a.min(b) * AGREE
    }

    /// Takes in what a probe saw under the same load as before, or another; whether it is another baseline now. A probe in which
    /// no request ended says nothing.
    pub(super) fn learn(&mut self, probe: &GuestLatency, other_load: bool) -> bool {
        if probe.count() == 0 {
            return false;
        }
        let median_is_other = self.is_of_others(probe);
        let is_other = median_is_other || self.p99_ns.is_none_or(|p99_ns| self.is_far(p99_ns, probe));
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

    /// Takes in what a glance saw where it is less than what is known: then that comes from a moment in which the machine
    /// stalled. What is more needs a probe. Whether it is another baseline now.
    pub(super) fn lower(&mut self, glance: &GuestLatency) -> bool {
        self.p99_ns.is_some_and(|p99_ns| p99_of(glance) < p99_ns) && self.learn(glance, false)
    }

    /// Whether a probe has more requests over the p99, or fewer, than chance explains. They are one in a hundred but where the
    /// p99 is less than that (`p99_of`).
    fn is_far(&self, p99_ns: u64, probe: &GuestLatency) -> bool {
        let share = (self.seen.over(p99_ns) / to_f64(self.seen.count().max(1))).max(SHARE);
        sigmas(probe.over(p99_ns), share * to_f64(probe.count())).abs() > AGREE_SIGMAS
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

#[cfg(test)]
mod tests {
    use super::super::guest::spread;
    use super::*;

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

    /// A hang must not wipe out what is known.
    #[test]
    fn a_probe_in_which_nothing_ended_changes_nothing() {
        let mut b = Baseline::default();
        assert!(!b.learn(&GuestLatency::new(), false));
        assert_eq!(b.p99_ns(), None);
        assert!(b.learn(&spread(100, 3000), false));
        let p99 = b.p99_ns();
        assert!(!b.is_of_others(&GuestLatency::new()));
        assert!(!b.learn(&GuestLatency::new(), true));
        assert_eq!(b.p99_ns(), p99);
    }

    /// Two requests in a hundred that are slow by themselves are a baseline, and not another one each time.
    #[test]
    fn a_guest_with_slow_requests_of_its_own_has_a_baseline() {
        let mut b = Baseline::default();
        let mut seen = spread(100, 4900);
        seen.add(&spread(5000, 100));
        assert!(b.learn(&seen, false));
        assert!((0..20).all(|_| !b.learn(&seen, false)));
    }

    /// A first probe that met a stall must not hold for ten seconds.
    #[test]
    fn a_glance_takes_a_baseline_down_and_never_up() {
        let mut b = Baseline::default();
        b.learn(&spread(1000, 6000), false);
        assert!(b.lower(&spread(100, 1200)));
        let p99 = b.p99_ns();
        assert!(p99.is_some_and(|p99| p99 < 250_000));
        assert!(!b.lower(&spread(1000, 1200)));
        assert_eq!(b.p99_ns(), p99);
    }
}
