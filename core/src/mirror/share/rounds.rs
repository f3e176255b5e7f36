//! What an error leads to, and the rounds of policy `ignore`.
//!
//! With `ignore` what failed stays dirty and is tried again in a later round. Rounds come further and further apart, and with
//! smaller requests, so that one bad block does not keep its neighbours from the target.
//!
//! The first error after a round began decides when the next one begins, and none after it puts that off: a guest that writes
//! to a bad place all the time would otherwise keep every dirty chunk from the target for ever. Until then nobody who takes
//! part in the round writes to what failed: copiers leave all dirty chunks alone, and where it was the target that failed,
//! guest writes go to the source alone.

use std::sync::atomic::Ordering;

use super::command::flag;
use super::{Failure, FailureCause, Notice, Share};
use crate::mirror::policy::{self, ErrorAction, Side};
use crate::units::ByteRange;

/// The size of requests that salvage what can be read around a bad block.
const SALVAGE_BYTES: u64 = 4096;

/// A round of an ignored error in which nothing failed for so long is over: what failed would have been tried by then.
const ROUND_SETTLED_NS: u64 = 200_000_000;

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
                self.command.fetch_or(flag::STOPPED | space, Ordering::AcqRel);
            }
        }
        Notice::Error { side, errno, range, action }
    }

    /// Sees to it that there is a next round after an error that is ignored; `false` when there were too many.
    fn schedule_round(&self, side: Side, now_ns: u64) -> bool {
        let round = self.round.load(Ordering::Acquire);
        if side == Side::Target {
            self.target_failed.store(true, Ordering::Release);
        }
        // Who is not the first since the last round began changes nothing. Time 0 says that there is none, so it is no time.
        let at_ns = now_ns.saturating_add(policy::ignore_backoff_ns(round)).max(1);
        let _ = self.next_round_ns.compare_exchange(0, at_ns, Ordering::AcqRel, Ordering::Acquire);
        !self.gives_up || round < policy::IGNORE_ROUNDS
    }

    /// With policy `ignore`: something failed on the target, and its next round has not begun, so it is left alone.
    pub(in crate::mirror) fn spares_target(&self) -> bool {
        self.next_round_ns.load(Ordering::Acquire) != 0 && self.target_failed.load(Ordering::Acquire)
    }

    /// With policy `ignore`: something failed, and it is not known yet whether it would fail again.
    pub(in crate::mirror) fn awaits_round(&self, now_ns: u64) -> bool {
        // In this order: a round that begins is the last one before it is not the next one any more.
        if self.next_round_ns.load(Ordering::Acquire) != 0 {
            return true;
        }
        let last_ns = self.last_round_ns.load(Ordering::Acquire);
        last_ns > 0 && now_ns < last_ns.saturating_add(ROUND_SETTLED_NS)
    }

    /// Everything could be copied: requests have their full size again, and the next failure is a first one.
    pub(in crate::mirror) fn end_rounds(&self) {
        if self.next_round_ns.load(Ordering::Acquire) == 0 {
            self.round.store(0, Ordering::Release);
            self.last_round_ns.store(0, Ordering::Release);
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
        self.last_round_ns.fetch_max(now_ns, Ordering::AcqRel);
        // Cleared before the round begins, so that an error of that round is not forgotten.
        self.target_failed.store(false, Ordering::Release);
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
