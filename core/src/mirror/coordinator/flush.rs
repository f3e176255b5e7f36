//! Flushes of the target: when one is asked for, what it covers, and what its end leads to (**Flushed is flushed**).

use super::{Act, Coordinator, MEASURE_NS, Purpose, READY_AGAIN_NS, ROOM_NS, Sight, Stage};
use crate::mirror::policy::{self, Side};
use crate::mirror::share::{FailureCause, Share};
use crate::mirror::states::Turn;
use crate::units::ByteRange;

impl Coordinator {
    /// Asks for a flush.
    pub(super) fn flush(&mut self, share: &Share, purpose: Purpose) -> Act {
        self.stage = Stage::Flushing(purpose);
        self.flush_covers = Some(Self::written(share));
        Act::Flush
    }

    /// Bytes that reached the target; exact when nobody has anything in hand.
    pub(super) fn written(share: &Share) -> u64 {
        let p = share.progress();
        p.copied_bytes + p.zeroed_bytes + p.active_bytes
    }

    /// The flush could not be sent for lack of room: ask again soon.
    pub fn not_sent(&mut self, now_ns: u64) {
        self.flush_covers = None;
        match self.stage {
            Stage::Flushing(Purpose::BehindGate) => self.stage = Stage::Final,
            Stage::Flushing(_) => self.stage = Stage::Copying,
            _ => {}
        }
        self.retry_at_ns = now_ns + ROOM_NS;
    }

    /// The flush that was asked for has ended, well or with an errno.
    ///
    /// A failed flush fails the job whatever the policy: the kernel reports such an error once and forgets what it could
    /// not write (fsync(2)), so a second flush that succeeds says nothing about what came before the first.
    pub fn flushed(&mut self, result: Result<(), i32>, share: &Share, sight: &Sight) {
        let covers = self.flush_covers.take();
        self.measure_at_ns = sight.now_ns.saturating_add(MEASURE_NS);
        if let Err(errno) = result {
            self.flush_failed(errno, share, sight.now_ns);
            return;
        }
        self.tries = 0;
        self.covers = covers;
        match self.stage {
            Stage::Flushing(Purpose::ToBeReady) => {
                self.stage = Stage::Copying;
                share.figures.foresee(sight.predicted_pause_ns);
                if share.is_held() || !self.could_be_ready(share, sight) || !share.turn(Turn::BecomeReady) {
                    self.retry_at_ns = sight.now_ns + READY_AGAIN_NS;
                }
            }
            Stage::Flushing(Purpose::BeforeGate) => {
                self.stage = Stage::Copying;
                self.preflushed = true;
            }
            Stage::Flushing(Purpose::BehindGate) => self.stage = Stage::Final,
            _ => {}
        }
    }

    /// Sends it again for a passing error, else the job fails.
    pub(super) fn flush_failed(&mut self, errno: i32, share: &Share, now_ns: u64) {
        let behind_gate = self.stage == Stage::Flushing(Purpose::BehindGate);
        if matches!(self.stage, Stage::Flushing(_)) {
            self.stage = if behind_gate { Stage::Final } else { Stage::Copying };
        }
        if let Some(wait) = policy::transient_backoff_ns(errno, self.tries) {
            self.tries += 1;
            self.retry_at_ns = now_ns + if behind_gate { 0 } else { wait };
            return;
        }
        let notice = share.on_error(Side::Target, errno, ByteRange::default(), FailureCause::Flush, now_ns);
        share.post(notice);
    }
}
