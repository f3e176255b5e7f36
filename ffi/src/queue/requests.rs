//! The functions that send a request. They return nothing: every failure comes back as a completion.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use blkmirror_core::Result;
use blkmirror_core::buffer::GuestBuffer;
use blkmirror_core::drive::queue::{Queue, WriteFlags, ZeroFlags};
use blkmirror_core::units::ByteRange;

use super::guarded::blkm_queue;
use crate::border::handle::{Object, borrow};
use crate::border::{bug, fail, invalid, sum};

/// Writes, zeroes: durable when the request completes (forced unit access).
pub const BLKM_REQ_FUA: u32 = 1;
/// Zeroes: space may be given back.
pub const BLKM_REQ_MAY_UNMAP: u32 = 2;
/// Zeroes: fail with -EOPNOTSUPP where the device has no quick way to zero, instead of writing them as data.
pub const BLKM_REQ_NO_FALLBACK: u32 = 4;
/// Writes: the data does not change before the completion, so write-blocking needs no copy of it; see
/// `BLKM_QUEUE_F_STABLE_BUFFERS`.
pub const BLKM_REQ_STABLE_BUFFER: u32 = 8;

/// Sends a request; what is refused becomes a completion.
///
/// # Safety
/// `queue` is NULL or a queue of the caller's.
#[inline]
unsafe fn send(
    queue: *mut blkm_queue,
    user_data: *mut c_void,
    attempt: &'static str,
    request: impl FnOnce(&mut Queue, u64) -> Result<()>,
) {
    // SAFETY: the caller's promise.
    let queue = match unsafe { borrow(queue, attempt) } {
        Ok(queue) => queue,
        // No queue, nobody to tell.
        Err(error) => {
            let _ = fail(&error);
            return;
        }
    };
    let tag = u64::try_from(user_data.expose_provenance()).unwrap_or(0);
    let sent = || queue.on_its_thread(attempt, |inner| request(&mut inner.queue, tag));
    match catch_unwind(AssertUnwindSafe(sent)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => queue.refuse(user_data, error),
        Err(_) => {
            queue.health().poison();
            // Who sleeps on the descriptor must come and hear of it.
            queue.signal();
            let _ = fail(&bug(attempt));
        }
    }
}

