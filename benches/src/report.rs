//! The results: what target/compare.json holds, and the questions the tables ask of it.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::contender::Role;
use crate::machine::Machine;
use crate::measure::Sample;
use crate::stats::Spread;
use crate::targets::Target;

/// Everything one call of the benchmark found out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// The benchmark's own arguments.
    pub arguments: Vec<String>,
    /// Small disks; not for quoting.
    pub quick: bool,
    /// What the punt counter said when it was tried on requests that are always punted.
    pub punt_counter: String,
    /// The scenarios that ran.
    pub scenarios: Vec<ScenarioReport>,
    /// What was wanted and what was reached.
    pub targets: Vec<Target>,
    /// Whatever a reader must know.
    pub notes: Vec<String>,
}

/// One scenario's results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Its name on the command line.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Size of both disks.
    pub disk_bytes: u64,
    /// Bytes of data in the source; all rates count these.
    pub useful_bytes: u64,
    /// What the block devices take at once.
    pub limits: Vec<String>,
    /// Busy CPU seconds per second of the idle machine, taken off the machine's CPU time.
    pub idle_busy_per_s: f64,
    /// One per contender.
    pub rows: Vec<Row>,
}

/// One contender's results in one scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its column.
    pub role: Role,
    /// Whether its seconds are its own clock's, or its process's life.
    pub own_clock: bool,
    /// What was run.
    pub command: String,
    /// One per round.
    pub samples: Vec<Sample>,
    /// The same, in short.
    pub summary: Option<Summary>,
}

/// Medians over a contender's rounds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Summary {
    /// Useful GiB per second of the copy.
    pub gib_per_s: Spread,
    /// Useful GiB per second of the process's life.
    pub process_gib_per_s: Spread,
    /// CPU seconds of the process per useful GiB.
    pub cpu_s_per_gib: Spread,
    /// CPU seconds of the machine per useful GiB.
    pub machine_cpu_s_per_gib: Spread,
    /// Requests handed to io-wq, per useful GiB.
    pub punts_per_gib: Option<Spread>,
    /// Context switches of the process per useful GiB.
    pub switches_per_gib: Spread,
}

impl Summary {
    /// The summary of these runs; `None` when there are none.
    #[must_use]
    pub fn of(samples: &[Sample], useful_bytes: u64) -> Option<Self> {
        let gib = useful_bytes as f64 / f64::from(1 << 30);
        let spread = |value: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
        let punts: Option<Vec<f64>> = samples.iter().map(|sample| Some(sample.punts? as f64 / gib)).collect();
        Some(Self {
            gib_per_s: spread(&|sample| gib / sample.seconds)?,
            process_gib_per_s: spread(&|sample| gib / sample.process_seconds)?,
            cpu_s_per_gib: spread(&|sample| sample.cpu_seconds / gib)?,
            machine_cpu_s_per_gib: spread(&|sample| sample.machine_cpu_seconds / gib)?,
            punts_per_gib: punts.and_then(Spread::of),
            switches_per_gib: spread(&|sample| sample.context_switches as f64 / gib)?,
        })
    }
}

impl Row {
    /// Median GiB per second.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        Some(self.summary?.gib_per_s.median)
    }

    /// How many times as fast this one is as the other: by their own clocks if the other has one, else by the lives of the
    /// two processes.
    #[must_use]
    pub fn speed_ratio(&self, other: &Self) -> Option<f64> {
        let (mine, theirs) = (self.summary?, other.summary?);
        Some(match other.own_clock {
            true => mine.gib_per_s.median / theirs.gib_per_s.median,
            false => mine.process_gib_per_s.median / theirs.process_gib_per_s.median,
        })
    }

    /// Median CPU seconds of the process per GiB.
    #[must_use]
    pub fn cpu(&self) -> Option<f64> {
        Some(self.summary?.cpu_s_per_gib.median)
    }
}

