//! What may be read of a job.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

use blkmirror_core::engine::{End, JobInfo, Outcome, TargetState};
use blkmirror_core::{Error, ErrorKind};

use super::blkm_job;
use super::names::{
    self, blkm_budget_level, blkm_copy_mode, blkm_error_action, blkm_io_status, blkm_job_status, blkm_side,
};
use crate::border::handle::with;
use crate::border::sized::{self, Structure, structure};
use crate::border::{sum, text};
use crate::drive::{blkm_latencies, put_latencies};

/// A switch-over begun now would fit into `max_pause_ns`. A forecast, and no permission.
pub const BLKM_JOBINFO_FITS_NOW: u64 = 1;
/// Copy mode auto holds guest requests now and then.
pub const BLKM_JOBINFO_BRAKING: u64 = 2;
/// Write-blocking, and nothing is dirty or under way: what the guest is told is written through queues is on both sides, on the
/// target perhaps only in its cache.
pub const BLKM_JOBINFO_ACTIVELY_SYNCED: u64 = 4;
/// The host has asked for the end.
pub const BLKM_JOBINFO_COMPLETING: u64 = 8;
/// `last_error_*` are set: a request has failed for good, whatever was done about it.
pub const BLKM_JOBINFO_HAS_ERROR: u64 = 16;
/// The end that the host has asked for moves the drive to the target. Whether it has moved is `BLKM_OUTCOME_PIVOTED`.
pub const BLKM_JOBINFO_PIVOTS: u64 = 32;

/// Where a job stands and what it has done. Bytes and state are of this moment; rates and forecasts at most half a second old.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_job_info {
    /// Set by the caller: sizeof(blkm_job_info).
    pub struct_size: usize,
    /// `BLKM_JOBINFO_*`.
    pub flags: u64,
    /// Bytes done plus bytes left; only the difference to `offset_bytes` has meaning, as in QEMU.
    pub len_bytes: u64,
    /// Bytes dealt with so far; grows while the job follows the guest.
    pub offset_bytes: u64,
    /// Bytes that differ or may differ.
    pub dirty_bytes: u64,
    /// Bytes that turn dirty per second.
    pub dirty_rate_bytes_per_s: u64,
    /// Bytes copied per second.
    pub copy_rate_bytes_per_s: u64,
    /// Time until nothing is left at these rates; `BLKM_NEVER_NS`: not in sight.
    pub eta_ns: u64,
    /// How long a switch-over begun now would hold guest requests, `flush_ns` included; `BLKM_NEVER_NS`: not known yet.
    pub predicted_pause_ns: u64,
    /// The speed limit; 0: none.
    pub speed_bytes_per_s: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk that were dealt with; not more than `disk_bytes`.
    pub done_bytes: u64,
    /// Bytes written to the target as data.
    pub copied_bytes: u64,
    /// Bytes made zero on the target without sending them.
    pub zeroed_bytes: u64,
    /// Bytes that needed no request.
    pub skipped_bytes: u64,
    /// Bytes of `copied_bytes` that were copied again because the guest had written there.
    pub recopied_bytes: u64,
    /// Bytes that guest writes took to both sides themselves.
    pub active_bytes: u64,
    /// Bytes being copied now.
    pub in_flight_bytes: u64,
    /// Time since the job was started.
    pub elapsed_ns: u64,
    /// Requests sent again after a passing error or a short transfer.
    pub retries: u64,
    /// Requests that failed for good.
    pub errors: u64,
    /// Last error: where.
    pub last_error_offset_bytes: u64,
    /// Last error: how much; 0 for a flush.
    pub last_error_len_bytes: u64,
    /// Last error: CLOCK_MONOTONIC when it was noticed.
    pub last_error_time_ns: u64,
    /// Last error: -errno.
    pub last_error_ret: i32,
    /// Last error: which side.
    pub last_error_side: blkm_side,
    /// Last error: what was done about it.
    pub last_error_action: blkm_error_action,
    /// The job's state.
    pub status: blkm_job_status,
    /// How guest writes are followed now.
    pub copy_mode: blkm_copy_mode,
    /// How much of the latency budget is in force.
    pub budget_level: blkm_budget_level,
    /// What errors have done to the job.
    pub io_status: blkm_io_status,
    /// Switch-overs that did not fit so far.
    pub missed: u32,
    /// Workers that share the job.
    pub workers: u32,
    /// Zero so far.
    pub reserved0: u32,
    /// What a flush of the target is expected to take: the slowest of the last few, less if that is long ago; `BLKM_NEVER_NS`: none
    /// has ended yet. While it is longer than three quarters of `max_pause_ns`, no switch-over fits, however little is dirty:
    /// `blkm_job_set_max_pause`.
    pub flush_ns: u64,
    /// How long guest requests may be held now; `BLKM_NEVER_NS`: as long as it takes.
    pub max_pause_ns: u64,
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_job_info, first 280);

