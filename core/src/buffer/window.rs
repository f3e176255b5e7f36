//! The window: which bytes of a worker's copy memory are in use.
//!
//! Pure bookkeeping over units of 4 KiB, one bit each; it owns no memory and makes no system call, so the simulator uses
//! the same code. A worker has one window and uses it alone.
//!
//! The first room from the start is taken, so that a job with little in flight uses the same few bytes again and again,
//! which the processor's cache still holds; a search looks at 64 units a step, and there are a few thousand. A long
//! request that finds no room waits; the copier issues nothing behind it in the meantime, so room comes as long as
//! requests come back. A job whose requests do not come back keeps its memory, but no single job may take all
//! (`mirror::RESERVE_BYTES`).
#![forbid(unsafe_code)]

use crate::units::bytes_u64;

/// What the window is counted in; no device here wants its buffers aligned further.
const UNIT_BYTES: u32 = 4096;

/// A range of bytes of a worker's region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BufRange {
    /// First byte, counted from the region's start.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

impl BufRange {
    /// The part of `len` bytes at `offset` inside this range; cut where this range ends.
    #[must_use]
    pub fn slice(self, offset: u32, len: u32) -> Self {
        let offset = offset.min(self.len);
        Self { start: self.start + offset, len: len.min(self.len - offset) }
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.start + other.len && other.start < self.start + self.len
    }
}

/// The allocator of a region.
#[derive(Debug)]
pub struct Window {
    /// One bit a unit; set = in use. Bits past the end are set for ever.
    used: Box<[u64]>,
    /// Units in all.
    units: u32,
    /// Units in use.
    taken: u32,
}

impl Window {
    /// A window over `bytes` of memory, rounded down to 4 KiB; at most 4 GiB is used.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes_u64(bytes) / u64::from(UNIT_BYTES)).unwrap_or(u32::MAX);
        // Offsets are u32, so a window ends below 4 GiB.
        let units = units.min(u32::MAX / UNIT_BYTES);
        let mut used = vec![0; units.div_ceil(64) as usize].into_boxed_slice();
        if let (Some(last), tail @ 1..) = (used.last_mut(), units % 64) {
            *last = !0 << tail;
        }
        Self { used, units, taken: 0 }
    }

    /// All bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u32 {
        self.units * UNIT_BYTES
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u32 {
        self.taken * UNIT_BYTES
    }

    /// Takes `len` contiguous bytes, or nothing if there is no such room now.
    #[must_use]
    pub fn take(&mut self, len: u32) -> Option<BufRange> {
        let need = len.div_ceil(UNIT_BYTES).max(1);
        if need > self.units - self.taken {
            return None;
        }
        let first = self.find(need)?;
        self.mark(first, need, true);
        self.taken += need;
        Some(BufRange { start: first * UNIT_BYTES, len })
    }

    /// Gives back what `take` gave.
    pub fn give_back(&mut self, range: BufRange) {
        let need = range.len.div_ceil(UNIT_BYTES).max(1);
        self.mark(range.start / UNIT_BYTES, need, false);
        self.taken -= need;
    }

    /// First unit of `need` free ones in a row.
    fn find(&self, need: u32) -> Option<u32> {
        let (mut start, mut at) = (0, 0);
        while at < self.units {
            let word = self.used[(at / 64) as usize] >> (at % 64);
            let left_in_word = 64 - at % 64;
            if word & 1 == 1 {
                at += (!word).trailing_zeros().min(left_in_word);
                start = at;
                continue;
            }
            at = (at + word.trailing_zeros().min(left_in_word)).min(self.units);
            if at - start >= need {
                return Some(start);
            }
        }
        None
    }

    /// Sets or clears the bits of `count` units at `first`.
    fn mark(&mut self, first: u32, count: u32, used: bool) {
        let mut at = first;
        let end = first + count;
        while at < end {
            let n = (64 - at % 64).min(end - at);
            let mask = (!0u64 >> (64 - n)) << (at % 64);
            let word = &mut self.used[(at / 64) as usize];
            debug_assert_eq!(*word & mask, if used { 0 } else { mask }, "a byte of the window has one owner");
            *word = if used { *word | mask } else { *word & !mask };
            at += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sixteen_runs_of_a_mebibyte_fit_exactly() {
        let mut w = Window::new(16 << 20);
        let runs: Vec<_> = (0..16).map(|_| w.take(1 << 20).unwrap()).collect();
        assert_eq!(w.take(1), None);
        assert_eq!(w.used_bytes(), w.capacity_bytes());
        for r in runs {
            w.give_back(r);
        }
        assert_eq!(w.used_bytes(), 0);
    }

    #[test]
    fn small_runs_fill_the_window_to_the_last_unit() {
        let mut w = Window::new(1 << 20);
        for _ in 0..256 {
            assert!(w.take(512).is_some());
        }
        assert_eq!(w.take(512), None);
    }

    #[test]
    fn a_request_larger_than_the_window_is_refused() {
        let mut w = Window::new(100 * 4096);
        assert_eq!(w.take(101 * 4096), None);
        assert!(w.take(100 * 4096).is_some());
    }

    proptest! {
        /// Two owners of one byte would put one run's data into another's place on the target.
        #[test]
        fn no_byte_is_ever_handed_out_twice(ops in prop::collection::vec((1u32..600_000, any::<u8>()), 1..300)) {
            let mut w = Window::new(3 << 20);
            let mut held: Vec<BufRange> = Vec::new();
            for (len, pick) in ops {
                match w.take(len) {
                    Some(new) => {
                        prop_assert!(new.start % UNIT_BYTES == 0 && new.len == len);
                        prop_assert!(u64::from(new.start) + u64::from(len) <= 3 << 20);
                        prop_assert!(held.iter().all(|h| !h.overlaps(new)));
                        held.push(new);
                    }
                    None if held.is_empty() => prop_assert!(false, "an empty window has room for {}", len),
                    None => w.give_back(held.swap_remove(usize::from(pick) % held.len())),
                }
            }
            for h in held { w.give_back(h); }
            prop_assert_eq!(w.used_bytes(), 0);
            prop_assert!(w.take(3 << 20).is_some());
        }
    }
}
