//! Which write may be found where.
//!
//! The ledger is told of every write before it is sent and after it has ended. From that follows, for each unit of the
//! disk, the set of writes whose data may be there: the last one that was acknowledged, and every one that was under way
//! beside it, for of writes that overlap in time any may win. A write is out of the set once another one that *began after
//! it had ended* was acknowledged. A write that failed may have left its data or not, so it is in the set until then, and
//! pushes nothing out of it.
//!
//! Each 512-byte sector is judged by itself, because a disk promises no more than whole sectors: two writes that ran side
//! by side may each have won a part.
//!
//! One lock per 64 units in turn; a writer holds it for some ten nanoseconds, and neighbouring units have different locks.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkmirror_core::Result;
use blkmirror_core::buffer::is_zero;
use blkmirror_core::units::{ByteRange, bytes_u64, bytes_usize};

use crate::reader::{PIECE_BYTES, ReadAt};
use crate::stamp::{self, SECTOR_BYTES, WriteId};

/// Locks.
const STRIPES: u64 = 64;
/// Wrong sectors that are named; the rest is counted.
const MAX_NAMED: usize = 8;

/// A write as one unit sees it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which; `None` for what was there before all of them.
    id: Option<WriteId>,
    /// When it was sent, by the stripe's own count.
    begun: u64,
    /// When it ended.
    ended: Option<u64>,
    /// Whether it ended well.
    acknowledged: bool,
}

/// Every 64th unit.
#[derive(Debug)]
struct Stripe {
    /// The one write that may be in a unit that is not in `open`.
    settled: Vec<Option<WriteId>>,
    /// Units with more than one, or with writes under way.
    open: HashMap<u64, Vec<Entry>>,
    /// Lists to be used again.
    spare: Vec<Vec<Entry>>,
    /// Counts beginnings and ends.
    now: u64,
}

impl Stripe {
    /// A write to `unit` is about to be sent.
    fn begin(&mut self, unit: u64, id: WriteId) {
        self.now += 1;
        let (now, spare) = (self.now, &mut self.spare);
        let before = self.settled.get(bytes_usize(unit / STRIPES)).copied().flatten();
        let entries = self.open.entry(unit).or_insert_with(|| {
            let mut entries = spare.pop().unwrap_or_default();
            entries.push(Entry { id: before, begun: 0, ended: Some(0), acknowledged: true });
            entries
        });
        entries.push(Entry { id: Some(id), begun: now, ended: None, acknowledged: false });
    }

    /// A write to `unit` has ended.
    fn end(&mut self, unit: u64, id: WriteId, acknowledged: bool) {
        self.now += 1;
        let now = self.now;
        let Some(entries) = self.open.get_mut(&unit) else { return };
        let mine = entries.iter_mut().find(|entry| entry.id == Some(id) && entry.ended.is_none());
        let Some(mine) = mine else { return };
        mine.ended = Some(now);
        mine.acknowledged = acknowledged;
        if !acknowledged {
            return;
        }
        let begun = mine.begun;
        entries.retain(|entry| entry.ended.is_none_or(|ended| ended > begun));
        self.settle(unit);
    }

    /// A write to `unit` was not sent after all.
    fn withdraw(&mut self, unit: u64, id: WriteId) {
        let Some(entries) = self.open.get_mut(&unit) else { return };
        entries.retain(|entry| entry.id != Some(id));
        self.settle(unit);
    }

    /// Puts a unit with one write left, and an acknowledged one, back to the many.
    fn settle(&mut self, unit: u64) {
        let entries = self.open.get(&unit).map_or(&[][..], Vec::as_slice);
        let [Entry { id, ended: Some(_), acknowledged: true, .. }] = entries[..] else { return };
        if let (Some(settled), Some(mut entries)) =
            (self.settled.get_mut(bytes_usize(unit / STRIPES)), self.open.remove(&unit))
        {
            *settled = id;
            entries.clear();
            self.spare.push(entries);
        }
    }

