//! The window: which bytes of a worker's copy memory are in use.
//!
//! Pure bookkeeping over units of 4 KiB, one bit each; it owns no memory and makes no system call, so the simulator uses
//! the same code. A worker has one window and uses it alone.
//!
//! The first room from the start is taken, so that a job with little in flight uses the same few bytes again and again,
//! which the processor's cache still holds; a search looks at 64 units a step, and there are a few thousand.
//!
//! Several jobs share a window, and one whose requests do not come back keeps its memory. So the end of the window is cut into
//! *seats*, one for each job that there may be, at fixed places: nobody else can take a seat, nor break it into pieces too
//! small for use. What is in front of them is *common*. How much of that a job takes is the copier's rule
//! (`mirror/copier/memory.rs`).
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

/// Units that `len` bytes take.
fn units_of(len: u32) -> u32 {
    len.div_ceil(UNIT_BYTES).max(1)
}

/// The allocator of a region.
#[derive(Debug)]
pub struct Window {
    /// One bit a unit; set = in use. Bits past the end are set for ever.
    used: Box<[u64]>,
    /// Units in all.
    units: u32,
    /// Units that belong to nobody; the seats come after them.
    common: u32,
    /// Units of each seat.
    seat: u32,
    /// Common units in use.
    taken: u32,
    /// Units of seats in use.
    seated: u32,
}

