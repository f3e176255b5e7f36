//! Flushes of the target: when one is asked for, what it covers, and what its end leads to (**Flushed is flushed**).

use super::{Act, Coordinator, MEASURE_NS, Purpose, READY_AGAIN_NS, ROOM_NS, Sight, Stage};
use crate::mirror::policy::{self, Side};
use crate::mirror::share::{FailureCause, Share};
use crate::mirror::states::Turn;
use crate::units::ByteRange;

/// So many flushes in a row that were in vain are as bad as a switch-over that was missed.
const AS_A_MISS: u32 = 4;

/// Flushes for a step that did not fit any more when they had ended.
#[derive(Debug, Default)]
pub(super) struct Vain {
    /// The flush that was asked for last was for a step that fitted, and not to see how long it takes.
    had_fitted: bool,
    /// How many in a row.
    in_a_row: u32,
    /// How often these were [`AS_A_MISS`].
    misses: u32,
}

impl Vain {
    /// How often they were as bad as a miss.
    pub(super) fn misses(&self) -> u32 {
        self.misses
    }

    /// The flush that is under way says only how long it takes.
    pub(super) fn only_measures(&mut self) {
        self.had_fitted = false;
    }

    /// One was not in vain.
    pub(super) fn end(&mut self) {
        self.in_a_row = 0;
    }

    /// One was.
    fn add(&mut self) {
        if std::mem::take(&mut self.had_fitted) {
            self.in_a_row += 1;
        }
        if self.in_a_row == AS_A_MISS {
            (self.in_a_row, self.misses) = (0, self.misses.saturating_add(1));
        }
    }
}

impl Coordinator {
    /// Asks for a flush, because the next step fits.
    pub(super) fn flush(&mut self, share: &Share, purpose: Purpose) -> Act {
        self.vain.had_fitted = true;
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
                let fits = share.is_held() || self.could_be_ready(share, sight);
                if !fits {
                    self.flushed_in_vain(sight);
                }
                if fits && !share.is_held() && share.turn(Turn::BecomeReady) {
                    self.vain.end();
                } else {
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

    /// When the flush was asked for the next step fitted, and now it does not. A guest whose bursts come in its time would keep the job
    /// from that step for ever, with a remainder that is small every now and then; so that counts as what it is.
    pub(super) fn flushed_in_vain(&mut self, sight: &Sight) {
        if self.flush_fits(sight) {
            self.vain.add();
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
