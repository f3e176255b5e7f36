//! The `blkmirror` command: copies, compares and explains block devices, on top of `blkmirror-core`.
//!
//! One file per idea. `args` is the command line; `copy`, `compare`, `info`, `demo` and `bench` are the commands (`bench_args` is
//! the last one's command line); `target` and `follow` are parts of `copy`, `diff` is the comparison itself; `live` mirrors a disk
//! under writers, for `demo` and `bench`; `scratch` makes the demo's disks; `map` reads extent lists; `report`, `live_report`,
//! `output`, `progress` and `cpu` are what is shown; `signals` and `exit` are how it ends; `aligned` is memory for O_DIRECT. No
//! logic of mirroring lives here.
#![forbid(unsafe_code)]

mod aligned;
mod args;
mod bench;
mod bench_args;
mod compare;
mod copy;
mod cpu;
mod demo;
mod diff;
mod exit;
mod follow;
mod info;
mod live;
mod live_report;
mod map;
mod output;
mod progress;
mod report;
mod scratch;
mod signals;
mod target;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command, usage_text};
use crate::exit::{Exit, Failure};
use crate::live_report::LiveReport;
use crate::output::{print, print_json, say};
use crate::report::{CompareReport, CopyReport};
use crate::signals::Interrupts;

fn main() -> ExitCode {
    let exit = match Cli::try_parse() {
        Ok(cli) => run(&cli.command),
        Err(error) => refuse(&error),
    };
    ExitCode::from(exit.code())
}

/// Runs the command.
fn run(command: &Command) -> Exit {
    let interrupts = match Interrupts::install() {
        Ok(interrupts) => interrupts,
        Err(failure) => return ended_badly(&failure),
    };
    let exit = match command {
        Command::Copy(args) => copy::run(args, &interrupts),
        Command::Compare(args) => compare::run(args, &interrupts),
        Command::Info(args) => done(info::run(args)),
        Command::Demo(args) => done(demo::run(args, &interrupts)),
        Command::Bench(args) => bench::run(args, &interrupts),
        Command::Completions { shell } => done(completions(*shell)),
    };
    interrupts.clean_up();
    exit
}

/// The exit code of a command that has said everything but its failure.
fn done(result: Result<(), Failure>) -> Exit {
    result.map_or_else(|failure| ended_badly(&failure), |()| Exit::Done)
}

/// Says why, and turns it into the exit code.
fn ended_badly(failure: &Failure) -> Exit {
    say(failure);
    failure.exit
}

/// Prints a completion script.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "blkmirror", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// What clap did not take for a command: a question for help, or wrong usage.
fn refuse(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        // Help and version; standard output may be a closed pipe.
        return done(print(&error.render().to_string()));
    }
    let text = if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "what to do? copy, compare, info, demo, bench or completions (see --help)".into()
    } else {
        usage_text(error)
    };
    // Whoever asked for JSON gets JSON, also when the rest of the line made no sense.
    let words: Vec<_> = std::env::args_os().skip(1).take_while(|word| word != "--").collect();
    if words.iter().any(|word| word == "--json") {
        let error = Some(text.clone());
        let printed = match words.iter().find_map(|word| word.to_str().filter(|w| !w.starts_with('-'))) {
            Some("compare") => print_json(&CompareReport { error, ..CompareReport::default() }),
            Some("bench") => print_json(&LiveReport { error, ..LiveReport::default() }),
            Some("info") => info::print_refusal(error),
            _ => print_json(&CopyReport { error, ..CopyReport::default() }),
        };
        if let Err(failure) = printed {
            say(&failure);
        }
    }
    ended_badly(&Failure::usage(text))
}
