//! What is done when the remainder does not shrink, one step after the other until it does.
//!
//! ```text
//! step                | when                                   | what it costs the guest
//! --------------------+----------------------------------------+-------------------------------------------------
//! WriteBlocking       | copy mode auto                         | each write through a queue waits for both sides
//! BudgetLoosened(4 x) | a budget holds the copiers back        | its requests take longer
//! BudgetLoosened(off) | the same                               | and longer
//! Braking             | copy mode auto                         | it is held again and again, for `max_pause` at most
//! ```
//!
//! The gentlest comes first. Each is judged for a second or two by [`Convergence`] before the next one, but for write-blocking on a
//! drive without queues: what trackers tell of cannot be written to both sides, so the next step comes along with it. A host
//! that has chosen a copy mode is not overruled in that; the budget is loosened for it, too, for a budget is a goal, and a job
//! that can never be ready is none.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::active::mode;
use super::convergence::{Convergence, Observation, Reason, Verdict};
use super::coordinator::is_within;
use super::estimate::{Estimate, Sample};
use super::options::{CopyModeChoice, MirrorOptions, OnCopied};
use super::pacer::Pacer;
use super::relief::{BudgetLevel, Relief};
use super::share::{Escalation, Notice, Share};
use super::states::JobStatus;

/// The budget counts as what holds the copiers back for so long after it did: a guest that sends bursts has no latency in between.
const HELD_BACK_NS: u64 = 1_000_000_000;

/// What the home sees when it takes stock.
#[derive(Clone, Copy)]
pub(super) struct Stock<'a> {
    /// The job's counters now.
    pub(super) sample: Sample,
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
    /// When a step is taken back.
    relief: Relief,
    /// When the budget last held the copiers back.
    held_back_ns: Option<u64>,
    /// Copy mode auto.
    is_auto: bool,
    /// Ready only when nothing is dirty, however little it is.
    strict_ready: bool,
    /// It ends as soon as it can.
    completes_itself: bool,
    /// The host was told of braking, and not yet of its end.
    told_of_braking: bool,
}

impl Escalator {
    /// For a job with these options.
    pub(super) fn new(options: &MirrorOptions) -> Self {
        Self {
            convergence: Convergence::new(),
            relief: Relief::default(),
            held_back_ns: None,
            is_auto: options.copy_mode == CopyModeChoice::Auto,
            strict_ready: options.strict_ready,
            completes_itself: options.on_copied == OnCopied::Complete,
            told_of_braking: false,
        }
    }

    /// Looks whether the remainder shrinks, and takes a step if it does not; or one back if a switch-over has fitted for long.
    pub(super) fn look(&mut self, share: &Share, stock: &Stock<'_>, mut pacer: Option<&mut Pacer>) {
        if !(self.is_auto || pacer.is_some()) {
            return;
        }
        self.follow_braking(share);
        // While copiers wait for the next round of an ignored error, the remainder says nothing of who is faster.
        let is_over = share.is_ending() || share.status().is_over();
        if is_over || share.is_held() || share.is_urgent() || share.awaits_round() {
            self.relief.has_fitted(false, stock.sample.now_ns);
            return;
        }
        if pacer.as_ref().is_some_and(|pacer| pacer.is_holding_back()) {
            self.held_back_ns = Some(stock.sample.now_ns);
        }
        let first_pass_over = share.sweep_is_claimed();
        let is_small_enough = self.is_small_enough(share, stock.estimate.predicted_pause());
        let fits = first_pass_over && (is_small_enough || stock.sample.left_bytes == 0);
        self.step_back(share, fits, stock.sample.now_ns, pacer.as_deref_mut());
        let verdict = self.convergence.observe(&Observation {
            now_ns: stock.sample.now_ns,
            left_bytes: stock.sample.left_bytes,
            copy_rate_bytes_per_s: stock.estimate.copy_rate_bytes_per_s(),
            dirty_rate_bytes_per_s: stock.estimate.dirty_rate_bytes_per_s(),
            copied_bytes: stock.sample.copied_bytes,
            first_pass_over,
            is_small_enough,
            missed: stock.missed,
        });
        if let Verdict::Escalate(reason) = verdict {
            self.escalate(share, stock, pacer, reason);
        }
    }

