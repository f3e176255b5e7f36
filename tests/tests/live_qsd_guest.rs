//! Faults from somebody else's block layer on the real ring, met by a guest: its own disk, served by `qemu-storage-daemon`, refuses
//! its writes and flushes while a job follows. That is the guest's business and not the job's: the guest hears of it, and the
//! job, which may not know how much of a failed write was done, copies the place again and goes on.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use blkmirror_testkit::{KIB, MIB, compare, needs};
use blkmirror_tests::api::buffer::AlignedBuf;
use blkmirror_tests::api::drive::queue::{Queue, QueueOptions, WriteFlags};
use blkmirror_tests::api::drive::{Admission, IoKind};
use blkmirror_tests::api::engine::{
    Completion, CopyModeChoice, EventKind, IoStatus, Job, JobStatus, MirrorOptions,
};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{
    EIO, ENOSPC, History, Inject, Medium, Place, Scene, Served, events_of, until_status,
};

/// Size of the disks here.
const SIZE: u64 = MIB;
/// Where it fails.
const WRONG: u64 = 512 * KIB;
/// Before the job is ready, and after.
const WHEN: [bool; 2] = [false, true];
/// Guest writes followed in the background, and carried to both sides.
const MODES: [CopyModeChoice; 2] = [CopyModeChoice::Background, CopyModeChoice::WriteBlocking];

/// A job whose source gets a fault.
struct Trouble {
    /// The disks.
    scene: Scene,
    /// The job.
    job: Job,
    /// The guest.
    queue: Queue,
}

impl Trouble {
    /// A job that is ready, or as slow as can be so that it is not, and a source that fails from now on.
    fn begin(iotype: &'static str, errno: i32, mode: CopyModeChoice, after_ready: bool) -> Self {
        let at_bytes = (iotype == "write").then_some(WRONG);
        let fault = Inject { iotype, errno, at_bytes, once: false };
        let source = Place::served(Served::start(SIZE, &[fault], |path| History::fill(path, SIZE)));
        let scene = Scene::between(SIZE, source, Place::new(Medium::Memory, SIZE));
        let queue = scene.drive.queue(QueueOptions::default()).unwrap();
        let job = scene.mirror(MirrorOptions {
            granularity: Some(Granularity::new(64 * KIB).unwrap()),
            speed_bytes_per_s: if after_ready { 0 } else { 64 * KIB },
            ..Scene::options_in(mode)
        });
        if after_ready {
            until_status(&job, JobStatus::Ready);
        }
        scene.source.server().fail();
        Self { scene, job, queue }
    }

    /// A write of 4 KiB of `byte` at `at`, to its end.
    fn write(&mut self, at: u64, byte: u8, fua: bool) -> Result<(), i32> {
        let mut buffer = AlignedBuf::new(4096, 4096).unwrap();
        buffer.fill(byte);
        self.queue.write(at, buffer, WriteFlags { fua, ..WriteFlags::default() }, 7).unwrap();
        self.ended()
    }

    /// A flush, to its end.
    fn flush(&mut self) -> Result<(), i32> {
        self.queue.flush(8).unwrap();
        self.ended()
    }

    /// What became of the one request that is under way.
    fn ended(&mut self) -> Result<(), i32> {
        self.queue.wait(1, Some(Duration::from_secs(10))).unwrap();
        self.queue.pop().unwrap().result.map(drop).map_err(|error| error.kind().errno())
    }

    /// The job has heard nothing of the guest's errors, and completes with a target that equals the source.
    #[track_caller]
    fn completes(self, what: &str) {
        let Self { scene, job, .. } = self;
        job.set_speed(0).unwrap();
        until_status(&job, JobStatus::Ready);
        let outcome = scene.complete(&job, Completion::PointInTime);
        assert!(outcome.error.is_none(), "{what}");
        assert_eq!(job.query().io_status, IoStatus::Ok, "{what}");
        let errors = events_of(&job).iter().any(|event| matches!(event.what, EventKind::Error { .. }));
        assert!(!errors && job.query().last_error.is_none(), "{what}");
        let difference = compare::first_difference(&scene.source.content, &scene.target.content).unwrap();
        assert_eq!(difference, None, "{what}");
    }

    /// The byte of the source at `at`, past all faults.
    fn byte_at(&self, at: u64) -> u8 {
        let mut byte = [0];
        File::open(&self.scene.source.content).unwrap().read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }
}

/// A guest that is told that its flush succeeded relies on it, so the source's failure must reach it; and the job, which promises
/// nothing about the source, must not die of it.
#[test]
fn a_flush_of_the_source_that_fails_is_the_guests_error_and_not_the_jobs() {
    needs!(Fuse, QemuStorageDaemon, Root);
    for mode in MODES {
        for after_ready in WHEN {
            let what = format!("{mode:?}, after ready: {after_ready}");
            let mut trouble = Trouble::begin("flush", EIO, mode, after_ready);
            assert_eq!(trouble.write(0, 1, false), Ok(()), "{what}");
            assert_eq!(trouble.flush(), Err(EIO), "{what}");
            // A write that is durable at its end contains one.
            assert_eq!(trouble.write(8192, 2, true), Err(EIO), "{what}");
            assert_eq!(trouble.write(WRONG, 3, false), Ok(()), "{what}");
            trouble.completes(&what);
        }
    }
}

/// The same for a host that does its own I/O and only tells of it.
#[test]
fn a_failed_flush_that_a_host_tells_of_does_not_concern_the_job() {
    needs!(Fuse, QemuStorageDaemon, Root);
    for after_ready in WHEN {
        let trouble = Trouble::begin("flush", EIO, CopyModeChoice::Background, after_ready);
        let tracker = trouble.scene.drive.tracker();
        let disk = File::options().write(true).open(&trouble.scene.source.path).unwrap();
        let write = tracker.begin(ByteRange::at(4096, 4096), IoKind::Write).unwrap();
        let Admission::Go(write) = write else { panic!("the gate is closed") };
        disk.write_all_at(&[9; 4096], 4096).unwrap();
        tracker.end(write, Ok(())).unwrap();
        let Admission::Go(flush) = tracker.begin(ByteRange::default(), IoKind::Flush).unwrap() else {
            panic!("the gate is closed")
        };
        let errno = disk.sync_data().unwrap_err().raw_os_error().unwrap();
        assert_eq!(errno, EIO);
        tracker.end(flush, Err(errno)).unwrap();
        trouble.completes(&format!("after ready: {after_ready}"));
    }
}

/// A write that the guest's own disk refuses has failed for the guest, whatever became of its copy on the target: were its place
/// not copied again, the target of a write-blocking job would hold what the source never got.
#[test]
fn a_write_that_the_source_refuses_is_the_guests_error_and_leaves_no_difference() {
    needs!(Fuse, QemuStorageDaemon, Root);
    for errno in [EIO, ENOSPC] {
        for mode in MODES {
            for after_ready in WHEN {
                let what = format!("errno {errno}, {mode:?}, after ready: {after_ready}");
                let mut trouble = Trouble::begin("write", errno, mode, after_ready);
                assert_eq!(trouble.write(WRONG, 1, false), Err(errno), "{what}");
                assert_eq!(trouble.write(WRONG + 4096, 2, false), Ok(()), "{what}");
                assert_eq!(trouble.write(WRONG, 3, true), Err(errno), "{what}");
                assert_eq!(trouble.byte_at(WRONG + 4096), 2, "{what}");
                assert_ne!(trouble.byte_at(WRONG), 3, "{what}");
                trouble.completes(&what);
            }
        }
    }
}