/// How a job ended.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_end = u32;
/// The target equals the source as of the switch-over, as far as the sync mode asked, and is flushed.
pub const BLKM_END_COMPLETED: blkm_end = 1;
/// The host cancelled it; the target is no copy.
pub const BLKM_END_CANCELLED: blkm_end = 2;
/// It failed; the target is no copy.
pub const BLKM_END_FAILED: blkm_end = 3;

/// The drive stands on the target now.
pub const BLKM_OUTCOME_PIVOTED: u64 = 1;
/// The target is complete.
pub const BLKM_OUTCOME_TARGET_COMPLETE: u64 = 2;

/// How a job ended, and what it did.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_outcome {
    /// Set by the caller: sizeof(blkm_outcome).
    pub struct_size: usize,
    /// `BLKM_OUTCOME_*`.
    pub flags: u64,
    /// How long guest requests were held at the switch-over; `BLKM_NEVER_NS`: there was none.
    pub pause_ns: u64,
    /// Bytes that were not copied, in whole chunks.
    pub left_dirty_bytes: u64,
    /// Bytes written to the target as data.
    pub copied_bytes: u64,
    /// Bytes made zero on the target without sending them.
    pub zeroed_bytes: u64,
    /// Bytes that needed no request.
    pub skipped_bytes: u64,
    /// Bytes that guest writes took to both sides themselves.
    pub active_bytes: u64,
    /// Time from start to end.
    pub elapsed_ns: u64,
    /// How it ended: `BLKM_END_*`.
    pub end: blkm_end,
    /// 0 if it completed, else -errno; -ECANCELED if it was cancelled.
    pub ret: i32,
    /// Why it failed, or that it was cancelled, in words; "" if it completed.
    pub error_msg: [c_char; 256],
    /// Bytes of the disk that were dealt with.
    pub done_bytes: u64,
    /// Requests sent again after a passing error or a short transfer.
    pub retries: u64,
    /// Requests that failed for good.
    pub errors: u64,
    /// Zero so far.
    pub reserved: [u64; 3],
}
structure!(blkm_outcome, first 384);

/// Where a job stands: `BLKM_JOB_*`.
///
/// Returns the state, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_get_status(job: *mut blkm_job) -> c_int {
    let body = |j: &blkm_job| Ok(usize::try_from(names::status(j.job.status())).unwrap_or(usize::MAX));
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "ask for a job's state", body) }
}

/// Fills in where a job stands and what it has done, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_query(job: *mut blkm_job, info: *mut blkm_job_info) -> c_int {
    let attempt = "query a job";
    let body = |j: &blkm_job| {
        let value = info_of(&j.job.query());
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, attempt, body) }
}

/// What the guest's requests took since the job began, and what they took before, without one. Either may be NULL.
///
/// Returns 0, or -errno: `-EINVAL` for a size that is too small. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_get_latencies(
    job: *mut blkm_job,
    without_job: *mut blkm_latencies,
    with_job: *mut blkm_latencies,
) -> c_int {
    let body = |j: &blkm_job| {
        let latencies = j.job.latencies();
        let counts = [latencies.without_job, latencies.with_job];
        // SAFETY: the caller's structures, as the header says.
        unsafe { put_latencies([without_job, with_job], &counts) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "read the latencies of a job", body) }
}

/// How the job ended, filled in up to `outcome->struct_size`, which the caller has set. There from `BLKM_EVENT_CONCLUDED` on.
///
/// Who still has the disks open then, besides the caller's own handles of them:
///
/// - Completed, with a pivot: the target is the drive's, for as long as the drive is on it. The drive lets go of the source; a queue
///   closes it when its thread uses the queue next, or with the queue.
/// - Completed without a pivot (a point in time, a soft cancel), cancelled, failed: the source stays the drive's. The target is let
///   go; in write-blocking mode a queue closes it when its thread uses the queue next, or with the queue.
/// - The job itself, and a copy has nobody else: its workers close both within moments, which `blkm_job_wait` waits for, 250 ms at
///   most; only a worker whose requests hang keeps both until these come back. The handle of the job holds neither.
/// - You, with descriptors that `blkm_drive_dup_fd` gave: each keeps its device open, and a block device claimed, until you close
///   it.
///
/// Returns 0, or -errno: `-EAGAIN` while the job is not over, `-EINVAL` for NULL or a size that is too small. Threads: any. Since
/// 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_get_outcome(job: *mut blkm_job, outcome: *mut blkm_outcome) -> c_int {
    let attempt = "read a job's outcome";
    let body = |j: &blkm_job| {
        let ended = j.job.outcome().ok_or_else(|| {
            Error::new(ErrorKind::QueueFull, attempt)
                .because(format!("it is not over, it is {}", j.job.status()))
        })?;
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(outcome, outcome_of(&ended), attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, attempt, body) }
}

