//! The tree of words: leaves hold the bits, summaries say which words below may be non-zero.
//!
//! Bit `n` of level `k` stands for word `n` of the level below. There are as many levels as it takes for the top to
//! have at most 64 words, so that a clean map of any size is known to be clean after 64 loads.
//!
//! **What holds:** for each word and the bit above it that stands for it,
//!
//! > when no call is running: if the word is not zero, its bit above is set.
//!
//! The converse may fail: a bit above may be set for a zero word. That costs a look and is mended by whoever clears there.
//!
//! **How it is kept** (one rule for each pair of levels, so any number of levels follows):
//!
//! - *Raise.* Whoever turns a word from zero to non-zero sets the bit above afterwards, with a read-modify-write, never with
//!   a test before it.
//! - *Lower.* Whoever clears the bit above looks at the word afterwards, and if it is not zero sets the bit again.
//!
//! **Why it holds.** Let T be the last operation that turned word w from zero to non-zero, and suppose that the bit above,
//! b, is clear in the end. T's thread then sets b (call it U). As b is clear in the end, there is a last clear C of b, and it
//! comes after U in the order of b's word. U is a release, C an acquire, and everything between them in that order is a
//! read-modify-write; so U synchronizes with C, and T happens before C's look at w. The look must see what T left or something
//! later, and w never was zero again. So C's thread set b again, after C. But C was the last to change it: a contradiction.
//! Nothing here asks who calls what: any number of setters and clearers may run against each other. And no sequentially
//! consistent fence is needed, `AcqRel` on both levels is enough. It does need U to be a read-modify-write: would the setter
//! skip U because a *load* shows b as set, the load might be older than C, and nothing would tie T to the look.
//!
//! `drain` empties a summary word first and the words below after that. The look of *Lower* then is the taking itself: a
//! T before it is taken, a T after it raises b after it.
//!
//! For the tie between a bit and the data it speaks of see [`super::sync`].
#![forbid(unsafe_code)]

use std::ops::Range;

use super::pieces::{first_bit_of, mask, mask_in, ones, pieces, unchecked_mask, word_of};
use super::sync::{ALL, Ordering, TOP_WORDS, WORD_BITS, fence_after_clear, fence_before_test};
use super::words::Words;
use crate::error::Result;
use crate::units::bytes_u64;

/// A set of bits with summaries.
#[derive(Debug)]
pub(super) struct Tree {
    /// How many bits.
    len: u64,
    /// The bits.
    leaf: Words,
    /// The levels above, the lowest first; at least one, the last is the top.
    summaries: Box<[Words]>,
    /// What is broken on purpose, to see that the models notice.
    #[cfg(loom)]
    pub(super) sabotage: super::Sabotage,
}

impl Tree {
    /// A clean tree of `len` bits.
    pub(super) fn new(len: u64) -> Result<Self> {
        let mut width = word_of(len.next_multiple_of(WORD_BITS));
        let leaf = Words::new(width)?;
        let mut summaries = Vec::new();
        loop {
            width = word_of(bytes_u64(width).next_multiple_of(WORD_BITS)).max(1);
            summaries.push(Words::new(width)?);
            if width <= TOP_WORDS {
                break;
            }
        }
        Ok(Self {
            len,
            leaf,
            summaries: summaries.into_boxed_slice(),
            #[cfg(loom)]
            sabotage: super::Sabotage::None,
        })
    }

    /// How many bits.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The part of `bits` that exists.
    #[inline(always)]
    fn cut(&self, bits: &Range<u64>) -> Range<u64> {
        bits.start.min(self.len)..bits.end.min(self.len)
    }

    /// Whether `bit` is set.
    pub(super) fn test(&self, bit: u64) -> bool {
        self.fence_before_test();
        bit < self.len
            && self.leaf[word_of(bit)].load(Ordering::Acquire) & mask_in(&(bit..bit + 1), word_of(bit)) != 0
    }

