//! The command word: what host and policies want of a job, one bit each.
//!
//! Any thread sets bits, every worker reads them before it takes up anything, so a command needs no message and no lock. What is
//! in flight is finished under every command.
//!
//! **The end is decided once.** That a switch-over is carried out and that the job is cancelled exclude each other, and whoever
//! comes first has decided, in one step on the word: the host that finalizes, the home of a job that needs no such word, or who
//! cancels. So each of them knows from the answer what comes of it. A failure decides nothing once all is copied and flushed behind
//! the closed gate: it makes the target no worse, and a host that writes down which disk is its guest's must not find that the gate
//! was opened meanwhile by something that it did not ask for.
#![forbid(unsafe_code)]

use super::{Failure, Share};
use crate::bitmap::sync::{AtomicU64, Ordering};
use crate::mirror::mutation::Mutation;

/// Bits of the command word.
pub(super) mod flag {
    /// The host paused the job.
    pub(in crate::mirror::share) const PAUSED: u64 = 1;
    /// An error policy stopped the job.
    pub(in crate::mirror::share) const STOPPED: u64 = 2;
    /// ... because the target is full.
    pub(in crate::mirror::share) const NO_SPACE: u64 = 4;
    /// The host cancelled the job.
    pub(in crate::mirror::share) const CANCELLED: u64 = 8;
    /// The job failed.
    pub(in crate::mirror::share) const FAILED: u64 = 16;
    /// Not every worker has its part yet.
    pub(in crate::mirror::share) const STARTING: u64 = 32;
    /// The host wants the job to come to its end.
    pub(in crate::mirror::share) const COMPLETE: u64 = 64;
    /// ... with the drive on the target.
    pub(in crate::mirror::share) const PIVOT: u64 = 128;
    /// The switch-over is carried out, whatever comes: by the word of the host, or of the home of a job that needs none.
    pub(in crate::mirror::share) const FINALIZE: u64 = 256;
    /// A switch-over is being made: no speed limit, no pacing.
    pub(in crate::mirror::share) const URGENT: u64 = 512;
    /// All is copied and flushed behind the closed gate: no failure ends the job any more.
    pub(in crate::mirror::share) const SEALED: u64 = 1024;
}

/// What has been decided of a job's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The host cancelled it.
    Cancelled,
    /// It failed.
    Failed,
    /// The switch-over is carried out, and the drive moves to the target.
    Pivot,
    /// The switch-over is carried out, and the drive stays where it is.
    PointInTime,
}

impl Decision {
    /// In words, for who wanted something else.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "it was cancelled before",
            Self::Failed => "it has failed before",
            Self::Pivot => "its end is decided: the drive moves to the target",
            Self::PointInTime => "its end is decided: the target is a copy, and the drive stays where it is",
        }
    }
}

/// The word.
#[derive(Debug)]
pub struct Command(AtomicU64);

impl Default for Command {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Command {
    /// Cancels the job, unless its switch-over is being carried out; whether it is cancelled.
    pub fn cancel(&self) -> bool {
        self.set_unless(flag::FINALIZE, flag::CANCELLED)
    }

    /// All is copied and flushed behind the closed gate, unless the job was cancelled or has failed before; whether no failure ends
    /// it any more.
    pub fn seal(&self) -> bool {
        self.set_unless(flag::CANCELLED | flag::FAILED, flag::SEALED)
    }

    /// Decides that the switch-over is carried out, unless something was decided already; whether this has decided it.
    pub fn decide(&self) -> bool {
        self.set_if(
            |word| word & (flag::FINALIZE | flag::CANCELLED) == 0 && !has_failed(word),
            flag::FINALIZE,
        )
    }

    /// The job fails.
    pub fn fail(&self) {
        self.set(flag::FAILED);
    }

    /// Whether it ends without a switch-over.
    pub fn gives_up(&self) -> bool {
        let word = self.0.load(Ordering::Acquire);
        word & flag::FINALIZE == 0 && (word & flag::CANCELLED != 0 || has_failed(word))
    }

    /// What was decided, if anything.
    pub fn decision(&self) -> Option<Decision> {
        match self.0.load(Ordering::Acquire) {
            word if word & flag::FINALIZE != 0 && word & flag::PIVOT != 0 => Some(Decision::Pivot),
            word if word & flag::FINALIZE != 0 => Some(Decision::PointInTime),
            word if word & flag::CANCELLED != 0 => Some(Decision::Cancelled),
            word if has_failed(word) => Some(Decision::Failed),
            _ => None,
        }
    }

