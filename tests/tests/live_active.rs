//! Write-blocking jobs, with guests that write through queues: both sides at once, and equal at the end.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{KIB, MIB, compare, needs};
use blkmirror_tests::api::buffer::AlignedBuf;
use blkmirror_tests::api::drive::queue::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_tests::api::drive::{Admission, IoKind};
use blkmirror_tests::api::engine::{
    Completion, CopyMode, CopyModeChoice, ErrorPolicy, Escalation, EventKind, JobStatus, MirrorOptions,
};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{EIO, GuestPlan, Medium, Scene, events_of, until, until_status, until_synced};

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;
/// A file with a real file system below.
const FILE: Medium<'_> = Medium::FileIn(env!("CARGO_TARGET_TMPDIR"));

/// The choices of a write-blocking job.
fn active() -> MirrorOptions {
    Scene::options_in(CopyModeChoice::WriteBlocking)
}

/// Asserts that both sides hold the same.
#[track_caller]
fn assert_equal(scene: &Scene) {
    let difference = compare::first_difference(&scene.source.content, &scene.target.content).unwrap();
    assert_eq!(difference, None);
}

/// A write of `len` bytes of `byte` at `at`, to its end; whether it succeeded.
fn write(queue: &mut Queue, at: u64, len: usize, byte: u8) -> bool {
    let mut buffer = AlignedBuf::new(len, 4096).unwrap();
    buffer.fill(byte);
    queue.write(at, buffer, WriteFlags::default(), 7).unwrap();
    end_of(queue)
}

/// Waits for the one request that is under way; whether it succeeded.
fn end_of(queue: &mut Queue) -> bool {
    queue.wait(1, Some(Duration::from_secs(10))).unwrap();
    queue.pop().unwrap().result.is_ok()
}

/// Guests of all kinds: small blocks and large, zeroes among them, some meeting each other.
fn mixed() -> [GuestPlan; 3] {
    let all = GuestPlan { zeroes_percent: 25, ..GuestPlan::over(SIZE, 21) };
    let large = GuestPlan { max_bytes: 192 * KIB, depth: 2, seed: 22, ..all.clone() };
    let hot = GuestPlan { end_bytes: 256 * KIB, depth: 8, seed: 23, ..all.clone() };
    [all, large, hot]
}

/// Scenario 12: requests before, during and after the start, writes and zeroes mixed; identical at the end.
#[test]
fn writes_and_zeroes_around_the_start_are_on_both_sides() {
    needs!(Losetup);
    for medium in [FILE, Medium::Memory, Medium::Loop] {
        let scene = Scene::new(SIZE, medium, medium);
        let guests = scene.queued_guests_with(&mixed());
        guests.go_on(50);
        let job = scene.mirror(active());
        until_status(&job, JobStatus::Ready);
        guests.go_on(100);
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        let outcome = scene.complete(&job, Completion::PointInTime);
        assert!(outcome.progress.active_bytes > 0, "{outcome:?}");
        assert_equal(&scene);
        scene.check_target();
    }
}

/// Scenario 12, with a pivot under load: the queues move to the target without a word to their guests.
#[test]
fn queues_follow_the_drive_over_a_pivot_in_both_modes() {
    for mode in [CopyModeChoice::WriteBlocking, CopyModeChoice::Background, CopyModeChoice::Auto] {
        let scene = Scene::new(SIZE, FILE, FILE);
        let guests = scene.queued_guests_with(&mixed());
        let job = scene.mirror(Scene::options_in(mode));
        until_status(&job, JobStatus::Ready);
        guests.go_on(50);
        let outcome = scene.complete(&job, Completion::Pivot);
        assert!(outcome.pause.unwrap() <= Scene::MAX_PAUSE, "{:?}", outcome.pause);
        let before = fs::read(&scene.source.content).unwrap();
        guests.go_on(100);
        assert_eq!(guests.failed(), 0);
        // A queue that was made after the pivot, too.
        let later = scene.queued_guests_with(&[GuestPlan::over(SIZE, 99)]);
        later.go_on(20);
        let _ = (guests.stop(), later.stop());
        scene.check_target();
        assert!(before == fs::read(&scene.source.content).unwrap(), "the old disk is left alone");
    }
}

/// A copy as of a moment under write-blocking writes.
#[test]
fn a_copy_as_of_a_moment_is_one_in_write_blocking_mode_too() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let guests = scene.queued_guests();
    let job = scene.mirror(active());
    until_status(&job, JobStatus::Ready);
    guests.go_on(100);
    let _ = scene.complete(&job, Completion::PointInTime);
    guests.go_on(50);
    let _ = guests.stop();
    let _ = scene.history.check_moment(&scene.target.content);
    scene.check_source();
}