impl ScenarioReport {
    /// The rows with this role, fastest first.
    fn fastest(&self, wanted: impl Fn(Role) -> bool) -> Option<&Row> {
        let rows = self.rows.iter().filter(|row| wanted(row.role) && row.summary.is_some());
        rows.max_by(|a, b| a.rate().unwrap_or_default().total_cmp(&b.rate().unwrap_or_default()))
    }

    /// fio's best configuration.
    #[must_use]
    pub fn ceiling(&self) -> Option<&Row> {
        self.fastest(|role| role == Role::Ceiling)
    }

    /// Our best row.
    #[must_use]
    pub fn ours(&self) -> Option<&Row> {
        self.fastest(|role| role == Role::Ours)
    }

    /// The fastest tool of somebody else.
    #[must_use]
    pub fn best_peer(&self) -> Option<&Row> {
        self.fastest(|role| matches!(role, Role::Qemu | Role::Other))
    }

    /// The fastest tool of QEMU.
    #[must_use]
    pub fn best_qemu(&self) -> Option<&Row> {
        self.fastest(|role| role == Role::Qemu)
    }

    /// The lowest CPU time per GiB of any QEMU tool, fast or slow.
    #[must_use]
    pub fn lowest_qemu_cpu(&self) -> Option<f64> {
        let rows = self.rows.iter().filter(|row| row.role == Role::Qemu);
        rows.filter_map(Row::cpu).min_by(f64::total_cmp)
    }

    /// Our speed over that of every other tool for which `wanted` holds, the worst ratio: above 1 we lead.
    #[must_use]
    pub fn lead(&self, wanted: impl Fn(Role) -> bool) -> Option<f64> {
        let ours = self.ours()?;
        let others = self.rows.iter().filter(|row| wanted(row.role));
        others.filter_map(|row| ours.speed_ratio(row)).min_by(f64::total_cmp)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row with one sample of 1 GiB.
    pub(crate) fn row(role: Role, own_clock: bool, seconds: f64, cpu_seconds: f64) -> Row {
        let sample = Sample {
            seconds,
            process_seconds: seconds + 0.5,
            cpu_seconds,
            machine_cpu_seconds: cpu_seconds,
            punts: Some(0),
            context_switches: 1,
        };
        let summary = Summary::of(&[sample], 1 << 30);
        Row {
            name: format!("{role:?}"),
            role,
            own_clock,
            command: String::new(),
            samples: vec![sample],
            summary,
        }
    }

    /// A scenario of 1 GiB with these rows.
    pub(crate) fn scenario(name: &str, rows: Vec<Row>) -> ScenarioReport {
        ScenarioReport {
            name: name.to_owned(),
            title: name.to_owned(),
            disk_bytes: 1 << 30,
            useful_bytes: 1 << 30,
            limits: Vec::new(),
            idle_busy_per_s: 0.0,
            rows,
        }
    }

    #[test]
    fn a_tool_without_a_clock_is_compared_with_our_whole_process() {
        let ours = row(Role::Ours, true, 0.5, 0.1);
        assert_eq!(ours.speed_ratio(&row(Role::Qemu, true, 1.0, 0.1)), Some(2.0));
        assert_eq!(ours.speed_ratio(&row(Role::Other, false, 1.5, 0.1)), Some(2.0));
    }

    #[test]
    fn the_ceiling_is_the_best_of_its_kind_and_peers_do_not_count_for_it() {
        let rows = [(Role::Ceiling, 1.0), (Role::Ceiling, 0.5), (Role::Qemu, 0.25), (Role::Other, 0.2)];
        let scenario = scenario("s", rows.map(|(role, seconds)| row(role, true, seconds, 0.1)).to_vec());
        assert_eq!(scenario.ceiling().and_then(Row::rate), Some(2.0));
        assert_eq!(scenario.best_qemu().and_then(Row::rate), Some(4.0));
        assert_eq!(scenario.best_peer().and_then(Row::rate), Some(5.0));
        assert_eq!(scenario.lead(|_| true), None);
    }
}
