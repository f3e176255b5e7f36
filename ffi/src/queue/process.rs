//! The functions that send what was submitted and take completions.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;

use blkmirror_core::drive::queue::GuestCompletion;
use blkmirror_core::{Error, Result};

use super::guarded::{Inner, blkm_queue};
use super::{BLKM_COMPLETION_F_MEMORY_IN_USE, blkm_completion};
use crate::border::handle::with;
use crate::border::{invalid, sum};

/// Sends what was submitted, without looking for completions: one system call. `blkm_queue_process` and `blkm_queue_poll` do so,
/// too.
///
/// Returns 0, or -errno: `-EPERM` on another thread than the queue's; when the ring could not be made or broke, and then every
/// request has completed with an error. Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_submit(queue: *mut blkm_queue) -> c_int {
    let attempt = "submit requests";
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(queue, attempt, |q: &blkm_queue| q.on_its_thread(attempt, |inner| inner.queue.submit())) }
}

/// Sends what was submitted, and says how many completions can be taken now; takes none.
///
/// It asks the kernel each time, for a completion is shown to the queue only when its thread comes for it: one system call
/// (`io_uring_enter`); with a completion descriptor a second, which resets it, and while there is something to take a third, which
/// makes it readable again. A loop that polls without a pause calls `blkm_queue_process` at once, which needs no third, and makes
/// its queue with `BLKM_QUEUE_F_NO_EVENTFD` if it never sleeps, which needs no second.
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

/// Sends what was submitted, sleeps until `min` completions can be taken, and takes up to `max` of them into `completions`, in any
/// order.
///
/// It sleeps no longer than `timeout_ns` (0: not at all; negative: for ever), nor when fewer than `min` requests are under way.
/// Requests that wait for the drive's gate are under way. If more than `max` are there, the completion descriptor stays readable.
///
/// Returns how many were taken, 0 if there were none, or -errno: `-EINVAL` unless 0 <= min <= max and 1 <= max; `-EPERM` on another
/// thread than the queue's; when the ring could not be made or broke, once every completion is taken. Threads: the queue's. Since
/// 0.1.
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
/// edge-triggered, and call `blkm_queue_process`, which resets it; never read from it. It may be readable when there is nothing to
/// take, as when the drive's gate opens. It belongs to the queue.
///
/// It is there from the start to the end of the queue, or not at all (`BLKM_QUEUE_F_NO_EVENTFD`): it cannot be switched off for a
/// while, as other libraries can. A host that polls now and sleeps then leaves it as it is and pays a signal of the kernel's for
/// each batch of completions and a `read(2)` for each `blkm_queue_process` and `blkm_queue_poll`.
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

/// Takes completions: first of requests that were refused, then of the others, then of requests that were refused meanwhile.
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
    // SAFETY: the caller's promise.
    unsafe { take_refused(queue, inner, into, &mut taken, max) };
    // What another thread is refused meanwhile counts, and wakes this one.
    let processed = match min.saturating_sub(taken) {
        0 => inner.queue.poll(),
        missing => inner.queue.wait_beside(missing, sum::timeout(timeout_ns), || queue.refused()),
    };
    while taken < max {
        let Some(done) = inner.queue.pop() else { break };
        let (user_data, flags) = (pointer(done.tag), flags_of(&done));
        let completion = match &done.result {
            Ok(()) => blkm_completion { user_data, error_msg: std::ptr::null(), ret: 0, flags, reserved: 0 },
            Err(error) => inner.failed(user_data, error, flags),
        };
        // SAFETY: `taken` is below `max`.
        unsafe { into.wrapping_add(taken).write(completion) };
        taken += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { take_refused(queue, inner, into, &mut taken, max) };
    if inner.queue.ready() + queue.refused() > 0 {
        queue.signal();
    }
    if taken == 0 { processed.map(|()| 0) } else { Ok(taken) }
}

/// Takes completions of requests that were refused, up to `max` with those that are `taken` already.
///
/// # Safety
/// There is room for `max` at `into`.
unsafe fn take_refused(
    queue: &blkm_queue,
    inner: &mut Inner,
    into: *mut blkm_completion,
    taken: &mut usize,
    max: usize,
) {
    while *taken < max {
        let Some(refused) = queue.take_refused() else { return };
        let completion = inner.failed(refused.user_data, &refused.error, 0);
        // SAFETY: `taken` is below `max`.
        unsafe { into.wrapping_add(*taken).write(completion) };
        *taken += 1;
    }
}

/// What is to be said of a completion besides its result.
fn flags_of(done: &GuestCompletion) -> u32 {
    if done.memory_in_use { BLKM_COMPLETION_F_MEMORY_IN_USE } else { 0 }
}

/// A pointer that went through a tag.
fn pointer(tag: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(tag).unwrap_or(0))
}
