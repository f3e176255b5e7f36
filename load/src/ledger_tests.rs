//! The ledger against histories that are worked out by hand, and against a slow and obvious model.

use blkmirror_core::units::KIB;
use proptest::prelude::*;

use super::*;

/// A disk in memory.
struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&mut self, range: ByteRange) -> Result<&[u8]> {
        Ok(&self.0[bytes_usize(range.start())..bytes_usize(range.end())])
    }

    fn size_bytes(&self) -> u64 {
        bytes_u64(self.0.len())
    }
}

/// The seed of these runs.
const SEED: u64 = 5;
/// Bytes of a unit.
const UNIT: u64 = 4 * KIB;

/// A ledger and a disk of 16 units.
fn fresh() -> (Ledger, Bytes) {
    (Ledger::new(16 * UNIT, UNIT, SEED), Bytes(vec![0; bytes_usize(16 * UNIT)]))
}

/// The bytes of a unit.
fn unit(number: u64) -> ByteRange {
    ByteRange::at(number * UNIT, UNIT)
}

/// Puts the stamps of a write onto a disk.
fn put(disk: &mut Bytes, id: WriteId, range: ByteRange) {
    stamp::write(&mut disk.0[bytes_usize(range.start())..bytes_usize(range.end())], SEED, id, range.start());
}

/// A disk's verdict.
fn holds(ledger: &Ledger, disk: &mut Bytes) -> bool {
    ledger.verify(disk, Untouched::Unchecked).unwrap().holds()
}

/// The heart of the proof: a write that was lost on the way to the target must be seen.
#[test]
fn an_acknowledged_write_must_be_there() {
    let (ledger, mut disk) = fresh();
    let (first, second) = (WriteId::new(0, 1), WriteId::new(0, 2));
    for id in [first, second] {
        ledger.begin(id, unit(3));
        ledger.end(id, unit(3), true);
    }
    put(&mut disk, first, unit(3));
    let proof = ledger.verify(&mut disk, Untouched::Unchecked).unwrap();
    assert_eq!((proof.wrong_sectors, proof.written_bytes), (8, UNIT));
    assert_eq!(proof.first_wrong[0].found, Some(first));
    assert!(proof.to_string().contains("offset 12288: write 1 of writer 0 instead of write 2 of writer 0"));
    put(&mut disk, second, unit(3));
    assert!(holds(&ledger, &mut disk));
    assert_eq!(ledger.written_bytes(), UNIT);
}

/// Overlapping guest writes have no order, so neither is wrong, and each may win a part of the unit.
#[test]
fn of_writes_that_overlap_in_time_any_may_be_there_sector_by_sector() {
    let (ledger, mut disk) = fresh();
    let (before, one, two) = (WriteId::new(0, 1), WriteId::new(0, 2), WriteId::new(1, 1));
    ledger.begin(before, unit(0));
    ledger.end(before, unit(0), true);
    ledger.begin(one, unit(0));
    ledger.begin(two, unit(0));
    put(&mut disk, before, unit(0));
    assert!(holds(&ledger, &mut disk), "both are still under way");
    ledger.end(one, unit(0), true);
    assert!(!holds(&ledger, &mut disk), "one of them was acknowledged");
    ledger.end(two, unit(0), true);
    put(&mut disk, one, unit(0));
    assert!(holds(&ledger, &mut disk));
    put(&mut disk, two, ByteRange::at(512, 1024));
    assert!(holds(&ledger, &mut disk), "sectors of both");
    let after = WriteId::new(0, 3);
    ledger.begin(after, unit(0));
    ledger.end(after, unit(0), true);
    assert!(!holds(&ledger, &mut disk), "a later write pushes both out");
}

/// A guest that was told of an error must be ready for both.
#[test]
fn a_failed_write_may_be_there_and_pushes_nothing_out() {
    let (ledger, mut disk) = fresh();
    let (old, failed) = (WriteId::new(0, 1), WriteId::new(0, 2));
    ledger.begin(old, unit(0));
    ledger.end(old, unit(0), true);
    ledger.begin(failed, unit(0));
    ledger.end(failed, unit(0), false);
    put(&mut disk, old, unit(0));
    assert!(holds(&ledger, &mut disk));
    put(&mut disk, failed, unit(0));
    assert!(holds(&ledger, &mut disk));
}

