//! How many of the guest's requests are over a limit while the copiers hold still, and so not because of them.
//!
//! A host with other work stalls its guests. What is counted here leaves no stall out, unlike the baseline; it fades, for
//! neighbours come and go. One slow request of a slow disk is no noise: that is said only where it is more than chance.
#![forbid(unsafe_code)]

use super::evidence::{SHARE, sigmas};
use super::guest::GuestLatency;
use crate::mirror::estimate::to_f64;

/// What copying may add to the share of requests that are over a limit without it.
const ADDED_SHARE: f64 = SHARE / 2.0;
/// That share is an estimate: so many times as much may be chance.
const UNSURE: f64 = 1.3;
/// No more than this is allowed whatever the guest has alone: above it a count says nothing.
const MOST_SHARE: f64 = 0.5;
/// With a larger share over the limit without copying it is noise; with less than half of it, it is not any more.
const LOUD_SHARE: f64 = 0.6 * SHARE;
/// Sigmas that calling it noise asks for.
const LOUD_SIGMAS: f64 = 2.0;
/// Shares are of no fewer requests than these, and of fewer it is never said that there is noise.
const LEAST_REQUESTS: u64 = 500;
/// What was seen weighs half when so much time was looked at.
const FADE_NS: u64 = 480_000_000;

/// What was seen while the copiers held still.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noise {
    /// All requests that ended then.
    alone: GuestLatency,
    /// How long was looked since they were halved.
    looked_ns: u64,
    /// It is noisy.
    is_loud: bool,
}

impl Noise {
    /// Takes in what was seen in so much time, and judges by how much of it is over `limit_ns`.
    pub(super) fn look(&mut self, seen: &GuestLatency, long_ns: u64, limit_ns: u64) {
        self.looked_ns += long_ns;
        if self.looked_ns > FADE_NS {
            self.looked_ns = 0;
            self.alone.halve();
        }
        self.alone.add(seen);
        let (over, requests) = (self.alone.over(limit_ns), to_f64(self.alone.count()));
        let is_known = self.alone.count() >= LEAST_REQUESTS;
        self.is_loud = is_known
            && match self.is_loud {
                true => over > LOUD_SHARE / 2.0 * requests,
                false => sigmas(over, LOUD_SHARE * requests) >= LOUD_SIGMAS,
            };
    }

    /// Forgets it all: the guest does something else now.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether so many requests are late without copying that the copiers cannot tell what comes from them.
    pub(super) fn is_loud(&self) -> bool {
        self.is_loud
    }

    /// The share of requests that may be over a limit beside copies: one in a hundred, or more if nearly as many are without.
    pub(super) fn allowed_share(&self, limit_ns: u64) -> f64 {
        let alone = self.alone.over(limit_ns) / to_f64(self.alone.count().max(LEAST_REQUESTS));
        SHARE.max(UNSURE * alone + ADDED_SHARE).min(MOST_SHARE)
    }

    /// How many requests that is known from.
    pub(super) fn requests(&self) -> u64 {
        self.alone.count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::spread;
    use super::*;

    /// What the limit is here.
    const LIMIT_NS: u64 = 220_000;
    /// A look.
    const LOOK_NS: u64 = 40_000_000;

    /// Stalls that come with copies and without must not be held against the copies, and a guest that has none is not noisy.
    #[test]
    fn what_is_over_the_limit_without_copying_is_allowed_with_it() {
        let mut noise = Noise::default();
        let mut seen = spread(100, 3000);
        noise.look(&seen, LOOK_NS, LIMIT_NS);
        assert!(!noise.is_loud());
        assert!((noise.allowed_share(LIMIT_NS) - SHARE).abs() < 1e-9);
        seen.add(&spread(5000, 300));
        (0..100).for_each(|_| noise.look(&seen, LOOK_NS, LIMIT_NS));
        assert!(noise.is_loud());
        let allowed = noise.allowed_share(LIMIT_NS);
        assert!((0.09..0.14).contains(&allowed), "{allowed}");
        (0..200).for_each(|_| noise.look(&spread(100, 3000), LOOK_NS, LIMIT_NS));
        assert!(!noise.is_loud(), "it forgets");
    }

    /// A disk that gets few requests would be in noise for ever by one of them.
    #[test]
    fn one_slow_request_of_a_few_is_no_noise() {
        let mut noise = Noise::default();
        let mut seen = spread(100, 30);
        seen.add(&spread(5000, 1));
        noise.look(&seen, LOOK_NS, LIMIT_NS);
        assert!(!noise.is_loud());
        assert!(noise.allowed_share(LIMIT_NS) < 1.01 * SHARE);
    }

    /// Were all requests allowed to be late, nothing would hold the copiers back.
    #[test]
    fn never_are_all_requests_allowed_to_be_late() {
        let mut noise = Noise::default();
        noise.look(&spread(5000, 3000), LOOK_NS, LIMIT_NS);
        assert!(noise.is_loud() && noise.allowed_share(LIMIT_NS) <= MOST_SHARE);
    }
}