    /// Sets `bits`; returns how many were clear.
    #[inline]
    pub(super) fn set(&self, bits: Range<u64>) -> u64 {
        self.fence_before_test();
        // What a busy guest meets: all bits lie in one word, and all are set. Nothing is cut or checked for it: a mask of
        // bits that do not exist is never found set, a word that does not exist is not found, and for an
        // empty range 0 is the answer whatever is found. All else is left to the other path.
        let last = bits.end.wrapping_sub(1);
        if (bits.start ^ last) < WORD_BITS
            && let Some(leaf) = self.leaf.get(word_of(bits.start))
        {
            // Relaxed: the fence above orders this load after the guest's write; nothing is read through the bit.
            let word = leaf.load(Ordering::Relaxed);
            // One bit, the most frequent case, is tested without making a mask.
            let all_set = if bits.start == last {
                (word >> (last % WORD_BITS)) & 1 == 1
            } else {
                let mask = unchecked_mask(bits.start, last);
                word & mask == mask
            };
            if all_set {
                return 0;
            }
        }
        self.set_words(self.cut(&bits))
    }

    /// The part of `set` that writes: one read-modify-write for each word that lacks a bit, and one for each 64
    /// words that were zero.
    #[inline(never)]
    fn set_words(&self, bits: Range<u64>) -> u64 {
        let mut changed = 0;
        let mut rise = Rise { tree: self, group: word_of(bits.start) / CHILDREN, filled: 0 };
        for (word, mask) in pieces(bits) {
            changed += self.set_word(word, mask, &mut rise);
        }
        rise.finish();
        changed
    }

    /// Sets the bits `mask` of leaf `word`; returns how many were clear.
    #[inline]
    fn set_word(&self, word: usize, mask: u64, rise: &mut Rise<'_>) -> u64 {
        let leaf = &self.leaf[word];
        if leaf.load(Ordering::Relaxed) & mask == mask {
            return 0;
        }
        let old = leaf.fetch_or(mask, Ordering::AcqRel);
        if old == 0 {
            rise.note(word);
        }
        u64::from((mask & !old).count_ones())
    }

    /// Clears `bits`; returns how many were set.
    ///
    /// A full fence follows, whatever was found, so a read of the data that is submitted afterwards is a read after the
    /// clearing.
    pub(super) fn clear(&self, bits: Range<u64>) -> u64 {
        let bits = self.cut(&bits);
        let mut changed = 0;
        if !bits.is_empty() {
            self.for_each_group(word_of(bits.start)..word_of(bits.end - 1) + 1, |group, marked| {
                let mut emptied = 0;
                for slot in ones(marked) {
                    let word = child(group, slot);
                    let mask = mask_in(&bits, word);
                    let leaf = &self.leaf[word];
                    // A bit that is set just now may be left: it is as if the setter came after this call. So a
                    // load may decide that there is nothing to do, and clean pages stay untouched.
                    let mut old = leaf.load(Ordering::Relaxed);
                    if old & mask != 0 {
                        old = leaf.fetch_and(!mask, Ordering::AcqRel);
                    }
                    changed += u64::from((old & mask).count_ones());
                    if old & !mask == 0 {
                        emptied |= 1 << slot;
                    }
                }
                self.lower(0, group, emptied);
            });
        }
        self.fence_after_clear();
        changed
    }

    /// Sets the bits `filled` of summary `word` at `level`, and above it what has to follow.
    fn raise(&self, mut level: usize, mut word: usize, mut filled: u64) {
        while let Some(summary) = self.summaries.get(level)
            && filled != 0
        {
            #[cfg(loom)]
            if self.sabotage == super::Sabotage::TestSummary
                && summary[word].load(Ordering::Acquire) & filled == filled
            {
                return;
            }
            // Release: whoever clears these bits later must see the words that were filled before.
            if summary[word].fetch_or(filled, Ordering::AcqRel) != 0 {
                return;
            }
            (level, filled, word) = (level + 1, 1 << (word % CHILDREN), word / CHILDREN);
        }
    }

