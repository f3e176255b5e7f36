//! A ring without a kernel: deterministic from a seed.
//!
//! A [`World`] holds virtual time, one source of chance and the rules; [`SimDisk`]s are disks in memory. Requests on a
//! [`SimRing`] take a random time, complete out of order, transfer less than asked for, fail, or never come back, as the
//! [`Faults`] of the world or of the disk say. Every 4 KiB block of a transfer is taken over at its own moment between
//! submission and completion, so a write that races a read is torn as on a real device. What was not flushed may be lost
//! block by block when a disk crashes.
//!
//! One thread turns all workers: [`SimRing::due_ns`] says when a ring has something to do, and whoever drives the
//! simulation moves the clock to the earliest ([`World::advance_to`]). The same seed gives the same run.
//!
//! | file | what is in it |
//! |---|---|
//! | `world` | time, chance, faults |
//! | `disk` | content, what is durable, how long requests take |
//! | `cache` | which versions of a block a crash may leave behind |
//! | `ring` | requests under way and their ends |
#![forbid(unsafe_code)]

mod cache;
mod disk;
mod ring;
#[cfg(test)]
mod tests;
mod world;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use disk::SimDisk;
pub use ring::SimRing;
pub use world::{Faults, World};

use crate::units::{ByteRange, bytes_usize};

/// What transfers are torn by, and the unit of holes and of what a crash loses.
const BLOCK: u64 = 4096;

/// Takes a lock whose holder cannot have left anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The blocks that a range touches.
fn blocks_of(range: ByteRange) -> std::ops::Range<usize> {
    bytes_usize(range.start() / BLOCK)..bytes_usize(range.end().div_ceil(BLOCK))
}
