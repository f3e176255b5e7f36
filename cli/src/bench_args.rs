//! The command line of `blkmirror bench`, and what it shares with that of the demo. As in `args`, every number is checked here.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget, MirrorOptions};
use blkmirror_core::units::{KIB, MIB};
use blkmirror_load::Pattern;
use clap::{Args, Subcommand, ValueEnum, ValueHint};

use crate::args::{EXIT_CODES, bounded, speed};

/// Writes per second at most; more is not open loop on any machine.
const MAX_RATE: u64 = 10_000_000;

/// `blkmirror bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) what: Bench,
}

/// The benchmarks.
#[derive(Subcommand, Debug)]
pub(crate) enum Bench {
    /// Mirror a disk while writers write to it, and show what they noticed. DESTROYS what is on both SRC and DST
    #[command(after_help = EXIT_CODES)]
    Live(Box<LiveArgs>),
}

/// Which blocks the writers write.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blocks {
    /// Any, each as likely as the others
    Uniform,
    /// A few hot ones and a long tail, as databases do
    Zipf,
    /// One after the other, as logs do
    Append,
}

impl From<Blocks> for Pattern {
    fn from(blocks: Blocks) -> Self {
        match blocks {
            Blocks::Uniform => Self::Uniform,
            Blocks::Zipf => Self::Zipf,
            Blocks::Append => Self::Append,
        }
    }
}

/// How the job follows the writers.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Writes go to the source, and copiers come after them
    Background,
    /// Writes go to both, and are done when both are
    WriteBlocking,
    /// Background, and write-blocking when the rest stops shrinking
    Auto,
}

impl From<Mode> for CopyModeChoice {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Background => Self::Background,
            Mode::WriteBlocking => Self::WriteBlocking,
            Mode::Auto => Self::Auto,
        }
    }
}

/// `blkmirror bench live`.
#[derive(Args, Debug)]
pub(crate) struct LiveArgs {
    /// The guest's disk: block device or raw image. The writers OVERWRITE it
    #[arg(value_name = "SRC", value_hint = ValueHint::FilePath)]
    pub(crate) source: PathBuf,

    /// Where it is mirrored to: block device or raw image, which must exist and be as large. It is OVERWRITTEN
    #[arg(value_name = "DST", value_hint = ValueHint::FilePath)]
    pub(crate) target: PathBuf,

    /// Yes, what is on SRC and on DST may be destroyed; nothing is written without this
    #[arg(long)]
    pub(crate) yes: bool,

    /// Writes per second of all writers together, each sent at its time whatever became of the ones before
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=MAX_RATE), allow_hyphen_values = true, help_heading = "The guest")]
    pub(crate) rate: u64,

    /// Which blocks are written
    #[arg(long, value_enum, default_value = "uniform", help_heading = "The guest")]
    pub(crate) pattern: Blocks,

    /// Bytes of a write, a multiple of 4K up to 16M
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = block, allow_hyphen_values = true, help_heading = "The guest")]
    pub(crate) block: u64,

    /// Writers, a thread and a queue each, from 1 to 256
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256), allow_hyphen_values = true, help_heading = "The guest")]
    pub(crate) writers: u16,

    /// How the job follows the writers
    #[arg(long, value_enum, default_value = "auto", help_heading = "The job")]
    pub(crate) copy_mode: Mode,

    /// How long writes may be held at the switch-over, from 1ms to 1h, or `none`: as long as it takes
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = max_pause, allow_hyphen_values = true, help_heading = "The job")]
    pub(crate) max_pause: Limit,

    /// Make room for the writers: their p99 stays below so many times what it was without the job (`1.5x`), or
    /// below a time (`500us`); 0 copies at full speed
    #[arg(long, value_name = "BUDGET", default_value = "2x", value_parser = latency_budget, allow_hyphen_values = true, help_heading = "The job")]
    pub(crate) latency_budget: LatencyBudget,

    /// Bytes per second that the job copies at most, from 4K to 1T; 0 is no limit
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = speed, allow_hyphen_values = true, help_heading = "The job")]
    pub(crate) speed: u64,

    /// How long each phase is watched, from 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = phase_time, allow_hyphen_values = true, help_heading = "Measuring")]
    pub(crate) time: Duration,

    /// Give up when the job is not ready after this time
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = patience, allow_hyphen_values = true, help_heading = "Measuring")]
    pub(crate) patience: Duration,

    /// Print exactly one JSON object on standard output, also on failure
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// A time, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit(pub(crate) Option<Duration>);

