//! How many bits of a bitmap are set, kept by those who change them.
//!
//! A bitmap can count its bits only by a scan, which is dear where much is dirty, and which is not exact while somebody sets or
//! clears. So who changes bits adds how many to a counter; the tree tells each caller exactly which were his. The counters
//! belong to the bitmap and not to whoever works with it: a bitmap that records a drive's writes is changed by guest threads in the
//! very moment in which a job begins to work with it, so nobody could count it then.
//!
//! Counters are spread over cache lines by the place on the disk, so that guest threads do not meet on one.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::bytes_usize;

/// How many places there are to count at.
const SHARDS: usize = 16;
/// Chunks that are neighbours on the disk share a word of the bitmap, and a counter.
const NEIGHBOURS_SHIFT: u32 = 6;

/// Counters on a cache line of their own (two, for hardware fetches pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    /// Bits that turned from clean to dirty.
    set: AtomicU64,
    /// Bits that turned from dirty to clean.
    cleared: AtomicU64,
}

/// What changed in a bitmap so far.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By place.
    counts: [Counts; SHARDS],
}

impl Changes {
    /// Where changes at `chunk` are counted.
    fn shard(&self, chunk: u64) -> &Counts {
        &self.counts[bytes_usize(chunk >> NEIGHBOURS_SHIFT) % SHARDS]
    }

    /// So many bits turned dirty, from `chunk` on; returns how many.
    #[inline]
    pub(super) fn set(&self, chunk: u64, bits: u64) -> u64 {
        if bits > 0 {
            self.shard(chunk).set.fetch_add(bits, Ordering::Relaxed);
        }
        bits
    }

    /// So many bits turned clean, from `chunk` on; returns how many.
    #[inline]
    pub(super) fn cleared(&self, chunk: u64, bits: u64) -> u64 {
        if bits > 0 {
            self.shard(chunk).cleared.fetch_add(bits, Ordering::Relaxed);
        }
        bits
    }

    /// Bits that are set: exact when nobody changes any, and off by what is just being changed otherwise.
    pub(super) fn dirty(&self) -> u64 {
        // What was cleared is read first: a bit that is set and cleared in between must not count as less than none.
        let cleared: u64 = self.counts.iter().map(|c| c.cleared.load(Ordering::Relaxed)).sum();
        self.dirtied().saturating_sub(cleared)
    }

    /// Bits that turned dirty so far, as often as they did.
    pub(super) fn dirtied(&self) -> u64 {
        self.counts.iter().map(|c| c.set.load(Ordering::Relaxed)).sum()
    }
}
