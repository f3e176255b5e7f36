//! What an error leads to, and the rounds of policy `ignore`.
//!
//! With `ignore` what failed stays dirty and is tried again in a later round. Rounds come further and further apart, and with
//! smaller requests, so that one bad block does not keep its neighbours from the target.
//!
//! The first error after a round began decides when the next one begins, and none after it puts that off: a guest that writes
//! to a bad place all the time would otherwise keep every dirty chunk from the target for ever. Until then copiers leave all
//! dirty chunks alone; and where it was the target that failed, guest writes go to the source alone for as long as that, also
//! in the first pass, which no round interrupts.
//!
//! What failed is remembered as *suspect*, chunk by chunk, until it was copied. So a round is over when all that failed is made
//! up for, neither sooner, however long a bad block takes to fail or its turn to come, nor later, however much a guest
//! writes meanwhile. Bits are set and cleared only by who has claimed the chunk, before it lets go.

use std::sync::atomic::Ordering;

use super::command::flag;
use super::{Failure, FailureCause, Notice, Share};
use crate::mirror::policy::{self, ErrorAction, ErrorPolicy, Side};
use crate::units::{ByteRange, Chunk, ChunkRange};

/// The size of requests that salvage what can be read around a bad block.
const SALVAGE_BYTES: u64 = 4096;

impl Share {
    /// Applies the policy to an error. The caller has set the dirty bits again.
    pub fn on_error(
        &self,
        side: Side,
        errno: i32,
        range: ByteRange,
        cause: FailureCause,
        now_ns: u64,
    ) -> Notice {
        let policy = match side {
            Side::Source => self.on_source_error,
            Side::Target => self.on_target_error,
        };
        let mut action = policy::decide(policy, errno, cause);
        if action == ErrorAction::Ignore && !self.schedule_round(side, now_ns) {
            self.fail(Failure { side, errno, range, cause: FailureCause::GaveUp });
            action = ErrorAction::Report;
        }
        match action {
            ErrorAction::Report => self.fail(Failure { side, errno, range, cause }),
            ErrorAction::Ignore => {}
            ErrorAction::Stop => {
                let space = if policy::is_no_space(errno) { flag::NO_SPACE } else { 0 };
                self.command.set(flag::STOPPED | space);
            }
        }
        Notice::Error { side, errno, range, action }
    }

    /// Sees to it that there is a next round after an error that is ignored; `false` when there were too many.
    fn schedule_round(&self, side: Side, now_ns: u64) -> bool {
        let round = self.round.load(Ordering::Acquire);
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        // Who is not the first since the last round began changes nothing. Time 0 says that there is none, so it is no time.
        let at_ns = now_ns.saturating_add(policy::ignore_backoff_ns(round)).max(1);
        let _ = self.next_round_ns.compare_exchange(0, at_ns, set, fetch);
        if side == Side::Target {
            // Nor does who fails while the target is spared: one that fails often would never be written to.
            let first = |until_ns| (until_ns <= now_ns).then_some(at_ns);
            let _ = self.spared_until_ns.fetch_update(set, fetch, first);
        }
        !self.gives_up || round < policy::IGNORE_ROUNDS
    }

    /// With policy `ignore`: something failed on the target just now, so guest writes leave it alone.
    pub(in crate::mirror) fn spares_target(&self, now_ns: u64) -> bool {
        now_ns < self.spared_until_ns.load(Ordering::Acquire)
    }

    /// A part of the disk has failed, which whoever had claimed it says before letting go of it.
    pub(in crate::mirror) fn suspect(&self, side: Side, range: ByteRange) {
        let policy = match side {
            Side::Source => self.on_source_error,
            Side::Target => self.on_target_error,
        };
        if let (Some(suspects), ErrorPolicy::Ignore) = (&self.suspects, policy) {
            suspects.set_bytes(range);
        }
    }

    /// These chunks are on the target, all of them or, where a part `failed`, those that are not dirty again. Said before they
    /// are let go, so that nobody else can have failed there in between.
    pub(in crate::mirror) fn made_up_for(&self, chunks: ChunkRange, failed: bool) {
        let Some(suspects) = self.suspects.as_ref().filter(|suspects| !suspects.is_clean()) else { return };
        if !failed {
            suspects.clear(chunks);
            return;
        }
        let mut from = chunks.start();
        while let Some(found) = suspects.next_run(Chunk(from), 1).filter(|run| run.start() < chunks.end()) {
            if !self.dirty.test(Chunk(found.start())) {
                suspects.clear(found);
            }
            from = found.end();
        }
    }

    /// With policy `ignore`: something failed, and it is not known yet whether it would fail again.
    pub(in crate::mirror) fn awaits_round(&self) -> bool {
        // In this order: what fails is suspect before there is a next round because of it.
        self.next_round_ns.load(Ordering::Acquire) != 0 || self.has_suspects()
    }

    /// Whether something failed that was not copied since.
    fn has_suspects(&self) -> bool {
        self.suspects.as_ref().is_some_and(|suspects| !suspects.is_clean())
    }

    /// Once all that failed could be copied, requests have their full size again, and the next failure is a first one.
    pub(in crate::mirror) fn end_rounds(&self) {
        if self.round.load(Ordering::Acquire) > 0 && !self.awaits_round() {
            self.round.store(0, Ordering::Release);
        }
    }

    /// When dirty chunks may be taken up again; `None` = now. Begins the next round when its time has come.
    pub(in crate::mirror) fn round_wait(&self, now_ns: u64) -> Option<u64> {
        let at_ns = self.next_round_ns.load(Ordering::Acquire);
        if at_ns == 0 {
            return None;
        }
        if now_ns < at_ns {
            return Some(at_ns);
        }
        if self.next_round_ns.compare_exchange(at_ns, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.round.fetch_add(1, Ordering::AcqRel);
        }
        None
    }

    /// The largest request in this round: after an error that was ignored, runs are copied chunk by chunk, then block by
    /// block, so that one bad block does not keep its neighbours from the target.
    pub(in crate::mirror) fn request_bytes(&self) -> u64 {
        let g = &self.geometry;
        match self.round.load(Ordering::Acquire) {
            0 => g.request_bytes,
            1 => g.request_bytes.min(g.granularity.bytes()),
            _ => g.request_bytes.min(SALVAGE_BYTES.max(g.align_bytes)),
        }
    }
}