/// The caller's memory in one piece.
///
/// # Safety
/// It stays as it is until the completion, as the header says.
#[inline]
unsafe fn one(buffer: *mut c_void, len: usize, attempt: &'static str) -> Result<GuestBuffer> {
    if buffer.is_null() && len > 0 {
        return Err(invalid(attempt, "its buffer is NULL"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { GuestBuffer::from_raw(buffer.cast(), len) })
}

/// The caller's memory in several pieces.
///
/// # Safety
/// They, and the array, stay as they are until the completion, as the header says.
#[inline]
unsafe fn many(iov: *const libc::iovec, iovcnt: c_int, attempt: &'static str) -> Result<GuestBuffer> {
    let count = usize::try_from(iovcnt).unwrap_or(0);
    if iov.is_null() || count == 0 {
        return Err(invalid(attempt, format!("it has no memory: iov is NULL or iovcnt is {iovcnt}")));
    }
    if count > 1 {
        // SAFETY: the caller's promise.
        return Ok(unsafe { GuestBuffer::from_iovecs(iov, count) });
    }
    // SAFETY: the array has one entry.
    let piece = unsafe { *iov };
    // SAFETY: the caller's promise.
    unsafe { one(piece.iov_base, piece.iov_len, attempt) }
}

/// Sends a read into memory of the caller's.
///
/// # Safety
/// As [`send`]; `memory` gives what stays as it is until the completion.
#[inline]
unsafe fn read(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    user_data: *mut c_void,
    flags: u32,
    memory: impl FnOnce(&'static str) -> Result<GuestBuffer>,
) {
    let attempt = "read from the drive";
    let request = |queue: &mut Queue, tag| {
        sum::known_flags(flags.into(), 0, attempt)?;
        Ok(queue.read(offset_bytes, memory(attempt)?, tag)?)
    };
    // SAFETY: the caller's promise.
    unsafe { send(queue, user_data, attempt, request) }
}

/// Sends a write from memory of the caller's.
///
/// # Safety
/// As [`read`].
#[inline]
unsafe fn write(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    user_data: *mut c_void,
    flags: u32,
    memory: impl FnOnce(&'static str) -> Result<GuestBuffer>,
) {
    let attempt = "write to the drive";
    let request = |queue: &mut Queue, tag| {
        sum::known_flags(flags.into(), (BLKM_REQ_FUA | BLKM_REQ_STABLE_BUFFER).into(), attempt)?;
        let flags =
            WriteFlags { fua: flags & BLKM_REQ_FUA != 0, stable: flags & BLKM_REQ_STABLE_BUFFER != 0 };
        Ok(queue.write(offset_bytes, memory(attempt)?, flags, tag)?)
    };
    // SAFETY: the caller's promise.
    unsafe { send(queue, user_data, attempt, request) }
}

/// Reads `len_bytes` at `offset_bytes` into `buffer`.
///
/// Offset and length are multiples of the drive's `align_bytes`, the address is one of its `memory_align_bytes`. The memory stays
/// mapped and is not used otherwise until the completion, which brings `user_data` back. `flags` is zero. Nothing is sent before
/// `blkm_queue_submit`, `blkm_queue_poll` or `blkm_queue_process`.
///
/// There is exactly one completion: 0, or -errno with a text: `-EINVAL` for a range off the drive or not aligned, or unknown flags;
/// `-EAGAIN` when the queue's depth is used up; `-EPERM` on another thread than the queue's; what the device says.
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_read(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    buffer: *mut c_void,
    len_bytes: usize,
    user_data: *mut c_void,
    flags: u32,
) {
    // SAFETY: the caller's memory, as the header says.
    let memory = |attempt| unsafe { one(buffer, len_bytes, attempt) };
    // SAFETY: the caller's handle and memory, as the header says.
    unsafe { read(queue, offset_bytes, user_data, flags, memory) }
}

/// Reads into several pieces of memory, in their order: as `blkm_queue_read`. The length of each is a multiple of the drive's
/// `align_bytes`. The array, too, stays as it is until the completion.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_readv(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    iov: *const libc::iovec,
    iovcnt: c_int,
    user_data: *mut c_void,
    flags: u32,
) {
    // SAFETY: the caller's memory, as the header says.
    let memory = |attempt| unsafe { many(iov, iovcnt, attempt) };
    // SAFETY: the caller's handle and memory, as the header says.
    unsafe { read(queue, offset_bytes, user_data, flags, memory) }
}

/// Writes `len_bytes` from `buffer` at `offset_bytes`; `flags`: `BLKM_REQ_FUA`, `BLKM_REQ_STABLE_BUFFER`. All else as
/// `blkm_queue_read`, and `-EACCES` for a drive that is read-only.
///
/// The guest may change the data before the completion: which bytes are on the disk then is its own affair, but a mirror has the
/// same.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_write(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    buffer: *const c_void,
    len_bytes: usize,
    user_data: *mut c_void,
    flags: u32,
) {
    // SAFETY: the caller's memory, as the header says; it is only read.
    let memory = |attempt| unsafe { one(buffer.cast_mut(), len_bytes, attempt) };
    // SAFETY: the caller's handle and memory, as the header says.
    unsafe { write(queue, offset_bytes, user_data, flags, memory) }
}

/// Writes from several pieces of memory, in their order: as `blkm_queue_write` and `blkm_queue_readv`.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_writev(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    iov: *const libc::iovec,
    iovcnt: c_int,
    user_data: *mut c_void,
    flags: u32,
) {
    // SAFETY: the caller's memory, as the header says.
    let memory = |attempt| unsafe { many(iov, iovcnt, attempt) };
    // SAFETY: the caller's handle and memory, as the header says.
    unsafe { write(queue, offset_bytes, user_data, flags, memory) }
}

/// Makes a range read as zeroes; written as data where the device knows no better. `flags`: `BLKM_REQ_MAY_UNMAP`,
/// `BLKM_REQ_NO_FALLBACK`, `BLKM_REQ_FUA`. All else as `blkm_queue_write`.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_write_zeroes(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    len_bytes: u64,
    user_data: *mut c_void,
    flags: u32,
) {
    let attempt = "write zeroes to the drive";
    let request = |queue: &mut Queue, tag| {
        let known = BLKM_REQ_FUA | BLKM_REQ_MAY_UNMAP | BLKM_REQ_NO_FALLBACK;
        sum::known_flags(flags.into(), known.into(), attempt)?;
        let flags = ZeroFlags {
            punch: flags & BLKM_REQ_MAY_UNMAP != 0,
            fua: flags & BLKM_REQ_FUA != 0,
            no_fallback: flags & BLKM_REQ_NO_FALLBACK != 0,
        };
        Ok(queue.write_zeroes(ByteRange::at(offset_bytes, len_bytes), flags, tag)?)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { send(queue, user_data, attempt, request) }
}

/// Says that a range is not needed any more. A device that cannot make use of that changes nothing and succeeds. `flags` is zero.
/// All else as `blkm_queue_write`.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_discard(
    queue: *mut blkm_queue,
    offset_bytes: u64,
    len_bytes: u64,
    user_data: *mut c_void,
    flags: u32,
) {
    let attempt = "discard on the drive";
    let request = |queue: &mut Queue, tag| {
        sum::known_flags(flags.into(), 0, attempt)?;
        Ok(queue.discard(ByteRange::at(offset_bytes, len_bytes), tag)?)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { send(queue, user_data, attempt, request) }
}

/// Makes every write durable that completed before this call. `flags` is zero.
///
/// Threads: the queue's. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_queue_flush(queue: *mut blkm_queue, user_data: *mut c_void, flags: u32) {
    let attempt = "flush the drive";
    let request = |queue: &mut Queue, tag| {
        sum::known_flags(flags.into(), 0, attempt)?;
        Ok(queue.flush(tag)?)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { send(queue, user_data, attempt, request) }
}
