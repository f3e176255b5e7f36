//! What a copy does to the guest's latency, and the guest to the copy.
//!
//! Open-loop writers run beside, in turns: nothing, a job with a latency budget, a job at full speed, and the plain copy
//! loop. Each run has a drive of its own and a run-up without a job, until the guest sees what it usually sees. The
//! first pass is what is measured: after it the guest decides how much there is to copy.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use blkmirror_core::engine::{Engine, EngineOptions};
use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget, MirrorOptions};
use blkmirror_load::{Arrival, Load, Plan};
use blkmirror_testkit::{GIB, MIB};
use serde::{Deserialize, Serialize};

use super::calm::{self, Calm};
use super::options::Options;
use super::plain::PlainCopy;
use super::report::Part;
use super::stage::{self, Disks, gib_per_s, micros};
use super::standstill::{Kept, SLICE, Standstill};
use crate::error::{Context, Failure, Result};
use crate::stats::Spread;
use crate::targets::Bound;

/// What is measured at most.
const MOST: Duration = Duration::from_secs(3);
/// What is measured at full speed. A backlog grows with time, so a job and the plain loop are watched for as long as each other; a
/// first pass takes longer than this.
const FULL_SPEED: Duration = Duration::from_millis(1500);
/// The budget: so many times the baseline.
const BUDGET: f64 = 1.5;

/// What runs beside the writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Nothing.
    Nothing,
    /// A job that makes room for the guest.
    Gentle,
    /// A job at full speed.
    FullSpeed,
    /// The plain copy loop.
    PlainLoop,
}

impl Beside {
    /// All of them.
    const ALL: [Self; 4] = [Self::Nothing, Self::Gentle, Self::FullSpeed, Self::PlainLoop];

    /// In the table.
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no job",
            Self::Gentle => "job, budget 1.5 x",
            Self::FullSpeed => "job at full speed",
            Self::PlainLoop => "plain loop, 16 x 1 MiB",
        }
    }
}

/// What one run showed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    /// Guest latencies.
    p50_us: f64,
    /// The one that is promised about.
    p99_us: f64,
    /// The tail.
    p999_us: f64,
    /// How late requests were sent at the median: what the writers themselves add.
    lateness_p50_us: f64,
    /// Acknowledged writes.
    writes_per_s: f64,
    /// What was copied.
    copy_gib_per_s: f64,
    /// The part of the run that this is about.
    kept: f64,
}

impl Sample {
    /// What the guest saw, and what was copied in that time.
    fn new(kept: &Kept) -> Result<Self> {
        let seen = kept.seen.as_ref().ok_or_else(|| Failure::new("the machine stands still all the time"))?;
        let latency = seen.latency();
        Ok(Self {
            p50_us: micros(latency.p50),
            p99_us: micros(latency.p99),
            p999_us: micros(latency.p999),
            lateness_p50_us: micros(Duration::from_nanos(seen.lateness.value_at_quantile(0.5))),
            writes_per_s: seen.writes_per_s(),
            copy_gib_per_s: gib_per_s(kept.copied_bytes, kept.time),
            kept: kept.share(),
        })
    }
}

/// Runs the part.
pub fn measure(options: &Options) -> Result<Part> {
    let disks = Disks::new(if options.quick { 512 * MIB } else { 4 * GIB })?;
    let engine = Engine::start(EngineOptions::default()).context(|| "engine")?;
    let (mut calm, mut still) = (Calm::default(), Standstill::watch());
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); Beside::ALL.len()];
    for round in 0..options.rounds() {
        let mut turns: Vec<usize> = (0..Beside::ALL.len()).collect();
        turns.rotate_left(round as usize % Beside::ALL.len());
        for turn in turns {
            let beside = Beside::ALL[turn];
            let kept = still.without(|still| run(&disks, &engine, &mut calm, still, beside, options.rate))?;
            let sample = Sample::new(&kept)?;
            let Sample { p99_us, copy_gib_per_s, .. } = sample;
            let name = beside.name();
            eprintln!("  round {} {name:24} p99 {p99_us:.0} us, {copy_gib_per_s:.2} GiB/s", round + 1);
            samples[turn].push(sample);
        }
    }
    let mut part = part(options, &disks, &samples);
    part.notes.extend(calm.note().into_iter().chain(still.note()));
    part.samples = serde_json::to_value(&samples).context(|| "live.json")?;
    Ok(part)
}

