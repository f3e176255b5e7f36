//! What all disks and rings of a simulation share: time, chance, and how often things go wrong.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};

use super::lock;

/// How often things go wrong, in cases per thousand requests; the default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads and writes that transfer only a part.
    pub short: u32,
    /// Reads that fail with EIO.
    pub read_error: u32,
    /// Writes and zeroings that fail with EIO.
    pub write_error: u32,
    /// Writes that fail with ENOSPC.
    pub no_space: u32,
    /// Requests that fail with EAGAIN.
    pub again: u32,
    /// Flushes that fail with EIO.
    pub flush_error: u32,
    /// Requests that never come back.
    pub stuck: u32,
    /// Questions for block status that must be asked with a request, and may hang like one.
    pub late_status: u32,
    /// Zeroing and discarding are not supported at all.
    pub no_zeroing: bool,
    /// A write that is to be durable at its end succeeds and is not, as on FUSE.
    pub no_write_through: bool,
    /// The next look at the memory panics, as a bug in the logic would. Of the world alone, not of a disk.
    pub panic_on_look: bool,
}

/// Virtual time, chance and rules shared by all rings of a simulation.
#[derive(Debug)]
pub struct World {
    /// Everything that changes.
    state: Mutex<WorldState>,
}

/// The inside of a [`World`].
#[derive(Debug)]
struct WorldState {
    /// Virtual time.
    now_ns: u64,
    /// splitmix64.
    chance: u64,
    /// What goes wrong.
    faults: Faults,
}

impl World {
    /// A world at time zero.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(WorldState { now_ns: 1, chance: seed, faults }) })
    }

    /// A number below `below`, which must not be 0.
    pub fn pick(&self, below: u64) -> u64 {
        let mut state = lock(&self.state);
        state.chance = state.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    /// Virtual time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        lock(&self.state).now_ns
    }

    /// Moves the clock on; it never goes back.
    pub fn advance_to(&self, now_ns: u64) {
        let mut state = lock(&self.state);
        state.now_ns = state.now_ns.max(now_ns);
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// What goes wrong now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        lock(&self.state).faults
    }

    /// Whether a case of so many per thousand happens.
    pub(super) fn happens(&self, per_mille: u32) -> bool {
        per_mille > 0 && self.pick(1000) < u64::from(per_mille)
    }
}
