//! Bit ranges cut into words: the index arithmetic that the maps share.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::sync::{ALL, WORD_BITS};
use crate::units::bytes_usize;

/// The index of the word that holds `bit`.
#[inline(always)]
pub(super) fn word_of(bit: u64) -> usize {
    // Lossless: a map's words fit in the address space, see `Words::new`, and callers cut ranges to the map.
    bytes_usize(bit / WORD_BITS)
}

/// The index of the first bit of `word`.
#[inline(always)]
pub(super) fn first_bit_of(word: usize) -> u64 {
    crate::units::bytes_u64(word) * WORD_BITS
}

/// The bits `from..end` of one word, `end` at most the word's size.
#[inline(always)]
pub(super) fn mask(from: u64, end: u64) -> u64 {
    debug_assert!(from < end && end <= WORD_BITS);
    (ALL >> (WORD_BITS - (end - from))) << from
}

/// The bits from `first` to `last`, which lie in the same word; anything if `last` comes before `first`.
#[inline(always)]
pub(super) fn unchecked_mask(first: u64, last: u64) -> u64 {
    // The differences are below 64, so the masking of the shift changes nothing; it spares the check.
    let low = |count: u64| u32::try_from(count & 63).unwrap_or(0);
    ALL.wrapping_shr(low((WORD_BITS - 1).wrapping_sub(last.wrapping_sub(first))))
        .wrapping_shl(low(first % WORD_BITS))
}

/// The bits of word `index` that lie in `bits`, which must touch that word.
#[inline(always)]
pub(super) fn mask_in(bits: &Range<u64>, index: usize) -> u64 {
    let first = first_bit_of(index);
    mask(bits.start.max(first) - first, bits.end.min(first + WORD_BITS) - first)
}

/// The words that `bits` touches, each with the bits touched.
pub(super) fn pieces(bits: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if bits.is_empty() { 0..0 } else { word_of(bits.start)..word_of(bits.end - 1) + 1 };
    words.map(move |index| (index, mask_in(&bits, index)))
}

/// The positions of the ones in `word`, lowest first.
pub(super) fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lowest = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest)
    })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_once_and_nothing_else() {
        for (start, end) in [(0, 1), (63, 64), (63, 65), (0, 64), (5, 200), (64, 128), (127, 129)] {
            let bits: Vec<u64> = pieces(start..end)
                .flat_map(|(word, mask)| ones(mask).map(move |bit| first_bit_of(word) + u64::from(bit)))
                .collect();
            assert_eq!(bits, (start..end).collect::<Vec<_>>(), "{start}..{end}");
        }
        assert_eq!(pieces(7..7).count(), 0);
        assert_eq!(pieces(0..0).count(), 0);
    }

    #[test]
    fn the_quick_mask_is_the_mask() {
        for (first, last) in [(0, 0), (0, 63), (63, 63), (5, 9), (64, 64), (64, 127), (130, 191)] {
            assert_eq!(
                unchecked_mask(first, last),
                mask_in(&(first..last + 1), word_of(first)),
                "{first}..={last}"
            );
        }
    }
}
