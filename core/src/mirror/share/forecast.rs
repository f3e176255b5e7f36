//! What is still to be copied, and whether a switch-over would fit now, for whoever asks at any time.

use super::Share;
use crate::mirror::coordinator::is_within;
use crate::mirror::progress::{Progress, Tally};
use crate::mirror::states::JobStatus;

impl Share {
    /// Bytes that are not on the target as they are on the source, whoever has them in hand; `progress` is the job's of now.
    ///
    /// During the first pass a worker has a part of the disk in hand that the sweep has given out and nobody has claimed: it is
    /// neither dirty nor ahead nor in flight. But nothing is copied twice then, so what is left is what was not dealt with.
    #[must_use]
    pub fn remaining_bytes(&self, progress: &Progress) -> u64 {
        let left_bytes = if self.sweep_is_claimed() {
            self.unfinished_bytes()
        } else {
            self.dirty.dirty_bytes().saturating_add(progress.disk_bytes - progress.done_bytes)
        };
        left_bytes.min(progress.disk_bytes)
    }

    /// Once the first pass was claimed: bytes that are left, or claimed by a copier, begun or not. A switch-over that began now
    /// would have to wait for them.
    #[must_use]
    pub(crate) fn unfinished_bytes(&self) -> u64 {
        self.left_bytes().saturating_add(self.in_hand_bytes())
    }

    /// Bytes that copiers have claimed and not done.
    fn in_hand_bytes(&self) -> u64 {
        self.tallies.iter().map(Tally::in_hand_bytes).fold(0, u64::saturating_add)
    }

    /// Whether a switch-over begun now is forecast to fit into the pause that the host allows. The coordinator asks the same before
    /// it closes the gate, but with a forecast of that moment; this one is from when the home took stock last.
    #[must_use]
    pub fn fits_now(&self) -> bool {
        let max_pause = self.max_pause.get();
        let runs = matches!(self.status(), JobStatus::Running | JobStatus::Ready);
        // What failed under policy ignore may fail again, and no pause is long enough for that.
        if !runs || self.is_held() || self.is_ending() || !self.sweep_is_claimed() || self.awaits_round() {
            return false;
        }
        match self.figures.predicted_pause() {
            Some(predicted) => is_within(predicted, max_pause),
            None => max_pause.is_none() || self.is_finished(),
        }
    }
}
