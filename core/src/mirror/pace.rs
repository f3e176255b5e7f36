//! How much copiers may have in flight, as one word that workers read without a lock.

use crate::units::KIB;

/// The unit that both halves are counted in.
const UNIT_BYTES: u64 = 4 * KIB;

/// What the copiers of a job may do together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Bytes in flight over all workers; 0 = hold still.
    pub in_flight_bytes: u64,
    /// The largest request.
    pub request_bytes: u64,
}

impl Pace {
    /// No bound but the buffers.
    pub const FULL: Self = Self { in_flight_bytes: u64::MAX, request_bytes: u64::MAX };
    /// Hold still: begin nothing, end what is on its way.
    pub const HOLD: Self = Self { in_flight_bytes: 0, request_bytes: 64 * KIB };

    /// Both in one word, in units of 4 KiB; a half that is all ones has no bound.
    #[must_use]
    pub(crate) fn pack(self) -> u64 {
        let half = |bytes: u64| {
            if bytes == u64::MAX {
                u64::from(u32::MAX)
            } else {
                (bytes / UNIT_BYTES).min(u64::from(u32::MAX) - 1)
            }
        };
        half(self.in_flight_bytes) << 32 | half(self.request_bytes)
    }

    /// From the word.
    #[must_use]
    pub(crate) fn unpack(word: u64) -> Self {
        let half = |units: u64| if units == u64::from(u32::MAX) { u64::MAX } else { units * UNIT_BYTES };
        Self { in_flight_bytes: half(word >> 32), request_bytes: half(word & u64::from(u32::MAX)) }
    }

    /// What one of `workers` may have in flight. Little is not divided: the home has it all, the others hold still, for
    /// many small requests at once disturb a guest as much as a large one.
    #[must_use]
    pub(super) fn of_worker(self, worker: usize, workers: u64, run_bytes: u64) -> u64 {
        if self.in_flight_bytes == u64::MAX {
            return u64::MAX;
        }
        match self.in_flight_bytes / workers.max(1) {
            share if share >= run_bytes => share,
            _ if worker == 0 => self.in_flight_bytes,
            _ => 0,
        }
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
            Pace { in_flight_bytes: 256 * KIB, request_bytes: 64 * KIB },
            Pace { in_flight_bytes: u64::MAX, request_bytes: 1024 * KIB },
        ] {
            assert_eq!(Pace::unpack(pace.pack()), pace);
        }
    }

    #[test]
    fn little_is_the_homes_alone() {
        let pace = |kib| Pace { in_flight_bytes: kib * KIB, request_bytes: 64 * KIB };
        assert_eq!([0, 1].map(|w| pace(256).of_worker(w, 2, 1024 * KIB)), [256 * KIB, 0]);
        assert_eq!([0, 1].map(|w| pace(4096).of_worker(w, 2, 1024 * KIB)), [2048 * KIB; 2]);
        assert_eq!([0, 1].map(|w| Pace::FULL.of_worker(w, 2, 1024 * KIB)), [u64::MAX; 2]);
        assert_eq!([0, 1].map(|w| Pace::HOLD.of_worker(w, 2, 1024 * KIB)), [0; 2]);
    }
}
