//! What a guest does to its disk, and the proof of what it did.
//!
//! The command's demo, the benchmarks and the end-to-end tests all need a disk that is written to while it is mirrored,
//! latencies that are not flattering, and a way to tell afterwards whether a target holds what it must. That is here:
//!
//! - [`Plan`] says what the writers do: a [`Pattern`], a block size, a rate or a depth, how many writers, and whether they
//!   may write to the same places. [`Load::start`] starts them, one thread each.
//! - [`GuestDisk`] is what a writer writes to: a drive's queue ([`QueueDisk`]), files that a tracker is told of ([`TrackedDisk`]), or memory ([`MemoryDisk`]).
//! - At a rate the load is *open loop*: every request has an intended time that does not depend on how the ones before it
//!   fared, and its latency counts from there. A disk that stands still for 50 ms is seen in every request that wanted
//!   to be sent in those 50 ms, as it is by a guest's users. (Waiting for a slow answer before the next request is
//!   sent hides that; it is known as coordinated omission.)
//! - Every sector that is written carries a [`stamp`]: who wrote it, its sequence number and its offset, and the
//!   rest of its bytes follow from these. The [`Ledger`] knows which of them may be there, so a target can be
//!   checked byte for byte ([`Ledger::verify`]).
//!
//! It may assume that it is alone on the disk: bytes that nobody here wrote count as wrong where something was written.
#![forbid(unsafe_code)]

mod disk;
mod latency;
mod ledger;
mod load;
mod memory;
mod pace;
mod pattern;
mod plan;
mod queue;
mod reader;
pub mod stamp;
mod tracked;
mod writer;

pub use disk::{Done, GuestDisk, Refused};
pub use hdrhistogram::Histogram;
pub use latency::{Latency, Period};
pub use ledger::{Ledger, Proof, Untouched, Wrong};
pub use load::Load;
pub use memory::{Fault, MemoryDisk, MemoryStore};
pub use pace::TICK_NS;
pub use pattern::Pattern;
pub use plan::{Areas, Arrival, Plan};
pub use queue::QueueDisk;
pub use reader::{DirectFile, PIECE_BYTES, ReadAt};
pub use stamp::WriteId;
pub use tracked::TrackedDisk;
