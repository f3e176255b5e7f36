//! What a host hears of a job.

use crate::mirror::{ErrorAction, Notice, Side};
use crate::units::ByteRange;

/// Something that happened to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A request failed for good.
    Error {
        /// Which side.
        side: Side,
        /// What the kernel said.
        errno: i32,
        /// The bytes it was about; empty for a flush.
        range: ByteRange,
        /// What is done about it.
        action: ErrorAction,
    },
    /// An error policy stopped the job; `Job::resume` goes on.
    Stopped {
        /// Whether that was for lack of space on the target.
        no_space: bool,
    },
    /// A stopped job goes on.
    Resumed,
    /// The job is over.
    Concluded,
    /// So many events were lost because nobody took them.
    Overflow(u64),
}

impl Event {
    /// What the host hears of a notice.
    pub(super) fn of(notice: Notice) -> Option<Self> {
        match notice {
            Notice::Error { side, errno, range, action } => Some(Self::Error { side, errno, range, action }),
            _ => None,
        }
    }
}