/// Why the job did not complete, the text of `error_msg` in its outcome whole, copied as `snprintf(3)` does: cut to `buf_len` bytes
/// with its ending 0. `buf` may be NULL if `buf_len` is 0.
///
/// Returns the length of the whole text without its ending 0, 0 if the job has completed or is not over, or -errno. Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_get_error(job: *mut blkm_job, buf: *mut c_char, buf_len: usize) -> c_int {
    let body = |j: &blkm_job| {
        let text = j.job.outcome().and_then(|outcome| outcome.why());
        // SAFETY: the caller's array, as the header says.
        Ok(unsafe { text::copy_out(&text.unwrap_or_default(), buf, buf_len) })
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "read a job's error", body) }
}

/// A query for C.
fn info_of(info: &JobInfo) -> blkm_job_info {
    let p = &info.progress;
    let mut out = blkm_job_info {
        flags: sum::flag(info.fits_now, BLKM_JOBINFO_FITS_NOW)
            | sum::flag(info.braking, BLKM_JOBINFO_BRAKING)
            | sum::flag(info.actively_synced, BLKM_JOBINFO_ACTIVELY_SYNCED)
            | sum::flag(info.completing, BLKM_JOBINFO_COMPLETING)
            | sum::flag(info.pivots, BLKM_JOBINFO_PIVOTS),
        len_bytes: info.len_bytes,
        offset_bytes: info.offset_bytes,
        dirty_bytes: info.dirty_bytes,
        dirty_rate_bytes_per_s: info.dirty_rate_bytes_per_s,
        copy_rate_bytes_per_s: info.copy_rate_bytes_per_s,
        eta_ns: sum::ns_or_never(info.eta),
        predicted_pause_ns: sum::ns_or_never(info.predicted_pause),
        flush_ns: sum::ns_or_never(info.flush),
        max_pause_ns: sum::ns_or_never(info.max_pause),
        speed_bytes_per_s: info.speed_bytes_per_s,
        disk_bytes: p.disk_bytes,
        done_bytes: p.done_bytes,
        copied_bytes: p.copied_bytes,
        zeroed_bytes: p.zeroed_bytes,
        skipped_bytes: p.skipped_bytes,
        recopied_bytes: p.recopied_bytes,
        active_bytes: p.active_bytes,
        in_flight_bytes: p.in_flight_bytes,
        elapsed_ns: sum::ns(p.elapsed),
        retries: p.retries,
        errors: p.errors,
        status: names::status(info.status),
        copy_mode: names::copy_mode(info.copy_mode),
        budget_level: names::budget_level(info.budget_level),
        io_status: names::io_status(info.io_status),
        missed: info.missed,
        workers: u32::try_from(p.workers).unwrap_or(u32::MAX),
        ..blkm_job_info::zeroed()
    };
    if let Some(last) = info.last_error {
        out.flags |= BLKM_JOBINFO_HAS_ERROR;
        (out.last_error_offset_bytes, out.last_error_len_bytes) = (last.range.start(), last.range.len());
        (out.last_error_time_ns, out.last_error_ret) = (last.time_ns, sum::negative(last.errno));
        (out.last_error_side, out.last_error_action) = (names::side(last.side), names::action(last.action));
    }
    out
}

/// An outcome for C.
fn outcome_of(outcome: &Outcome) -> blkm_outcome {
    let p = &outcome.progress;
    let mut out = blkm_outcome {
        flags: sum::flag(outcome.pivoted, BLKM_OUTCOME_PIVOTED)
            | sum::flag(outcome.target == TargetState::Complete, BLKM_OUTCOME_TARGET_COMPLETE),
        pause_ns: sum::ns_or_never(outcome.pause),
        left_dirty_bytes: outcome.left_dirty_bytes,
        copied_bytes: p.copied_bytes,
        zeroed_bytes: p.zeroed_bytes,
        skipped_bytes: p.skipped_bytes,
        active_bytes: p.active_bytes,
        done_bytes: p.done_bytes,
        retries: p.retries,
        errors: p.errors,
        elapsed_ns: sum::ns(p.elapsed),
        end: match outcome.end {
            End::Completed => BLKM_END_COMPLETED,
            End::Cancelled => BLKM_END_CANCELLED,
            End::Failed => BLKM_END_FAILED,
        },
        ret: match (outcome.end, &outcome.error) {
            (End::Completed, _) => 0,
            (_, Some(error)) => -error.errno(),
            (End::Cancelled, None) => -libc::ECANCELED,
            (End::Failed, None) => -libc::EIO,
        },
        ..blkm_outcome::zeroed()
    };
    if let Some(why) = outcome.why() {
        text::fill(&mut out.error_msg, &why);
    }
    out
}
