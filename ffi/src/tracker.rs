//! Trackers: for hosts that do their own I/O.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::time::Duration;

use blkmirror_core::drive::{Admission, IoKind, Token, Tracker};
use blkmirror_core::units::ByteRange;
use blkmirror_core::{Error, ErrorKind, Result};

use crate::border::handle::{Health, borrow, close, create, object, with};
use crate::border::{invalid, sum};
use crate::drive::blkm_drive;

/// Tells a drive of requests that the host carries out itself. Every function that takes one may be called from any thread, and one
/// tracker will do for all; one for each thread costs nothing either.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_tracker {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    tracker: Tracker,
}
object!(blkm_tracker);

/// What a tracked request does.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_io_kind = u32;
/// Reads; nothing is marked.
pub const BLKM_IO_READ: blkm_io_kind = 0;
/// Writes data.
pub const BLKM_IO_WRITE: blkm_io_kind = 1;
/// Makes the range read as zeroes.
pub const BLKM_IO_WRITE_ZEROES: blkm_io_kind = 2;
/// Gives space back; the range may read as anything.
pub const BLKM_IO_DISCARD: blkm_io_kind = 3;
/// Makes durable what was written; its range is empty.
pub const BLKM_IO_FLUSH: blkm_io_kind = 4;

/// `blkm_tracker_begin`: not now. The gate is closed, for a switch-over or because copy mode auto brakes the guest; a later version
/// may hold requests for other reasons. Wait until `blkm_tracker_wait` or the descriptor says that it is open, and begin again.
pub const BLKM_HELD: c_int = 1;

/// A tracked request that is under way. The caller keeps it; it may be copied and moved, and is ended once.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_token {
    /// Which device the request must be sent to: 0 is the one that the drive was made on, and each pivot counts one more.
    pub device_number: u64,
    /// The library's.
    pub opaque: [u64; 7],
}

/// Makes a tracker of a drive. On success `*out` is the tracker, to be closed with `blkm_tracker_close`; else it is NULL.
///
/// Returns 0, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_create(drive: *mut blkm_drive, out: *mut *mut blkm_tracker) -> c_int {
    let attempt = "make a tracker";
    let make = || {
        // SAFETY: the caller's handle, as the header says.
        let drive = unsafe { borrow(drive, attempt)? };
        Ok(blkm_tracker { health: Health::new(), tracker: drive.drive.tracker() })
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Closes the caller's handle and sets `*tracker` to NULL. NULL, and a pointer to NULL, are allowed. Tokens can be ended with
/// another tracker of the drive. Threads: any, while no other call uses this handle. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_close(tracker: *mut *mut blkm_tracker) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(tracker) }
}

/// A request (`BLKM_IO_*`) is about to be sent. The range need not be aligned; that of a flush is empty. Nothing is allocated, and
/// no lock is taken. Tracked writes are followed in background, whatever the job's copy mode is.
///
/// Returns 0, and `*token` is to be ended with `blkm_tracker_end`: send the request now, to the device that `token->device_number`
/// names. `BLKM_HELD`: do not send it; wait, and begin again. -errno: `-EINVAL` for a range that is empty or not on the drive, or
/// an unknown kind; `-EAGAIN` when 4096 are under way on the drive, which is counted over all its trackers and queues: nothing was
/// begun; hold the request, and begin again when one of yours has ended (`blkm_tracker_wait` and the descriptor tell of the gate
/// alone), or after a moment if none of yours is under way. A host that never has more than that many under way never sees it.
///
/// A switch-over closes the gate and waits for every token that is under way. So never make the end of a token wait for the gate:
/// not by sleeping in `blkm_tracker_wait` or for the descriptor before you end it, nor by waiting for a completion of a queue of
/// the same drive; and one request of the guest's is one token, not several that are begun one after the other. Each would wait for
/// the other: the switch-over would be missed again and again, and with a `max_pause_ns` of `BLKM_NEVER_NS` both would wait for
/// ever. A token that is never ended keeps every job of the drive from switching over.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_begin(
    tracker: *mut blkm_tracker,
    offset_bytes: u64,
    len_bytes: u64,
    kind: blkm_io_kind,
    token: *mut blkm_token,
) -> c_int {
    let attempt = "track a request";
    let body = |t: &blkm_tracker| {
        if token.is_null() {
            return Err(invalid(attempt, "the pointer to the token is NULL"));
        }
        let range = sum::range(offset_bytes, len_bytes, attempt)?;
        match t.tracker.begin(range, kind_of(kind)?)? {
            Admission::Go(begun) => {
                // SAFETY: not NULL, and the caller's variable, as the header says.
                unsafe { token.write(pack(begun)) };
                Ok(false)
            }
            Admission::Held => Ok(true),
        }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(tracker, attempt, body) }
}

