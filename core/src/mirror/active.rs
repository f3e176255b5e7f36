//! Guest writes as a job sees them: marked in background mode, carried to both sides in write-blocking mode.
//!
//! ```text
//! background       source write ---------------------------> end -> guest_wrote: dirty -> ack
//! write-blocking   begin_active: claim blocks, clear what is covered
//!                  source write and target write at once ---> both ended -> end_active -> ack with the source's result
//!                                                             either failed: dirty again, then the blocks are released
//!                  refused by begin_active -> as background
//! ```
//!
//! A write is refused, and then goes to the source alone and leaves its chunks dirty, when a copier or an overlapping guest
//! write owns a part of it (it never waits), when it is not aligned to the target's blocks, while the first pass relies on what
//! the target was before (**First from the sweep**), while the target is left alone after an error, or when it would touch a
//! part of a cluster that was not copied yet.
//!
//! Only chunks that the write covers wholly become clean by it, and they are cleared before the writes are sent, as a
//! copier does (**Claim, clear, read**): an overlapping write that goes to the source alone marks them again at its end.
//!
//! May assume: the caller holds the gate from before `begin_active` to after `end_active` or `guest_wrote`, and calls these
//! before the guest hears of the end (**Mark after, before the ack**).

use std::sync::atomic::Ordering;

use super::mutation::Mutation;
use super::policy::Side;
use super::share::{FailureCause, Notice, Share};
use crate::units::{ByteRange, ChunkRange};

/// How guest writes are followed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyMode {
    /// Writes go to the source and mark their chunks; copiers come round.
    Background,
    /// Writes go to both sides at once.
    WriteBlocking,
}

/// A guest write on its way to both sides; must be given to [`Share::end_active`] or [`Share::cancel_active`].
#[derive(Debug)]
#[must_use = "its blocks stay claimed until it is ended"]
pub struct ActiveWrite {
    /// Its bytes.
    range: ByteRange,
    /// What it made clean: the chunks that it covers, if any was dirty.
    cleared: ChunkRange,
}

/// Bits of the word that says how guest writes are followed.
pub(super) mod mode {
    /// They go to both sides.
    pub(in crate::mirror) const WRITE_BLOCKING: u8 = 1;
    /// Guest requests are held from time to time, so that the copiers gain on them.
    pub(in crate::mirror) const BRAKING: u8 = 2;
    /// The host has chosen while the job ran.
    pub(in crate::mirror) const CHOSEN: u8 = 4;
}

impl Share {
    /// How guest writes are followed now; read once for each request.
    #[must_use]
    pub fn copy_mode(&self) -> CopyMode {
        if self.mode.load(Ordering::Acquire) & mode::WRITE_BLOCKING != 0 {
            CopyMode::WriteBlocking
        } else {
            CopyMode::Background
        }
    }

    /// Copy mode auto takes a step, from the next request on; whether that was a change. Where the host has chosen, nothing is
    /// changed: one word says both, so a step never overrules a host that chooses in the same moment.
    pub(super) fn step_up(&self, bit: u8) -> bool {
        let step = |word| (word & (mode::CHOSEN | bit) == 0).then_some(word | bit);
        self.mode.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }

    /// Changes how guest writes are followed by the host's word, which copy mode auto does not overrule any more, and tells the
    /// host if that was a change. That braking has ended by it is told by the home, which told that it began.
    pub fn choose_copy_mode(&self, chosen: CopyMode) {
        let bit = if chosen == CopyMode::WriteBlocking { mode::WRITE_BLOCKING } else { 0 };
        let before = self.mode.swap(mode::CHOSEN | bit, Ordering::AcqRel);
        if before & mode::WRITE_BLOCKING != bit {
            self.post(Notice::CopyMode(chosen));
        }
    }

    /// Whether copy mode auto holds guest requests while the next step of the job is out of reach.
    #[must_use]
    pub fn is_braking(&self) -> bool {
        self.mode.load(Ordering::Acquire) & mode::BRAKING != 0
    }

    /// It does not any more; whether it did.
    pub(super) fn release_brake(&self) -> bool {
        self.mode.fetch_and(!mode::BRAKING, Ordering::AcqRel) & mode::BRAKING != 0
    }

    /// A guest write to the source has ended, well or not: its chunks are dirty. `true` when the job's home sleeps and must
    /// be woken.
    ///
    /// A write that failed may have done any part of its work, so it marks like any other.
    #[must_use = "a home that sleeps must be woken"]
    pub fn guest_wrote(&self, range: ByteRange) -> bool {
        if self.is_mutated(Mutation::AttachLate) && !self.sweep_is_claimed() {
            return false;
        }
        let range = match self.is_mutated(Mutation::TailRoundedDown) {
            true => {
                ByteRange::new(range.start(), range.end() - range.end() % self.geometry.granularity.bytes())
            }
            false => range,
        };
        self.note_rewritten(range);
        self.dirty.mark(range) > 0 && self.doorbell.is_mine_to_ring()
    }

