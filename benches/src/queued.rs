//! The benchmark of a guest queue: random reads of 4 KiB against fio, on one loop device, in turns.
//!
//! Every contender is a command that reads for some seconds, and says how many reads it did, in what time, and with how much CPU
//! time of its own. fio says so in its report; the others print one line of JSON, [`Reading`]: the reader of `benches/queue.rs`,
//! and the same in C, `benches/c/queue.c`, which is compiled here against the shared library.
//!
//! What C costs is looked at where a read costs least: on a file that is one hole. There is no null device on every machine. The
//! file does not lie in memory: tmpfs has a kernel thread read a hole, and what that costs is noise of ten times what is looked
//! for.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use blkmirror_testkit::{LoopDevice, LoopOptions, MIB, fill};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contender::{Line, is_installed};
use crate::error::{Context, Failure, Result};
use crate::machine::Machine;
use crate::measure::Meter;
use crate::stats::Spread;
use crate::targets::{Bound, Target};

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 1024 * MIB;
/// Bytes of a read.
pub const BLOCK_BYTES: u64 = 4096;
/// Reads on their way.
pub const DEPTH: u64 = 64;
/// Completions that are waited for at once, where the name of a contender says nothing else: a quarter of the depth, so that the
/// device has work while the next reads are made. Half of it is too much to wait for: fio and the queue both get slower by it.
pub const LOT: usize = 16;

/// What the command line can change.
#[derive(Debug, Clone, Parser)]
#[command(name = "queue")]
pub struct Options {
    /// Rounds; every contender runs once in each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    pub seconds: u32,
    /// Run only contenders whose name contains this text (may be given several times)
    #[arg(long, value_name = "NAME")]
    pub contender: Vec<String>,
    /// Set by `cargo bench`; without it (cargo test) nothing is measured
    #[arg(long, hide = true)]
    pub bench: bool,
    /// Be the contender: read this disk and print what it took
    #[arg(long, hide = true)]
    pub read: Option<std::path::PathBuf>,
    /// As the contender: take completions in lots of so many
    #[arg(long, hide = true, default_value_t = LOT)]
    pub lot: usize,
    /// As the contender: keep the eventfd of a host's event loop
    #[arg(long, hide = true)]
    pub eventfd: bool,
    /// As the contender: do not map the memory
    #[arg(long, hide = true)]
    pub unmapped: bool,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reading {
    /// Reads.
    pub reads: u64,
    /// In this time.
    pub seconds: f64,
    /// With so much CPU time, user and system.
    pub cpu_s: f64,
}

impl Reading {
    /// Reads per second.
    fn per_s(&self) -> f64 {
        self.reads as f64 / self.seconds
    }

    /// Microseconds of CPU time for each.
    fn cpu_us(&self) -> f64 {
        self.cpu_s * 1e6 / self.reads.max(1) as f64
    }
}

/// Somebody who reads.
struct Contender {
    /// In the table.
    name: &'static str,
    /// The command.
    line: Line,
    /// fio's report says it in its own way.
    is_fio: bool,
    /// What it did in each round.
    readings: Vec<Reading>,
}

/// The repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo leaves what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The reader in C, compiled into `dir` against the shared library, which is built first.
fn compile(dir: &Path) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let manifest = root().join("Cargo.toml");
    let build = Line::new(&cargo)
        .words("build --quiet --locked --release -p blkmirror-ffi --manifest-path")
        .word(&manifest);
    build.output()?;
    let library = target().join("release/libblkmirror.so");
    for name in ["libblkmirror.so", "libblkmirror.so.0"] {
        std::fs::copy(&library, dir.join(name)).context(|| "copy the library")?;
    }
    let program = dir.join("queue");
    let line =
        Line::new("cc").words("-O2 -Wall -Werror -o").word(&program).word(root().join("benches/c/queue.c"));
    let line =
        line.word(format!("-I{}", root().join("include").display())).word(format!("-L{}", dir.display()));
    line.word("-lblkmirror").word(format!("-Wl,-rpath,{}", dir.display())).output()?;
    Ok(program)
}

