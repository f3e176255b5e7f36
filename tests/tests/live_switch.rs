//! Live jobs from start to end, while guests write: what the target is at the end, byte for byte, however the job ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use blkmirror_testkit::{KIB, MIB, compare, needs};
use blkmirror_tests::api::ErrorKind;
use blkmirror_tests::api::device::Device;
use blkmirror_tests::api::drive::{Admission, Drive, IoKind};
use blkmirror_tests::api::engine::{
    Cancel, Completion, End, JobStatus, MirrorOptions, SyncMode, TargetState,
};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{GuestPlan, Medium, Place, Scene, until, until_status};

/// Size of the disks here.
const SIZE: u64 = 16 * MIB;
/// A file with a real file system below.
const FILE: Medium<'_> = Medium::FileIn(env!("CARGO_TARGET_TMPDIR"));
/// How long a switch-over may hold guests, and some time for a machine that has other things to do.
const HELD: Duration = Duration::from_secs(2);

/// Mirrors under writes, moves the drive, lets the guests go on there, and compares.
#[track_caller]
fn moves(scene: &Scene, options: MirrorOptions) {
    let guests = scene.guests();
    let job = scene.mirror(options);
    until_status(&job, JobStatus::Ready);
    guests.go_on(100);
    let outcome = scene.complete(&job, Completion::Pivot);
    assert!(outcome.pivoted && outcome.target == TargetState::Complete, "{outcome:?}");
    assert!(outcome.pause.unwrap() <= Scene::MAX_PAUSE, "{:?}", outcome.pause);
    assert_eq!(scene.drive.device_number(), 1);
    guests.go_on(100);
    assert!(guests.longest() < HELD, "{:?}", guests.longest());
    assert_eq!(guests.failed(), 0);
    let _ = guests.stop();
    scene.check_target();
    // What the drive left behind is as it was at the switch-over.
    let _ = scene.history.check_moment(&scene.source.content);
}

/// Scenario 1.
#[test]
fn a_drive_moves_to_a_target_that_has_every_write_on_files() {
    moves(&Scene::new(SIZE, FILE, FILE), Scene::options());
}

/// Scenario 1.
#[test]
fn a_drive_moves_to_a_target_that_has_every_write_on_loop_devices() {
    needs!(Losetup);
    moves(&Scene::new(SIZE, Medium::Loop, Medium::Loop), Scene::options());
}

/// The latency budget changes how the copy is made, not what it is.
#[test]
fn a_drive_moves_under_a_latency_budget_too() {
    let max_pause = Scene::options().max_pause;
    moves(&Scene::new(4 * MIB, FILE, FILE), MirrorOptions { max_pause, ..MirrorOptions::default() });
}

/// Scenario 1: complete is refused before the job is ready, and a job that is paused then waits for the resume.
#[test]
fn completing_is_refused_before_ready_and_waits_while_paused() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let guests = scene.guests();
    let job = scene.mirror(MirrorOptions { speed_bytes_per_s: MIB, ..Scene::options() });
    until_status(&job, JobStatus::Running);
    let early = job.complete(Completion::Pivot).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WrongState);
    assert!(early.to_string().contains("running"), "{early}");
    job.set_speed(0).unwrap();
    until_status(&job, JobStatus::Ready);
    job.pause().unwrap();
    until_status(&job, JobStatus::Standby);
    job.complete(Completion::Pivot).unwrap();
    guests.go_on(100);
    assert_eq!(job.status(), JobStatus::Standby);
    job.resume().unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    guests.go_on(50);
    let _ = guests.stop();
    scene.check_target();
}

/// Scenario 2: cancelled softly when it is ready, a job leaves a copy as of that moment.
#[test]
fn a_soft_cancel_when_ready_is_a_copy_as_of_a_moment() {
    for (source, target) in [(FILE, FILE), (FILE, Medium::Memory)] {
        let scene = Scene::new(SIZE, source, target);
        let guests = scene.guests();
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        guests.go_on(100);
        job.cancel(Cancel::Soft).unwrap();
        let outcome = job.wait_for(Duration::from_secs(20)).unwrap();
        assert_eq!((outcome.end, outcome.target), (End::Completed, TargetState::Complete));
        assert!(!outcome.pivoted && scene.drive.device_number() == 0);
        let before = fs::read(&scene.target.content).unwrap();
        guests.go_on(100);
        let _ = guests.stop();
        assert!(before == fs::read(&scene.target.content).unwrap(), "it is left alone");
        let _ = scene.history.check_moment(&scene.target.content);
        scene.check_source();
    }
}

