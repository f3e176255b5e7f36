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
//! [`stage`] makes the disks, [`calm`] waits for a quiet machine, [`standstill`] tells of runs in which it was not, [`report`]
//! makes the tables. It may assume root and loop devices, as everything here.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod calm;
pub mod completion;
pub mod gentle;
pub mod lag;
pub mod options;
pub mod plain;
pub mod report;
pub mod stage;
pub mod standstill;
pub mod tracking;

use self::options::Options;
use self::report::{Part, Report};
use crate::error::{Failure, Result};
use crate::machine::{Machine, target_folder};
use crate::measure::Meter;
use crate::publish;

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
        let report: Report = publish::last(&json_path)?;
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
    publish::publish(&json_path, &report, &text)
}

/// Runs the parts.
fn measure(options: &Options) -> Result<Report> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("the live benchmark needs root: it makes loop devices"));
    }
    let mut notes = Vec::new();
    let mut meter = Meter::without_punts()?;
    let mut parts = Vec::new();
    for (name, about, run) in PARTS.into_iter().filter(|(name, ..)| options.wants(name)) {
        eprintln!("{name}: {about}");
        notes.extend(meter.note_if_busy(name)?);
        parts.push(run(options)?);
    }
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    Ok(Report { machine: Machine::look()?, arguments, quick: options.quick, parts, notes })
}