    /// Sets bits; those that were set before.
    pub(super) fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }

    /// Clears bits; those that were set before.
    fn clear(&self, bits: u64) -> u64 {
        self.0.fetch_and(!bits, Ordering::AcqRel)
    }

    /// Sets bits unless one of others is set; whether it has.
    fn set_unless(&self, others: u64, bits: u64) -> bool {
        self.set_if(|word| word & others == 0, bits)
    }

    /// Sets bits if the word is as wanted; whether it has.
    fn set_if(&self, wanted: impl Fn(u64) -> bool, bits: u64) -> bool {
        let more = |word| wanted(word).then_some(word | bits);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Whether one of the bits is set.
    fn has(&self, bits: u64) -> bool {
        self.0.load(Ordering::Acquire) & bits != 0
    }
}

/// Whether a failure ends the job: one that came before all was copied and flushed.
const fn has_failed(word: u64) -> bool {
    word & flag::FAILED != 0 && word & flag::SEALED == 0
}

impl Share {
    /// The job is being started: nothing is done before every worker has its part.
    pub fn hold(&self) {
        self.command.set(flag::STARTING);
    }

    /// Whether some worker has not got its part yet.
    #[must_use]
    pub(in crate::mirror) fn is_starting(&self) -> bool {
        self.commanded(flag::STARTING)
    }

    /// Every worker has its part.
    pub fn let_start(&self) {
        self.command.clear(flag::STARTING);
    }

    /// The host pauses the job; what is in flight is finished.
    /// `false` when it was paused already.
    pub fn pause(&self) -> bool {
        self.command.set(flag::PAUSED) & flag::PAUSED == 0
    }

    /// The host resumes the job after a pause or a stop; `false` when there was neither.
    pub fn resume(&self) -> bool {
        let held = flag::PAUSED | flag::STOPPED;
        self.command.clear(held | flag::NO_SPACE) & held != 0
    }

    /// Somebody cancels the job, unless its switch-over is being carried out; nothing new is started.
    pub fn cancel(&self) {
        let _ = self.cancel_unless_decided();
    }

    /// The same; whether it is cancelled.
    pub fn cancel_unless_decided(&self) -> bool {
        if self.is_mutated(Mutation::CancelAfterFinalize) {
            self.command.set(flag::CANCELLED);
            return true;
        }
        self.command.cancel()
    }

    /// The host wants the job's end: with `pivot` the drive moves to the target, else the target is a copy as of then.
    /// `false` when that was wanted already.
    #[must_use]
    pub fn complete(&self, pivot: bool) -> bool {
        let pivot = if pivot { flag::PIVOT } else { 0 };
        self.command.set_unless(flag::COMPLETE, flag::COMPLETE | pivot)
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

    /// All is copied and flushed behind the closed gate.
    pub(in crate::mirror) fn seal(&self) {
        // If it was cancelled or has failed before, whoever looks next sees that.
        let _ = self.command.seal();
    }

    /// Whether it is.
    pub(crate) fn is_sealed(&self) -> bool {
        self.commanded(flag::SEALED)
    }

    /// The switch-over is to be carried out; `false` when something was decided already.
    pub fn decide(&self) -> bool {
        self.command.decide()
    }

    /// What was decided of the end, if anything.
    #[must_use]
    pub fn decision(&self) -> Option<Decision> {
        self.command.decision()
    }

    /// Whether the switch-over is being carried out, whatever comes.
    pub(in crate::mirror) fn is_decided(&self) -> bool {
        self.commanded(flag::FINALIZE)
    }

    /// Whether the job was cancelled before its switch-over was decided, or has failed before it was sealed.
    pub(in crate::mirror) fn gives_up(&self) -> bool {
        self.command.gives_up()
    }

    /// A switch-over begins or ends: as long as it lasts there is neither speed limit nor pacing.
    pub(in crate::mirror) fn set_urgent(&self, urgent: bool) {
        if urgent {
            self.command.set(flag::URGENT);
        } else {
            self.command.clear(flag::URGENT);
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
        self.command.fail();
    }

    /// The first failure.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get().copied()
    }

    /// Whether one of the bits of the command word is set.
    fn commanded(&self, bits: u64) -> bool {
        self.command.has(bits)
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
