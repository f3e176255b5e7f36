//! Jobs: mirrors and copies, what may be asked of them, what may be read of them.
//!
//! | file | idea |
//! |---|---|
//! | `options` | what a host chooses for a job |
//! | `verbs` | what may be asked of it |
//! | `facts` | what may be read of it: state, figures, outcome |
//! | `names` | the numbers of states, modes, policies |
#![allow(unsafe_code)]

mod facts;
pub(crate) mod names;
mod options;
mod verbs;

use std::ffi::c_int;
use std::sync::Arc;

use blkmirror_core::Result;
use blkmirror_core::engine::{Job, MirrorOptions};

pub use self::facts::*;
pub use self::names::*;
pub use self::options::*;
pub use self::verbs::*;

use self::options::options_of;
use crate::border::handle::{Health, borrow, close, object, with};
use crate::border::{fail, invalid, sized};
use crate::device::blkm_device;
use crate::drive::blkm_drive;
use crate::engine::blkm_engine;
use crate::event::Hub;

/// A job that mirrors a drive, or copies a device. Every function that takes one may be called from any thread.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_job {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    pub(crate) job: Job,
    /// Where its events come together with others'.
    hub: Arc<Hub>,
    /// Its number there.
    number: u64,
}
object!(blkm_job);

impl Drop for blkm_job {
    fn drop(&mut self) {
        self.hub.leave(self.number);
    }
}

/// What core is given when it starts a job.
type Announce<'a> = &'a mut dyn FnMut(&Job) -> Result<()>;

/// Starts a job and makes a handle of it.
///
/// From when its events can be taken somebody may use the handle, and close it. So the handle is whole, and in the caller's
/// variable, before the job is listed, the job cannot do anything before that, and nothing here touches the handle afterwards.
///
/// # Safety
/// The pointers are what the header says.
unsafe fn start(
    engine: *mut blkm_engine,
    opts: *const blkm_mirror_opts,
    out: *mut *mut blkm_job,
    attempt: &'static str,
    start: impl FnOnce(&blkm_engine, MirrorOptions, Announce<'_>) -> Result<Job>,
) -> c_int {
    if out.is_null() {
        return fail(&invalid(attempt, "the pointer to the result is NULL"));
    }
    // SAFETY: not NULL, and the caller's variable.
    unsafe { out.write(std::ptr::null_mut()) };
    let body = |engine: &blkm_engine| {
        // SAFETY: the caller's structure.
        let opts = unsafe { sized::read(opts, attempt)? };
        // SAFETY: the pointers in it, as the header says.
        let options = unsafe { options_of(&opts, attempt)? };
        let hub = &engine.hub;
        let mut announce = |job: &Job| {
            let number = hub.number();
            let handle =
                Box::new(blkm_job { health: Health::new(), job: job.clone(), hub: Arc::clone(hub), number });
            let handle = Box::into_raw(handle);
            // SAFETY: as above.
            unsafe { out.write(handle) };
            hub.enter(number, job, handle, opts.user_data).inspect_err(|_| {
                // SAFETY: nobody else has heard of it.
                unsafe { close(out) };
            })
        };
        // The handle has a clone of it.
        start(engine, options, &mut announce).map(drop)
    };
    // SAFETY: the caller's handle.
    unsafe { with(engine, attempt, body) }
}

/// Starts a job that mirrors `drive` to `target`, which was opened as a target, and follows the guest's writes until it is
/// completed or cancelled. The target is held until the job is over, and longer if the drive moves to it; the caller may close his
/// handle of it. Whether the drive could move to it is not asked here: `blkm_mirror_check` does. `opts` may be NULL. On success
/// `*out` is the job, to be closed with `blkm_job_close`; else it is NULL, and the target is untouched.
///
/// Events of the job may come, and its handle be in `*out`, before this returns; it then returns 0.
///
/// It opens both devices once more for each worker but the first, on the calling thread, and blocks for as long as their file
/// systems do, so do not call it from an event loop. Where that is forbidden, or /proc is missing, their descriptors are duplicated
/// instead.
///
/// Returns 0, or -errno: `-EBUSY` when a job runs on the drive, both are the same, the bitmap is in use, or the target is: by
/// another job or drive, or by the requests of a job that is over and may still land (`blkm_job_wait` waits for them for a while);
/// `-EINVAL` for an option that makes no sense or a target that is too small; `-EAGAIN` when the engine carries 64 jobs, or many
/// are being started at once; `-ENOMEM`; `-EMFILE`; what else the kernel says when it opens a device once more, such as `-ENXIO`
/// for one that is gone. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_mirror_start(
    engine: *mut blkm_engine,
    drive: *mut blkm_drive,
    target: *mut blkm_device,
    opts: *const blkm_mirror_opts,
    out: *mut *mut blkm_job,
) -> c_int {
    let attempt = "start a mirror";
    let run = |engine: &blkm_engine, options, announce: Announce<'_>| {
        // SAFETY: the caller's handle, as the header says.
        let drive = unsafe { borrow(drive, attempt)? };
        // SAFETY: the same.
        let target = unsafe { borrow(target, attempt)? };
        engine.engine.mirror_announced(&drive.drive, target.device.lend()?, &options, announce)
    };
    // SAFETY: the caller's pointers, as the header says.
    unsafe { start(engine, opts, out, attempt, run) }
}

