//! Taking all bits out of a tree, top-down.
//!
//! A group is 64 leaf words and the summary word above them. The summary word is emptied first and its leaves after that,
//! one atomic swap for each, which is what a setter may run against (see [`super::tree`]). In between, the bits of the group
//! cannot be found through the summaries; should the caller's function panic there, [`Taken`] makes everything that
//! was not handed over findable again.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::pieces::{first_bit_of, ones};
use super::tree::{CHILDREN, Tree};

/// Takes all bits out of `tree` and gives them to `f` as runs, in rising order.
pub(super) fn drain(tree: &Tree, mut f: impl FnMut(Range<u64>)) {
    let mut taken = Taken { tree, run: 0..0, word: 0, bits: 0, group: 0, marked: 0 };
    let mut from = 0;
    while let Some((group, marked)) = tree.take_group(from) {
        (taken.group, taken.marked) = (group, marked);
        for slot in ones(marked) {
            taken.marked &= !(1 << slot);
            (taken.word, taken.bits) = tree.take_word(group, slot);
            while let Some(complete) = taken.next_complete_run() {
                f(complete);
            }
        }
        from = (group + 1) * CHILDREN;
    }
    let last = std::mem::take(&mut taken.run);
    if !last.is_empty() {
        f(last);
    }
}

/// What was taken out of the tree and not handed over yet.
struct Taken<'a> {
    /// Where it goes back to.
    tree: &'a Tree,
    /// A run that may go on.
    run: Range<u64>,
    /// The leaf word that `bits` came from.
    word: usize,
    /// Its bits that are not in `run` yet.
    bits: u64,
    /// The group whose summary word was emptied.
    group: usize,
    /// Its leaf words that were not taken yet.
    marked: u64,
}

impl Taken<'_> {
    /// Moves bits of the word into the run, until the run cannot go on; returns it then, and None when the word is used
    /// up.
    fn next_complete_run(&mut self) -> Option<Range<u64>> {
        while self.bits != 0 {
            let skipped = self.bits.trailing_zeros();
            let ones = (self.bits >> skipped).trailing_ones();
            let start = first_bit_of(self.word) + u64::from(skipped);
            let end = start + u64::from(ones);
            // Adding the lowest one carries through the run of ones; what is left are the ones above.
            self.bits &= self.bits.wrapping_add(1 << skipped);
            if start == self.run.end && !self.run.is_empty() {
                self.run.end = end;
            } else {
                let complete = std::mem::replace(&mut self.run, start..end);
                if !complete.is_empty() {
                    return Some(complete);
                }
            }
        }
        None
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // Nothing is left unless the caller's function panicked.
        if self.marked != 0 {
            self.tree.give_back_group(self.group, self.marked);
        }
        if self.bits != 0 {
            self.tree.set_from(|sink| sink(self.word, self.bits));
        }
        if !self.run.is_empty() {
            self.tree.set(self.run.clone());
        }
    }
}
