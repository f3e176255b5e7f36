//! What a disk may hold: every value that a block can have after the writes that were sent to it.
//!
//! Each write has a value of its own in every 512 byte block. A block may hold the value of the last write that succeeded,
//! and of any write that was not known to be over when that one was sent: writes that are under way at the same time have no
//! order, and one that failed may have done anything.
#![forbid(unsafe_code)]

use crate::units::{ByteRange, bytes_usize};

/// The unit of the model.
pub(super) const BLOCK: u64 = 512;

/// A value that a block may have.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// What each word of the block is then.
    word: u64,
    /// Which write it is of.
    write: u64,
    /// When that was sent.
    sent: u64,
    /// When it ended.
    ended: Option<u64>,
    /// Since when the block cannot have it any more.
    gone: Option<u64>,
}

/// The model of a disk.
pub(super) struct Model {
    /// Values by block.
    blocks: Vec<Vec<Value>>,
    /// Counts events.
    clock: u64,
}

/// The blocks of a range.
fn blocks(range: ByteRange) -> std::ops::Range<usize> {
    bytes_usize(range.start() / BLOCK)..bytes_usize(range.end() / BLOCK)
}

/// The word that a block consists of, if all its words are the same.
fn word_of(block: &[u8]) -> Option<u64> {
    let (words, _) = block.as_chunks::<8>();
    words.iter().all(|w| w == &words[0]).then(|| u64::from_le_bytes(words[0]))
}

/// Data of one value.
pub(super) fn fill(data: &mut [u8], word: u64) {
    let (words, _) = data.as_chunks_mut::<8>();
    words.fill(word.to_le_bytes());
}

impl Model {
    /// A disk of zeroes.
    pub(super) fn new(bytes: u64) -> Self {
        let zero = Value { word: 0, write: 0, sent: 0, ended: Some(0), gone: None };
        Self { blocks: vec![vec![zero]; bytes_usize(bytes / BLOCK)], clock: 0 }
    }

    /// The time of an event.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write is sent.
    pub(super) fn sent(&mut self, range: ByteRange, write: u64, word: u64) {
        let sent = self.tick();
        for block in &mut self.blocks[blocks(range)] {
            block.push(Value { word, write, sent, ended: None, gone: None });
        }
    }

    /// A write has ended; with `whole` it is known to have happened.
    pub(super) fn ended(&mut self, range: ByteRange, write: u64, whole: bool) {
        let now = self.tick();
        for block in &mut self.blocks[blocks(range)] {
            let Some(own) = block.iter_mut().find(|v| v.write == write) else { continue };
            own.ended = Some(now);
            let sent = own.sent;
            if whole {
                for v in block.iter_mut().filter(|v| v.gone.is_none() && v.ended.is_some_and(|at| at < sent))
                {
                    v.gone = Some(now);
                }
            }
            if block.len() > 40 {
                block.retain(|v| v.gone.is_none_or(|at| at + 2000 > now));
            }
        }
    }

    /// Whether a disk's content, looked at from `since` until now, is possible; else the first block that is not.
    pub(super) fn check(&self, range: ByteRange, data: &[u8], since: u64) -> Result<(), String> {
        for (block, data) in blocks(range).zip(data.chunks(bytes_usize(BLOCK))) {
            let word = word_of(data);
            let possible = |v: &&Value| Some(v.word) == word && v.gone.is_none_or(|at| at >= since);
            if !self.blocks[block].iter().any(|v| possible(&v)) {
                let now: Vec<_> = self.blocks[block].iter().filter(|v| v.gone.is_none()).collect();
                return Err(format!("block {block} holds {word:x?}, possible is {now:x?}"));
            }
        }
        Ok(())
    }
}
