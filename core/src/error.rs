//! The one error type.
//!
//! An [`Error`] says what kind of thing went wrong, what was attempted, where (a path or a device, an offset and a
//! length), why in words, and keeps the source. [`ErrorKind::errno`] is the only table from kinds to errno, for the C border;
//! [`ErrorKind::from_errno`] is the way back.
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
    /// Its size or alignment does not fit the job, or the file system or `ulimit -f` takes no file of that size.
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
    /// A limit of the process or the machine is used up, such as that of open files.
    LimitReached,
    /// It was to be created and exists already.
    AlreadyExists,
    /// A bug in blkmirror was caught; the job failed, the host lives.
    Internal,
}

impl ErrorKind {
    /// Every kind, for tests and tables.
    pub const ALL: &'static [Self] = &[
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
        Self::LimitReached,
        Self::AlreadyExists,
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
            Self::LimitReached => libc::EMFILE,
            Self::AlreadyExists => libc::EEXIST,
            Self::Internal => libc::ENOTRECOVERABLE,
        }
    }

    /// The kind that an errno from the kernel belongs to.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP => Self::InvalidArgument,
            libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO => Self::NotFound,
            libc::EACCES | libc::EPERM | libc::EROFS => Self::PermissionDenied,
            libc::ENOTBLK | libc::EISDIR => Self::WrongFileType,
            libc::EBUSY | libc::ETXTBSY => Self::Busy,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => Self::Unsupported,
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            // Not `NoSpace`: to wait until somebody frees space does not help.
            libc::EFBIG => Self::WrongSize,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ECANCELED => Self::Cancelled,
            libc::ENOMEM => Self::NoMemory,
            libc::EMFILE | libc::ENFILE => Self::LimitReached,
            libc::EEXIST => Self::AlreadyExists,
            libc::EAGAIN => Self::QueueFull,
            _ => Self::Io,
        }
    }
}

/// What to do about an errno whose own text leaves people at a loss.
const fn advice(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EMFILE => Some("too many open files in this process; raise its limit (ulimit -n)"),
        libc::ENFILE => Some("too many open files on this machine; raise its limit (sysctl fs.file-max)"),
        libc::EFBIG => Some(
            "the file would become too large: above the process's limit (ulimit -f) or the file system's largest file",
        ),
        _ => None,
    }
}

/// What went wrong, what was attempted, where, and why.
///
/// Its text is one line: `cannot ATTEMPT WHERE: WHY`, whatever is in a file's name: control characters are shown as
/// escapes such as `\n`. The source, if any, is part of that line when no reason in words
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

    /// An error from a failed system call; the kind follows from its errno. Where the errno's own text says too little,
    /// a cause in words is set, which [`because`](Self::because) replaces.
    #[must_use]
    pub fn from_io(attempt: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = source.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        let mut error = Self::new(kind, attempt);
        error.0.why = source.raw_os_error().and_then(advice).map(str::to_owned);
        error.0.source = Some(source);
        error
    }

    /// An error from an errno, a positive number such as `libc::EIO`. A completion that failed carries `-errno`: pass its
    /// negative.
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

    /// What was attempted, as a verb phrase: "open the target".
    #[must_use]
    pub fn attempt(&self) -> &str {
        &self.0.attempt
    }

    /// The cause and what to do, if said in words; else the [source](StdError::source) is the cause. Unlike in the text of
    /// the whole, control characters are as they came.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.0.why.as_deref()
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

/// Passes text on with control characters and line separators escaped.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(breaks_the_line) {
            match piece.chars().next_back().filter(|last| breaks_the_line(*last)) {
                None => self.0.write_str(piece)?,
                Some(last) => {
                    self.0.write_str(piece.strip_suffix(last).unwrap_or_default())?;
                    write!(self.0, "{}", last.escape_default())?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a terminal or a log would take this for more than a character of a line.
fn breaks_the_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;

        let Context { attempt, place, range, why, source, .. } = &*self.0;
        let mut line = OneLine(f);
        write!(line, "cannot {attempt}")?;
        if let Some(place) = place {
            write!(line, " {place}")?;
        }
        if let Some(range) = range {
            write!(line, " at offset {} (length {})", range.start(), range.len())?;
        }
        match (why, source) {
            (Some(why), _) => write!(line, ": {why}"),
            (None, Some(source)) => write!(line, ": {source}"),
            (None, None) => Ok(()),
        }
    }
}

/// Hosts keep errors and hand them between threads; this does not compile if they no longer could.
const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Error>();
};

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
        for &kind in ErrorKind::ALL {
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

    #[test]
    fn a_line_break_in_a_name_does_not_make_a_second_line() {
        let text = Error::from_errno("open", libc::ENOENT)
            .at("a\nblkmirror: all is well\x1b[2J\u{2028}")
            .to_string();
        assert!(text.starts_with("cannot open a\\nblkmirror: all is well\\u{1b}[2J\\u{2028}: "), "{text}");
        let umlaut = Error::new(ErrorKind::Io, "open").at("größe 'x'").to_string();
        assert_eq!(umlaut, "cannot open größe 'x'");
    }

    #[test]
    fn a_limit_that_is_used_up_says_what_to_do() {
        let e = Error::from_errno("open the source", libc::EMFILE);
        assert_eq!((e.kind(), e.attempt()), (ErrorKind::LimitReached, "open the source"));
        assert!(e.why().unwrap().contains("ulimit -n"));
        let e = Error::from_errno("write the target", libc::EFBIG);
        assert_eq!((e.kind(), e.errno()), (ErrorKind::WrongSize, libc::EFBIG));
        assert!(e.to_string().contains("ulimit -f"), "{e}");
        assert_eq!(e.because("else").why(), Some("else"));
    }

    #[test]
    fn names_that_lead_nowhere_are_not_errors_of_the_medium() {
        for (errno, kind) in [
            (libc::ENAMETOOLONG, ErrorKind::InvalidArgument),
            (libc::ELOOP, ErrorKind::InvalidArgument),
            (libc::ENOTDIR, ErrorKind::NotFound),
            (libc::ENFILE, ErrorKind::LimitReached),
            (libc::EEXIST, ErrorKind::AlreadyExists),
        ] {
            assert_eq!(ErrorKind::from_errno(errno), kind, "{errno}");
        }
    }
}
