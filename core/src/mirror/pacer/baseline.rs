//! What the guest's p99 is without the job, and how many of its requests take longer than a limit even then. Both come from
//! moments in which the copiers hold still (`probe`).
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
/// What copying may add to the share of requests that are over a limit without it.
const ADDED_SHARE: f64 = SHARE / 2.0;
/// In noise the share without copying is an estimate, too: so much more than it may be chance.
const NOISE_SHARE: f64 = 1.3;
/// With more than this over the limit without copying there is noise.
const NOISY_SHARE: f64 = 0.6 * SHARE;
/// When as much was seen without copying as so many glances bring, it weighs half.
const GLANCES: u32 = 12;

/// The guest's latencies without copying; nothing is known at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Baseline {
    /// Requests that were measured.
    seen: GuestLatency,
    /// Their p99; `None` = nothing known.
    p99_ns: Option<u64>,
    /// All requests that ended while the copiers held still, the moments in which the machine stalled among them.
    alone: GuestLatency,
    /// How many glances' worth was added to these since they were halved.
    glances: u32,
}

impl Baseline {
    /// The p99.
    pub(super) fn p99_ns(&self) -> Option<u64> {
        self.p99_ns
    }

    /// The share of requests that may be over a limit: one in a hundred, or more if nearly as many are without copying.
    pub(super) fn allowed_share(&self, limit_ns: u64) -> f64 {
        SHARE.max(NOISE_SHARE * self.share_alone(limit_ns) + ADDED_SHARE)
    }

    /// How many requests that is known from.
    pub(super) fn alone(&self) -> u64 {
        self.alone.count()
    }

    /// Whether so many requests are over the limit without copying that the copiers cannot tell what comes from them.
    pub(super) fn is_noisy(&self, limit_ns: u64) -> bool {
        self.share_alone(limit_ns) > NOISY_SHARE
    }

    /// The share of requests that are over a limit without copying.
    fn share_alone(&self, limit_ns: u64) -> f64 {
        self.alone.over(limit_ns) / to_f64(self.alone.count().max(1))
    }

    /// Whether it is made of so few requests that another probe is worth it soon.
    pub(super) fn is_poor(&self) -> bool {
        self.seen.count() < POOR_REQUESTS
    }

    /// Takes in all that was seen while the copiers held still, for as long as so many glances.
    pub(super) fn look(&mut self, alone: &GuestLatency, glances: u32) {
        self.glances += glances;
        if self.glances > GLANCES {
            self.glances = 0;
            self.alone.halve();
        }
        self.alone.add(alone);
    }

    /// Forgets what the guest's requests took without copying, under another load.
    pub(super) fn look_anew(&mut self) {
        (self.alone, self.glances) = (GuestLatency::new(), 0);
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

    /// Stalls that come with copies and without must not be held against the copies, and a guest that has none is not noisy.
    #[test]
    fn what_is_over_the_limit_without_copying_is_allowed_with_it() {
        let mut b = Baseline::default();
        let mut all = spread(100, 3000);
        b.look(&all, 1);
        assert!(!b.is_noisy(220_000));
        assert!((b.allowed_share(220_000) - SHARE).abs() < 1e-9);
        all.add(&spread(5000, 300));
        (0..100).for_each(|_| b.look(&all, 1));
        assert!(b.is_noisy(220_000));
        let allowed = b.allowed_share(220_000);
        assert!((0.09..0.14).contains(&allowed), "{allowed}");
        (0..100).for_each(|_| b.look(&spread(100, 3000), 1));
        assert!(!b.is_noisy(220_000), "it forgets");
    }
}
