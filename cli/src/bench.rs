//! `blkmirror bench`: measurements on the user's own devices.
#![forbid(unsafe_code)]

use blkmirror_core::mirror::MirrorOptions;
use blkmirror_core::units::format_size;
use blkmirror_load::{Arrival, Plan};

use crate::bench_args::{Bench, BenchArgs, LiveArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::live::{self, Course};
use crate::live_report::{LiveReport, header, row};
use crate::output::{exit_after, print, print_json, say, say_note};
use crate::signals::Interrupts;

/// Runs the command.
pub(crate) fn run(args: &BenchArgs, interrupts: &Interrupts) -> Exit {
    match &args.what {
        Bench::Live(args) => live(args, interrupts),
    }
}

/// `bench live`.
fn live(args: &LiveArgs, interrupts: &Interrupts) -> Exit {
    let mut report = LiveReport {
        source: Some(args.source.display().to_string()),
        target: Some(args.target.display().to_string()),
        ..LiveReport::default()
    };
    let result = consent(args).and_then(|()| measure(args, interrupts, &mut report));
    interrupts.take_last_word();
    let exit = result.as_ref().map_or_else(|failure| failure.exit, |()| Exit::Done);
    if let Err(failure) = &result {
        report.error = Some(failure.text.clone());
        say(failure);
    }
    let printed = if args.json { print_json(&report) } else { print(&report.ending()) };
    exit_after(printed, exit)
}

/// Both disks are written to; that must have been said.
fn consent(args: &LiveArgs) -> Outcome<()> {
    if args.yes {
        return Ok(());
    }
    let (source, target) = (args.source.display(), args.target.display());
    Err(Failure::usage(format!(
        "the writers overwrite {source} with test data, and the mirror overwrites {target}; if nothing on EITHER is needed, add --yes"
    )))
}

/// Runs the writers and the job.
fn measure(args: &LiveArgs, interrupts: &Interrupts, report: &mut LiveReport) -> Outcome<()> {
    let course = course(args);
    if !args.json {
        print(&format!(
            "{} writes/s of {} ({}) by {} writers on {}, mirrored to {}\n\n{}",
            args.rate,
            format_size(args.block),
            course.plan.pattern.name(),
            args.writers,
            args.source.display(),
            args.target.display(),
            header()
        ))?;
    }
    let mut tell = |phase: &_| if args.json { Ok(()) } else { print(&row(phase)) };
    let result = live::run(&course, interrupts, report, &mut tell);
    if !args.json {
        report.notes.iter().for_each(|note| say_note(note));
        print("\n")?;
    }
    result
}

/// What the command line asks for.
fn course(args: &LiveArgs) -> Course {
    Course {
        source: args.source.clone(),
        target: args.target.clone(),
        plan: Plan {
            pattern: args.pattern.into(),
            block_bytes: args.block,
            writers: args.writers,
            arrival: Arrival::Open { per_s: args.rate },
            ..Plan::default()
        },
        options: MirrorOptions {
            copy_mode: args.copy_mode.into(),
            max_pause: args.max_pause.0,
            latency_budget: args.latency_budget,
            speed_bytes_per_s: args.speed,
            ..MirrorOptions::default()
        },
        show_blocking: false,
        time: args.time,
        patience: args.patience,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget};
    use blkmirror_load::Pattern;
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::bench_args::{Bench, BenchArgs};

    /// An option that is read and not handed on measures something else than was asked for.
    #[test]
    fn what_is_asked_for_is_what_is_run() {
        let line = "blkmirror bench live a b --rate 123 --pattern append --block 8K --writers 3 --copy-mode write-blocking \
                    --max-pause 7ms --latency-budget 3x --speed 5M --time 2s --patience 9s";
        let Command::Bench(BenchArgs { what: Bench::Live(args) }) =
            Cli::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("{line}");
        };
        let Course { source, target, plan, options, time, patience, .. } = course(&args);
        assert_eq!((source.to_str(), target.to_str()), (Some("a"), Some("b")));
        assert_eq!(plan.arrival, Arrival::Open { per_s: 123 });
        assert_eq!((plan.pattern, plan.block_bytes, plan.writers), (Pattern::Append, 8192, 3));
        assert_eq!(options.copy_mode, CopyModeChoice::WriteBlocking);
        assert_eq!(options.max_pause, Some(Duration::from_millis(7)));
        assert_eq!(
            (options.latency_budget, options.speed_bytes_per_s),
            (LatencyBudget::Baseline(3.0), 5 << 20)
        );
        assert_eq!((time, patience), (Duration::from_secs(2), Duration::from_secs(9)));
    }
}
