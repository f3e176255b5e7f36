//! The dirty bits of a job, and how many there are at any moment.
//!
//! A bitmap can count its bits only by a scan, which is dear where much is dirty, and the job's home wants to know every few
//! milliseconds: the remainder decides about READY, about the switch-over, about escalation. So who sets or clears bits
//! adds what changed to a counter; the bitmap tells each caller exactly which bits were his. Counters are spread over
//! cache lines by the place on the disk, so that guest threads do not meet on one.
//!
//! The sum is exact when nobody sets or clears, and off by what is just being changed otherwise. Decisions that must be
//! right look at the bits ([`Marks::is_clean`]), behind the closed gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bitmap::DirtyBitmap;
use crate::units::{ByteRange, Chunk, ChunkRange, bytes_usize};

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

/// Dirty bits that are counted.
#[derive(Debug)]
pub struct Marks {
    /// The bits; a caller's own bitmap, or the job's.
    bits: Arc<DirtyBitmap>,
    /// What changed, by place.
    counts: [Counts; SHARDS],
}

impl Marks {
    /// Counts what is dirty in `bits` already.
    #[must_use]
    pub fn new(bits: Arc<DirtyBitmap>) -> Self {
        let counts: [Counts; SHARDS] = Default::default();
        counts[0].set.store(bits.count(), Ordering::Relaxed);
        Self { bits, counts }
    }

    /// Where changes of chunks at `chunk` are counted.
    fn shard(&self, chunk: u64) -> &Counts {
        &self.counts[bytes_usize(chunk >> NEIGHBOURS_SHIFT) % SHARDS]
    }

    /// Marks `chunks` as dirty, see [`DirtyBitmap::set`]; returns how many were clean.
    pub fn mark_chunks(&self, chunks: ChunkRange) -> u64 {
        let changed = self.bits.set(chunks);
        if changed > 0 {
            self.shard(chunks.start()).set.fetch_add(changed, Ordering::Relaxed);
        }
        changed
    }

    /// Marks every chunk that `range` touches; returns how many were clean.
    pub fn mark(&self, range: ByteRange) -> u64 {
        self.mark_chunks(self.bits.granularity().chunks_touched(range))
    }

    /// Marks `chunks` as clean, see [`DirtyBitmap::clear`]; returns how many were dirty.
    pub fn clean(&self, chunks: ChunkRange) -> u64 {
        let changed = self.bits.clear(chunks);
        if changed > 0 {
            self.shard(chunks.start()).cleared.fetch_add(changed, Ordering::Relaxed);
        }
        changed
    }

    /// Bytes of the chunks that are dirty.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            self.counts.iter().map(|c| of(c).load(Ordering::Relaxed)).sum::<u64>()
        };
        // What was cleared is read first: a bit that is set and cleared in between must not count as less than none.
        let cleared = sum(|c| &c.cleared);
        sum(|c| &c.set).saturating_sub(cleared).saturating_mul(self.bits.granularity().bytes())
    }

    /// Bytes of the chunks that turned dirty so far, as often as they did.
    #[must_use]
    pub fn dirtied_bytes(&self) -> u64 {
        let set: u64 = self.counts.iter().map(|c| c.set.load(Ordering::Relaxed)).sum();
        set.saturating_mul(self.bits.granularity().bytes())
    }

    /// The first run of dirty chunks, see [`DirtyBitmap::next_run`].
    #[must_use]
    pub fn next_run(&self, from: Chunk, max_chunks: u64) -> Option<ChunkRange> {
        self.bits.next_run(from, max_chunks)
    }

    /// Whether nothing is dirty, see [`DirtyBitmap::is_clean`].
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bits.is_clean()
    }

    /// Whether `chunk` is dirty.
    #[must_use]
    pub fn test(&self, chunk: Chunk) -> bool {
        self.bits.test(chunk)
    }

    /// How many chunks the disk has.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.bits.chunks()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Granularity;

    proptest! {
        #[test]
        fn the_counters_agree_with_the_bits(ops in prop::collection::vec((any::<bool>(), 0u64..3000, 0u64..300), 0..60)) {
            let bits = Arc::new(DirtyBitmap::new(3000 * 4096, Granularity::new(4096).unwrap()).unwrap());
            bits.set(ChunkRange::new(5, 10));
            let marks = Marks::new(Arc::clone(&bits));
            for (set, start, len) in ops {
                let chunks = ChunkRange::new(start, start + len);
                if set { marks.mark_chunks(chunks); } else { marks.clean(chunks); }
                prop_assert_eq!(marks.dirty_bytes(), bits.count() * 4096);
            }
            prop_assert!(marks.dirtied_bytes() >= marks.dirty_bytes());
        }
    }
}
