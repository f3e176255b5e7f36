//! Policy `ignore` in virtual time: what failed is left alone for a while, and nothing else waits longer than that.

use super::windows::options;
use super::*;
use crate::engine::crew::Crew;

/// The disks.
const BYTES: u64 = 2 << 20;
/// One millisecond.
const MS: u64 = 1_000_000;
/// Between two guest writes to the bad place: less than the shortest time between rounds.
const EVERY_NS: u64 = MS;

/// Turns whoever is due until the time has come.
pub(super) fn turn_until(crew: &mut Crew, world: &Arc<World>, until_ns: u64) {
    loop {
        let now = world.now_ns();
        let due = |crew: &Crew, n| crew.due_ns(n).filter(|&at| at <= now.max(1));
        let turned = (0..crew.len()).filter(|&n| due(crew, n).is_some()).collect::<Vec<_>>();
        turned.iter().for_each(|&n| crew.turn(n));
        if !turned.is_empty() {
            continue;
        }
        if now >= until_ns {
            return;
        }
        let next = (0..crew.len()).filter_map(|n| crew.due_ns(n)).min().unwrap_or(until_ns);
        world.advance_to(next.clamp(now + 1, until_ns));
    }
}

/// If each error put the next round off, a guest that writes to a bad place would keep every other chunk from the target for
/// ever; and if its writes went on to the failing target, each would be one more error for the host to hear of.
#[test]
fn a_guest_that_writes_to_a_bad_place_all_the_time_starves_no_other_chunk() {
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let options = MirrorOptions {
        copy_mode: CopyModeChoice::WriteBlocking,
        sync: SyncMode::None,
        on_target_error: ErrorPolicy::Ignore,
        ..options()
    };
    let (_job, share) = crew.start(&drive, &target, &options, None).unwrap();
    turn_until(&mut crew, &world, 20 * MS);
    let bad = ByteRange::at(64 * KIB, 4096);
    let (mut failed, mut marked_ns, mut longest_ns) = (0, None, 0);
    for n in 0..5000u64 {
        let rung = match share.begin_active(bad, world.now_ns()) {
            Some(active) => {
                failed += 1;
                share.end_active(active, Ok(()), Err(libc::EIO), world.now_ns())
            }
            None => share.guest_wrote(bad),
        };
        // Another guest, which its host does the requests of, dirties a chunk far away, again when that is copied.
        let far = ByteRange::at(BYTES - 8 * KIB, 4096);
        if !share.dirty.test(Chunk(far.start() / 4096)) {
            let since = marked_ns.replace(world.now_ns()).unwrap_or(world.now_ns());
            longest_ns = longest_ns.max(world.now_ns() - since);
            source.poke(far.start(), &[u8::try_from(n % 251).unwrap(); 4096]);
            let _ = share.guest_wrote(far);
        }
        if rung {
            crew.wake(0);
        }
        turn_until(&mut crew, &world, (20 + n) * MS + EVERY_NS);
    }
    longest_ns = longest_ns.max(world.now_ns() - marked_ns.unwrap());
    // The longest time between two rounds, and one to copy.
    assert!(longest_ns < 1100 * MS, "a chunk waited for {} ms", longest_ns / MS);
    // One for each round: copiers make up for it each time, so that rounds stay as close together as they may be, 10 ms.
    assert!((3..=500).contains(&failed), "{failed} errors in five seconds");
}

/// A block that a disk tries to read for half a second before it says that it cannot.
const SLOW_NS: u64 = 500 * MS;
/// Where it is.
const BAD: ByteRange = ByteRange::new(1 << 20, (1 << 20) + 4096);

/// A round that counted as over while what it is about is still under way would be the first one again and again: the copy
/// would never end, and never come to requests so small that the bad block's neighbours get across.
#[test]
fn a_copy_gives_up_on_a_block_that_fails_slowly_and_has_its_neighbours() {
    for workers in [1, 2] {
        let mut options = Recipe::default().options;
        options.on_source_error = ErrorPolicy::Ignore;
        options.granularity = Granularity::new(64 * KIB).ok();
        let mut sim = Sim::new(&Recipe { options, bytes: BYTES, workers, ..Recipe::default() });
        fill(&sim.world, &sim.source, BYTES, 100);
        sim.source.set_bad(Some((BAD, SLOW_NS)));
        let outcome = sim.run(|sim, _| {
            assert!(sim.world.now_ns() < 20_000 * MS, "it does not end: {:?}", sim.job.progress());
        });
        sim.check(&outcome);
        assert_eq!(outcome.target, TargetState::Incomplete);
        assert!(outcome.error.unwrap().to_string().contains("given up"));
        let (source, target) = (sim.source.content(), sim.target.content());
        let bad = usize::try_from(BAD.start()).unwrap()..usize::try_from(BAD.end()).unwrap();
        assert!(source[..bad.start] == target[..bad.start], "neighbours before it, {workers} workers");
        assert!(source[bad.end..] == target[bad.end..], "neighbours behind it, {workers} workers");
    }
}

/// A job that follows, all of it copied but what is bad.
fn following(crew: &Crew, disks: &[Arc<SimDisk>; 2], max_pause: Option<u64>) -> (Job, Arc<Share>) {
    let drive = DriveCore::new(Arc::clone(&disks[0]), BYTES, 512, true);
    let options = MirrorOptions {
        granularity: Granularity::new(64 * KIB).ok(),
        latency_budget: LatencyBudget::Off,
        copy_mode: CopyModeChoice::Background,
        on_source_error: ErrorPolicy::Ignore,
        max_pause: max_pause.map(std::time::Duration::from_nanos),
        ..MirrorOptions::default()
    };
    crew.start(&drive, &disks[1], &options, None).unwrap()
}

