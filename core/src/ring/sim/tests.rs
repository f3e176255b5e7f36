//! What the simulated disk promises to those who test against it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::buffer::{AlignedBuf, BufRange, GuestBuffer};
use crate::ring::{Completion, DeviceSlot, Op, Request, Ring, Tag, Wait};
use crate::units::{KIB, MIB};

/// A world, a disk and a ring with it.
struct Bench {
    world: Arc<World>,
    disk: Arc<SimDisk>,
    ring: SimRing,
    slot: DeviceSlot,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, Faults::default());
        let disk = SimDisk::new(MIB);
        let mut ring = SimRing::new(&world, 64 << 10);
        let slot = ring.attach(&disk).unwrap();
        Self { world, disk, ring, slot }
    }

    fn push(&mut self, range: ByteRange, op: Op, tag: u64) {
        self.ring.push(Request { device: self.slot, range, op }, Tag(tag)).unwrap();
    }

    /// Lets time pass until a request has ended, with the time of its end.
    fn next(&mut self) -> Option<(u64, Completion)> {
        for _ in 0..10 {
            self.ring.enter(Wait { completions: 1, batch_ns: 0, timeout_ns: None }).unwrap();
            if let Some(done) = self.ring.pop() {
                return Some((self.world.now_ns(), done));
            }
            self.world.advance_to(self.ring.due_ns()?);
        }
        None
    }

    /// Does one request.
    fn ask(&mut self, range: ByteRange, op: Op) -> std::result::Result<u64, i32> {
        self.push(range, op, 0);
        self.next().unwrap().1.result
    }

    /// Writes `value` to a block; through the cache or not.
    fn write(&mut self, block: u64, value: u8, through: bool) {
        let buf = BufRange { start: 0, len: 4096 };
        self.ring.memory_mut(buf).fill(value);
        let op = if through { Op::WriteThrough(buf) } else { Op::Write(buf) };
        assert_eq!(self.ask(ByteRange::at(block * 4096, 4096), op), Ok(4096));
    }

    fn flush(&mut self) -> std::result::Result<u64, i32> {
        self.ask(ByteRange::default(), Op::Flush)
    }

    /// The first byte of a block.
    fn value(&self, block: usize) -> u8 {
        self.disk.content()[block * 4096]
    }
}

/// The values that a crash may leave in block 0 after `prepare`.
fn left_by_a_crash(prepare: impl Fn(&mut Bench)) -> BTreeSet<u8> {
    (0..64)
        .map(|seed| {
            let mut bench = Bench::new(seed);
            prepare(&mut bench);
            bench.disk.crash(&bench.world);
            bench.value(0)
        })
        .collect()
}

#[test]
fn a_crash_leaves_any_version_since_the_last_flush_and_each_block_its_own() {
    let left = left_by_a_crash(|b| {
        b.write(0, 1, false);
        b.flush().unwrap();
        b.write(0, 2, false);
        b.write(0, 3, false);
    });
    assert_eq!(left, BTreeSet::from([1, 2, 3]));
    let torn = (0..64).any(|seed| {
        let mut bench = Bench::new(seed);
        bench.write(0, 1, false);
        bench.write(1, 1, false);
        bench.disk.crash(&bench.world);
        bench.value(0) != bench.value(1)
    });
    assert!(torn, "blocks are lost one by one");
}

#[test]
fn what_was_written_through_or_flushed_or_poked_survives_a_crash() {
    assert_eq!(left_by_a_crash(|b| b.write(0, 1, true)), BTreeSet::from([1]));
    assert_eq!(left_by_a_crash(|b| b.disk.poke(0, &[1; 4096])), BTreeSet::from([1]));
    let left = left_by_a_crash(|b| {
        b.write(0, 1, false);
        b.flush().unwrap();
    });
    assert_eq!(left, BTreeSet::from([1]));
    // Zeroes go through the cache like data.
    let left = left_by_a_crash(|b| {
        b.write(0, 1, true);
        b.ask(ByteRange::at(0, 4096), Op::Zero { punch: true }).unwrap();
    });
    assert_eq!(left, BTreeSet::from([0, 1]));
}

