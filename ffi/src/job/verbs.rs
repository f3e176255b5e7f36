//! What may be asked of a job. A verb that the state forbids is refused with -EPERM and a text that names both.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::time::Duration;

use blkmirror_core::engine::{Cancel, Completion, CopyMode};

use super::blkm_job;
use super::names::{BLKM_COPY_BACKGROUND, BLKM_COPY_WRITE_BLOCKING, blkm_copy_mode};
use super::options::max_pause_of;
use crate::border::handle::with;
use crate::border::{invalid, sum};

/// How a switch-over is to end.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_completion_mode = u32;
/// The drive moves to the target. Guest requests are acknowledged there before the host hears of the end, so one that may crash and
/// start again sets `BLKM_MIRROR_F_MANUAL_FINALIZE` and writes the disk down at `BLKM_EVENT_PENDING`.
pub const BLKM_COMPLETE_PIVOT: blkm_completion_mode = 0;
/// The drive stays where it is; the target is a copy as of that moment.
pub const BLKM_COMPLETE_POINT_IN_TIME: blkm_completion_mode = 1;

/// Pauses a job: what is in flight is finished, and then it is paused, or standby if it was ready. Guest writes go on being
/// recorded, and in write-blocking mode go on to both sides.
///
/// Returns 0, or -errno: `-EPERM` in a state that forbids it, or when the host has paused it already. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_pause(job: *mut blkm_job) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "pause a job", |j: &blkm_job| j.job.pause()) }
}

/// Goes on after a pause, or after an error policy stopped the job.
///
/// Returns 0, or -errno: `-EPERM` in a state that forbids it, or when it is neither. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_resume(job: *mut blkm_job) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "resume a job", |j: &blkm_job| j.job.resume()) }
}

/// Changes the speed limit at once; 0: none.
///
/// Returns 0, or -errno: `-EPERM` in a state that forbids it. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_set_speed(job: *mut blkm_job, bytes_per_s: u64) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "set a job's speed", |j: &blkm_job| j.job.set_speed(bytes_per_s)) }
}

/// Changes how guest writes are followed (`BLKM_COPY_BACKGROUND`, `BLKM_COPY_WRITE_BLOCKING`), from each queue's next request on. A
/// job in copy mode auto stays in the mode that was chosen last.
///
/// Returns 0, or -errno: `-EPERM` in a state that forbids it, `-EINVAL` for another mode. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_set_copy_mode(job: *mut blkm_job, mode: blkm_copy_mode) -> c_int {
    let attempt = "set a job's copy mode";
    let body = |j: &blkm_job| {
        let mode = match mode {
            BLKM_COPY_BACKGROUND => CopyMode::Background,
            BLKM_COPY_WRITE_BLOCKING => CopyMode::WriteBlocking,
            _ => return Err(invalid(attempt, "choose BLKM_COPY_BACKGROUND or BLKM_COPY_WRITE_BLOCKING")),
        };
        j.job.set_copy_mode(mode)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, attempt, body) }
}

/// Changes `max_pause_ns` of a running job, with the same meaning, at once: also of a switch-over that is being tried; and what did
/// not fit before is tried anew.
///
/// Returns 0, or -errno: `-EPERM` in a state that forbids it, `-EINVAL` for less than 1 ms. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_set_max_pause(job: *mut blkm_job, max_pause_ns: u64) -> c_int {
    let body = |j: &blkm_job| j.job.set_max_pause(max_pause_of(max_pause_ns));
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "set a job's longest pause", body) }
}