/// Parses `500us`, `50ms`, `2s`, `10m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time; write it as 500us, 50ms, 2s, 10m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(micros).map(Duration::from_micros).ok_or_else(wrong)
}

/// A time between two bounds.
fn time_between(text: &str, low: Duration, high: Duration, bounds: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if (low..=high).contains(&time) { Ok(time) } else { Err(format!("must be {bounds}")) }
}

/// An hour, the longest time that is asked for.
const HOUR: Duration = Duration::from_secs(3600);

/// `--max-pause`.
fn max_pause(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let shortest = MirrorOptions::MIN_MAX_PAUSE;
    time_between(text, shortest, HOUR, "from 1ms to 1h, or none").map(|time| Limit(Some(time)))
}

/// `--time`.
pub(crate) fn phase_time(text: &str) -> Result<Duration, String> {
    time_between(text, Duration::from_millis(100), HOUR, "from 100ms to 1h")
}

/// `--patience`.
fn patience(text: &str) -> Result<Duration, String> {
    time_between(text, Duration::from_secs(1), 168 * HOUR, "from 1s to 168h")
}

/// `--block`.
fn block(text: &str) -> Result<u64, String> {
    let bytes = bounded(text, 4 * KIB, 16 * MIB, "from 4K to 16M")?;
    if bytes.is_multiple_of(4 * KIB) { Ok(bytes) } else { Err("must be a multiple of 4K".into()) }
}

/// `--latency-budget`.
fn latency_budget(text: &str) -> Result<LatencyBudget, String> {
    if text == "0" {
        return Ok(LatencyBudget::Off);
    }
    if let Some(times) = text.strip_suffix('x') {
        let times: f64 = times.parse().map_err(|_| format!("'{times}' is not a number"))?;
        return if times > 1.0 && times <= 1000.0 {
            Ok(LatencyBudget::Baseline(times))
        } else {
            Err("must be more than 1x and at most 1000x".into())
        };
    }
    let bounds = "a multiple such as 1.5x, from 10us to 1h, or 0";
    time_between(text, Duration::from_micros(10), HOUR, bounds).map(LatencyBudget::Absolute)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, usage_text};

    /// Parses a `bench live` with two paths and these options.
    fn live(options: &[&str]) -> Result<LiveArgs, String> {
        let line = ["blkmirror", "bench", "live", "a", "b"].iter().chain(options);
        match Cli::try_parse_from(line).map_err(|e| usage_text(&e))?.command {
            Command::Bench(BenchArgs { what: Bench::Live(args) }) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    /// Nobody may lose a disk by leaving a word out.
    #[test]
    fn consent_is_never_the_default() {
        let args = live(&[]).unwrap();
        assert!(!args.yes);
        assert_eq!(args.max_pause, Limit(Some(MirrorOptions::DEFAULT_MAX_PAUSE)));
        assert_eq!(args.latency_budget, LatencyBudget::default());
        assert_eq!((args.block, args.pattern, args.copy_mode), (4096, Blocks::Uniform, Mode::Auto));
    }

    /// Times and budgets are written as people say them.
    #[test]
    fn times_and_budgets_are_read_with_units() {
        let options = ["--max-pause=none", "--latency-budget=1.5x", "--time=2s", "--patience=1h"];
        let args = live(&options).unwrap();
        assert_eq!((args.max_pause, args.time), (Limit(None), Duration::from_secs(2)));
        assert_eq!(args.latency_budget, LatencyBudget::Baseline(1.5));
        let micros = Duration::from_micros(500);
        assert_eq!(
            live(&["--latency-budget=500us"]).unwrap().latency_budget,
            LatencyBudget::Absolute(micros)
        );
        assert_eq!(live(&["--latency-budget=0"]).unwrap().latency_budget, LatencyBudget::Off);
    }

    /// A wrong number must be refused by the name of its option.
    #[test]
    fn absurd_values_are_refused_by_the_name_of_the_option() {
        for (option, value) in [
            ("--rate", "0"),
            ("--rate", "-1"),
            ("--pattern", "sideways"),
            ("--block", "512"),
            ("--block", "6000"),
            ("--block", "1G"),
            ("--writers", "0"),
            ("--copy-mode", "fast"),
            ("--max-pause", "0ms"),
            ("--max-pause", "50"),
            ("--latency-budget", "1x"),
            ("--latency-budget", "NaNx"),
            ("--latency-budget", "-2x"),
            ("--time", "1ms"),
            ("--patience", "99999999999999999999s"),
        ] {
            let text = live(&[&format!("{option}={value}")]).unwrap_err();
            assert!(text.contains(option), "{option}={value}: {text}");
        }
    }
}
