//! Scenarios of docs/SCENARIOS.md that belong nowhere else: what the source holds, where its holes are, what the host's bitmap
//! says, and jobs that come and go.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blkmirror_testkit::{KIB, MIB, compare};
use blkmirror_tests::api::bitmap::DirtyBitmap;
use blkmirror_tests::api::device::{Device, TargetOptions};
use blkmirror_tests::api::drive::{Admission, Drive, IoKind};
use blkmirror_tests::api::engine::{
    Completion, CopyModeChoice, End, Engine, EngineOptions, JobStatus, MirrorOptions,
};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{
    GuestPlan, Guests, History, Medium, Place, Scene, cancel_soon, timed, until, until_status,
};

/// Size of the disks here.
const SIZE: u64 = 4 * MIB;
/// A file with a real file system below.
const FILE: Medium<'_> = Medium::FileIn(env!("CARGO_TARGET_TMPDIR"));

/// Asserts that both files hold the same.
#[track_caller]
fn assert_equal(a: &Path, b: &Path) {
    assert_eq!(compare::first_difference(a, b).unwrap(), None);
}

/// Writes to the file below a drive, and tells the drive of it.
fn write(scene: &Scene, at: u64, bytes: &[u8]) {
    let len = u64::try_from(bytes.len()).unwrap();
    let tracker = scene.drive.tracker();
    let Admission::Go(token) = tracker.begin(ByteRange::at(at, len), IoKind::Write).unwrap() else {
        panic!("nobody has closed the gate")
    };
    File::options().write(true).open(&scene.source.path).unwrap().write_all_at(bytes, at).unwrap();
    tracker.end(token, Ok(())).unwrap();
}

