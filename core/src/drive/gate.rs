//! The gate of a drive: lets requests in, knows who is inside, and can be closed.
//!
//! A request takes a *pass* before it is sent to the device and gives it back after it completed, was marked in the
//! bitmaps of a job, and before its author hears of it. With the gate closed and every pass back, no request is under way and
//! none will be before it is opened: the moment in which "nothing is dirty" is final (*Zero is decided behind the
//! gate*) and the drive may be moved to another device.
//!
//! # How
//!
//! A fixed table of slots; a slot's word holds its state (free, busy, leaving) and a sequence number that each use changes. A pass is a slot's
//! number and that sequence number, so a pass that is given back twice, or was never given out, is told
//! from a good one, and the gate is not harmed by it. The table is cut into shards, and a thread starts its search in its own: threads
//! meet on a cache line only when a request ends on another thread than it began on.
//!
//! # Memory order
//!
//! *Closed and quiet.* Who enters writes the slot, then reads the flag; who closes writes the flag, then reads the slots (Dekker).
//! All four are sequentially consistent, so there is one order of them all. If who enters reads "open", that read comes before the
//! write of the flag, so his slot was busy before any look at it that follows the closing: the look sees it. If he reads
//! "closed", he gives the slot back and stays outside. A look that sees a slot busy that is only being tried errs on the safe side.
//! On x86-64 this is one `lock cmpxchg` and plain loads on the side of the requests.
//!
//! *What was done inside is seen.* Giving back stores the slot with release order, the look loads it with acquire order: whoever sees the gate
//! quiet sees every mark that was made inside. A slot that was taken and given back several times keeps this, because taking it is a
//! read-modify-write with acquire order, and so what one user released the next one passes on.
//!
//! *What was done behind the closed gate is seen.* Opening stores the flag with release order. Who reads "open" and got it from a store before the
//! closing has his slot busy before the look, see above, so there was no quiet; who got it from the opening sees the pivot.
//!
//! *Ending is claimed first.* [`Gate::start_leaving`] makes the slot "leaving" in one compare-exchange: of two threads that end the same pass,
//! one marks and gives back, the other is told so and has changed nothing.
//!
//! # A pass that is never given back
//!
//! Its slot stays busy for as long as the drive lives. The gate is never quiet again, so every switch-over runs into its time
//! limit, opens the gate and says so; requests go on as before, and nothing hangs. A host that loses them again and again runs out of passes after
//! [`PASSES`], and is told [`Enter::Full`] from then on.
#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64 as Counter;

use super::per_thread;
use crate::bitmap::sync::{AtomicU64, Ordering};

/// Passes of a gate.
pub const PASSES: usize = SHARDS * SLOTS;
/// Shards; a power of two.
pub(super) const SHARDS: usize = if cfg!(loom) { 2 } else { 64 };
/// Slots in a shard; a power of two.
const SLOTS: usize = if cfg!(loom) { 1 } else { 64 };

/// The bits of a pass that are the slot's number.
const INDEX_BITS: u32 = PASSES.trailing_zeros();
/// A slot's state, the low bits of its word: nobody's.
const FREE: u64 = 0;
/// A request is inside.
const BUSY: u64 = 1;
/// A request has completed and is being marked.
const LEAVING: u64 = 2;
/// All bits of the state.
const STATE: u64 = 3;
/// What a use of a slot adds to its word.
const NEXT_USE: u64 = STATE + 1;
/// The bits of a sequence number: what a pass has room for beside the slot's number.
const SEQUENCE: u64 = u64::MAX >> INDEX_BITS;

/// The right to be inside the gate: a slot and which use of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pass(u64);

/// What [`Gate::enter`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enter {
    /// Inside; the pass must be given back.
    In(Pass),
    /// The gate is closed; try again when it is open.
    Closed,
    /// Every pass is out; try again when one came back.
    Full,
}

/// Slots that the same threads mostly use, away from the cache lines of others.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    /// Where to look first; a hint.
    next: Counter,
    /// The slots.
    slots: [AtomicU64; SLOTS],
}

