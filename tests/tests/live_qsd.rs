//! Faults from somebody else's block layer on the real ring: disks that `qemu-storage-daemon` serves through its blkdebug.
//!
//! One write at a time goes to such a disk (see `Served`): one worker, and a buffer of one granule.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::Duration;

use blkmirror_core::engine::{
    Completion, CopyModeChoice, End, ErrorPolicy, EventKind, IoStatus, Job, JobStatus, MirrorOptions, Side,
};
use blkmirror_core::units::Granularity;
use blkmirror_testkit::{KIB, MIB, needs};
use blkmirror_tests::live::{
    EIO, ENOSPC, GuestPlan, Guests, History, Inject, Medium, Place, Scene, Served, events_of, until,
    until_status,
};

/// Size of the disks here.
const SIZE: u64 = MIB;
/// Where it fails.
const WRONG: u64 = 512 * KIB;

/// A job with these policies that has one write under way at a time.
fn one_at_a_time(policy: ErrorPolicy) -> MirrorOptions {
    MirrorOptions {
        granularity: Some(Granularity::new(64 * KIB).unwrap()),
        buf_size_bytes: 64 * KIB,
        on_source_error: policy,
        on_target_error: policy,
        max_pause: None,
        ..Scene::options_in(CopyModeChoice::Background)
    }
}

/// A scene with a served disk on one side.
fn scene(side: Side, fault: Inject) -> Scene {
    let served =
        |faults: &[Inject]| Place::served(Served::start(SIZE, faults, |path| History::fill(path, SIZE)));
    let memory = || Place::new(Medium::Memory, SIZE);
    match side {
        Side::Source => Scene::between(SIZE, served(&[fault]), memory()),
        Side::Target => Scene::between(SIZE, memory(), served(&[fault])),
    }
}

/// One guest; a served source gets its writes one at a time, too.
fn guest(scene: &Scene) -> Guests {
    scene.guests_with(&[GuestPlan::over(SIZE, 5).resting(Duration::from_millis(2))])
}

/// The job completes with everything, and the guest has not noticed.
#[track_caller]
fn completes(scene: &Scene, job: &Job, guests: Guests) {
    until_status(job, JobStatus::Ready);
    let _ = scene.complete(job, Completion::PointInTime);
    guests.go_on(5);
    assert_eq!(guests.failed(), 0);
    let _ = guests.stop();
    let _ = scene.history.check_moment(&scene.target.content);
    scene.check_source();
}

/// Scenario 5: errors that stay.
#[test]
fn reads_that_fail_end_or_stop_the_job_as_the_policy_says() {
    needs!(Fuse, QemuStorageDaemon);
    let fault = Inject { iotype: "read", errno: EIO, at_bytes: Some(WRONG), once: false };
    for policy in [ErrorPolicy::Report, ErrorPolicy::Enospc, ErrorPolicy::Stop] {
        let scene = scene(Side::Source, fault);
        let guests = guest(&scene);
        let job = scene.mirror(one_at_a_time(policy));
        if policy == ErrorPolicy::Stop {
            until("it is stopped", || job.query().io_status == IoStatus::Failed);
        } else {
            assert_eq!(job.wait_for(Duration::from_secs(10)).unwrap().end, End::Failed, "{policy:?}");
        }
        let told = events_of(&job).iter().any(|event| match event.what {
            EventKind::Error { side: Side::Source, errno: EIO, range, .. } => {
                range.start() <= WRONG && WRONG < range.end()
            }
            _ => false,
        });
        assert!(told, "{policy:?}");
        guests.go_on(5);
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        scene.check_source();
    }
}

/// Scenarios 5 and 6: errors that pass, under the policies that outlive them.
#[test]
fn one_error_is_made_up_for_on_either_side() {
    needs!(Fuse, QemuStorageDaemon);
    for (side, iotype, errno) in
        [(Side::Source, "read", EIO), (Side::Target, "write", EIO), (Side::Target, "write", ENOSPC)]
    {
        for policy in [ErrorPolicy::Ignore, ErrorPolicy::Stop, ErrorPolicy::Enospc] {
            if policy == ErrorPolicy::Enospc && errno != ENOSPC {
                continue;
            }
            let scene = scene(side, Inject { iotype, errno, at_bytes: Some(WRONG), once: true });
            let guests = guest(&scene);
            let job = scene.mirror(one_at_a_time(policy));
            if policy != ErrorPolicy::Ignore {
                let expected = if errno == ENOSPC { IoStatus::NoSpace } else { IoStatus::Failed };
                until("it is stopped", || job.query().io_status == expected);
                job.resume().unwrap();
            }
            completes(&scene, &job, guests);
        }
    }
}

/// Scenario 20.
#[test]
fn a_flush_that_fails_once_fails_the_job_under_every_policy() {
    needs!(Fuse, QemuStorageDaemon);
    for policy in [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Enospc, ErrorPolicy::Stop] {
        let fault = Inject { iotype: "flush", errno: EIO, at_bytes: None, once: false };
        let scene = scene(Side::Target, fault);
        let guests = guest(&scene);
        let job = scene.mirror(one_at_a_time(policy));
        // The flush on the way to ready may find nothing written yet, and succeed.
        until("it is ready or over", || job.status().is_ready() || job.status().is_over());
        guests.go_on(5);
        let _ = job.complete(Completion::PointInTime);
        let Some(outcome) = job.wait_for(Duration::from_secs(10)) else { panic!("{:?}", job.query()) };
        assert!(outcome.end == End::Failed && !outcome.pivoted, "{policy:?}");
        guests.go_on(5);
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        scene.check_source();
    }
}