/// Scenario 9: a guest may write anything, so whoever took its first bytes for an image's head, on either side, would let it choose
/// which files the host opens. What looks like an image is bytes, before a job, while it follows, and for the job after it.
#[test]
fn what_looks_like_an_image_is_copied_as_bytes() {
    // The head of a qcow2 image of 1 GiB with clusters of 64 KiB and the backing file /etc/passwd.
    let mut head = Vec::from(*b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x01\0\0\0\0\x0b\0\0\0\x10");
    head.extend_from_slice(&(1u64 << 30).to_be_bytes());
    head.resize(256, 0);
    head.extend_from_slice(b"/etc/passwd");
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    write(&scene, 0, &head);
    fs::write(&scene.target.path, {
        let mut old = head.clone();
        old.resize(usize::try_from(SIZE).unwrap(), 0x55);
        old
    })
    .unwrap();
    for at in [0, MIB] {
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        write(&scene, at, &head);
        let outcome = scene.complete(&job, Completion::PointInTime);
        assert!(outcome.error.is_none());
        assert_equal(&scene.source.content, &scene.target.content);
        assert_eq!(fs::metadata(&scene.target.content).unwrap().len(), SIZE);
        job.dismiss().unwrap();
    }
}

/// Scenario 29: a job that still believed in a hole which the guest has filled meanwhile would leave zeroes in its place. One write
/// is ahead of the first pass and others come when it is over, on a target that counts as zero and on one that holds old data.
#[test]
fn a_hole_that_the_guest_fills_under_a_job_is_copied() {
    for target_is_zero in [true, false] {
        let scene = Scene::new(SIZE, FILE, FILE);
        if !target_is_zero {
            fs::write(&scene.target.path, vec![0x55; usize::try_from(SIZE).unwrap()]).unwrap();
        }
        // Data for the first chunks, so that the first pass takes a while, and a hole behind.
        let source = File::options().write(true).open(&scene.source.path).unwrap();
        source.set_len(MIB).unwrap();
        source.set_len(SIZE).unwrap();
        let job = scene.mirror(MirrorOptions {
            speed_bytes_per_s: MIB,
            target_is_zero,
            granularity: Some(Granularity::new(64 * KIB).unwrap()),
            ..Scene::options()
        });
        until("it has begun", || job.query().progress.copied_bytes > 0);
        for at in [SIZE - 4096, 2 * MIB + 512, 3 * MIB] {
            write(&scene, at, &[0xaa; 512]);
        }
        job.set_speed(0).unwrap();
        until_status(&job, JobStatus::Ready);
        write(&scene, MIB + 8192, &[0xbb; 512]);
        let _ = scene.complete(&job, Completion::PointInTime);
        assert_equal(&scene.source.content, &scene.target.content);
    }
}

/// Own: if finding out where data lies took time that grows with all extents for each of them, or held a worker for long, a
/// fragmented disk would keep its guest, and whoever wants to stop the job, waiting.
#[test]
fn a_source_of_forty_thousand_extents_keeps_nobody_waiting() {
    const EXTENTS: u64 = 40_000;
    const LEN: u64 = EXTENTS * 8 * KIB;
    // In memory: file systems that tell the disk what is free take a minute to remove such a file.
    let (source, target) = (Place::new(Medium::Memory, LEN), Place::new(Medium::Memory, LEN));
    let file = File::options().write(true).open(&source.path).unwrap();
    for extent in 0..EXTENTS {
        file.write_all_at(&[1 + u8::try_from(extent % 251).unwrap(); 4096], extent * 8 * KIB).unwrap();
    }
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let drive = Drive::with_align_bytes(Device::open_disk(&source.path).unwrap(), 4096).unwrap();
    let start = || {
        let target = Device::open_target(&target.path, TargetOptions::default()).unwrap();
        engine.mirror(&drive, target, Scene::options()).unwrap()
    };
    let history = Arc::<History>::default();
    // In the first half, which is copied while the job is watched.
    let plan = GuestPlan::over(LEN / 2, 4).resting(Duration::from_millis(2));
    let disks = [source.path.clone(), target.path.clone()];
    let guests = Guests::tracked(&drive, &disks, &history, &[plan]);
    let first = start();
    until("it has begun", || first.query().progress.copied_bytes > 0);
    let ((), taken) = timed(|| {
        if first.pause().is_ok() {
            until("it is held", || matches!(first.status(), JobStatus::Paused | JobStatus::Standby));
        }
    });
    assert!(taken < Duration::from_secs(1), "a pause took {taken:?}");
    cancel_soon(&first);
    let job = start();
    until_status(&job, JobStatus::Ready);
    guests.go_on(20);
    assert!(guests.longest() < Duration::from_secs(2), "{:?}", guests.longest());
    assert_eq!(guests.failed(), 0);
    let _ = guests.stop();
    job.complete(Completion::PointInTime).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    assert_equal(&source.content, &target.content);
}

/// Scenario 27: a queue or a guest that missed the change from one job to the next, or from one disk to the other, would write to
/// the wrong place or to one side only. Jobs begin, are cancelled, move the drive and move it back, all under the same guests.
#[test]
fn jobs_come_and_go_under_guests_that_notice_nothing() {
    for mode in [CopyModeChoice::Background, CopyModeChoice::WriteBlocking] {
        let scene = Scene::new(SIZE, FILE, FILE);
        let guests = scene.queued_guests();
        let places = [&scene.source, &scene.target];
        for round in 0..6 {
            let to = places[(round / 2 + 1) % 2];
            let target = Device::open_target(&to.path, TargetOptions::default()).unwrap();
            let job = scene.engine.mirror(&scene.drive, target, Scene::options_in(mode)).unwrap();
            if round % 2 == 0 {
                guests.go_on(10);
                cancel_soon(&job);
            } else {
                until_status(&job, JobStatus::Ready);
                let outcome = scene.complete(&job, Completion::Pivot);
                assert!(outcome.pivoted, "{outcome:?}");
            }
            // In write-blocking mode a queue lets go of the old disks when it is used next.
            guests.go_on(20);
            job.dismiss().unwrap();
        }
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        // Three moves.
        scene.check_target();
    }
}

/// Were the host's bitmap taken for less or for more than it says, a disk whose differences are known would be left different, or
/// be copied whole. What the guest writes meanwhile comes on top.
#[test]
fn a_hosts_bitmap_says_what_is_copied() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let granularity = Granularity::new(64 * KIB).unwrap();
    let bitmap = Arc::new(DirtyBitmap::new(SIZE, granularity).unwrap());
    let (known, written) = (ByteRange::new(MIB, 2 * MIB), ByteRange::at(3 * MIB, 64 * KIB));
    let _ = bitmap.set_bytes(known);
    let options = MirrorOptions {
        bitmap: Some(Arc::clone(&bitmap)),
        granularity: Some(granularity),
        ..Scene::options()
    };
    let job = scene.mirror(options);
    until_status(&job, JobStatus::Ready);
    write(&scene, written.start() + 512, &[0xaa; 512]);
    let _ = scene.complete(&job, Completion::PointInTime);
    let (source, target) =
        (fs::read(&scene.source.content).unwrap(), fs::read(&scene.target.content).unwrap());
    for (at, (a, b)) in (0..).step_by(64 << 10).zip(source.chunks(64 << 10).zip(target.chunks(64 << 10))) {
        let copied = [known, written].iter().any(|range| range.start() <= at && at < range.end());
        assert!(if copied { a == b } else { b.iter().all(|byte| *byte == 0) }, "the chunk at {at}");
    }
}
