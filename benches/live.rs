//! `cargo bench --bench live`: mirroring a disk that is being written to, against what is promised.
//!
//! Everything is in the library next door (`src/live/`); docs/BENCHMARKING.md tells how to run and read it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blkmirror_benches::live::options::Options;
use clap::Parser;

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        // `cargo test --benches` starts this too; that must not take ten minutes.
        println!("skipped: run it with `cargo bench --bench live`");
        return ExitCode::SUCCESS;
    }
    match blkmirror_benches::live::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("live: {failure}");
            ExitCode::FAILURE
        }
    }
}