/// Whether `blkm_mirror_start` would take these, and, if `pivot`, whether the drive could move to the target at the end. Changes
/// nothing.
///
/// Returns 0, or -errno as `blkm_mirror_start` and `blkm_job_complete`, but for what depends on the moment. Threads: any. Since
/// 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_mirror_check(
    engine: *mut blkm_engine,
    drive: *mut blkm_drive,
    target: *mut blkm_device,
    opts: *const blkm_mirror_opts,
    pivot: bool,
) -> c_int {
    let attempt = "check a mirror";
    let body = |engine: &blkm_engine| {
        // SAFETY: the caller's structure, as the header says.
        let opts = unsafe { sized::read(opts, attempt)? };
        // SAFETY: the pointers in it, as the header says.
        let options = unsafe { options_of(&opts, attempt)? };
        // SAFETY: the caller's handle, as the header says.
        let drive = unsafe { borrow(drive, attempt)? };
        // SAFETY: the same.
        let target = unsafe { borrow(target, attempt)? };
        engine.engine.check(&drive.drive, &target.device, &options, pivot)
    };
    // SAFETY: the same.
    unsafe { with(engine, attempt, body) }
}

/// Starts a job that copies `source`, which nobody writes meanwhile, to `target`, and completes by itself. Of the options those
/// about following a guest are ignored. All else as `blkm_mirror_start`.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_copy_start(
    engine: *mut blkm_engine,
    source: *mut blkm_device,
    target: *mut blkm_device,
    opts: *const blkm_mirror_opts,
    out: *mut *mut blkm_job,
) -> c_int {
    let attempt = "start a copy";
    let run = |engine: &blkm_engine, options, announce: Announce<'_>| {
        // SAFETY: the caller's handle, as the header says.
        let source = unsafe { borrow(source, attempt)? };
        // SAFETY: the same.
        let target = unsafe { borrow(target, attempt)? };
        engine.engine.copy_announced(source.device.lend()?, target.device.lend()?, options, announce)
    };
    // SAFETY: the caller's pointers, as the header says.
    unsafe { start(engine, opts, out, attempt, run) }
}

/// Closes the caller's handle and sets `*job` to NULL. NULL, and a pointer to NULL, are allowed. A job that is not over runs on and
/// ends as it was asked to, or with its engine, and nobody hears of it; one that would have to be finalized, and was not, is
/// cancelled (`BLKM_EVENT_PENDING` says what to write down before). Who holds the disks after a job: `blkm_job_get_outcome`.
///
/// Threads: any, while no other call uses this handle; not between taking an event of the job and using its `job`. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_job_close(job: *mut *mut blkm_job) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(job) }
}
