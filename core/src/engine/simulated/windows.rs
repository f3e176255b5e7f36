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

/// Jobs on one worker, each with a disk of noise to copy.
struct Jobs {
    world: Arc<World>,
    crew: Crew,
    all: Vec<(Job, Arc<Share>, Arc<SimDisk>)>,
}

impl Jobs {
    /// None yet.
    fn new() -> Self {
        let world = World::new(1, Faults::default());
        let crew = Crew::new(&world, 1, 2 << 20);
        Self { world, crew, all: Vec::new() }
    }

    /// One more.
    fn start(&mut self, dead: bool) {
        let (source, target) = (SimDisk::new(BYTES * 2), SimDisk::new(BYTES * 2));
        fill(&self.world, &source, BYTES * 2, 100);
        target.set_dead(dead);
        let drive = DriveCore::new(source, BYTES * 2, 512, true);
        let options = MirrorOptions { max_pause: None, ..options() };
        let (job, share) = self.crew.start(&drive, &target, &options, None).unwrap();
        self.all.push((job, share, target));
    }

    fn run(&mut self, rounds: usize) {
        turn_all(&mut self.crew, &self.world, rounds);
    }

    /// Runs until the last job has copied everything; fails if that does not come.
    fn run_until_last_is_ready(&mut self, when: &str) {
        for _ in 0..100 {
            self.run(1000);
            if self.all.last().is_some_and(|(job, _, _)| job.status() == JobStatus::Ready) {
                return;
            }
        }
        panic!("{when}, the last job gets no memory: {:?}", self.all.last().unwrap().0.progress());
    }

    /// Bytes of the worker's memory that a job holds.
    fn held_bytes(&self, number: usize) -> u64 {
        self.all[number].1.progress().in_flight_bytes
    }
}

/// A host that mirrors to a storage system that fails has many dead targets, and they die one after the other: each gets
/// what the one before has left. Were that ever nothing, the first failures would stop every other job.
#[test]
fn however_many_targets_died_before_it_came_a_job_gets_memory() {
    for dead in 1..7 {
        let mut jobs = Jobs::new();
        for n in 0..dead {
            jobs.start(true);
            jobs.run(2000);
            assert!(jobs.held_bytes(n) > 0, "job {n} of {dead}");
        }
        jobs.start(false);
        jobs.run_until_last_is_ready(&format!("beside {dead} dead ones"));
    }
}

/// Targets die while several jobs are at work. Without a share of its own, the last one alive could find that the
/// others took all in the moment before they died, and stand still for ever.
#[test]
fn however_many_targets_die_beside_it_a_job_goes_on() {
    for dead in 1..7 {
        for rounds in [2, 10, 30, 60] {
            let mut jobs = Jobs::new();
            (0..=dead).for_each(|_| jobs.start(false));
            jobs.run(rounds);
            jobs.all[..dead].iter().for_each(|(_, _, target)| target.set_dead(true));
            jobs.run_until_last_is_ready(&format!("beside {dead} that died after {rounds} turns"));
        }
    }
}

/// Behind a closed gate a guest waits. If the rest of the copy could not be made for want of memory, other guests' dead targets
/// would hold this one's requests again and again.
#[test]
fn a_switch_over_beside_dead_targets_ends() {
    for dead in 1..6 {
        let mut jobs = Jobs::new();
        (0..=dead).for_each(|_| jobs.start(false));
        jobs.run(20_000);
        for (_, share, target) in &jobs.all[..dead] {
            target.set_dead(true);
            let _ = share.guest_wrote(ByteRange::new(0, BYTES * 2));
        }
        jobs.run(2000);
        jobs.run_until_last_is_ready("before it was asked to complete");
        let (job, share, target) = jobs.all.last().unwrap();
        let (job, share, target) = (job.clone(), Arc::clone(share), Arc::clone(target));
        let _ = share.guest_wrote(ByteRange::new(0, BYTES * 2));
        job.complete(Completion::Pivot).unwrap();
        jobs.run(50);
        assert!(share.is_urgent() && !share.is_finished(), "the rest is to be copied behind the gate");
        jobs.run(50_000);
        let outcome = Crew::outcome(&job).unwrap();
        assert!(outcome.pivoted && outcome.target == TargetState::Complete, "{outcome:?} {target:?}");
    }
}

