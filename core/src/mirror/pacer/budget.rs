//! What is to be kept, and the limit that is aimed at for it.
#![forbid(unsafe_code)]

use super::baseline::Baseline;
use crate::mirror::estimate::{to_f64, to_u64};
use crate::mirror::relief::BudgetLevel;

/// The part of the budget above the baseline that is aimed at. The rest is for probes of faster paces, and for what no queue sees:
/// beside a copy the guest's own threads wake up later, before they send anything. Much need not be left, as a baseline from
/// moments comes out a tenth below what the guest sees over seconds: the rare long waits are in few of them.
const AIM: f64 = 0.85;
/// The same while the baseline is made of few requests, and may be wrong either way.
const AIM_POOR: f64 = 0.7;
/// A multiple below this is taken as this: no copy is free.
const LEAST_MULTIPLE: f64 = 1.1;
/// What holds, as a multiple of the baseline, when the guest misses the budget by itself.
const LEAST_OVER_BASELINE: f64 = 1.25;

/// The latency that one guest request in a hundred may exceed while a job runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// None: full speed always.
    Off,
    /// So many nanoseconds.
    AbsoluteNs(u64),
    /// So many times the guest's p99 without the job.
    Baseline(f64),
}

impl Budget {
    /// What is left of it at this level.
    pub(super) fn at(self, level: BudgetLevel) -> Self {
        match (level, self) {
            (BudgetLevel::Lifted, _) => Self::Off,
            (BudgetLevel::FourTimes, Self::AbsoluteNs(ns)) => Self::AbsoluteNs(ns.saturating_mul(4)),
            (BudgetLevel::FourTimes, Self::Baseline(times)) => Self::Baseline(times * 4.0),
            (BudgetLevel::Chosen, budget) | (_, budget @ Self::Off) => budget,
        }
    }

    /// The latency that one request in a hundred may exceed, as it is aimed at; `None` = there is none, or the baseline is unknown.
    pub(super) fn limit_ns(self, baseline: &Baseline) -> Option<u64> {
        let alone = baseline.p99_ns().map(to_f64);
        let limit = match self {
            Self::Off => return None,
            Self::AbsoluteNs(ns) => to_f64(ns).max(alone.unwrap_or(0.0) * LEAST_OVER_BASELINE),
            Self::Baseline(multiple) => {
                let aim = if baseline.is_poor() { AIM_POOR } else { AIM };
                alone? * (1.0 + (multiple.max(LEAST_MULTIPLE) - 1.0) * aim)
            }
        };
        Some(to_u64(limit))
    }
}
