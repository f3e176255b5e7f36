//! What a host hears of a job, and why a job failed.

use crate::mirror::active::CopyMode;
use crate::mirror::convergence::Reason;
use crate::mirror::policy::{ErrorAction, Side};
use crate::mirror::relief::BudgetLevel;
use crate::mirror::states::JobStatus;
use crate::units::ByteRange;

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
