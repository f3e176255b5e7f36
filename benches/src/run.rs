//! The rounds: reset the target, run one contender, check the target, next.
//!
//! Contenders take turns within a round, and each round starts with another one, so that a slow minute of the machine
//! or the heat that one tool leaves behind falls on all of them. Everything runs on the calling thread, which must be
//! the main one (see `punts`).
#![forbid(unsafe_code)]

use crate::blkmirror::Blkmirror;
use crate::contender::{Contender, Line, Role};
use crate::error::{Context, Failure, Result};
use crate::machine::{Machine, target_folder};
use crate::markdown;
use crate::measure::Meter;
use crate::memory;
use crate::options::Options;
use crate::publish;
use crate::report::{Report, Row, ScenarioReport, Summary};
use crate::scenario::{Scenario, Stage};
use crate::targets;

/// The whole benchmark, as the command line asked for it.
pub fn run(options: &Options) -> Result<()> {
    let json_path = target_folder()?.join("compare.json");
    if options.readme {
        let report: Report = publish::last(&json_path)?;
        let quick = report.quick.then_some("this was a quick look, not for quoting");
        for warning in quick.into_iter().chain(report.notes.iter().map(String::as_str)) {
            eprintln!("{warning}");
        }
        print!("{}", markdown::readme(&report));
        return Ok(());
    }
    let names: Vec<_> = Scenario::ALL.iter().map(|known| known.name()).chain(["memory"]).collect();
    let unknown = options.only.iter().find(|name| !names.contains(&name.as_str()));
    if options.list || unknown.is_some() {
        for scenario in Scenario::ALL {
            println!("{:14} {}", scenario.name(), scenario.title());
        }
        println!("{:14} what a copy of a sparse source of 1 TiB holds in memory", "memory");
        return unknown.map_or(Ok(()), |name| Err(Failure::new(format!("{name}: no such scenario"))));
    }
    let report = measure(options)?;
    let text = markdown::full(&report);
    publish::publish(&json_path, &report, &text)
}

/// Runs the scenarios.
fn measure(options: &Options) -> Result<Report> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("the comparison needs root: it makes loop devices and mounts file systems"));
    }
    let mut notes = Vec::new();
    let mut machine = Machine::look()?;
    let ours = Blkmirror::build().map_err(|failure| notes.push(failure.to_string())).ok();
    if let Some(ours) = &ours {
        machine.tools.insert(0, ours.version()?.trim().to_owned());
    }
    let mut meter = Meter::new()?;
    let punt_counter = try_punt_counter(&meter)?;
    let mut scenarios = Vec::new();
    for scenario in Scenario::ALL.into_iter().filter(|scenario| options.wants_scenario(scenario.name())) {
        eprintln!("{}: {}", scenario.name(), scenario.title());
        let disk_bytes = scenario.disk_bytes(options.quick)?;
        let stage = scenario.build(disk_bytes)?;
        notes.extend(meter.note_if_busy(scenario.name())?);
        let mut contenders = scenario.contenders(ours.as_ref());
        contenders.retain(|contender| options.wants_contender(&contender.name()));
        let rows = rounds(&stage, &contenders, options.rounds(), &meter, &mut notes)?;
        stage.check_source().map_err(|failure| Failure::new(format!("the source was changed: {failure}")))?;
        scenarios.push(ScenarioReport {
            name: scenario.name().to_owned(),
            title: scenario.title().to_owned(),
            disk_bytes,
            useful_bytes: stage.pair.pattern.useful_bytes(disk_bytes),
            limits: stage.limits.clone(),
            idle_busy_per_s: meter.idle_busy_per_s(),
            rows,
        });
    }
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut targets = targets::judge(&scenarios);
    if let Some(ours) = ours.as_ref().filter(|_| options.wants_scenario("memory")) {
        eprintln!("memory: a sparse source of 1 TiB");
        targets.push(memory::measure(ours)?);
    }
    Ok(Report { machine, arguments, quick: options.quick, punt_counter, scenarios, targets, notes })
}

/// All rounds of one scenario.
fn rounds(
    stage: &Stage,
    contenders: &[Box<dyn Contender>],
    rounds: u32,
    meter: &Meter,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>> {
    let pair = &stage.pair;
    let useful_bytes = pair.pattern.useful_bytes(pair.disk_bytes);
    let empty_row = |contender: &dyn Contender| Row {
        name: contender.name(),
        role: contender.role(),
        own_clock: contender.has_own_clock(),
        command: contender.command_line(pair),
        samples: Vec::new(),
        summary: None,
    };
    let mut rows: Vec<Row> = contenders.iter().map(|contender| empty_row(contender.as_ref())).collect();
    let mut dropped = vec![false; rows.len()];
    for round in 0..rounds {
        let mut turns: Vec<usize> = (0..rows.len()).collect();
        turns.rotate_left(round as usize % rows.len().max(1));
        for turn in turns {
            if dropped[turn] {
                continue;
            }
            match one_run(stage, contenders[turn].as_ref(), meter)? {
                Ok(sample) => {
                    let gib_per_s = useful_bytes as f64 / f64::from(1 << 30) / sample.seconds;
                    eprintln!("  round {} {:24} {gib_per_s:.3} GiB/s", round + 1, rows[turn].name);
                    rows[turn].samples.push(sample);
                }
                Err(failure) => {
                    eprintln!("  dropped: {}: {failure}", rows[turn].name);
                    notes.push(format!("dropped: {}: {failure}", rows[turn].name));
                    dropped[turn] = true;
                }
            }
        }
    }
    for row in &mut rows {
        row.summary = Summary::of(&row.samples, useful_bytes);
    }
    Ok(rows)
}

/// One run. The outer error ends the benchmark: a target that is not equal, or a failure of our own tool. The inner one
/// only drops a contender, such as one that is not installed.
fn one_run(
    stage: &Stage,
    contender: &dyn Contender,
    meter: &Meter,
) -> Result<std::result::Result<crate::measure::Sample, Failure>> {
    stage.reset()?;
    let sample = match contender.run(&stage.pair, meter) {
        Ok(sample) => sample,
        Err(failure) if contender.role() == Role::Ours => return Err(failure),
        Err(failure) => return Ok(Err(failure)),
    };
    if contender.role() != Role::Ceiling {
        let blame = |failure| Failure::new(format!("MISMATCH after {}: {failure}", contender.name()));
        stage.check_target().map_err(blame)?;
    }
    Ok(Ok(sample))
}

/// Proves that punts are counted: writes through the page cache to a file in memory are always punted.
fn try_punt_counter(meter: &Meter) -> Result<String> {
    if let Some(why) = meter.punts_missing() {
        return Ok(format!("not available: {why}"));
    }
    let file = tempfile::NamedTempFile::new_in("/dev/shm").context(|| "/dev/shm")?;
    let line = Line::new("fio")
        .words(
            "--thread --ioengine=io_uring --direct=0 --rw=write --bs=1M --size=64M --iodepth=4 --name=punts",
        )
        .word(format!("--filename={}", file.path().display()));
    let start = meter.start()?;
    if let Err(failure) = line.output() {
        return Ok(format!("not tried: {failure}"));
    }
    match meter.finish(&start)?.punts {
        Some(punts) if punts >= 64 => Ok(format!("saw {punts} of 64 requests that are always punted")),
        Some(punts) => {
            Err(Failure::new(format!("the punt counter saw {punts} of 64 requests that are always punted")))
        }
        None => Ok("not available".to_owned()),
    }
}
