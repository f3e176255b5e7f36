//! What a host hears of a job, and why a job failed.

use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;

use super::Share;
use crate::mirror::active::CopyMode;
use crate::mirror::convergence::Reason;
use crate::mirror::policy::{ErrorAction, Side};
use crate::mirror::relief::BudgetLevel;
use crate::mirror::states::JobStatus;
use crate::units::ByteRange;

/// Errors that wait for the host at most; more are counted. A device that goes away fails everything that is under way at once.
const MAX_ERRORS: usize = 128;
/// Places that errors cannot take: what else is told comes from the home, a few at a time, and the home passes it on at each turn.
const OTHER_NOTICES: usize = 64;

/// Why a job failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureCause {
    /// A request failed and the policy said `report`.
    Io,
    /// The source became shorter than it was.
    SourceShrank,
    /// The target could not be flushed; what it was given may be lost.
    Flush,
    /// The policy said `ignore`, and the bounded number of rounds is used up.
    GaveUp,
    /// A queue ended with guest requests that the kernel has not let go of; they may still land.
    QueueLost,
    /// A bug was caught in a worker.
    Panic,
    /// The ring of a worker broke.
    Ring,
}

/// The first failure of a job; later ones are counted only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which side.
    pub side: Side,
    /// What the kernel said.
    pub errno: i32,
    /// The bytes it was about; empty for a flush.
    pub range: ByteRange,
    /// Why it ended the job.
    pub cause: FailureCause,
}

/// What is done when the remainder stops shrinking, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Escalation {
    /// Copy mode auto: guest writes through queues go to both sides.
    WriteBlocking,
    /// The latency budget is loosened to this, because it held the copiers back, in any copy mode. It comes back with
    /// `EventKind::BudgetTightened`; see [`LatencyBudget`](crate::mirror::LatencyBudget).
    BudgetLoosened(BudgetLevel),
    /// Copy mode auto: that was not enough. Guest requests are held again and again, for `max_pause` at most each time, until
    /// the remainder fits into one pause; and again whenever it does not, until `EventKind::BrakingEnded`.
    Braking,
}

/// Something that a host wants to hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A request failed for good.
    Error {
        /// Which side.
        side: Side,
        /// What the kernel said.
        errno: i32,
        /// The bytes it was about; empty for a flush.
        range: ByteRange,
        /// What is done about it.
        action: ErrorAction,
    },
    /// The job's state has changed.
    Status {
        /// What it was.
        from: JobStatus,
        /// What it is.
        to: JobStatus,
    },
    /// The way in which guest writes are followed has changed.
    CopyMode(CopyMode),
    /// The remainder stopped shrinking.
    Escalated {
        /// What is done about it.
        step: Escalation,
        /// Why.
        reason: Reason,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// A latency budget that was loosened has come back, so far.
    BudgetTightened(BudgetLevel),
    /// Copy mode auto holds guest requests no more.
    BrakingEnded,
    /// A switch-over did not fit into its time; the gate is open again, and it will be tried again.
    SwitchOverMissed {
        /// How long guest requests were held.
        held_ns: u64,
        /// Bytes that were left.
        left_bytes: u64,
    },
}

impl Notice {
    /// Whether it is an error; those come in any number.
    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Self::Error { .. })
    }
}

/// Room for what waits for the host.
pub(super) fn queue() -> ArrayQueue<Notice> {
    ArrayQueue::new(MAX_ERRORS + OTHER_NOTICES)
}

impl Share {
    /// Keeps a notice for the host. An error is counted when there is no room; what else happens to the job has room of its own, so
    /// that a burst of errors does not push out the end to which it leads.
    pub fn post(&self, notice: Notice) {
        if !notice.is_error() || self.waiting_errors.fetch_add(1, Ordering::AcqRel) < MAX_ERRORS {
            self.put(notice);
        } else {
            self.waiting_errors.fetch_sub(1, Ordering::AcqRel);
            self.lost_notices.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a notice where the host's are; the oldest gives way should there be no room after all, for the newest says how the
    /// job stands.
    fn put(&self, notice: Notice) {
        if let Some(oldest) = self.notices.force_push(notice) {
            self.was_taken(oldest);
            self.lost_notices.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A notice is not among the host's any more.
    fn was_taken(&self, notice: Notice) {
        if notice.is_error() {
            self.waiting_errors.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether a notice waits for the host.
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty() || self.lost_notices.load(Ordering::Relaxed) > 0
    }

    /// Takes a notice for the host.
    #[must_use]
    pub fn pop_notice(&self) -> Option<Notice> {
        let notice = self.notices.pop()?;
        self.was_taken(notice);
        Some(notice)
    }

    /// Notices that were lost since this was asked last.
    #[must_use]
    pub fn take_lost_notices(&self) -> u64 {
        self.lost_notices.swap(0, Ordering::Relaxed)
    }
}
