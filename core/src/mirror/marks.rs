//! The dirty bits of a job, and how many there are at any moment.
//!
//! The job's home wants to know every few milliseconds how much is left: the remainder decides about READY, about the switch-over,
//! about escalation. A scan would be dear, so the bitmap's own counters say it (`bitmap/changes.rs`). They are exact when nobody
//! sets or clears, and off by what is just being changed otherwise. Decisions that must be right look at the bits
//! ([`Marks::is_clean`]), behind the closed gate.

use std::sync::Arc;

use crate::bitmap::DirtyBitmap;
use crate::units::{ByteRange, Chunk, ChunkRange};

/// Dirty bits that are counted.
#[derive(Debug)]
pub struct Marks {
    /// The bits; a caller's own bitmap, or the job's.
    bits: Arc<DirtyBitmap>,
}

impl Marks {
    /// What is dirty in `bits` already is the job's as well.
    #[must_use]
    pub fn new(bits: Arc<DirtyBitmap>) -> Self {
        Self { bits }
    }

    /// The bits.
    #[must_use]
    pub fn bits(&self) -> &Arc<DirtyBitmap> {
        &self.bits
    }

    /// Marks `chunks` as dirty, see [`DirtyBitmap::set`]; returns how many were clean.
    pub fn mark_chunks(&self, chunks: ChunkRange) -> u64 {
        self.bits.set(chunks)
    }

    /// Marks every chunk that `range` touches; returns how many were clean.
    pub fn mark(&self, range: ByteRange) -> u64 {
        self.bits.set_bytes(range)
    }

    /// Marks `chunks` as clean, see [`DirtyBitmap::clear`]; returns how many were dirty.
    pub fn clean(&self, chunks: ChunkRange) -> u64 {
        self.bits.clear(chunks)
    }

    /// Bytes of the chunks that are dirty.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.bits.counted().saturating_mul(self.bits.granularity().bytes())
    }

    /// Bytes of the chunks that turned dirty since the bitmap was made, as often as they did; of use for the difference of two
    /// moments.
    #[must_use]
    pub fn dirtied_bytes(&self) -> u64 {
        self.bits.dirtied().saturating_mul(self.bits.granularity().bytes())
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