/// A request has completed with `result` (0, or -errno if it failed): said before the guest hears of it, because a write marks its
/// range here, whatever its result. Where the write was plain stores into mapped memory, with no system call since, a full memory
/// barrier (`atomic_thread_fence(memory_order_seq_cst)`) must come before.
///
/// Returns 0; `-EPERM`, and nothing was changed, for a token that was ended before or is none of this drive's; `-EINVAL`.
/// Threads: any, also another than the one that began it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_end(
    tracker: *mut blkm_tracker,
    token: *const blkm_token,
    result: c_int,
) -> c_int {
    let attempt = "end a request";
    let body = |t: &blkm_tracker| {
        // SAFETY: the caller's variable, as the header says.
        let token = unsafe { token.as_ref() }.ok_or_else(|| invalid(attempt, "the token is NULL"))?;
        let token = unpack(&t.tracker, token).ok_or_else(|| of_another(token, attempt))?;
        let result = if result < 0 { Err(result.saturating_neg()) } else { Ok(()) };
        t.tracker.end(token, result)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(tracker, attempt, body) }
}

/// Sleeps until the drive's gate is open, at most for `timeout_ns`; negative: for ever. Never while the thread has a token to
/// end (`blkm_tracker_begin`).
///
/// Returns 1 if it is open, 0 if the time is over, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_wait(tracker: *mut blkm_tracker, timeout_ns: i64) -> c_int {
    let timeout = sum::timeout(timeout_ns).unwrap_or(Duration::MAX);
    let body = |t: &blkm_tracker| loop {
        let open = t.tracker.wait_open(timeout);
        if open || timeout != Duration::MAX {
            return Ok(open);
        }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(tracker, "wait for the drive's gate", body) }
}

/// A descriptor that is readable exactly while the drive's gate is open, for an event loop: poll it while requests are held, never
/// read from it. It belongs to the library and is good until every handle of the drive is closed.
///
/// Returns the descriptor, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_tracker_get_open_fd(tracker: *mut blkm_tracker) -> c_int {
    let body = |t: &blkm_tracker| {
        let fd = t.tracker.opened_fd()?.as_raw_fd();
        Ok(usize::try_from(fd).unwrap_or(usize::MAX))
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(tracker, "get the descriptor of the drive's gate", body) }
}

/// The kind of that number.
fn kind_of(kind: blkm_io_kind) -> Result<IoKind> {
    match kind {
        BLKM_IO_READ => Ok(IoKind::Read),
        BLKM_IO_WRITE => Ok(IoKind::Write),
        BLKM_IO_WRITE_ZEROES => Ok(IoKind::WriteZeroes),
        BLKM_IO_DISCARD => Ok(IoKind::Discard),
        BLKM_IO_FLUSH => Ok(IoKind::Flush),
        _ => Err(invalid("track a request", format!("{kind} is no kind of request; use BLKM_IO_*"))),
    }
}

/// The error for what cannot be a token of this drive, which core never sees: the same as for one that is not under way there.
fn of_another(token: &blkm_token, attempt: &'static str) -> Error {
    let [_, start, end, ..] = token.opaque;
    let error = Error::new(ErrorKind::WrongState, attempt)
        .because("it was ended before or belongs to another drive; end each token once");
    if start <= end { error.in_range(ByteRange::new(start, end)) } else { error }
}

/// A token for C.
fn pack(token: Token) -> blkm_token {
    let [device_number, a, b, c, d, e] = token.to_words();
    blkm_token { device_number, opaque: [a, b, c, d, e, 0, 0] }
}

/// A token from C.
fn unpack(tracker: &Tracker, token: &blkm_token) -> Option<Token> {
    let [a, b, c, d, e, ..] = token.opaque;
    tracker.token_of_words([token.device_number, a, b, c, d, e])
}
