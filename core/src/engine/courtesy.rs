//! When a worker stands back from the core, so that it is free at once for a guest's thread that wakes up.
//!
//! A worker that makes room for a guest on the disk makes room on the processor too: the scheduler takes a core on which
//! only such threads run for a free one. Measured beside a guest on two cores: twice as much is copied at the same p99.
//!
//! On a machine whose cores are never free it would hardly run at all, and neither would the part of it that decides when to
//! hurry. So it watches how late it wakes up, and comes forward when it is late, for a time that doubles with each.
#![forbid(unsafe_code)]

/// A wake-up that is later than this means that the cores are busy.
const LATE_NS: u64 = 20_000_000;
/// How long it does not stand back after that, the first time.
const FORWARD_NS: u64 = 1_000_000_000;
/// How long at most.
const FORWARD_MAX_NS: u64 = 64_000_000_000;
/// A worker that stands back wakes up at least so often, or it would not notice that it is late.
const LOOK_UP_NS: u64 = 50_000_000;

/// A worker's courtesy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Courtesy {
    /// Changes how the thread is scheduled; whether that worked.
    set: fn(bool) -> bool,
    /// Whether it stands back now.
    back: bool,
    /// When the last sleep began.
    asleep_ns: u64,
    /// Not before this time.
    forward_until_ns: u64,
    /// How long it comes forward when it is late again.
    forward_ns: u64,
}

impl Courtesy {
    /// The courtesy of a thread that is scheduled by `set`.
    pub(super) fn new(set: fn(bool) -> bool) -> Self {
        Self { set, back: false, asleep_ns: 0, forward_until_ns: 0, forward_ns: FORWARD_NS }
    }

    /// Before a sleep: stands back if that is wanted. When to wake up at the latest.
    pub(super) fn before_sleep(&mut self, wanted: bool, now_ns: u64) -> Option<u64> {
        self.asleep_ns = now_ns;
        let back = wanted && now_ns >= self.forward_until_ns;
        if back != self.back && (self.set)(back) {
            self.back = back;
        }
        self.back.then(|| now_ns.saturating_add(LOOK_UP_NS))
    }

    /// After a sleep that was to end at `due_ns` or before. What was due before it began was not late for want of a core.
    pub(super) fn after_sleep(&mut self, due_ns: u64, now_ns: u64) {
        if self.back && now_ns > due_ns.max(self.asleep_ns).saturating_add(LATE_NS) {
            self.forward_until_ns = now_ns.saturating_add(self.forward_ns);
            self.forward_ns = (self.forward_ns * 2).min(FORWARD_MAX_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn it_stands_back_while_that_is_wanted() {
        let mut c = Courtesy::new(|_| true);
        assert_eq!(c.before_sleep(false, 0), None);
        assert_eq!(c.before_sleep(true, MS), Some(MS + LOOK_UP_NS));
        c.after_sleep(10 * MS, 12 * MS);
        assert!(c.before_sleep(true, 12 * MS).is_some());
        assert_eq!(c.before_sleep(false, 13 * MS), None);
    }

    #[test]
    fn a_worker_that_wakes_up_late_comes_forward_longer_every_time() {
        let mut c = Courtesy::new(|_| true);
        let mut now = 0;
        for seconds in [1, 2, 4, 8] {
            assert!(c.before_sleep(true, now).is_some());
            c.after_sleep(now, now + LATE_NS + 1);
            now += LATE_NS + 1;
            assert_eq!(c.before_sleep(true, now), None);
            c.after_sleep(now, now + 500 * MS);
            assert_eq!(c.before_sleep(true, now + seconds * 1000 * MS - 1), None, "{seconds}");
            now += seconds * 1000 * MS;
        }
    }

    /// What is due already when a sleep begins was made late by the turn before it, not by the cores. A worker that took that
    /// for busy cores would stop to make room just when it has much to copy.
    #[test]
    fn a_long_turn_is_no_late_wake_up() {
        let mut c = Courtesy::new(|_| true);
        let _ = c.before_sleep(true, 100 * MS);
        c.after_sleep(10 * MS, 100 * MS + LATE_NS);
        assert!(c.before_sleep(true, 130 * MS).is_some());
        c.after_sleep(10 * MS, 130 * MS + LATE_NS + 1);
        assert_eq!(c.before_sleep(true, 160 * MS), None, "this one is late by itself");
    }

    #[test]
    fn a_thread_that_may_not_is_not_taken_to_stand_back() {
        let mut c = Courtesy::new(|_| false);
        assert_eq!(c.before_sleep(true, 0), None);
    }
}
