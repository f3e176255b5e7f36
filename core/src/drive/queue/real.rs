//! Queues on the real ring under a gate and a job, which a host cannot make without an engine.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::owned::Running;
use super::phase::Phase;
use super::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use crate::buffer::AlignedBuf;
use crate::device::{Device, TargetOptions};
use crate::drive::Drive;
use crate::drive::follower::Follower;
use crate::mirror::{Bitmaps, CopyModeChoice, DeviceShape, Geometry, MirrorOptions, Share, SyncMode};
use crate::ring::Wake;
use crate::units::{ByteRange, Chunk, ChunkRange, Granularity, KIB, bytes_usize};

const DISK: u64 = 4096 * KIB;

/// Files in memory that go away with this.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("blkmirror-queue").tempdir_in("/dev/shm").unwrap();
        for name in ["disk", "target"] {
            File::create(dir.path().join(name)).unwrap().set_len(DISK).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn drive(&self) -> Drive {
        Drive::new(Device::open_disk(&self.path("disk")).unwrap()).unwrap()
    }

    /// A job in write-blocking mode whose sides are equal.
    fn follower(&self) -> Arc<Follower<Device>> {
        let options = MirrorOptions {
            granularity: Granularity::new(64 * KIB).ok(),
            sync: SyncMode::None,
            copy_mode: CopyModeChoice::WriteBlocking,
            ..MirrorOptions::default()
        };
        let shape = |name: &str| DeviceShape {
            name: name.into(),
            size_bytes: DISK,
            align_bytes: 512,
            max_request_bytes: 1024 * KIB,
            queue_depth: Some(64),
            has_holes: true,
            reads_as_zeroes: false,
            writes_zeroes: false,
        };
        let geometry = Geometry::new(&options, &shape("disk"), &shape("target"), 1).unwrap();
        let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
        let share = Arc::new(Share::new(geometry, &options, bitmaps, false, 1));
        let target = Device::open_target(&self.path("target"), TargetOptions::default()).unwrap();
        Arc::new(Follower { share, target: Arc::new(target), home: Arc::new(Home::default()) })
    }
}

/// A job's home that nobody lives in.
#[derive(Debug, Default)]
struct Home(AtomicU64);

impl Wake for Home {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn filled(len: u64, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new(bytes_usize(len), 4096).unwrap();
    buf.fill(byte);
    buf
}

/// Takes all completions.
fn drain(queue: &mut Queue) -> usize {
    std::iter::from_fn(|| queue.pop()).map(|done| done.result.unwrap()).count()
}

#[test]
fn what_waited_for_the_gate_goes_on_while_the_host_sleeps_on_its_eventfd() {
    let files = Files::new();
    let drive = files.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    drive.core().close_gate();
    (0..8).for_each(|n| queue.write(n * 4096, filled(4096, 3), WriteFlags::default(), n).unwrap());
    queue.poll().unwrap();
    queue.wait(1, Some(Duration::from_millis(20))).unwrap();
    assert_eq!((queue.in_flight(), queue.held(), drain(&mut queue)), (8, 8, 0), "the gate is closed");
    assert!(!queue.drain(Some(Duration::from_millis(20))).unwrap(), "what waits for the gate is under way");
    assert!(drive.core().is_quiet(false));
    let core = Arc::clone(drive.core());
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        core.open_gate();
    });
    let mut done = 0;
    while done < 8 {
        let fd = queue.eventfd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap(), 1, "not woken");
        rustix::io::read(fd, &mut [0; 8]).unwrap();
        queue.poll().unwrap();
        done += drain(&mut queue);
    }
    opener.join().unwrap();
    assert_eq!(queue.held(), 0);
    assert!(queue.drain(None).unwrap());
    assert!(files.content("disk")[..8 * 4096].iter().all(|&b| b == 3));
}

