//! Flushes of the target: when one is asked for, what it covers, and what its end leads to (**Flushed is flushed**).

use super::{Act, Coordinator, MEASURE_NS, Purpose, READY_AGAIN_NS, ROOM_NS, Sight, Stage};
use crate::mirror::policy::{self, Side};
use crate::mirror::share::{FailureCause, Share};
use crate::mirror::states::Turn;
use crate::units::ByteRange;

/// So many flushes in a row that were in vain are as bad as a switch-over that was missed,
const AS_A_MISS: u32 = 4;
/// if they took so long: a burst is over sooner, and three misses are needed for a step.
const AS_A_MISS_NS: u64 = 700_000_000;

/// Flushes in a row for a step that did not fit any more when they had ended.
#[derive(Debug, Default)]
pub(super) struct Vain {
    /// The flush that was asked for last was for a step that fitted, and not to see how long it takes.
    had_fitted: bool,
    /// How many since the last miss.
    in_a_row: u32,
    /// When the first of these ended.
    since_ns: u64,
    /// How often they were as bad as a miss.
    misses: u32,
}

impl Vain {
    /// How often they were as bad as a miss.
    pub(super) fn misses(&self) -> u32 {
        self.misses
    }

    /// Nothing follows from what the flush that is under way leads to: it says only how long it takes, or the job is held.
    pub(super) fn does_not_count(&mut self) {
        self.had_fitted = false;
    }

    /// One was not in vain, and what was before it is forgiven.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// One was.
    fn add(&mut self, now_ns: u64) {
        if !std::mem::take(&mut self.had_fitted) {
            return;
        }
        if self.in_a_row == 0 {
            self.since_ns = now_ns;
        }
        self.in_a_row += 1;
        if self.in_a_row >= AS_A_MISS && now_ns.saturating_sub(self.since_ns) >= AS_A_MISS_NS {
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
        self.heed_max_pause(share);
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
                    self.flushed_in_vain(share, sight);
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

    /// When the flush was asked for the next step fitted, and now it does not. A guest whose bursts come in its time would keep the
    /// job from that step for ever, with a remainder that is small every now and then; so that counts as what it is.
    pub(super) fn flushed_in_vain(&mut self, share: &Share, sight: &Sight) {
        // What failed meanwhile under policy ignore is no guest's doing.
        if self.flush_fits(sight) && !share.awaits_round() {
            self.vain.add(sight.now_ns);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Flushes in vain, one every so many ms.
    fn flushed(vain: &mut Vain, from_ms: u64, every_ms: u64, times: u64) {
        for n in 0..times {
            vain.had_fitted = true;
            vain.add((from_ms + n * every_ms) * 1_000_000);
        }
    }

    /// A guest that writes much for a moment must not be stepped against for good, nor for what was hours ago.
    #[test]
    fn only_what_goes_on_counts_and_it_is_forgiven_when_a_flush_was_of_use() {
        let mut vain = Vain::default();
        flushed(&mut vain, 0, 25, 20);
        assert_eq!(vain.misses(), 0, "half a second");
        flushed(&mut vain, 500, 25, 80);
        assert_eq!(vain.misses(), 3, "two seconds and a half");
        vain.end();
        assert_eq!(vain.misses(), 0);
        flushed(&mut vain, 10_000, 2000, 3);
        assert_eq!(vain.misses(), 0, "too few");
        flushed(&mut vain, 16_000, 2000, 1);
        assert_eq!(vain.misses(), 1);
    }

    #[test]
    fn a_flush_that_only_measures_is_never_in_vain() {
        let mut vain = Vain::default();
        for n in 0..100 {
            vain.had_fitted = true;
            vain.does_not_count();
            vain.add(n * 100_000_000);
        }
        assert_eq!(vain.misses(), 0);
    }
}
