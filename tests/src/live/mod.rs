//! What the tests of live jobs share: a disk that guests write to, the proof of what they wrote, a job on it.
//!
//! | file | idea |
//! |---|---|
//! | `history` | which write may be found where, at the end and as of a moment |
//! | `guest` | threads that write, through a tracker |
//! | `queued` | the same through a queue |
//! | `scene` | a disk, its target, an engine and a job, with the waits that a test needs |
//! | `soon` | how soon something is over, by time that the machine gave us |
//! | `served` | a disk that `qemu-storage-daemon` serves, with faults at chosen times, or with latency |
//! | `watchdog` | ends a test that hangs, and tells where |
//!
//! What is tested is `crate::api`: these files are a part of two crates, see `tests/through-c`.
#![forbid(unsafe_code)]

mod guest;
mod history;
mod queued;
mod scene;
mod served;
mod soon;
mod watchdog;

pub use guest::{GuestPlan, Guests};
pub use history::{History, Kind, SECTOR_BYTES, Write};
pub use scene::{Medium, Place, Scene, events_of, statuses_of, until, until_status, until_synced};
pub use served::{Inject, Served};
pub use soon::{CANCELLED_WITHIN, cancel_soon, timed};

/// How the tests go to the library. Whatever is the same both ways is written once; the few places that look at this are listed,
/// with their reasons, in `tests/through-c/tests/complete.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By the Rust API.
    Rust,
    /// By the functions of the C library.
    C,
}

/// The errno of a bad block.
pub const EIO: i32 = 5;
/// The errno of a full disk.
pub const ENOSPC: i32 = 28;
