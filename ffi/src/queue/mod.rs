//! Queues: guest I/O through the library.
//!
//! | file | idea |
//! |---|---|
//! | `requests` | the functions that send a request |
//! | `process` | the functions that take completions, and what is left when a queue is closed |
//! | `guarded` | one thread at a time, also if the host has it wrong; requests that were refused |
#![allow(unsafe_code)]

mod guarded;
mod process;
mod requests;

use std::ffi::{c_char, c_int, c_void};

use blkmirror_core::drive::queue::{Queue, QueueOptions, RegisteredMemory};
use blkmirror_core::{Error, ErrorKind, Result};

use self::guarded::Inner;
pub use self::guarded::blkm_queue;
pub use self::process::*;
pub use self::requests::*;
use crate::border::handle::{Health, borrow, close, close_if, create, with};
use crate::border::sized::{self, structure};
use crate::border::sum;
use crate::drive::blkm_drive;

/// The queue has no completion descriptor; the host only processes it. An optimisation for hosts that poll.
pub const BLKM_QUEUE_F_NO_EVENTFD: u64 = 1;
/// The data of writes does not change before their completion, so write-blocking needs no copy of it. The price: while a target
/// hangs such a write does not complete, even when its job has failed.
pub const BLKM_QUEUE_F_STABLE_BUFFERS: u64 = 2;
/// The queue takes up no memory regions (`blkm_mem_region_map`), which pins them once less. For rare requests, as of a control
/// path: those work all the same, and keep a region from being unmapped as those of any queue do.
pub const BLKM_QUEUE_F_NO_REGIONS: u64 = 4;

/// How a queue is made. All zero (or NULL) is the default.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_queue_opts {
    /// sizeof(blkm_queue_opts).
    pub struct_size: usize,
    /// `BLKM_QUEUE_F_*`.
    pub flags: u64,
    /// Memory for the stable copies that write-blocking needs, at most 1 GiB; 0: 4 MiB. A write that finds no room in it goes to
    /// the drive alone and is copied later.
    pub staging_bytes: u64,
    /// Requests that are accepted and whose completions were not taken yet, at most: 1 to 1024; 0: 256. One more completes with
    /// -EAGAIN, so count yours and hold the rest. Size it as what your guest can have under way on this queue, the sum of the sizes
    /// of the virtqueues that one thread serves, and a few more for requests of the host's own; a deeper one costs about 1.5 KiB a
    /// request from its first use on.
    pub depth: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_queue_opts, first 64, reserved reserved0, reserved);

/// The queue's ring broke (`io_uring_enter` fails for good), and the kernel may still have the memory of this request, to read from
/// it or to write to it, also when the queue was destroyed. Do not free it, and do not use it for anything else, for as long as the
/// process lives. That holds for a guest's memory, too: a guest that is told that its request has failed will use it again, so
/// rather stop the guest. Only memory inside a region is known to be free again: once `blkm_mem_region_unmap` gives the region
/// back, which may be when the queue was destroyed.
pub const BLKM_COMPLETION_F_MEMORY_IN_USE: u32 = 1;

/// The end of a request.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_completion {
    /// What the request was sent with.
    pub user_data: *mut c_void,
    /// Why it failed, in words; NULL if it did not. Good until the queue is processed again or destroyed.
    pub error_msg: *const c_char,
    /// 0, or -errno.
    pub ret: i32,
    /// `BLKM_COMPLETION_F_*`.
    pub flags: u32,
    /// Zero so far.
    pub reserved: u64,
}

/// What a queue has.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_queue_info {
    /// Set by the caller: sizeof(blkm_queue_info).
    pub struct_size: usize,
    /// Requests that were accepted and have not completed; those that wait for the drive's gate, too.
    pub in_flight: u64,
    /// Completions that can be taken.
    pub ready: u64,
    /// Bytes of memory regions that the kernel has taken for this queue.
    pub registered_bytes: u64,
    /// Bytes that it has refused; requests there are sent without.
    pub unregistered_bytes: u64,
    /// Requests to a device so far that went through registered memory.
    pub registered_requests: u64,
    /// Why it refused last: -errno, such as -ENOMEM for `RLIMIT_MEMLOCK`; 0: it did not.
    pub register_ret: i32,
    /// Requests accepted at most.
    pub depth: u32,
    /// Of those in flight, requests that wait because the drive's gate is closed: a job is switching over, or waits for
    /// `blkm_job_finalize`. They go on by themselves when it opens.
    pub held: u64,
    /// Zero so far.
    pub reserved: [u64; 3],
}
structure!(blkm_queue_info, first 88);

