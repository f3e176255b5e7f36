//! What the command line of `cargo bench --bench compare -- ...` can change.
#![forbid(unsafe_code)]

use clap::Parser;

/// Compares `blkmirror copy` with its peers on scratch disks in memory. Needs root and a Linux kernel.
#[derive(Debug, Clone, Parser)]
#[command(name = "compare")]
pub struct Options {
    /// Rounds per scenario; every contender runs once in each [default: 7, with --quick 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Run only this scenario (may be given several times; see --list)
    #[arg(long, value_name = "SCENARIO")]
    pub only: Vec<String>,

    /// Run only contenders whose name contains this text (may be given several times)
    #[arg(long, value_name = "NAME")]
    pub contender: Vec<String>,

    /// Small disks and three rounds: two to three minutes, for a first look; not for quoting
    #[arg(long)]
    pub quick: bool,

    /// List the scenarios and leave
    #[arg(long)]
    pub list: bool,

    /// Print the compact table for the README from the last run's target/compare.json and leave
    #[arg(long)]
    pub readme: bool,

    /// Set by `cargo bench`; without it (cargo test) nothing is measured
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// How many rounds each scenario gets.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 })
    }

    /// Whether a scenario was asked for.
    #[must_use]
    pub fn wants_scenario(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }

    /// Whether a contender was asked for.
    #[must_use]
    pub fn wants_contender(&self, name: &str) -> bool {
        self.contender.is_empty() || self.contender.iter().any(|part| name.contains(part.as_str()))
    }
}