/// Scenario 2: cancelled before it is ready, or by force, it leaves no copy and says so, and the guest does not notice.
#[test]
fn other_cancels_leave_an_incomplete_target_and_an_untouched_guest() {
    for (ready, how) in [(false, Cancel::Soft), (false, Cancel::Force), (true, Cancel::Force)] {
        let scene = Scene::new(SIZE, FILE, FILE);
        let guests = scene.guests();
        let speed_bytes_per_s = if ready { 0 } else { MIB };
        let job = scene.mirror(MirrorOptions { speed_bytes_per_s, ..Scene::options() });
        until_status(&job, if ready { JobStatus::Ready } else { JobStatus::Running });
        guests.go_on(20);
        job.cancel(how).unwrap();
        let outcome = job.wait_for(Duration::from_secs(5)).unwrap();
        assert_eq!((outcome.end, outcome.target), (End::Cancelled, TargetState::Incomplete), "{how:?}");
        assert!(outcome.cancelled && outcome.error.is_none() && !outcome.pivoted, "{outcome:?}");
        guests.go_on(20);
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        scene.check_source();
    }
}

/// Scenario 3: sizes that are no multiple of the granularity or of 4 KiB, and a disk of no size at all, which is ready at once;
/// others than whole sectors are refused.
#[test]
fn every_size_is_followed_to_its_last_byte() {
    for size in [512, 4096, 64 * KIB + 512, MIB + 4096, MIB + 3 * 512] {
        let scene = Scene::new(size, Medium::Memory, Medium::Memory);
        let guest = GuestPlan { align_bytes: 512, max_bytes: 8 * KIB, ..GuestPlan::over(size, 3) };
        let guests = scene.guests_with(&[guest]);
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        guests.go_on(50);
        let _ = guests.stop();
        // The last byte alone, as a guest with smaller blocks than the host's would.
        let tracker = scene.drive.tracker();
        let Admission::Go(token) = tracker.begin(ByteRange::at(size - 1, 1), IoKind::Write).unwrap() else {
            panic!("nobody has closed the gate");
        };
        let disk = fs::File::options().write(true).open(&scene.source.path).unwrap();
        disk.write_all_at(b"!", size - 1).unwrap();
        tracker.end(token, Ok(())).unwrap();
        let _ = scene.complete(&job, Completion::PointInTime);
        let difference = compare::first_difference(&scene.source.content, &scene.target.content).unwrap();
        assert_eq!(difference, None, "{size}");
    }
    let scene = Scene::new(0, Medium::Memory, Medium::Memory);
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    for size in [100, MIB + 100] {
        let place = Place::new(Medium::Memory, size);
        let refused = Device::open_source(&place.path).and_then(Drive::new);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::WrongSize, "{size}");
    }
}

/// Scenario 4: small buffers, one granule, and less than a target's cluster.
#[test]
fn the_smallest_buffers_follow_too() {
    let granule = |bytes| Some(Granularity::new(bytes).unwrap());
    for (buf_size_bytes, granularity, target_cluster_bytes) in [
        (4 * KIB, granule(4 * KIB), None),
        (64 * KIB, granule(64 * KIB), None),
        (4 * KIB, granule(64 * KIB), None),
        (64 * KIB, granule(64 * KIB), Some(MIB)),
        (0, None, Some(2 * MIB)),
    ] {
        let options = MirrorOptions { buf_size_bytes, granularity, target_cluster_bytes, ..Scene::options() };
        moves(&Scene::new(4 * MIB, FILE, FILE), options);
    }
}

/// Own: a write that is under way while the job starts, or comes in that moment, is recorded by somebody.
#[test]
fn a_write_in_the_window_of_the_start_is_not_lost() {
    for round in 0..12 {
        let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
        let plans = [1, 2].map(|n| GuestPlan::over(MIB, 100 * round + n).resting(Duration::ZERO));
        let guests = scene.guests_with(&plans);
        guests.go_on(20);
        let job = scene.mirror(Scene::options());
        // They stop at once, so that a write lost at the start is not hidden by a later one.
        let _ = guests.stop();
        until_status(&job, JobStatus::Ready);
        let _ = scene.complete(&job, Completion::PointInTime);
        scene.check_target();
        scene.check_source();
    }
}

/// Own: the token of a write may be begun before the job and ended in it.
#[test]
fn a_write_that_began_before_the_job_and_ends_in_it_is_copied() {
    let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
    let tracker = scene.drive.tracker();
    let Admission::Go(token) = tracker.begin(ByteRange::at(4096, 4096), IoKind::Write).unwrap() else {
        panic!("nobody has closed the gate");
    };
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let disk = fs::File::options().write(true).open(&scene.source.path).unwrap();
    disk.write_all_at(&[7; 4096], 4096).unwrap();
    job.complete(Completion::PointInTime).unwrap();
    // It is inside the gate, so there is no end before its own.
    assert!(job.wait_for(Duration::from_millis(200)).is_none(), "{:?}", job.query());
    tracker.end(token, Ok(())).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    let difference = compare::first_difference(&scene.source.content, &scene.target.content).unwrap();
    assert_eq!(difference, None);
}

