//! What is read of a job.

use std::ffi::CStr;
use std::time::Duration;

use blkmirror::{
    BLKM_END_CANCELLED, BLKM_END_COMPLETED, BLKM_END_FAILED, BLKM_JOBINFO_ACTIVELY_SYNCED,
    BLKM_JOBINFO_BRAKING, BLKM_JOBINFO_COMPLETING, BLKM_JOBINFO_FITS_NOW, BLKM_JOBINFO_HAS_ERROR,
    BLKM_JOBINFO_PIVOTS, BLKM_NEVER_NS, BLKM_OUTCOME_PIVOTED, BLKM_OUTCOME_TARGET_COMPLETE, blkm_job_info,
    blkm_outcome,
};
use blkmirror_core::engine::{
    BudgetLevel, CopyMode, End, ErrorAction, IoStatus, JobStatus, Progress, Side, TargetState,
};
use blkmirror_core::units::ByteRange;
use nix::libc::ECANCELED;

use super::error::Error;
use super::names;

/// The last request that failed for good; see core's of that name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is what core says")]
pub struct LastError {
    pub side: Side,
    pub errno: i32,
    pub range: ByteRange,
    pub action: ErrorAction,
    pub time_ns: u64,
}

/// Where a job stands; see core's of that name.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is what core says")]
pub struct JobInfo {
    pub status: JobStatus,
    pub len_bytes: u64,
    pub offset_bytes: u64,
    pub dirty_bytes: u64,
    pub dirty_rate_bytes_per_s: u64,
    pub copy_rate_bytes_per_s: u64,
    pub eta: Option<Duration>,
    pub predicted_pause: Option<Duration>,
    pub flush: Option<Duration>,
    pub max_pause: Option<Duration>,
    pub fits_now: bool,
    pub speed_bytes_per_s: u64,
    pub copy_mode: CopyMode,
    pub budget_level: BudgetLevel,
    pub braking: bool,
    pub actively_synced: bool,
    pub missed: u32,
    pub completing: bool,
    pub pivots: bool,
    pub io_status: IoStatus,
    pub last_error: Option<LastError>,
    pub progress: Progress,
}

/// How a job ended; see core's of that name.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is what core says")]
pub struct Outcome {
    pub end: End,
    pub target: TargetState,
    pub pivoted: bool,
    pub pause: Option<Duration>,
    pub error: Option<Error>,
    pub cancelled: bool,
    pub progress: Progress,
    pub left_dirty_bytes: u64,
}

/// A time that may be unknown.
fn known(ns: u64) -> Option<Duration> {
    (ns != BLKM_NEVER_NS).then(|| Duration::from_nanos(ns))
}

impl JobInfo {
    /// From C's.
    pub(super) fn new(info: &blkm_job_info) -> Self {
        let has = |flag| info.flags & flag != 0;
        assert!(info.reserved0 == 0 && info.reserved == [0; 4], "zero so far: {info:?}");
        Self {
            status: names::status(info.status),
            len_bytes: info.len_bytes,
            offset_bytes: info.offset_bytes,
            dirty_bytes: info.dirty_bytes,
            dirty_rate_bytes_per_s: info.dirty_rate_bytes_per_s,
            copy_rate_bytes_per_s: info.copy_rate_bytes_per_s,
            eta: known(info.eta_ns),
            predicted_pause: known(info.predicted_pause_ns),
            flush: known(info.flush_ns),
            max_pause: known(info.max_pause_ns),
            fits_now: has(BLKM_JOBINFO_FITS_NOW),
            speed_bytes_per_s: info.speed_bytes_per_s,
            copy_mode: names::copy_mode(info.copy_mode),
            budget_level: names::budget_level(info.budget_level),
            braking: has(BLKM_JOBINFO_BRAKING),
            actively_synced: has(BLKM_JOBINFO_ACTIVELY_SYNCED),
            missed: info.missed,
            completing: has(BLKM_JOBINFO_COMPLETING),
            pivots: has(BLKM_JOBINFO_PIVOTS),
            io_status: names::io_status(info.io_status),
            last_error: has(BLKM_JOBINFO_HAS_ERROR).then(|| LastError {
                side: names::side(info.last_error_side),
                errno: -info.last_error_ret,
                range: ByteRange::at(info.last_error_offset_bytes, info.last_error_len_bytes),
                action: names::action(info.last_error_action),
                time_ns: info.last_error_time_ns,
            }),
            progress: progress(info),
        }
    }
}

/// The counters of a query.
fn progress(info: &blkm_job_info) -> Progress {
    Progress {
        status: names::status(info.status),
        disk_bytes: info.disk_bytes,
        done_bytes: info.done_bytes,
        copied_bytes: info.copied_bytes,
        zeroed_bytes: info.zeroed_bytes,
        skipped_bytes: info.skipped_bytes,
        recopied_bytes: info.recopied_bytes,
        active_bytes: info.active_bytes,
        in_flight_bytes: info.in_flight_bytes,
        rate_bytes_per_s: 0,
        eta: None,
        elapsed: Duration::from_nanos(info.elapsed_ns),
        retries: info.retries,
        errors: info.errors,
        workers: usize::try_from(info.workers).unwrap(),
    }
}

impl Outcome {
    /// From C's; `text` is that of the error in full, `after` a query that came later.
    pub(super) fn new(outcome: &blkm_outcome, text: String, after: &JobInfo) -> Self {
        let has = |flag| outcome.flags & flag != 0;
        assert_eq!(outcome.reserved, [0; 3], "zero so far");
        let end = match outcome.end {
            BLKM_END_COMPLETED => End::Completed,
            BLKM_END_CANCELLED => End::Cancelled,
            BLKM_END_FAILED => End::Failed,
            other => panic!("{other} is no end"),
        };
        // SAFETY: it ends with a 0 inside the array.
        let short = unsafe { CStr::from_ptr(outcome.error_msg.as_ptr()) }.to_str().unwrap();
        assert!(text.starts_with(short) && short.is_empty() == text.is_empty(), "{text:?}, but {short:?}");
        match end {
            End::Completed => assert_eq!((outcome.ret, &*text), (0, "")),
            End::Cancelled if text == "the job was cancelled" => assert_eq!(outcome.ret, -ECANCELED),
            End::Cancelled | End::Failed => assert!(outcome.ret < 0 && !text.is_empty(), "{outcome:?}"),
        }
        // Core has an error only of what failed.
        let error = match end {
            End::Cancelled => text.split_once("failed: ").map(|(_, error)| error.to_owned()),
            End::Completed | End::Failed => Some(text).filter(|text| !text.is_empty()),
        };
        let complete = has(BLKM_OUTCOME_TARGET_COMPLETE);
        Self {
            end,
            target: if complete { TargetState::Complete } else { TargetState::Incomplete },
            pivoted: has(BLKM_OUTCOME_PIVOTED),
            pause: known(outcome.pause_ns),
            error: error.map(|text| Error::new(outcome.ret, text)),
            cancelled: end == End::Cancelled,
            progress: Progress {
                copied_bytes: outcome.copied_bytes,
                zeroed_bytes: outcome.zeroed_bytes,
                skipped_bytes: outcome.skipped_bytes,
                active_bytes: outcome.active_bytes,
                elapsed: Duration::from_nanos(outcome.elapsed_ns),
                done_bytes: outcome.done_bytes,
                retries: outcome.retries,
                errors: outcome.errors,
                ..after.progress
            },
            left_dirty_bytes: outcome.left_dirty_bytes,
        }
    }
}
