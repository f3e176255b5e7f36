//! Who is at work: the counters that say when a job is finished, and when dirty chunks may be taken up.
//!
//! Both questions have answers that do not add up: "nothing is dirty" and "nobody has anything in hand", asked one after
//! the other, do not mean that nothing is left, for a worker may have taken a chunk, failed, marked it again and let it go
//! in between. So workers count themselves in before they look and out after they gave everything back, and who asks
//! checks that nobody came in while he looked. `core/tests/loom_mirror.rs` walks every interleaving of it.

use crate::bitmap::sync::{AtomicU64, Ordering};

/// The low bits of the word: workers that have work in hand.
const AT_WORK: u64 = 0x7fff_ffff;
/// The bit above them: the job is over, nobody takes up work any more.
const CLOSED: u64 = 0x8000_0000;
/// What taking up work adds: one worker, and one to the count in the high half, which may run over.
const ONE_WORKER: u64 = (1 << 32) + 1;

/// How often [`Activity::is_finished_but_for_looks`] asks.
const LOOKS: u32 = 200;

/// The counters of a job.
#[derive(Debug)]
pub struct Activity {
    /// How many workers have work in hand (low half) and how often one took up work (high half).
    working: AtomicU64,
    /// How many workers hold a part of the sweep that they have not claimed yet.
    sweeping: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { working: AtomicU64::new(0), sweeping: AtomicU64::new(0) }
    }
}

impl Activity {
    /// A worker takes up work: said *before* it looks for any. `false` when the job is over: then it must not.
    #[must_use]
    pub fn begin_work(&self) -> bool {
        let before = self.working.fetch_add(ONE_WORKER, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.end_work();
        }
        before & CLOSED == 0
    }

    /// A worker has nothing in hand any more: said *after* its last dirty bit was set and its last claim released.
    pub fn end_work(&self) {
        self.working.fetch_sub(1, Ordering::AcqRel);
    }

    /// A worker is going to take a part of the sweep: said *before* it does.
    pub fn begin_sweep(&self) {
        self.sweeping.fetch_add(1, Ordering::AcqRel);
    }

    /// A worker has claimed, or put back, all that it took of the sweep.
    pub fn end_sweep(&self) {
        self.sweeping.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether no worker has anything in hand.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.working.load(Ordering::Acquire) & AT_WORK == 0
    }

    /// Whether every chunk was claimed from the sweep once. `is_over` says whether all of the sweep is taken.
    ///
    /// It is asked first: who sees the last part taken sees also who took it, counted in.
    #[must_use]
    pub fn sweep_is_claimed(&self, is_over: impl FnOnce() -> bool) -> bool {
        is_over() && self.sweeping.load(Ordering::Acquire) == 0
    }

    /// Whether nothing is left to copy and nobody has anything in hand. `nothing_left` looks at the sweep and the bitmap.
    ///
    /// A worker counts itself in before it looks for work and out after it gave everything back, and each counting-in
    /// changes the word. So when the word says "nobody" before and after the look and did not change in between, no
    /// worker held a chunk at the moment of the look: what it showed was all there was.
    #[must_use]
    pub fn is_finished(&self, nothing_left: impl FnOnce() -> bool) -> bool {
        let before = self.working.load(Ordering::Acquire);
        before & AT_WORK == 0 && nothing_left() && self.working.load(Ordering::Acquire) == before
    }

    /// The same for a host that asks once. A worker that only looks for work counts as one that has some, for less than a
    /// microsecond each time; whoever asks in that moment asks again, a bounded number of times.
    #[must_use]
    pub fn is_finished_but_for_looks(&self, nothing_left: impl Fn() -> bool) -> bool {
        (0..LOOKS).any(|look| {
            if look > 0 {
                std::hint::spin_loop();
            }
            self.is_finished(&nothing_left)
        })
    }

    /// The same question, and if the answer is yes, from that moment on nobody takes up work: whoever comes later finds
    /// the job closed. So nothing is written to the target once the job has been called complete.
    #[must_use]
    pub fn close_if_finished(&self, nothing_left: impl FnOnce() -> bool) -> bool {
        let before = self.working.load(Ordering::Acquire);
        let closed = before | CLOSED;
        before & AT_WORK == 0
            && nothing_left()
            && self.working.compare_exchange(before, closed, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A job that is in sync has workers that look for work every other millisecond, and a host that asks in that moment must not
    /// be told that it is not.
    #[test]
    fn who_asks_while_workers_look_for_work_is_told_that_all_is_done() {
        let activity = Activity::default();
        let looks_to_come = Cell::new(0);
        let meanwhile = || {
            if looks_to_come.replace(looks_to_come.get() - 1) > 0 {
                assert!(activity.begin_work());
                activity.end_work();
            }
            true
        };
        looks_to_come.set(1);
        assert!(!activity.is_finished(meanwhile), "it cannot be said");
        for looks in [1, 7, 100] {
            looks_to_come.set(looks);
            assert!(activity.is_finished_but_for_looks(meanwhile), "{looks} looks");
        }
        assert!(!activity.is_finished_but_for_looks(|| false), "something is left");
        assert!(activity.begin_work());
        assert!(!activity.is_finished_but_for_looks(|| true), "it has work in hand");
    }
}
