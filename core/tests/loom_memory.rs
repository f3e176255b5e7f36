//! Every interleaving of a request through registered memory with the unmapping of that memory.
//!
//! Run with `make loom`. The model uses the real counters (`InUse`); the list of regions is one flag. It is also run with each
//! fence left out and with the look before the count, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::drive::{InUse, RegionSet};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use loom::thread;

use crate::loom_kit::check;

/// How the protocol is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// The queue does not fence between the count and the look.
    QueueDoesNotFence,
    /// The unmapper does not fence between the publishing and the look.
    UnmapperDoesNotFence,
    /// The queue looks first.
    LooksBeforeItCounts,
    /// The request is not counted any more when it may still be carried out.
    EndsEarly,
}

/// A region, a queue's counters, and the pages.
struct Model {
    in_use: InUse,
    /// The drive's generation: 0 = the region is mapped, 1 = it leaves or is gone.
    generation: AtomicU64,
    /// The pages are somebody else's now.
    gone: AtomicU64,
    broken: Broken,
}

impl Model {
    fn set() -> RegionSet {
        RegionSet::default().with(0)
    }

    /// Accepts a request, sends it, through the buffer if the region is mapped, and ends it.
    fn request(&self) {
        let early = (self.broken == Broken::LooksBeforeItCounts).then(|| self.generation.load(Acquire));
        self.in_use.begin(Self::set());
        if self.broken != Broken::QueueDoesNotFence {
            self.in_use.settle();
        }
        let through = early.unwrap_or_else(|| self.generation.load(Acquire)) == 0;
        if self.broken == Broken::EndsEarly {
            self.in_use.end(Self::set());
        }
        if through {
            assert_eq!(self.gone.load(Relaxed), 0, "sent through pages that are somebody else's");
        }
        if self.broken != Broken::EndsEarly {
            self.in_use.end(Self::set());
        }
    }

    /// Unmaps, and if that succeeds gives the pages to somebody else.
    fn unmap(&self) {
        self.generation.fetch_add(1, AcqRel);
        if self.broken != Broken::UnmapperDoesNotFence {
            self.in_use.settle();
        }
        if !self.in_use.uses(0) {
            self.gone.store(1, Relaxed);
        }
    }
}

/// One request, or two in a row, against an unmapping.
fn race(requests: u32, broken: Broken) {
    let model = Arc::new(Model {
        in_use: InUse::default(),
        generation: AtomicU64::new(0),
        gone: AtomicU64::new(0),
        broken,
    });
    let unmapper = {
        let model = Arc::clone(&model);
        thread::spawn(move || model.unmap())
    };
    (0..requests).for_each(|_| model.request());
    unmapper.join().unwrap();
    assert!(model.in_use.is_idle());
}

#[test]
fn no_request_goes_through_memory_whose_unmapping_has_succeeded() {
    for requests in [1, 2] {
        check(None, move || race(requests, Broken::No));
    }
}

#[test]
#[should_panic(expected = "somebody else's")]
fn a_queue_that_does_not_fence_is_noticed() {
    check(None, || race(1, Broken::QueueDoesNotFence));
}

#[test]
#[should_panic(expected = "somebody else's")]
fn an_unmapper_that_does_not_fence_is_noticed() {
    check(None, || race(1, Broken::UnmapperDoesNotFence));
}

#[test]
#[should_panic(expected = "somebody else's")]
fn a_look_before_the_count_is_noticed() {
    check(None, || race(1, Broken::LooksBeforeItCounts));
}

#[test]
#[should_panic(expected = "somebody else's")]
fn a_count_that_ends_early_is_noticed() {
    check(None, || race(1, Broken::EndsEarly));
}
