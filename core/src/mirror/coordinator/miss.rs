//! The pause is bounded: when it would become too long, what follows from that, and a host that changes the bound.
#![forbid(unsafe_code)]

use super::{
    Act, BRAKE_GAP_MIN_NS, BRAKE_GAP_NS, Coordinator, MISSED_BACKOFF_MAX_NS, MISSED_BACKOFF_NS, Sight, Stage,
};
use crate::mirror::share::{Notice, Share};

impl Coordinator {
    /// The host may have changed how long guest requests may be held. What was missed or found too slow by another bound says
    /// nothing any more.
    pub(super) fn heed_max_pause(&mut self, share: &Share) {
        let max_pause_ns = share.max_pause.ns();
        if std::mem::replace(&mut self.max_pause_ns, max_pause_ns) != max_pause_ns {
            self.measure_at_ns = 0;
            if self.stage == Stage::Copying {
                self.retry_at_ns = 0;
            }
        }
    }

    /// Whether the pause would become too long if it went on.
    pub(super) fn is_overdue(&self, sight: &Sight) -> bool {
        let Some(limit_ns) = self.limit_ns() else { return false };
        let flush_ns = if self.stage == Stage::Final { sight.flush_ns.min(limit_ns / 2) } else { 0 };
        self.closed_at_ns.is_some_and(|at| sight.now_ns + flush_ns >= at + limit_ns)
    }

    /// The longest pause, less what opening the gate again may take.
    pub(super) fn limit_ns(&self) -> Option<u64> {
        self.max_pause_ns.map(|max| max - max / 16)
    }

    /// The gate is opened again and the job goes on as before.
    pub(super) fn miss(&mut self, share: &Share, now_ns: u64) -> Act {
        let held_ns = now_ns.saturating_sub(self.closed_at_ns.take().unwrap_or(now_ns));
        share.set_urgent(false);
        self.stage = Stage::Copying;
        if share.wants_completion() || self.completes_itself {
            self.missed = self.missed.saturating_add(1);
            share.figures.set_missed(self.missed);
            share.post(Notice::SwitchOverMissed { held_ns, left_bytes: share.left_bytes() });
        }
        self.retry_at_ns = now_ns + self.gap_ns(share);
        Act::OpenGate
    }

    /// How long the gate stays open now. Longer each time, for the guest's sake; or, when braking, shorter each time, for the
    /// end's.
    fn gap_ns(&mut self, share: &Share) -> u64 {
        if share.is_braking() {
            self.braked = self.braked.saturating_add(1);
            return (BRAKE_GAP_NS >> self.braked.min(8)).max(BRAKE_GAP_MIN_NS);
        }
        (MISSED_BACKOFF_NS << self.missed.min(8)).min(MISSED_BACKOFF_MAX_NS)
    }
}
