//! How much copiers may have in flight, as one word that workers read without a lock.

use crate::units::KIB;

/// The unit that bytes are counted in.
const UNIT_BYTES: u64 = 4 * KIB;
/// The bits that a number of bytes has in the word; what is left is for the rest.
const BITS: u32 = 28;
/// A number of bytes without a bound.
const BOUNDLESS: u64 = (1 << BITS) - 1;

/// What the copiers of a job may do together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Bytes in flight over all workers; 0 = hold still.
    pub in_flight_bytes: u64,
    /// The largest request.
    pub request_bytes: u64,
    /// How long to rest after each, in quarters of the time that it took.
    pub rest_quarters: u8,
}

impl Pace {
    /// No bound but the buffers.
    pub const FULL: Self = Self { in_flight_bytes: u64::MAX, request_bytes: u64::MAX, rest_quarters: 0 };
    /// One small request at a time, which a guest hardly notices.
    pub const SLOWEST: Self = Self { in_flight_bytes: 64 * KIB, request_bytes: 64 * KIB, rest_quarters: 0 };
    /// Hold still: begin nothing, end what is on its way.
    pub const HOLD: Self = Self { in_flight_bytes: 0, request_bytes: 64 * KIB, rest_quarters: 0 };

    /// The faster of the two in all that they bound, without a rest.
    #[must_use]
    pub(super) fn max_without_rest(self, other: Self) -> Self {
        Self {
            in_flight_bytes: self.in_flight_bytes.max(other.in_flight_bytes),
            request_bytes: self.request_bytes.max(other.request_bytes),
            rest_quarters: 0,
        }
    }

    /// All in one word, bytes in units of 4 KiB.
    #[must_use]
    pub(crate) fn pack(self) -> u64 {
        let units = |bytes: u64| {
            if bytes == u64::MAX { BOUNDLESS } else { (bytes / UNIT_BYTES).min(BOUNDLESS - 1) }
        };
        u64::from(self.rest_quarters) << (2 * BITS)
            | units(self.in_flight_bytes) << BITS
            | units(self.request_bytes)
    }

    /// From the word.
    #[must_use]
    pub(crate) fn unpack(word: u64) -> Self {
        let bytes = |units: u64| if units == BOUNDLESS { u64::MAX } else { units * UNIT_BYTES };
        Self {
            in_flight_bytes: bytes(word >> BITS & BOUNDLESS),
            request_bytes: bytes(word & BOUNDLESS),
            // What is above the two numbers of bytes are eight bits.
            rest_quarters: (word >> (2 * BITS)) as u8,
        }
    }

    /// What each of `workers` may have in flight; `None` = it is too little to be divided. Then one worker at a time has it
    /// all and the others hold still, for many small requests at once disturb a guest as much as a large one.
    #[must_use]
    pub(super) fn of_each(self, workers: u64, run_bytes: u64) -> Option<u64> {
        if self.in_flight_bytes == u64::MAX {
            return Some(u64::MAX);
        }
        Some(self.in_flight_bytes / workers.max(1)).filter(|&share| share >= run_bytes || workers == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_fits_in_a_word() {
        for pace in [
            Pace::FULL,
            Pace::HOLD,
            Pace { in_flight_bytes: 256 * KIB, request_bytes: 64 * KIB, rest_quarters: 0 },
            Pace { rest_quarters: u8::MAX, ..Pace::SLOWEST },
            Pace { in_flight_bytes: u64::MAX, request_bytes: 1024 * KIB, rest_quarters: 28 },
        ] {
            assert_eq!(Pace::unpack(pace.pack()), pace);
        }
    }

    #[test]
    fn little_is_not_divided() {
        let pace = |kib| Pace { in_flight_bytes: kib * KIB, ..Pace::SLOWEST };
        assert_eq!(pace(256).of_each(2, 1024 * KIB), None);
        assert_eq!(pace(256).of_each(1, 1024 * KIB), Some(256 * KIB));
        assert_eq!(pace(4096).of_each(2, 1024 * KIB), Some(2048 * KIB));
        assert_eq!(Pace::FULL.of_each(2, 1024 * KIB), Some(u64::MAX));
    }
}
