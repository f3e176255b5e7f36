//! Medians and their spread.
//!
//! Medians, because one disturbed round on a shared machine must not move the result; minimum and maximum beside
//! them, because a median alone hides how much the machine wandered.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The middle and the ends of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle sample, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
}

impl Spread {
    /// The spread of `samples`; `None` when there are none.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_samples_have_no_median() {
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
    }

    #[test]
    fn an_even_number_of_samples_takes_the_mean_of_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn one_wild_sample_does_not_move_the_median() {
        assert_eq!(Spread::of([1.0, 1.0, 1.0, 1.0, 900.0]).unwrap().median, 1.0);
    }
}