/// Otherwise a host that has refused a request itself would not hear of that as long as another one hangs.
#[test]
fn a_wait_ends_with_what_the_host_has_beside() {
    let files = Files::new();
    let drive = files.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let (waker, beside) = (queue.waker(), AtomicU64::new(0));
    waker.wake();
    drive.core().close_gate();
    queue.write(0, filled(4096, 3), WriteFlags::default(), 1).unwrap();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(30));
                beside.fetch_add(1, Ordering::Relaxed);
                waker.wake();
            }
        });
        let count = || usize::try_from(beside.load(Ordering::Relaxed)).unwrap();
        queue.wait_beside(2, Some(Duration::from_secs(10)), count).unwrap();
    });
    assert!(begin.elapsed() < Duration::from_secs(5), "slept over it");
    drive.core().open_gate();
    assert!(queue.drain(None).unwrap());
    assert_eq!(drain(&mut queue), 1);
}

/// Otherwise a bug that was caught once would strike again at the end, and make the end of the queue the end of the host.
#[test]
fn a_queue_is_abandoned_without_a_look_at_its_lists() {
    let files = Files::new();
    let drive = files.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    queue.write(0, filled(4096, 3), WriteFlags::default(), 1).unwrap();
    queue.wait(1, None).unwrap();
    (0..4).for_each(|n| queue.write(n * 4096, filled(4096, 5), WriteFlags::default(), n).unwrap());
    // As a bug may leave it: queued in the ring and never sent, with a phase that it cannot be in.
    let Running { core, ring, .. } = &mut **queue.running.as_mut().unwrap();
    core.send(ring.ring());
    core.table.get(1).unwrap().phase = Phase::Over;
    let begin = Instant::now();
    queue.abandon();
    drop(queue);
    assert!(
        files.content("disk")[..4096].iter().all(|&byte| byte == 3),
        "sent by a queue that was abandoned"
    );
    drive.close().unwrap();
    // The kernel has let go of everything, or does in a moment.
    while let Err(e) = Device::open_target(&files.path("disk"), TargetOptions::default()) {
        assert!(begin.elapsed() < Duration::from_secs(5), "{e}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn write_blocking_leaves_both_sides_equal_wherever_nothing_is_dirty() {
    for stable_buffers in [false, true] {
        let files = Files::new();
        let drive = files.drive();
        let mut queue = drive.queue(QueueOptions { stable_buffers, ..QueueOptions::default() }).unwrap();
        let follower = files.follower();
        let mut seed = 0x9e37_79b9_u64;
        let mut chance = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        for n in 0..4000_u64 {
            if n == 100 {
                drive.core().attach(Arc::clone(&follower)).unwrap();
            }
            let (at, len) = (chance(DISK / 512 - 64) * 512, (chance(8) + 1) * 4096);
            let fua = chance(8) == 0;
            match chance(12) {
                0 => queue.write_zeroes(
                    ByteRange::at(at, len),
                    ZeroFlags { punch: fua, ..ZeroFlags::default() },
                    n,
                ),
                1 if n > 2000 => queue.discard(ByteRange::at(at, len), n),
                2 => queue.read(at, filled(len, 0), n),
                _ => queue.write(
                    at,
                    filled(len, u8::try_from(n % 255).unwrap()),
                    WriteFlags { fua, ..WriteFlags::default() },
                    n,
                ),
            }
            .unwrap();
            if n == 99 || queue.in_flight() > 60 {
                // Before the job there were writes, so it starts with equal sides only if those have ended.
                queue.wait(if n == 99 { usize::MAX } else { 20 }, None).unwrap();
                drain(&mut queue);
            }
            if n == 99 {
                std::fs::write(files.path("target"), files.content("disk")).unwrap();
            }
        }
        queue.wait(usize::MAX, None).unwrap();
        drain(&mut queue);
        let (disk, target) = (files.content("disk"), files.content("target"));
        let mut clean = 0;
        for chunk in 0..follower.share.dirty.chunks() {
            if !follower.share.dirty.test(Chunk(chunk)) {
                let range =
                    follower.share.geometry.granularity.bytes_of(ChunkRange::new(chunk, chunk + 1), DISK);
                let part = bytes_usize(range.start())..bytes_usize(range.end());
                assert!(disk[part.clone()] == target[part], "chunk {chunk}");
                clean += 1;
            }
        }
        println!("{clean} chunks are clean");
        drive.core().detach();
        queue.poll().unwrap();
        drop(follower);
        // The queue has let the target go: it can be opened exclusively again.
        Device::open_target(&files.path("target"), TargetOptions::default()).unwrap();
    }
}
