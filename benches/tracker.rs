//! Criterion benchmark of what it costs a host to track its own requests: `begin` and `end` of a 4 KiB write, while a
//! job follows in background mode. All figures are for one pair, in the time of the thread that does it.
//!
//! `cargo bench --bench tracker`. What must hold on the machine of the README: at most 40 ns with one thread, at most
//! 60 ns with two threads on one disk, whether they write the same chunk again and again or all over the disk.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first thing that is wrong")]

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::{Admission, Drive, IoKind, Tracker};
use blkmirror_core::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Share};
use blkmirror_core::ring::Wake;
use blkmirror_core::units::{ByteRange, GIB, KIB};
use criterion::{Criterion, criterion_group, criterion_main};

/// Bytes of the disk.
const DISK: u64 = 8 * GIB;
/// Bytes of a request.
const BLOCK: u64 = 4 * KIB;

/// A home that nobody needs to wake: it never sleeps.
#[derive(Debug)]
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// The same numbers on every run, all over the place (splitmix64).
fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

/// Runs `act(thread, round)` for `iters` rounds on each of `threads` threads at once; the longest time.
fn on_threads(threads: u64, iters: u64, act: impl Fn(u64, u64) + Sync) -> Duration {
    let barrier = Barrier::new(usize::try_from(threads).unwrap());
    let run = |thread| {
        barrier.wait();
        let start = Instant::now();
        (0..iters).for_each(|round| act(thread, round));
        start.elapsed()
    };
    let run = &run;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let own = run(0);
        others.into_iter().map(|other| other.join().unwrap()).fold(own, Duration::max)
    })
}

/// A drive on a sparse file in `dir`, and the state of a job that follows it in background mode.
fn followed(dir: &Path) -> (Drive, Arc<Share>) {
    for name in ["source", "target"] {
        File::create(dir.join(name)).unwrap().set_len(DISK).unwrap();
    }
    let drive = Drive::new(Device::open_source(&dir.join("source")).unwrap()).unwrap();
    let target = Device::open_target(&dir.join("target"), TargetOptions::default()).unwrap();
    let shape = DeviceShape {
        size_bytes: DISK,
        align_bytes: BLOCK,
        max_request_bytes: DISK,
        ..DeviceShape::default()
    };
    let options = MirrorOptions::default();
    let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let share = Arc::new(Share::new(geometry, &options, bitmaps, false, 1));
    drive.follow_for_benchmark(Arc::clone(&share), target, Arc::new(Awake)).unwrap();
    (drive, share)
}

/// One request from begin to end.
#[inline]
fn request(tracker: &Tracker, start: u64) {
    let Ok(Admission::Go(token)) = tracker.begin(ByteRange::at(start, BLOCK), IoKind::Write) else {
        unreachable!("the gate is open and nobody else has passes");
    };
    // A host keeps the token with its request, in memory.
    black_box(&token);
    tracker.end(token, Ok(())).unwrap();
}

/// Pairs of begin and end.
fn pairs(c: &mut Criterion) {
    let mut group = c.benchmark_group("begin and end");
    group
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200));
    let dir = tempfile::Builder::new().prefix("blkmirror-tracker").tempdir_in("/dev/shm").unwrap();
    let (drive, share) = followed(dir.path());
    let tracker = drive.tracker();
    for threads in [1, 2] {
        group.bench_function(format!("same chunk, threads: {threads}"), |b| {
            b.iter_custom(|iters| {
                on_threads(threads, iters, |_, _| request(&tracker, black_box(77 * BLOCK)))
            });
        });
        // Every chunk is clean when a sample begins.
        group.bench_function(format!("random 4 KiB of 8 GiB, threads: {threads}"), |b| {
            b.iter_custom(|iters| {
                share.dirty.clean(blkmirror_core::units::ChunkRange::new(
                    0,
                    DISK / share.geometry.granularity.bytes(),
                ));
                on_threads(threads, iters, |thread, round| {
                    request(&tracker, scattered(round * 2 + thread) % (DISK / BLOCK) * BLOCK);
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().nresamples(2000);
    targets = pairs
}
criterion_main!(benches);
