//! What the project promises, next to what was measured. A miss stays in the table.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::contender::Role;
use crate::report::{Row, ScenarioReport};

/// One promise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// The scenario's name.
    pub scenario: String,
    /// What is promised.
    pub promise: String,
    /// The bound.
    pub bound: Bound,
    /// What was reached; `None` when one side of the comparison did not run.
    pub reached: Option<f64>,
}

/// On which side of the number the promise is kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// More than this.
    MoreThan(f64),
    /// This or less.
    AtMost(f64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::MoreThan(bound) => write!(f, "more than {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

impl Target {
    /// PASS, MISS, or that it was not measured.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        let kept = |reached| match self.bound {
            Bound::AtLeast(bound) => reached >= bound,
            Bound::MoreThan(bound) => reached > bound,
            Bound::AtMost(bound) => reached <= bound,
        };
        match self.reached {
            Some(reached) if kept(reached) => "PASS",
            Some(_) => "MISS",
            None => "not measured",
        }
    }
}

/// Every promise about the scenarios that ran.
#[must_use]
pub fn judge(scenarios: &[ScenarioReport]) -> Vec<Target> {
    scenarios.iter().flat_map(judge_one).collect()
}

/// The promises about one scenario.
fn judge_one(scenario: &ScenarioReport) -> Vec<Target> {
    let ours = scenario.ours();
    let peer = |role| matches!(role, Role::Qemu | Role::Other);
    let qemu = |role| role == Role::Qemu;
    let of_ceiling = ours.zip(scenario.ceiling()).and_then(|(ours, ceiling)| ours.speed_ratio(ceiling));
    let of_cpu = ours.and_then(Row::cpu).zip(scenario.lowest_qemu_cpu()).map(|(ours, theirs)| ours / theirs);
    let punts = ours.and_then(|ours| Some(ours.summary?.punts_per_gib?.max));

    let ceiling = ("speed over fio's concurrent ceiling", of_ceiling);
    let cpu = ("process CPU s/GiB over the thriftiest QEMU tool's", Bound::AtMost(0.5), of_cpu);
    let speed = ("useful bytes/s over the fastest QEMU tool's", scenario.lead(qemu));
    let no_punts = ("io-wq punts per GiB, worst round", Bound::AtMost(0.0), punts);
    let promises = match scenario.name.as_str() {
        "loop" => vec![
            (ceiling.0, Bound::AtLeast(0.97), ceiling.1),
            ("speed over the fastest peer's", Bound::MoreThan(1.0), scenario.lead(peer)),
            cpu,
            no_punts,
        ],
        "ext4" => vec![no_punts],
        "scattered-64k" => {
            vec![(speed.0, Bound::AtLeast(1.3), speed.1), cpu, (ceiling.0, Bound::AtLeast(0.9), ceiling.1)]
        }
        "scattered-4k" => vec![(speed.0, Bound::AtLeast(2.0), speed.1), cpu],
        "latency" => vec![(speed.0, Bound::AtLeast(8.0), speed.1)],
        _ => Vec::new(),
    };
    let target = |(promise, bound, reached): (&str, Bound, Option<f64>)| Target {
        scenario: scenario.name.clone(),
        promise: promise.to_owned(),
        bound,
        reached,
    };
    promises.into_iter().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{row, scenario};

    #[test]
    fn a_promise_is_kept_at_its_bound_and_missed_beyond() {
        let rows = vec![
            row(Role::Ceiling, true, 0.98, 0.1),
            row(Role::Ours, true, 1.0, 0.5),
            row(Role::Qemu, true, 1.0, 1.0),
            row(Role::Qemu, true, 2.0, 1.1),
        ];
        let judged = judge(&[scenario("loop", rows)]);
        let verdicts: Vec<_> = judged.iter().map(Target::verdict).collect();
        // Above 0.97 of the ceiling, exactly half the CPU time, no punts; but a tie is not a lead.
        assert_eq!(verdicts, ["PASS", "MISS", "PASS", "PASS"]);
    }

    #[test]
    fn nothing_is_judged_without_us() {
        let judged = judge(&[scenario("latency", vec![row(Role::Qemu, true, 1.0, 1.0)])]);
        assert_eq!(judged.len(), 1);
        assert!(judged.iter().all(|target| target.verdict() == "not measured"));
    }
}