    /// What may be in `unit`; `None` stands for what was there before all writes.
    fn candidates(&self, unit: u64, into: &mut Vec<Option<WriteId>>) {
        into.clear();
        match self.open.get(&unit) {
            Some(entries) => into.extend(entries.iter().map(|entry| entry.id)),
            None => into.push(self.settled.get(bytes_usize(unit / STRIPES)).copied().flatten()),
        }
    }
}

/// What the bytes that nobody wrote are compared with.
pub enum Untouched<'r> {
    /// Nothing: they may be anything.
    Unchecked,
    /// They must be as they are there.
    SameAs(&'r mut dyn ReadAt),
}

impl fmt::Debug for Untouched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unchecked => "Unchecked",
            Self::SameAs(_) => "SameAs(..)",
        })
    }
}

/// A sector that does not hold what it must.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// Where.
    pub offset: u64,
    /// Whose data is there instead; `None` if it is nobody's.
    pub found: Option<WriteId>,
    /// Whose data may be there; `None` in it stands for what was there before all writes.
    pub wanted: Vec<Option<WriteId>>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |id: &Option<WriteId>| id.map_or_else(|| "the old content".to_owned(), |id| id.to_string());
        let wanted: Vec<_> = self.wanted.iter().map(name).collect();
        let found = self.found.map_or_else(|| "other bytes".to_owned(), |id| id.to_string());
        write!(f, "offset {}: {found} instead of {}", self.offset, wanted.join(" or "))
    }
}

/// What a check found out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// Bytes that some writer wrote, and that were looked at.
    pub written_bytes: u64,
    /// Bytes that nobody wrote, and that were compared.
    pub untouched_bytes: u64,
    /// Sectors that are wrong.
    pub wrong_sectors: u64,
    /// The first of them.
    pub first_wrong: Vec<Wrong>,
}

impl Proof {
    /// Whether everything is as it must be.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.wrong_sectors == 0
    }

    /// Takes down a wrong sector.
    fn is_wrong(&mut self, offset: u64, found: Option<WriteId>, wanted: &[Option<WriteId>]) {
        self.wrong_sectors += 1;
        if self.first_wrong.len() < MAX_NAMED {
            self.first_wrong.push(Wrong { offset, found, wanted: wanted.to_vec() });
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.holds() {
            return write!(
                f,
                "{} bytes written and {} bytes untouched are as they must be",
                self.written_bytes, self.untouched_bytes
            );
        }
        write!(f, "{} sectors are wrong", self.wrong_sectors)?;
        self.first_wrong.iter().try_for_each(|wrong| write!(f, "; {wrong}"))
    }
}

/// Which write may be found where; shared by all writers of a disk.
#[derive(Debug)]
pub struct Ledger {
    /// The run's seed, part of every stamp.
    seed: u64,
    /// Bytes that are accounted for together; every write covers whole units.
    unit_bytes: u64,
    /// Bytes of the disk.
    size_bytes: u64,
    /// The units, dealt out in turn.
    stripes: Vec<Mutex<Stripe>>,
}

impl Ledger {
    /// A ledger for a disk that nobody wrote to yet. Writes cover whole units of `unit_bytes`, a multiple of 512; the
    /// rest of the disk behind the last whole unit is never written.
    #[must_use]
    pub fn new(size_bytes: u64, unit_bytes: u64, seed: u64) -> Self {
        let units = bytes_usize((size_bytes / unit_bytes).div_ceil(STRIPES));
        let stripe =
            || Stripe { settled: vec![None; units], open: HashMap::new(), spare: Vec::new(), now: 0 };
        let stripes = (0..STRIPES).map(|_| Mutex::new(stripe())).collect();
        Self { seed, unit_bytes, size_bytes, stripes }
    }