    /// Clears the bits `emptied` of summary `word` at `level`, whose words were seen as zero, and above it what has to
    /// follow; sets them again where the word turns out not to be zero.
    fn lower(&self, mut level: usize, mut word: usize, mut emptied: u64) {
        while level < self.summaries.len() && emptied != 0 {
            // Acquire: the look below must see every word whose filler has set its bit before this clears it.
            let old = self.summaries[level][word].fetch_and(!emptied, Ordering::AcqRel);
            let below = if level == 0 { &self.leaf } else { &self.summaries[level - 1] };
            let filled = ones(emptied)
                .filter(|slot| below[child(word, *slot)].load(Ordering::Acquire) != 0)
                .fold(0, |filled, slot| filled | 1 << slot);
            #[cfg(loom)]
            let filled = if self.sabotage == super::Sabotage::NoSecondLook { 0 } else { filled };
            if filled != 0 {
                self.raise(level, word, filled);
                return;
            }
            // Only who took the last bit out of this word goes on to the bit above.
            if old == 0 || old & !emptied != 0 {
                return;
            }
            (level, emptied, word) = (level + 1, 1 << (word % CHILDREN), word / CHILDREN);
        }
    }

    /// The first leaf word from `from` on that may be non-zero.
    ///
    /// Reads summaries only: a leaf that they call clean is never touched, so its page is never made.
    fn next_word(&self, from: usize) -> Option<usize> {
        let top = self.summaries.len() - 1;
        let (mut level, mut at) = (0, from);
        // `at` only grows; on the way up it becomes the index of the first word that was not looked at.
        loop {
            let word = at / CHILDREN;
            let bits = self.summaries[level].get(word)?.load(Ordering::Acquire) & (ALL << (at % CHILDREN));
            if bits == 0 && level == top {
                at = (word + 1) * CHILDREN;
            } else if bits == 0 {
                (level, at) = (level + 1, word + 1);
            } else {
                let found = child(word, bits.trailing_zeros());
                if level == 0 {
                    return Some(found);
                }
                (level, at) = (level - 1, found * CHILDREN);
            }
        }
    }

    /// Calls `f(group, marked)` for the leaf words in `words` that may be non-zero, those of one lowest summary word at a
    /// time.
    fn for_each_group(&self, words: Range<usize>, mut f: impl FnMut(usize, u64)) {
        let mut at = words.start;
        while let Some(word) = self.next_word(at).filter(|word| *word < words.end) {
            let group = word / CHILDREN;
            let first = group * CHILDREN;
            let wanted = mask(bytes_u64(word - first), bytes_u64(words.end - first).min(WORD_BITS));
            f(group, self.summaries[0][group].load(Ordering::Acquire) & wanted);
            at = first + CHILDREN;
        }
    }

    /// Calls `f(word, bits)` for each non-zero leaf word in `words`.
    pub(super) fn for_each_word(&self, words: Range<usize>, mut f: impl FnMut(usize, u64)) {
        self.for_each_group(words, |group, marked| {
            for slot in ones(marked) {
                let word = child(group, slot);
                let bits = self.leaf[word].load(Ordering::Acquire);
                if bits != 0 {
                    f(word, bits);
                }
            }
        });
    }

    /// Every leaf word.
    pub(super) fn words(&self) -> Range<usize> {
        0..self.leaf.len()
    }

    /// Sets the bits that `each` gives out as `(word, bits)`, in any order but best in rising; returns how many were
    /// clear. Words and bits must exist.
    pub(super) fn set_from(&self, each: impl FnOnce(&mut dyn FnMut(usize, u64))) -> u64 {
        self.fence_before_test();
        let mut changed = 0;
        let mut rise = Rise { tree: self, group: 0, filled: 0 };
        each(&mut |word, bits| changed += self.set_word(word, bits, &mut rise));
        rise.finish();
        changed
    }

