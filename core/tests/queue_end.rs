//! How a queue on the real ring ends under a live job, and what a host may rely on when it waits for its eventfd alone.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where it cannot go on")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, QueueOptions, WriteFlags};
use blkmirror_core::engine::{
    Cancel, Completion, CopyModeChoice, End, Engine, EngineOptions, EventKind, Job, LatencyBudget,
    MirrorOptions,
};
use blkmirror_core::units::MIB;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Writes under way when a queue is dropped, of 1 MiB each, so that the device has work for a while.
const WRITES: u64 = 48;

/// Two files of equal content on a file system with `O_DIRECT`.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("blkmirror-queue-end")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        for name in ["source", "target"] {
            File::create(dir.path().join(name)).unwrap().set_len(WRITES * MIB).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn drive(&self) -> Drive {
        Drive::new(Device::open_disk(&self.path("source")).unwrap()).unwrap()
    }
}

/// A buffer full of one byte.
fn filled(len: u64, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new(usize::try_from(len).unwrap(), 4096).unwrap();
    buf.fill(byte);
    buf
}

/// The target, as soon as the job before has let it go.
fn target(path: &Path) -> Device {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Device::open_target(path, TargetOptions::default()) {
            Ok(device) => return device,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until both sides are equal but for what a guest writes meanwhile.
fn until_ready(job: &Job) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::iter::from_fn(|| job.next_event()).any(|event| event.what == EventKind::Ready) {
        assert!(Instant::now() < deadline, "{:?}", job.query());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends writes all over the drive from a thread of its own, and gives the queue back with them under way; or drops it there.
fn send(drive: &Drive, byte: u8, drop_there: bool) -> Option<Queue> {
    let mut queue = drive.queue(QueueOptions { depth: 64, ..QueueOptions::default() }).unwrap();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for n in 0..WRITES {
                queue.write(n * MIB, filled(MIB, byte), WriteFlags::default(), n).unwrap();
            }
            queue.submit().unwrap();
            (!drop_there).then_some(queue)
        });
        sender.join().unwrap()
    })
}

/// *Mark after, before the ack*, for a queue that ends: no write lands after its mark.
#[test]
fn no_write_of_a_dropped_queue_lands_behind_the_back_of_its_job() {
    let files = Files::new();
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let drive = files.drive();
    for round in 0..6 {
        let options = MirrorOptions {
            latency_budget: LatencyBudget::Off,
            max_pause: None,
            copy_mode: CopyModeChoice::Background,
            ..MirrorOptions::default()
        };
        let job = engine.mirror(&drive, target(&files.path("target")), options).unwrap();
        until_ready(&job);
        let before = Instant::now();
        drop(send(&drive, round + 1, round % 4 == 3));
        assert!(before.elapsed() < Duration::from_secs(2), "a drop that hangs: {:?}", before.elapsed());
        let _ = job.complete(Completion::PointInTime);
        let outcome = job.wait();
        if outcome.end == End::Failed {
            // A device that is slower than the queue's patience: it may not complete, and no later job on this drive may.
            return eprintln!("round {round}: {:?}", outcome.error);
        }
        assert_eq!(outcome.end, End::Completed);
        // What still lands, if anything does, lands within this time.
        std::thread::sleep(Duration::from_millis(60));
        assert!(files.content("source") == files.content("target"), "round {round}: the sides differ");
    }
}

/// A file system in a file that can be frozen: what is written to it then hangs in the kernel, and cannot be cancelled.
struct Freezer(PathBuf);

impl Freezer {
    /// Mounted in `dir`; `None` where that is not allowed.
    fn new(dir: &Path) -> Option<Self> {
        let (image, mount) = (dir.join("image"), dir.join("mount"));
        File::create(&image).unwrap().set_len(32 * MIB).unwrap();
        fs::create_dir(&mount).unwrap();
        let [from, to] = [image.to_str()?, mount.to_str()?];
        (run("mkfs.ext4", &["-q", "-F", from]) && run("mount", &["-o", "loop", from, to]))
            .then_some(Self(mount))
    }

