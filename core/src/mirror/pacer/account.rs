//! How much of the guest's requests was over the limit lately, whatever the pace was.
//!
//! What a guest sees is a p99 over seconds, and one request in a hundred is little: a faster pace that is tried for a tenth of a
//! second and is wrong uses up what is allowed for several. Evidence begins anew with every pace, so it would try the next one
//! right after that. So as long as what was over the limit in the last seconds is about as much as is allowed, no pace is tried
//! that most guests can feel.
#![forbid(unsafe_code)]

use crate::mirror::estimate::to_f64;

/// What was counted weighs less by a factor of e after this.
const MEMORY_NS: f64 = 1.5e9;
/// The part of what is allowed that may be used up when a faster pace is tried.
const FREE_SHARE: f64 = 0.8;

/// Counts that fade.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    /// Requests.
    requests: f64,
    /// How many were over the limit.
    over: f64,
    /// When the last were counted.
    counted_ns: u64,
}

impl Account {
    /// Counts a tick's requests.
    pub(super) fn count(&mut self, now_ns: u64, requests: u64, over: f64) {
        let passed_ns = now_ns.saturating_sub(std::mem::replace(&mut self.counted_ns, now_ns));
        let keep = (-to_f64(passed_ns) / MEMORY_NS).exp();
        self.requests = self.requests * keep + to_f64(requests);
        self.over = self.over * keep + over;
    }

    /// Whether there is something left of what is allowed, that is such a share.
    pub(super) fn has_room(&self, share: f64) -> bool {
        self.over <= FREE_SHARE * share * self.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_over_the_limit_counts_for_seconds() {
        let mut account = Account::default();
        let mut tick = |n: u64, over: f64| {
            account.count(n * 10_000_000, 300, over);
            account.has_room(0.01)
        };
        assert!((0..300).all(|n| tick(n, 2.0)), "two in three hundred leave something");
        // A tenth of a second in which one in ten is too much.
        (300..310).for_each(|n| {
            tick(n, 30.0);
        });
        let back = (310..1000).find(|&n| tick(n, 0.0));
        assert!(back.is_some_and(|n| (370..450).contains(&n)), "{back:?}");
    }
}
