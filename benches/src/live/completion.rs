//! Switch-overs while the guest writes faster than the job copies.
//!
//! Small disks, a job with a speed limit, and writers that write 1.1 times as many bytes per second as the limit lets the job
//! copy, each write a whole chunk somewhere else. A job that only runs after the writes never gets there; ours must, every time,
//! and hold the guest no longer than it was told. After every run each sector of the target is checked against what the
//! guest was told is written.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkmirror_core::engine::{Cancel, Completion, Engine, EngineOptions, EventKind, Job};
use blkmirror_core::mirror::MirrorOptions;
use blkmirror_load::{Arrival, Ledger, Plan, Untouched};
use blkmirror_testkit::{KIB, MIB};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::report::Part;
use super::stage::{self, Disks, TICK};
use crate::error::{Context, Failure, Result};
use crate::stats::Spread;
use crate::targets::Bound;

/// The disks.
const DISK_BYTES: u64 = 64 * MIB;
/// What the job may copy per second.
const SPEED_BYTES_PER_S: u64 = 128 * MIB;
/// Bytes of a write: a chunk.
const BLOCK_BYTES: u64 = 64 * KIB;
/// How long the guest may be held.
const MAX_PAUSE: Duration = Duration::from_millis(50);
/// A run that takes longer counts as one that does not complete.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the guest writes before the job starts and after it ended.
const MARGIN: Duration = Duration::from_millis(100);

/// What one run showed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    /// Whether the drive stands on the target.
    completed: bool,
    /// How long the guest was held.
    pause_ms: f64,
    /// The longest that a guest write took.
    longest_write_ms: f64,
    /// From the start of the job to its end.
    seconds: f64,
    /// Bytes that the guest wrote per second, over the job's limit.
    writers_over_copy: f64,
}

/// Disks that are mirrored at the same time. Most of a run is waiting until the job has seen that it does not gain on the
/// guest, and jobs of several drives share an engine, so several runs side by side show the same in less time.
const LANES: u32 = 3;

/// Runs the part.
pub fn measure(options: &Options) -> Result<Part> {
    let engine = Engine::start(EngineOptions::default()).context(|| "engine")?;
    let runs = options.runs();
    let lanes: Vec<Result<Vec<Sample>>> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES.min(runs))
            .map(|lane| {
                let engine = &engine;
                scope.spawn(move || lane_of(engine, (lane..runs).step_by(LANES as usize)))
            })
            .collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|_| Err(Failure::new("a run panicked"))))
            .collect()
    });
    let samples: Vec<Sample> = lanes.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let mut part = part(&samples);
    part.samples = serde_json::to_value(&samples).context(|| "live.json")?;
    Ok(part)
}

/// The runs on one pair of disks, one after the other.
fn lane_of(engine: &Engine, numbers: impl Iterator<Item = u32>) -> Result<Vec<Sample>> {
    let disks = Disks::new(DISK_BYTES)?;
    let mut samples = Vec::new();
    for number in numbers {
        let sample = run(&disks, engine, u64::from(number))?;
        if number % 10 == 0 {
            eprintln!("  run {}: pause {:.1} ms after {:.1} s", number + 1, sample.pause_ms, sample.seconds);
        }
        samples.push(sample);
    }
    Ok(samples)
}

