//! Disks that take 20 ms for everything, served by `qemu-storage-daemon`, on either side of a job, one request at a time: the job
//! completes all the same, guests are held no longer than the host allowed, and a forced cancel waits for nobody.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::{Duration, Instant};

use blkmirror_testkit::{KIB, MIB, needs};
use blkmirror_tests::api::engine::{Completion, CopyModeChoice, Job, JobStatus, MirrorOptions, Side};
use blkmirror_tests::api::units::Granularity;
use blkmirror_tests::live::{
    GuestPlan, Guests, History, Medium, Place, Scene, Served, cancel_soon, until, until_status,
};

/// Size of the disks here.
const SIZE: u64 = MIB / 2;
/// What a job has under way at most.
const BUFFER: u64 = 128 * KIB;
/// How long the host allows its guest to be held.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Guest writes followed in the background, and carried to both sides.
const MODES: [CopyModeChoice; 2] = [CopyModeChoice::Background, CopyModeChoice::WriteBlocking];

/// Two disks, one of them slow.
fn scene(side: Side) -> Scene {
    let slow = || Place::served(Served::start_slow(SIZE, |path| History::fill(path, SIZE)));
    let memory = || Place::new(Medium::Memory, SIZE);
    match side {
        Side::Source => Scene::between(SIZE, slow(), memory()),
        Side::Target => Scene::between(SIZE, memory(), slow()),
    }
}

/// A guest that writes now and then, and a job.
fn start(scene: &Scene, mode: CopyModeChoice) -> (Guests, Job) {
    let plan = GuestPlan { depth: 1, ..GuestPlan::over(SIZE, 7).resting(Duration::from_millis(60)) };
    let guests = match mode {
        CopyModeChoice::WriteBlocking => scene.queued_guests_with(&[plan]),
        _ => scene.guests_with(&[plan]),
    };
    let job = scene.mirror(MirrorOptions {
        granularity: Some(Granularity::new(64 * KIB).unwrap()),
        buf_size_bytes: BUFFER,
        max_pause: Some(MAX_PAUSE),
        ..Scene::options_in(mode)
    });
    (guests, job)
}

/// If the forecast of the pause knew nothing of latency, guests would be held too long; if it feared it too much, a job on such
/// disks would never be ready.
#[test]
fn a_job_between_slow_disks_completes_within_the_pause() {
    needs!(Fuse, QemuStorageDaemon, Root);
    for side in [Side::Source, Side::Target] {
        for mode in MODES {
            let scene = scene(side);
            let begun = Instant::now();
            let (guests, job) = start(&scene, mode);
            until_status(&job, JobStatus::Ready);
            // A disk that is not slow proves nothing. A part of the copy may be left to the pause.
            assert!(begun.elapsed() >= 2 * Served::LATENCY, "{:?}", begun.elapsed());
            guests.go_on(3);
            let outcome = scene.complete(&job, Completion::PointInTime);
            assert!(outcome.pause.unwrap() <= MAX_PAUSE, "{side:?}, {mode:?}: {:?}", outcome.pause);
            guests.go_on(3);
            assert_eq!(guests.failed(), 0);
            assert!(guests.longest() <= MAX_PAUSE + Duration::from_millis(500), "{:?}", guests.longest());
            let _ = guests.stop();
            scene.check_source();
            let _ = scene.history.check_moment(&scene.target.content);
        }
    }
}

/// A cancel that waited for a whole queue of slow requests would take as long as they do.
#[test]
fn a_forced_cancel_beside_slow_disks_is_over_within_a_second() {
    needs!(Fuse, QemuStorageDaemon, Root);
    for side in [Side::Source, Side::Target] {
        for mode in MODES {
            for after_ready in [false, true] {
                let scene = scene(side);
                let (guests, job) = start(&scene, mode);
                if after_ready {
                    until_status(&job, JobStatus::Ready);
                    guests.go_on(2);
                } else {
                    until("something is under way", || job.query().progress.in_flight_bytes > 0);
                }
                cancel_soon(&job);
                guests.go_on(2);
                assert_eq!(guests.failed(), 0);
                let _ = guests.stop();
                scene.check_source();
            }
        }
    }
}
