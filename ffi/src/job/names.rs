//! What core's states and choices are called in C, and their numbers. They never change.

use blkmirror_core::Result;
use blkmirror_core::engine::{
    BudgetLevel, CopyMode, ErrorAction, ErrorPolicy, Escalation, EscalationReason, IoStatus, JobStatus, Side,
};

use crate::border::invalid;

/// Where a job stands. As QEMU's JobStatus.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_job_status = u32;
/// Made, and not yet taken up by a worker.
pub const BLKM_JOB_CREATED: blkm_job_status = 1;
/// Copying, or following, and not ready.
pub const BLKM_JOB_RUNNING: blkm_job_status = 2;
/// Paused by the host or stopped by an error policy, before it was ready.
pub const BLKM_JOB_PAUSED: blkm_job_status = 3;
/// A switch-over is possible: the forecast of its pause fitted into `max_pause_ns` when the job came to this state.
pub const BLKM_JOB_READY: blkm_job_status = 4;
/// Paused or stopped after it was ready.
pub const BLKM_JOB_STANDBY: blkm_job_status = 5;
/// Everything is copied and flushed, and guest requests are held.
pub const BLKM_JOB_WAITING: blkm_job_status = 6;
/// The same, and the host has to finalize.
pub const BLKM_JOB_PENDING: blkm_job_status = 7;
/// Cancelled or failed, and not yet over.
pub const BLKM_JOB_ABORTING: blkm_job_status = 8;
/// Over; the outcome is there.
pub const BLKM_JOB_CONCLUDED: blkm_job_status = 9;
/// The host has dismissed it.
pub const BLKM_JOB_NULL: blkm_job_status = 10;

/// What the first pass of a job copies.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_sync_mode = u32;
/// Everything.
pub const BLKM_SYNC_FULL: blkm_sync_mode = 0;
/// What the topmost layer holds: what SEEK_DATA finds, or what `extents` say.
pub const BLKM_SYNC_TOP: blkm_sync_mode = 1;
/// Nothing; only later writes are followed.
pub const BLKM_SYNC_NONE: blkm_sync_mode = 2;
/// What is dirty in `bitmap`.
pub const BLKM_SYNC_BITMAP: blkm_sync_mode = 3;

/// How guest writes are followed.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_copy_mode = u32;
/// Background, and write-blocking when the remainder stops shrinking, which it stays then; if that does not help, guest requests
/// are held now and then. After the step to write-blocking a target that hangs holds guest writes until the job is cancelled by
/// force, and those from stable buffers (`BLKM_QUEUE_F_STABLE_BUFFERS`) even after that, until the target answers: choose
/// `BLKM_COPY_BACKGROUND` unless you supervise how long guest writes take.
pub const BLKM_COPY_AUTO: blkm_copy_mode = 0;
/// They go to the source and mark their chunks; copiers come round.
pub const BLKM_COPY_BACKGROUND: blkm_copy_mode = 1;
/// They go to the source and the target at once, and the guest is told when both are done. For queues. A target that hangs holds
/// writes until the job is cancelled by force, and those from stable buffers even after that: there is no time limit and no event.
pub const BLKM_COPY_WRITE_BLOCKING: blkm_copy_mode = 2;

/// What an error leads to. As QEMU's on-source-error and on-target-error.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_on_error = u32;
/// The job fails.
pub const BLKM_ON_ERROR_REPORT: blkm_on_error = 0;
/// The chunk stays dirty and is tried again, in rounds that come up to a second apart.
pub const BLKM_ON_ERROR_IGNORE: blkm_on_error = 1;
/// No space stops the job, anything else fails it.
pub const BLKM_ON_ERROR_ENOSPC: blkm_on_error = 2;
/// The job stops where it is until `blkm_job_resume`.
pub const BLKM_ON_ERROR_STOP: blkm_on_error = 3;

/// What is done about one error.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_error_action = u32;
/// The job fails.
pub const BLKM_ACTION_REPORT: blkm_error_action = 1;
/// The chunk stays dirty and is tried again later.
pub const BLKM_ACTION_IGNORE: blkm_error_action = 2;
/// The job stops until it is resumed.
pub const BLKM_ACTION_STOP: blkm_error_action = 3;

/// Which side of a job.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_side = u32;
/// Reads.
pub const BLKM_SIDE_SOURCE: blkm_side = 1;
/// Writes, zeroing, flushes.
pub const BLKM_SIDE_TARGET: blkm_side = 2;

/// What errors have done to a job.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_io_status = u32;
/// Nothing that stops it.
pub const BLKM_IO_STATUS_OK: blkm_io_status = 0;
/// An error stopped it.
pub const BLKM_IO_STATUS_FAILED: blkm_io_status = 1;
/// A full target stopped it.
pub const BLKM_IO_STATUS_NOSPACE: blkm_io_status = 2;

/// What is done about a remainder that does not shrink.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_escalation = u32;
/// Guest writes through queues go to both sides.
pub const BLKM_ESCALATION_WRITE_BLOCKING: blkm_escalation = 1;
/// The latency budget is loosened.
pub const BLKM_ESCALATION_BUDGET_LOOSENED: blkm_escalation = 2;
/// Guest requests are held again and again, for `max_pause_ns` at most each time.
pub const BLKM_ESCALATION_BRAKING: blkm_escalation = 3;

