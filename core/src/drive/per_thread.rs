//! What each thread keeps for itself, so that requests of two threads do not meet on a cache line: where it looks first
//! in sharded tables, and when it reads the clock.
//!
//! It is shared by all drives of the process. Nothing depends on its values but speed, so a thread that is being torn
//! down does without.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The shard of a thread that has not asked yet.
const NONE: usize = usize::MAX;
/// One request in this many has its time taken; a power of two.
pub(super) const SAMPLE_ONE_IN: u64 = 8;
/// The step of a linear congruential generator with the period 2^64 (Knuth's MMIX).
const STEP: (u64, u64) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);

thread_local! {
    /// This thread's shard.
    static SHARD: Cell<usize> = const { Cell::new(NONE) };
    /// This thread's chance.
    static CHANCE: Cell<u64> = const { Cell::new(0) };
}

/// The shard of this thread among `count`, a power of two. Threads get them in turn.
#[inline]
pub(super) fn shard(count: usize) -> usize {
    let shard = SHARD.try_with(Cell::get).unwrap_or(0);
    (if shard == NONE { first_shard() } else { shard }) & (count - 1)
}

/// Gives this thread its shard.
#[cold]
fn first_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let shard = NEXT.fetch_add(1, Ordering::Relaxed) & (NONE >> 1);
    let _ = SHARD.try_with(|own| own.set(shard));
    shard
}

/// Whether this request is one whose time is taken.
///
/// By chance and not each eighth: a thread that serves eight disks in turn would measure one of them only.
#[inline]
pub(super) fn is_sampled() -> bool {
    let draw = |chance: &Cell<u64>| {
        let next = chance.get().wrapping_mul(STEP.0).wrapping_add(STEP.1);
        chance.set(next);
        next >> (64 - SAMPLE_ONE_IN.trailing_zeros())
    };
    CHANCE.try_with(draw).is_ok_and(|drawn| drawn == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_eight_is_sampled_also_of_each_disk_in_turn() {
        let mut of_disk = [0_u32; 8];
        for request in 0..80_000 {
            of_disk[request % 8] += u32::from(is_sampled());
        }
        assert!(of_disk.iter().all(|&count| (1000..1500).contains(&count)), "{of_disk:?}");
    }

    #[test]
    fn a_thread_stays_on_its_shard_and_the_next_gets_another() {
        let own = shard(64);
        assert_eq!(own, shard(64));
        assert_eq!(own & 7, shard(8));
        assert!((0..3).any(|_| std::thread::spawn(|| shard(64)).join().unwrap() != own));
    }
}