/// A job that is called ready over a block that cannot be read promises a switch-over that cannot be made in any pause.
#[test]
fn a_job_is_not_ready_while_a_read_that_failed_hangs_again() {
    let world = World::new(1, Faults::default());
    let disks = [SimDisk::new(BYTES), SimDisk::new(BYTES)];
    fill(&world, &disks[0], BYTES, 100);
    // Up to its first failure it is a read like any other.
    disks[0].set_bad(Some((BAD, 0)));
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let (job, share) = following(&crew, &disks, Some(100 * MS));
    turn_until(&mut crew, &world, 30 * MS);
    assert!(disks[0].has_failed(true, ByteRange::new(0, BYTES), libc::EIO));
    disks[0].set_bad(Some((BAD, SLOW_NS)));
    for ms in (30..8000).step_by(5) {
        turn_until(&mut crew, &world, ms * MS);
        assert_eq!(job.status(), JobStatus::Running, "after {ms} ms");
        assert!(!share.fits_now());
    }
    disks[0].set_bad(None);
    turn_until(&mut crew, &world, 12_000 * MS);
    assert_eq!(job.status(), JobStatus::Ready, "all of it can be read now");
    assert!(disks[0].content() == disks[1].content());
}

/// Behind a closed gate the guest would wait for a read that hangs.
#[test]
fn no_gate_is_closed_over_a_read_that_failed_and_hangs_again() {
    let world = World::new(1, Faults::default());
    let disks = [SimDisk::new(BYTES), SimDisk::new(BYTES)];
    fill(&world, &disks[0], BYTES, 100);
    let mut crew = Crew::new(&world, 2, 2 << 20);
    // However long a pause may be.
    let (job, share) = following(&crew, &disks, None);
    turn_until(&mut crew, &world, 500 * MS);
    assert_eq!(job.status(), JobStatus::Ready);
    disks[0].set_bad(Some((BAD, 0)));
    let _ = share.guest_wrote(BAD);
    crew.wake(0);
    turn_until(&mut crew, &world, 520 * MS);
    assert!(disks[0].has_failed(true, ByteRange::new(0, BYTES), libc::EIO));
    disks[0].set_bad(Some((BAD, SLOW_NS)));
    job.complete(crate::engine::Completion::Pivot).unwrap();
    for ms in 520..6000 {
        turn_until(&mut crew, &world, ms * MS);
        assert!(!share.is_urgent(), "the gate is closed after {ms} ms");
    }
    disks[0].set_bad(None);
    turn_until(&mut crew, &world, 12_000 * MS);
    assert!(Crew::outcome(&job).unwrap().pivoted && disks[0].content() == disks[1].content());
}

/// Were a round over only when nothing is dirty, one error would keep a job from being ready for as long as its guest writes.
#[test]
fn a_round_is_over_when_what_failed_is_copied_however_much_the_guest_writes() {
    let world = World::new(1, Faults::default());
    let disks = [SimDisk::new(BYTES), SimDisk::new(BYTES)];
    fill(&world, &disks[0], BYTES, 100);
    disks[0].set_bad(Some((BAD, MS)));
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let (job, share) = following(&crew, &disks, Some(200 * MS));
    turn_until(&mut crew, &world, 200 * MS);
    assert_eq!(job.status(), JobStatus::Running);
    disks[0].set_bad(None);
    // The place that was bad is written too.
    for n in 0..20_000u64 {
        for at in [n % 7 * 64 * KIB, BAD.start(), BYTES - (n % 5 + 1) * 64 * KIB] {
            if share.guest_wrote(ByteRange::at(at, 4096)) {
                crew.wake(0);
            }
        }
        turn_until(&mut crew, &world, 200 * MS + n * 100_000);
        assert!(!share.is_finished(), "the guest leaves nothing dirty");
    }
    assert_eq!(job.status(), JobStatus::Ready, "{:?}", job.progress());
}

/// The first pass may take hours, and for so long a guest's writes would go to the source alone after a single error.
#[test]
fn an_ignored_error_in_the_first_pass_does_not_end_write_blocking_until_it_is_over() {
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    fill(&world, &source, BYTES, 100);
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let options = MirrorOptions {
        copy_mode: CopyModeChoice::WriteBlocking,
        on_target_error: ErrorPolicy::Ignore,
        // Twenty seconds for the pass.
        speed_bytes_per_s: 100 * KIB,
        ..options()
    };
    let (_job, share) = crew.start(&drive, &target, &options, None).unwrap();
    turn_until(&mut crew, &world, 100 * MS);
    let place = ByteRange::at(BYTES - 64 * KIB, 4096);
    let begin = |world: &World| share.begin_active(place, world.now_ns());
    let active = begin(&world).unwrap();
    let _ = share.end_active(active, Ok(()), Err(libc::EIO), world.now_ns());
    assert!(begin(&world).is_none(), "the target is left alone for a moment");
    turn_until(&mut crew, &world, 200 * MS);
    let active = begin(&world);
    assert!(!share.sweep_is_claimed() && active.is_some(), "the pass goes on, and so does write-blocking");
    let _ = share.end_active(active.unwrap(), Ok(()), Ok(()), world.now_ns());
}
