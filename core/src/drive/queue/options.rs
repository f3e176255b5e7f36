//! What a host may choose: for a queue, for a write, for zeroes. And the bounds of it.
#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind, Result};
use crate::units::MIB;

/// The deepest queue: both parts of every request, and as many again that a dead target keeps, fit in one ring.
const MAX_DEPTH: usize = 1024;
/// The most staging memory; offsets in it are 32 bits wide, and nobody has use for more.
const MAX_STAGING_BYTES: u64 = 1024 * MIB;

/// What a queue is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueOptions {
    /// Requests that are accepted and not yet popped at most, 1 to 1024. As many as the guest can have under way on this queue: the
    /// sum of the sizes of the virtqueues that its thread serves. A deeper one costs memory.
    pub depth: usize,
    /// Memory for the stable copies that write-blocking needs, at most 1 GiB; rounded up to what the kernel maps. A write
    /// that finds no room in it goes to the drive alone and is copied later.
    pub staging_bytes: u64,
    /// Keep an eventfd that is readable when there may be something to [`poll`](super::Queue::poll) for.
    pub eventfd: bool,
    /// Take up the drive's memory regions ([`Drive::map_memory`](crate::drive::Drive::map_memory)), which pins them once more. A
    /// queue for rare requests does without: those work all the same, and count as using a region as those of any queue.
    pub regions: bool,
    /// The host promises that the data of a write does not change before its completion, so that write-blocking needs no
    /// copy of it. The price: both sides are written from the host's memory, so while a target hangs the write does not
    /// complete, even when its job has failed.
    pub stable_buffers: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { depth: 256, staging_bytes: 4 * MIB, eventfd: true, regions: true, stable_buffers: false }
    }
}

impl QueueOptions {
    /// Requests that its ring must hold: both parts of every request, and as many again that a dead target keeps.
    pub(super) fn ring_requests(&self) -> u32 {
        u32::try_from(self.depth * 4).unwrap_or(u32::MAX)
    }

    /// Refuses what is out of bounds.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::new(ErrorKind::InvalidArgument, "make a queue").because(why));
        if !(1..=MAX_DEPTH).contains(&self.depth) {
            return wrong(format!("a depth of {} is not possible; choose 1 to {MAX_DEPTH}", self.depth));
        }
        if self.staging_bytes > MAX_STAGING_BYTES {
            let (asked, most) = (self.staging_bytes, MAX_STAGING_BYTES);
            return wrong(format!("{asked} bytes of staging memory are too many; choose up to {most}"));
        }
        Ok(())
    }
}

/// How a write is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteFlags {
    /// The data is durable when the write completes (forced unit access).
    pub fua: bool,
    /// The host promises for this write what [`QueueOptions::stable_buffers`] promises for all.
    pub stable: bool,
}

/// How zeroes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// Space may be given back.
    pub punch: bool,
    /// The zeroes are durable when the request completes.
    pub fua: bool,
    /// Fail with `EOPNOTSUPP` where zeroes would be written as data, by us or by the kernel, which takes as long as a write; for a
    /// host that only asks whether there is a faster way. The target of a job may still be written zeroes.
    pub no_fallback: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bounded_queues_are_made() {
        assert!(QueueOptions::default().check().is_ok());
        for depth in [0, MAX_DEPTH + 1, usize::MAX] {
            let text = QueueOptions { depth, ..QueueOptions::default() }.check().unwrap_err().to_string();
            assert!(text.contains("1 to 1024") && text.contains(&depth.to_string()), "{text}");
        }
        assert!(QueueOptions { staging_bytes: u64::MAX, ..QueueOptions::default() }.check().is_err());
        assert!(QueueOptions { staging_bytes: 0, ..QueueOptions::default() }.check().is_ok());
    }
}
