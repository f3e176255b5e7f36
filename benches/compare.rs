//! `cargo bench --bench compare`: blkmirror and its peers on the same disks, in the same minutes.
//!
//! Everything is in the library next door; docs/BENCHMARKING.md tells how to run and read it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blkmirror_benches::options::Options;
use clap::Parser;

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        // `cargo test --benches` starts this too; that must not take twenty minutes.
        println!("skipped: run it with `cargo bench --bench compare`");
        return ExitCode::SUCCESS;
    }
    match blkmirror_benches::run::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("compare: {failure}");
            ExitCode::FAILURE
        }
    }
}