/// Everybody, in the order of the table. `hole` is a file that is one hole, `in_c` the reader in C.
fn contenders(disk: &Path, hole: &Path, in_c: &Path, seconds: u32) -> Result<Vec<Contender>> {
    let program = std::env::current_exe().context(|| "this program's path")?;
    let reader = |program: &Path, disk: &Path, words: &str| {
        let line = Line::new(&program.display().to_string()).words(&format!("--seconds={seconds} --read"));
        line.word(disk).words(words)
    };
    let ours = |words: &str| reader(&program, disk, words);
    let fio = |words: &str| {
        Line::new("fio")
            .words("--output-format=json --thread --ioengine=io_uring --fixedbufs=1 --registerfiles=1 --direct=1")
            .words("--rw=randread --norandommap=1 --invalidate=0 --allow_file_create=0 --time_based=1")
            .words(&format!("--bs={BLOCK_BYTES} --iodepth={DEPTH} --size={DISK_BYTES} --runtime={seconds}"))
            .words(words)
            .words("--name=read")
            .word(format!("--filename={}", disk.display()))
    };
    let lots = |lot: u32| format!("--iodepth_batch_submit={lot} --iodepth_batch_complete_min={lot}");
    let most = format!("--iodepth_batch_complete_max={DEPTH}");
    let lot = format!("--lot={LOT}");
    let all = [
        (FIO_PLAIN, fio(""), true),
        (FIO_16, fio(&format!("{} {most}", lots(16))), true),
        (FIO_32, fio(&format!("{} {most}", lots(32))), true),
        ("fio, lots of 32, no clocks", fio(&format!("{} {most} --gtod_reduce=1", lots(32))), true),
        (QUEUE, ours(&lot), false),
        ("queue, lots of 32", ours("--lot=32"), false),
        ("queue, lots of 1", ours("--lot=1"), false),
        ("queue, with an eventfd", ours(&format!("{lot} --eventfd")), false),
        ("queue, memory not mapped", ours(&format!("{lot} --unmapped")), false),
        (QUEUE_IN_C, reader(in_c, disk, &lot), false),
        (HOLE, reader(&program, hole, &lot), false),
        (HOLE_IN_C, reader(in_c, hole, &lot), false),
    ];
    let contender = |(name, line, is_fio)| Contender { name, line, is_fio, readings: Vec::new() };
    Ok(all.into_iter().map(contender).collect())
}

/// fio as it comes; one of three that the promises are about.
const FIO_PLAIN: &str = "fio";
/// See [`FIO_PLAIN`].
const FIO_16: &str = "fio, lots of 16";
/// See [`FIO_PLAIN`].
const FIO_32: &str = "fio, lots of 32";
/// What is promised about.
const QUEUE: &str = "queue";
/// The same through C.
const QUEUE_IN_C: &str = "queue, through C";
/// What C costs is the difference of these two.
const HOLE: &str = "a hole";
/// See [`HOLE`].
const HOLE_IN_C: &str = "a hole, through C";

/// One run.
fn run_once(contender: &Contender) -> Result<Reading> {
    let output = contender.line.output()?;
    // fio may print a note before the JSON.
    let json = output.find('{').and_then(|at| output.get(at..)).unwrap_or_default();
    if !contender.is_fio {
        return serde_json::from_str(json).context(|| contender.name);
    }
    let report: Value = serde_json::from_str(json).context(|| "fio's report")?;
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let seconds = number(&job["read"]["runtime"]) / 1e3;
    let reads = job["read"]["total_ios"].as_u64().unwrap_or_default();
    if reads == 0 || job["error"].as_u64() != Some(0) {
        return Err(Failure::new("fio: it read nothing, or failed"));
    }
    let cpu_percent = number(&job["usr_cpu"]) + number(&job["sys_cpu"]);
    Ok(Reading { reads, seconds, cpu_s: cpu_percent / 100.0 * seconds })
}

/// The whole benchmark.
pub fn run(options: &Options) -> Result<()> {
    if !is_installed("fio") {
        return Err(Failure::new("fio: not installed"));
    }
    let machine = Machine::look()?;
    let disk = LoopDevice::in_memory(DISK_BYTES, LoopOptions::default()).context(|| "loop device")?;
    fill::random(disk.path(), 0, DISK_BYTES, 1).context(|| "loop device")?;
    let programs = tempfile::tempdir().context(|| "a scratch directory")?;
    let hole = tempfile::NamedTempFile::new_in(target()).context(|| "a file with a hole")?;
    hole.as_file().set_len(4 * MIB).context(|| "a file with a hole")?;
    let mut all = contenders(disk.path(), hole.path(), &compile(programs.path())?, options.seconds)?;
    let wanted = |name: &str| {
        options.contender.is_empty() || options.contender.iter().any(|w| name.contains(w.as_str()))
    };
    all.retain(|contender| wanted(contender.name));
    let note = Meter::without_punts()?.note_if_busy("queue")?;
    for round in 0..options.rounds {
        let mut turns: Vec<usize> = (0..all.len()).collect();
        turns.rotate_left(round as usize % all.len().max(1));
        for turn in turns {
            let reading = run_once(&all[turn])?;
            let (name, per_s, cpu_us) = (all[turn].name, reading.per_s(), reading.cpu_us());
            eprintln!("  round {} {name:28} {per_s:9.0} reads/s {cpu_us:6.3} us", round + 1);
            all[turn].readings.push(reading);
        }
    }
    println!("\n{}", machine.line());
    println!(
        "random reads of 4 KiB, {DEPTH} on their way, one thread, {} rounds of {} s\n",
        options.rounds, options.seconds
    );
    note.into_iter().for_each(|note| println!("{note}\n"));
    print_table(&all);
    Ok(())
}

