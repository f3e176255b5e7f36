//! Errors of C: a number, and a text.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use blkmirror::blkm_error_msg;
use blkmirror_core::error::ErrorKind as Kind;

/// A result with an error of C.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What C tells of an error: its errno. Two kinds of core that have the same one are the same here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorKind(i32);

/// The kinds by core's names.
#[allow(non_upper_case_globals, reason = "as in core, where they are variants")]
impl ErrorKind {
    /// `-EINVAL`.
    pub const InvalidArgument: Self = Self(Kind::InvalidArgument.errno());
    /// `-EINVAL`.
    pub const WrongSize: Self = Self(Kind::WrongSize.errno());
    /// `-EBUSY`.
    pub const Busy: Self = Self(Kind::Busy.errno());
    /// `-EAGAIN`.
    pub const QueueFull: Self = Self(Kind::QueueFull.errno());
    /// `-EPERM`.
    pub const WrongState: Self = Self(Kind::WrongState.errno());

    /// The number.
    #[must_use]
    pub fn errno(self) -> i32 {
        self.0
    }
}

/// An error as C tells of it.
#[derive(Clone, Debug)]
pub struct Error {
    /// Positive.
    errno: i32,
    /// In words.
    text: String,
}

impl Error {
    /// The error of a call that has just returned this on this thread.
    pub(super) fn of_call(ret: c_int) -> Self {
        Self::told(ret, blkm_error_msg())
    }

    /// An error that C told of with a text.
    pub(super) fn told(ret: c_int, text: *const c_char) -> Self {
        assert!(!text.is_null(), "an error without a text: {ret}");
        // SAFETY: it is not NULL and ends with a 0; it stays until the next call on this thread or queue, which is later.
        let text = unsafe { CStr::from_ptr(text) };
        Self::new(ret, text.to_str().expect("texts are UTF-8").to_owned())
    }

    /// An error with a text that was copied.
    pub(super) fn new(ret: c_int, text: String) -> Self {
        assert!(ret < 0, "{ret} is no error: {text}");
        assert!(text.starts_with("cannot "), "{ret}: {text:?}");
        Self { errno: -ret, text }
    }

    /// What C tells of its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind(self.errno)
    }

    /// The number.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// What a function has returned, right after it has.
pub(super) fn check(ret: c_int) -> Result<c_int> {
    if ret < 0 { Err(Error::of_call(ret)) } else { Ok(ret) }
}

/// The same of a function that cannot fail here.
#[track_caller]
pub(super) fn must(ret: c_int) -> c_int {
    match check(ret) {
        Ok(ret) => ret,
        Err(error) => panic!("{error}"),
    }
}
