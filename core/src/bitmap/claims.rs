//! In-flight claims: who holds a chunk's claim, and only he, may write that chunk to the target (*One writer per chunk*).
//!
//! Claims have no summaries, for nobody searches them. There is no waiting either: a claim that cannot be had is refused, and
//! whoever wanted it leaves the chunk dirty and comes again.
//!
//! **Why compare-and-swap.** A `fetch_or` of the whole run would also be one operation per word, and could not steal: what it
//! set beyond a taken chunk is known from the old value, belongs to nobody else, and can be handed back. But until then it
//! refuses those chunks to everybody else although nobody is going to write them, and that refusal means nothing: a chunk
//! could be refused to all who want it, with no holder whose release would tell them to come again. With compare-and-swap
//! a claim is either held by somebody who will release it, or free. It costs a load more, and repeats only when
//! another thread changed the same word in between, that is when somebody made progress.
//!
//! **Orders.** `release` is a release and `try_claim` an acquire on the same word, with nothing but read-modify-writes in
//! between. So everything that the last holder did (its write's completion, the dirty bits it set again after a failure)
//! happens before everything that the next one does. Hence the order in *Claim, clear, read*: on failure set the dirty bits
//! first and release then, so that who holds a claim and finds the chunk clean knows that the target has it.
#![forbid(unsafe_code)]

use super::dirty::{bits_of, chunks_for};
use super::pieces::{first_bit_of, mask_in, pieces, word_of};
use super::sync::Ordering;
use super::words::Words;
use crate::error::Result;
use crate::units::{Chunk, ChunkRange, Granularity};

/// The right to write chunks to the target, one bit for each chunk.
///
/// All methods take `&self` and may run on any number of threads at once; none takes a lock or waits.
#[derive(Debug)]
pub struct Claims {
    /// The bits.
    words: Words,
    /// How many chunks.
    len: u64,
    /// What is broken on purpose, to see that the models notice.
    #[cfg(loom)]
    sabotage: super::Sabotage,
}

impl Claims {
    /// No claims on a disk of `disk_bytes`; costs memory only where chunks get claimed.
    ///
    /// # Errors
    /// As [`super::DirtyBitmap::new`].
    pub fn new(disk_bytes: u64, granularity: Granularity) -> Result<Self> {
        let len = chunks_for(disk_bytes, granularity)?;
        Ok(Self {
            words: Words::new(word_of(len.next_multiple_of(super::sync::WORD_BITS)))?,
            len,
            #[cfg(loom)]
            sabotage: super::Sabotage::None,
        })
    }

    /// Claims the longest prefix of `chunks` that is free, and returns it; empty if the first chunk is taken.
    ///
    /// Chunks past the end of the disk cannot be claimed.
    #[must_use = "what was claimed must be released"]
    pub fn try_claim(&self, chunks: ChunkRange) -> ChunkRange {
        let start = chunks.start();
        let end = chunks.end().min(self.len);
        let mut claimed = start;
        for (index, wanted) in pieces(start..end.max(start)) {
            let got = self.claim_in_word(index, wanted);
            claimed += u64::from(got.count_ones());
            if got != wanted {
                break;
            }
        }
        ChunkRange::new(start, claimed)
    }