/// Sets options to the defaults for the size that the caller's header has.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_opts_init(opts: *mut blkm_queue_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// Makes a queue of a drive, for one of the host's threads: the first that sends or processes with it. Its io_uring is made then,
/// on that thread, so queues may be made in one place and handed out. `opts` may be NULL. On success `*out` is the queue, to be
/// ended with `blkm_queue_close` or `blkm_queue_destroy`; else it is NULL.
///
/// Returns 0, or -errno: `-EINVAL`, `-EMFILE`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_create(
    drive: *mut blkm_drive,
    opts: *const blkm_queue_opts,
    out: *mut *mut blkm_queue,
) -> c_int {
    let attempt = "make a queue";
    let make = || {
        // SAFETY: the caller's structure, as the header says.
        let options = options_of(&unsafe { sized::read(opts, attempt)? }, attempt)?;
        // SAFETY: the caller's handle, as the header says.
        let queue = unsafe { borrow(drive, attempt)? }.drive.queue(options)?;
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let eventfd = queue.eventfd().map(copy).transpose().map_err(|e| Error::from_io(attempt, e))?;
        Ok(blkm_queue::new(Health::new(), queue, eventfd, options.depth))
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Ends a queue, whatever is under way, and sets `*queue` to NULL. NULL, and a pointer to NULL, are allowed.
///
/// A host that is in no hurry uses `blkm_queue_close`, which loses nothing. Here requests under way get no completion any more, and
/// their memory may still be the kernel's: do not free or use it, as with `BLKM_COMPLETION_F_MEMORY_IN_USE`. On the queue's own
/// thread it waits for them, at most about 600 ms; a write that a hanging disk of the guest's may still carry out later makes a job
/// that follows the drive fail, and keeps every later job of the drive from switching over. A write to the target of a job that has
/// ended does neither, so a queue that has nothing else left is destroyed without a loss.
///
/// Threads: best the queue's own; any, while no other call uses the queue. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_destroy(queue: *mut *mut blkm_queue) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(queue) }
}

/// Ends a queue if nothing is lost by that, and sets `*queue` to NULL then. NULL, and a pointer to NULL, are nothing to end.
///
/// It sends what was submitted and sleeps until nothing is under way, no longer than `timeout_ns` (0: not at all; negative: for
/// ever). Requests that wait for the drive's gate are under way; so are writes to the target of a job that has ended, which nobody
/// else waits for: one that hangs keeps the queue from closing, so rather wait some seconds and destroy it. Completions that can be
/// taken keep the queue from ending, before and after that: take them with `blkm_queue_process` and close again.
///
/// Returns 0, or -errno, and the queue is as it was: `-EBUSY` while something is under way or a completion was not taken; `-EPERM`
/// on another thread than the queue's, if it has one; when the ring broke: take its completions, and destroy it. Threads: the
/// queue's; any before one has sent or processed with it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_close(queue: *mut *mut blkm_queue, timeout_ns: i64) -> c_int {
    let attempt = "close a queue";
    let may = |q: &blkm_queue| match q.is_unused() {
        true => Ok(()),
        false => q.on_its_thread(attempt, |inner| nothing_is_lost(q, inner, timeout_ns, attempt)),
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { close_if(queue, attempt, may) }
}

/// Waits until a queue can end without a loss, or says what there is to lose.
fn nothing_is_lost(q: &blkm_queue, inner: &mut Inner, timeout_ns: i64, attempt: &'static str) -> Result<()> {
    let busy = |why: String| Err(Error::new(ErrorKind::Busy, attempt).because(why));
    let untaken = |queue: &Queue| match queue.ready() + q.refused() {
        0 => Ok(()),
        ready => busy(format!(
            "{ready} completions were not taken; take them with blkm_queue_process and close it again"
        )),
    };
    untaken(&inner.queue)?;
    let ended = inner.queue.drain(sum::timeout(timeout_ns));
    if inner.queue.ready() + q.refused() > 0 {
        // To wait has reset the descriptor, and what is there stays.
        q.signal();
    }
    let ended = ended?;
    let (in_flight, held) = (inner.queue.in_flight(), inner.queue.held());
    if !ended && in_flight == 0 {
        return busy("writes to the target of a job that has ended are under way".to_owned());
    }
    if !ended {
        return busy(format!(
            "{in_flight} requests are under way, {held} of them at the drive's closed gate"
        ));
    }
    untaken(&inner.queue)
}

/// Fills in what a queue has, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL`; `-EPERM` on another thread than the queue's. Threads: the queue's; any before one has sent or
/// processed with it, which this does not count as. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_get_info(queue: *mut blkm_queue, info: *mut blkm_queue_info) -> c_int {
    let attempt = "describe a queue";
    let body = |q: &blkm_queue| {
        // To look at a queue is not to use it: whoever does that first does not make it his thread's.
        let value = match q.is_unused() {
            true => info_of(q, [0; 3], RegisteredMemory::default()),
            false => q.on_its_thread(attempt, |Inner { queue, .. }| {
                let counts = [queue.in_flight(), queue.ready(), queue.held()];
                Ok(info_of(q, counts, queue.registered_memory()))
            })?,
        };
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, body) }
}

/// What a queue has.
fn info_of(
    q: &blkm_queue,
    [in_flight, ready, held]: [usize; 3],
    memory: RegisteredMemory,
) -> blkm_queue_info {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    blkm_queue_info {
        struct_size: 0,
        in_flight: count(in_flight),
        ready: count(ready + q.refused()),
        registered_bytes: memory.bytes,
        unregistered_bytes: memory.refused_bytes,
        registered_requests: memory.requests,
        register_ret: memory.refused_errno.map_or(0, sum::negative),
        depth: q.depth(),
        held: count(held),
        reserved: [0; 3],
    }
}

/// The options for core.
fn options_of(opts: &blkm_queue_opts, attempt: &'static str) -> Result<QueueOptions> {
    let known = BLKM_QUEUE_F_NO_EVENTFD | BLKM_QUEUE_F_STABLE_BUFFERS | BLKM_QUEUE_F_NO_REGIONS;
    sum::known_flags(opts.flags, known, attempt)?;
    let default = QueueOptions::default();
    Ok(QueueOptions {
        depth: match opts.depth {
            0 => default.depth,
            depth => usize::try_from(depth).unwrap_or(usize::MAX),
        },
        staging_bytes: if opts.staging_bytes == 0 { default.staging_bytes } else { opts.staging_bytes },
        eventfd: opts.flags & BLKM_QUEUE_F_NO_EVENTFD == 0,
        regions: opts.flags & BLKM_QUEUE_F_NO_REGIONS == 0,
        stable_buffers: opts.flags & BLKM_QUEUE_F_STABLE_BUFFERS != 0,
    })
}
