//! The gate of a drive: lets requests in, knows who is inside, and can be closed.
//!
//! A request takes a *pass* before it is sent to the device and gives it back after it completed, was marked in the
//! bitmaps of a job, and before its author hears of it. With the gate closed and every pass back, no request is under
//! way and none will be before it is opened: the moment in which "nothing is dirty" is final (*Zero is decided behind
//! the gate*) and the drive may be moved to another device.
//!
//! # How
//!
//! A fixed table of slots. A slot holds two numbers: the last pass that was given out (`taken`) and the last one that
//! came back (`left`); it is free when they are equal. Who enters takes a free slot by a compare-exchange of `taken`;
//! who leaves writes `left`, which costs a plain store. A pass is a slot's number and the number that was taken, so
//! one that is given back twice, or was never given out, is told from a good one. The table is cut into shards, and a
//! thread starts its search in its own: threads meet on a cache line only when a request ends on another thread than
//! it began on.
//!
//! # Memory order
//!
//! *Closed and quiet.* Who enters writes `taken`, then reads the flag; who closes writes the flag, then reads `taken`
//! (Dekker). All four are sequentially consistent, so there is one order of them all. If who enters reads "open",
//! that read comes before the write of the flag, so his `taken` was there before any look that follows the closing,
//! and the look sees it. If he reads "closed", he gives the slot back and stays outside. A look that sees a slot
//! being tried errs on the safe side. On x86-64 this costs requests one `lock cmpxchg` and plain loads.
//!
//! *What was done inside is seen.* `left` is stored with release order, and a look loads it with acquire order:
//! whoever sees the gate quiet sees every mark that was made inside. A slot that was used several times keeps this,
//! because who takes it has loaded `left` with acquire order before he released his `taken`.
//!
//! *What was done behind the closed gate is seen.* The flag is opened with release order. Who reads "open" from
//! before the closing was inside before the look, see above, so there was no quiet; who reads it from the opening
//! sees the pivot.
//!
//! *Ended twice.* The second ending finds `left` equal to its own number, or `taken` moved on, and has changed
//! nothing. Only two threads that end one pass at the same time, while it is being marked, may both be believed: they
//! then mark the same range and write the same number. One of them that is held up just before that store, until the slot was
//! used again, writes an old number. That can make a free slot look busy, never a busy one free, because `left`
//! becomes equal to the number of who is inside only by his own pass. So a host's mistake costs a slot, as if the
//! pass were lost; it never makes the gate quiet too soon. An atomic claim of the ending would tell the two apart, at
//! 7 ns for every request of every correct host.
//!
//! # A pass that is never given back
//!
//! Its slot stays busy for as long as the drive lives. The gate is never quiet again, so every switch-over runs into
//! its time limit, opens the gate and says so; requests go on as before, and nothing hangs. A host that loses them
//! again and again runs out of passes after [`PASSES`], and is told [`Enter::Full`] from then on.
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
/// The bits of a slot's number of uses that a pass has room for.
const USE: u64 = u64::MAX >> INDEX_BITS;

/// The right to be inside the gate: a slot and which use of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pass(u64);

impl Pass {
    /// As a plain number, for whoever keeps it where only numbers can be kept.
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    /// From that number. A pass that was never given out is told from a good one by [`Gate::leaving`].
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

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

/// Room for one request at a time.
#[derive(Debug)]
struct Slot {
    /// The last pass that was given out.
    taken: AtomicU64,
    /// The last pass that came back.
    left: AtomicU64,
}

/// A pass that is about to be given back; dropped without [`done`](Self::done), it stays inside.
#[derive(Debug)]
#[must_use = "the pass stays inside until `done` is said"]
pub struct Leaving<'a> {
    /// Its slot.
    slot: &'a Slot,
    /// Its number there.
    taken: u64,
}

impl Leaving<'_> {
    /// Gives the pass back.
    #[inline]
    pub fn done(self) {
        self.slot.left.store(self.taken, Ordering::Release);
    }
}

/// Slots that the same threads mostly use, away from the cache lines of others.
#[repr(align(128))]
struct Shard {
    /// Where to look first; a hint.
    next: Counter,
    /// The slots.
    slots: [Slot; SLOTS],
}

