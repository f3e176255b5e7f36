//! Rests between two pieces, for the guest's sake.
//!
//! Below one small request at a time nothing is gained by smaller ones: on a disk that takes milliseconds for any
//! request they cost the guest as much and copy less. There the copiers rest after each piece, in proportion to what the
//! piece took. So their share of the disk's time is the same on fast and slow disks, and evenly spread: a guest's p99 does not
//! care how seldom the copiers work if all that they do comes at once.
//!
//! Nor does it care which worker copies. So the rest is the job's: where there is one, nobody begins while another worker
//! has something on its way, or before the rest after that is over. One word says how many workers are at work and since when,
//! or, when none is, when the last one ended. Who begins swaps the very word that it has judged; of two that find the rest
//! over, one fails to, and looks again. What the work took is written before the word that says that it has ended, and only
//! by the worker that is the last; so whoever swaps that word has judged by the time that belongs to it.
#![forbid(unsafe_code)]

use crate::bitmap::sync::{AtomicU64, Ordering};

/// What a rest is counted in: quarters of the time that the piece took.
const QUARTERS: u64 = 4;
/// A rest is no longer than this: after a disk hung for a second, the copy need not stand still for seven.
const LONGEST_NS: u64 = 200_000_000;
/// Who finds another worker at work looks again after this: nobody tells it of the end.
const LOOK_NS: u64 = 1_000_000;
/// The unit of times in the word is 2^10 ns, which leaves the upper 10 bits for the number of workers; there are 256 at most.
const UNIT_BITS: u32 = 10;
/// One worker, in the word.
const ONE: u64 = 1 << (u64::BITS - UNIT_BITS);

/// When the copiers of a job work and when they rest.
#[derive(Debug)]
pub struct Rest {
    /// Workers with something on its way, and since when; with none, when the last ended.
    word: AtomicU64,
    /// What the work before that took.
    took_ns: AtomicU64,
}

impl Default for Rest {
    fn default() -> Self {
        Self { word: AtomicU64::new(0), took_ns: AtomicU64::new(0) }
    }
}

impl Rest {
    /// A worker with nothing on its way is about to send something, and rests so many quarters after each piece.
    ///
    /// # Errors
    /// When it must rest now: until when.
    pub fn begin(&self, quarters: u8, now_ns: u64) -> Result<(), u64> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if let Some(until_ns) = self.until_ns(word, quarters, now_ns) {
                return Err(until_ns);
            }
            let next = if word < ONE { ONE | now_ns >> UNIT_BITS } else { word + ONE };
            match self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(changed) => word = changed,
            }
        }
    }

    /// A worker that began has nothing on its way any more.
    pub fn end(&self, now_ns: u64) {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let next = if word >> (u64::BITS - UNIT_BITS) == 1 {
                self.took_ns.store(now_ns.saturating_sub(word << UNIT_BITS), Ordering::Relaxed);
                now_ns >> UNIT_BITS
            } else {
                word - ONE
            };
            match self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(changed) => word = changed,
            }
        }
    }

    /// Whether a worker that would begin now would have to rest.
    #[must_use]
    pub fn is_on(&self, quarters: u8, now_ns: u64) -> bool {
        self.until_ns(self.word.load(Ordering::Acquire), quarters, now_ns).is_some()
    }

    /// Until when to rest from now on, as the word says.
    fn until_ns(&self, word: u64, quarters: u8, now_ns: u64) -> Option<u64> {
        if quarters == 0 || word == 0 {
            return None;
        }
        if word >= ONE {
            return Some(now_ns.saturating_add(LOOK_NS));
        }
        let took_ns = self.took_ns.load(Ordering::Relaxed);
        let rest_ns = (took_ns.saturating_mul(quarters.into()) / QUARTERS).min(LONGEST_NS);
        Some((word << UNIT_BITS).saturating_add(rest_ns)).filter(|&until_ns| until_ns > now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// About a microsecond, the unit of the word.
    const US: u64 = 1024;

    #[test]
    fn a_rest_is_in_proportion_to_the_work_and_bounded() {
        let rest = Rest::default();
        assert_eq!(rest.begin(28, 100 * US), Ok(()), "nothing was done yet");
        rest.end(500 * US);
        assert_eq!(rest.begin(4, 600 * US), Err(900 * US));
        assert!(rest.is_on(4, 899 * US) && !rest.is_on(4, 900 * US) && !rest.is_on(0, 600 * US));
        assert_eq!(rest.begin(28, 600 * US), Err((500 + 7 * 400) * US));
        assert_eq!(rest.begin(4, 900 * US), Ok(()));
        rest.end(1000 * US);
        assert_eq!(rest.begin(0, 1001 * US), Ok(()), "no rest is asked for");
        rest.end(1_000_000 * US);
        assert_eq!(rest.begin(28, 1_000_000 * US), Err(1_000_000 * US + LONGEST_NS));
    }

    /// Were what two workers do at once rested for apart, the longer would go on in the other's rest.
    #[test]
    fn workers_that_are_at_work_together_rest_together() {
        let rest = Rest::default();
        assert_eq!((rest.begin(0, 100 * US), rest.begin(0, 200 * US)), (Ok(()), Ok(())));
        rest.end(300 * US);
        assert_eq!(rest.begin(4, 300 * US), Err(300 * US + LOOK_NS), "one is still at work");
        rest.end(500 * US);
        assert_eq!(rest.begin(4, 600 * US), Err(900 * US));
    }
}
