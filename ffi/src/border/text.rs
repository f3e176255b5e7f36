//! Strings from C, and texts to C.
//!
//! The text of a thread's last error lies in storage of that thread which needs no destructor: it is there until the thread has
//! ended, and a library that is unloaded while threads live leaves nothing behind that would be called later.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use blkmirror_core::{Error, Result};

use super::invalid;

/// Bytes kept of a text, its end included.
const TEXT_BYTES: usize = 1024;

thread_local! {
    /// The text, ended by a 0.
    static TEXT: [Cell<u8>; TEXT_BYTES] = const { [const { Cell::new(0) }; TEXT_BYTES] };
}

/// Writes into fixed room; what does not fit is left out, never a part of a character.
struct Fixed<F: FnMut(usize, u8)> {
    /// Puts a byte.
    put: F,
    /// Bytes of room.
    room: usize,
    /// Bytes put.
    len: usize,
    /// Something was left out already, so all that follows is.
    full: bool,
}

impl<F: FnMut(usize, u8)> Write for Fixed<F> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            let bytes = character.len_utf8();
            self.full |= self.len + bytes > self.room;
            if self.full {
                break;
            }
            for &byte in character.encode_utf8(&mut [0; 4]).as_bytes() {
                (self.put)(self.len, byte);
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Keeps an error's text for this thread.
pub(crate) fn keep(error: &Error) {
    // A thread that is ending has no text any more, and nobody who would read it.
    let _ = TEXT.try_with(|text| {
        let put = |at: usize, byte| text[at].set(byte);
        let mut fixed = Fixed { put, room: TEXT_BYTES - 1, len: 0, full: false };
        let _ = write!(fixed, "{error}");
        let len = fixed.len;
        text[len].set(0);
    });
}

/// The text of this thread's last error.
pub(crate) fn last() -> *const c_char {
    TEXT.try_with(|text| text.as_ptr().cast()).unwrap_or(c"".as_ptr())
}

/// Fills an array of C with a text, cut where it must be and ended by a 0.
pub(crate) fn fill<const N: usize>(array: &mut [c_char; N], text: &dyn std::fmt::Display) {
    array.fill(0);
    let put = |at: usize, byte: u8| array[at] = c_char::from_ne_bytes([byte]);
    let _ = write!(Fixed { put, room: N.saturating_sub(1), len: 0, full: false }, "{text}");
}

/// Copies a text as `snprintf(3)` does: cut to `room` bytes with its ending 0; gives its whole length.
///
/// # Safety
/// `buffer` has room for `room` bytes; it may be NULL if `room` is 0.
pub(crate) unsafe fn copy_out(text: &str, buffer: *mut c_char, room: usize) -> usize {
    if buffer.is_null() || room == 0 {
        return text.len();
    }
    let put = |at: usize, byte: u8| {
        // SAFETY: `at` is below `room - 1`, see `Fixed`, and the caller gave room.
        unsafe { buffer.wrapping_add(at).cast::<u8>().write(byte) };
    };
    let mut fixed = Fixed { put, room: room - 1, len: 0, full: false };
    let _ = fixed.write_str(text);
    let end = fixed.len;
    // SAFETY: at most `room - 1` bytes were put.
    unsafe { buffer.wrapping_add(end).write(0) };
    text.len()
}

/// A string of C, if there is one.
///
/// # Safety
/// It is NULL or ends with a 0, and lives as long as the answer is used.
pub(crate) unsafe fn bytes<'a>(string: *const c_char) -> Option<&'a [u8]> {
    if string.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(string) }.to_bytes())
}

/// A path of C's.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn path<'a>(string: *const c_char, attempt: &'static str) -> Result<&'a Path> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(string) };
    bytes.map(|bytes| Path::new(OsStr::from_bytes(bytes))).ok_or_else(|| invalid(attempt, "its path is NULL"))
}

/// A name of C's, if there is one.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn name<'a>(string: *const c_char, attempt: &'static str) -> Result<Option<&'a str>> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(string) };
    let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| invalid(attempt, "a name is no valid UTF-8"));
    bytes.map(utf8).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_text() -> String {
        // SAFETY: the text of this thread ends with a 0 and does not change here.
        unsafe { CStr::from_ptr(last()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        for extra in 0..4 {
            let long = "x".repeat(extra) + &"ü€".repeat(1000);
            keep(&invalid("open", long.clone()));
            let kept = last_text();
            assert!(kept.len() < TEXT_BYTES && kept.len() > TEXT_BYTES - 5, "{}", kept.len());
            assert!(format!("cannot open: {long}").starts_with(&kept));
        }
        keep(&invalid("open", "short"));
        assert_eq!(last_text(), "cannot open: short");
    }

    #[test]
    fn each_thread_has_a_text_of_its_own() {
        keep(&invalid("open", "here"));
        std::thread::spawn(|| assert_eq!(last_text(), "")).join().unwrap();
        assert_eq!(last_text(), "cannot open: here");
    }

    #[test]
    fn a_copy_never_leaves_its_room_and_tells_the_whole_length() {
        let mut room = [0x55_u8; 8];
        for len in 0..8 {
            room.fill(0x55);
            // SAFETY: there is more room than is told.
            let whole = unsafe { copy_out("abcdef", room.as_mut_ptr().cast(), len) };
            assert_eq!(whole, 6);
            assert!(room[len..].iter().all(|&b| b == 0x55), "{len}");
            assert_eq!(room[..len].last().copied().unwrap_or(0), 0);
        }
        // SAFETY: no room is told.
        assert_eq!(unsafe { copy_out("abc", std::ptr::null_mut(), 0) }, 3);
    }

    #[test]
    fn an_array_is_filled_to_its_end_and_no_further() {
        let mut array = [1; 5];
        fill(&mut array, &"a€b");
        assert_eq!(array.map(|c| u8::from_ne_bytes(c.to_ne_bytes())), [b'a', 0xe2, 0x82, 0xac, 0]);
        fill(&mut array, &"");
        assert_eq!(array, [0; 5]);
    }
}
