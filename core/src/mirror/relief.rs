//! How much of the latency budget is in force.
//!
//! A budget makes the copiers give way to the guest. Beside a guest that never rests they may give way until they copy no more
//! than it writes: the remainder stands still, and the job would never be ready. So a remainder that does not shrink loosens the
//! budget, first to four times what was chosen, then altogether; two steps, because each takes a second or two to be judged.
//!
//! A burst must not cost the guest its budget for good. Once a switch-over has fitted for [`RESTORE_NS`] a step is taken back:
//! braking ends, then the budget comes back, one level at a time. Where a step had to be taken again soon after that, the next one
//! back comes twice as late: a steady load gets a steady budget.
#![forbid(unsafe_code)]

/// How long a switch-over must have fitted before a step is taken back, the first time.
const RESTORE_NS: u64 = 10_000_000_000;
/// In between it need not fit for so long: after each burst of writes it may take a moment.
const GAP_NS: u64 = 250_000_000;
/// A step is taken again soon if it is within so many times what was waited for.
const SOON: u64 = 4;
/// How long at most.
const RESTORE_MAX_NS: u64 = 300_000_000_000;

/// How much of the latency budget that was chosen is in force; when that changes, see
/// [`LatencyBudget`](crate::mirror::LatencyBudget).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum BudgetLevel {
    /// All of it; also where none was chosen.
    #[default]
    Chosen,
    /// The bound on the guest's p99 is four times what was chosen: 4 ms for `Absolute` of 1 ms, 8 times its own for
    /// `Baseline(2.0)`.
    FourTimes,
    /// Nothing of it: the job copies at full speed.
    Lifted,
}

impl BudgetLevel {
    /// From its number; what is none is the last.
    pub(super) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Chosen,
            1 => Self::FourTimes,
            _ => Self::Lifted,
        }
    }

    /// The next that leaves the guest less.
    pub(super) fn looser(self) -> Option<Self> {
        match self {
            Self::Chosen => Some(Self::FourTimes),
            Self::FourTimes => Some(Self::Lifted),
            Self::Lifted => None,
        }
    }

    /// The next that leaves it more.
    pub(super) fn tighter(self) -> Option<Self> {
        match self {
            Self::Chosen => None,
            Self::FourTimes => Some(Self::Chosen),
            Self::Lifted => Some(Self::FourTimes),
        }
    }
}

/// Decides when a step is taken back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relief {
    /// Since when a switch-over has fitted, but for short gaps, and when it did last.
    fitted_ns: Option<(u64, u64)>,
    /// How long it must, before a step is taken back.
    wait_ns: u64,
    /// When the last was.
    back_ns: Option<u64>,
}

impl Default for Relief {
    fn default() -> Self {
        Self { fitted_ns: None, wait_ns: RESTORE_NS, back_ns: None }
    }
}

impl Relief {
    /// A step was taken.
    pub(super) fn stepped_up(&mut self, now_ns: u64) {
        self.fitted_ns = None;
        if let Some(back_ns) = self.back_ns.take() {
            let is_soon = now_ns.saturating_sub(back_ns) <= SOON * self.wait_ns;
            self.wait_ns = if is_soon { (self.wait_ns * 2).min(RESTORE_MAX_NS) } else { RESTORE_NS };
        }
    }

    /// Whether a switch-over fits now; `true` when it has for so long that a step is to be taken back, if there is one.
    pub(super) fn has_fitted(&mut self, fits: bool, now_ns: u64) -> bool {
        if !fits {
            self.fitted_ns = self.fitted_ns.filter(|(_, last_ns)| now_ns.saturating_sub(*last_ns) <= GAP_NS);
            return false;
        }
        let since_ns = self.fitted_ns.map_or(now_ns, |(since_ns, _)| since_ns);
        self.fitted_ns = Some((since_ns, now_ns));
        if now_ns.saturating_sub(since_ns) < self.wait_ns {
            return false;
        }
        self.fitted_ns = None;
        true
    }

    /// A step was taken back.
    pub(super) fn stepped_back(&mut self, now_ns: u64) {
        self.back_ns = Some(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second.
    const S: u64 = 1_000_000_000;

    #[test]
    fn a_budget_is_loosened_in_two_steps_and_comes_back_in_two() {
        use BudgetLevel::{Chosen, FourTimes, Lifted};
        assert_eq!(Chosen.tighter(), None, "all of it is in force");
        assert_eq!(
            [Chosen, FourTimes, Lifted].map(BudgetLevel::looser),
            [Some(FourTimes), Some(Lifted), None]
        );
        assert_eq!([Lifted, FourTimes].map(BudgetLevel::tighter), [Some(FourTimes), Some(Chosen)]);
    }

    #[test]
    fn a_step_back_waits_for_ten_seconds_without_a_gap() {
        let mut relief = Relief::default();
        // It fits from 0 to 9 s, then not for a whole second, then but for a tenth of each.
        let fits = |tenths: u64| tenths < 90 || (tenths >= 100 && !tenths.is_multiple_of(10));
        let back: Vec<_> =
            (0..1000).filter(|&tenths| relief.has_fitted(fits(tenths), tenths * S / 10)).collect();
        assert_eq!(back[..2], [201, 302]);
    }

    /// Otherwise a steady load would be met by a job that is ready and not ready in turns, for ever.
    #[test]
    fn a_step_that_had_to_be_taken_again_soon_is_taken_back_later_each_time() {
        let (mut relief, mut now_ns, mut waits) = (Relief::default(), 0, Vec::new());
        for quiet_s in [0, 0, 0, 0, 0, 0, 0, 2000, 0] {
            for _ in 0..quiet_s {
                now_ns += S;
                let _ = relief.has_fitted(true, now_ns);
            }
            relief.stepped_up(now_ns);
            let from_ns = now_ns;
            while !relief.has_fitted(true, now_ns) {
                now_ns += S;
            }
            relief.stepped_back(now_ns);
            waits.push((now_ns - from_ns) / S);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 10, 20], "what held for long was not too early");
    }
}
