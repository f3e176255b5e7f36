//! The end of a job: is its outcome true?
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::recipe::Wanted;
use super::simulation::{Live, Simulation, Wrong};
use super::told;
use crate::engine::crew::Crew;
use crate::engine::{Outcome, TargetState};
use crate::error::ErrorKind;
use crate::mirror::{End, ErrorPolicy, Failure, FailureCause, MirrorOptions, OnCopied, Side};
use crate::ring::sim::Faults;

impl Simulation {
    /// The job is over: was it what it said?
    pub(super) fn job_is_over(&mut self, now_ns: u64) -> Result<(), Wrong> {
        let Some(live) = &self.live else { return Ok(()) };
        let Some(outcome) = Crew::outcome(&live.job) else {
            return Err(Wrong::new("concluded without an outcome"));
        };
        if self.drive.gate().is_closed() || self.drive.has_job() || self.drive.follower().is_some() {
            return Err(Wrong::new("the job is over, and still attached or with the gate closed"));
        }
        let moved = Arc::ptr_eq(&self.drive.place().device, &live.target);
        if moved != outcome.pivoted {
            return Err(Wrong::new(format!(
                "pivoted: {}, the drive on the target: {moved}",
                outcome.pivoted
            )));
        }
        let completed = outcome.end == End::Completed;
        let kept = match self.host.decided {
            Some(completes) => completes == completed && completed != outcome.cancelled,
            None => true,
        };
        if !kept || (completed && self.watch.pending.is_some_and(|pivots| pivots != outcome.pivoted)) {
            return Err(Wrong::new(format!(
                "the host was told completes: {:?}, pivots: {:?}; {outcome:?}",
                self.host.decided, self.watch.pending
            )));
        }
        self.story.active_bytes += outcome.progress.active_bytes;
        self.check_outcome(&outcome)?;
        if let Some(live) = self.live.take() {
            let left = if outcome.pivoted { &live.source } else { &live.target };
            self.job_left_bitmap(left, outcome.end == End::Completed)?;
            if outcome.end == End::Completed {
                let left = if outcome.pivoted { &live.source } else { &live.target };
                self.left.push((Arc::clone(left), left.writes()));
            }
            live.source.set_dead(false);
            live.target.set_dead(false);
            if outcome.pivoted {
                // From now on it is the guest's disk, and a guest's disk answers.
                live.target.set_faults(Faults { stuck: 0, ..self.recipe.faults[1] });
            }
        }
        self.watch.job_is_over(now_ns);
        let more = self.jobs < self.recipe.jobs;
        self.host.job_is_over(now_ns, more);
        Ok(())
    }

    /// The outcome is true.
    fn check_outcome(&mut self, outcome: &Outcome) -> Result<(), Wrong> {
        self.check_figures(outcome)?;
        match outcome.end {
            End::Completed => {
                self.check_sealed()?;
                self.story.pivots += u32::from(outcome.pivoted);
                self.story.copies += u32::from(!outcome.pivoted);
                if outcome.pivoted {
                    // The target was flushed, so everything that was acknowledged is durable there.
                    let now = self.model.tick();
                    self.model.flushed(now);
                    self.errors_possible = self.recipe.has_errors(1);
                }
            }
            End::Cancelled => {
                self.story.cancelled += 1;
                let meddles = self.recipe.meddle_ns > 0 || !self.recipe.options.auto_finalize;
                if matches!(self.recipe.wanted, Wanted::Pivot | Wanted::PointInTime)
                    && !meddles
                    && self.host.forced_ns.is_none()
                {
                    return Err(Wrong::new("cancelled, and nobody asked for that"));
                }
                if outcome.error.is_some() {
                    // It failed too, before that or while it was ending.
                    self.check_failure(outcome)?;
                }
                self.check_clean(true)?;
            }
            End::Failed => {
                self.story.failed += 1;
                self.check_failure(outcome)?;
                self.check_clean(true)?;
            }
        }
        Ok(())
    }

    /// What the outcome says in figures and flags is what was seen.
    fn check_figures(&self, outcome: &Outcome) -> Result<(), Wrong> {
        let completed = outcome.end == End::Completed;
        let flags = (outcome.target == TargetState::Complete, outcome.cancelled);
        if flags != (completed, outcome.end == End::Cancelled) || (completed && outcome.error.is_some()) {
            return Err(Wrong::new(format!("an outcome that contradicts itself: {outcome:?}")));
        }
        if completed && outcome.left_dirty_bytes > 0 {
            return Err(Wrong::new(format!("complete, and {} bytes are left", outcome.left_dirty_bytes)));
        }
        // Nothing takes time between two looks, so the gate was closed for exactly as long as the job says; a job that did
        // not switch over has no pause.
        let seen = completed.then(|| Duration::from_nanos(self.watch.held_ns));
        if outcome.pause != seen {
            return Err(Wrong::new(format!("the pause was {seen:?}, and the job says {:?}", outcome.pause)));
        }
        Ok(())
    }

    /// A job fails by an error that was there, on a side whose policy lets it fail by that.
    fn check_failure(&self, outcome: &Outcome) -> Result<(), Wrong> {
        let Some(Live { share, source, target, options, .. }) = &self.live else { return Ok(()) };
        let wrong = |why: &str| Err(Wrong::new(format!("{why}: {:?}, {:?}", share.failure(), outcome.error)));
        let (Some(failure), true) = (share.failure(), outcome.error.is_some()) else {
            return wrong("failed by nothing");
        };
        if outcome.error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Internal) {
            return wrong("a panic in the logic");
        }
        if !may_fail_by(&failure, options) {
            return wrong("failed against its policy");
        }
        match told::was_there([source, target], failure.side, failure.range, failure.errno) {
            true => Ok(()),
            false => wrong("failed by an error that its disk did not have"),
        }
    }
}

/// Whether a job with these options may fail like this.
fn may_fail_by(failure: &Failure, options: &MirrorOptions) -> bool {
    let policy = match failure.side {
        Side::Source => options.on_source_error,
        Side::Target => options.on_target_error,
    };
    match failure.cause {
        FailureCause::Io => match policy {
            ErrorPolicy::Report => true,
            ErrorPolicy::Enospc => failure.errno != libc::ENOSPC,
            ErrorPolicy::Ignore | ErrorPolicy::Stop => false,
        },
        FailureCause::GaveUp => policy == ErrorPolicy::Ignore && options.on_copied == OnCopied::Complete,
        // What a failed flush has lost no policy brings back.
        FailureCause::Flush => failure.side == Side::Target,
        // No disk shrinks here, no ring breaks, and a queue that is dropped ends with nothing under way.
        FailureCause::SourceShrank | FailureCause::QueueLost | FailureCause::Panic | FailureCause::Ring => {
            false
        }
    }
}