    /// The run's seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Bytes of a unit.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    /// The stripe of a unit.
    fn stripe(&self, unit: u64) -> MutexGuard<'_, Stripe> {
        self.stripes[bytes_usize(unit % STRIPES)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The units of a range.
    fn units(&self, range: ByteRange) -> std::ops::Range<u64> {
        let units = range.start() / self.unit_bytes..range.end().div_ceil(self.unit_bytes);
        debug_assert_eq!(range.start() % self.unit_bytes + range.end() % self.unit_bytes, 0);
        units
    }

    /// A write is about to be sent.
    pub fn begin(&self, id: WriteId, range: ByteRange) {
        for unit in self.units(range) {
            self.stripe(unit).begin(unit, id);
        }
    }

    /// A write has ended, well or not.
    pub fn end(&self, id: WriteId, range: ByteRange, acknowledged: bool) {
        for unit in self.units(range) {
            self.stripe(unit).end(unit, id, acknowledged);
        }
    }

    /// A write that was begun was not sent, and never will be.
    pub fn withdraw(&self, id: WriteId, range: ByteRange) {
        for unit in self.units(range) {
            self.stripe(unit).withdraw(unit, id);
        }
    }

    /// Bytes that some writer wrote or tried to write.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        let units = |stripe: &Mutex<Stripe>| {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |unit: &&u64| stripe.settled.get(bytes_usize(**unit / STRIPES)) == Some(&None);
            stripe.settled.iter().flatten().count() + stripe.open.keys().filter(fresh).count()
        };
        bytes_u64(self.stripes.iter().map(units).sum()) * self.unit_bytes
    }

    /// Reads `disk` from its beginning to its end and checks every sector of it. What is under way may be found or not.
    ///
    /// # Errors
    /// When a disk cannot be read.
    pub fn verify(&self, disk: &mut dyn ReadAt, mut untouched: Untouched<'_>) -> Result<Proof> {
        let mut proof = Proof::default();
        let mut wanted = Vec::new();
        let piece_bytes = PIECE_BYTES / self.unit_bytes * self.unit_bytes;
        let end = self.size_bytes.min(disk.size_bytes());
        for start in (0..end).step_by(bytes_usize(piece_bytes)) {
            let range = ByteRange::new(start, end.min(start + piece_bytes));
            let old = match &mut untouched {
                Untouched::SameAs(other) => Some(other.read_at(range)?),
                Untouched::Unchecked if self.is_untouched(range) => continue,
                Untouched::Unchecked => None,
            };
            let found = disk.read_at(range)?;
            let units = (range.start() / self.unit_bytes..).zip(found.chunks(bytes_usize(self.unit_bytes)));
            for (unit, bytes) in units {
                self.stripe(unit).candidates(unit, &mut wanted);
                let at = bytes_usize(unit * self.unit_bytes - start);
                let old = old.map(|old| &old[at..at + bytes.len()]);
                self.check_unit(unit, bytes, old, &wanted, &mut proof);
            }
        }
        Ok(proof)
    }

    /// Whether nobody wrote anywhere in `range`.
    fn is_untouched(&self, range: ByteRange) -> bool {
        let mut candidates = Vec::new();
        (range.start() / self.unit_bytes..range.end().div_ceil(self.unit_bytes)).all(|unit| {
            self.stripe(unit).candidates(unit, &mut candidates);
            candidates == [None]
        })
    }

    /// Checks the bytes of one unit.
    fn check_unit(
        &self,
        unit: u64,
        bytes: &[u8],
        old: Option<&[u8]>,
        wanted: &[Option<WriteId>],
        proof: &mut Proof,
    ) {
        let was_written = wanted != [None];
        match (was_written, old) {
            (true, _) => proof.written_bytes += bytes_u64(bytes.len()),
            (false, Some(_)) => proof.untouched_bytes += bytes_u64(bytes.len()),
            (false, None) => return,
        }
        let start = unit * self.unit_bytes;
        for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let at = number * SECTOR_BYTES;
            let offset = start + bytes_u64(at);
            // Nothing to compare with means that the old content may be anything.
            let is_old = || old.is_none_or(|old| old[at..at + sector.len()] == *sector);
            let found = sector.try_into().ok().and_then(|sector| stamp::read(sector, self.seed, offset));
            let right = wanted.iter().any(|id| match id {
                None => is_old(),
                Some(id) if id.is_zeroes() => is_zero(sector),
                Some(id) => found == Some(*id),
            });
            if !right {
                proof.is_wrong(offset, found, wanted);
            }
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
