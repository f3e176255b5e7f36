//! How the command ends: exit codes, and the failure that carries one together with its line of text.
//!
//! The codes are a promise to scripts and stand in `--help` and in the man page. Everything that ends badly becomes a
//! [`Failure`]; `main` prints it as one line and turns it into the process's exit code.
#![forbid(unsafe_code)]

use std::fmt;

use blkmirror_core::Error;

/// The exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Done; for `compare`: equal.
    Done,
    /// It failed; for `compare` and `--verify`: the two differ.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// SIGINT or SIGTERM.
    Interrupted,
}

impl Exit {
    /// The number that the process exits with.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Interrupted => 130,
        }
    }
}

/// A bad end: what to say, and with which code to leave.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// One line, without the leading `blkmirror: `.
    pub(crate) text: String,
}

impl Failure {
    /// Something did not work.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, text: text.into() }
    }

    /// The command line makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, text: text.into() }
    }

    /// A signal asked for the end.
    pub(crate) fn interrupted(text: impl Into<String>) -> Self {
        Self { exit: Exit::Interrupted, text: text.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A result of a step of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;
    use blkmirror_core::ErrorKind;

    /// Scripts depend on these numbers.
    #[test]
    fn exit_codes_are_as_documented() {
        let codes = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Interrupted].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 130]);
    }

    /// An EINVAL from a device is no mistake on the command line.
    #[test]
    fn errors_of_devices_are_failures_not_usage() {
        let failure = Failure::from(Error::new(ErrorKind::InvalidArgument, "open the source").at("/x"));
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(failure.text, "cannot open the source /x");
    }
}
