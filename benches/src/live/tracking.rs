//! What it costs a host to track its own requests: `begin` and `end` of a write, while a job follows.
//!
//! The job is paused, so that it copies nothing beside the measurement and what the writers mark stays marked. The time is that of
//! the slowest thread. `cargo bench --bench tracker` looks at the same with criterion.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::time::Instant;

use blkmirror_core::drive::{Admission, Drive, IoKind, Tracker};
use blkmirror_core::engine::{Engine, EngineOptions};
use blkmirror_core::mirror::MirrorOptions;
use blkmirror_core::units::ByteRange;
use blkmirror_testkit::{KIB, MIB};

use super::options::Options;
use super::report::Part;
use super::stage::{self, Disks};
use crate::error::{Context, Failure, Result};
use crate::stats::Spread;
use crate::targets::Bound;

/// The disks.
const DISK_BYTES: u64 = 256 * MIB;
/// Bytes of a request.
const BLOCK_BYTES: u64 = 4 * KIB;
/// Pairs of begin and end in one measurement.
const PAIRS: u64 = 2_000_000;

/// Runs the part.
pub fn measure(options: &Options) -> Result<Part> {
    let disks = Disks::new(DISK_BYTES)?;
    let engine = Engine::start(EngineOptions::default()).context(|| "engine")?;
    let drive = disks.drive()?;
    let mut alone: Vec<[f64; 2]> = Vec::new();
    let mut followed: Vec<[f64; 2]> = Vec::new();
    for _ in 0..options.rounds() {
        alone.push(both(&drive)?);
        let job = engine.mirror(&drive, disks.target()?, MirrorOptions::default()).context(|| "job")?;
        job.pause().context(|| "job")?;
        followed.push(both(&drive)?);
        stage::end(&job)?;
    }
    let title = format!(
        "begin and end of {} million writes of 4 KiB at random places, nanoseconds per pair; medians of {} rounds.",
        PAIRS / 1_000_000,
        options.rounds()
    );
    let mut part = Part::new("tracking", title, &["", "1 thread", "2 threads, each"]);
    let median = |samples: &[[f64; 2]], which: usize| {
        Spread::of(samples.iter().map(|sample| sample[which])).map(|spread| spread.median)
    };
    for (name, samples) in [("no job", &alone), ("a job follows", &followed)] {
        let cell = |which| median(samples, which).map_or_else(String::new, |ns| format!("{ns:.1}"));
        part.rows.push(vec![name.to_owned(), cell(0), cell(1)]);
    }
    part.promise("begin and end, 1 thread, ns", Bound::AtMost(40.0), median(&followed, 0));
    part.promise("begin and end, 2 threads on one disk, ns", Bound::AtMost(60.0), median(&followed, 1));
    part.samples = serde_json::to_value([alone, followed]).context(|| "live.json")?;
    Ok(part)
}

/// With one thread and with two.
fn both(drive: &Drive) -> Result<[f64; 2]> {
    Ok([on_threads(drive, 1)?, on_threads(drive, 2)?])
}

/// Nanoseconds per pair of the slowest of so many threads.
fn on_threads(drive: &Drive, threads: u64) -> Result<f64> {
    let barrier = Barrier::new(usize::try_from(threads).unwrap_or(1));
    let tracker = drive.tracker();
    let times: Vec<Result<f64>> = std::thread::scope(|scope| {
        let run = |thread| {
            let (tracker, barrier) = (tracker.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                pairs(&tracker, thread)
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        let panicked = |_| Err(Failure::new("a tracking thread panicked"));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    times.into_iter().try_fold(0.0, |slowest: f64, time| Ok(slowest.max(time?)))
}

/// Nanoseconds per pair on this thread.
fn pairs(tracker: &Tracker, thread: u64) -> Result<f64> {
    let start = Instant::now();
    let mut chaos = thread + 1;
    for _ in 0..PAIRS {
        chaos = chaos.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (chaos >> 33) % (DISK_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        let range = ByteRange::at(offset, BLOCK_BYTES);
        // Matched in place: to hand results on to be given a context costs as much as a fifth of what is measured.
        let token = match tracker.begin(range, IoKind::Write) {
            Ok(Admission::Go(token)) => token,
            Ok(Admission::Held) => return Err(Failure::new("the gate is closed")),
            Err(e) => return Err(e).context(|| "begin"),
        };
        if let Err(e) = tracker.end(token, Ok(())) {
            return Err(e).context(|| "end");
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / PAIRS as f64)
}
