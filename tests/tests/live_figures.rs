//! What a query says while a job copies and follows: each figure is held against what is known of the guest and of the limit.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{KIB, MIB, needs};
use blkmirror_tests::api::drive::queue::{QueueOptions, ZeroFlags};
use blkmirror_tests::api::engine::{
    Completion, CopyMode, CopyModeChoice, ErrorAction, ErrorPolicy, IoStatus, Job, JobInfo, JobStatus,
    MirrorOptions, Side,
};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{EIO, GuestPlan, Medium, Scene, until, until_status};
use nix::fcntl::{FallocateFlags, fallocate};

/// Size of the disks here.
const SIZE: u64 = 32 * MIB;
/// Bytes per second that the copiers may copy at first.
const SPEED: u64 = 8 * MIB;
/// A part of the source that was never written.
const HOLE: ByteRange = ByteRange::new(24 * MIB, 32 * MIB);
/// Bytes of a chunk, and of a guest's write.
const CHUNK: u64 = 4 * KIB;

/// A guest that writes one chunk at a time in the first MiB, at a pace that it can keep.
fn plan() -> GuestPlan {
    GuestPlan { max_bytes: CHUNK, ..GuestPlan::over(MIB, 5) }.resting(Duration::from_millis(2))
}

/// Options of a job under the limit that follows in background.
fn limited() -> MirrorOptions {
    MirrorOptions {
        granularity: Granularity::new(CHUNK).ok(),
        speed_bytes_per_s: SPEED,
        // A file in memory takes written zeroes as data.
        zero_detect: true,
        ..Scene::options_in(CopyModeChoice::Background)
    }
}

/// Asserts that `value` lies within `low` and `high` percent of `of`.
#[track_caller]
fn assert_near(what: &str, value: u64, of: u64, [low, high]: [u64; 2], info: &JobInfo) {
    assert!(value * 100 >= of * low && value * 100 <= of * high, "{what}: {value} beside {of}; {info:?}");
}

/// What must hold whenever it is asked.
#[track_caller]
fn assert_sound(info: &JobInfo) {
    let p = &info.progress;
    assert_eq!(info.len_bytes, info.offset_bytes + info.dirty_bytes, "{info:?}");
    assert!(info.dirty_bytes <= SIZE && p.in_flight_bytes <= SIZE, "{info:?}");
    assert!(p.recopied_bytes <= p.copied_bytes && p.done_bytes <= SIZE, "{info:?}");
    assert_eq!(info.offset_bytes, p.copied_bytes + p.zeroed_bytes + p.skipped_bytes + p.active_bytes);
}

/// Waits until nothing is left and nothing moves any more.
#[track_caller]
fn settled(job: &Job) -> JobInfo {
    let mut last = job.query();
    until("nothing is left", || {
        thread::sleep(Duration::from_millis(20));
        let before = std::mem::replace(&mut last, job.query());
        let bytes = |info: &JobInfo| (info.offset_bytes, info.dirty_bytes);
        last.dirty_bytes == 0 && bytes(&before) == bytes(&last)
    });
    last
}

/// The first pass, under a limit: nothing but the copiers decides about these figures.
fn first_pass(job: &Job) {
    until("it has copied for a while", || job.query().progress.copied_bytes >= SPEED / 2);
    let (begun, before) = (Instant::now(), job.query());
    let mut in_flight = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        let info = job.query();
        assert_sound(&info);
        in_flight = in_flight.max(info.progress.in_flight_bytes);
        thread::sleep(Duration::from_millis(1));
    }
    let (info, time) = (job.query(), begun.elapsed());
    assert_eq!(info.status, JobStatus::Running, "{info:?}");
    let copied = info.progress.copied_bytes - before.progress.copied_bytes;
    let per_second = u64::try_from(u128::from(copied) * 1000 / time.as_millis()).unwrap();
    assert_near("copied by the clock", per_second, SPEED, [50, 115], &info);
    assert_near("copy rate", info.copy_rate_bytes_per_s, per_second, [60, 150], &info);
    assert!(in_flight > 0, "nothing was ever in flight: {info:?}");
    assert!(before.dirty_bytes - info.dirty_bytes >= copied / 2, "{before:?} {info:?}");
    let left = Duration::from_millis(info.dirty_bytes * 1000 / info.copy_rate_bytes_per_s);
    let eta = info.eta.unwrap();
    assert!(eta >= left / 2 && eta <= left * 3, "{left:?}: {info:?}");
    assert_eq!((info.last_error, info.io_status), (None, IoStatus::Ok));
    assert!(!info.actively_synced && !info.completing && !info.fits_now, "{info:?}");
}

/// A figure that is off by a factor makes a host give up a job that would end, or wait for one that does not.
#[test]
fn the_figures_of_a_query_are_those_of_the_guest_and_of_the_limit() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let source = File::options().write(true).open(&scene.source.content).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (i64::try_from(HOLE.start()).unwrap(), i64::try_from(HOLE.len()).unwrap());
    fallocate(&source, punch, start, len).unwrap();
    let job = scene.mirror(limited());
    first_pass(&job);
    job.set_speed(0).unwrap();
    until_status(&job, JobStatus::Ready);
    let done = settled(&job);
    assert_sound(&done);
    // A hole is not sent, whether the target had to be told of it or not.
    assert_eq!(done.progress.copied_bytes, SIZE - HOLE.len(), "{done:?}");
    assert_eq!(done.progress.zeroed_bytes + done.progress.skipped_bytes, HOLE.len(), "{done:?}");
    assert_eq!(done.progress.recopied_bytes, 0, "{done:?}");
    follows(&scene, &job, &done);
    zeroes(&scene, &job);
    active(&scene, &job);
    let outcome = scene.complete(&job, Completion::PointInTime);
    assert!(outcome.pause.unwrap() <= Scene::MAX_PAUSE, "{outcome:?}");
    let [source, target] = [&scene.source, &scene.target].map(|place| std::fs::read(&place.content).unwrap());
    assert!(source == target, "the disks differ");
}

