//! What the writers of a load do.
#![forbid(unsafe_code)]

use blkmirror_core::units::KIB;
use blkmirror_core::{Error, ErrorKind, Result};

use crate::pattern::Pattern;

/// When requests are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Open loop: so many requests per second, all writers together, whatever becomes of the ones before. A request's
    /// latency counts from the time at which it was to be sent.
    Open {
        /// Requests per second.
        per_s: u64,
    },
    /// Closed loop: each writer keeps its [depth](Plan::depth) of requests under way. For rates, not for latencies.
    Closed,
}

/// Where each writer writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Areas {
    /// Each in a part of the disk of its own.
    Disjoint,
    /// All of them everywhere, so that their writes meet.
    Shared,
}

/// What the writers of a load do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Which block is next.
    pub pattern: Pattern,
    /// Bytes of a request, a multiple of 4096.
    pub block_bytes: u64,
    /// How many writers, a thread and a queue each.
    pub writers: u16,
    /// Where each of them writes.
    pub areas: Areas,
    /// When requests are sent.
    pub arrival: Arrival,
    /// Requests that a writer has under way at most. In an open loop those above it wait, and their latency runs.
    pub depth: usize,
    /// Of 100 requests, so many are reads.
    pub reads_percent: u8,
    /// Of 100 requests that are no reads, so many write zeroes without data.
    pub zeroes_percent: u8,
    /// A writer flushes after so many requests; 0 is never.
    pub flush_every: u64,
    /// Every n-th write is to be durable when it completes; 0 is none.
    pub fua_every: u64,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            pattern: Pattern::Uniform,
            block_bytes: 4 * KIB,
            writers: 2,
            areas: Areas::Disjoint,
            arrival: Arrival::Open { per_s: 1000 },
            depth: 64,
            reads_percent: 0,
            zeroes_percent: 0,
            flush_every: 0,
            fua_every: 0,
            seed: 1,
        }
    }
}

impl Plan {
    /// Refuses what cannot be done on a disk of `size_bytes` with blocks of `align_bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with the reason.
    pub fn check(&self, size_bytes: u64, align_bytes: u64) -> Result<()> {
        let no =
            |why: String| Err(Error::new(ErrorKind::InvalidArgument, "write as a guest does").because(why));
        // Guests' buffers are whole pages here.
        let align_bytes = align_bytes.max(4 * KIB);
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(align_bytes) {
            return no(format!(
                "requests of {} bytes; the disk takes multiples of {align_bytes}",
                self.block_bytes
            ));
        }
        if self.writers == 0 || self.depth == 0 || self.arrival == (Arrival::Open { per_s: 0 }) {
            return no("nobody would write: writers, depth and rate must be 1 or more".into());
        }
        if self.reads_percent > 100 || self.zeroes_percent > 100 {
            return no("a share of the requests is at most 100 percent".into());
        }
        let wanted_bytes = self.block_bytes.saturating_mul(u64::from(self.writers));
        if size_bytes < wanted_bytes {
            return no(format!(
                "{} writers with requests of {} bytes need more than the disk's {size_bytes} bytes",
                self.writers, self.block_bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load that would write nothing, or would divide by nothing, is a mistake of whoever asked for it.
    #[test]
    fn what_cannot_be_done_is_refused_with_the_reason() {
        let check = |change: fn(&mut Plan)| {
            let mut plan = Plan::default();
            change(&mut plan);
            plan.check(1 << 20, 4096).map_err(|e| e.to_string())
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert!(check(|plan| plan.block_bytes = 512).unwrap_err().contains("multiples of 4096"));
        assert!(check(|plan| plan.writers = 0).unwrap_err().contains("nobody would write"));
        assert!(check(|plan| plan.arrival = Arrival::Open { per_s: 0 }).is_err());
        assert!(check(|plan| plan.writers = 1000).unwrap_err().contains("need more than the disk's"));
    }
}
