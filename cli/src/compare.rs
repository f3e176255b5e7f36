//! `blkmirror compare`: do two devices hold the same, and if not, where not.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blkmirror_core::device::Device;
use blkmirror_core::units::{ByteRange, format_size};

use crate::args::CompareArgs;
use crate::cpu::Stopwatch;
use crate::diff::{self, Differences, Scope};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{exit_after, print, print_json, say};
use crate::progress::Bar;
use crate::report::{CompareReport, JsonRange};
use crate::signals::Interrupts;

/// Runs the command.
pub(crate) fn run(args: &CompareArgs, interrupts: &Interrupts) -> Exit {
    let name = |path: &Path| Some(path.display().to_string());
    let mut report = CompareReport { a: name(&args.a), b: name(&args.b), ..Default::default() };
    let compared_bytes = set_last_word(args, &report, interrupts);
    let result = compare(args, &mut report, interrupts, &compared_bytes);
    interrupts.take_last_word();
    let exit = match &result {
        Ok(exit) => *exit,
        Err(failure) => {
            report.error = Some(failure.text.clone());
            say(failure);
            failure.exit
        }
    };
    let printed = match (args.json, &result) {
        (true, _) => print_json(&report),
        (false, Ok(_)) if !args.quiet => print(&report.text()),
        _ => Ok(()),
    };
    exit_after(printed, exit)
}

/// The comparison itself; fills in the report.
fn compare(
    args: &CompareArgs,
    report: &mut CompareReport,
    interrupts: &Interrupts,
    compared: &AtomicU64,
) -> Outcome<Exit> {
    let stopwatch = Stopwatch::start();
    let (a, b) = (Device::open_for_reading(&args.a)?, Device::open_for_reading(&args.b)?);
    (report.size_a, report.size_b) = (a.size_bytes(), b.size_bytes());
    let bytes = report.size_a.min(report.size_b);
    let bar = Bar::new(!(args.json || args.quiet || args.no_progress), "compare", bytes);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let found = diff::compare([&a, &b], bytes, Scope::All, limit, interrupts, |done| {
        compared.store(done, Ordering::Relaxed);
        tick(&bar, done, bytes, &stopwatch);
    })?;
    bar.finish();
    report.seconds = stopwatch.seconds();
    report.cpu_seconds = stopwatch.cpu_seconds();
    take(report, &found);
    if found.interrupted {
        return Err(interrupted(report));
    }
    let equal = report.size_a == report.size_b && found.ranges == 0;
    report.equal = Some(equal);
    Ok(if equal { Exit::Done } else { Exit::Failed })
}

/// Draws the bar for a comparison.
pub(crate) fn tick(bar: &Bar, done: u64, total: u64, stopwatch: &Stopwatch) {
    let (rate, eta) = stopwatch.extrapolate(done, total);
    bar.set(done, total, rate, eta);
}

/// Takes over what was found.
fn take(report: &mut CompareReport, found: &Differences) {
    report.bytes_compared = found.compared_bytes;
    report.bytes_read = found.read_bytes;
    report.differing_ranges = found.ranges;
    report.differing_bytes = found.bytes;
    let json = |range: &ByteRange| JsonRange { start: range.start(), length: range.len() };
    report.ranges = found.first.iter().map(json).collect();
}

/// How a comparison ends that a signal stopped.
fn interrupted(report: &CompareReport) -> Failure {
    let total = report.size_a.min(report.size_b);
    let found = if report.differing_ranges > 0 { "they differ" } else { "no difference so far" };
    Failure::interrupted(format!(
        "interrupted: {} of {} compared, {found}",
        format_size(report.bytes_compared),
        format_size(total)
    ))
}

/// Tells the watchdog what to say; it reads how far the comparison is from what this returns.
fn set_last_word(args: &CompareArgs, report: &CompareReport, interrupts: &Interrupts) -> Arc<AtomicU64> {
    let done = Arc::new(AtomicU64::new(0));
    let (watched, report, json) = (Arc::clone(&done), report.clone(), args.json);
    interrupts.set_last_word(move || {
        let mut report = CompareReport { error: Some("interrupted".into()), ..report.clone() };
        report.bytes_compared = watched.load(Ordering::Relaxed);
        say(format!(
            "interrupted: a device does not answer; {} compared",
            format_size(report.bytes_compared)
        ));
        if json {
            let _ = print_json(&report);
        }
    });
    done
}
