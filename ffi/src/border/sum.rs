//! Plain numbers for C from what core has, and back.
#![allow(unsafe_code)]

use std::time::Duration;

use blkmirror_core::Result;
use blkmirror_core::units::ByteRange;

use super::invalid;

/// What stands for "no limit", "not known" and "for ever" where C has a number of nanoseconds.
pub(crate) const NEVER_NS: u64 = u64::MAX;

/// Stores a number in a variable of C's, if he gave one.
///
/// # Safety
/// `variable` is NULL or may be written.
pub(crate) unsafe fn put<T: Copy>(variable: *mut T, value: T) {
    if !variable.is_null() {
        // SAFETY: not NULL, and the caller's promise.
        unsafe { variable.write(value) };
    }
}

/// Refuses flags that this version does not know.
pub(crate) fn known_flags(flags: u64, known: u64, attempt: &'static str) -> Result<()> {
    let unknown = flags & !known;
    if unknown == 0 {
        return Ok(());
    }
    Err(invalid(attempt, format!("flags {unknown:#x} are not known to this version of the library")))
}

/// A time in nanoseconds.
pub(crate) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER_NS)
}

/// A time that may be unknown or without an end.
pub(crate) fn ns_or_never(time: Option<Duration>) -> u64 {
    time.map_or(NEVER_NS, ns)
}

/// How long to wait: negative is for ever.
pub(crate) fn timeout(ns: i64) -> Option<Duration> {
    u64::try_from(ns).ok().map(Duration::from_nanos)
}

/// A flag if something holds.
pub(crate) fn flag(holds: bool, flag: u64) -> u64 {
    if holds { flag } else { 0 }
}

/// An errno as C has it in results: negative.
pub(crate) fn negative(errno: i32) -> i32 {
    -errno.abs()
}

/// A range that does not wrap.
pub(crate) fn range(offset_bytes: u64, len_bytes: u64, attempt: &'static str) -> Result<ByteRange> {
    match offset_bytes.checked_add(len_bytes) {
        Some(_) => Ok(ByteRange::at(offset_bytes, len_bytes)),
        None => Err(invalid(attempt, "offset and length are more than 2^64 bytes")),
    }
}
