//! The atomics of the bitmap and of the counters beside it, the bitmap's word size, and the two fences that tie a bit to the
//! data it speaks of.
//!
//! Under `--cfg loom` the atomics are loom's, a word has 2 bits and the top level 1 word, so that a map of 8 chunks has
//! three levels and a model checker can walk every interleaving of it.
//!
//! # Why two fences, and what they cost
//!
//! A setter whose bits are all set already does not write (one hot word written by two cores costs 35 ns, read by two
//! 1 ns). So it takes part by a *load* only, and this is the case to think about:
//!
//! ```text
//! setter:  W  the guest's write reaches the source        copier:  K  clears the bit (atomic read-modify-write)
//!          X  loads the bit, sees 1, does nothing                  D  reads the source
//! ```
//!
//! The guest's write is lost if X saw the bit as it was before K, and D the data as they were before W. The bit is clear
//! then, and the copy old. To forbid it, W must be visible before X is performed (setter side), and K must be visible
//! before D is performed (copier side): then X before K gives W before X before K before D.
//!
//! In the memory model of the language that takes a `SeqCst` fence on each side, for nothing weaker orders "X read
//! before K" across threads. This is what [`fence_before_test`] and [`fence_after_clear`] are, and what loom checks, on
//! every architecture but one.
//!
//! **x86-64** needs no instruction for either, and there both only hold the compiler:
//!
//! - *Copier.* K is a `lock` instruction: it drains the store buffer before any later load or store of this core, the
//!   store to the submission queue's tail and the kernel's own loads included. It is the full fence already.
//! - *Setter.* Loads are performed in program order, and stores become visible to all other cores at once. Two cases:
//!   1. Somebody else carried out W: a device by DMA, a kernel worker, another core. The setter knows of it through a
//!      load (the completion queue's tail, a lock, a wake-up), and X is a later load. So W was visible to everybody
//!      before X was performed.
//!   2. This very core carried out W, inside a system call: a write into the page cache, a RAM disk, an io_uring request
//!      done inline. Its stores could wait in the store buffer while X is performed. They do not, because every such
//!      path gives back what it held after it has copied the data (the folio's lock, the inode's lock, the reference of
//!      the bio, the entry in the task work list), each by a `lock` instruction, and that drains the store buffer.
//!
//!   What is left is a W made of plain stores in this thread with no system call, such as `memcpy` into mapped
//!   memory. That caller must put `std::sync::atomic::fence(SeqCst)` between the two; `DirtyBitmap::set` says so.
//!
//! **AArch64** would do without it in case 1 (other-multi-copy atomic: a load-acquire suffices), but not in case 2: there
//! the kernel gives back its locks with release stores, and a later load may overtake those. So the fence stays
//! there, a `dmb ish`. It also stays in `clear`, because an exclusive pair (`ldaxr`/`stlxr`) lets a later load overtake its
//! store. **POWER** and others are not multi-copy atomic and need it in every case.
//!
//! When the bit was not set, X is a read-modify-write and none of this matters: K comes after it in the order of the
//! word, acquires what it released, and so D happens after W.
#![forbid(unsafe_code)]

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(loom)]
pub(crate) use loom::thread::yield_now;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

/// Bits in a word, and children of a summary word.
pub(super) const WORD_BITS: u64 = if cfg!(loom) { 2 } else { 64 };

/// All bits of a word.
pub(super) const ALL: u64 = u64::MAX >> (64 - WORD_BITS);

/// The top level has at most this many words; a scan of a clean map reads no more.
pub(super) const TOP_WORDS: usize = if cfg!(loom) { 1 } else { 64 };

/// Whether read-modify-writes are full fences and loads stay in order, see the module's text.
const STRONG: bool = cfg!(all(target_arch = "x86_64", not(loom)));

/// Stands between "the guest's write has completed" and the load that tests its bit.
#[inline(always)]
pub(crate) fn fence_before_test() {
    if STRONG {
        // Emits nothing on x86-64; the test must not move up across it.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
    } else {
        fence_seq_cst();
    }
}

/// Stands between the clearing of bits and the read of their data.
#[inline(always)]
pub(super) fn fence_after_clear() {
    if STRONG {
        // The read-modify-write before it was the fence; this only holds the compiler.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    } else {
        fence_seq_cst();
    }
}

/// Stands between "I have said that I am here" and "is somebody else here?", on both sides of such a meeting.
#[inline(always)]
pub(crate) fn full_fence() {
    fence_seq_cst();
}

/// A fence in the one order of all sequentially consistent operations.
#[inline(always)]
fn fence_seq_cst() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    std::sync::atomic::fence(Ordering::SeqCst);
}
