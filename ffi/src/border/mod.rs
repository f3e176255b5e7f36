//! The border: everything that comes from C or goes there passes through here.
//!
//! | file | idea |
//! |---|---|
//! | `handle` | objects behind opaque pointers: made, borrowed, given up; NULL, other processes, poison |
//! | `sized` | structures that may grow: options in, facts out |
//! | `text` | strings from C, texts to C, the text of the last error of a thread |
//! | `process` | whether this is the process that made an object |
//! | `sum` | plain numbers for C from what core has |
//!
//! What it may assume: a pointer that is not NULL points to what the header says, for as long as the header says. What it assumes
//! of nobody: that numbers, flags, sizes and strings make sense. No panic passes: it is caught, the object is poisoned, and the
//! caller gets `-ENOTRECOVERABLE`.

pub(crate) mod handle;
pub(crate) mod process;
pub(crate) mod sized;
pub(crate) mod sum;
pub(crate) mod text;

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use blkmirror_core::{Error, ErrorKind, Result};

/// What a function answers with when all went well: a number that is not negative.
pub(crate) trait Answer {
    /// That number.
    fn number(self) -> c_int;
}

impl Answer for () {
    fn number(self) -> c_int {
        0
    }
}

impl Answer for bool {
    fn number(self) -> c_int {
        c_int::from(self)
    }
}

impl Answer for usize {
    fn number(self) -> c_int {
        c_int::try_from(self).unwrap_or(c_int::MAX)
    }
}

/// Keeps the error's text for the calling thread and gives its number: `-errno`.
pub(crate) fn fail(error: &Error) -> c_int {
    text::keep(error);
    tracing::debug!("{error}");
    -error.errno()
}

/// An argument that makes no sense.
pub(crate) fn invalid(attempt: &'static str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, attempt).because(why)
}

/// The error in place of a panic.
pub(crate) fn bug(attempt: &'static str) -> Error {
    Error::new(ErrorKind::Internal, attempt)
        .because("a bug in blkmirror was caught; please report it. This object is of no use any more")
}

/// Runs what has no object that could be poisoned.
pub(crate) fn guard<R: Answer>(attempt: &'static str, body: impl FnOnce() -> Result<R>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(answer)) => answer.number(),
        Ok(Err(error)) => fail(&error),
        Err(_) => fail(&bug(attempt)),
    }
}
