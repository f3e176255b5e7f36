//! What a host reads of a job while it runs.

use super::windows::{options, turn_all};
use super::*;
use crate::drive::LatencyCounts;
use crate::engine::Completion;
use crate::engine::crew::Crew;

/// The disks.
const BYTES: u64 = 8 << 20;

/// A drive with data, and a target.
fn pair(world: &World) -> (Arc<DriveCore<SimDisk>>, Arc<SimDisk>) {
    let source = SimDisk::new(BYTES);
    fill(world, &source, BYTES, 100);
    (DriveCore::new(source, BYTES, 512, true), SimDisk::new(BYTES))
}

/// Asserts that so many requests were counted, all of which took about `ns`.
#[track_caller]
fn assert_counted(counts: &LatencyCounts, count: u64, ns: u64) {
    assert_eq!(counts.count(), count, "{counts:?}");
    let p = counts.percentiles();
    assert!(p.p50_ns.abs_diff(ns) < ns / 30 && p.p99_99_ns.abs_diff(ns) < ns / 30, "{p:?}");
}

/// Otherwise a job would be blamed for what the one before it did to the guest.
#[test]
fn a_jobs_latencies_are_its_own_and_stay_when_it_is_over() {
    let world = World::new(1, Faults::default());
    let (drive, target) = pair(&world);
    let mut crew = Crew::new(&world, 1, 2 << 20);
    let record = |times: u64, ns: u64| (0..times).for_each(|_| drive.record_latency(ns));
    record(100, 10_000);
    let (first, _) = crew.start(&drive, &target, &options(), None).unwrap();
    record(50, 20_000);
    assert_counted(&first.latencies().with_job, 50, 20_000);
    assert_counted(&first.latencies().without_job, 100, 10_000);
    first.cancel(Cancel::Force).unwrap();
    turn_all(&mut crew, &world, 2000);
    assert!(Crew::outcome(&first).is_some());
    record(30, 10_000);
    let (second, _) = crew.start(&drive, &target, &options(), None).unwrap();
    record(70, 40_000);
    assert_counted(&second.latencies().with_job, 70, 40_000);
    assert_counted(&second.latencies().without_job, 130, 10_000);
    assert_counted(&first.latencies().with_job, 50, 20_000);
}

/// Otherwise a host that waits for it would complete when the switch-over has to wait all the same, or never complete at all.
#[test]
fn fits_now_says_what_the_forecast_says_and_no_while_the_job_is_held() {
    let mut seen = [0; 2];
    for max_pause_ms in [1, 3, 50] {
        let world = World::new(1, Faults::default());
        let (drive, target) = pair(&world);
        let mut crew = Crew::new(&world, 1, 2 << 20);
        let max_pause = std::time::Duration::from_millis(max_pause_ms);
        let options = MirrorOptions { max_pause: Some(max_pause), strict_ready: true, ..options() };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        assert!(!job.query().fits_now, "nothing was copied yet");
        for step in 0..6000 {
            turn_all(&mut crew, &world, 1);
            if step % 1500 == 1499 {
                let _ = share.guest_wrote(ByteRange::new(0, BYTES / 2));
            }
            let info = job.query();
            // Nothing was measured yet, and nothing is left.
            let clean = info.predicted_pause.is_none() && info.dirty_bytes == 0;
            let small = clean || info.predicted_pause.is_some_and(|pause| pause <= max_pause * 3 / 4);
            assert!(!info.fits_now || small, "{info:?}");
            assert!(info.fits_now || clean || !small || !share.sweep_is_claimed(), "{info:?}");
            seen[usize::from(info.fits_now)] += 1;
        }
        job.pause().unwrap();
        assert!(!job.query().fits_now, "it is held");
        job.resume().unwrap();
        job.cancel(Cancel::Force).unwrap();
        assert!(!job.query().fits_now, "it is cancelled");
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}

/// "What the guest is told is written is on both sides" would be a lie for as long as something is on its way to the target.
#[test]
fn a_job_is_actively_synced_only_when_nobody_has_anything_in_hand() {
    let mut synced = 0;
    for seed in 0..20 {
        let world = World::new(seed, Faults::default());
        let source = SimDisk::new(BYTES);
        // Holes are zeroed on the target, which takes no copy memory.
        fill(&world, &source, BYTES / 4, 30);
        let (drive, target) = (DriveCore::new(source, BYTES, 512, true), SimDisk::new(BYTES));
        fill(&world, &target, BYTES, 100);
        let mut crew = Crew::new(&world, 2, 2 << 20);
        let options = MirrorOptions { copy_mode: CopyModeChoice::WriteBlocking, ..options() };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        for step in 0..1500 {
            turn_all(&mut crew, &world, 1);
            if step > 1000 && step % 100 == 0 {
                let _ = share.guest_wrote(ByteRange::new(BYTES / 2, BYTES));
            }
            let info = job.query();
            assert!(!info.actively_synced || share.is_finished(), "seed {seed}, step {step}: {info:?}");
            synced += u64::from(info.actively_synced);
        }
    }
    assert!(synced > 0, "it was never in sync");
}

/// Otherwise a host that polls would not know that its guest was held for nothing, or would be told a number that the events
/// contradict.
#[test]
fn missed_switch_overs_are_counted_for_who_asks() {
    let world = World::new(1, Faults::default());
    let (drive, target) = pair(&world);
    let mut crew = Crew::new(&world, 1, 2 << 20);
    let max_pause = Some(std::time::Duration::from_millis(10));
    let (job, _) = crew.start(&drive, &target, &MirrorOptions { max_pause, ..options() }, None).unwrap();
    turn_all(&mut crew, &world, 4000);
    assert_eq!((job.status(), job.query().missed), (JobStatus::Ready, 0));
    // A request that does not come back stays inside the gate.
    let inside = drive.gate().try_a_slot();
    job.complete(Completion::Pivot).unwrap();
    let mut told = 0;
    for _ in 0..4000 {
        turn_all(&mut crew, &world, 1);
        let events = std::iter::from_fn(|| job.next_event());
        told += events.filter(|e| matches!(e.what, EventKind::SwitchOverMissed { .. })).count();
        assert_eq!(job.query().missed as usize, told);
    }
    assert!(told > 1, "{told}");
    drive.gate().step_back(inside);
    turn_all(&mut crew, &world, 20_000);
    assert!(Crew::outcome(&job).is_some_and(|outcome| outcome.pivoted), "{:?}", job.query());
    assert_eq!(job.query().missed as usize, told);
}
