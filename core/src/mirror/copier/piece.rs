//! Runs and pieces.

use crate::buffer::BufRange;
use crate::ring::Op;
use crate::units::{ByteRange, ChunkRange};

/// Chunks that were claimed together.
#[derive(Debug)]
pub(super) struct Run {
    /// The claimed chunks.
    pub(super) chunks: ChunkRange,
    /// Pieces that are not done, plus one while the run is being cut.
    pub(super) left: u32,
    /// Whether the sweep brought it, so that nothing of it was ever written to the target by this job.
    pub(super) first: bool,
    /// With copy-on-write: whether every byte of the run was written so far.
    pub(super) whole: bool,
    /// Whether a part of it was given up, and is dirty again.
    pub(super) failed: bool,
}

/// The run that is being cut into pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenRun {
    /// Its key.
    pub(super) run: usize,
    /// Where the next piece begins.
    pub(super) at: u64,
    /// Where the run ends.
    pub(super) end: u64,
    /// Up to here everything counts as data: a cluster that is written for the first time is written whole.
    pub(super) forced_until: u64,
}

/// What a piece does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Read; so many bytes of the piece are there.
    Read {
        /// Bytes read.
        done: u64,
    },
    /// Write this part of the piece.
    Write {
        /// What is left of the part.
        left: ByteRange,
    },
    /// Zero this part of the piece.
    Zero {
        /// The part.
        part: ByteRange,
    },
}

/// A part of a run with a life of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The run it belongs to.
    pub(super) run: usize,
    /// Its bytes.
    pub(super) range: ByteRange,
    /// Its memory; empty for a piece that is only zeroed.
    pub(super) buf: BufRange,
    /// What it does next.
    pub(super) phase: Phase,
    /// How often its current request was sent again for a passing error.
    pub(super) tries: u8,
}

impl Piece {
    /// The request that the phase asks for; `punch` says whether zeroing may give space back.
    pub(super) fn request(&self, punch: bool) -> (ByteRange, Op) {
        match self.phase {
            Phase::Read { done } => {
                let range = ByteRange::new(self.range.start() + done, self.range.end());
                (range, Op::Read(self.memory_of(range)))
            }
            Phase::Write { left } => (left, Op::Write(self.memory_of(left))),
            Phase::Zero { part } => (part, Op::Zero { punch }),
        }
    }

    /// The memory of a part of the piece.
    pub(super) fn memory_of(&self, part: ByteRange) -> BufRange {
        // A piece with memory is at most one request long, which fits in 32 bits.
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        self.buf.slice(narrow(part.start() - self.range.start()), narrow(part.len()))
    }
}