/// Asks for the switch-over of a job that is ready: as soon as it fits into `max_pause_ns`, guest requests are held, the rest is
/// copied, the target is flushed, and with `BLKM_COMPLETE_PIVOT` the drive moves to the target. Returns at once; events tell the
/// end. It may never fit, above all with `BLKM_COPY_BACKGROUND`; a host that cannot wait cancels.
///
/// Returns 0, or -errno: `-EPERM` before `BLKM_EVENT_READY`, in a state that forbids it, or when the end was asked for already;
/// `-EINVAL` for a pivot to a target with larger blocks than the guest was promised, or an unknown mode. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_complete(job: *mut blkm_job, mode: blkm_completion_mode) -> c_int {
    let attempt = "complete a job";
    let body = |j: &blkm_job| {
        let completion = match mode {
            BLKM_COMPLETE_PIVOT => Completion::Pivot,
            BLKM_COMPLETE_POINT_IN_TIME => Completion::PointInTime,
            _ => return Err(invalid(attempt, "choose BLKM_COMPLETE_PIVOT or BLKM_COMPLETE_POINT_IN_TIME")),
        };
        j.job.complete(completion)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, attempt, body) }
}

/// Ends a job. By `force` it is over within a second even if requests hang, and the target is no copy. Without, a job that is ready
/// or standby ends as with `BLKM_COMPLETE_POINT_IN_TIME` (QEMU's block-job-cancel), and waits like `blkm_job_complete`, one in
/// standby for `blkm_job_resume`; any other ends as by force.
///
/// A pending job that is cancelled lets guest requests go on, on the old disk, before any event tells of it, and so does one that
/// is closed or whose engine is destroyed: who has written down the target as the guest's disk takes that back, durably, before,
/// under the lock that `BLKM_EVENT_PENDING` speaks of.
///
/// How a job ends is decided once, by whichever comes first: a cancel by force, `blkm_job_finalize`, or, without
/// `BLKM_MIRROR_F_MANUAL_FINALIZE`, the job itself when everything is copied and flushed and guest requests are held. Success of a
/// cancel by force means that it has decided it: the drive does not move, and a finalize is refused. `-EPERM` means that nothing
/// was changed by it: the job is over, or the switch-over was decided before, and `blkm_error_msg` says whether the drive
/// moves. Closing the job or destroying its engine does not change what was decided.
///
/// Returns 0, or -errno: `-EPERM` when the job is over, the switch-over is decided, or, without `force`, the end was asked for
/// already. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_cancel(job: *mut blkm_job, force: bool) -> c_int {
    let how = if force { Cancel::Force } else { Cancel::Soft };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "cancel a job", |j: &blkm_job| j.job.cancel(how)) }
}

/// Carries out a switch-over that is pending. Success means that this is decided: a cancel is refused from then on, and the job
/// completes, also when the ring of a worker breaks, unless the library has a bug in that very step. What to write down before,
/// under which lock, and what to do when it is refused: `BLKM_EVENT_PENDING`.
///
/// Returns 0, or -errno: `-EPERM` in any other state, and when the job was cancelled, has failed or was finalized before:
/// `blkm_error_msg` says which. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_finalize(job: *mut blkm_job) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "finalize a job", |j: &blkm_job| j.job.finalize()) }
}

/// Says that the outcome of a job that is over was read; its state is `BLKM_JOB_NULL` then, and every verb is refused. Not needed
/// before `blkm_job_close`.
///
/// Returns 0, or -errno: `-EPERM` in any other state. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_dismiss(job: *mut blkm_job) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "dismiss a job", |j: &blkm_job| j.job.dismiss()) }
}

/// Sleeps until the job is over and its workers have let go of the devices, at most for `timeout_ns`; negative: for ever. For
/// programs without an event loop. A job that follows a guest is over only once somebody has completed or cancelled it.
///
/// Returns 1 if it is over, 0 if the time is, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_wait(job: *mut blkm_job, timeout_ns: i64) -> c_int {
    let body = |j: &blkm_job| match sum::timeout(timeout_ns) {
        Some(time) => Ok(j.job.wait_for(time).is_some()),
        None => loop {
            if j.job.wait_for(Duration::MAX).is_some() {
                return Ok(true);
            }
        },
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(job, "wait for a job", body) }
}
