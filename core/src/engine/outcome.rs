//! How a job ended, in words for the host.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::mirror::{End, Failure, FailureCause, Progress, Side};

/// What the target is after a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TargetState {
    /// Everything that the sync mode asked for was copied, and flushed; with `SyncMode::Full` it equals the source as of the
    /// switch-over.
    Complete,
    /// Not a copy.
    Incomplete,
}

/// How a job ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What the target is now.
    pub target: TargetState,
    /// Whether the drive stands on the target now.
    pub pivoted: bool,
    /// For how long guest requests were held at the switch-over; `None` if there was none.
    pub pause: Option<Duration>,
    /// Why the job failed, if it did.
    pub error: Option<Error>,
    /// Whether the host cancelled it.
    pub cancelled: bool,
    /// What was done.
    pub progress: Progress,
    /// Bytes that were not copied, in whole chunks.
    pub left_dirty_bytes: u64,
}

impl Outcome {
    /// Why the job did not complete, in words; `None` if it did.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        match (self.end, &self.error) {
            (End::Completed, _) => None,
            (End::Cancelled, Some(error)) => Some(format!("the job was cancelled, after it failed: {error}")),
            (End::Cancelled, None) => Some("the job was cancelled".into()),
            (End::Failed, Some(error)) => Some(error.to_string()),
            (End::Failed, None) => Some("the job failed".into()),
        }
    }
}

/// A failure in words; `names` are those of source and target.
pub(super) fn describe(failure: Failure, names: &[String; 2]) -> Error {
    let Failure { side, errno, range, cause } = failure;
    let (place, verb) = match side {
        Side::Source => (&names[0], "read the source"),
        Side::Target if range.is_empty() => (&names[1], "flush the target"),
        Side::Target => (&names[1], "write the target"),
    };
    let error = Error::from_errno(verb, errno).at(place);
    let error = if range.is_empty() { error } else { error.in_range(range) };
    let reason = std::io::Error::from_raw_os_error(errno);
    match cause {
        FailureCause::Io => error,
        FailureCause::Flush => {
            error.because(format!("{reason}; what was written may be lost, so copy again"))
        }
        FailureCause::SourceShrank => error
            .with_kind(ErrorKind::SourceShrank)
            .because("it became shorter while it was copied; the rest is gone"),
        FailureCause::GaveUp => error.because(format!("{reason}; given up after several tries")),
        FailureCause::Panic => Error::new(ErrorKind::Internal, "go on with the job")
            .because("a bug in blkmirror was caught; please report it"),
        FailureCause::QueueLost => Error::from_errno("mirror the drive", errno).at(place).because(
            "a queue of the guest ended while the kernel still had writes of it, which may land at any time; start the guest's \
             disk anew before it is mirrored",
        ),
        FailureCause::Ring => Error::from_errno("run the io_uring of a worker", errno),
    }
}
