//! The paces that the pacer chooses from, as rungs of a ladder.
//!
//! Up to 256 KiB in flight there is one request: on a disk that serves one after the other, a guest's request waits for
//! what is in front of it, so the bytes in flight are what it pays, and one large request gets more copied for them than
//! several small ones. Above that there are two and more, so that reading and writing overlap.
//!
//! Below one request of 64 KiB the copiers rest after each (`share/rest`). It ends at one eighth of the time, whatever the
//! guest sees then: a job that never ends is no kindness, as the guest pays for it all the time.
#![forbid(unsafe_code)]

use crate::mirror::pace::Pace;
use crate::units::{KIB, MIB};

/// A pace of `bytes` on their way.
fn pace_of(bytes: u64) -> Pace {
    let quarter = (bytes / 4).next_multiple_of(64 * KIB).clamp(192 * KIB, MIB);
    let request_bytes = if bytes <= 256 * KIB { bytes } else { quarter };
    Pace { in_flight_bytes: bytes, request_bytes, rest_quarters: 0 }
}

/// Bytes in flight of the rungs without a rest, in units of 64 KiB: half an octave apart.
const SIXTY_FOURS: [u64; 16] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
/// Rests after each request, in quarters of its time: the copiers work an eighth of the time, a quarter, half, four fifths.
const RESTS: [u8; 4] = [28, 12, 4, 1];

/// A rung; higher ones are faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rung(usize);

impl Rung {
    /// The slowest.
    pub(super) const BOTTOM: Self = Self(0);
    /// Full speed.
    pub(super) const TOP: Self = Self(RESTS.len() + SIXTY_FOURS.len());
    /// Where a job begins: one request of 192 KiB, which most guests hardly notice.
    pub(super) const FIRST: Self = Self(RESTS.len() + 2);

    /// Up to this hardly any guest feels anything: one request of 128 KiB.
    pub(super) const HARMLESS: Self = Self(RESTS.len() + 1);
    /// Up to this most guests feel nothing of it: one request of 256 KiB. While a machine's stalls hide what the copiers do, it is
    /// not gone beyond.
    pub(super) const IN_NOISE: Self = Self(RESTS.len() + 3);

    /// So many rungs higher.
    pub(super) fn up(self, rungs: usize) -> Self {
        Self((self.0 + rungs).min(Self::TOP.0))
    }

    /// So many rungs lower.
    pub(super) fn down(self, rungs: usize) -> Self {
        Self(self.0.saturating_sub(rungs))
    }

    /// Its pace.
    pub(super) fn pace(self) -> Pace {
        if self >= Self::TOP {
            return Pace::FULL;
        }
        let at = self.0.saturating_sub(RESTS.len());
        let rest_quarters = RESTS.get(self.0).copied().unwrap_or(0);
        Pace { rest_quarters, ..pace_of(SIXTY_FOURS[at] * 64 * KIB) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_rises_from_long_rests_to_full_speed() {
        let rungs: Vec<Rung> = (0..=Rung::TOP.0).map(Rung).collect();
        for pair in rungs.windows(2) {
            let (a, b) = (pair[0].pace(), pair[1].pace());
            assert!(a.in_flight_bytes <= b.in_flight_bytes);
            assert!(a.rest_quarters > b.rest_quarters || a.in_flight_bytes < b.in_flight_bytes);
        }
        for pace in rungs.iter().filter(|&&r| r < Rung::TOP).map(|r| r.pace()) {
            assert_eq!(pace.request_bytes % (64 * KIB), 0);
            assert!(pace.request_bytes <= pace.in_flight_bytes);
        }
        assert_eq!(Rung::BOTTOM.pace(), Pace { rest_quarters: 28, ..Pace::SLOWEST });
        assert_eq!(Rung::FIRST.pace(), pace_of(192 * KIB));
        assert_eq!(Rung::IN_NOISE.pace(), pace_of(256 * KIB));
        assert_eq!(
            (Rung::TOP.pace(), Rung::TOP.up(3), Rung::BOTTOM.down(3)),
            (Pace::FULL, Rung::TOP, Rung::BOTTOM)
        );
    }

    #[test]
    fn every_pace_fits_one_word() {
        let all = (0..=Rung::TOP.0).map(|n| Rung(n).pace()).chain([Pace::HOLD, Pace::FULL]);
        all.for_each(|pace| assert_eq!(Pace::unpack(pace.pack()), pace));
    }
}
