//! How a guest write wakes a home that sleeps, and costs nothing while it is awake.
//!
//! The home arms the bell, then looks at the dirty bits, and sleeps only if none is set. A writer sets a bit, then looks
//! whether the bell is armed. With a full fence between the two on both sides at least one of them sees the other, so no
//! bit is slept over; and of many writers exactly one rings. `core/tests/loom_writers.rs` walks every interleaving.

use crate::bitmap::sync::{AtomicU64, Ordering, full_fence};

/// The bell of one home.
#[derive(Debug)]
pub struct Doorbell {
    /// 1 while the home sleeps or is about to.
    armed: AtomicU64,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self { armed: AtomicU64::new(0) }
    }
}

impl Doorbell {
    /// The home is going to sleep until a chunk turns dirty. It must look at the bitmap after this, and not sleep if
    /// something is dirty.
    pub fn arm(&self) {
        self.armed.store(1, Ordering::Relaxed);
        full_fence();
    }

    /// The home is awake: writes need not wake it.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::Relaxed);
    }

    /// After a bit was set: whether the home sleeps and this caller is the one to wake it.
    #[must_use]
    pub fn is_mine_to_ring(&self) -> bool {
        full_fence();
        self.armed.load(Ordering::Relaxed) == 1 && self.armed.swap(0, Ordering::AcqRel) == 1
    }
}
