//! The one error type.
//!
//! An [`Error`] says what kind of thing went wrong, what was attempted, where (a path or a device, an offset and a
//! length), why in words, and keeps the source. [`ErrorKind::errno`] is the only table from kinds to errno; the C border
//! and the exit codes are derived from it.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;

use crate::units::ByteRange;

/// A result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. New kinds may be added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument makes no sense, whatever the devices are.
    InvalidArgument,
    /// No such file or device.
    NotFound,
    /// The file or device may not be opened or used by this user.
    PermissionDenied,
    /// It exists but is not a block device or a regular file.
    WrongFileType,
    /// Its size or alignment does not fit the job.
    WrongSize,
    /// Somebody else uses it: mounted, locked, or the same device as the other side.
    Busy,
    /// The kernel, the file system or the device cannot do it.
    Unsupported,
    /// No space left on the target.
    NoSpace,
    /// A read or write failed on the medium.
    Io,
    /// The source became shorter while it was read.
    SourceShrank,
    /// A request did not finish in time.
    TimedOut,
    /// The job was cancelled.
    Cancelled,
    /// A bounded queue is full; try again later.
    QueueFull,
    /// The object is in the wrong state for the call.
    WrongState,
    /// Memory could not be had or locked.
    NoMemory,
    /// A bug in blkmirror was caught; the job failed, the host lives.
    Internal,
}

impl ErrorKind {
    /// Every kind, for tests and tables.
    pub const ALL: [Self; 16] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::PermissionDenied,
        Self::WrongFileType,
        Self::WrongSize,
        Self::Busy,
        Self::Unsupported,
        Self::NoSpace,
        Self::Io,
        Self::SourceShrank,
        Self::TimedOut,
        Self::Cancelled,
        Self::QueueFull,
        Self::WrongState,
        Self::NoMemory,
        Self::Internal,
    ];

    /// The errno that stands for this kind where only a number fits.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::InvalidArgument | Self::WrongSize => libc::EINVAL,
            Self::NotFound => libc::ENOENT,
            Self::PermissionDenied => libc::EACCES,
            Self::WrongFileType => libc::ENOTBLK,
            Self::Busy => libc::EBUSY,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::NoSpace => libc::ENOSPC,
            Self::Io | Self::SourceShrank => libc::EIO,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Cancelled => libc::ECANCELED,
            Self::QueueFull => libc::EAGAIN,
            Self::WrongState => libc::EPERM,
            Self::NoMemory => libc::ENOMEM,
            Self::Internal => libc::ENOTRECOVERABLE,
        }
    }

    /// The kind that an errno from the kernel belongs to.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EINVAL => Self::InvalidArgument,
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Self::NotFound,
            libc::EACCES | libc::EPERM | libc::EROFS => Self::PermissionDenied,
            libc::ENOTBLK | libc::EISDIR => Self::WrongFileType,
            libc::EBUSY | libc::ETXTBSY => Self::Busy,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => Self::Unsupported,
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ECANCELED => Self::Cancelled,
            libc::ENOMEM => Self::NoMemory,
            libc::EAGAIN => Self::QueueFull,
            _ => Self::Io,
        }
    }
}

/// What went wrong, what was attempted, where, and why.
///
/// Its text is one line: `cannot ATTEMPT WHERE: WHY`. The source, if any, is part of that line when no reason in words
/// was given, so printing the chain on top of it is never needed.
#[derive(Debug)]
pub struct Error(Box<Context>);

/// The fields of an [`Error`], boxed so that results stay small.
#[derive(Debug)]
struct Context {
    /// What kind of thing went wrong.
    kind: ErrorKind,
    /// What was attempted, as a verb phrase: "open the target".
    attempt: Cow<'static, str>,
    /// The file or device.
    place: Option<String>,
    /// The bytes it was about.
    range: Option<ByteRange>,
    /// The cause and what to do, in words.
    why: Option<String>,
    /// The errno or error below.
    source: Option<io::Error>,
}

impl Error {
    /// An error of `kind` while attempting `attempt` (a verb phrase such as "open the target").
    #[must_use]
    pub fn new(kind: ErrorKind, attempt: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Context {
            kind,
            attempt: attempt.into(),
            place: None,
            range: None,
            why: None,
            source: None,
        }))
    }

    /// An error from a failed system call; the kind follows from its errno.
    #[must_use]
    pub fn from_io(attempt: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = source.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        let mut error = Self::new(kind, attempt);
        error.0.source = Some(source);
        error
    }

    /// An error from a negative completion result, `-errno`.
    #[must_use]
    pub fn from_errno(attempt: impl Into<Cow<'static, str>>, errno: i32) -> Self {
        Self::from_io(attempt, io::Error::from_raw_os_error(errno))
    }

    /// Names the file or device.
    #[must_use]
    pub fn at(mut self, place: impl AsRef<Path>) -> Self {
        self.0.place = Some(place.as_ref().display().to_string());
        self
    }

    /// Names the bytes it was about.
    #[must_use]
    pub fn in_range(mut self, range: ByteRange) -> Self {
        self.0.range = Some(range);
        self
    }

    /// Says the cause in words, and what to do.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.0.why = Some(why.into());
        self
    }

    /// Replaces the kind where the errno alone says too little.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno: the kernel's own if there is one, else the kind's.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.0.source.as_ref().and_then(io::Error::raw_os_error).unwrap_or_else(|| self.0.kind.errno())
    }

    /// The file or device, if named.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    /// The bytes it was about, if named.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        self.0.range
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { attempt, place, range, why, source, .. } = &*self.0;
        write!(f, "cannot {attempt}")?;
        if let Some(place) = place {
            write!(f, " {place}")?;
        }
        if let Some(range) = range {
            write!(f, " at offset {} (length {})", range.start(), range.len())?;
        }
        match (why, source) {
            (Some(why), _) => write!(f, ": {why}"),
            (None, Some(source)) => write!(f, ": {source}"),
            (None, None) => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_errno_and_most_survive_the_way_back() {
        for kind in ErrorKind::ALL {
            let errno = kind.errno();
            assert!(errno > 0, "{kind:?}");
            let back = ErrorKind::from_errno(errno);
            let folded = match kind {
                ErrorKind::WrongSize => ErrorKind::InvalidArgument,
                ErrorKind::SourceShrank | ErrorKind::Internal => ErrorKind::Io,
                ErrorKind::WrongState => ErrorKind::PermissionDenied,
                other => other,
            };
            assert_eq!(back, folded, "{kind:?}");
        }
    }

    #[test]
    fn the_text_is_one_line_that_names_attempt_place_and_cause() {
        let e = Error::from_errno("write the target", libc::ENOSPC)
            .at("/dev/x")
            .in_range(ByteRange::at(4096, 512));
        assert_eq!(e.kind(), ErrorKind::NoSpace);
        assert_eq!(e.errno(), libc::ENOSPC);
        let text = e.to_string();
        assert!(
            text.starts_with("cannot write the target /dev/x at offset 4096 (length 512): No space left"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
