//! The bytes of a sector that a writer wrote.
//!
//! Every 512 bytes begin with a check word, the [`WriteId`] (writer and sequence number), the offset on the disk and the
//! run's seed; the other 480 bytes follow from these. So the whole sector is one function of who wrote it, where and when:
//! a sector in the wrong place, of another run, half old and half new, or with one bit flipped is recognised without
//! anything to compare it with. Sectors are the unit because a disk promises no more than that a sector is whole.
//!
//! It costs about 100 ns for 4 KiB (the compiler makes vector code of it), so writers at 30,000 requests per second spend 0.3 %
//! of a core on it.
#![forbid(unsafe_code)]

use std::fmt;

/// Bytes that are stamped at a time.
pub const SECTOR_BYTES: usize = 512;
/// Words of a sector before the filling.
const HEAD_WORDS: usize = 4;
/// An odd constant, so that the words of a sector all differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits of the sequence number in a [`WriteId`].
const SEQUENCE_BITS: u32 = 48;
/// Set in the [`WriteId`] of a write that wrote zeroes.
const ZEROES: u64 = 1 << 63;

/// One write: the writer's number, its sequence number, which begins at 1, and whether it wrote zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(u64);

impl WriteId {
    /// Write number `sequence` (from 1) of `writer` (up to 32767).
    #[must_use]
    pub const fn new(writer: u16, sequence: u64) -> Self {
        Self((((writer as u64) << SEQUENCE_BITS) & !ZEROES) | (sequence & ((1 << SEQUENCE_BITS) - 1)))
    }

    /// The same for a write of zeroes, which leaves no stamp.
    #[must_use]
    pub const fn of_zeroes(writer: u16, sequence: u64) -> Self {
        Self(Self::new(writer, sequence).0 | ZEROES)
    }

    /// Whether it wrote zeroes.
    #[must_use]
    pub const fn is_zeroes(self) -> bool {
        self.0 & ZEROES != 0
    }

    /// Who wrote.
    #[must_use]
    pub const fn writer(self) -> u64 {
        (self.0 & !ZEROES) >> SEQUENCE_BITS
    }

    /// The how-manyeth write of that writer.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_zeroes() { "zeroing" } else { "write" };
        write!(f, "{what} {} of writer {}", self.sequence(), self.writer())
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Mixes the bits of a word (SplitMix64).
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The words of a sector.
fn words(seed: u64, id: WriteId, offset: u64) -> [u64; SECTOR_BYTES / 8] {
    let base = mix(seed.wrapping_add(mix(id.0.wrapping_add(mix(offset.wrapping_add(STEP))))));
    let mut words = [0; SECTOR_BYTES / 8];
    for (word, number) in words.iter_mut().zip(0u64..) {
        *word = base.wrapping_add(number.wrapping_mul(STEP));
    }
    words[..HEAD_WORDS].copy_from_slice(&[mix(base), id.0, offset, seed]);
    words
}

/// Fills `bytes`, which begin at `offset` on the disk, as `id` of the run `seed`. Both are whole sectors.
pub fn write(bytes: &mut [u8], seed: u64, id: WriteId, offset: u64) {
    let sectors = bytes.as_chunks_mut::<SECTOR_BYTES>().0;
    for (sector, at) in sectors.iter_mut().zip((offset..).step_by(SECTOR_BYTES)) {
        let words = words(seed, id, at);
        for (to, word) in sector.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
    }
}

/// Whose write the sector at `offset` is; `None` if any of its bytes is not as a write of the run `seed` leaves it.
#[must_use]
pub fn read(sector: &[u8; SECTOR_BYTES], seed: u64, offset: u64) -> Option<WriteId> {
    let found = sector.as_chunks::<8>().0;
    let id = WriteId(u64::from_le_bytes(found[1]));
    let wanted = words(seed, id, offset);
    found.iter().zip(wanted).all(|(found, wanted)| u64::from_le_bytes(*found) == wanted).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check that a damaged sector passes proves nothing.
    #[test]
    fn a_sector_tells_its_writer_and_one_wrong_bit_anywhere_spoils_it() {
        let id = WriteId::new(3, 77);
        let mut sectors = [0; 2 * SECTOR_BYTES];
        write(&mut sectors, 9, id, 4096);
        let second: [u8; SECTOR_BYTES] = sectors[SECTOR_BYTES..].try_into().unwrap();
        assert_eq!(read(&second, 9, 4096 + 512), Some(id));
        assert_eq!((id.writer(), id.sequence()), (3, 77));
        for at in 0..SECTOR_BYTES {
            let mut broken = second;
            broken[at] ^= 0x10;
            assert_eq!(read(&broken, 9, 4096 + 512), None, "{at}");
        }
    }

    /// Data that landed in the wrong place, or was left by an earlier run, must not pass for ours.
    #[test]
    fn a_sector_of_another_place_or_run_is_nobodys() {
        let mut sector = [0; SECTOR_BYTES];
        assert_eq!(read(&sector, 0, 0), None, "zeroes are no write");
        write(&mut sector, 9, WriteId::new(1, 1), 512);
        assert_eq!(read(&sector, 9, 0), None);
        assert_eq!(read(&sector, 8, 512), None);
    }

    /// Two writes that look alike could be taken for each other.
    #[test]
    fn no_two_writes_look_alike() {
        let mut seen = std::collections::HashSet::new();
        for writer in 0..4 {
            for sequence in 1..100 {
                let mut sector = [0; SECTOR_BYTES];
                write(&mut sector, 1, WriteId::new(writer, sequence), 0);
                assert!(seen.insert(sector[64..128].to_vec()));
            }
        }
    }
}
