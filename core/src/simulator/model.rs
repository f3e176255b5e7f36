//! What a disk may hold: every value that a block can have after the writes that were sent to it.
//!
//! Each write has a value of its own in every block of 512 bytes. A block may hold the value of the last write that was
//! acknowledged, and of any write that was not known to be over when that one was sent: writes that are under way at the same time
//! have no order, and one that failed may have done anything. After a power failure it may hold older values too, back to
//! the last one that was durable: written through, or acknowledged before a flush was sent that was acknowledged.
#![forbid(unsafe_code)]

use crate::units::{ByteRange, bytes_usize};

/// The unit of the model.
pub(crate) const BLOCK: u64 = 512;

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
    /// It is known to have happened.
    whole: bool,
    /// Since when the block cannot have it any more.
    gone: Option<u64>,
    /// It cannot come back by a power failure.
    lost: bool,
}

/// The model of a disk.
#[derive(Debug)]
pub(crate) struct Model {
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
    words
        .first()
        .filter(|first| words.iter().all(|word| word == *first))
        .map(|&word| u64::from_le_bytes(word))
}

/// Data of one value.
pub(crate) fn fill(data: &mut [u8], word: u64) {
    let (words, _) = data.as_chunks_mut::<8>();
    words.fill(word.to_le_bytes());
}

impl Model {
    /// A disk that holds this, durably; every block of it has one value.
    pub(crate) fn new(content: &[u8]) -> Self {
        let value =
            |word| Value { word, write: 0, sent: 0, ended: Some(0), whole: true, gone: None, lost: false };
        let blocks = content.chunks(bytes_usize(BLOCK));
        Self {
            blocks: blocks.map(|block| vec![value(word_of(block).unwrap_or(u64::MAX))]).collect(),
            clock: 0,
        }
    }

    /// The time of an event.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write is sent.
    pub(crate) fn sent(&mut self, range: ByteRange, write: u64, word: u64) {
        let sent = self.tick();
        for block in &mut self.blocks[blocks(range)] {
            block.push(Value { word, write, sent, ended: None, whole: false, gone: None, lost: false });
        }
    }

    /// A write has ended. With `whole` it is known to have happened; with `durable` it survives a power failure.
    pub(crate) fn ended(&mut self, range: ByteRange, write: u64, whole: bool, durable: bool) {
        let now = self.tick();
        for block in &mut self.blocks[blocks(range)] {
            let Some(own) = block.iter_mut().find(|value| value.write == write) else { continue };
            (own.ended, own.whole) = (Some(now), whole);
            let sent = own.sent;
            if whole {
                for value in block.iter_mut().filter(|value| value.ended.is_some_and(|at| at < sent)) {
                    value.gone = value.gone.or(Some(now));
                    value.lost |= durable;
                }
            }
            if block.len() > 20 {
                block.retain(|value| !value.lost || value.gone.is_none_or(|at| at + 2000 > now));
            }
        }
    }

    /// A flush was acknowledged that was sent at `sent`: what was acknowledged before is durable.
    pub(crate) fn flushed(&mut self, sent: u64) {
        for block in &mut self.blocks {
            let durable = |value: &&Value| value.whole && value.ended.is_some_and(|at| at < sent);
            let last = block.iter().filter(durable).map(|value| value.sent).max();
            for value in block.iter_mut().filter(|value| value.ended.is_some_and(|at| Some(at) < last)) {
                value.lost = true;
            }
        }
    }

    /// Whether what was read of a disk between `since` and now is possible; else the first block that is not.
    pub(crate) fn check(&self, range: ByteRange, data: &[u8], since: u64) -> Result<(), String> {
        self.check_by(range, data, |value| value.gone.is_none_or(|at| at >= since))
    }

    /// Whether this is possible after a power failure now.
    pub(crate) fn check_after_crash(&self, data: &[u8]) -> Result<(), String> {
        let whole = ByteRange::new(0, self.blocks.len() as u64 * BLOCK);
        self.check_by(whole, data, |value| !value.lost)
    }

    /// Looks for a possible value of each block.
    fn check_by(
        &self,
        range: ByteRange,
        data: &[u8],
        possible: impl Fn(&Value) -> bool,
    ) -> Result<(), String> {
        for (number, data) in blocks(range).zip(data.chunks(bytes_usize(BLOCK))) {
            let word = word_of(data);
            let block = &self.blocks[number];
            if !block.iter().any(|value| Some(value.word) == word && possible(value)) {
                let now: Vec<_> = block.iter().filter(|value| possible(value)).collect();
                return Err(format!("block {number} of 512 bytes holds {word:x?}; possible is {now:x?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(word: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        fill(&mut data, word);
        data
    }

    const ONE: ByteRange = ByteRange::new(0, 512);

    #[test]
    fn of_writes_that_overlap_in_time_either_may_be_there_and_older_ones_not() {
        let mut model = Model::new(&image(7));
        model.sent(ONE, 1, 1);
        model.sent(ONE, 2, 2);
        model.ended(ONE, 1, true, false);
        model.ended(ONE, 2, true, false);
        let now = model.tick();
        assert!(model.check(ONE, &image(1), now).is_ok() && model.check(ONE, &image(2), now).is_ok());
        assert!(model.check(ONE, &image(7), now).is_err());
        model.sent(ONE, 3, 3);
        model.ended(ONE, 3, false, false);
        let now = model.tick();
        assert!(
            (1..4).all(|word| model.check(ONE, &image(word), now).is_ok()),
            "a failed write may have done anything"
        );
    }

    #[test]
    fn a_power_failure_brings_back_what_was_not_made_durable_and_nothing_older() {
        let mut model = Model::new(&image(7));
        model.sent(ONE, 1, 1);
        model.ended(ONE, 1, true, false);
        assert!(model.check_after_crash(&image(7)).is_ok());
        let sent = model.tick();
        model.sent(ONE, 2, 2);
        model.ended(ONE, 2, true, false);
        model.flushed(sent);
        assert!(model.check_after_crash(&image(7)).is_err());
        assert!(model.check_after_crash(&image(1)).is_ok() && model.check_after_crash(&image(2)).is_ok());
        model.sent(ONE, 3, 3);
        model.ended(ONE, 3, true, true);
        assert!(model.check_after_crash(&image(2)).is_err());
    }
}