/// The gate; see the module.
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
        // Numbers start elsewhere in each slot of each gate, so that a pass of one means nothing to another.
        static SLOTS_MADE: Counter = Counter::new(1);
        let slot = |_| {
            let start = SLOTS_MADE.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Slot { taken: AtomicU64::new(start), left: AtomicU64::new(start) }
        };
        let shard = |_| Shard { next: Counter::new(0), slots: std::array::from_fn(slot) };
        Self { closed: AtomicU64::new(0), shards: (0..SHARDS).map(shard).collect() }
    }

    /// Takes a pass.
    #[inline(always)]
    #[must_use]
    pub fn enter(&self) -> Enter {
        if self.is_closed() {
            return Enter::Closed;
        }
        let own = per_thread::shard(SHARDS);
        for distance in 0..SHARDS {
            let shard = (own + distance) & (SHARDS - 1);
            if let Some((slot, taken)) = self.shards[shard].take() {
                return self.enter_with(shard, slot, taken);
            }
        }
        Enter::Full
    }

    /// The second half of entering: looks at the flag, with the slot taken.
    #[inline(always)]
    fn enter_with(&self, shard: usize, slot: usize, taken: u64) -> Enter {
        fence_of_model();
        if self.closed.load(Ordering::SeqCst) == 0 {
            let index = (shard * SLOTS + slot) as u64;
            return Enter::In(Pass((taken & USE) << INDEX_BITS | index));
        }
        self.shards[shard].slots[slot].left.store(taken, Ordering::Release);
        Enter::Closed
    }

    /// Looks whether `pass` is inside: not given back yet, and given out by this gate. Who gets an answer does what must be
    /// seen behind the closed gate, and then says [`Leaving::done`].
    #[inline]
    #[must_use]
    pub fn leaving(&self, pass: Pass) -> Option<Leaving<'_>> {
        let slot = self.slot(pass);
        slot.holds(pass).map(|taken| Leaving { slot, taken })
    }

    /// Gives back a pass, after everything that must be seen behind the closed gate. `false`, and nothing was changed: it
    /// was not inside.
    #[inline]
    #[must_use]
    pub fn leave(&self, pass: Pass) -> bool {
        self.leaving(pass).map(Leaving::done).is_some()
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

    /// The first half of entering, as by a thread that had found the gate open just before it was closed.
    #[cfg(test)]
    pub(crate) fn try_a_slot(&self) -> Option<(usize, u64)> {
        self.shards[0].take()
    }

    /// The second half, by which time it is closed.
    #[cfg(test)]
    pub(crate) fn step_back(&self, tried: Option<(usize, u64)>) {
        if let Some((slot, taken)) = tried {
            self.shards[0].slots[slot].left.store(taken, Ordering::Release);
        }
    }

    /// The slot of a pass, whatever its number of uses.
    #[inline]
    fn slot(&self, pass: Pass) -> &Slot {
        // The remainder of a power of two: always inside the table, so a forged pass does no harm.
        let index = usize::try_from(pass.0 % PASSES as u64).unwrap_or(0);
        &self.shards[index / SLOTS].slots[index % SLOTS]
    }
}

impl Slot {
    /// The number in `taken`, if it is that of `pass` and has not come back.
    #[inline]
    fn holds(&self, pass: Pass) -> Option<u64> {
        // Relaxed: who was given the pass knows of its taking by whatever way the pass came to him.
        let taken = self.taken.load(Ordering::Relaxed);
        let ours = taken & USE == pass.0 >> INDEX_BITS && self.left.load(Ordering::Relaxed) != taken;
        ours.then_some(taken)
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("closed", &self.is_closed())
            .field("quiet", &self.is_quiet())
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// Takes a free slot; which one, and the number that was taken.
    #[inline]
    fn take(&self) -> Option<(usize, u64)> {
        let first = usize::try_from(self.next.load(Ordering::Relaxed)).unwrap_or(0);
        for distance in 0..SLOTS {
            let index = (first + distance) % SLOTS;
            let slot = &self.slots[index];
            let before = slot.left.load(Ordering::Acquire);
            let taken = before.wrapping_add(1);
            // Not free, or lost to another thread: the next one.
            if slot.taken.load(Ordering::Relaxed) == before
                && slot.taken.compare_exchange(before, taken, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                // Two threads may overwrite each other's hint, and both then look a little longer.
                self.next.store((index as u64 + 1) % SLOTS as u64, Ordering::Relaxed);
                return Some((index, taken));
            }
        }
        None
    }

    /// Whether none of the slots is taken.
    fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| {
            let taken = slot.taken.load(Ordering::SeqCst);
            slot.left.load(Ordering::Acquire) == taken
        })
    }
}

/// The model checker knows one order of all sequentially consistent *fences* only, and takes such loads and stores
/// for weaker ones. So under it a fence stands where the order of the four accesses is what counts.
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
        let (first, elsewhere) = (pass(&gate), pass(&other));
        assert!(!other.leave(first) && !gate.leave(elsewhere) && !other.is_quiet());
        assert!(gate.leaving(first).is_some() && other.leaving(first).is_none() && !gate.is_quiet());
        assert!(gate.leave(first));
        assert!(!gate.leave(first) && gate.leaving(first).is_none() && gate.is_quiet());
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
