//! Guest I/O through the library: a queue of requests to a drive, one for each of the host's threads.
//!
//! ```text
//! host     read, write, write_zeroes, discard, flush --> submit, poll, wait --> pop
//!                      |                                        ^
//! Queue      thread check, eventfd, the ring              completions
//! QueueCore  accepted -> gate -> [drive] or [drive and target at once] -> settle -> answer
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `options` | what a host may choose |
//! | `owned` | [`Queue`]: the ring, made on the thread that uses it first; the eventfd |
//! | `core` | the logic over any ring: its lists, what is accepted, what is left to do |
//! | `turn` | out to the ring and back |
//! | `admit` | how a request gets inside: the gate, one side or both |
//! | `phase` | the life of a request as one table |
//! | `memory` | which requests go through the host's registered memory |
//! | `part` | one side of a request: short transfers, passing errors, zeroes |
//! | `end` | marks and answers |
//! | `request` | a request, and the table of all |
//! | `seats` | the devices on the ring, over pivots and jobs |
//!
//! What others may rely on: exactly one completion for each accepted request, none for a rejected one; a completion follows
//! the mark (**Mark after, before the ack**) and has the drive's result alone (**The guest is not our hostage**); nothing is
//! allocated for a request that succeeds (**Every buffer has a bound**). While the gate is closed requests are kept, in
//! order, and go on by themselves when it opens, wherever the drive stands then.
//!
//! What it assumes: the memory of a request is valid until its completion (an owned buffer always is), and with
//! [`QueueOptions::stable_buffers`] unchanged.
#![forbid(unsafe_code)]

mod admit;
mod core;
mod end;
mod memory;
mod options;
mod owned;
mod part;
mod phase;
#[cfg(test)]
mod real;
mod request;
mod seats;
#[cfg(test)]
mod simulated;
mod turn;

use std::fmt;

#[cfg(any(test, feature = "sim"))]
pub(crate) use self::{core::QueueCore, request::Wish};
pub use memory::RegisteredMemory;
pub use options::{QueueOptions, WriteFlags, ZeroFlags};
pub use owned::{Queue, QueueWaker};

use crate::buffer::GuestBuffer;
use crate::error::{Error, Result};

/// The end of a request.
#[derive(Debug)]
pub struct GuestCompletion {
    /// What the host called the request.
    pub tag: u64,
    /// How it ended on the drive.
    pub result: Result<()>,
    /// The host's buffer. `None` for requests without data, and while [`memory_in_use`](Self::memory_in_use); it is never freed
    /// then.
    pub buffer: Option<GuestBuffer>,
    /// The queue's ring broke, and the kernel may still use the memory of this request, to read or to write. Memory that the host
    /// has vouched for must not be freed or used otherwise for as long as the process lives; see [`Queue`].
    pub memory_in_use: bool,
}

/// A request that was not accepted; it will have no completion.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub error: Error,
    /// The host's buffer, unused.
    pub buffer: Option<GuestBuffer>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Rejected {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        rejected.error
    }
}