    /// The first run of ones at or after `from`, cut to `max` bits.
    ///
    /// Each word is loaded once, so each bit of the run was set when it was looked at.
    pub(super) fn next_run(&self, from: u64, max: u64) -> Option<Range<u64>> {
        if from >= self.len || max == 0 {
            return None;
        }
        let mut word = word_of(from);
        let mut wanted = mask(from % WORD_BITS, WORD_BITS);
        let bits = loop {
            let next = self.next_word(word)?;
            if next != word {
                (word, wanted) = (next, ALL);
            }
            let bits = self.leaf[word].load(Ordering::Acquire) & wanted;
            if bits != 0 {
                break bits;
            }
            (word, wanted) = (word + 1, ALL);
        };
        let skipped = bits.trailing_zeros();
        let start = first_bit_of(word) + u64::from(skipped);
        let mut end = start + u64::from((bits >> skipped).trailing_ones());
        while end.is_multiple_of(WORD_BITS) && end - start < max && end < self.len {
            word += 1;
            let summary = self.summaries[0][word / CHILDREN].load(Ordering::Acquire);
            if summary & (1 << (word % CHILDREN)) == 0 {
                break;
            }
            let more = self.leaf[word].load(Ordering::Acquire).trailing_ones();
            if more == 0 {
                break;
            }
            end += u64::from(more);
        }
        Some(start..end.min(start.saturating_add(max)))
    }

    /// How many bits are set.
    pub(super) fn count(&self) -> u64 {
        let mut count = 0;
        self.for_each_word(self.words(), |_, bits| count += u64::from(bits.count_ones()));
        count
    }

    /// Takes out the leaf words of the next group from `from` on: empties its summary word, then gives the caller the slots
    /// to empty with `take_word`. Returns the group.
    pub(super) fn take_group(&self, from: usize) -> Option<(usize, u64)> {
        let group = self.next_word(from)? / CHILDREN;
        let marked = self.summaries[0][group].swap(0, Ordering::AcqRel);
        self.lower(1, group / CHILDREN, 1 << (group % CHILDREN));
        Some((group, marked))
    }

    /// Empties a leaf word of a taken group; returns its index and what it held.
    pub(super) fn take_word(&self, group: usize, slot: u32) -> (usize, u64) {
        let word = child(group, slot);
        let bits = self.leaf[word].swap(0, Ordering::AcqRel);
        self.fence_after_clear();
        (word, bits)
    }

    /// Undoes `take_group` for the slots `marked`.
    pub(super) fn give_back_group(&self, group: usize, marked: u64) {
        self.raise(0, group, marked);
    }

    /// See [`super::sync`].
    #[inline(always)]
    fn fence_before_test(&self) {
        #[cfg(loom)]
        if self.sabotage == super::Sabotage::NoFenceInSet {
            return;
        }
        fence_before_test();
    }

    /// See [`super::sync`].
    #[inline(always)]
    fn fence_after_clear(&self) {
        #[cfg(loom)]
        if self.sabotage == super::Sabotage::NoFenceInClear {
            return;
        }
        fence_after_clear();
    }
}

/// Words that one summary word stands for.
#[allow(clippy::cast_possible_truncation, reason = "it is 64, or 2 under loom")]
pub(super) const CHILDREN: usize = WORD_BITS as usize;

/// The index, one level below, of the word that bit `slot` of summary `word` stands for.
#[inline(always)]
fn child(word: usize, slot: u32) -> usize {
    word * CHILDREN + slot as usize
}

/// Collects the leaf words of one group that a call turned from zero to non-zero, to raise them at once.
struct Rise<'a> {
    /// Where.
    tree: &'a Tree,
    /// The group they belong to.
    group: usize,
    /// The bits of its summary word to set.
    filled: u64,
}

impl Rise<'_> {
    /// Leaf `word` was zero and no longer is.
    #[inline]
    fn note(&mut self, word: usize) {
        if word / CHILDREN != self.group {
            self.finish();
            self.group = word / CHILDREN;
        }
        self.filled |= 1 << (word % CHILDREN);
    }

    /// Raises what was noted.
    #[inline]
    fn finish(&mut self) {
        self.tree.raise(0, self.group, self.filled);
        self.filled = 0;
    }
}
