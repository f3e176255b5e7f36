//! What write-blocking costs a guest that writes as fast as it can.
//!
//! One writer, 4 KiB after 4 KiB, 32 under way. In turns without a job and with one that is in sync in write-blocking mode,
//! where every write goes to both disks and none may fall back to being copied later.
#![forbid(unsafe_code)]

use std::time::Duration;

use blkmirror_core::engine::{Engine, EngineOptions};
use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget, MirrorOptions};
use blkmirror_load::{Arrival, Pattern, Plan};
use blkmirror_testkit::MIB;
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::report::Part;
use super::stage::{self, Disks};
use crate::error::{Context, Result};
use crate::stats::Spread;
use crate::targets::Bound;

/// What is measured of each run.
const TIME: Duration = Duration::from_millis(1500);
/// Before anything is measured.
const RUN_UP: Duration = Duration::from_millis(500);
/// How long getting in sync may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one pair of runs showed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    /// Writes per second without a job.
    alone_per_s: f64,
    /// Writes per second in sync.
    mirrored_per_s: f64,
    /// Bytes that became dirty again, or were copied again, while in sync.
    fallen_back_bytes: u64,
}

/// Runs the part.
pub fn measure(options: &Options) -> Result<Part> {
    let disks = Disks::new(if options.quick { 64 * MIB } else { 512 * MIB })?;
    let engine = Engine::start(EngineOptions::default()).context(|| "engine")?;
    let mut samples = Vec::new();
    for round in 0..options.rounds() {
        let sample = run(&disks, &engine)?;
        let Sample { alone_per_s, mirrored_per_s, fallen_back_bytes } = sample;
        eprintln!(
            "  round {}: {alone_per_s:.0}/s alone, {mirrored_per_s:.0}/s mirrored, {fallen_back_bytes} bytes fell back",
            round + 1
        );
        samples.push(sample);
    }
    let mut part = part(&samples);
    part.samples = serde_json::to_value(&samples).context(|| "live.json")?;
    Ok(part)
}

/// One round: without a job, then with one, on the same drive.
fn run(disks: &Disks, engine: &Engine) -> Result<Sample> {
    let drive = disks.drive()?;
    let plan =
        Plan { pattern: Pattern::Append, writers: 1, depth: 32, arrival: Arrival::Closed, ..Plan::default() };
    let guest = stage::guest(&drive, plan, None)?;
    std::thread::sleep(RUN_UP);
    let alone = guest.watch(TIME);
    let options = MirrorOptions {
        copy_mode: CopyModeChoice::WriteBlocking,
        latency_budget: LatencyBudget::Off,
        ..MirrorOptions::default()
    };
    let job = engine.mirror(&drive, disks.target()?, options).context(|| "job")?;
    stage::wait_until(&job, PATIENCE, |job| job.query().actively_synced)?;
    std::thread::sleep(RUN_UP);
    let before = job.query();
    let mirrored = guest.watch(TIME);
    let after = job.query();
    stage::end(&job)?;
    guest.stop().context(|| "guest")?;
    Ok(Sample {
        alone_per_s: alone.writes_per_s(),
        mirrored_per_s: mirrored.writes_per_s(),
        fallen_back_bytes: after.progress.recopied_bytes - before.progress.recopied_bytes + after.dirty_bytes,
    })
}

/// Medians, table and promises.
fn part(samples: &[Sample]) -> Part {
    let title = "One writer, 4 KiB after 4 KiB, 32 under way, closed loop, on loop devices in memory; in turns without a job and \
                 in sync in write-blocking mode.";
    let mut part = Part::new("blocking", title, &["", "writes/s (median)", "min", "max"]);
    let mut row = |name: &str, value: fn(&Sample) -> f64| {
        let spread = Spread::of(samples.iter().map(value));
        if let Some(Spread { median, min, max }) = spread {
            let cell = |value: f64| format!("{value:.0}");
            part.rows.push(vec![name.to_owned(), cell(median), cell(min), cell(max)]);
        }
        spread.map(|spread| spread.median)
    };
    let alone = row("no job", |sample| sample.alone_per_s);
    let mirrored = row("write-blocking, in sync", |sample| sample.mirrored_per_s);
    let ratio = mirrored.zip(alone).map(|(mirrored, alone)| mirrored / alone);
    let worst = Spread::of(samples.iter().map(|sample| sample.fallen_back_bytes as f64));
    part.promise("writes/s over those without a job", Bound::AtLeast(0.45), ratio);
    part.promise(
        "bytes that fell back to dirty in sync, worst round",
        Bound::AtMost(0.0),
        worst.map(|w| w.max),
    );
    part
}