    /// Should the test hang or fail, nothing stays frozen.
    fn thaw_later(&self) {
        let mount = self.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(8));
            run("fsfreeze", &["-u", mount.to_str().unwrap()])
        });
    }

    fn freeze(&self, freeze: bool) -> bool {
        run("fsfreeze", &[if freeze { "-f" } else { "-u" }, self.0.to_str().unwrap()])
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.freeze(false);
        // Lazily, because files that are leaked on purpose stay open until this process ends.
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// Whether a command succeeds.
fn run(command: &str, args: &[&str]) -> bool {
    Command::new(command).args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// *Mark after, before the ack*, where the kernel does not let go: rather no job completes than one that is wrong.
#[test]
fn a_write_that_hangs_when_its_queue_is_dropped_can_never_be_missed_by_a_later_job() {
    for (hanging, drop_there) in [("source", false), ("source", true), ("target", false)] {
        let files = Files::new();
        let Some(freezer) = Freezer::new(files.dir.path()) else {
            return eprintln!("not tried: a file system cannot be mounted here");
        };
        let frozen = freezer.0.join(hanging);
        File::create(&frozen).unwrap().set_len(8 * MIB).unwrap();
        // Both sides as long as the one that hangs.
        let path = |name: &str| if name == hanging { frozen.clone() } else { files.path(name) };
        for name in ["source", "target"] {
            fs::write(path(name), vec![1; 8 << 20]).unwrap();
        }
        let drive = Drive::new(Device::open_disk(&path("source")).unwrap()).unwrap();
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let copy_mode =
            if hanging == "source" { CopyModeChoice::Background } else { CopyModeChoice::WriteBlocking };
        let options =
            MirrorOptions { copy_mode, latency_budget: LatencyBudget::Off, ..MirrorOptions::default() };
        let job = engine.mirror(&drive, target(&path("target")), options.clone()).unwrap();
        until_ready(&job);
        assert!(freezer.freeze(true));
        freezer.thaw_later();
        let before = Instant::now();
        // A thread whose requests hang in the kernel cannot exit either, so the sender stays until they are over.
        let (give, take) = std::sync::mpsc::channel();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        let sender = std::thread::spawn(move || {
            (0..4).for_each(|n| queue.write(n * MIB, filled(MIB, 2), WriteFlags::default(), n).unwrap());
            queue.submit().unwrap();
            // What no kernel thread has begun yet is cancelled well.
            std::thread::sleep(Duration::from_millis(50));
            give.send((!drop_there).then_some(queue)).unwrap();
            std::thread::park_timeout(Duration::from_secs(10));
        });
        drop(take.recv().unwrap());
        assert!(before.elapsed() < Duration::from_secs(2), "a drop that hangs: {:?}", before.elapsed());
        let outcome = job.wait_for(Duration::from_secs(5)).unwrap();
        assert_eq!(outcome.end, End::Failed, "{hanging}: {outcome:?}");
        if hanging == "target" {
            let refused = Device::open_target(&frozen, TargetOptions::default());
            assert!(refused.is_err(), "a late write could meet a new job's target");
        } else {
            // A new job may run, but never be sure, not even when the writes have landed.
            let second = files.path("second");
            File::create(&second).unwrap().set_len(8 * MIB).unwrap();
            let job = engine.mirror(&drive, target(&second), options).unwrap();
            until_ready(&job);
            let _ = job.complete(Completion::PointInTime);
            assert!(job.wait_for(Duration::from_millis(100)).is_none());
            assert!(freezer.freeze(false));
            assert!(job.wait_for(Duration::from_millis(200)).is_none());
            job.cancel(Cancel::Force).unwrap();
            assert_eq!(job.wait().end, End::Cancelled);
        }
        freezer.freeze(false);
        sender.thread().unpark();
        sender.join().unwrap();
    }
}

#[test]
fn a_queue_is_closed_when_nothing_is_under_way_and_given_back_before() {
    let files = Files::new();
    let drive = files.drive();
    drive.queue(QueueOptions::default()).unwrap().close(Duration::ZERO).unwrap();
    let queue = send(&drive, 1, false).unwrap();
    // Not its own thread, which alone can look.
    let mut queue = queue.close(Duration::from_millis(10)).unwrap_err();
    assert_eq!(queue.in_flight(), usize::try_from(WRITES).unwrap());
    assert_eq!(queue.poll().unwrap_err().kind(), ErrorKind::WrongState);
    drop(queue);
    let mut queue = drive.queue(QueueOptions { depth: 64, ..QueueOptions::default() }).unwrap();
    (0..WRITES).for_each(|n| queue.write(n * MIB, filled(MIB, 2), WriteFlags::default(), n).unwrap());
    queue.close(Duration::from_secs(20)).unwrap();
    assert!(files.content("source").iter().all(|&byte| byte == 2), "closed with writes under way");
}

/// Whether the queue's eventfd becomes readable within this time.
fn is_readable(queue: &Queue, within: Duration) -> bool {
    let fd = queue.eventfd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap(),
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

/// How often a loop without a request turns before its eventfd is readable no more.
fn turns_until_silent(queue: &mut Queue) -> usize {
    let silent = |queue: &mut Queue| {
        let silent = !is_readable(queue, Duration::from_millis(20));
        queue.poll().unwrap();
        silent
    };
    (0..100).take_while(|_| !silent(queue)).count()
}

#[test]
fn a_loop_that_never_reads_the_eventfd_neither_spins_nor_misses_anything() {
    let files = Files::new();
    let drive = files.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let (mut done, mut turns) = (0, 0);
    for n in 0..300 {
        match n % 3 {
            0 => queue.flush(n),
            1 => queue.read(n * 4096, filled(4096, 0), n),
            _ => queue.write(n * 4096, filled(4096, 7), WriteFlags::default(), n),
        }
        .unwrap();
        queue.submit().unwrap();
        while done <= n {
            assert!(
                is_readable(&queue, Duration::from_secs(10)),
                "request {n} has ended, and nobody said so"
            );
            queue.poll().unwrap();
            turns += 1;
            done += std::iter::from_fn(|| queue.pop()).map(|end| end.result.unwrap()).count() as u64;
        }
    }
    assert!(turns < 300 * 8, "{turns} turns for 300 requests");
    // With nothing under way it falls silent, and with it a loop that waits for it.
    assert!(turns_until_silent(&mut queue) < 5);
    // A wait takes the signals of what it collects, too.
    (0..20).for_each(|n| queue.write(n * 4096, filled(4096, 8), WriteFlags::default(), n).unwrap());
    queue.wait(20, None).unwrap();
    assert_eq!(std::iter::from_fn(|| queue.pop()).count(), 20);
    assert!(turns_until_silent(&mut queue) < 5);
}