/// One run.
fn run(disks: &Disks, engine: &Engine, seed: u64) -> Result<Sample> {
    let drive = disks.drive()?;
    let per_s = SPEED_BYTES_PER_S * 11 / 10 / BLOCK_BYTES;
    let plan = Plan { arrival: Arrival::Open { per_s }, block_bytes: BLOCK_BYTES, seed, ..Plan::default() };
    let ledger = Arc::new(Ledger::new(disks.bytes, BLOCK_BYTES, seed + 1));
    let guest = stage::guest(&drive, plan, Some(&ledger))?;
    std::thread::sleep(MARGIN);
    let options = MirrorOptions {
        speed_bytes_per_s: SPEED_BYTES_PER_S,
        max_pause: Some(MAX_PAUSE),
        ..MirrorOptions::default()
    };
    let start = Instant::now();
    guest.cut();
    let job = engine.mirror(&drive, disks.target()?, options).context(|| "job")?;
    let ready = became_ready(&job)?;
    let before = guest.cut();
    if !ready {
        job.cancel(Cancel::Force).context(|| "job")?;
    } else {
        job.complete(Completion::Pivot).context(|| "job")?;
    }
    let outcome = job.wait_for(PATIENCE).ok_or_else(|| Failure::new("the job does not end"))?;
    let seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(MARGIN);
    let after = guest.stop().context(|| "guest")?;
    if let Some(error) = after.first_error.as_ref().or(before.first_error.as_ref()) {
        return Err(Failure::new(format!("a guest write failed: {error}")));
    }
    if outcome.pivoted {
        let [mut source, mut target] = disks.readers()?;
        let proof = ledger.verify(&mut target, Untouched::SameAs(&mut source)).context(|| "target")?;
        if !proof.holds() {
            return Err(Failure::new(format!("MISMATCH after a switch-over: {proof}")));
        }
    }
    Ok(Sample {
        completed: outcome.pivoted,
        pause_ms: outcome.pause.unwrap_or_default().as_secs_f64() * 1e3,
        longest_write_ms: after.latency().max.as_secs_f64() * 1e3,
        seconds,
        writers_over_copy: before.bytes_per_s() / SPEED_BYTES_PER_S as f64,
    })
}

/// Waits until a switch-over is possible; `false` when that does not come.
fn became_ready(job: &Job) -> Result<bool> {
    let start = Instant::now();
    loop {
        while let Some(event) = job.next_event() {
            if matches!(event.what, EventKind::Ready) {
                return Ok(true);
            }
        }
        if let Some(outcome) = job.wait_for(TICK) {
            return Err(Failure::new(format!("the job ended before it was ready: {outcome:?}")));
        }
        if start.elapsed() > PATIENCE {
            return Ok(false);
        }
    }
}

/// Counts, table and promises.
fn part(samples: &[Sample]) -> Part {
    let title = format!(
        "{} runs, {LANES} drives on one engine at a time: disks of {} MiB, a job limited to {} MiB/s, writers of whole chunks ({} KiB) at random places at 1.1 times that \
         rate, max_pause {} ms, switch-over with pivot under load, and every sector of the target checked.",
        samples.len(),
        DISK_BYTES / MIB,
        SPEED_BYTES_PER_S / MIB,
        BLOCK_BYTES / KIB,
        MAX_PAUSE.as_millis()
    );
    let head = ["", "median", "min", "max"];
    let mut part = Part::new("completion", title, &head);
    let completed: Vec<&Sample> = samples.iter().filter(|sample| sample.completed).collect();
    let mut row = |name: &str, value: fn(&Sample) -> f64| {
        if let Some(spread) = Spread::of(completed.iter().map(|sample| value(sample))) {
            let cell = |value: f64| format!("{value:.2}");
            part.rows.push(vec![name.to_owned(), cell(spread.median), cell(spread.min), cell(spread.max)]);
        }
    };
    row("pause, ms", |sample| sample.pause_ms);
    row("longest guest write around the switch-over, ms", |sample| sample.longest_write_ms);
    row("start to end of the job, s", |sample| sample.seconds);
    row("writers over copy limit", |sample| sample.writers_over_copy);
    let share = |count: usize| (!samples.is_empty()).then(|| count as f64 / samples.len() as f64);
    let within = |sample: &&&Sample| sample.pause_ms <= MAX_PAUSE.as_secs_f64() * 1e3;
    let kept = completed.iter().filter(within).count();
    part.promise("runs that completed", Bound::AtLeast(1.0), share(completed.len()));
    part.promise("runs with a pause of at most max_pause", Bound::AtLeast(0.99), share(kept));
    part
}
