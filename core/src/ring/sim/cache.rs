//! The volatile cache of a simulated disk: which versions of a block a crash may leave behind.
//!
//! A disk with a write-back cache may write any version of a block to its medium at any time, so after a crash a block is
//! any version that it had since the last one that is known to be durable. Known to be durable is what a flush covered: a
//! write that had completed before the flush began. A flush that fails loses its claim for good: what it should have
//! covered is not covered by the next one either, as Linux does it (an error is reported once, and the pages count as
//! clean).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Versions of a block that are kept while no flush needs them.
const KEPT: usize = 8;

/// A block as it was.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// Whether it was a hole.
    pub(super) hole: bool,
    /// The count of completed writes when its write had completed; `None` while that is under way, or if it failed.
    settled: Option<u64>,
}

/// The versions of one block. The last one is the disk's content and not in here.
#[derive(Debug, Default)]
struct Block {
    /// Those before, oldest first; the oldest is durable.
    older: Vec<Version>,
    /// As [`Version::settled`], for the content.
    settled: Option<u64>,
}

/// What is not known to be durable.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// By number; in order, so that a run is the same each time.
    blocks: BTreeMap<usize, Block>,
    /// Flushes under way; what they cover must not be forgotten.
    flushes: usize,
}

impl Cache {
    /// A block is about to change; this is what it is now.
    pub(super) fn before_change(&mut self, number: usize, bytes: &[u8], hole: bool) {
        let block =
            self.blocks.entry(number).or_insert_with(|| Block { older: Vec::new(), settled: Some(0) });
        block.older.push(Version { bytes: bytes.to_vec(), hole, settled: block.settled.take() });
        if self.flushes == 0 && block.older.len() > KEPT {
            // The next flush asks for the newest that has settled; the others are only chances.
            let newest = block.older.iter().rposition(|version| version.settled.is_some());
            block.older.remove(if newest == Some(1) { 2 } else { 1 });
        }
    }

    /// A write to a block has completed, as number `writes`. Where another one, which is part of the same content, completed
    /// before, a flush that covers that one covers this content.
    pub(super) fn settle(&mut self, number: usize, writes: u64) {
        if let Some(block) = self.blocks.get_mut(&number) {
            block.settled = block.settled.or(Some(writes));
        }
    }

    /// A block is on the medium as it is.
    pub(super) fn make_durable(&mut self, number: usize) {
        self.blocks.remove(&number);
    }

    /// A flush begins.
    pub(super) fn begin_flush(&mut self) {
        self.flushes += 1;
    }

    /// A flush has ended that covers the first `covered` writes.
    pub(super) fn end_flush(&mut self, covered: u64, failed: bool) {
        self.flushes = self.flushes.saturating_sub(1);
        let is_covered = |settled: Option<u64>| settled.is_some_and(|writes| writes <= covered);
        if failed {
            for block in self.blocks.values_mut() {
                let rest = block.older.iter_mut().skip(1).map(|version| &mut version.settled);
                rest.chain([&mut block.settled]).filter(|s| is_covered(**s)).for_each(|s| *s = None);
            }
            return;
        }
        self.blocks.retain(|_, block| {
            if let Some(newest) = block.older.iter().rposition(|version| is_covered(version.settled)) {
                block.older.drain(..newest);
            }
            !is_covered(block.settled)
        });
    }

    /// The first block of which a crash may leave something else than `content` says.
    pub(super) fn first_loss<'a>(&self, content: impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        let differs = |(number, block): &(&usize, &Block)| {
            block.older.iter().any(|version| version.bytes != content(**number))
        };
        self.blocks.iter().find(differs).map(|(number, _)| *number)
    }

    /// Empties the cache: each block with all that may be left of it besides its content.
    pub(super) fn crash(&mut self) -> impl Iterator<Item = (usize, Vec<Version>)> {
        self.flushes = 0;
        std::mem::take(&mut self.blocks).into_iter().map(|(number, block)| (number, block.older))
    }
}
