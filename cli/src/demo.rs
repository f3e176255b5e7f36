//! `blkmirror demo`: what it does, shown on scratch disks that it makes itself.
//!
//! First copies of a disk at rest, by the very code of `blkmirror copy --verify`; then a disk that is written to all the time,
//! mirrored and switched over under load, by the code of `blkmirror bench live`. It needs no root, cleans up, and fits itself
//! into the space there is.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use blkmirror_core::mirror::MirrorOptions;
use blkmirror_core::units::{GIB, MIB, format_size};
use blkmirror_load::{Arrival, Plan};
use clap::Parser;

use crate::args::{Cli, Command, CopyArgs, DemoArgs};
use crate::copy::{self, Notes};
use crate::cpu::as_f64;
use crate::exit::{Failure, Outcome};
use crate::live::{self, Course};
use crate::live_report::{self, LiveReport};
use crate::output::print;
use crate::report::CopyReport;
use crate::scratch::{attach_loop, make_place, make_source};
use crate::signals::Interrupts;

/// The smallest scratch disk that is worth a demo.
const MIN_BYTES: u64 = MIB;
/// The part of the free space that one disk may take: the source, one target, and as much left to others.
const SPACE_PARTS: u64 = 4;

/// How long a live job may take to be ready.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the command.
pub(crate) fn run(args: &DemoArgs, interrupts: &Interrupts) -> Outcome<()> {
    let result = demo(args, interrupts);
    // `main` says how it ended, and cleans up after that: removing the disks may take a while.
    interrupts.take_last_word();
    result
}

/// The demo; scratch disks are registered for removal.
fn demo(args: &DemoArgs, interrupts: &Interrupts) -> Outcome<()> {
    // A machine without io_uring should say so before it is asked for a gigabyte of scratch data.
    blkmirror_core::ring::probe()?;
    let place = make_place(args.dir.as_deref(), args.size.saturating_mul(SPACE_PARTS), interrupts)?;
    let bytes = fit(args.size, place.free_bytes).ok_or_else(|| {
        Failure::failed(format!(
            "{} has only {} free, the demo needs {}; name another directory with --dir",
            place.directory.display(),
            format_size(place.free_bytes),
            format_size(MIN_BYTES * SPACE_PARTS)
        ))
    })?;
    let source = place.directory.join("source.img");
    let target = place.directory.join("target.img");
    if bytes < args.size {
        print(&format!(
            "little space here, so the disk has {} instead of {}\n",
            format_size(bytes),
            format_size(args.size)
        ))?;
    }
    if !place.direct {
        print("this file system has no O_DIRECT, so the numbers are those of the page cache\n")?;
    }
    let data_bytes = make_source(&source, bytes, interrupts)?;
    print(&format!(
        "scratch disk of {} in {}: {} of random data, partly scattered in 64 KiB pieces, and holes\n\n{}",
        format_size(bytes),
        place.directory.display(),
        format_size(data_bytes),
        header()
    ))?;

    row("file to new file", &source, &target, &[], interrupts)?;
    remove(&target)?;
    row("file to preallocated file", &source, &target, &["--preallocate"], interrupts)?;
    live("file", args, &source, &target, interrupts)?;

    let from = attach_loop(&source, interrupts);
    let to = from.as_ref().and_then(|_| attach_loop(&target, interrupts));
    let looped = from.zip(to);
    if let Some((from, to)) = &looped {
        print(&format!("\n{}", header()))?;
        row("block device to block device", from, to, &[], interrupts)?;
        live("block device", args, from, to, interrupts)?;
    }
    print(&format!("\n{}", live_report::legend()))?;
    print(&what_next(looped.is_some()))
}

/// Mirrors the source, a `what`, while it is written to, and shows what the writers noticed.
fn live(what: &str, args: &DemoArgs, source: &Path, target: &Path, interrupts: &Interrupts) -> Outcome<()> {
    let course = Course {
        source: source.into(),
        target: target.into(),
        plan: Plan { arrival: Arrival::Open { per_s: args.rate }, ..Plan::default() },
        options: MirrorOptions::default(),
        show_blocking: true,
        time: args.time,
        patience: PATIENCE,
    };
    print(&format!(
        "\nnow the {what} is written to all the time, {} writes/s of 4 KiB, and mirrored to the other one\n\n{}",
        args.rate,
        live_report::header()
    ))?;
    let mut report = LiveReport::default();
    let mut tell = |phase: &_| print(&live_report::row(phase));
    let result = live::run(&course, interrupts, &mut report, &mut tell);
    // A note is no failure, and a demo that says nothing on standard error has none.
    let notes: String = report.notes.iter().map(|note| format!("note: {note}\n")).collect();
    print(&format!("\n{}{notes}", report.ending()))?;
    result
}

