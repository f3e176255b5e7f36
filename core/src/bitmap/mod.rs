//! Dirty bits and in-flight claims.
//!
//! [`DirtyBitmap`] says where the target may differ from the source; [`Claims`] who may write a chunk to the target. Both are
//! lock-free: guests' threads mark, workers search, claim and clear, and nobody waits for anybody.
//!
//! | file | what it holds |
//! |---|---|
//! | `sync` | the atomics, and the argument why no guest write is lost between a bit and its data |
//! | `words` | zeroed words that cost memory only where they are written; the only `unsafe` |
//! | `pieces` | ranges of bits cut into words |
//! | `tree` | leaves and summaries, and the argument why no bit is lost between them |
//! | `drain` | taking everything out |
//! | `changes` | how many bits are set |
//! | `dirty`, `claims` | the two public types |
//! | `hold` | the right to work with a bitmap, for one job at a time; what a host does to it by hand |
//!
//! How a copier uses them, in this order (*Claim, clear, read*):
//!
//! 1. `next_run` finds a dirty run, `try_claim` takes the longest free prefix of it.
//! 2. `clear` on that prefix, then submit the read; then the write to the target.
//! 3. If it failed, `set` the chunks again. Then `release`.
//!
//! And a guest write (*Mark after, before the ack*): the write completes, `set`, the guest hears of it. A write that comes during
//! the copy leaves its bit set, and the chunk is copied again.
//!
//! Two answers do not add up to a third: "no bit is set" and "no claim is held", asked one after the other, do not mean that
//! the copy is complete, for a copier may have claimed, failed, marked and released in between. Whoever decides that must
//! know that no copier is under way, or hold the claim of the chunk that he asks about.

mod changes;
mod claims;
mod dirty;
mod drain;
mod hold;
mod pieces;
pub(crate) mod sync;
mod tree;

mod words;

pub use claims::Claims;
pub use dirty::DirtyBitmap;
pub(crate) use hold::{Hold, Usage};

/// Ways to break the protocol, each of which a model must notice; a model that cannot fail proves nothing.
#[cfg(loom)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// None.
    None,
    /// Clears a summary bit and does not look at the word below again.
    NoSecondLook,
    /// Does not set a summary bit that a load shows as set.
    TestSummary,
    /// No fence between the completion of the guest's write and the test of its bit.
    NoFenceInSet,
    /// No fence between the clearing and the read of the data.
    NoFenceInClear,
    /// Claims what a load showed as free, without comparing.
    ClaimWithoutCompare,
}
