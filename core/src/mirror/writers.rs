//! Who may write to the target: one copier per chunk, or any number of guest writes that do not overlap.
//!
//! **One writer per chunk.** Two writes to the same bytes of the target that are under way at the same time may land in
//! either order, so an old one could land after a newer one. Hence a chunk belongs either to one copier, or to guest
//! writes (write-blocking mode) that have no block in common. Nobody waits for anybody: who is refused leaves the chunk
//! dirty, and a copier comes round.
//!
//! Copiers claim chunks, guest writes claim blocks (4 KiB), and each looks at the other's bits after it has set its own:
//!
//! ```text
//! copier:  claim the chunk; fence; a guest's block in it?     guest:  claim the blocks; fence; a copier's chunk over them?
//!          yes: release, the chunk stays dirty                        yes: release, to the source only
//! ```
//!
//! With a full fence between claim and look on both sides, at least one of two that meet sees the other; both may step
//! back, and then the chunk is dirty and a copier comes again. Both may never go on. `core/tests/loom_writers.rs` walks it.
//!
//! A release is a release, a claim an acquire on the same word, so who claims after a release sees what was done before it.

use crate::bitmap::Claims;
use crate::bitmap::sync::full_fence;
use crate::error::Result;
use crate::units::{ByteRange, ChunkRange, Granularity, KIB};

/// The unit in which guest writes are kept apart, where chunks are not smaller.
const BLOCK_BYTES: u64 = 4 * KIB;

/// The rights to write to the target.
#[derive(Debug)]
pub struct Writers {
    /// What copiers hold.
    copiers: Claims,
    /// What guest writes hold, in blocks.
    guests: Claims,
    /// Bytes of a chunk.
    granularity: Granularity,
    /// Bytes of a block.
    block: Granularity,
    /// Bytes of the disk.
    disk_bytes: u64,
}

impl Writers {
    /// Nobody writes to a disk of `disk_bytes` yet. It reserves addresses; memory is used where somebody writes.
    ///
    /// # Errors
    /// As [`Claims::new`].
    pub fn new(disk_bytes: u64, granularity: Granularity) -> Result<Self> {
        let block = Granularity::new(BLOCK_BYTES.min(granularity.bytes()))?;
        Ok(Self {
            copiers: Claims::new(disk_bytes, granularity)?,
            guests: Claims::new(disk_bytes, block)?,
            granularity,
            block,
            disk_bytes,
        })
    }

    /// The blocks of `chunks`.
    fn blocks_of(&self, chunks: ChunkRange) -> ChunkRange {
        self.block.chunks_touched(self.granularity.bytes_of(chunks, self.disk_bytes))
    }

    /// Claims the longest prefix of `chunks` for a copier in which nobody writes; empty if somebody writes in the first.
    #[must_use = "what was claimed must be released"]
    pub fn claim_for_copier(&self, chunks: ChunkRange) -> ChunkRange {
        let got = self.copiers.try_claim(chunks);
        if got.is_empty() {
            return got;
        }
        full_fence();
        let Some(met) = self.guests.first_claimed(self.blocks_of(got)) else { return got };
        let met = self.granularity.chunk_of(met.0 * self.block.bytes()).0;
        self.copiers.release(ChunkRange::new(met, got.end()));
        ChunkRange::new(got.start(), met)
    }

    /// A copier is done with chunks that it had claimed.
    pub fn release_by_copier(&self, chunks: ChunkRange) {
        self.copiers.release(chunks);
    }

    /// Claims `range` for a guest write, all of it or nothing.
    #[must_use = "what was claimed must be released"]
    pub fn claim_for_guest(&self, range: ByteRange) -> bool {
        let blocks = self.block.chunks_touched(range);
        let got = self.guests.try_claim(blocks);
        full_fence();
        let free =
            got == blocks && self.copiers.first_claimed(self.granularity.chunks_touched(range)).is_none();
        if !free {
            self.guests.release(got);
        }
        free
    }

    /// A guest write is done with the range that it had claimed.
    pub fn release_by_guest(&self, range: ByteRange) {
        self.guests.release(self.block.chunks_touched(range));
    }

    /// Whether a copier holds any of `chunks`.
    #[must_use]
    pub fn copier_in(&self, chunks: ChunkRange) -> bool {
        self.copiers.first_claimed(chunks).is_some()
    }

    /// Whether a guest write is under way in any of `chunks`.
    #[must_use]
    pub fn guest_in(&self, chunks: ChunkRange) -> bool {
        self.guests.first_claimed(self.blocks_of(chunks)).is_some()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn writers() -> Writers {
        Writers::new(10 * 65536 + 512, Granularity::DEFAULT).unwrap()
    }

    #[test]
    fn guest_writes_side_by_side_in_one_chunk_keep_copiers_out_until_the_last_is_done() {
        let w = writers();
        assert!(
            w.claim_for_guest(ByteRange::at(65536, 4096))
                && w.claim_for_guest(ByteRange::at(65536 + 8192, 512))
        );
        assert_eq!(w.claim_for_copier(ChunkRange::new(0, 10)), ChunkRange::new(0, 1));
        w.release_by_guest(ByteRange::at(65536, 4096));
        assert!(w.claim_for_copier(ChunkRange::new(1, 2)).is_empty());
        w.release_by_guest(ByteRange::at(65536 + 8192, 512));
        assert_eq!(w.claim_for_copier(ChunkRange::new(1, 2)).len(), 1);
    }

    #[test]
    fn overlapping_guest_writes_and_those_that_meet_a_copier_are_refused() {
        let w = writers();
        assert!(w.claim_for_guest(ByteRange::at(0, 8192)));
        assert!(!w.claim_for_guest(ByteRange::at(4096, 8192)), "two blocks in common");
        assert!(w.claim_for_guest(ByteRange::at(8192, 4096)), "what was refused left nothing behind");
        assert_eq!(w.claim_for_copier(ChunkRange::new(2, 3)).len(), 1);
        assert!(!w.claim_for_guest(ByteRange::at(3 * 65536 - 512, 1024)), "one end lies in a copier's chunk");
        w.release_by_copier(ChunkRange::new(2, 3));
        assert!(w.claim_for_guest(ByteRange::at(3 * 65536 - 512, 1024)));
    }

    #[test]
    fn the_short_last_chunk_is_a_chunk_like_any_other() {
        let w = writers();
        assert!(w.claim_for_guest(ByteRange::at(10 * 65536, 512)));
        assert!(w.claim_for_copier(ChunkRange::new(10, 11)).is_empty());
        assert!(w.guest_in(ChunkRange::new(10, 11)) && !w.copier_in(ChunkRange::new(10, 11)));
    }
}