/// A guest of a known rate in background mode.
fn follows(scene: &Scene, job: &Job, done: &JobInfo) {
    let guests = scene.guests_with(&[plan()]);
    guests.go_on(10);
    thread::sleep(Duration::from_secs(1));
    let (begun, written) = (Instant::now(), guests.written());
    let mut dirty_rates = Vec::new();
    while begun.elapsed() < Duration::from_millis(1500) {
        thread::sleep(Duration::from_millis(50));
        let info = job.query();
        assert_sound(&info);
        assert!(info.predicted_pause.is_some_and(|pause| !pause.is_zero()), "{info:?}");
        dirty_rates.push(info.dirty_rate_bytes_per_s);
    }
    let (info, time) = (job.query(), begun.elapsed());
    let bytes = (guests.written() - written) * CHUNK;
    let per_second = u64::try_from(u128::from(bytes) * 1000 / time.as_millis()).unwrap();
    let mean = dirty_rates.iter().sum::<u64>() / u64::try_from(dirty_rates.len()).unwrap();
    // A chunk that is written twice before it is copied turns dirty once.
    assert_near("dirty rate", mean, per_second, [40, 130], &info);
    assert_near("copy rate", info.copy_rate_bytes_per_s, per_second, [30, 170], &info);
    assert!(info.fits_now && info.predicted_pause.unwrap() <= Scene::MAX_PAUSE, "{info:?}");
    let all = guests.stop() * CHUNK;
    let p = settled(job).progress;
    let again = p.copied_bytes - done.progress.copied_bytes;
    assert!(again > 0 && again <= all, "{again} of {all}: {p:?}");
    assert_eq!(p.recopied_bytes, again, "all of it had been copied before: {p:?}");
}

/// Zeroes that the guest writes where data were are not sent as data.
fn zeroes(scene: &Scene, job: &Job) {
    let before = job.query().progress;
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    let flags = ZeroFlags { punch: true, ..ZeroFlags::default() };
    queue.write_zeroes(ByteRange::at(4 * MIB, MIB), flags, 1).unwrap();
    queue.wait(1, Some(Duration::from_secs(10))).unwrap();
    assert!(queue.pop().unwrap().result.is_ok());
    let after = settled(job).progress;
    assert_eq!(after.zeroed_bytes - before.zeroed_bytes, MIB, "{after:?}");
    assert_eq!(after.copied_bytes, before.copied_bytes, "{after:?}");
}

/// A guest whose writes go to both sides.
fn active(scene: &Scene, job: &Job) {
    let before = job.query().progress;
    assert_eq!(before.active_bytes, 0);
    assert!(!job.query().actively_synced, "in background mode nothing is");
    job.set_copy_mode(CopyMode::WriteBlocking).unwrap();
    until("source and target are in sync", || job.query().actively_synced);
    let guests = scene.queued_guests_with(&[plan()]);
    guests.go_on(200);
    let info = job.query();
    assert_eq!(info.copy_mode, CopyMode::WriteBlocking);
    assert_sound(&info);
    let all = guests.stop() * CHUNK;
    let end = settled(job);
    assert!(end.actively_synced, "{end:?}");
    let p = end.progress;
    let (active, copied) = (p.active_bytes, p.copied_bytes - before.copied_bytes);
    assert!(active >= all / 2 && active <= all, "{active} of {all}: {p:?}");
    // What did not go to both sides was copied.
    assert!(active + copied >= all, "{active} and {copied} of {all}: {p:?}");
}

/// An error that a query does not show, or shows in the wrong place, sends the host to the wrong disk.
#[test]
fn the_last_error_is_there_with_its_offset_when_the_job_has_gone_on() {
    needs!(Fuse);
    const WRONG: u64 = 5 * MIB + 777;
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Faulty);
    let rule = Rule::on(Operation::Write, Effect::Error(EIO)).within(WRONG..WRONG + 1).times(Times::Once);
    scene.target.control().add_rule(rule);
    let options = MirrorOptions { on_target_error: ErrorPolicy::Ignore, speed_bytes_per_s: 0, ..limited() };
    let job = scene.mirror(options);
    until_status(&job, JobStatus::Ready);
    let info = job.query();
    let error = info.last_error.unwrap();
    assert_eq!((error.side, error.errno, error.action), (Side::Target, EIO, ErrorAction::Ignore));
    assert!(
        error.range.start() <= WRONG && WRONG < error.range.end() && error.range.len() <= MIB,
        "{error:?}"
    );
    assert!(error.time_ns > 0 && info.progress.errors == 1, "{info:?}");
    assert_eq!(info.io_status, IoStatus::Ok, "an error that is ignored stops nothing");
    let _ = scene.complete(&job, Completion::PointInTime);
}
