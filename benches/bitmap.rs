//! Criterion benchmarks of the bitmap. All figures are for one operation, in the time of the thread that does it.
//!
//! `cargo bench --bench bitmap`. What must hold on the machine of the README: `set/already set` and `set/two threads, one bit` at
//! most 2 ns, `drain/clean/64 TiB` at most 5 us.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first thing that is wrong")]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::units::{Chunk, ChunkRange, Granularity, TIB};
use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, criterion_group, criterion_main, measurement::WallTime,
};

/// A map in chunks of 64 KiB.
fn map(disk_bytes: u64) -> DirtyBitmap {
    DirtyBitmap::new(disk_bytes, Granularity::DEFAULT).unwrap()
}

/// The same numbers on every run, all over the place (splitmix64).
fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

/// A run of one chunk.
fn one(chunk: u64) -> ChunkRange {
    ChunkRange::new(chunk, chunk + 1)
}

/// Runs `act(thread, round)` for `iters` rounds on two threads at once; the longer time.
fn on_two_threads(iters: u64, act: impl Fn(u64, u64) + Sync) -> Duration {
    let barrier = Barrier::new(2);
    let run = |thread| {
        barrier.wait();
        let start = Instant::now();
        (0..iters).for_each(|round| act(thread, round));
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        run(0).max(other.join().unwrap())
    })
}

/// Few and short samples: the whole file is to take a minute and a half.
fn quick(group: &mut BenchmarkGroup<'_, WallTime>) {
    group
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200));
}

/// Marking, as a guest's thread does it after each write.
fn set(c: &mut Criterion) {
    let mut group = c.benchmark_group("set");
    quick(&mut group);

    let hot = map(TIB);
    hot.set(ChunkRange::new(0, 1 << 16));
    group.bench_function("already set", |b| b.iter(|| hot.set(one(black_box(77)))));
    group
        .bench_function("already set, 16 chunks", |b| b.iter(|| hot.set(ChunkRange::new(black_box(16), 32))));
    group.bench_function("already set, random in 65536", |b| {
        let mut round = 0;
        b.iter(|| {
            round += 1;
            hot.set(one(scattered(round) & 0xffff))
        });
    });

    // Cold: into a map whose pages exist but whose bits and summaries are all clear. Criterion's rounds are cut into
    // batches, each followed by a drain that is not timed.
    let cold = map(TIB);
    let mut bench_cold = |name: &str, chunks_of: &dyn Fn(u64) -> ChunkRange| {
        group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                let mut total = Duration::ZERO;
                let mut done = 0;
                while done < iters {
                    let batch = (iters - done).min(1 << 18);
                    let start = Instant::now();
                    for round in 0..batch {
                        black_box(cold.set(chunks_of(round)));
                    }
                    total += start.elapsed();
                    cold.drain(|_| ());
                    done += batch;
                }
                total
            });
        });
    };
    bench_cold("cold, random", &|round| one(scattered(round) & 0xff_ffff));
    bench_cold("cold, in order", &one);
    bench_cold("cold, in order, 16 chunks", &|round| ChunkRange::new(round * 16, round * 16 + 16));

    group.bench_function("two threads, one bit", |b| {
        b.iter_custom(|iters| {
            on_two_threads(iters, |_, _| {
                black_box(hot.set(one(black_box(77))));
            })
        });
    });
    group.bench_function("two threads, set against clear, one word", |b| {
        b.iter_custom(|iters| {
            on_two_threads(iters, |thread, round| {
                let chunk = one(round % 64);
                black_box(if thread == 0 { hot.set(chunk) } else { hot.clear(chunk) });
            })
        });
    });
    group.finish();
}

/// What one worker does with a run besides the I/O: find it, claim it, clear it, release it.
fn find_and_clear(c: &mut Criterion) {
    let mut group = c.benchmark_group("copier");
    quick(&mut group);
    let (dirty, claims) = (map(TIB), Claims::new(TIB, Granularity::DEFAULT).unwrap());
    group.bench_function("find, claim, clear, release 16 chunks", |b| {
        b.iter_custom(|iters| {
            let (mut total, mut from) = (Duration::ZERO, 0);
            for _ in 0..iters {
                if from == 0 {
                    dirty.set(ChunkRange::new(0, dirty.chunks()));
                }
                let start = Instant::now();
                let run = dirty.next_run(Chunk(from), 16).unwrap();
                let claimed = claims.try_claim(run);
                black_box(dirty.clear(claimed));
                claims.release(claimed);
                total += start.elapsed();
                from = run.end() % dirty.chunks();
            }
            total
        });
    });
    group.finish();
}

/// Claims without anything around them.
fn claims(c: &mut Criterion) {
    let mut group = c.benchmark_group("claim and release");
    quick(&mut group);
    let claims = Claims::new(TIB, Granularity::DEFAULT).unwrap();
    let run = |start: u64| ChunkRange::new(start, start + 16);
    group.bench_function("16 chunks", |b| {
        b.iter(|| {
            let claimed = claims.try_claim(run(black_box(32)));
            claims.release(claimed);
        });
    });
    group.bench_function("16 chunks over two words", |b| {
        b.iter(|| {
            let claimed = claims.try_claim(run(black_box(56)));
            claims.release(claimed);
        });
    });
    group.bench_function("two threads, same word, other chunks", |b| {
        b.iter_custom(|iters| {
            on_two_threads(iters, |thread, _| {
                let claimed = claims.try_claim(run(black_box(thread * 16)));
                claims.release(claimed);
            })
        });
    });
    group.bench_function("two threads, same chunks", |b| {
        b.iter_custom(|iters| {
            on_two_threads(iters, |_, _| {
                let claimed = claims.try_claim(run(black_box(0)));
                claims.release(claimed);
            })
        });
    });
    group.finish();
}

/// Drains maps of which one chunk in `every` is dirty, at a random place among its neighbours; 0 for clean maps.
fn drain_of(c: &mut Criterion, name: &str, every: u64, samples: usize) {
    let mut group = c.benchmark_group(format!("drain/{name}"));
    group.sample_size(samples).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    for (disk, disk_bytes) in [("1 TiB", TIB), ("64 TiB", 64 * TIB)] {
        let map = map(disk_bytes);
        group.bench_function(disk, |b| {
            b.iter_custom(|iters| {
                let mut total = Duration::ZERO;
                for _ in 0..iters {
                    match every {
                        0 => {}
                        1 => {
                            map.set(ChunkRange::new(0, map.chunks()));
                        }
                        _ => (0..map.chunks() / every).for_each(|part| {
                            map.set(one(part * every + scattered(part) % every));
                        }),
                    }
                    let start = Instant::now();
                    map.drain(|run| {
                        black_box(run);
                    });
                    total += start.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

/// Draining, from nothing to everything.
fn drain(c: &mut Criterion) {
    drain_of(c, "clean", 0, 50);
    drain_of(c, "1 percent", 100, 10);
    drain_of(c, "full", 1, 10);
}

criterion_group! {
    name = benches;
    config = Criterion::default().nresamples(2000);
    targets = set, find_and_clear, claims, drain
}
criterion_main!(benches);