/// A flush covers what had completed before it began, and nothing that came in between.
#[test]
fn a_flush_covers_writes_that_ended_before_it_began_also_if_others_come_in_between() {
    let left = left_by_a_crash(|b| {
        b.disk.set_latency(1_000, 0);
        for value in 1..=20 {
            b.write(0, value, false);
        }
        b.push(ByteRange::default(), Op::Flush, 9);
        let buf = BufRange { start: 0, len: 4096 };
        b.ring.memory_mut(buf).fill(30);
        b.push(ByteRange::at(0, 4096), Op::Write(buf), 8);
        assert_eq!([b.next().unwrap().1.tag, b.next().unwrap().1.tag], [Tag(9), Tag(8)]);
    });
    assert_eq!(left, BTreeSet::from([20, 30]));
}

/// As the kernel does: an error is reported once, and the pages count as clean.
#[test]
fn what_a_failed_flush_lost_the_next_one_does_not_cover() {
    let left = left_by_a_crash(|b| {
        b.write(0, 1, false);
        b.disk.set_faults(Faults { flush_error: 1000, ..Faults::default() });
        assert_eq!(b.flush(), Err(libc::EIO));
        b.disk.set_faults(Faults::default());
        b.flush().unwrap();
    });
    assert_eq!(left, BTreeSet::from([0, 1]));
}

#[test]
fn faults_of_a_disk_are_its_own() {
    let mut b = Bench::new(1);
    let other = SimDisk::new(MIB);
    let slot = b.ring.attach(&other).unwrap();
    b.disk.set_faults(Faults { write_error: 1000, ..Faults::default() });
    let op = Op::Write(BufRange { start: 0, len: 4096 });
    assert_eq!(b.ask(ByteRange::at(0, 4096), op), Err(libc::EIO));
    b.slot = slot;
    assert_eq!(b.ask(ByteRange::at(0, 4096), op), Ok(4096));
}

#[test]
fn at_a_rate_a_small_write_waits_behind_the_copies_before_it_and_another_disk_does_not() {
    let mut b = Bench::new(1);
    b.disk.set_latency(50_000, 0);
    b.disk.set_rate(64 * MIB);
    let mut guest = SimRing::new(&b.world, 4096);
    let slot = guest.attach(&b.disk).unwrap();
    for i in 0..16 {
        b.push(ByteRange::at(i * 65536, 65536), Op::Read(BufRange { start: 0, len: 65536 }), i);
    }
    let op = Op::Write(BufRange { start: 0, len: 4096 });
    guest.push(Request { device: slot, range: ByteRange::at(0, 4096), op }, Tag(99)).unwrap();
    guest.enter(Wait::POLL).unwrap();
    // 64 KiB take about a millisecond at 64 MiB/s; the guest is behind all sixteen.
    let last = (0..16).map(|_| b.next().unwrap().0).max().unwrap();
    assert!((15_000_000..17_000_000).contains(&last), "{last}");
    assert_eq!(guest.pop(), None);
    b.world.advance_to(last + 62_000);
    guest.enter(Wait::POLL).unwrap();
    assert_eq!(guest.pop().map(|done| done.tag), Some(Tag(99)));
    // Alone it takes its latency and its own bytes.
    let begun = b.world.now_ns();
    b.push(ByteRange::at(0, 4 * KIB), op, 1);
    let alone = b.next().unwrap().0 - begun;
    assert!((110_000..115_000).contains(&alone), "{alone}");
    b.disk.set_rate(0);
    b.push(ByteRange::at(0, 4 * KIB), op, 1);
    assert_eq!(b.next().unwrap().0 - begun - alone, 50_000);
}

#[test]
fn a_dead_disk_gives_nothing_back_until_it_is_revived_and_then_everything() {
    let mut b = Bench::new(1);
    let op = Op::Write(BufRange { start: 0, len: 4096 });
    b.push(ByteRange::at(0, 4096), op, 1);
    b.disk.set_dead(true);
    b.push(ByteRange::at(4096, 4096), op, 2);
    assert_eq!(b.next(), None);
    assert_eq!((b.ring.in_flight(), b.ring.due_ns()), (2, None));
    b.disk.set_dead(false);
    assert_eq!(b.ring.due_ns(), Some(0), "the driver of the simulation sees it");
    let tags: BTreeSet<u64> = (0..2).map(|_| b.next().unwrap().1.tag.0).collect();
    assert_eq!((tags, b.ring.in_flight()), (BTreeSet::from([1, 2]), 0));
}