/// Requests that never come back keep their places in the ring as they keep their memory. Small ones are many, and were the
/// ring full of dead ones, a job with all the memory in the world could send nothing.
#[test]
fn dead_targets_of_many_small_requests_leave_room_in_the_ring() {
    let mut jobs = Jobs::new();
    for dead in [true, true, true, true, true, true, false] {
        jobs.start(dead);
        // Every other block, so that none of them is part of a longer run.
        let (_, share, _) = jobs.all.last().unwrap();
        share.pause();
        let _ = share.sweep.take(BYTES * 2);
        for at in (0..BYTES * 2).step_by(8192) {
            let _ = share.guest_wrote(ByteRange::at(at, 4096));
        }
        share.resume();
    }
    for _ in 0..100 {
        jobs.run(1000);
    }
    let (job, share, _) = jobs.all.last().unwrap();
    assert!(share.is_finished(), "the last job cannot send anything: {:?}", job.progress());
}

/// A question for block status that hangs would hold up every job of the worker, and its own cancel.
#[test]
fn a_source_that_never_says_where_its_holes_are_holds_up_no_other_job_and_no_cancel() {
    for (seed, rounds) in seeds().zip([0, 2, 5, 10].into_iter().cycle()) {
        let world = World::new(seed, Faults::default());
        let disks: Vec<_> = (0..4).map(|_| SimDisk::new(BYTES)).collect();
        [&disks[0], &disks[2]].into_iter().for_each(|disk| fill(&world, disk, BYTES, 50));
        let a = DriveCore::new(Arc::clone(&disks[0]), BYTES, 512, true);
        let b = DriveCore::new(Arc::clone(&disks[2]), BYTES, 512, true);
        let mut crew = Crew::new(&world, 1, 2 << 20);
        let late = Faults { late_status: 1000, ..Faults::default() };
        disks[0].set_faults(late);
        disks[2].set_faults(late);
        let (ja, share) = crew.start(&a, &disks[1], &options(), None).unwrap();
        turn_all(&mut crew, &world, rounds);
        disks[0].set_faults(Faults { stuck: 1000, ..late });
        let completing = MirrorOptions { on_copied: OnCopied::Complete, max_pause: None, ..options() };
        let (jb, _) = crew.start(&b, &disks[3], &completing, None).unwrap();
        turn_all(&mut crew, &world, 5_000);
        assert!(Crew::outcome(&jb).is_some() && disks[2].content() == disks[3].content(), "seed {seed}");
        assert_eq!(ja.status(), JobStatus::Running, "seed {seed}: nothing hangs");
        let asked_ns = world.now_ns();
        ja.cancel(Cancel::Force).unwrap();
        while Crew::outcome(&ja).is_none() {
            assert!(world.now_ns() < asked_ns + 600_000_000, "seed {seed}: it hangs with the question");
            turn_all(&mut crew, &world, 1);
        }
        let (source, target) = (disks[0].content(), disks[1].content());
        for chunk in 0..share.dirty.chunks() {
            let part = usize::try_from(chunk * 4096).unwrap()..usize::try_from((chunk + 1) * 4096).unwrap();
            let known = share.dirty.test(Chunk(chunk)) || chunk * 4096 >= share.sweep.position();
            assert!(known || source[part.clone()] == target[part], "seed {seed}: chunk {chunk} is not clean");
        }
    }
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
    let active = share.begin_active(range, world.now_ns()).unwrap();
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
    let active = share.begin_active(ByteRange::at(0, 4096), world.now_ns()).unwrap();
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
