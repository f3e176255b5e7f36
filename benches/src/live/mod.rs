//! Mirroring a disk that is being written to, held against what is promised.
//!
//! Five parts, each with disks in memory of its own, one after the other:
//!
//! - [`gentle`]: what a copy does to the guest's latency, with a budget and at full speed, against no copy and against a
//!   [`plain`] loop
//! - [`completion`]: switch-overs under a load that is faster than the copy
//! - [`blocking`]: what write-blocking costs
//! - [`tracking`]: what it costs a host to track its own requests
//! - [`lag`]: how far a following job is behind
//!
//! [`stage`] makes the disks, [`report`] the tables. It may assume root and loop devices, as everything here.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod completion;
pub mod gentle;
pub mod lag;
pub mod options;
pub mod plain;
pub mod report;
pub mod stage;
pub mod tracking;

use std::fs;

use self::options::Options;
use self::report::{Part, Report};
use crate::error::{Context, Failure, Result};
use crate::machine::{Machine, target_folder};
use crate::measure::Meter;

/// CPUs that the idle machine may use before a note is made of it.
const BUSY_LIMIT: f64 = 0.1;

/// A part: its name, what it is about, and how it is run.
type Known = (&'static str, &'static str, fn(&Options) -> Result<Part>);

/// All parts, in the order they run.
const PARTS: [Known; 5] = [
    ("gentle", "the guest's latency and the copy's rate, with a budget and at full speed", gentle::measure),
    ("completion", "switch-overs under a load that is faster than the copy", completion::measure),
    ("blocking", "what write-blocking costs", blocking::measure),
    ("tracking", "what it costs a host to track its own requests", tracking::measure),
    ("lag", "how far a following job is behind", lag::measure),
];

/// The whole benchmark, as the command line asked for it.
pub fn run(options: &Options) -> Result<()> {
    let json_path = target_folder()?.join("live.json");
    if options.readme {
        let text = fs::read_to_string(&json_path).context(|| json_path.display().to_string())?;
        let report: Report = serde_json::from_str(&text).context(|| json_path.display().to_string())?;
        if report.quick {
            eprintln!("this was a quick look, not for quoting");
        }
        report.notes.iter().for_each(|note| eprintln!("{note}"));
        print!("{}", report.readme());
        return Ok(());
    }
    let unknown = options.only.iter().find(|name| PARTS.iter().all(|(part, ..)| part != name));
    if options.list || unknown.is_some() {
        PARTS.iter().for_each(|(name, about, _)| println!("{name:12} {about}"));
        return unknown.map_or(Ok(()), |name| Err(Failure::new(format!("{name}: no such part"))));
    }
    let report = measure(options)?;
    let text = report.markdown();
    let json = serde_json::to_string_pretty(&report).context(|| "live.json")?;
    fs::write(&json_path, json).context(|| json_path.display().to_string())?;
    let markdown_path = json_path.with_extension("md");
    fs::write(&markdown_path, &text).context(|| markdown_path.display().to_string())?;
    println!("{text}");
    eprintln!("written: {} and {}", markdown_path.display(), json_path.display());
    Ok(())
}

/// Runs the parts.
fn measure(options: &Options) -> Result<Report> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("the live benchmark needs root: it makes loop devices"));
    }
    let mut notes = Vec::new();
    let mut meter = Meter::new()?;
    let mut parts = Vec::new();
    for (name, about, run) in PARTS.into_iter().filter(|(name, ..)| options.wants(name)) {
        eprintln!("{name}: {about}");
        meter.watch_idle()?;
        if meter.idle_busy_per_s() > BUSY_LIMIT {
            let busy = meter.idle_busy_per_s();
            notes.push(format!(
                "{name}: something else used {busy:.2} CPUs before it began; do not trust these numbers"
            ));
        }
        parts.push(run(options)?);
    }
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    Ok(Report { machine: Machine::look()?, arguments, quick: options.quick, parts, notes })
}