#[test]
fn host_memory_and_staging_move_the_same_bytes_as_the_copy_memory() {
    for seed in 0..20 {
        let mut b = Bench::new(seed);
        b.world.set_faults(Faults { short: 300, ..Faults::default() });
        let mut data = AlignedBuf::new(12288, 4096).unwrap();
        data.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::try_from(i / 512 + 1).unwrap());
        let (wanted, data) = (data.to_vec(), GuestBuffer::from(data));
        let mut done = 0;
        while done < 12288 {
            let op = Op::WriteHost { memory: data.memory().skip(done), fua: true };
            done += b.ask(ByteRange::new(8192 + done, 8192 + 12288), op).unwrap();
        }
        b.disk.crash(&b.world);
        assert!(b.disk.content()[8192..8192 + 12288] == wanted[..], "what was written through is there");
        let back = GuestBuffer::from(AlignedBuf::new(12288, 4096).unwrap());
        let mut done = 0;
        while done < 12288 {
            let op = Op::ReadHost(back.memory().skip(done));
            done += b.ask(ByteRange::new(8192 + done, 8192 + 12288), op).unwrap();
        }
        let buf = BufRange { start: 4096, len: 12288 };
        b.ring.stage(back.memory(), buf);
        assert!(b.ring.memory_mut(buf) == &wanted[..]);
        assert!(back.into_aligned().unwrap()[..] == wanted[..]);
        b.ring.fill_zero(buf.slice(0, 4096));
        assert!(b.ring.is_zero(buf.slice(0, 4096)) && !b.ring.is_zero(buf.slice(0, 4097)));
    }
}

/// A simulation in which every answer is there at once, or is always true of the moment when it comes, finds no race.
#[test]
fn a_late_answer_is_of_some_moment_since_the_question_and_a_dead_disk_gives_none() {
    let mut kinds = BTreeSet::new();
    for seed in 0..20 {
        let mut b = Bench::new(seed);
        assert!(b.ring.status_at_once(b.slot, 0).is_some());
        b.disk.set_faults(Faults { late_status: 1000, ..Faults::default() });
        assert_eq!(b.ring.status_at_once(b.slot, 0).map(|answer| answer.is_ok()), None);
        b.push(ByteRange::at(0, 0), Op::Status, 5);
        b.disk.poke(0, &[1; 4096]);
        b.disk.set_dead(true);
        assert_eq!(b.next(), None);
        b.disk.set_dead(false);
        let done = b.next().unwrap().1;
        assert_eq!((done.tag, done.result, b.disk.writes()), (Tag(5), Ok(0), 0));
        kinds.insert(done.extent.unwrap().kind == crate::device::ExtentKind::Data);
    }
    assert_eq!(kinds, BTreeSet::from([false, true]));
}

#[test]
fn what_lies_outside_the_memory_or_on_no_disk_is_refused() {
    let mut b = Bench::new(1);
    let outside = Op::Read(BufRange { start: 64 << 10, len: 512 });
    let request = Request { device: b.slot, range: ByteRange::at(0, 512), op: outside };
    assert!(b.ring.push(request, Tag(0)).is_err());
    b.ring.detach(b.slot);
    assert!(b.ring.push(Request { op: Op::Flush, ..request }, Tag(0)).is_err());
    assert_eq!(b.ring.in_flight(), 0);
}

#[test]
fn a_punched_block_is_a_hole_and_a_crash_may_bring_it_back() {
    let mut b = Bench::new(3);
    b.write(0, 1, true);
    b.write(1, 1, true);
    b.ask(ByteRange::at(0, 6144), Op::Discard).unwrap();
    assert_eq!(b.disk.status(0).range, ByteRange::at(0, 4096), "a part of a block is no hole");
    assert_eq!(b.disk.content()[..6144], [0; 6144]);
    assert_eq!(b.disk.content()[6144], 1);
}