/// Scenario 13: a byte inside a dirty chunk, while the job is slow.
#[test]
fn an_unaligned_write_into_a_dirty_chunk_is_not_lost() {
    let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
    let job = scene.mirror(MirrorOptions { speed_bytes_per_s: 256 * KIB, ..active() });
    until_status(&job, JobStatus::Running);
    let tracker = scene.drive.tracker();
    let disk = fs::File::options().write(true).open(&scene.source.path).unwrap();
    for at in [3, 64 * KIB + 4095, 512 * KIB + 1, MIB - 1] {
        let Admission::Go(token) = tracker.begin(ByteRange::at(at, 1), IoKind::Write).unwrap() else {
            panic!("nobody has closed the gate");
        };
        disk.write_all_at(b"!", at).unwrap();
        tracker.end(token, Ok(())).unwrap();
    }
    job.set_speed(0).unwrap();
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::PointInTime);
    assert_equal(&scene);
    assert_eq!(scene.target.bytes_at(MIB - 1, 1), b"!");
}

/// Scenario 14: three writes that overlap and a fourth over all of them, on a target that takes its time: no deadlock, no
/// difference.
#[test]
fn overlapping_writes_and_one_across_them_end_and_both_sides_agree() {
    needs!(Fuse);
    let scene = Scene::new(MIB, Medium::Memory, Medium::Faulty);
    let job = scene.mirror(active());
    until_status(&job, JobStatus::Ready);
    until_synced(&job);
    scene.target.control().set_write_latency(Duration::from_millis(20));
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    for round in 0..5u8 {
        let ranges = [(0, 64), (16, 64), (32, 64), (0, 128)];
        for (tag, (at, len)) in (0u8..).zip(ranges) {
            let mut buffer = AlignedBuf::new(len << 10, 4096).unwrap();
            buffer.fill(round * 4 + tag + 1);
            queue.write(at << 10, buffer, WriteFlags::default(), u64::from(tag)).unwrap();
            queue.submit().unwrap();
        }
        for _ in ranges {
            assert!(end_of(&mut queue));
        }
    }
    scene.target.control().set_write_latency(Duration::ZERO);
    until_synced(&job);
    let _ = scene.complete(&job, Completion::PointInTime);
    assert_equal(&scene);
}

/// Overlapping writes of several queues, over and over on the same few chunks.
#[test]
fn guests_that_overwrite_each_other_leave_both_sides_equal() {
    for zeroes_percent in [0, 40] {
        let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
        let plans = [1, 2, 3].map(|seed| GuestPlan {
            end_bytes: 128 * KIB,
            max_bytes: 64 * KIB,
            depth: 8,
            zeroes_percent,
            rest: Duration::ZERO,
            ..GuestPlan::over(MIB, seed)
        });
        let guests = scene.queued_guests_with(&plans);
        let job = scene.mirror(active());
        until_status(&job, JobStatus::Ready);
        guests.go_on(1000);
        let _ = guests.stop();
        let _ = scene.complete(&job, Completion::PointInTime);
        assert_equal(&scene);
        scene.check_target();
    }
}

/// Scenario 15: writers that never rest do not keep the copiers from the rest of the disk.
#[test]
fn copying_goes_on_under_a_saturated_source() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let plans = [1, 2].map(|seed| GuestPlan {
        end_bytes: 2 * MIB,
        rest: Duration::ZERO,
        depth: 16,
        ..GuestPlan::over(SIZE, seed)
    });
    let guests = scene.queued_guests_with(&plans);
    guests.go_on(100);
    let job = scene.mirror(active());
    until_status(&job, JobStatus::Ready);
    let outcome = scene.complete(&job, Completion::Pivot);
    assert!(outcome.pivoted);
    guests.go_on(50);
    let _ = guests.stop();
    scene.check_target();
}

/// Scenario 16: changed under load, in sync soon, and then what was written is on the target at once.
#[test]
fn a_job_changed_to_write_blocking_has_each_write_on_the_target_when_the_guest_hears_of_it() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let guests = scene.queued_guests();
    let job = scene.mirror(Scene::options_in(CopyModeChoice::Background));
    until_status(&job, JobStatus::Ready);
    assert!(!job.query().actively_synced);
    job.set_copy_mode(CopyMode::WriteBlocking).unwrap();
    until_synced(&job);
    let told = |mode| events_of(&job).iter().any(|event| event.what == EventKind::CopyMode(mode));
    until("it is told", || told(CopyMode::WriteBlocking));
    let _ = guests.stop();
    until_synced(&job);
    let copied = job.query().progress.copied_bytes;
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    for (at, byte) in [(0u64, 1u8), (100, 2), (777, 3), (SIZE / 4096 - 1, 4)].map(|(n, b)| (n * 4096, b)) {
        assert!(write(&mut queue, at, 4096, byte));
        assert_eq!(scene.target.bytes_at(at, 4096), [byte; 4096], "{at}");
    }
    // No copier had a hand in it.
    until_synced(&job);
    assert_eq!(job.query().progress.copied_bytes, copied);
    // And back.
    job.set_copy_mode(CopyMode::Background).unwrap();
    assert!(write(&mut queue, 4096, 4096, 9));
    until("the copiers come round", || scene.target.bytes_at(4096, 1) == [9]);
    let _ = scene.complete(&job, Completion::PointInTime);
    assert_equal(&scene);
}