/// The gate; see the module.
#[derive(Debug)]
pub struct Gate {
    /// 1 while it is closed.
    closed: AtomicU64,
    /// The slots.
    shards: Box<[Shard]>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// An open gate with nobody inside.
    #[must_use]
    pub fn new() -> Self {
        // Sequence numbers start elsewhere in each gate, so that a pass of one means nothing to another.
        static GATES: Counter = Counter::new(1);
        let start = GATES.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !STATE;
        let shard =
            |_| Shard { next: Counter::new(0), slots: std::array::from_fn(|_| AtomicU64::new(start | FREE)) };
        Self { closed: AtomicU64::new(0), shards: (0..SHARDS).map(shard).collect() }
    }

    /// Takes a pass.
    #[inline]
    #[must_use]
    pub fn enter(&self) -> Enter {
        if self.is_closed() {
            return Enter::Closed;
        }
        let own = per_thread::shard(SHARDS);
        for distance in 0..SHARDS {
            let shard = (own + distance) & (SHARDS - 1);
            if let Some((slot, word)) = self.shards[shard].take() {
                return self.enter_with(shard, slot, word);
            }
        }
        Enter::Full
    }

    /// The second half of entering: looks at the flag, with `slot` busy; `word` is what it held before.
    #[inline]
    fn enter_with(&self, shard: usize, slot: usize, word: u64) -> Enter {
        fence_of_model();
        if self.closed.load(Ordering::SeqCst) == 0 {
            let index = (shard * SLOTS + slot) as u64;
            return Enter::In(Pass(((word / NEXT_USE) & SEQUENCE) << INDEX_BITS | index));
        }
        // Nobody got the pass, so the sequence number may be used again.
        self.shards[shard].slots[slot].store(word, Ordering::Release);
        Enter::Closed
    }

    /// Claims the ending of `pass`: of all who try, one gets `true`, and must [finish](Self::finish_leaving).
    ///
    /// `false`: this pass is not inside; it was given back before, or is none of this gate's.
    #[inline]
    #[must_use]
    pub fn start_leaving(&self, pass: Pass) -> bool {
        let slot = self.slot(pass);
        let word = slot.load(Ordering::Relaxed);
        word & STATE == BUSY
            && (word / NEXT_USE) & SEQUENCE == pass.0 >> INDEX_BITS
            && slot.compare_exchange(word, word - BUSY + LEAVING, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Gives back a pass whose ending was [claimed](Self::start_leaving), after everything that must be seen behind the
    /// closed gate.
    #[inline]
    pub fn finish_leaving(&self, pass: Pass) {
        let slot = self.slot(pass);
        // Nobody else writes a slot that is leaving.
        let word = slot.load(Ordering::Relaxed);
        slot.store((word - (word & STATE)).wrapping_add(NEXT_USE), Ordering::Release);
    }

    /// Gives back a pass, after everything that must be seen behind the closed gate. `false`, and nothing was changed: it
    /// was not inside.
    #[inline]
    #[must_use]
    pub fn leave(&self, pass: Pass) -> bool {
        let ours = self.start_leaving(pass);
        if ours {
            self.finish_leaving(pass);
        }
        ours
    }

    /// Closes the gate: nobody comes in any more; who is inside stays until he leaves.
    pub fn close(&self) {
        self.closed.store(1, Ordering::SeqCst);
        fence_of_model();
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.closed.store(0, Ordering::SeqCst);
    }

    /// Whether it is closed now.
    #[inline]
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) != 0
    }

    /// Whether nobody is inside. Final only if the gate was closed before and is not opened.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.shards.iter().all(Shard::is_quiet)
    }

    /// As [`is_quiet`](Self::is_quiet), but blind for one shard: a drain that misses a queue. Only a protocol that is broken
    /// on purpose asks this.
    #[must_use]
    pub fn is_quiet_but(&self, missed: usize) -> bool {
        self.shards.iter().enumerate().all(|(number, shard)| number == missed || shard.is_quiet())
    }

    /// The slot of a pass, whatever its sequence number.
    #[inline]
    fn slot(&self, pass: Pass) -> &AtomicU64 {
        // The remainder of a power of two: always inside the table, so a forged pass does no harm.
        let index = usize::try_from(pass.0 % PASSES as u64).unwrap_or(0);
        &self.shards[index / SLOTS].slots[index % SLOTS]
    }
}