/// Own: writers that never rest and write faster than the job may copy do not keep it from completing.
#[test]
fn completion_comes_under_writes_without_end() {
    for speed_bytes_per_s in [0, 64 * MIB] {
        let scene = Scene::new(SIZE, FILE, FILE);
        let plans = [1, 2, 3].map(|seed| GuestPlan::over(SIZE, seed).resting(Duration::ZERO));
        let guests = scene.guests_with(&plans);
        let job = scene.mirror(MirrorOptions { speed_bytes_per_s, ..Scene::options() });
        until_status(&job, JobStatus::Ready);
        let outcome = scene.complete(&job, Completion::Pivot);
        assert!(outcome.pause.unwrap() <= Scene::MAX_PAUSE, "{:?}", outcome.pause);
        guests.go_on(100);
        let _ = guests.stop();
        scene.check_target();
    }
}

/// Without a bound on the pause the first try is the last.
#[test]
fn without_a_bound_the_switch_over_takes_as_long_as_it_takes() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let plans = [1, 2].map(|seed| GuestPlan::over(SIZE, seed).resting(Duration::ZERO));
    let guests = scene.guests_with(&plans);
    let job = scene.mirror(MirrorOptions { max_pause: None, ..Scene::options() });
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::PointInTime);
    let _ = guests.stop();
    let _ = scene.history.check_moment(&scene.target.content);
    scene.check_source();
}

/// QEMU's `sync=none`: only what is written while the job runs.
#[test]
fn sync_none_follows_writes_and_copies_nothing_else() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let first = fs::read(&scene.source.content).unwrap();
    let area = GuestPlan { start_bytes: 4 * MIB, end_bytes: 6 * MIB, ..GuestPlan::over(SIZE, 9) };
    let job = scene.mirror(MirrorOptions { sync: SyncMode::None, ..Scene::options() });
    let guests = scene.guests_with(&[area]);
    until_status(&job, JobStatus::Ready);
    guests.go_on(100);
    let _ = guests.stop();
    let outcome = scene.complete(&job, Completion::PointInTime);
    let (source, target) =
        (fs::read(&scene.source.content).unwrap(), fs::read(&scene.target.content).unwrap());
    let chunk = usize::try_from(64 * KIB).unwrap();
    let written = usize::try_from(4 * MIB).unwrap()..usize::try_from(6 * MIB).unwrap();
    for (at, (a, b)) in source.chunks(chunk).zip(target.chunks(chunk)).enumerate() {
        let inside = written.contains(&(at * chunk));
        let changed = first[at * chunk..][..a.len()] != *a;
        assert!(a == b || !changed, "{at} was written and not copied");
        assert!(inside || b.iter().all(|byte| *byte == 0), "{at} was copied");
    }
    assert!(outcome.progress.copied_bytes > 0);
}

/// Several jobs on several drives share an engine's workers.
#[test]
fn drives_beside_each_other_do_not_mix() {
    let scenes = [1, 2, 3].map(|_| Scene::new(4 * MIB, FILE, Medium::Memory));
    let engine = &scenes[0].engine;
    let guests = scenes.each_ref().map(Scene::guests);
    let jobs = scenes
        .each_ref()
        .map(|scene| engine.mirror(&scene.drive, scene.open_target(), Scene::options()).unwrap());
    for job in &jobs {
        until_status(job, JobStatus::Ready);
    }
    for job in &jobs {
        job.complete(Completion::Pivot).unwrap();
    }
    for job in &jobs {
        assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    }
    for (scene, guests) in scenes.iter().zip(guests) {
        guests.go_on(50);
        let _ = guests.stop();
        scene.check_target();
    }
}

/// A drive that has moved may be mirrored again, and back.
#[test]
fn a_drive_that_has_moved_can_be_mirrored_on() {
    let scene = Scene::new(4 * MIB, FILE, FILE);
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    job.dismiss().unwrap();
    let third = Place::new(FILE, 4 * MIB);
    let target =
        Device::open_target(&third.path, blkmirror_tests::api::device::TargetOptions::default()).unwrap();
    let again = scene.engine.mirror(&scene.drive, target, Scene::options()).unwrap();
    until("the second job is ready", || again.status() == JobStatus::Ready);
    guests.go_on(50);
    let _ = scene.complete(&again, Completion::PointInTime);
    guests.go_on(20);
    let _ = guests.stop();
    scene.check_target();
    let _ = scene.history.check_moment(&third.content);
}