    /// What an extent list, or the layer's holes, said of these chunks at the start does not hold any more.
    ///
    /// Said before the chunk is marked, so that a copier which clears the mark knows of it.
    fn note_rewritten(&self, range: ByteRange) {
        if let Some(rewritten) = &self.rewritten {
            rewritten.set_bytes(range);
        }
    }

    /// Claims `range` for a write to both sides; `None`: to the source alone, then [`Self::guest_wrote`].
    pub fn begin_active(&self, range: ByteRange, now_ns: u64) -> Option<ActiveWrite> {
        // A target that failed is left alone: until the host resumes the job that it stopped, or until the next round of an
        // error that is ignored may begin. Else each guest write to a bad place would be one more error.
        let off = self.copy_mode() != CopyMode::WriteBlocking
            || self.is_ending()
            || self.stopped().is_some()
            || self.spares_target(now_ns);
        if off || !self.may_be_active(range) {
            return None;
        }
        // A queue may have looked at the job before it ended: then the bits are not its own to clear any more.
        if !self.enter_bitmap() {
            return None;
        }
        if !self.writers.claim_for_guest(range) {
            self.leave_bitmap();
            return None;
        }
        let covered = match self.is_mutated(Mutation::ActiveClearsPartly) {
            true => self.geometry.granularity.chunks_touched(range),
            false => self.geometry.chunks_covered(range),
        };
        self.note_rewritten(range);
        let cleared = if self.dirty.clean(covered) > 0 { covered } else { ChunkRange::default() };
        Some(ActiveWrite { range, cleared })
    }

    /// Whether the target may be written there by somebody who is no copier.
    fn may_be_active(&self, range: ByteRange) -> bool {
        let align = self.geometry.align_bytes;
        let aligned = range.start().is_multiple_of(align) && range.end().is_multiple_of(align);
        // A run from the sweep is skipped where the target was zero from the beginning, so it must come first.
        let after_sweep = !(self.target_is_zero || self.top) || self.sweep_is_claimed();
        let whole_clusters = match (&self.touched, self.geometry.cluster) {
            (Some(touched), Some(cluster)) => {
                let clusters = cluster.chunks_touched(range);
                (clusters.start()..clusters.end()).all(|c| touched.test(crate::units::Chunk(c)))
            }
            _ => true,
        };
        aligned && after_sweep && whole_clusters
    }

    /// Nothing was sent to the target: the write goes to the source alone. `true` when the job's home must be woken.
    #[must_use = "a home that sleeps must be woken"]
    #[allow(clippy::needless_pass_by_value, reason = "taken, so that it is ended once")]
    pub fn cancel_active(&self, write: ActiveWrite) -> bool {
        let marked = self.dirty.mark_chunks(write.cleared) > 0;
        self.writers.release_by_guest(write.range);
        self.leave_bitmap();
        marked && self.doorbell.is_mine_to_ring()
    }

    /// Both writes have ended. `true` when the job's home must be woken.
    ///
    /// The guest is told the source's result alone (**The guest is not our hostage**); what the target lacks is dirty, and
    /// the policy for the target decides about the job.
    #[must_use = "a home that sleeps must be woken"]
    #[allow(clippy::needless_pass_by_value, reason = "taken, so that it is ended once")]
    pub fn end_active(
        &self,
        write: ActiveWrite,
        source: Result<(), i32>,
        target: Result<(), i32>,
        now_ns: u64,
    ) -> bool {
        let range = write.range;
        let marks = target.is_err() || (source.is_err() && !self.is_mutated(Mutation::FailedWriteUnmarked));
        let late = self.is_mutated(Mutation::ReleaseBeforeRedirty);
        if late {
            self.writers.release_by_guest(range);
        }
        let mut wake = marks && self.dirty.mark(range) > 0 && self.doorbell.is_mine_to_ring();
        if !late {
            match target {
                Err(_) => self.suspect(Side::Target, range),
                // The guest has written over what could not be copied.
                Ok(()) if source.is_ok() => self.made_up_for(self.geometry.chunks_covered(range), false),
                Ok(()) => {}
            }
            self.writers.release_by_guest(range);
        }
        self.leave_bitmap();
        self.active_bytes.fetch_add(range.len(), Ordering::Release);
        if let (Err(errno), false) = (target, self.is_ending()) {
            let notice = self.on_error(Side::Target, errno, range, FailureCause::Io, now_ns);
            self.post(notice);
            wake = true;
        }
        wake
    }
}