/// Why something is done.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_escalation_reason = u32;
/// The remainder no longer shrinks.
pub const BLKM_REASON_NOT_SHRINKING: blkm_escalation_reason = 1;
/// Switch-overs were missed, or the flush before one took too long for the guest's writes. Also look for tokens that are never
/// ended.
pub const BLKM_REASON_MISSED: blkm_escalation_reason = 2;

/// How much of the latency budget is in force.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_budget_level = u32;
/// All of it; also where none was chosen.
pub const BLKM_BUDGET_CHOSEN: blkm_budget_level = 0;
/// Four times what was chosen.
pub const BLKM_BUDGET_FOUR_TIMES: blkm_budget_level = 1;
/// Nothing of it: the job copies at full speed.
pub const BLKM_BUDGET_LIFTED: blkm_budget_level = 2;

/// A state's number.
pub(crate) fn status(status: JobStatus) -> blkm_job_status {
    match status {
        JobStatus::Created => BLKM_JOB_CREATED,
        JobStatus::Running => BLKM_JOB_RUNNING,
        JobStatus::Paused => BLKM_JOB_PAUSED,
        JobStatus::Ready => BLKM_JOB_READY,
        JobStatus::Standby => BLKM_JOB_STANDBY,
        JobStatus::Waiting => BLKM_JOB_WAITING,
        JobStatus::Pending => BLKM_JOB_PENDING,
        JobStatus::Aborting => BLKM_JOB_ABORTING,
        JobStatus::Concluded => BLKM_JOB_CONCLUDED,
        JobStatus::Null => BLKM_JOB_NULL,
    }
}

/// A side's number.
pub(crate) fn side(side: Side) -> blkm_side {
    match side {
        Side::Source => BLKM_SIDE_SOURCE,
        Side::Target => BLKM_SIDE_TARGET,
    }
}

/// An action's number; 0 for one that has none yet.
pub(crate) fn action(action: ErrorAction) -> blkm_error_action {
    match action {
        ErrorAction::Report => BLKM_ACTION_REPORT,
        ErrorAction::Ignore => BLKM_ACTION_IGNORE,
        ErrorAction::Stop => BLKM_ACTION_STOP,
        _ => 0,
    }
}

/// A status' number.
pub(crate) fn io_status(status: IoStatus) -> blkm_io_status {
    match status {
        IoStatus::Ok => BLKM_IO_STATUS_OK,
        IoStatus::NoSpace => BLKM_IO_STATUS_NOSPACE,
        _ => BLKM_IO_STATUS_FAILED,
    }
}

/// A mode's number.
pub(crate) fn copy_mode(mode: CopyMode) -> blkm_copy_mode {
    match mode {
        CopyMode::Background => BLKM_COPY_BACKGROUND,
        CopyMode::WriteBlocking => BLKM_COPY_WRITE_BLOCKING,
    }
}

/// A level's number.
pub(crate) fn budget_level(level: BudgetLevel) -> blkm_budget_level {
    match level {
        BudgetLevel::Chosen => BLKM_BUDGET_CHOSEN,
        BudgetLevel::FourTimes => BLKM_BUDGET_FOUR_TIMES,
        _ => BLKM_BUDGET_LIFTED,
    }
}

/// A step's number, and the level of the budget if it is about that; 0 for a step that has no number yet.
pub(crate) fn step(step: Escalation) -> (blkm_escalation, blkm_budget_level) {
    match step {
        Escalation::WriteBlocking => (BLKM_ESCALATION_WRITE_BLOCKING, BLKM_BUDGET_CHOSEN),
        Escalation::BudgetLoosened(level) => (BLKM_ESCALATION_BUDGET_LOOSENED, budget_level(level)),
        Escalation::Braking => (BLKM_ESCALATION_BRAKING, BLKM_BUDGET_CHOSEN),
        _ => (0, BLKM_BUDGET_CHOSEN),
    }
}

/// A reason's number; 0 for one that has none yet.
pub(crate) fn reason(reason: EscalationReason) -> blkm_escalation_reason {
    match reason {
        EscalationReason::NotShrinking { .. } => BLKM_REASON_NOT_SHRINKING,
        EscalationReason::Missed { .. } => BLKM_REASON_MISSED,
        _ => 0,
    }
}

/// The policy of that number.
pub(crate) fn policy(number: blkm_on_error, attempt: &'static str) -> Result<ErrorPolicy> {
    match number {
        BLKM_ON_ERROR_REPORT => Ok(ErrorPolicy::Report),
        BLKM_ON_ERROR_IGNORE => Ok(ErrorPolicy::Ignore),
        BLKM_ON_ERROR_ENOSPC => Ok(ErrorPolicy::Enospc),
        BLKM_ON_ERROR_STOP => Ok(ErrorPolicy::Stop),
        _ => Err(invalid(attempt, format!("{number} is no error policy; use BLKM_ON_ERROR_*"))),
    }
}
