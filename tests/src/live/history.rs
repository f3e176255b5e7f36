//! Which write may be found where.
//!
//! Every sector that is written says which write it belongs to: the write's number, the sector's offset, and bytes that
//! follow from the two. A clock that counts beginnings and ends of writes orders them. So a disk can be compared, sector by
//! sector, with a replay of the log:
//!
//! - *At the end*, no sector may hold a write after which another one began, and was acknowledged
//!   ([`History::check_last`]). Of writes that overlapped in time any may have won. A write that failed may be there or not.
//! - *As of a moment*, there must be one instant, outside of every write, such that each sector holds what it held then
//!   ([`History::check_moment`]). That is what a copy as of a switch-over must be.
//!
//! The disk's first content counts as one write, number 0.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::api::units::ByteRange;

/// What is written as a whole.
pub const SECTOR_BYTES: u64 = 512;
/// The same, for memory.
const SECTOR: usize = 512;
/// Bytes of a sector's beginning that say whose it is.
const HEAD: usize = 16;

/// What a write puts on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Stamped sectors.
    Data,
    /// Zeroes.
    Zeroes,
}

/// A write that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// Its number: the time at which it began, before it was sent.
    pub number: u64,
    /// When it had ended.
    pub ended: u64,
    /// It was inside the drive's gate from its beginning to its end, which a queue's guest cannot know.
    pub inside: bool,
    /// Where.
    pub range: ByteRange,
    /// What.
    pub kind: Kind,
    /// Whether it succeeded.
    pub ok: bool,
}

/// What was there before all writes.
const FIRST: Write = Write {
    number: 0,
    ended: 0,
    inside: true,
    range: ByteRange::new(0, u64::MAX),
    kind: Kind::Data,
    ok: true,
};

/// The log of a disk.
#[derive(Debug)]
pub struct History {
    /// Counts beginnings and ends.
    clock: AtomicU64,
    /// Writes that have ended.
    log: Mutex<Vec<Write>>,
}

impl Default for History {
    fn default() -> Self {
        Self { clock: AtomicU64::new(1), log: Mutex::default() }
    }
}

/// Fills `buffer` with the sectors of the write `number` from `offset` on.
pub(super) fn stamp(number: u64, offset: u64, buffer: &mut [u8]) {
    for (at, sector) in (offset..).step_by(SECTOR).zip(buffer.chunks_mut(SECTOR)) {
        let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at.rotate_left(17);
        let (head, rest) = sector.split_at_mut(HEAD);
        head[..8].copy_from_slice(&(number + 1).to_le_bytes());
        head[8..].copy_from_slice(&at.to_le_bytes());
        for bytes in rest.chunks_mut(8) {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }
}

/// What a sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// The whole stamp of this write.
    Write(u64),
    /// Zeroes.
    Zeroes,
    /// Neither.
    Garbage,
}

/// What the sector at `offset` holds.
fn read(sector: &[u8], offset: u64) -> Found {
    if sector.iter().all(|byte| *byte == 0) {
        return Found::Zeroes;
    }
    let mut number = [0; 8];
    number.copy_from_slice(&sector[..8]);
    let Some(number) = u64::from_le_bytes(number).checked_sub(1) else { return Found::Garbage };
    let mut wanted = [0; SECTOR];
    stamp(number, offset, &mut wanted);
    if sector == &wanted[..sector.len()] { Found::Write(number) } else { Found::Garbage }
}

impl History {
    /// The next instant.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Fills the disk at `path` with its first content.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn fill(path: &Path, len_bytes: u64) {
        let mut bytes = vec![0; usize::try_from(len_bytes).unwrap()];
        stamp(0, 0, &mut bytes);
        let mut file = File::options().write(true).open(path).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
    }

    /// Takes down writes that have ended.
    pub fn add(&self, writes: &[Write]) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(writes);
    }

    /// How many writes were taken down.
    #[must_use]
    pub fn len(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Where writes went that had not ended at this instant; what a host must remember by itself when no job follows.
    #[must_use]
    pub fn ranges_since(&self, instant: u64) -> Vec<ByteRange> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|write| write.ended >= instant).map(|write| write.range).collect()
    }

    /// Whether there were none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asserts that the disk holds what the guests wrote last.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn check_last(&self, path: &Path) {
        let replay = self.compare(path);
        assert!(replay.wrong.is_empty(), "{}: {}", path.display(), replay.wrong.join("; "));
        assert!(
            replay.until.is_none(),
            "{}: {}",
            path.display(),
            replay.until.map(|(_, why)| why).unwrap_or_default()
        );
    }

    /// Asserts that the disk holds what it held at one instant at which no write was under way, and returns the first and the
    /// last that it may have been. Nobody may have written zeroes.
    ///
    /// # Panics
    /// When there is no such instant.
    #[track_caller]
    pub fn check_moment(&self, path: &Path) -> (u64, u64) {
        let replay = self.compare(path);
        assert!(replay.wrong.is_empty(), "{}: {}", path.display(), replay.wrong.join("; "));
        let (from, newest) = replay.from;
        let (until, why) = replay.until.unwrap_or((u64::MAX, String::new()));
        assert!(from < until, "{}: {newest}, but {why}", path.display());
        (from, until)
    }

    /// Compares the disk with the log.
    fn compare(&self, path: &Path) -> Replay {
        let disk = fs::read(path).unwrap();
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_sector: Vec<Vec<&Write>> = vec![Vec::new(); disk.len().div_ceil(SECTOR)];
        for write in log.iter() {
            let sectors = write.range.start() / SECTOR_BYTES..write.range.end().div_ceil(SECTOR_BYTES);
            for sector in sectors {
                by_sector[usize::try_from(sector).unwrap()].push(write);
            }
        }
        let mut replay = Replay::default();
        for ((at, sector), writes) in (0u64..).step_by(SECTOR).zip(disk.chunks(SECTOR)).zip(&by_sector) {
            replay.look(at, read(sector, at), writes);
        }
        replay
    }
}