impl Window {
    /// A window over `bytes` of memory, rounded down to 4 KiB; at most 4 GiB is used. All of it is common.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_seats(bytes, 0, 0)
    }

    /// The same with so many seats of so many bytes at its end. They are smaller where they would take more than a quarter
    /// of the window.
    #[must_use]
    pub fn with_seats(bytes: usize, seats: u32, seat_bytes: u32) -> Self {
        let units = u32::try_from(bytes_u64(bytes) / u64::from(UNIT_BYTES)).unwrap_or(u32::MAX);
        // Offsets are u32, so a window ends below 4 GiB.
        let units = units.min(u32::MAX / UNIT_BYTES);
        let mut used = vec![0; units.div_ceil(64) as usize].into_boxed_slice();
        if let (Some(last), tail @ 1..) = (used.last_mut(), units % 64) {
            *last = !0 << tail;
        }
        let seat = (seat_bytes / UNIT_BYTES).min((units / 4).checked_div(seats).unwrap_or(0));
        Self { used, units, common: units - seat * seats, seat, taken: 0, seated: 0 }
    }

    /// All bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u32 {
        self.units * UNIT_BYTES
    }

    /// Bytes that belong to nobody.
    #[must_use]
    pub fn common_bytes(&self) -> u32 {
        self.common * UNIT_BYTES
    }

    /// Those of them that are free, in one piece or in many.
    #[must_use]
    pub fn free_common_bytes(&self) -> u32 {
        (self.common - self.taken) * UNIT_BYTES
    }

    /// Bytes of each seat.
    #[must_use]
    pub fn seat_bytes(&self) -> u32 {
        self.seat * UNIT_BYTES
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u32 {
        (self.taken + self.seated) * UNIT_BYTES
    }

    /// Where `len` contiguous bytes of the common memory are free now, for [`Self::occupy`].
    #[must_use]
    pub fn room(&self, len: u32) -> Option<BufRange> {
        let first = self.find(units_of(len))?;
        Some(BufRange { start: first * UNIT_BYTES, len })
    }

    /// Takes `len` contiguous bytes of the common memory, or nothing if there is no such room now.
    #[must_use]
    pub fn take(&mut self, len: u32) -> Option<BufRange> {
        let range = self.room(len)?;
        self.occupy(range);
        Some(range)
    }

    /// Takes a range that [`Self::room`] or [`Self::seat_room`] has found and nobody has taken since.
    pub fn occupy(&mut self, range: BufRange) {
        let need = units_of(range.len);
        self.mark(range.start / UNIT_BYTES, need, true);
        *self.in_use_of(range) += need;
    }

    /// Whether nothing of a seat is in use.
    #[must_use]
    pub fn is_seat_free(&self, seat: u32) -> bool {
        let first = self.common + seat.saturating_mul(self.seat);
        let word = self.used.get((first / 64) as usize);
        // Whoever takes a part of a seat takes it from its first unit on.
        word.is_some_and(|word| word >> (first % 64) & 1 == 0)
    }

    /// `len` bytes of a seat, for [`Self::occupy`], or nothing if it is in use or smaller than that.
    #[must_use]
    pub fn seat_room(&self, seat: u32, len: u32) -> Option<BufRange> {
        let fits = units_of(len) <= self.seat && self.is_seat_free(seat);
        fits.then(|| BufRange { start: (self.common + seat * self.seat) * UNIT_BYTES, len })
    }

    /// Whether a range belongs to nobody's seat.
    #[must_use]
    pub fn is_common(&self, range: BufRange) -> bool {
        range.start < self.common_bytes()
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, range: BufRange) {
        let need = units_of(range.len);
        self.mark(range.start / UNIT_BYTES, need, false);
        *self.in_use_of(range) -= need;
    }

    /// The count that a range belongs to.
    fn in_use_of(&mut self, range: BufRange) -> &mut u32 {
        if self.is_common(range) { &mut self.taken } else { &mut self.seated }
    }

    /// First unit of `need` free common ones in a row.
    fn find(&self, need: u32) -> Option<u32> {
        if need > self.common - self.taken {
            return None;
        }
        let (mut start, mut at) = (0, 0);
        while at < self.common {
            let word = self.used[(at / 64) as usize] >> (at % 64);
            let left_in_word = 64 - at % 64;
            if word & 1 == 1 {
                at += (!word).trailing_zeros().min(left_in_word);
                start = at;
                continue;
            }
            at = (at + word.trailing_zeros().min(left_in_word)).min(self.common);
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

    /// Takes `len` bytes of a seat.
    fn take_seat(w: &mut Window, seat: u32, len: u32) -> Option<BufRange> {
        let range = w.seat_room(seat, len)?;
        w.occupy(range);
        Some(range)
    }

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

    /// A job that finds its seat taken has nothing to work in beside jobs whose targets are dead.
    #[test]
    fn a_full_window_leaves_every_seat_to_its_owner() {
        let mut w = Window::with_seats(18 << 20, 64, 32 << 10);
        assert_eq!((w.seat_bytes(), w.common_bytes()), (32 << 10, 16 << 20));
        while w.take(4096).is_some() {}
        assert_eq!((w.free_common_bytes(), w.used_bytes()), (0, 16 << 20));
        let seats: Vec<_> = (0..64).map(|seat| take_seat(&mut w, seat, 32 << 10).unwrap()).collect();
        assert_eq!(w.used_bytes(), w.capacity_bytes());
        for (seat, range) in (0..).zip(seats) {
            assert!(!w.is_seat_free(seat) && w.seat_room(seat, 1).is_none() && !w.is_common(range));
            w.give_back(range);
            assert!(w.is_seat_free(seat) && w.seat_room(seat, (32 << 10) + 1).is_none());
        }
        assert_eq!(w.seat_room(64, 1), None, "there is no such seat");
    }

    #[test]
    fn seats_leave_most_of_a_small_window_in_common() {
        let w = Window::with_seats(1 << 20, 64, 32 << 10);
        assert_eq!((w.seat_bytes(), w.common_bytes()), (4096, 768 << 10));
        let w = Window::with_seats(100 << 10, 64, 32 << 10);
        assert_eq!((w.seat_bytes(), w.common_bytes(), w.is_seat_free(0)), (0, 100 << 10, false));
    }

    proptest! {
        /// Two owners of one byte would put one run's data into another's place on the target.
        #[test]
        fn no_byte_is_ever_handed_out_twice(ops in prop::collection::vec((1u32..600_000, any::<u8>()), 1..300)) {
            let mut w = Window::with_seats(4 << 20, 8, 128 << 10);
            let mut held: Vec<BufRange> = Vec::new();
            for (len, pick) in ops {
                let seated = take_seat(&mut w, u32::from(pick) % 16, len);
                match seated.or_else(|| w.take(len)) {
                    Some(new) => {
                        prop_assert!(new.start % UNIT_BYTES == 0 && new.len == len);
                        prop_assert!(u64::from(new.start) + u64::from(len) <= 4 << 20);
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