    /// Whether the next step of the job is in reach if it takes so long.
    fn is_small_enough(&self, share: &Share, predicted: Option<Duration>) -> bool {
        // A strict job that is ready once switches over as any other.
        let max_pause = share.max_pause.get();
        let must_be_clean = self.strict_ready && share.status() != JobStatus::Ready;
        !must_be_clean && (max_pause.is_none() || predicted.is_some_and(|pause| is_within(pause, max_pause)))
    }

    /// Whether a switch-over would fit if nothing at all were left: else it is the target's flush, or the gate, that is in the way.
    fn could_fit(share: &Share, estimate: &Estimate) -> bool {
        estimate.predicted_pause_with(0).is_none_or(|pause| is_within(pause, share.max_pause.get()))
    }

    /// Takes a step back where a switch-over has fitted for long, unless the end is wanted: it comes sooner without.
    fn step_back(&mut self, share: &Share, fits: bool, now_ns: u64, pacer: Option<&mut Pacer>) {
        let ends = share.wants_completion() || self.completes_itself;
        // Braking makes it fit.
        let brakes = share.is_braking() && share.status() != JobStatus::Ready;
        if !self.relief.has_fitted(fits && !ends && !brakes, now_ns) {
            return;
        }
        if share.release_brake() {
            self.follow_braking(share);
        } else if let Some((level, pacer)) = pacer.and_then(|pacer| Some((pacer.level().tighter()?, pacer))) {
            Self::put_in_force(level, share, pacer);
            share.post(Notice::BudgetTightened(level));
        } else {
            return;
        }
        self.relief.stepped_back(now_ns);
    }

    /// Tells the host that braking has ended, by us or by the mode that he chose. Told by who told that it began, or the end could
    /// be heard of first.
    fn follow_braking(&mut self, share: &Share) {
        if self.told_of_braking && !share.is_braking() {
            self.told_of_braking = false;
            share.post(Notice::BrakingEnded);
        }
    }

    /// Takes the next step.
    fn escalate(&mut self, share: &Share, stock: &Stock<'_>, pacer: Option<&mut Pacer>, reason: Reason) {
        let tell = |step| share.post(Notice::Escalated { step, reason, left_bytes: stock.sample.left_bytes });
        let follows_both = self.is_auto && share.step_up(mode::WRITE_BLOCKING);
        if follows_both {
            tell(Escalation::WriteBlocking);
        }
        let waits = follows_both && (stock.has_queues)();
        let loosened = if waits { None } else { self.loosen(share, stock, pacer) };
        if let Some(level) = loosened {
            tell(Escalation::BudgetLoosened(level));
        }
        let mut stepped = follows_both || loosened.is_some();
        if !stepped && self.is_auto && Self::could_fit(share, stock.estimate) && share.step_up(mode::BRAKING)
        {
            tell(Escalation::Braking);
            self.told_of_braking = true;
            stepped = true;
        }
        if stepped {
            self.relief.stepped_up(stock.sample.now_ns);
            // What was observed so far says nothing about how it goes from here.
            self.convergence.restart();
        }
    }

    /// Loosens the budget, if it is what holds the copiers back, and they are what is in the way.
    fn loosen(&self, share: &Share, stock: &Stock<'_>, pacer: Option<&mut Pacer>) -> Option<BudgetLevel> {
        let held_back = |then| stock.sample.now_ns.saturating_sub(then) <= HELD_BACK_NS;
        let pacer = pacer.filter(|_| self.held_back_ns.is_some_and(held_back))?;
        let speed = share.limiter.speed();
        // Between probes, that is: what is lost while the pacer holds them still is not made up for, but it is little.
        let is_at_limit = speed > 0 && stock.estimate.at_work_rate_bytes_per_s() >= speed / 8 * 7;
        if is_at_limit || !Self::could_fit(share, stock.estimate) {
            return None;
        }
        let level = pacer.level().looser()?;
        Self::put_in_force(level, share, pacer);
        Some(level)
    }

    /// Puts so much of the budget in force. Whoever hears of it must find it so, so this comes before the notice.
    fn put_in_force(level: BudgetLevel, share: &Share, pacer: &mut Pacer) {
        pacer.set_level(level);
        share.figures.set_budget_level(level);
    }
}
