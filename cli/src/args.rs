//! The command line: what can be asked for, its bounds, and the help.
//!
//! Every number is checked here once, with an error that names the option; behind it nothing is checked again. So numbers
//! may begin with a hyphen as far as clap is concerned, which would give wrong advice about `-1`. The doc
//! comments of the fields are the help texts, and `docs/man/blkmirror.1` says the same at more length (a test sees to it
//! that it leaves no option out).
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use blkmirror_core::mirror::{ErrorPolicy, MirrorOptions, SyncMode};
use blkmirror_core::units::{GIB, Granularity, KIB, TIB, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::bench_args::{BenchArgs, phase_time};

/// Threads at most; the engine takes no more.
const MAX_THREADS: usize = 256;

/// Shown at the end of every `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done; compare: equal
  1    failed; compare and --verify: the two differ
  2    wrong usage
  130  interrupted by SIGINT or SIGTERM

Sizes are bytes, or a number with K, M, G or T (powers of 1024).";

/// Mirror block devices and raw images at device speed, with io_uring and O_DIRECT
#[derive(Parser, Debug)]
#[command(name = "blkmirror", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Copy a block device or raw image to another
    #[command(after_help = EXIT_CODES)]
    Copy(Box<CopyArgs>),
    /// Compare two block devices or raw images, and report where they differ
    #[command(after_help = EXIT_CODES)]
    Compare(CompareArgs),
    /// Show a device's limits and what the kernel offers, and why something is off
    #[command(after_help = EXIT_CODES)]
    Info(InfoArgs),
    /// Copy scratch disks made for the purpose, mirror one while it is written to, verify, and show how fast it was
    /// (no root needed)
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// Measure on devices of your own
    #[command(after_help = EXIT_CODES)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What part of the source is copied.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sync {
    /// Everything the guest sees
    Full,
    /// What the topmost image layer holds: allocated ranges, or the extents of --map
    Top,
    /// Nothing that is there already; only later writes (of use once guests are attached)
    None,
}

impl From<Sync> for SyncMode {
    fn from(sync: Sync) -> Self {
        match sync {
            Sync::Full => Self::Full,
            Sync::Top => Self::Top,
            Sync::None => Self::None,
        }
    }
}

/// What to do about a read or write error that retrying does not cure.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnError {
    /// End the job with the error
    Report,
    /// Go on with the rest, come back to what failed a few times, and fail only then
    Ignore,
    /// Stop when space ran out, and try again every second; report everything else
    Enospc,
    /// Stop, and try again every second
    Stop,
}

impl From<OnError> for ErrorPolicy {
    fn from(policy: OnError) -> Self {
        match policy {
            OnError::Report => Self::Report,
            OnError::Ignore => Self::Ignore,
            OnError::Enospc => Self::Enospc,
            OnError::Stop => Self::Stop,
        }
    }
}

/// `blkmirror copy`.
#[derive(Args, Debug)]
pub(crate) struct CopyArgs {
    /// Block device or raw image to read; never opened for writing
    #[arg(value_name = "SRC", value_hint = ValueHint::FilePath)]
    pub(crate) source: PathBuf,

    /// Block device or raw image to write; a missing file is created with the source's size, for its owner
    /// alone (mode 0600)
    #[arg(value_name = "DST", value_hint = ValueHint::FilePath)]
    pub(crate) target: PathBuf,

    /// What to copy
    #[arg(long, value_enum, default_value = "full", help_heading = "What to copy")]
    pub(crate) sync: Sync,

    /// Extents of the topmost layer, as `qemu-img map --output=json` prints them; `-` is standard input.
    /// Needs --sync top
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What to copy")]
    pub(crate) map: Option<PathBuf>,

    /// Bytes per dirty bit, a power of two from 512 to 64M; a smaller one copies less around scattered
    /// data and costs more requests and more memory [default: 64K, or the cluster size from 4K to 64K]
    #[arg(long, value_name = "SIZE", value_parser = granularity, allow_hyphen_values = true, help_heading = "Speed")]
    pub(crate) granularity: Option<Granularity>,

    /// Bytes on their way at once per worker, from 4K to 1G, rounded up to the granularity. Each worker takes
    /// as much memory, in whole 2M, and 4M to spare. More helps against latency [default: 16M]
    #[arg(long, value_name = "SIZE", value_parser = buf_size, allow_hyphen_values = true, help_heading = "Speed")]
    pub(crate) buf_size: Option<u64>,

