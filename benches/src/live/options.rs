//! What the command line of `cargo bench --bench live -- ...` can change.
#![forbid(unsafe_code)]

use clap::Parser;

/// Mirrors scratch disks in memory while writers write to them, and holds the result against what is promised. Needs
/// root and a Linux kernel.
#[derive(Debug, Clone, Parser)]
#[command(name = "live")]
pub struct Options {
    /// Rounds of each part that compares; every contender runs once in each [default: 5, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Switch-overs under a load that is faster than the copy [default: 100, with --quick 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,

    /// Writes per second where the guest's latency is measured
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: u64,

    /// Run only this part (may be given several times; see --list)
    #[arg(long, value_name = "PART")]
    pub only: Vec<String>,

    /// Small disks, one round, few switch-overs: less than a minute, for a first look; not for quoting
    #[arg(long)]
    pub quick: bool,

    /// List the parts and leave
    #[arg(long)]
    pub list: bool,

    /// Print the table for the README from the last run's target/live.json and leave
    #[arg(long)]
    pub readme: bool,

    /// Set by `cargo bench`; without it (cargo test) nothing is measured
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// How many rounds.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// How many switch-overs.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 5 } else { 100 })
    }

    /// Whether a part was asked for.
    #[must_use]
    pub fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}
