//! Narrow windows in which a wake-up, a gate opening, memory or the truth could get lost.

use super::*;
use crate::engine::Completion;
use crate::engine::crew::Crew;

/// The disks.
const BYTES: u64 = 2 << 20;

/// Turns whoever is due, and the clock when nobody is.
pub(super) fn turn_all(crew: &mut Crew, world: &Arc<World>, rounds: usize) {
    for _ in 0..rounds {
        let now = world.now_ns();
        let mut any = false;
        for n in 0..crew.len() {
            if crew.due_ns(n).is_some_and(|at| at <= now) {
                crew.turn(n);
                any = true;
            }
        }
        if !any {
            let next = (0..crew.len()).filter_map(|n| crew.due_ns(n)).min();
            world.advance_to(next.unwrap_or(now + 1_000_000).max(now + 1).min(now + 1_000_000));
        }
    }
}

/// A job that follows.
pub(super) fn options() -> MirrorOptions {
    MirrorOptions {
        granularity: Granularity::new(4 * KIB).ok(),
        latency_budget: LatencyBudget::Off,
        copy_mode: CopyModeChoice::Background,
        ..MirrorOptions::default()
    }
}

#[test]
fn a_job_says_that_the_drive_moved_only_if_it_did() {
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let mut crew = Crew::new(&world, 1, 2 << 20);
    let options = MirrorOptions { auto_finalize: false, ..options() };
    let (job, _share) = crew.start(&drive, &target, &options, None).unwrap();
    turn_all(&mut crew, &world, 2000);
    assert_eq!(job.status(), JobStatus::Ready);
    job.complete(Completion::Pivot).unwrap();
    turn_all(&mut crew, &world, 2000);
    assert_eq!(job.status(), JobStatus::Pending);
    // A request's thread had read "open" before the gate was closed, was preempted, and now tries a slot.
    let half = drive.gate().try_a_slot();
    job.finalize().unwrap();
    turn_all(&mut crew, &world, 20);
    assert!(Crew::outcome(&job).is_none(), "nothing was decided while the drive could not move");
    drive.gate().step_back(half);
    turn_all(&mut crew, &world, 2000);
    let outcome = Crew::outcome(&job).unwrap();
    assert!(outcome.pivoted && Arc::ptr_eq(&drive.place().device, &target), "{outcome:?}");
}

#[test]
fn a_dead_target_of_one_job_leaves_memory_to_another() {
    let world = World::new(1, Faults::default());
    let disks: Vec<_> = (0..4).map(|_| SimDisk::new(BYTES * 2)).collect();
    [&disks[0], &disks[2]].into_iter().for_each(|disk| fill(&world, disk, BYTES * 2, 100));
    let a = DriveCore::new(Arc::clone(&disks[0]), BYTES * 2, 512, true);
    let b = DriveCore::new(Arc::clone(&disks[2]), BYTES * 2, 512, true);
    let mut crew = Crew::new(&world, 1, 2 << 20);
    disks[1].set_dead(true);
    let (ja, _) = crew.start(&a, &disks[1], &options(), None).unwrap();
    turn_all(&mut crew, &world, 2000);
    ja.cancel(Cancel::Force).unwrap();
    turn_all(&mut crew, &world, 2000);
    assert!(Crew::outcome(&ja).is_some());
    let (jb, _) = crew.start(&b, &disks[3], &options(), None).unwrap();
    turn_all(&mut crew, &world, 100_000);
    assert_eq!(jb.status(), JobStatus::Ready, "job B never gets memory");
}

#[test]
fn a_chunk_that_a_refused_write_made_dirty_again_rings_the_bell() {
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let mut crew = Crew::new(&world, 1, 2 << 20);
    let options =
        MirrorOptions { copy_mode: CopyModeChoice::WriteBlocking, sync: SyncMode::None, ..options() };
    let (_job, share) = crew.start(&drive, &target, &options, None).unwrap();
    turn_all(&mut crew, &world, 2000);
    let range = ByteRange::at(65536, 4096);
    share.doorbell.disarm();
    // Another write made the chunk dirty; the home is awake and has not looked yet.
    let _ = share.guest_wrote(range);
    let active = share.begin_active(range).unwrap();
    // The home: quiet for long enough, arms, looks, and sleeps.
    share.doorbell.arm();
    assert!(share.is_finished());
    // The queue: no memory for a stable copy.
    let rung = share.cancel_active(active) | share.guest_wrote(range);
    assert!(share.dirty.test(Chunk(16)));
    assert!(rung, "the chunk is dirty, the bell is armed, and nobody rings");
}

#[test]
fn a_flush_behind_the_gate_that_finds_no_room_waits() {
    use crate::mirror::{Act, Coordinator};
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let crew = Crew::new(&world, 1, 2 << 20);
    let options = MirrorOptions {
        copy_mode: CopyModeChoice::WriteBlocking,
        sync: SyncMode::None,
        max_pause: None,
        on_copied: OnCopied::Complete,
        ..options()
    };
    let (_job, share) = crew.start(&drive, &target, &options, None).unwrap();
    let mut c = Coordinator::new(&options);
    let sight = |now_ns| crate::mirror::Sight {
        now_ns,
        gate_is_quiet: true,
        predicted_pause_ns: None,
        flush_ns: 0,
        slow_flush_ns: 0,
    };
    assert_eq!(c.look(&share, &sight(2)), Act::Flush);
    c.flushed(Ok(()), &share, &sight(3));
    assert_eq!(c.look(&share, &sight(4)), Act::CloseGate);
    let active = share.begin_active(ByteRange::at(0, 4096)).unwrap();
    let _ = share.end_active(active, Ok(()), Ok(()), 5);
    let mut flushes = 0;
    for now in 6..1_000_006 {
        match c.look(&share, &sight(now)) {
            Act::Flush => {
                flushes += 1;
                c.not_sent(now);
            }
            Act::Rest => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(flushes < 10, "asked {flushes} times in one turn; the ring is never entered");
}