    /// Worker threads, each with its own ring, from 1 to 256 [default: one for two cores, at least
    /// 1 and at most 4]
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true, help_heading = "Speed")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Bytes per second at most, from 4K to 1T, averaged over short slices; 0 is no limit
    #[arg(long, value_name = "SIZE", value_parser = speed, allow_hyphen_values = true, default_value = "0", help_heading = "Speed")]
    pub(crate) speed: u64,

    /// Look for zeroes in the data and write them as zeroes, which may take no space; costs a scan in memory
    #[arg(long, help_heading = "Zeroes and space")]
    pub(crate) zero_detect: bool,

    /// The target reads as zeroes now, so zeroes are skipped. If it does not, the copy is WRONG; a target
    /// that blkmirror creates is known to be zero without this
    #[arg(long, help_heading = "Zeroes and space")]
    pub(crate) target_is_zero: bool,

    /// Allocate a target file's space before the copy: faster writes, and no surprise about space
    /// half way; a file made so has no holes. Where the file system cannot, a note says so
    #[arg(long, help_heading = "Zeroes and space")]
    pub(crate) preallocate: bool,

    /// Cluster size of a target with a backing file, a power of two from 512 to 2M: the first write
    /// to a cluster then copies all of it
    #[arg(long, value_name = "SIZE", value_parser = cluster, allow_hyphen_values = true, help_heading = "Zeroes and space")]
    pub(crate) target_cluster_size: Option<u64>,

    /// When reading the source fails
    #[arg(long, value_enum, value_name = "POLICY", default_value = "report", help_heading = "Errors")]
    pub(crate) on_source_error: OnError,

    /// When writing the target fails
    #[arg(long, value_enum, value_name = "POLICY", default_value = "report", help_heading = "Errors")]
    pub(crate) on_target_error: OnError,

    /// Read both sides again after the copy, with O_DIRECT where the file system has it, and compare; exit 1
    /// if they differ
    #[arg(long, help_heading = "Errors")]
    pub(crate) verify: bool,

    /// Accept a target that is larger than the source; what lies behind the source's end stays as it is
    #[arg(long, help_heading = "Errors")]
    pub(crate) force: bool,

    /// Print exactly one JSON object on standard output, also on failure; no progress bar
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print nothing but errors, no notes either
    #[arg(long, short, help_heading = "Output")]
    pub(crate) quiet: bool,

    /// No progress bar; there is none anyway unless standard error is a terminal
    #[arg(long, help_heading = "Output")]
    pub(crate) no_progress: bool,
}

/// `blkmirror compare`.
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// Block device or raw image
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) a: PathBuf,

    /// Block device or raw image
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) b: PathBuf,

    /// Show this many differing ranges; the rest is counted
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_000_000), allow_hyphen_values = true)]
    pub(crate) limit: u32,

    /// Print exactly one JSON object on standard output, also on failure
    #[arg(long)]
    pub(crate) json: bool,

    /// Print nothing but errors; the exit code says whether they differ
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// No progress bar; there is none anyway unless standard error is a terminal
    #[arg(long)]
    pub(crate) no_progress: bool,
}

/// `blkmirror info`.
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// Block device or raw image; without it, only what the kernel offers
    #[arg(value_name = "DEV", value_hint = ValueHint::FilePath)]
    pub(crate) device: Option<PathBuf>,

    /// Print exactly one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `blkmirror demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Size of the scratch disk, from 1M to 1T; shrinks to what free space allows
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = demo_size, allow_hyphen_values = true)]
    pub(crate) size: u64,

    /// Directory for the scratch files [default: $TMPDIR, the current one, /var/tmp or /tmp; the first that
    /// can do O_DIRECT and has space]
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,

    /// Writes per second, of 4 KiB each, while the disk is mirrored
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000), allow_hyphen_values = true)]
    pub(crate) rate: u64,

    /// How long each phase of the live part is watched, from 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = phase_time, allow_hyphen_values = true)]
    pub(crate) time: Duration,
}

/// A size between two bounds.
pub(crate) fn bounded(text: &str, low: u64, high: u64, bounds: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if (low..=high).contains(&bytes) { Ok(bytes) } else { Err(format!("must be {bounds}")) }
}

/// A size; the error is the reason alone, because clap puts the option before it.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| reason(&e))
}

/// The cause of an error without what was attempted.
fn reason(error: &blkmirror_core::Error) -> String {
    error.why().map_or_else(|| error.to_string(), str::to_owned)
}

/// `--granularity`.
fn granularity(text: &str) -> Result<Granularity, String> {
    Granularity::new(size(text)?).map_err(|e| reason(&e))
}

/// `--target-cluster-size`.
fn cluster(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes.is_power_of_two() && (512..=MirrorOptions::MAX_CLUSTER_BYTES).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("must be a power of two from 512 to 2M".into())
    }
}

/// `--buf-size`; 0 is the default, as in QEMU.
fn buf_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Ok(0),
        _ => bounded(text, 4 * KIB, GIB, "from 4K to 1G, or 0 for the default"),
    }
}

/// `--speed`.
pub(crate) fn speed(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Ok(0),
        _ => bounded(text, 4 * KIB, TIB, "from 4K to 1T per second, or 0 for no limit"),
    }
}

/// `--threads`.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= MAX_THREADS)
        .ok_or_else(|| "must be from 1 to 256".into())
}

/// `--size` of the demo.
fn demo_size(text: &str) -> Result<u64, String> {
    bounded(text, 1024 * KIB, TIB, "from 1M to 1T")
}

/// The one line for a command line that clap refused.
pub(crate) fn usage_text(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let tip = paragraphs
        .find(|p| p.starts_with("tip:"))
        .map(|tip| format!("; {}", tip.trim_start_matches("tip: ")));
    let text = first.strip_prefix("error: ").unwrap_or(&first);
    format!("{text}{} (see --help)", tip.unwrap_or_default())
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