/// One run, once the guest alone sees what it usually sees.
fn run(
    disks: &Disks,
    engine: &Engine,
    calm: &mut Calm,
    still: &mut Standstill,
    beside: Beside,
    rate: u64,
) -> Result<Kept> {
    let drive = disks.drive()?;
    let plan = Plan { arrival: Arrival::Open { per_s: rate }, depth: 128, ..Plan::default() };
    let guest = stage::guest(&drive, plan, None)?;
    calm.wait(|| Ok::<_, Failure>(micros(guest.watch(calm::SLICE).latency().p99)))?;
    let options = |latency_budget| MirrorOptions {
        latency_budget,
        copy_mode: CopyModeChoice::Background,
        ..MirrorOptions::default()
    };
    let mut with_job = |budget, most| {
        let still = (budget != LatencyBudget::Off).then_some(&mut *still);
        let job = engine.mirror(&drive, disks.target()?, options(budget)).context(|| "job")?;
        let kept = watch(&guest, still, most, || {
            let progress = job.query().progress;
            // The first pass is what is measured.
            (stage::first_pass_bytes(&progress) < disks.bytes).then_some(progress.copied_bytes)
        });
        stage::end(&job)?;
        Ok::<_, Failure>(kept)
    };
    let kept = match beside {
        Beside::Nothing => watch(&guest, Some(still), MOST, || Some(0)),
        Beside::Gentle => with_job(LatencyBudget::Baseline(BUDGET), MOST)?,
        Beside::FullSpeed => with_job(LatencyBudget::Off, FULL_SPEED)?,
        Beside::PlainLoop => {
            let copy = PlainCopy::start(disks.source_to_read()?, disks.target()?)?;
            let kept = watch(&guest, None, FULL_SPEED, || Some(copy.bytes()));
            copy.stop()?;
            kept
        }
    };
    guest.stop().context(|| "guest")?;
    Ok(kept)
}

/// Watches the guest from now on, slice by slice, for `most` or until `copied_bytes` says that it is over. Without `still`, a slice
/// counts whatever the machine did in it.
fn watch(
    guest: &Load,
    mut still: Option<&mut Standstill>,
    most: Duration,
    mut copied_bytes: impl FnMut() -> Option<u64>,
) -> Kept {
    let (mut kept, mut before) = (Kept::default(), copied_bytes().unwrap_or(0));
    guest.cut();
    if let Some(still) = &mut still {
        still.begin();
    }
    let start = Instant::now();
    let mut slice_ends = SLICE;
    while slice_ends <= most {
        std::thread::sleep(slice_ends.saturating_sub(start.elapsed()));
        let Some(now) = copied_bytes() else { break };
        let (seen, copied) = (guest.cut(), now - before);
        match &mut still {
            Some(still) => still.slice(&mut kept, &seen, copied),
            None => kept.add(&seen, copied, false),
        }
        before = now;
        slice_ends = start.elapsed() + SLICE;
    }
    kept
}

/// Medians, table and promises.
fn part(options: &Options, disks: &Disks, samples: &[Vec<Sample>]) -> Part {
    let title = format!(
        "{} open-loop random writes of 4 KiB per second from 2 writers on a loop device of {} MiB in memory ({}); medians of \
         {} interleaved rounds. Latency counts from the intended time.",
        options.rate,
        disks.bytes / MIB,
        disks.limits(),
        options.rounds()
    );
    let head = [
        "beside the writers",
        "p50",
        "p99 (min to max)",
        "p99.9",
        "writes/s",
        "copy GiB/s",
        "sent late p50",
        "of the time",
    ];
    let mut part = Part::new("gentle", title, &head);
    let median = |which: usize, value: fn(&Sample) -> f64| {
        Spread::of(samples.get(which)?.iter().map(value)).map(|spread| spread.median)
    };
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |us| format!("{us:.0} us"));
    for (which, beside) in Beside::ALL.into_iter().enumerate() {
        let p99 = Spread::of(samples[which].iter().map(|sample| sample.p99_us));
        let range = p99.map(|p99| format!(" ({:.0} to {:.0})", p99.min, p99.max)).unwrap_or_default();
        let number =
            |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
        part.rows.push(vec![
            beside.name().to_owned(),
            us(median(which, |sample| sample.p50_us)),
            us(p99.map(|p99| p99.median)) + &range,
            us(median(which, |sample| sample.p999_us)),
            number(median(which, |sample| sample.writes_per_s), 0),
            number(median(which, |sample| sample.copy_gib_per_s), 2),
            us(median(which, |sample| sample.lateness_p50_us)),
            number(median(which, |sample| sample.kept * 100.0), 0) + " %",
        ]);
    }
    let p99 = |which| median(which, |sample| sample.p99_us);
    let rate = |which| median(which, |sample| sample.copy_gib_per_s);
    let ratio = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    part.promise(
        "budget 1.5 x: guest's p99 over that without a job",
        Bound::AtMost(1.5),
        ratio(p99(1), p99(0)),
    );
    part.promise(
        "budget 1.5 x: copy rate over its own at full speed",
        Bound::AtLeast(0.25),
        ratio(rate(1), rate(2)),
    );
    part.promise(
        "full speed: guest's p99 over that beside the plain loop",
        Bound::AtMost(1.0),
        ratio(p99(2), p99(3)),
    );
    part.promise("full speed: copy rate over the plain loop's", Bound::AtLeast(1.0), ratio(rate(2), rate(3)));
    part
}