impl Shard {
    /// Makes a free slot busy; which one, and what it held before.
    #[inline]
    fn take(&self) -> Option<(usize, u64)> {
        let first = usize::try_from(self.next.load(Ordering::Relaxed)).unwrap_or(0);
        for distance in 0..SLOTS {
            let index = (first + distance) % SLOTS;
            let slot = &self.slots[index];
            let word = slot.load(Ordering::Relaxed);
            let free = word & STATE == FREE;
            if free && slot.compare_exchange(word, word | BUSY, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                // Two threads may overwrite each other's hint, and both then look a little longer.
                self.next.store((index as u64 + 1) % SLOTS as u64, Ordering::Relaxed);
                return Some((index, word));
            }
        }
        None
    }

    /// Whether none of the slots is taken.
    fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| slot.load(Ordering::SeqCst) & STATE == FREE)
    }
}

/// The model checker knows one order of all sequentially consistent *fences* only, and takes such loads and stores for
/// weaker ones. So under it a fence stands where the order of the four accesses is what counts.
#[inline(always)]
fn fence_of_model() {
    #[cfg(loom)]
    crate::bitmap::sync::full_fence();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass, or the test fails.
    fn pass(gate: &Gate) -> Pass {
        match gate.enter() {
            Enter::In(pass) => pass,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gate_is_quiet_when_everyone_who_entered_has_left() {
        let gate = Gate::new();
        assert!(gate.is_quiet() && !gate.is_closed());
        let passes: Vec<_> = (0..300).map(|_| pass(&gate)).collect();
        gate.close();
        assert_eq!(gate.enter(), Enter::Closed);
        for pass in passes {
            assert!(!gate.is_quiet());
            assert!(gate.leave(pass));
        }
        assert!(gate.is_quiet());
        gate.open();
        assert!(gate.leave(pass(&gate)));
    }

    #[test]
    fn a_pass_that_is_ended_twice_or_comes_from_elsewhere_changes_nothing() {
        let (gate, other) = (Gate::new(), Gate::new());
        let first = pass(&gate);
        assert!(!other.leave(first));
        assert!(gate.start_leaving(first));
        assert!(!gate.start_leaving(first) && !gate.leave(first) && !gate.is_quiet());
        gate.finish_leaving(first);
        assert!(!gate.leave(first));
        let passes: Vec<_> = (0..PASSES).map(|_| pass(&gate)).collect();
        assert!(!passes.contains(&first) && !gate.leave(first));
        for forged in [0, 1, first.0 + 1, first.0 ^ (1 << 63), u64::MAX] {
            assert!(!gate.leave(Pass(forged)), "{forged:x}");
        }
        assert!(passes.into_iter().all(|pass| gate.leave(pass)) && gate.is_quiet());
    }

    #[test]
    fn passes_run_out_and_come_back() {
        let gate = Gate::new();
        let mut passes: Vec<_> = (0..PASSES).map(|_| pass(&gate)).collect();
        assert_eq!(gate.enter(), Enter::Full);
        assert!(gate.leave(passes.swap_remove(1234)));
        passes.push(pass(&gate));
        assert_eq!(gate.enter(), Enter::Full);
        passes.sort_unstable_by_key(|pass| pass.0);
        passes.dedup();
        assert_eq!(passes.len(), PASSES);
    }

    #[test]
    fn a_look_that_misses_a_shard_takes_a_busy_gate_for_quiet() {
        let gate = Gate::new();
        let _inside = pass(&gate);
        let own = per_thread::shard(SHARDS);
        gate.close();
        assert!(gate.is_quiet_but(own) && !gate.is_quiet_but(own ^ 1) && !gate.is_quiet());
    }
}