/// Zeroes carry no stamp, and must be told from the old content all the same.
#[test]
fn written_zeroes_must_be_zeroes() {
    let (ledger, mut disk) = fresh();
    let zeroes = WriteId::of_zeroes(0, 1);
    disk.0[700] = 1;
    ledger.begin(zeroes, unit(0));
    ledger.end(zeroes, unit(0), true);
    assert!(!holds(&ledger, &mut disk));
    disk.0[700] = 0;
    assert!(holds(&ledger, &mut disk));
}

/// The part of the disk that no guest wrote to must have been copied as well.
#[test]
fn what_nobody_wrote_is_compared_with_the_other_disk() {
    let (ledger, mut disk) = fresh();
    let mut other = Bytes(vec![0; disk.0.len()]);
    put(&mut disk, WriteId::new(0, 1), unit(1));
    ledger.begin(WriteId::new(0, 1), unit(1));
    ledger.end(WriteId::new(0, 1), unit(1), true);
    let proof = ledger.verify(&mut disk, Untouched::SameAs(&mut other)).unwrap();
    assert!(proof.holds());
    assert_eq!((proof.written_bytes, proof.untouched_bytes), (UNIT, 15 * UNIT));
    other.0[bytes_usize(9 * UNIT)] = 1;
    let proof = ledger.verify(&mut disk, Untouched::SameAs(&mut other)).unwrap();
    assert_eq!((proof.wrong_sectors, proof.first_wrong[0].offset), (1, 9 * UNIT));
}

/// What a history is made of: writes begin and end in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new write of one or two units.
    Begin(u64, u64),
    /// The n-th of those under way ends.
    End(usize, bool),
}

/// Any step.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..4, 1u64..3).prop_map(|(unit, units)| Step::Begin(unit, units)),
        (0usize..8, prop::bool::weighted(0.9)).prop_map(|(which, ok)| Step::End(which, ok)),
    ]
}

/// A write in the model: its units, when it began, when it ended and whether well.
type Written = (WriteId, std::ops::Range<u64>, usize, Option<(usize, bool)>);

proptest! {
    /// The rule in one line, over the whole history: a write may be there unless an acknowledged one began after its end.
    #[test]
    fn the_ledger_forgets_exactly_what_was_overwritten(steps in prop::collection::vec(step(), 1..60)) {
        let ledger = Ledger::new(16 * UNIT, UNIT, SEED);
        let mut history: Vec<Written> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Begin(unit, units) => {
                    let id = WriteId::new(0, bytes_u64(history.len()) + 1);
                    ledger.begin(id, ByteRange::at(unit * UNIT, units * UNIT));
                    history.push((id, unit..unit + units, now, None));
                }
                Step::End(which, ok) => {
                    let mut under_way = history.iter_mut().filter(|write| write.3.is_none());
                    if let Some((id, units, _, end)) = under_way.nth(which) {
                        *end = Some((now, ok));
                        let range = ByteRange::new(units.start * UNIT, units.end * UNIT);
                        ledger.end(*id, range, ok);
                    }
                }
            }
        }
        for unit in 0..6 {
            let here: Vec<&Written> = history.iter().filter(|write| write.1.contains(&unit)).collect();
            let acknowledged = |write: &&&Written| matches!(write.3, Some((_, true)));
            let overwritten = |end: usize| here.iter().filter(acknowledged).any(|write| write.2 > end);
            let mut wanted: Vec<Option<WriteId>> = here
                .iter()
                .filter(|write| write.3.is_none_or(|(end, _)| !overwritten(end)))
                .map(|write| Some(write.0))
                .collect();
            if !here.iter().any(|write| acknowledged(&write)) {
                wanted.push(None);
            }
            let mut found = Vec::new();
            ledger.stripe(unit).candidates(unit, &mut found);
            wanted.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }
}