    /// Claims the longest free prefix of the bits `wanted` of word `index`; returns it.
    fn claim_in_word(&self, index: usize, wanted: u64) -> u64 {
        let word = &self.words[index];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            // The bits below the lowest one that is wanted and taken; all if there is none.
            let taken = seen & wanted;
            let free = wanted & (taken & taken.wrapping_neg()).wrapping_sub(1);
            if free == 0 {
                return 0;
            }
            #[cfg(loom)]
            if self.sabotage == super::Sabotage::ClaimWithoutCompare {
                word.fetch_or(free, Ordering::AcqRel);
                return free;
            }
            match word.compare_exchange_weak(seen, seen | free, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return free,
                Err(now) => seen = now,
            }
        }
    }

    /// Lets claimed chunks go. Only who claimed them may do so, and once.
    pub fn release(&self, chunks: ChunkRange) {
        debug_assert!(
            chunks.end() <= self.len || chunks.is_empty(),
            "released what cannot have been claimed"
        );
        for (index, mask) in pieces(chunks.start()..chunks.end().min(self.len)) {
            let old = self.words[index].fetch_and(!mask, Ordering::AcqRel);
            debug_assert_eq!(old & mask, mask, "released what was not claimed, in word {index}");
        }
    }

    /// Whether somebody holds `chunk`'s claim just now.
    #[must_use]
    pub fn is_claimed(&self, chunk: Chunk) -> bool {
        let bits = bits_of(ChunkRange::new(chunk.0, chunk.0.saturating_add(1)));
        chunk.0 < self.len && {
            let index = word_of(chunk.0);
            self.words[index].load(Ordering::Acquire) & mask_in(&bits, index) != 0
        }
    }

    /// The first of `chunks` that somebody holds just now.
    #[must_use]
    pub fn first_claimed(&self, chunks: ChunkRange) -> Option<Chunk> {
        pieces(chunks.start()..chunks.end().min(self.len).max(chunks.start())).find_map(|(index, mask)| {
            let held = self.words[index].load(Ordering::Acquire) & mask;
            (held != 0).then(|| Chunk(first_bit_of(index) + u64::from(held.trailing_zeros())))
        })
    }

    /// Breaks the protocol on purpose, to see that the models notice.
    #[cfg(loom)]
    #[must_use]
    pub fn sabotaged(mut self, sabotage: super::Sabotage) -> Self {
        self.sabotage = sabotage;
        self
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn claims(chunks: u64) -> Claims {
        Claims::new(chunks * Granularity::DEFAULT.bytes(), Granularity::DEFAULT).unwrap()
    }

    #[test]
    fn a_claim_is_the_longest_free_prefix() {
        let claims = claims(1000);
        assert_eq!(claims.try_claim(ChunkRange::new(100, 300)), ChunkRange::new(100, 300));
        assert_eq!(claims.try_claim(ChunkRange::new(10, 300)), ChunkRange::new(10, 100));
        assert!(claims.try_claim(ChunkRange::new(299, 400)).is_empty());
        claims.release(ChunkRange::new(100, 130));
        assert_eq!(claims.try_claim(ChunkRange::new(120, 400)), ChunkRange::new(120, 130));
        assert!(
            claims.is_claimed(Chunk(10)) && !claims.is_claimed(Chunk(9)) && !claims.is_claimed(Chunk(110))
        );
    }

    #[test]
    fn nothing_past_the_end_can_be_claimed() {
        let claims = claims(65);
        assert_eq!(claims.try_claim(ChunkRange::new(60, 100)), ChunkRange::new(60, 65));
        assert!(claims.try_claim(ChunkRange::new(65, 100)).is_empty());
        assert!(claims.try_claim(ChunkRange::new(1000, 2000)).is_empty());
        assert!(!claims.is_claimed(Chunk(65)) && !claims.is_claimed(Chunk(u64::MAX)));
    }

    #[test]
    fn the_first_claimed_chunk_of_a_range_is_found() {
        let claims = claims(1000);
        assert_eq!(claims.first_claimed(ChunkRange::new(0, 2000)), None);
        let _ = claims.try_claim(ChunkRange::new(130, 140));
        assert_eq!(claims.first_claimed(ChunkRange::new(0, 1000)), Some(Chunk(130)));
        assert_eq!(claims.first_claimed(ChunkRange::new(135, 136)), Some(Chunk(135)));
        assert_eq!(claims.first_claimed(ChunkRange::new(140, 1000)), None);
        assert_eq!(claims.first_claimed(ChunkRange::new(5000, 6000)), None);
    }

    #[test]
    fn a_refused_claim_leaves_everything_as_it_was() {
        let claims = claims(200);
        assert_eq!(claims.try_claim(ChunkRange::new(70, 71)).len(), 1);
        assert!(claims.try_claim(ChunkRange::new(70, 200)).is_empty());
        assert!((0..200).all(|chunk| claims.is_claimed(Chunk(chunk)) == (chunk == 70)));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "released what was not claimed")]
    fn releasing_what_is_not_claimed_is_caught_in_debug_builds() {
        claims(10).release(ChunkRange::new(3, 4));
    }
}
