//! What an error leads to, and the rounds of policy `ignore`.
//!
//! With `ignore` what failed stays dirty and is tried again in a later round. Rounds come further and further apart, and with
//! smaller requests, so that one bad block does not keep its neighbours from the target.

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
        if action == ErrorAction::Ignore && !self.schedule_round(now_ns) {
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

    /// Puts the next round of an ignored error off; `false` when there were too many.
    fn schedule_round(&self, now_ns: u64) -> bool {
        let round = self.round.load(Ordering::Acquire);
        self.round_at_ns.fetch_max(now_ns + policy::ignore_backoff_ns(round), Ordering::AcqRel);
        self.round_pending.store(true, Ordering::Release);
        !self.gives_up || round < policy::IGNORE_ROUNDS
    }

    /// With policy `ignore`: something failed, and it is not known yet whether it would fail again.
    pub(in crate::mirror) fn awaits_round(&self, now_ns: u64) -> bool {
        let settled_ns = self.round_at_ns.load(Ordering::Acquire).saturating_add(ROUND_SETTLED_NS);
        self.round_pending.load(Ordering::Acquire)
            || (self.round.load(Ordering::Acquire) > 0 && now_ns < settled_ns)
    }

    /// Everything could be copied: requests have their full size again, and the next failure is a first one.
    pub(in crate::mirror) fn end_rounds(&self) {
        if !self.round_pending.load(Ordering::Acquire) {
            self.round.store(0, Ordering::Release);
        }
    }

    /// When dirty chunks may be taken up again; `None` = now. Begins the next round when its time has come.
    pub(in crate::mirror) fn round_wait(&self, now_ns: u64) -> Option<u64> {
        if !self.round_pending.load(Ordering::Acquire) {
            return None;
        }
        let at = self.round_at_ns.load(Ordering::Acquire);
        if now_ns < at {
            return Some(at);
        }
        if self.round_pending.swap(false, Ordering::AcqRel) {
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