/// What a contender reached, as medians: reads per second, microseconds of CPU time for each.
fn medians(contender: &Contender) -> Option<(Spread, Spread)> {
    let per_s = Spread::of(contender.readings.iter().map(Reading::per_s))?;
    Some((per_s, Spread::of(contender.readings.iter().map(Reading::cpu_us))?))
}

/// The median over the rounds of a ratio within each round, so that a slow minute falls on both of its sides.
fn ratio(all: &[Contender], of: &str, to: &str, figure: impl Fn(&Reading) -> f64) -> Option<f64> {
    let find = |name| all.iter().find(|contender| contender.name == name);
    let pairs = find(of)?.readings.iter().zip(&find(to)?.readings);
    Some(Spread::of(pairs.map(|(of, to)| figure(of) / figure(to)))?.median)
}

/// Nanoseconds of CPU time per read that C costs: the median over the rounds of the difference within each.
fn cost_of_c_ns(all: &[Contender]) -> Option<f64> {
    let find = |name| all.iter().find(|contender| contender.name == name);
    let pairs = find(HOLE_IN_C)?.readings.iter().zip(&find(HOLE)?.readings);
    Some(Spread::of(pairs.map(|(c, rust)| (c.cpu_us() - rust.cpu_us()) * 1e3))?.median)
}

/// The tables.
fn print_table(all: &[Contender]) {
    let best = [FIO_PLAIN, FIO_16, FIO_32].into_iter().max_by(|a, b| {
        let median =
            |name: &str| all.iter().find(|c| c.name == name).and_then(medians).map_or(0.0, |m| m.0.median);
        median(a).total_cmp(&median(b))
    });
    let best = best.unwrap_or(FIO_PLAIN);
    println!("| who | reads/s | of {best} | CPU us per read | of {best} |\n|---|---|---|---|---|");
    for contender in all {
        let Some((per_s, cpu_us)) = medians(contender) else { continue };
        let of = |figure: fn(&Reading) -> f64| {
            ratio(all, contender.name, best, figure).map_or_else(String::new, |ratio| format!("{ratio:.3}"))
        };
        let Spread { median, min, max } = per_s;
        let (speed, cpu) = (of(Reading::per_s), of(Reading::cpu_us));
        println!(
            "| {} | {median:.0} ({min:.0} to {max:.0}) | {speed} | {:.3} | {cpu} |",
            contender.name, cpu_us.median
        );
    }
    println!("\n| promise | bound | reached | |\n|---|---|---|---|");
    let row = |promise: String, bound, reached: Option<f64>| {
        let target = Target { scenario: "queue".to_owned(), promise, bound, reached };
        let number = reached.map_or_else(String::new, |reached| format!("{reached:.3}"));
        println!("| {} | {} | {number} | {} |", target.promise, target.bound, target.verdict());
    };
    for (fio, name) in [(best, "the best fio"), (FIO_PLAIN, "fio without lots")] {
        for (who, how) in [(QUEUE, "the queue"), (QUEUE_IN_C, "the queue through C")] {
            let (speed, cpu) = (ratio(all, who, fio, Reading::per_s), ratio(all, who, fio, Reading::cpu_us));
            row(format!("reads/s of {how} over {name}'s"), Bound::AtLeast(0.97), speed);
            row(format!("CPU per read of {how} over {name}'s"), Bound::AtMost(1.1), cpu);
        }
    }
    row("ns of CPU per request that C costs, on a hole".to_owned(), Bound::AtMost(30.0), cost_of_c_ns(all));
    println!();
    all.iter().for_each(|contender| println!("{}: `{}`", contender.name, contender.line));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &'static str, reads: &[u64]) -> Contender {
        let reading = |&reads| Reading { reads, seconds: 2.0, cpu_s: 1.0 };
        Contender { name, line: Line::new("x"), is_fio: false, readings: reads.iter().map(reading).collect() }
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let all = [contender("a", &[100, 900, 50]), contender("b", &[100, 1000, 100])];
        assert_eq!(ratio(&all, "a", "b", Reading::per_s), Some(0.9));
        assert_eq!(ratio(&all, "a", "c", Reading::per_s), None);
        assert_eq!(all[0].readings[0].cpu_us(), 10_000.0);
    }
}
