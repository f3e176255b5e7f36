//! Bitmaps that record, on real files and loop devices: queues in every mode and trackers, over a switch-over and back, and under
//! a queue that is dropped with writes under way.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "this is a test")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::queue::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_core::drive::{Admission, Bitmap, Drive, IoKind};
use blkmirror_core::engine::{
    Cancel, Completion, CopyModeChoice, End, Engine, EngineOptions, Job, JobStatus, LatencyBudget,
    MirrorOptions, SyncMode,
};
use blkmirror_core::units::{ByteRange, Granularity, KIB, MIB};

/// The disks.
const BYTES: u64 = 16 * MIB;
/// What guests write.
const BLOCK: u64 = 4 * KIB;
/// Where they write: below this.
const WRITTEN: u64 = BYTES / 2;

/// Two disks, and what to undo at the end.
struct Disks {
    dir: tempfile::TempDir,
    loops: Vec<PathBuf>,
}

impl Disks {
    /// Two files on a file system with `O_DIRECT`, the first one full of data.
    fn files() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("blkmirror-recording")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        fs::write(dir.path().join("0"), vec![0xa5; usize::try_from(BYTES).unwrap()]).unwrap();
        File::create(dir.path().join("1")).unwrap().set_len(BYTES).unwrap();
        Self { dir, loops: Vec::new() }
    }

    /// Loop devices on such files; `None` where they are not allowed.
    fn loop_devices() -> Option<Self> {
        let mut disks = Self::files();
        for side in 0..2 {
            let out = Command::new("losetup").args(["-f", "--show"]).arg(disks.path(side)).output().ok()?;
            if !out.status.success() {
                return None;
            }
            disks.loops.push(String::from_utf8(out.stdout).unwrap().trim().into());
        }
        Some(disks)
    }

    /// Where one of them is.
    fn path(&self, side: usize) -> PathBuf {
        self.loops.get(side).cloned().unwrap_or_else(|| self.dir.path().join(side.to_string()))
    }

    /// What one of them holds.
    fn content(&self, side: usize) -> Vec<u8> {
        fs::read(self.path(side)).unwrap()
    }

    /// A target on one of them, as soon as the job before has let it go.
    fn target(&self, side: usize) -> Device {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match Device::open_target(&self.path(side), TargetOptions::default()) {
                Ok(device) => return device,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for device in &self.loops {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}

/// Files, and loop devices where there may be some.
fn all_disks() -> Vec<Disks> {
    [Some(Disks::files()), Disks::loop_devices()].into_iter().flatten().collect()
}

/// The blocks that differ.
fn differing(a: &[u8], b: &[u8]) -> Vec<u64> {
    let block = usize::try_from(BLOCK).unwrap();
    let pairs = a.chunks(block).zip(b.chunks(block)).zip(0..);
    pairs.filter(|((a, b), _)| a != b).map(|(_, number)| number).collect()
}

/// Says whether every one of these blocks is dirty.
fn all_dirty(bitmap: &Bitmap, blocks: &[u64]) -> bool {
    blocks.iter().all(|block| {
        let start = block * BLOCK;
        bitmap.next_dirty(start, start + BLOCK, u64::MAX).unwrap() == Some(ByteRange::at(start, BLOCK))
    })
}

/// A bitmap of blocks.
fn bitmap(drive: &Drive, name: &str) -> Bitmap {
    drive.add_bitmap(name, Granularity::new(BLOCK).ok(), true).unwrap()
}

/// Numbers all over the place.
struct Chance(u64);

impl Chance {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % below
    }
}

/// Whether guests are to stop; they do also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes, zeroes and discards through a queue until it is told to stop.
fn queue_guest(drive: &Drive, stop: &AtomicBool) {
    let mut queue: Queue = drive.queue(QueueOptions::default()).unwrap();
    let mut chance = Chance(1);
    while !stop.load(Ordering::Relaxed) {
        for tag in 0..4 {
            let range =
                ByteRange::at(chance.below(WRITTEN / BLOCK - 4) * BLOCK, (1 + chance.below(4)) * BLOCK);
            match chance.below(8) {
                0 => {
                    queue
                        .write_zeroes(range, ZeroFlags { punch: true, ..ZeroFlags::default() }, tag)
                        .unwrap();
                }
                1 => queue.discard(range, tag).unwrap(),
                _ => {
                    let mut data = AlignedBuf::new(usize::try_from(range.len()).unwrap(), 4096).unwrap();
                    data.fill(u8::try_from(chance.below(256)).unwrap());
                    queue.write(range.start(), data, WriteFlags::default(), tag).unwrap();
                }
            }
        }
        queue.wait(4, Some(Duration::from_secs(20))).unwrap();
        // A discard may be more than the device can do.
        while queue.pop().is_some() {}
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Writes blocks through a tracker until it is told to stop.
fn tracked_guest(disks: &Disks, drive: &Drive, stop: &AtomicBool) {
    let tracker = drive.tracker();
    let files: [File; 2] =
        [0, 1].map(|side| File::options().write(true).custom_flags(0x4000).open(disks.path(side)).unwrap());
    let (mut chance, mut data) = (Chance(2), AlignedBuf::new(4096, 4096).unwrap());
    while !stop.load(Ordering::Relaxed) {
        let at = chance.below(WRITTEN / BLOCK) * BLOCK;
        let Admission::Go(token) = tracker.begin(ByteRange::at(at, BLOCK), IoKind::Write).unwrap() else {
            assert!(tracker.wait_open(Duration::from_secs(20)));
            continue;
        };
        data.fill(u8::try_from(chance.below(256)).unwrap());
        files[usize::try_from(token.device_number() % 2).unwrap()].write_all_at(&data, at).unwrap();
        tracker.end(token, Ok(())).unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Waits for a state.
fn until(job: &Job, status: JobStatus) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while job.status() != status {
        assert!(Instant::now() < deadline, "{:?} does not become {status}", job.query());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until nobody uses a bitmap any more.
fn until_free(bitmap: &Bitmap) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while bitmap.info().busy {
        assert!(Instant::now() < deadline, "{:?}", bitmap.info());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A job that works with this bitmap, and comes to its end beside a guest on a busy machine as well.
fn options(working: &Bitmap, copy_mode: CopyModeChoice) -> MirrorOptions {
    MirrorOptions {
        bitmap: Some(working.working()),
        sync: SyncMode::None,
        copy_mode,
        latency_budget: LatencyBudget::Off,
        max_pause: None,
        ..MirrorOptions::default()
    }
}

/// A guest writes without rest; a job begins, is cancelled halfway, the next one goes on with what the bitmap says and moves the
/// drive, and a third one brings it back with nothing but what changed since. A gap anywhere leaves the sides different.
fn there_and_back(disks: &Disks, copy_mode: CopyModeChoice) {
    let drive = Drive::new(Device::open_disk(&disks.path(0)).unwrap()).unwrap();
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let (working, other, stop) = (bitmap(&drive, "working"), bitmap(&drive, "other"), AtomicBool::new(false));
    let begun = disks.content(0);
    working.set(ByteRange::new(0, BYTES)).unwrap();
    std::thread::scope(|scope| {
        let end = Stop(&stop);
        scope.spawn(|| queue_guest(&drive, &stop));
        scope.spawn(|| tracked_guest(disks, &drive, &stop));
        let slow = MirrorOptions { speed_bytes_per_s: 40 * MIB, ..options(&working, copy_mode) };
        let job = engine.mirror(&drive, disks.target(1), slow).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while job.query().progress.copied_bytes < 4 * MIB {
            assert!(Instant::now() < deadline, "{:?}", job.query());
        }
        let busy = [working.clear(), working.disable(), working.set(ByteRange::at(0, 1))];
        assert!(busy.into_iter().all(|refused| refused.unwrap_err().kind() == ErrorKind::Busy));
        job.cancel(Cancel::Force).unwrap();
        assert_eq!(job.wait().end, End::Cancelled);
        until_free(&working);
        std::thread::sleep(Duration::from_millis(20));
        for (target, moved) in [(1, 1), (0, 2)] {
            let job = engine.mirror(&drive, disks.target(target), options(&working, copy_mode)).unwrap();
            until(&job, JobStatus::Ready);
            job.complete(Completion::Pivot).unwrap();
            assert_eq!(job.wait().end, End::Completed);
            assert_eq!(drive.device_number(), moved);
            until_free(&working);
            std::thread::sleep(Duration::from_millis(20));
            assert!(working.info().recording && working.info().dirty_bytes > 0);
        }
        drop(end);
    });
    let [source, target] = [0, 1].map(|side| disks.content(side));
    let changed = differing(&source, &target);
    assert!(!changed.is_empty(), "the guest wrote after the drive had moved");
    assert!(
        all_dirty(&working, &changed),
        "something changed since the switch-over and is not in the bitmap"
    );
    assert!(all_dirty(&other, &differing(&begun, &source)), "something changed and was not recorded");
    for bitmap in [&working, &other] {
        assert_eq!(bitmap.next_dirty(WRITTEN, BYTES, u64::MAX).unwrap(), None, "nobody wrote there");
    }
}

#[test]
fn a_recording_bitmap_takes_a_drive_there_and_back_in_background_mode() {
    all_disks().iter().for_each(|disks| there_and_back(disks, CopyModeChoice::Background));
}

#[test]
fn a_recording_bitmap_takes_a_drive_there_and_back_in_write_blocking_mode() {
    all_disks().iter().for_each(|disks| there_and_back(disks, CopyModeChoice::WriteBlocking));
}

/// What the kernel has in hand when a queue is dropped lands all the same, and nobody hears of it.
#[test]
fn what_a_dropped_queue_had_under_way_is_recorded() {
    for disks in all_disks() {
        for drop_there in [false, true] {
            let drive = Drive::new(Device::open_disk(&disks.path(0)).unwrap()).unwrap();
            let (bitmap, begun) = (bitmap(&drive, "bitmap"), disks.content(0));
            let mut queue = drive.queue(QueueOptions { depth: 64, ..QueueOptions::default() }).unwrap();
            std::thread::scope(|scope| {
                let sender = scope.spawn(move || {
                    for n in 0..32 {
                        let mut data = AlignedBuf::new(256 << 10, 4096).unwrap();
                        data.fill(1 + u8::from(drop_there));
                        queue.write(n * MIB / 2, data, WriteFlags::default(), n).unwrap();
                    }
                    queue.submit().unwrap();
                    (!drop_there).then_some(queue)
                });
                drop(sender.join().unwrap());
            });
            let landed = differing(&begun, &disks.content(0));
            assert!(all_dirty(&bitmap, &landed), "{landed:?}");
            assert!(bitmap.info().dirty_bytes <= BYTES / 2);
            drive.close().map_err(|(_, e)| e).unwrap();
        }
    }
}

/// A host that copies what changed, time and again, while its guest writes: an incremental backup. What it has in the end is the
/// disk.
#[test]
fn copying_what_a_bitmap_says_time_and_again_follows_the_disk() {
    let disks = Disks::files();
    let drive = Drive::new(Device::open_disk(&disks.path(0)).unwrap()).unwrap();
    let bitmaps =
        ["even", "odd"].map(|name| drive.add_bitmap(name, Granularity::new(BLOCK).ok(), false).unwrap());
    let stop = AtomicBool::new(false);
    bitmaps[0].enable().unwrap();
    fs::copy(disks.path(0), disks.path(1)).unwrap();
    let copy_changes = |bitmap: &Bitmap| {
        // Past the page cache, as guests do.
        let [from, to] = [0, 1].map(|side| {
            File::options().read(true).write(true).custom_flags(0x4000).open(disks.path(side)).unwrap()
        });
        let (mut at, mut data) = (0, AlignedBuf::new(64 << 10, 4096).unwrap());
        while let Some(area) = bitmap.next_dirty(at, BYTES, 64 * KIB).unwrap() {
            let data = &mut data[..usize::try_from(area.len()).unwrap()];
            from.read_exact_at(data, area.start()).unwrap();
            to.write_all_at(data, area.start()).unwrap();
            at = area.end();
        }
    };
    std::thread::scope(|scope| {
        let end = Stop(&stop);
        let guests = [
            scope.spawn(|| queue_guest(&drive, &stop)),
            scope.spawn(|| tracked_guest(&disks, &drive, &stop)),
        ];
        for round in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            let [from, to] = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            // The next one records before this one stops.
            bitmaps[to].clear().unwrap();
            bitmaps[to].enable().unwrap();
            bitmaps[from].disable().unwrap();
            copy_changes(&bitmaps[from]);
        }
        drop(end);
        guests.into_iter().for_each(|guest| guest.join().unwrap());
    });
    bitmaps[0].disable().unwrap();
    assert!(bitmaps[0].info().dirty_bytes > 0);
    copy_changes(&bitmaps[0]);
    assert!(disks.content(0) == disks.content(1), "the backup has missed something");
}

/// Bitmaps belong to the drive and not to the device that it left.
#[test]
fn a_bitmap_stays_with_its_drive_over_a_pivot() {
    let disks = Disks::files();
    let drive = Drive::new(Device::open_disk(&disks.path(0)).unwrap()).unwrap();
    let bitmap = bitmap(&drive, "bitmap");
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let job = engine.mirror(&drive, disks.target(1), MirrorOptions::default()).unwrap();
    until(&job, JobStatus::Ready);
    job.complete(Completion::Pivot).unwrap();
    assert_eq!(job.wait().end, End::Completed);
    let info = bitmap.info();
    assert!(info.recording && !info.busy && info.dirty_bytes == 0 && info.size_bytes == BYTES, "{info:?}");
    let tracker = drive.tracker();
    let Admission::Go(token) = tracker.begin(ByteRange::at(MIB, 1), IoKind::Write).unwrap() else {
        panic!("held");
    };
    tracker.end(token, Ok(())).unwrap();
    assert_eq!(bitmap.next_dirty(0, BYTES, u64::MAX).unwrap(), Some(ByteRange::at(MIB, BLOCK)));
}