/// What a comparison has found.
#[derive(Debug, Default)]
struct Replay {
    /// Sectors that hold what nobody wrote there.
    wrong: Vec<String>,
    /// The disk is younger than this; with the reason.
    from: (u64, String),
    /// The disk is older than this; with the reason.
    until: Option<(u64, String)>,
}

impl Replay {
    /// Looks at one sector, to which `writes` went.
    fn look(&mut self, at: u64, found: Found, writes: &[&Write]) {
        let all = || writes.iter().copied().chain([&FIRST]);
        // The first that overwrote this write for good.
        let end = |write: &Write| {
            let later = all().filter(|w| w.ok && w.number > write.ended);
            later.min_by_key(|w| w.number).copied()
        };
        let held = match found {
            Found::Garbage => None,
            Found::Write(number) => all().find(|w| w.kind == Kind::Data && w.number == number),
            // Of several that may have made the zeroes the one that lasted longest excuses most.
            Found::Zeroes => all()
                .filter(|w| w.kind == Kind::Zeroes)
                .max_by_key(|w| end(w).map_or(u64::MAX, |later| later.number)),
        };
        let Some(held) = held else {
            if self.wrong.len() < 5 {
                self.wrong.push(format!("at {at} is {found:?}, which nobody wrote there"));
            }
            return;
        };
        // A write that waited outside the gate was under way at the moment that is looked for.
        let from = if held.inside { held.ended } else { held.number };
        if from > self.from.0 {
            self.from = (from, format!("at {at} is {held:?}"));
        }
        let Some(later) = end(held) else { return };
        let until = if later.inside { later.number } else { later.ended };
        if self.until.as_ref().is_none_or(|(earliest, _)| until < *earliest) {
            self.until = Some((until, format!("at {at} is {held:?}, and {later:?} came later")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkmirror_testkit::ScratchDir;

    /// A write of one sector at 512, with its times.
    fn write(number: u64, ended: u64) -> Write {
        Write { number, ended, inside: true, range: ByteRange::at(512, 512), kind: Kind::Data, ok: true }
    }

    /// A disk of two sectors; the second is written by `number`.
    fn disk(number: u64) -> (ScratchDir, std::path::PathBuf) {
        let dir = ScratchDir::new().unwrap();
        let path = dir.sparse_file("disk", 1024).unwrap();
        History::fill(&path, 1024);
        let mut bytes = fs::read(&path).unwrap();
        stamp(number, 512, &mut bytes[512..]);
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn an_overwritten_write_is_no_last_one_and_a_concurrent_one_is() {
        let history = History::default();
        history.add(&[write(1, 4), write(2, 3)]);
        for number in [1, 2] {
            let (_dir, path) = disk(number);
            history.check_last(&path);
        }
        history.add(&[write(5, 6)]);
        let (_dir, path) = disk(2);
        assert!(std::panic::catch_unwind(|| history.check_last(&path)).is_err());
        assert_eq!(history.check_moment(&path), (3, 5));
    }

    #[test]
    fn two_sectors_of_different_times_are_no_moment() {
        let history = History::default();
        let other = Write { range: ByteRange::at(0, 512), ..write(7, 8) };
        history.add(&[write(1, 2), write(3, 4), other]);
        let (_dir, path) = disk(1);
        let mut bytes = fs::read(&path).unwrap();
        stamp(7, 0, &mut bytes[..512]);
        fs::write(&path, bytes).unwrap();
        assert!(std::panic::catch_unwind(|| history.check_moment(&path)).is_err());
    }

    #[test]
    fn bytes_of_nobody_are_wrong() {
        let (_dir, path) = disk(1);
        assert!(std::panic::catch_unwind(|| History::default().check_last(&path)).is_err());
    }
}
