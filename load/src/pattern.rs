//! Which block of a disk is next.
#![forbid(unsafe_code)]

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// The exponent of [`Pattern::Zipf`]: of a million blocks the hottest hundredth gets two thirds of the writes.
const ZIPF_EXPONENT: f64 = 0.99;
/// A prime, so that multiplying by it puts the hot blocks all over the disk and no two in the same place.
const SCATTER: u128 = 0x9e37_79b1;

/// Which blocks a writer writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Any block, each as likely as the others.
    Uniform,
    /// A few hot blocks, scattered over the disk, and a long tail (Zipf's law): what databases do.
    Zipf,
    /// One after the other, and from the start again at the end: what logs do.
    Append,
}

impl Pattern {
    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Append => "append",
        }
    }
}

/// Chooses blocks for one writer.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// The blocks to choose from; not empty.
    area: Range<u64>,
    /// Zipf's law over their number.
    zipf: Option<Zipf<f64>>,
    /// The next block in a row, if they come in a row.
    next: Option<u64>,
    /// Chance.
    chance: SmallRng,
}

impl Blocks {
    /// Blocks from `area`; in a row they begin with `first`.
    pub(crate) fn new(pattern: Pattern, area: Range<u64>, first: u64, seed: u64) -> Self {
        // No disk has so many blocks that a float cannot count them.
        #[allow(clippy::cast_precision_loss)]
        let zipf = match pattern {
            Pattern::Zipf => Zipf::new((area.end - area.start) as f64, ZIPF_EXPONENT).ok(),
            Pattern::Uniform | Pattern::Append => None,
        };
        let next = (pattern == Pattern::Append).then_some(first);
        Self { area, zipf, next, chance: SmallRng::seed_from_u64(seed) }
    }

    /// The next block.
    pub(crate) fn next(&mut self) -> u64 {
        if let Some(next) = self.next {
            self.next = Some(if next + 1 < self.area.end { next + 1 } else { self.area.start });
            return next;
        }
        let Some(zipf) = &self.zipf else { return self.chance.random_range(self.area.clone()) };
        // Ranks begin at 1; a float above the largest rank cannot come out, and would be taken down by the modulus.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = zipf.sample(&mut self.chance) as u64 - 1;
        let count = self.area.end - self.area.start;
        let place = u128::from(rank) * SCATTER % u128::from(count);
        self.area.start + u64::try_from(place).unwrap_or(0)
    }

    /// Whether an event that happens in `percent` of 100 cases happens now.
    pub(crate) fn happens(&mut self, percent: u8) -> bool {
        percent > 0 && self.chance.random_range(0..100) < percent
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// How often each block came.
    fn counts(pattern: Pattern, area: Range<u64>, draws: usize) -> HashMap<u64, usize> {
        let mut blocks = Blocks::new(pattern, area.clone(), area.start, 7);
        let mut counts = HashMap::new();
        for _ in 0..draws {
            let block = blocks.next();
            assert!(area.contains(&block), "{block}");
            *counts.entry(block).or_default() += 1;
        }
        counts
    }

    /// A writer that leaves its area would spoil the proof for another one.
    #[test]
    fn blocks_lie_in_the_area_and_are_spread_as_the_pattern_says() {
        let uniform = counts(Pattern::Uniform, 100..1100, 100_000);
        assert!(uniform.len() == 1000 && uniform.values().all(|count| *count < 200));
        let zipf = counts(Pattern::Zipf, 100..10_100, 100_000);
        let mut sorted: Vec<usize> = zipf.values().copied().collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let hot: usize = sorted.iter().take(100).sum();
        assert!((45_000..65_000).contains(&hot), "the hottest hundredth got {hot} of 100000");
        assert!(zipf.len() > 5000, "a long tail: {}", zipf.len());
        let append = counts(Pattern::Append, 5..15, 20);
        assert!(append.len() == 10 && append.values().all(|count| *count == 2));
    }

    /// An area of one block is small, not absurd.
    #[test]
    fn one_block_is_enough() {
        for pattern in [Pattern::Uniform, Pattern::Zipf, Pattern::Append] {
            assert_eq!(counts(pattern, 3..4, 10).len(), 1);
        }
    }
}
