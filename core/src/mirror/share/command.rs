//! The command word: what host and policies want of a job, one bit each.
//!
//! Any thread sets bits, every worker reads them before it takes up anything, so a command needs no message and no lock. What is
//! in flight is finished under every command.

use std::sync::atomic::Ordering;

use super::{Failure, Share};

/// Bits of the command word.
pub(super) mod flag {
    /// The host paused the job.
    pub(in crate::mirror::share) const PAUSED: u32 = 1;
    /// An error policy stopped the job.
    pub(in crate::mirror::share) const STOPPED: u32 = 2;
    /// ... because the target is full.
    pub(in crate::mirror::share) const NO_SPACE: u32 = 4;
    /// The host cancelled the job.
    pub(in crate::mirror::share) const CANCELLED: u32 = 8;
    /// The job failed.
    pub(in crate::mirror::share) const FAILED: u32 = 16;
    /// Not every worker has its part yet.
    pub(in crate::mirror::share) const STARTING: u32 = 32;
    /// The host wants the job to come to its end.
    pub(in crate::mirror::share) const COMPLETE: u32 = 64;
    /// ... with the drive on the target.
    pub(in crate::mirror::share) const PIVOT: u32 = 128;
    /// The host wants a pending switch-over to be carried out.
    pub(in crate::mirror::share) const FINALIZE: u32 = 256;
    /// A switch-over is being made: no speed limit, no pacing.
    pub(in crate::mirror::share) const URGENT: u32 = 512;
}

impl Share {
    /// The job is being started: nothing is done before every worker has its part.
    pub fn hold(&self) {
        self.command.fetch_or(flag::STARTING, Ordering::AcqRel);
    }

    /// Whether some worker has not got its part yet.
    #[must_use]
    pub(in crate::mirror) fn is_starting(&self) -> bool {
        self.commanded(flag::STARTING)
    }

    /// Every worker has its part.
    pub fn let_start(&self) {
        self.command.fetch_and(!flag::STARTING, Ordering::AcqRel);
    }

    /// The host pauses the job; what is in flight is finished.
    /// `false` when it was paused already.
    pub fn pause(&self) -> bool {
        self.command.fetch_or(flag::PAUSED, Ordering::AcqRel) & flag::PAUSED == 0
    }

    /// The host resumes the job after a pause or a stop; `false` when there was neither.
    pub fn resume(&self) -> bool {
        let held = flag::PAUSED | flag::STOPPED;
        self.command.fetch_and(!(held | flag::NO_SPACE), Ordering::AcqRel) & held != 0
    }

    /// The host cancels the job; nothing new is started.
    pub fn cancel(&self) {
        self.command.fetch_or(flag::CANCELLED, Ordering::AcqRel);
    }

    /// The host wants the job's end: with `pivot` the drive moves to the target, else the target is a copy as of then.
    /// `false` when that was wanted already.
    #[must_use]
    pub fn complete(&self, pivot: bool) -> bool {
        let pivot = if pivot { flag::PIVOT } else { 0 };
        let more = |word| (word & flag::COMPLETE == 0).then_some(word | flag::COMPLETE | pivot);
        self.command.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Whether the host wants the job's end.
    #[must_use]
    pub fn wants_completion(&self) -> bool {
        self.commanded(flag::COMPLETE)
    }

    /// Whether the drive is to move to the target.
    #[must_use]
    pub fn wants_pivot(&self) -> bool {
        self.commanded(flag::PIVOT)
    }

    /// The host wants a pending switch-over to be carried out.
    pub fn finalize(&self) {
        self.command.fetch_or(flag::FINALIZE, Ordering::AcqRel);
    }

    /// Whether the host wants that.
    pub(in crate::mirror) fn wants_finalize(&self) -> bool {
        self.commanded(flag::FINALIZE)
    }

    /// A switch-over begins or ends: as long as it lasts there is neither speed limit nor pacing.
    pub(in crate::mirror) fn set_urgent(&self, urgent: bool) {
        if urgent {
            self.command.fetch_or(flag::URGENT, Ordering::AcqRel);
        } else {
            self.command.fetch_and(!flag::URGENT, Ordering::AcqRel);
        }
    }

    /// Whether a switch-over is being made.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.commanded(flag::URGENT)
    }

    /// The job fails; the first failure is kept.
    pub fn fail(&self, failure: Failure) {
        // Losing this race means that somebody else's failure came first, which is what is wanted.
        let _ = self.failure.set(failure);
        self.command.fetch_or(flag::FAILED, Ordering::AcqRel);
    }

    /// The first failure.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get().copied()
    }

    /// Whether one of the bits of the command word is set.
    fn commanded(&self, bits: u32) -> bool {
        self.command.load(Ordering::Acquire) & bits != 0
    }

    /// Whether the host cancelled the job.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.commanded(flag::CANCELLED)
    }

    /// Whether nothing more will be copied: cancelled or failed.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.commanded(flag::CANCELLED | flag::FAILED)
    }

    /// Whether new work must wait: paused or stopped.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.commanded(flag::PAUSED | flag::STOPPED | flag::STARTING)
    }

    /// Whether an error policy stopped the job, and whether that was for lack of space.
    #[must_use]
    pub fn stopped(&self) -> Option<bool> {
        self.commanded(flag::STOPPED).then(|| self.commanded(flag::NO_SPACE))
    }
}
