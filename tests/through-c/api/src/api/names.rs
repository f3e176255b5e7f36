//! Core's states and choices, and C's numbers for them.

use blkmirror::*;
use blkmirror_core::drive::IoKind;
use blkmirror_core::engine::{
    BudgetLevel, CopyMode, CopyModeChoice, ErrorAction, ErrorPolicy, IoStatus, JobStatus, Side,
};

/// A state.
pub(super) fn status(number: blkm_job_status) -> JobStatus {
    match number {
        BLKM_JOB_CREATED => JobStatus::Created,
        BLKM_JOB_RUNNING => JobStatus::Running,
        BLKM_JOB_PAUSED => JobStatus::Paused,
        BLKM_JOB_READY => JobStatus::Ready,
        BLKM_JOB_STANDBY => JobStatus::Standby,
        BLKM_JOB_WAITING => JobStatus::Waiting,
        BLKM_JOB_PENDING => JobStatus::Pending,
        BLKM_JOB_ABORTING => JobStatus::Aborting,
        BLKM_JOB_CONCLUDED => JobStatus::Concluded,
        BLKM_JOB_NULL => JobStatus::Null,
        other => panic!("{other} is no state"),
    }
}

/// A side.
pub(super) fn side(number: blkm_side) -> Side {
    match number {
        BLKM_SIDE_SOURCE => Side::Source,
        BLKM_SIDE_TARGET => Side::Target,
        other => panic!("{other} is no side"),
    }
}

/// What is done about an error.
pub(super) fn action(number: blkm_error_action) -> ErrorAction {
    match number {
        BLKM_ACTION_REPORT => ErrorAction::Report,
        BLKM_ACTION_IGNORE => ErrorAction::Ignore,
        BLKM_ACTION_STOP => ErrorAction::Stop,
        other => panic!("{other} is no action"),
    }
}

/// What errors have done.
pub(super) fn io_status(number: blkm_io_status) -> IoStatus {
    match number {
        BLKM_IO_STATUS_OK => IoStatus::Ok,
        BLKM_IO_STATUS_FAILED => IoStatus::Failed,
        BLKM_IO_STATUS_NOSPACE => IoStatus::NoSpace,
        other => panic!("{other} is no I/O status"),
    }
}

/// How guest writes are followed.
pub(super) fn copy_mode(number: blkm_copy_mode) -> CopyMode {
    match number {
        BLKM_COPY_BACKGROUND => CopyMode::Background,
        BLKM_COPY_WRITE_BLOCKING => CopyMode::WriteBlocking,
        other => panic!("{other} is no way to follow writes"),
    }
}

/// How much of the budget is in force.
pub(super) fn budget_level(number: blkm_budget_level) -> BudgetLevel {
    match number {
        BLKM_BUDGET_CHOSEN => BudgetLevel::Chosen,
        BLKM_BUDGET_FOUR_TIMES => BudgetLevel::FourTimes,
        BLKM_BUDGET_LIFTED => BudgetLevel::Lifted,
        other => panic!("{other} is no level"),
    }
}

/// The number of a copy mode.
pub(super) fn number_of_mode(mode: CopyMode) -> blkm_copy_mode {
    match mode {
        CopyMode::Background => BLKM_COPY_BACKGROUND,
        CopyMode::WriteBlocking => BLKM_COPY_WRITE_BLOCKING,
    }
}

/// The number of a choice of copy mode.
pub(super) fn number_of_choice(mode: CopyModeChoice) -> blkm_copy_mode {
    match mode {
        CopyModeChoice::Auto => BLKM_COPY_AUTO,
        CopyModeChoice::Background => BLKM_COPY_BACKGROUND,
        CopyModeChoice::WriteBlocking => BLKM_COPY_WRITE_BLOCKING,
    }
}

/// The number of an error policy.
pub(super) fn number_of_policy(policy: ErrorPolicy) -> blkm_on_error {
    match policy {
        ErrorPolicy::Report => BLKM_ON_ERROR_REPORT,
        ErrorPolicy::Ignore => BLKM_ON_ERROR_IGNORE,
        ErrorPolicy::Enospc => BLKM_ON_ERROR_ENOSPC,
        ErrorPolicy::Stop => BLKM_ON_ERROR_STOP,
    }
}

/// The number of a kind of request.
pub(super) fn number_of_kind(kind: IoKind) -> blkm_io_kind {
    match kind {
        IoKind::Read => BLKM_IO_READ,
        IoKind::Write => BLKM_IO_WRITE,
        IoKind::WriteZeroes => BLKM_IO_WRITE_ZEROES,
        IoKind::Discard => BLKM_IO_DISCARD,
        IoKind::Flush => BLKM_IO_FLUSH,
    }
}
