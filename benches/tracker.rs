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
use blkmirror_core::drive::{Admission, Drive, IoKind, Token, Tracker};
use blkmirror_core::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Share};
use blkmirror_core::ring::Wake;
use blkmirror_core::units::{ByteRange, ChunkRange, GIB, KIB};
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

/// Runs `act(thread)` on each of `threads` threads at once; the longest time.
fn on_threads(threads: u64, act: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(usize::try_from(threads).unwrap());
    let run = |thread| {
        barrier.wait();
        let start = Instant::now();
        act(thread);
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

/// Begins a write of 4 KiB.
#[inline]
fn begin(tracker: &Tracker, start: u64) -> Token {
    let Ok(Admission::Go(token)) = tracker.begin(ByteRange::at(start, BLOCK), IoKind::Write) else {
        unreachable!("the gate is open and nobody else has passes");
    };
    token
}

/// `pairs` writes at the places that `start` says, with `IN_FLIGHT` under way at a time: each round ends the oldest one and
/// begins another. With 1, a token is read back within nanoseconds of being written, for which no device is fast enough,
/// and the processor makes that wait; so both are measured.
#[inline]
fn writes<const IN_FLIGHT: usize>(tracker: &Tracker, pairs: u64, start: impl Fn(u64) -> u64) {
    let mut tokens: [Token; IN_FLIGHT] = std::array::from_fn(|_| begin(tracker, 0));
    let mut oldest = 0;
    for round in 0..pairs {
        tracker.end(black_box(&tokens)[oldest], Ok(())).unwrap();
        tokens[oldest] = begin(tracker, start(round));
        oldest = (oldest + 1) % IN_FLIGHT;
    }
    tokens.into_iter().for_each(|token| tracker.end(token, Ok(())).unwrap());
}

/// Benchmarks with so many requests in flight.
fn pairs<const IN_FLIGHT: usize>(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("begin and end, {IN_FLIGHT} in flight"));
    group
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200));
    let dir = tempfile::Builder::new().prefix("blkmirror-tracker").tempdir_in("/dev/shm").unwrap();
    let (drive, share) = followed(dir.path());
    let tracker = drive.tracker();
    let every_chunk = ChunkRange::new(0, DISK / share.geometry.granularity.bytes());
    for threads in [1, 2] {
        group.bench_function(format!("same chunk, threads: {threads}"), |b| {
            b.iter_custom(|iters| {
                on_threads(threads, |_| writes::<IN_FLIGHT>(&tracker, iters, |_| black_box(77 * BLOCK)))
            });
        });
        // Every chunk is clean when a sample begins.
        group.bench_function(format!("random 4 KiB of 8 GiB, threads: {threads}"), |b| {
            b.iter_custom(|iters| {
                share.dirty.clean(every_chunk);
                on_threads(threads, |thread| {
                    writes::<IN_FLIGHT>(&tracker, iters, |round| {
                        scattered(round * 2 + thread) % (DISK / BLOCK) * BLOCK
                    });
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().nresamples(2000);
    targets = pairs::<1>, pairs::<8>
}
criterion_main!(benches);
