//! How much of the latency budget is in force.
//!
//! A budget makes the copiers give way to the guest. Beside a guest that never rests they may give way until they copy no more
//! than it writes: the remainder stands still, and the job would never be ready. So a remainder that does not shrink loosens the
//! budget, first to four times what was chosen, then altogether; two steps, because each takes a second or two to be judged.
//!
//! A burst must not cost the guest its budget for good. Once a switch-over has fitted for [`RESTORE_NS`] the budget comes back, a
//! step at a time. Where it had to be loosened again after that, it comes back twice as late every time: a steady load gets a
//! steady budget.
#![forbid(unsafe_code)]

/// How long a switch-over must have fitted before the budget comes back, the first time.
const RESTORE_NS: u64 = 10_000_000_000;
/// In between it need not fit for so long: after each burst of writes it may take a moment.
const GAP_NS: u64 = 250_000_000;
/// How long at most.
const RESTORE_MAX_NS: u64 = 300_000_000_000;

/// How much of the latency budget that was chosen is in force.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum BudgetLevel {
    /// All of it; also where none was chosen.
    #[default]
    Chosen,
    /// The guest's requests may take four times as long as was chosen.
    FourTimes,
    /// Nothing: the job copies at full speed.
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
    fn looser(self) -> Option<Self> {
        match self {
            Self::Chosen => Some(Self::FourTimes),
            Self::FourTimes => Some(Self::Lifted),
            Self::Lifted => None,
        }
    }

    /// The next that leaves it more.
    fn tighter(self) -> Option<Self> {
        match self {
            Self::Chosen => None,
            Self::FourTimes => Some(Self::Chosen),
            Self::Lifted => Some(Self::FourTimes),
        }
    }
}

/// Decides how much of a budget is in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relief {
    /// What is.
    level: BudgetLevel,
    /// Since when a switch-over has fitted, but for short gaps, and when it did last.
    fitted_ns: Option<(u64, u64)>,
    /// How long it must, before the budget comes back.
    wait_ns: u64,
    /// Whether it has come back since it was loosened last.
    has_come_back: bool,
}

impl Default for Relief {
    fn default() -> Self {
        Self { level: BudgetLevel::Chosen, fitted_ns: None, wait_ns: RESTORE_NS, has_come_back: false }
    }
}

impl Relief {
    /// The remainder does not shrink: the level that is in force now, `None` = nothing is left to be loosened.
    pub(super) fn loosen(&mut self) -> Option<BudgetLevel> {
        self.level = self.level.looser()?;
        self.fitted_ns = None;
        if std::mem::take(&mut self.has_come_back) {
            self.wait_ns = (self.wait_ns * 2).min(RESTORE_MAX_NS);
        }
        Some(self.level)
    }

    /// Whether a switch-over fits now; the level that the budget has come back to, if it has.
    pub(super) fn fits(&mut self, fits: bool, now_ns: u64) -> Option<BudgetLevel> {
        let tighter = self.level.tighter()?;
        if !fits {
            self.fitted_ns = self.fitted_ns.filter(|(_, last_ns)| now_ns.saturating_sub(*last_ns) <= GAP_NS);
            return None;
        }
        let since_ns = self.fitted_ns.map_or(now_ns, |(since_ns, _)| since_ns);
        self.fitted_ns = Some((since_ns, now_ns));
        if now_ns.saturating_sub(since_ns) < self.wait_ns {
            return None;
        }
        (self.level, self.fitted_ns, self.has_come_back) = (tighter, None, true);
        Some(tighter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second.
    const S: u64 = 1_000_000_000;

    #[test]
    fn a_budget_is_loosened_in_two_steps_and_comes_back_in_two() {
        let mut relief = Relief::default();
        assert_eq!(relief.fits(true, 0), None, "all of it is in force");
        assert_eq!(relief.loosen(), Some(BudgetLevel::FourTimes));
        assert_eq!(relief.loosen(), Some(BudgetLevel::Lifted));
        assert_eq!(relief.loosen(), None);
        // It fits from 0 to 9 s, then not for a whole second, then but for a tenth of each.
        let fits = |tenths: u64| tenths < 90 || (tenths >= 100 && !tenths.is_multiple_of(10));
        let back = |tenths| relief.fits(fits(tenths), tenths * S / 10).map(|level| (tenths, level));
        let back: Vec<_> = (0..1000).filter_map(back).collect();
        assert_eq!(back, [(201, BudgetLevel::FourTimes), (302, BudgetLevel::Chosen)]);
    }

    /// Otherwise a steady load would be met by a job that is ready and not ready in turns, for ever.
    #[test]
    fn a_budget_that_had_to_be_loosened_again_comes_back_later_each_time() {
        let (mut relief, mut now_ns, mut waits) = (Relief::default(), 0, Vec::new());
        for _ in 0..8 {
            assert_eq!(relief.loosen(), Some(BudgetLevel::FourTimes));
            let from_ns = now_ns;
            while relief.fits(true, now_ns).is_none() {
                now_ns += S;
            }
            waits.push((now_ns - from_ns) / S);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
    }
}