/// Scenario 26: zeroes smaller than a chunk make no more of it zero, and no less.
#[test]
fn zeroes_smaller_than_a_chunk_stay_as_small_as_they_are() {
    for punch in [false, true] {
        let scene = Scene::new(MIB, FILE, FILE);
        let granularity = Some(Granularity::new(64 * KIB).unwrap());
        let job = scene.mirror(MirrorOptions { granularity, ..active() });
        until_status(&job, JobStatus::Ready);
        until_synced(&job);
        let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
        for (at, len) in [(4, 4), (60, 8), (192, 64), (252, 132)] {
            let range = ByteRange::at(at * KIB, len * KIB);
            queue.write_zeroes(range, ZeroFlags { punch, ..ZeroFlags::default() }, 1).unwrap();
            assert!(end_of(&mut queue));
        }
        queue.discard(ByteRange::at(512 * KIB, 12 * KIB), 2).unwrap();
        assert!(end_of(&mut queue));
        let _ = scene.complete(&job, Completion::PointInTime);
        assert_equal(&scene);
        for (at, is_zero) in [
            (0, false),
            (4, true),
            (8, false),
            (59, false),
            (67, true),
            (68, false),
            (383, true),
            (384, false),
        ] {
            let bytes = scene.target.bytes_at(at * KIB, 1024);
            assert_eq!(bytes.iter().all(|byte| *byte == 0), is_zero, "{at} KiB, punch: {punch}");
        }
    }
}

/// Own: a write that fails on the source has failed for the guest, and leaves the chunk dirty, for the target may have it.
#[test]
fn a_write_that_fails_on_the_source_leaves_no_difference() {
    needs!(Fuse);
    for mode in [CopyModeChoice::WriteBlocking, CopyModeChoice::Background] {
        let scene = Scene::new(MIB, Medium::Faulty, Medium::Memory);
        let job = scene.mirror(Scene::options_in(mode));
        until_status(&job, JobStatus::Ready);
        let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
        assert!(write(&mut queue, 8192, 4096, 1));
        let rule = Rule::on(Operation::Write, Effect::Error(EIO)).times(Times::Once);
        scene.source.control().add_rule(rule);
        assert!(!write(&mut queue, 8192, 4096, 2), "the guest hears of its own disk's errors");
        until("it is dealt with", || job.query().dirty_bytes == 0);
        let _ = scene.complete(&job, Completion::PointInTime);
        assert_eq!(scene.source.bytes_at(8192, 1), [1]);
        assert_equal(&scene);
    }
}

/// A target's error costs the guest nothing, and what the target missed is copied.
#[test]
fn a_write_that_fails_on_the_target_succeeds_for_the_guest() {
    needs!(Fuse);
    let scene = Scene::new(MIB, Medium::Memory, Medium::Faulty);
    let job = scene.mirror(MirrorOptions { on_target_error: ErrorPolicy::Ignore, ..active() });
    until_status(&job, JobStatus::Ready);
    until_synced(&job);
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    let rule = Rule::on(Operation::Write, Effect::Error(EIO)).times(Times::Count(2));
    scene.target.control().add_rule(rule);
    assert!(write(&mut queue, 8192, 4096, 2));
    until("the fault was met", || scene.target.control().counters().faults == 2);
    until_synced(&job);
    let _ = scene.complete(&job, Completion::PointInTime);
    assert_eq!(scene.target.bytes_at(8192, 1), [2]);
    assert_equal(&scene);
}

/// Own: copy mode auto says that it turns to write-blocking, and the job completes against writers that outrun it.
#[test]
fn auto_escalates_in_the_open_and_completes() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let plans = [1, 2].map(|seed| GuestPlan { depth: 8, ..GuestPlan::over(SIZE, seed) });
    let guests = scene.queued_guests_with(&plans);
    let max_pause = Some(Duration::from_millis(100));
    let job = scene.mirror(MirrorOptions { max_pause, speed_bytes_per_s: 8 * MIB, ..Scene::options() });
    let mut steps = Vec::new();
    until("it escalates", || {
        let new = events_of(&job);
        steps.extend(new.into_iter().filter_map(|event| match event.what {
            EventKind::Escalated { step, .. } => Some(step),
            _ => None,
        }));
        !steps.is_empty()
    });
    assert_eq!(steps[0], Escalation::WriteBlocking);
    assert_eq!(job.query().copy_mode, CopyMode::WriteBlocking);
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    guests.go_on(50);
    let _ = guests.stop();
    scene.check_target();
}

/// Guests of both kinds on one drive: what goes through a tracker is followed in the background whatever the mode.
#[test]
fn trackers_and_queues_share_a_drive() {
    let scene = Scene::new(SIZE, FILE, FILE);
    let (queued, tracked) = (scene.queued_guests(), scene.guests_with(&[GuestPlan::over(SIZE, 77)]));
    let job = scene.mirror(active());
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    queued.go_on(50);
    tracked.go_on(50);
    let _ = (queued.stop(), tracked.stop());
    scene.check_target();
}
