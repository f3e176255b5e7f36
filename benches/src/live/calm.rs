//! Waits until a guest alone sees what it usually sees, before anything is measured beside it.
//!
//! The host of a virtual machine is at work behind it at times: for half a minute after memory was filled, and whenever a
//! neighbour is. A guest's p99 is milliseconds then, with a copy beside it or without, and a ratio of two such figures says
//! nothing about the copy. So the writers run alone until a few slices in a row have a usual p99. Every contender's run begins
//! in this way, so none is favoured; how often it was waited for in vain is told, because then the figures are not to be
//! trusted.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How long a slice is.
pub const SLICE: Duration = Duration::from_millis(500);
/// So many slices in a row must be usual.
const IN_A_ROW: usize = 3;
/// Before anything is called usual, so many slices were seen: memory that was just filled keeps a host busy for half a minute.
const FIRST: usize = 80;
/// Slices before the first run at most: two minutes.
const FIRST_MOST: usize = 240;
/// Slices before any other run at most: twenty seconds.
const MOST: usize = 40;
/// Usual is what so many of all slices had at most; fewer may be luck.
const LOWEST: usize = 3;
/// A slice is usual up to so many times that.
const USUAL: f64 = 1.75;

/// What guests alone have seen so far.
#[derive(Debug, Default)]
pub struct Calm {
    /// The p99 of every slice, sorted.
    p99s_us: Vec<f64>,
    /// Runs that were waited for.
    runs: usize,
    /// Runs before which it did not become calm.
    unrest: usize,
}

impl Calm {
    /// Runs `slice`, which lets the guest run alone for [`SLICE`] and returns its p99 in microseconds, until it is calm or for
    /// as long as there is patience.
    pub fn wait<E>(&mut self, mut slice: impl FnMut() -> Result<f64, E>) -> Result<(), E> {
        let is_first = self.p99s_us.is_empty();
        let (least, most) = if is_first { (FIRST, FIRST_MOST) } else { (IN_A_ROW, MOST) };
        let mut last = Vec::with_capacity(most);
        self.runs += 1;
        while last.len() < most {
            let p99_us = slice()?;
            last.push(p99_us);
            let at = self.p99s_us.partition_point(|&other| other < p99_us);
            self.p99s_us.insert(at, p99_us);
            if last.len() >= least && last.iter().rev().take(IN_A_ROW).all(|&p99_us| self.is_usual(p99_us)) {
                return Ok(());
            }
        }
        self.unrest += 1;
        Ok(())
    }

    /// Whether a guest alone has such a p99 in quiet times.
    fn is_usual(&self, p99_us: f64) -> bool {
        self.p99s_us.get(LOWEST - 1).is_some_and(|lowest| p99_us <= lowest * USUAL)
    }

    /// A note if it was waited for in vain.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        (self.unrest > 0).then(|| {
            format!(
                "Before {} of {} runs the guest alone did not settle: something else is at work on this machine or beneath \
                 it, so do not trust these latencies.",
                self.unrest, self.runs
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many slices are waited for, of these and then of 100 us without end.
    fn slices(calm: &mut Calm, p99s_us: &[f64]) -> usize {
        let mut seen = 0;
        let slice = || -> Result<f64, ()> {
            seen += 1;
            Ok(p99s_us.get(seen - 1).copied().unwrap_or(100.0))
        };
        calm.wait(slice).unwrap();
        seen
    }

    /// A benchmark that begins in an uproar must not take the uproar for what is usual.
    #[test]
    fn a_noisy_beginning_is_waited_out() {
        let mut calm = Calm::default();
        let uproar: Vec<f64> = (0..100).map(|n| 1000.0 + f64::from(n * 37 % 100) * 90.0).collect();
        assert_eq!(slices(&mut calm, &uproar), uproar.len() + IN_A_ROW);
        assert_eq!(slices(&mut calm, &[]), IN_A_ROW);
        assert_eq!(slices(&mut calm, &[120.0, 900.0, 130.0]), 2 + IN_A_ROW);
        assert_eq!(calm.note(), None);
    }

    /// A machine that is never calm must not hold the benchmark up for ever, and must be told of.
    #[test]
    fn patience_ends_and_is_told() {
        let mut calm = Calm::default();
        assert_eq!(slices(&mut calm, &[]), FIRST);
        assert_eq!(slices(&mut calm, &[5000.0; 500]), MOST);
        assert!(calm.note().unwrap().contains("Before 1 of 2 runs"));
    }
}
