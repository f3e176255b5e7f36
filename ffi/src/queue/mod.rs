//! Queues: guest I/O through the library.
//!
//! | file | idea |
//! |---|---|
//! | `requests` | the functions that send a request |
//! | `guarded` | one thread at a time, also if the host has it wrong; requests that were refused |
#![allow(unsafe_code)]

mod guarded;
mod requests;

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::AsRawFd;

use blkmirror_core::drive::queue::{QueueOptions, RegisteredMemory};
use blkmirror_core::{Error, Result};

use self::guarded::Inner;
pub use self::guarded::blkm_queue;
pub use self::requests::*;
use crate::border::handle::{Health, borrow, close, create, with};
use crate::border::sized::{self, structure};
use crate::border::{invalid, sum};
use crate::drive::blkm_drive;

/// The queue has no completion descriptor; the host only processes it. An optimisation for hosts that poll.
pub const BLKM_QUEUE_F_NO_EVENTFD: u64 = 1;
/// The data of writes does not change before their completion, so write-blocking needs no copy of it. The price: while a target hangs
/// such a write does not complete, even when its job has failed.
pub const BLKM_QUEUE_F_STABLE_BUFFERS: u64 = 2;
/// The queue takes up no memory regions (`blkm_mem_region_map`), which pins them once less. For rare requests, as of a control path: those
/// work all the same, and keep a region from being unmapped as those of any queue do.
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
    /// Memory for the stable copies that write-blocking needs, at most 1 GiB; 0: 4 MiB. A write that finds no room in it goes to the drive
    /// alone and is copied later.
    pub staging_bytes: u64,
    /// Requests that are accepted and whose completions were not taken yet, at most: 1 to 1024; 0: 128. One more completes with -EAGAIN, so
    /// count yours and hold the rest; size it as what your guest can have under way on this queue.
    pub depth: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_queue_opts, first 64, reserved reserved0, reserved);

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
    /// Zero so far.
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
    /// Zero so far.
    pub reserved: [u64; 4],
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

/// Makes a queue of a drive, for one of the host's threads: the first that sends or processes with it. Its io_uring is made then, on
/// that thread, so queues may be made in one place and handed out. `opts` may be NULL. On success `*out` is the queue, to be destroyed
/// with `blkm_queue_destroy`; else it is NULL.
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

/// Ends a queue and sets `*queue` to NULL. NULL, and a pointer to NULL, are allowed.
///
/// Take the completions of all requests before: those under way get none any more, and their memory may still be the kernel's. On the
/// queue's own thread it waits for them, at most about 600 ms; a write that a hanging device may still carry out later makes a job that
/// follows the drive fail, and keeps every later job of the drive from switching over.
///
/// Threads: best the queue's own; any, while no other call uses the queue. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_destroy(queue: *mut *mut blkm_queue) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(queue) }
}

/// Sends what was submitted, without looking for completions. `blkm_queue_process` and `blkm_queue_poll` do so, too.
///
/// Returns 0, or -errno: `-EPERM` on another thread than the queue's; when the ring could not be made or broke, and then every request
/// has completed with an error. Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_submit(queue: *mut blkm_queue) -> c_int {
    let attempt = "submit requests";
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, |q: &blkm_queue| q.on_its_thread(attempt, |inner| inner.queue.submit())) }
}

/// Sends what was submitted, and says how many completions can be taken now; takes none.
///
/// Returns their number, or -errno as `blkm_queue_submit`. Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_poll(queue: *mut blkm_queue) -> c_int {
    let attempt = "poll a queue";
    let body = |q: &blkm_queue| {
        q.on_its_thread(attempt, |inner| {
            let polled = inner.queue.poll();
            let ready = inner.queue.ready() + q.refused();
            if ready == 0 {
                return polled.map(|()| 0);
            }
            // Looking has reset the descriptor, and what is there stays.
            q.signal();
            Ok(ready)
        })
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, body) }
}

/// Sends what was submitted, sleeps until `min` completions can be taken, and takes up to `max` of them into `completions`, in any order.
///
/// It sleeps no longer than `timeout_ns` (0: not at all; negative: for ever), nor when fewer than `min` requests are under way. Requests
/// that wait for the drive's gate are under way. If more than `max` are there, the completion descriptor stays readable.
///
/// Returns how many were taken, 0 if there were none, or -errno: `-EINVAL` unless 0 <= min <= max and 1 <= max; `-EPERM` on another
/// thread than the queue's; when the ring could not be made or broke, once every completion is taken. Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_process(
    queue: *mut blkm_queue,
    completions: *mut blkm_completion,
    min: c_int,
    max: c_int,
    timeout_ns: i64,
) -> c_int {
    let attempt = "process completions";
    let body = |q: &blkm_queue| {
        let (min, max) = bounds(min, max, completions, attempt)?;
        // SAFETY: the caller gave room for `max`, as the header says.
        q.on_its_thread(attempt, |inner| unsafe { process(q, inner, completions, min, max, timeout_ns) })
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, body) }
}

