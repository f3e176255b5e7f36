//! What is done when the remainder does not shrink, one step after the other until it does.
//!
//! ```text
//! step                | when                                   | what it costs the guest
//! --------------------+----------------------------------------+-------------------------------------------------
//! WriteBlocking       | copy mode auto                         | each write through a queue waits for both sides
//! LatencyBudget(4 x)  | a budget holds the copiers back        | its requests take longer
//! LatencyBudget(none) | the same                               | and longer
//! Braking             | copy mode auto                         | it is held again and again, for `max_pause` at most
//! ```
//!
//! The gentlest comes first. Each is judged for a second or two by [`Convergence`] before the next one, but for write-blocking on a
//! drive without queues: what trackers tell of cannot be written to both sides, so the next step comes along with it. A host
//! that has chosen a copy mode is not overruled in that; the budget is loosened for it, too, for a budget is a goal, and a job
//! that can never be ready is none.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::active::CopyMode;
use super::convergence::{Convergence, Observation, Reason, Verdict};
use super::coordinator::within_ns;
use super::estimate::Estimate;
use super::figures::to_ns;
use super::options::{CopyModeChoice, MirrorOptions};
use super::pacer::Pacer;
use super::relief::{BudgetLevel, Relief};
use super::share::{Escalation, Notice, Share};

/// What the home sees when it takes stock.
#[derive(Clone, Copy)]
pub(super) struct Stock<'a> {
    /// Now.
    pub(super) now_ns: u64,
    /// Bytes still to copy.
    pub(super) left_bytes: u64,
    /// Switch-overs missed since the job began.
    pub(super) missed: u32,
    /// Rates and forecasts.
    pub(super) estimate: &'a Estimate,
    /// Whether the drive has queues.
    pub(super) has_queues: &'a dyn Fn() -> bool,
}

/// Takes the steps.
#[derive(Debug)]
pub(super) struct Escalator {
    /// Whether the remainder shrinks.
    convergence: Convergence,
    /// How much of the budget is in force.
    relief: Relief,
    /// Copy mode auto.
    is_auto: bool,
    /// How long guest requests may be held.
    max_pause: Option<Duration>,
    /// Ready only when nothing is dirty, however little it is.
    strict_ready: bool,
}

impl Escalator {
    /// For a job with these options.
    pub(super) fn new(options: &MirrorOptions) -> Self {
        Self {
            convergence: Convergence::new(),
            relief: Relief::default(),
            is_auto: options.copy_mode == CopyModeChoice::Auto,
            max_pause: options.max_pause,
            strict_ready: options.strict_ready,
        }
    }

    /// Looks whether the remainder shrinks, and takes a step if it does not; or one back if a switch-over has fitted for long.
    pub(super) fn look(&mut self, share: &Share, stock: &Stock<'_>, mut pacer: Option<&mut Pacer>) {
        // While copiers wait for the next round of an ignored error, the remainder says nothing of who is faster.
        let says_nothing = share.is_held() || share.is_urgent() || share.awaits_round();
        if says_nothing || !(self.is_auto || pacer.is_some()) {
            return;
        }
        let small = |(predicted, max)| to_ns(Some(predicted)) <= within_ns(to_ns(Some(max)));
        let small = stock.estimate.predicted_pause().zip(self.max_pause).is_some_and(small);
        let is_small_enough = (small && !self.strict_ready) || self.max_pause.is_none();
        let first_pass_over = share.sweep_is_claimed();
        if let Some(pacer) = &mut pacer {
            let fits = first_pass_over && (is_small_enough || stock.left_bytes == 0);
            self.restore(share, fits && !share.is_braking(), stock.now_ns, pacer);
        }
        let verdict = self.convergence.observe(&Observation {
            now_ns: stock.now_ns,
            left_bytes: stock.left_bytes,
            copy_rate_bytes_per_s: stock.estimate.copy_rate_bytes_per_s(),
            dirty_rate_bytes_per_s: stock.estimate.dirty_rate_bytes_per_s(),
            first_pass_over,
            is_small_enough,
            missed: stock.missed,
        });
        if let Verdict::Escalate(reason) = verdict {
            self.escalate(share, stock, pacer, reason);
        }
    }

    /// Takes the budget back into force, unless the end is wanted: it comes sooner without.
    fn restore(&mut self, share: &Share, fits: bool, now_ns: u64, pacer: &mut Pacer) {
        if let Some(level) = self.relief.fits(fits && !share.wants_completion(), now_ns) {
            pacer.set_level(level);
            share.figures.set_budget_level(level);
            share.post(Notice::BudgetRestored(level));
        }
    }

    /// Takes the next step.
    fn escalate(&mut self, share: &Share, stock: &Stock<'_>, pacer: Option<&mut Pacer>, reason: Reason) {
        let tell = |step| share.post(Notice::Escalated { step, reason, left_bytes: stock.left_bytes });
        let may_choose = self.is_auto && !share.mode_is_chosen.load(Ordering::Acquire);
        let mut stepped = false;
        if may_choose && share.set_copy_mode(CopyMode::WriteBlocking) {
            tell(Escalation::WriteBlocking);
            stepped = true;
        }
        if !stepped || !(stock.has_queues)() {
            if let Some(level) = self.loosen(pacer) {
                share.figures.set_budget_level(level);
                tell(Escalation::LatencyBudget(level));
                stepped = true;
            } else if !stepped && may_choose && !share.braking.swap(true, Ordering::AcqRel) {
                tell(Escalation::Braking);
                stepped = true;
            }
        }
        if stepped {
            // What was observed so far says nothing about how it goes from here.
            self.convergence.restart();
        }
    }

    /// Loosens the budget, if it is what holds the copiers back.
    fn loosen(&mut self, pacer: Option<&mut Pacer>) -> Option<BudgetLevel> {
        let pacer = pacer.filter(|pacer| pacer.is_holding_back())?;
        let level = self.relief.loosen()?;
        pacer.set_level(level);
        Some(level)
    }
}
