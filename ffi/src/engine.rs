//! Engines: the worker threads that carry jobs, and where their jobs' events come together.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use blkmirror_core::Result;
use blkmirror_core::engine::{Engine, EngineOptions, ThreadStart};

use crate::border::handle::{Health, close, create, object, with};
use crate::border::sized::{self, structure};
use crate::border::{invalid, sum};
use crate::event::{Hub, blkm_event};

/// Worker threads that carry jobs: one will do for all disks of a process. Every function that takes one may be called from any
/// thread.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_engine {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    pub(crate) engine: Engine,
    /// Where the events of its jobs come together.
    pub(crate) hub: Arc<Hub>,
}
object!(blkm_engine);

/// A function of the host's that each worker's thread calls once, before anything else: to name the thread, or to confine it
/// (control groups, seccomp, scheduling). `opaque` is the host's `thread_start_opaque`, `index` counts the workers from 0. It must
/// return, must not call the library, and may be called on several threads at once.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_thread_start_fn = Option<unsafe extern "C" fn(opaque: *mut c_void, index: u32)>;

/// Pin each worker to a core of the process's set. For machines that do nothing else.
pub const BLKM_ENGINE_F_PIN: u64 = 1;

/// How an engine is made. All zero (or NULL) is the default.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_engine_opts {
    /// sizeof(blkm_engine_opts).
    pub struct_size: usize,
    /// `BLKM_ENGINE_F_*`.
    pub flags: u64,
    /// Copy memory of each worker, at least 1 MiB; requests in flight live in it. 0: 16 MiB. A worker has 4 MiB more.
    pub window_bytes: u64,
    /// Each worker's thread calls this first; NULL: nothing.
    pub thread_start: blkm_thread_start_fn,
    /// Handed to it.
    pub thread_start_opaque: *mut c_void,
    /// Worker threads, at most 256; 0: one for every two cores, at most four.
    pub workers: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_engine_opts, first 80, reserved reserved0, reserved);

/// Sets options to the defaults for the size that the caller's header has.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_opts_init(opts: *mut blkm_engine_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// Starts an engine: returns when each worker has its ring and memory. Its threads block all signals. Make it in the process that
/// uses it, after `fork(2)` and daemonising. `opts` may be NULL. On success `*out` is the engine, to be destroyed with
/// `blkm_engine_destroy`; else it is NULL.
///
/// Returns 0, or -errno: `-EINVAL` for an option that makes no sense, `-ENOMEM`, `-EMFILE`, `-EAGAIN` when no thread can be
/// started, and what `blkm_probe` says where io_uring is missing or forbidden. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_create(
    opts: *const blkm_engine_opts,
    out: *mut *mut blkm_engine,
) -> c_int {
    let attempt = "start an engine";
    let make = || {
        // SAFETY: the caller's structure, as the header says.
        let opts = unsafe { sized::read(opts, attempt)? };
        let (options, hook) = (options_of(&opts, attempt)?, hook_of(&opts));
        let hub = Arc::new(Hub::new()?);
        Ok(blkm_engine { health: Health::new(), engine: Engine::start_with(options, hook.as_ref())?, hub })
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Ends an engine and sets `*engine` to NULL. NULL, and a pointer to NULL, are allowed. Jobs that are not over are cancelled, one
/// that is pending and not finalized too, unless their switch-over is decided (`blkm_job_cancel`; `BLKM_EVENT_PENDING` says what to
/// write down before); their handles stay good, and their events can no longer be taken. It joins the workers: it returns at once,
/// or within about a second while requests hang.
///
/// Threads: any but the engine's, while no other call uses the engine. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_destroy(engine: *mut *mut blkm_engine) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(engine) }
}

/// How many workers an engine has.
///
/// Returns their number, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_get_workers(engine: *mut blkm_engine) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(engine, "count the workers of an engine", |e: &blkm_engine| Ok(e.engine.workers())) }
}

/// A descriptor that is readable while there are events of any of the engine's jobs to take. Wait for it, level-triggered, and call
/// `blkm_engine_next_event` until it returns 0; never read from it. It belongs to the engine.
///
/// Returns the descriptor, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_get_event_fd(engine: *mut blkm_engine) -> c_int {
    let body = |e: &blkm_engine| Ok(usize::try_from(e.hub.fd().as_raw_fd()).unwrap_or(usize::MAX));
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(engine, "get the event descriptor of an engine", body) }
}

/// Takes the next event of the engine's jobs, filled in up to `event->struct_size`, which the caller has set. Never blocks. A job's
/// own events come in their order; those of different jobs in any (`time_ns` tells). Events of a job whose handle was closed are
/// gone.
///
/// Returns 1 if there was one, 0 if not, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any; each event goes
/// to one caller. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_engine_next_event(engine: *mut blkm_engine, event: *mut blkm_event) -> c_int {
    let attempt = "take an event";
    let body = |e: &blkm_engine| {
        // Before one is taken, because it could not be given back.
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::check(event, attempt)? };
        let Some(value) = e.hub.next()? else { return Ok(false) };
        // SAFETY: the same.
        unsafe { sized::write(event, value, attempt)? };
        Ok(true)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(engine, attempt, body) }
}

/// The options for core.
fn options_of(opts: &blkm_engine_opts, attempt: &'static str) -> Result<EngineOptions> {
    sum::known_flags(opts.flags, BLKM_ENGINE_F_PIN, attempt)?;
    let default = EngineOptions::default();
    let workers = usize::try_from(opts.workers).map_err(|_| invalid(attempt, "too many workers"))?;
    Ok(EngineOptions {
        workers: NonZeroUsize::new(workers),
        window_bytes: if opts.window_bytes == 0 { default.window_bytes } else { opts.window_bytes },
        pin: opts.flags & BLKM_ENGINE_F_PIN != 0,
    })
}

/// A pointer of the host's, for any thread: the header says so of it.
#[derive(Clone, Copy)]
struct Opaque(*mut c_void);

// SAFETY: handed to the host's function and never followed here.
unsafe impl Send for Opaque {}
// SAFETY: the same.
unsafe impl Sync for Opaque {}

impl Opaque {
    /// The pointer. (A method, so that closures take the whole and not the field.)
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// The host's function for new threads, if there is one.
fn hook_of(opts: &blkm_engine_opts) -> Option<ThreadStart> {
    let (function, opaque) = (opts.thread_start?, Opaque(opts.thread_start_opaque));
    Some(Arc::new(move |index| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        // SAFETY: the host's function, which he promised to be one for this.
        unsafe { function(opaque.get(), index) };
    }))
}