/// The queue's completion descriptor, an eventfd: readable when there may be completions to take. Wait for it, level-triggered or
/// edge-triggered, and call `blkm_queue_process`, which resets it; never read from it. It may be readable when there is nothing to take,
/// as when the drive's gate opens. It belongs to the queue.
///
/// Returns the descriptor, or -errno: `-ENOENT` with `BLKM_QUEUE_F_NO_EVENTFD`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_get_completion_fd(queue: *mut blkm_queue) -> c_int {
    let attempt = "get the completion descriptor of a queue";
    let body = |q: &blkm_queue| match q.eventfd() {
        Some(fd) => Ok(usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX)),
        None => Err(Error::new(blkmirror_core::ErrorKind::NotFound, attempt)
            .because("it was made with BLKM_QUEUE_F_NO_EVENTFD")),
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, body) }
}

/// Fills in what a queue has, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL`; `-EPERM` on another thread than the queue's. Threads: the queue's; any before one has sent or processed
/// with it, which this does not count as. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_get_info(queue: *mut blkm_queue, info: *mut blkm_queue_info) -> c_int {
    let attempt = "describe a queue";
    let body = |q: &blkm_queue| {
        // To look at a queue is not to use it: whoever does that first does not make it his thread's.
        let value = match q.is_unused() {
            true => info_of(q, [0; 2], RegisteredMemory::default()),
            false => q.on_its_thread(attempt, |Inner { queue, .. }| {
                Ok(info_of(q, [queue.in_flight(), queue.ready()], queue.registered_memory()))
            })?,
        };
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, body) }
}

/// What a queue has.
fn info_of(q: &blkm_queue, [in_flight, ready]: [usize; 2], memory: RegisteredMemory) -> blkm_queue_info {
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
        reserved: [0; 4],
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

/// How many completions are wanted at least and at most.
fn bounds(
    min: c_int,
    max: c_int,
    completions: *mut blkm_completion,
    attempt: &'static str,
) -> Result<(usize, usize)> {
    match (usize::try_from(min), usize::try_from(max)) {
        (Ok(min), Ok(max)) if max >= 1 && min <= max && !completions.is_null() => Ok((min, max)),
        _ => Err(invalid(
            attempt,
            format!("min {min} and max {max} must be 0 <= min <= max, 1 <= max, with room for max"),
        )),
    }
}

/// Takes completions: first of requests that were refused, then of the others.
///
/// # Safety
/// There is room for `max` at `into`.
unsafe fn process(
    queue: &blkm_queue,
    inner: &mut Inner,
    into: *mut blkm_completion,
    min: usize,
    max: usize,
    timeout_ns: i64,
) -> Result<usize> {
    inner.texts.clear();
    let mut taken = 0;
    while let Some(refused) = if taken < max { queue.take_refused() } else { None } {
        // SAFETY: `taken` is below `max`.
        unsafe { into.wrapping_add(taken).write(inner.failed(refused.user_data, &refused.error)) };
        taken += 1;
    }
    let processed = match min.saturating_sub(taken) {
        0 => inner.queue.poll(),
        missing => inner.queue.wait(missing, sum::timeout(timeout_ns)),
    };
    while taken < max {
        let Some(done) = inner.queue.pop() else { break };
        let user_data = pointer(done.tag);
        let completion = match &done.result {
            Ok(()) => {
                blkm_completion { user_data, error_msg: std::ptr::null(), ret: 0, flags: 0, reserved: 0 }
            }
            Err(error) => inner.failed(user_data, error),
        };
        // SAFETY: `taken` is below `max`.
        unsafe { into.wrapping_add(taken).write(completion) };
        taken += 1;
    }
    if inner.queue.ready() + queue.refused() > 0 {
        queue.signal();
    }
    if taken == 0 { processed.map(|()| 0) } else { Ok(taken) }
}

/// A pointer that went through a tag.
fn pointer(tag: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(tag).unwrap_or(0))
}
