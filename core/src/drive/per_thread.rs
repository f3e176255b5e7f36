//! What each thread keeps for itself, so that requests of two threads do not meet on a cache line: where it looks
//! first in sharded tables, and when it reads the clock.
//!
//! It is shared by all drives of the process. Nothing depends on its values but speed, so a thread that is being torn
//! down does without.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The shard of a thread that has not asked yet.
const NONE: usize = usize::MAX;
/// One request in this many has its time taken.
const ONE_IN: u64 = 8;
/// The same for a thread whose requests come faster than [`FAST_NS`] one after the other: there are enough of them.
const ONE_IN_FAST: u64 = 64;
/// See [`ONE_IN_FAST`].
const FAST_NS: u64 = 2_000;
/// How fast they come is judged by so many at least: a batch that comes at once is no stream.
const JUDGED: u64 = 512;
/// The step of a linear congruential generator with the period 2^64 (Knuth's MMIX).
const STEP: (u64, u64) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);

thread_local! {
    /// This thread's shard.
    static SHARD: Cell<usize> = const { Cell::new(NONE) };
    /// Which requests of this thread have their time taken.
    static SAMPLER: Sampler = const {
        Sampler {
            chance: Cell::new(0),
            one_in: Cell::new(ONE_IN),
            requests: Cell::new(0),
            judged_ns: Cell::new(0),
        }
    };
}

/// Which requests of a thread have their time taken.
struct Sampler {
    /// The state of the generator.
    chance: Cell<u64>,
    /// How many requests one is chosen from; a power of two.
    one_in: Cell<u64>,
    /// Requests since it was judged last how fast they come.
    requests: Cell<u64>,
    /// When that was.
    judged_ns: Cell<u64>,
}

impl Sampler {
    /// See [`sampled_ns`].
    #[inline]
    fn draw(&self, now_ns: impl FnOnce() -> u64) -> u64 {
        let next = self.chance.get().wrapping_mul(STEP.0).wrapping_add(STEP.1);
        self.chance.set(next);
        self.requests.set(self.requests.get() + 1);
        if (next >> 32) & (self.one_in.get() - 1) != 0 {
            return 0;
        }
        let now_ns = now_ns();
        let took_ns = now_ns.saturating_sub(self.judged_ns.get());
        let fast = took_ns < self.requests.get() * FAST_NS;
        if !fast || self.requests.get() >= JUDGED {
            self.one_in.set(if fast { ONE_IN_FAST } else { ONE_IN });
            self.requests.set(0);
            self.judged_ns.set(now_ns);
        }
        now_ns
    }
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

/// Makes this thread pass for the host's thread with this number: a simulation has one thread for all.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn act_as(number: usize) {
    let _ = SHARD.try_with(|own| own.set(number));
}

/// Makes this thread draw as one that was just started, so that a simulation does not depend on what ran before it.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn start_anew() {
    let _ = SAMPLER.try_with(|sampler| {
        sampler.chance.set(0);
        sampler.one_in.set(ONE_IN);
        sampler.requests.set(0);
        sampler.judged_ns.set(0);
    });
}

/// The time now if this request is one whose time is taken, else 0.
///
/// By chance and not each eighth: a thread that serves eight disks in turn would measure one of them only.
#[inline]
pub(super) fn sampled_ns(now_ns: impl FnOnce() -> u64) -> u64 {
    SAMPLER.try_with(|sampler| sampler.draw(now_ns)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_eight_is_sampled_also_of_each_disk_in_turn_and_fewer_when_they_are_many() {
        for (apart_ns, expected) in [(10_000, 1000..1500), (100, 100..250)] {
            let mut of_disk = [0_u32; 8];
            for request in 0..80_000_u64 {
                let sampled = sampled_ns(|| (request + 1) * apart_ns) != 0;
                of_disk[usize::try_from(request % 8).unwrap()] += u32::from(sampled);
            }
            assert!(of_disk.iter().all(|count| expected.contains(count)), "{of_disk:?}");
        }
    }

    /// A guest that is taken for idle because nothing is sampled meets a copy at full speed.
    #[test]
    fn requests_that_come_in_pairs_are_sampled_as_often_as_others() {
        let sampled = (0..80_000_u64).filter(|n| sampled_ns(|| (n / 2 + 1) * 2_000_000 + n % 2 * 500) != 0);
        let (mut last, mut longest, mut count) = (0, 0, 0);
        for request in sampled {
            (longest, count) = (longest.max(request - last), count + 1);
            last = request;
        }
        assert!((9_000..11_000).contains(&count) && longest < 150, "{count}, longest gap {longest}");
    }

    #[test]
    fn a_thread_stays_on_its_shard_and_the_next_gets_another() {
        let own = shard(64);
        assert_eq!(own, shard(64));
        assert_eq!(own & 7, shard(8));
        assert!((0..3).any(|_| std::thread::spawn(|| shard(64)).join().unwrap() != own));
    }
}