/// The size of the disk that fits, or none if nothing worthwhile does.
fn fit(wanted_bytes: u64, free_bytes: u64) -> Option<u64> {
    let most = free_bytes / SPACE_PARTS / MIB * MIB;
    Some(wanted_bytes.min(most)).filter(|bytes| *bytes >= MIN_BYTES)
}

/// Frees the space of the last target.
fn remove(target: &Path) -> Outcome<()> {
    std::fs::remove_file(target)
        .map_err(|e| Failure::failed(format!("cannot remove {}: {e}", target.display())))
}

/// Copies and verifies, and prints a row of the table.
fn row(what: &str, source: &Path, target: &Path, options: &[&str], interrupts: &Interrupts) -> Outcome<()> {
    let args = copy_args(source, target, options)?;
    let (report, result) = copy::perform(&args, interrupts, Notes::Kept);
    result?;
    print(&cells(what, &report))
}

/// The arguments of a copy, by way of the command line so that the demo does what its users will do.
fn copy_args(source: &Path, target: &Path, options: &[&str]) -> Outcome<CopyArgs> {
    let line = ["blkmirror", "copy", "--verify"].iter().chain(options).map(std::ffi::OsString::from);
    let line = line.chain(["--".into(), source.into(), target.into()]);
    match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Command::Copy(args)) => Ok(*args),
        Ok(_) => Err(Failure::failed("the demo's command is no copy")),
        Err(error) => Err(Failure::failed(crate::args::usage_text(&error))),
    }
}

/// The head of the table.
fn header() -> String {
    format!(
        "{:<30} {:>9} {:>8} {:>7} {:>10} {:>8} {:>9}\n",
        "", "copied", "seconds", "GiB/s", "CPU s/GiB", "workers", "verified"
    )
}

/// A row of the table.
fn cells(what: &str, report: &CopyReport) -> String {
    let gib = as_f64(report.bytes_copied) / as_f64(GIB);
    let per = |number: f64, of: f64| if of > 0.0 { number / of } else { 0.0 };
    format!(
        "{what:<30} {:>9} {:>8.3} {:>7.2} {:>10.3} {:>8} {:>9}\n",
        format_size(report.bytes_copied),
        report.seconds,
        per(gib, report.seconds),
        per(report.cpu_seconds, gib),
        report.workers,
        if report.verified == Some(true) { "yes" } else { "NO" }
    )
}

/// What to try after this.
fn what_next(looped: bool) -> String {
    let block =
        if looped { "" } else { "\nAs root the demo also copies and mirrors block devices (loop).\n" };
    format!(
        "{block}
What to try next:
  blkmirror copy disk.img copy.img --verify     a raw image or a block device to another
  blkmirror compare disk.img copy.img           where do two disks differ?
  blkmirror info /dev/vda                       what a disk demands, and what the kernel offers
  blkmirror bench live --yes SRC DST            the same writers and mirror on disks of yours; destroys BOTH
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A demo that fills somebody's disk is no demo.
    #[test]
    fn the_disk_shrinks_to_a_quarter_of_the_free_space() {
        assert_eq!(fit(GIB, 100 * GIB), Some(GIB));
        assert_eq!(fit(GIB, 100 * MIB + 5), Some(25 * MIB));
        assert_eq!(fit(GIB, 3 * MIB), None);
    }

    /// A row must stay under its head.
    #[test]
    fn rows_line_up_with_the_header() {
        let report = CopyReport {
            bytes_copied: GIB,
            seconds: 0.5,
            cpu_seconds: 0.25,
            workers: 2,
            verified: Some(true),
            ..Default::default()
        };
        let row = cells("file to new file", &report);
        assert_eq!(row.len(), header().len());
        assert!(row.contains("2.00      0.250"), "{row}");
    }

    /// Paths with any content must be copied as they are.
    #[test]
    fn the_demo_uses_the_command_line_of_copy() {
        let args = copy_args(Path::new("-s"), Path::new("t"), &["--preallocate"]).unwrap();
        assert!(args.verify && args.preallocate);
        assert_eq!(args.source, Path::new("-s"));
    }
}
