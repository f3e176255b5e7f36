//! Live jobs on real files: a guest writes through a tracker while its disk is mirrored, and the target is right at the end.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "this is a test")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::{Admission, Drive, IoKind, Tracker};
use blkmirror_core::engine::{
    Cancel, Completion, End, Engine, EngineOptions, EventKind, Job, JobStatus, MirrorOptions,
};
use blkmirror_core::units::{ByteRange, MIB};

/// Between two writes of a guest that leaves the copy some room.
const REST: Duration = Duration::from_micros(500);

/// The disk.
const BYTES: u64 = 64 * MIB;

/// A directory in memory: a flush of a busy disk may take longer than the pause has room for, which is not what is tested here.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("blkmirror-live").tempdir_in("/dev/shm").unwrap()
}

/// Source and target of [`BYTES`], the source full of data.
fn pair(dir: &Path) -> [std::path::PathBuf; 2] {
    let (source, target) = (dir.join("source"), dir.join("target"));
    fs::write(&source, vec![0xa5; usize::try_from(BYTES).unwrap()]).unwrap();
    File::create(&target).unwrap().set_len(BYTES).unwrap();
    [source, target]
}

/// Writes 4 KiB blocks all over the disk until it is told to stop, to the device that the drive stands on; returns how many, and
/// which it wrote to the target.
fn guest(
    disks: &[File; 2],
    tracker: &Tracker,
    stop: &AtomicBool,
    seed: u64,
    rest: Duration,
) -> (u64, HashSet<u64>) {
    let mut block = AlignedBuf::new(4096, 4096).unwrap();
    let (mut x, mut writes, mut moved) = (seed | 1, 0u64, HashSet::new());
    while !stop.load(Ordering::Relaxed) {
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let at = (x >> 33) % (BYTES / 4096) * 4096;
        let token = match tracker.begin(ByteRange::at(at, 4096), IoKind::Write).unwrap() {
            Admission::Go(token) => token,
            Admission::Held => {
                assert!(tracker.wait_open(Duration::from_secs(10)), "the gate stays closed");
                continue;
            }
        };
        block.fill(u8::try_from(x >> 56).unwrap());
        let disk = &disks[usize::try_from(token.device_number()).unwrap()];
        disk.write_all_at(&block, at).unwrap();
        tracker.end(token, Ok(())).unwrap();
        writes += 1;
        if token.device_number() == 1 {
            moved.insert(at / 4096);
        }
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
    }
    (writes, moved)
}

/// Tells the writers to stop, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a state. Beside guests without rest the job goes through all that it can do about a remainder that does not shrink,
/// and gives each a second or two to show, more on a busy machine.
fn until(job: &Job, status: JobStatus) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while job.status() != status {
        assert!(Instant::now() < deadline, "{:?} does not become {status}", job.query());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Opens a file as a guest's VMM does.
fn direct(path: &Path) -> File {
    File::options().read(true).write(true).custom_flags(0x4000).open(path).unwrap()
}

/// Runs a job under a guest, ends it, and returns the paths.
fn mirror_under_writes(dir: &Path, completion: Completion, rest: Duration) -> [std::path::PathBuf; 2] {
    let paths = pair(dir);
    let drive = Drive::new(Device::open_source(&paths[0]).unwrap()).unwrap();
    let target = Device::open_target(&paths[1], TargetOptions::default()).unwrap();
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let disks = [direct(&paths[0]), direct(&paths[1])];
    let (stop, tracker) = (AtomicBool::new(false), drive.tracker());
    std::thread::scope(|s| {
        let writers = [1, 2].map(|seed| {
            let (disks, tracker, stop) = (&disks, tracker.clone(), &stop);
            s.spawn(move || guest(disks, &tracker, stop, seed, rest))
        });
        let end = Stop(&stop);
        let job = engine.mirror(&drive, target, MirrorOptions::default()).unwrap();
        until(&job, JobStatus::Ready);
        std::thread::sleep(Duration::from_millis(200));
        job.complete(completion).unwrap();
        let outcome = job.wait_for(Duration::from_secs(20)).unwrap_or_else(|| panic!("{:?}", job.query()));
        assert_eq!(outcome.end, End::Completed, "{:?}", outcome.error);
        assert!(outcome.pause.unwrap() <= Duration::from_millis(50), "{:?}", outcome.pause);
        if completion == Completion::Pivot {
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(drive.device_number(), 1);
        }
        drop(end);
        let done = writers.map(|w| w.join().unwrap());
        assert!(done.iter().map(|(writes, _)| writes).sum::<u64>() > 100);
        if completion == Completion::Pivot {
            let moved: HashSet<u64> = done.into_iter().flat_map(|(_, moved)| moved).collect();
            assert!(!moved.is_empty(), "nobody wrote to the target");
            let [source, target] = [&paths[0], &paths[1]].map(|path| fs::read(path).unwrap());
            let differs =
                source.chunks(4096).zip(target.chunks(4096)).zip(0u64..).filter(|((a, b), _)| a != b);
            let wrong: Vec<u64> =
                differs.map(|(_, block)| block).filter(|block| !moved.contains(block)).collect();
            assert!(wrong.is_empty(), "{} blocks differ: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        }
        let statuses: Vec<_> = std::iter::from_fn(|| job.next_event())
            .filter_map(|e| match e.what {
                EventKind::Status { to, .. } => Some(to),
                _ => None,
            })
            .collect();
        use JobStatus as S;
        assert_eq!(statuses, [S::Running, S::Ready, S::Waiting, S::Pending, S::Concluded]);
    });
    paths
}

#[test]
fn a_copy_as_of_the_switch_over_is_left_alone_by_later_writes() {
    let dir = scratch();
    let [_, target] = mirror_under_writes(dir.path(), Completion::PointInTime, REST);
    let before = fs::read(&target).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(before == fs::read(&target).unwrap());
}

#[test]
fn verbs_are_refused_by_name_where_the_state_forbids_them() {
    let dir = scratch();
    let [source, target] = pair(dir.path());
    let drive = Drive::new(Device::open_source(&source).unwrap()).unwrap();
    let target = Device::open_target(&target, TargetOptions::default()).unwrap();
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let options = MirrorOptions { speed_bytes_per_s: 1 << 20, ..MirrorOptions::default() };
    let job = engine.mirror(&drive, target, options).unwrap();
    until(&job, JobStatus::Running);
    let early = job.complete(Completion::Pivot).unwrap_err().to_string();
    assert!(early.contains("running") && early.contains("complete"), "{early}");
    job.pause().unwrap();
    until(&job, JobStatus::Paused);
    assert!(job.pause().unwrap_err().to_string().contains("paused already"));
    job.set_speed(0).unwrap();
    job.resume().unwrap();
    until(&job, JobStatus::Ready);
    job.cancel(Cancel::Force).unwrap();
    assert_eq!(job.wait().end, End::Cancelled);
    let late = job.pause().unwrap_err().to_string();
    assert!(late.contains("concluded"), "{late}");
    job.dismiss().unwrap();
    assert!(job.dismiss().is_err());
}

#[test]
fn after_a_pivot_the_guest_goes_on_on_a_target_that_equals_the_source_of_that_moment() {
    let dir = scratch();
    let _ = mirror_under_writes(dir.path(), Completion::Pivot, REST);
}

/// A host that does its own I/O, and writes faster than anybody copies: nothing but holding it now and then helps.
#[test]
fn a_tracked_guest_that_writes_without_end_is_held_in_bounds_until_the_switch_over_fits() {
    let dir = scratch();
    let _ = mirror_under_writes(dir.path(), Completion::Pivot, Duration::ZERO);
}
