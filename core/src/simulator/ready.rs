//! Ready means what it says: a switch-over within `max_pause` is possible now.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::guests::Line;
use super::model::BLOCK;
use super::recipe::{Death, Recipe};
use super::simulation::{Live, Simulation, Wrong};
use super::tracked::Tracked;
use crate::mirror::JobStatus;
use crate::ring::sim::Faults;
use crate::units::{bytes_u64, bytes_usize};

impl Recipe {
    /// Whether nothing goes wrong, and the host does nothing in between: what is foreseen then comes true. Where zeroes are
    /// looked for, a few bytes may take many small requests one after the other, which no forecast by bytes sees.
    fn is_calm(&self) -> bool {
        let faultless = self.faults == [Faults::default(); 2] && self.deaths == [Death::None; 2];
        faultless && self.meddle_ns == 0 && !self.options.zero_detect
    }

    /// What a switch-over takes at least on these disks, with so many bytes left.
    fn least_pause(&self, left_bytes: u64) -> Duration {
        if left_bytes == 0 {
            return Duration::ZERO;
        }
        // They are read, written and flushed, and all that is written goes through the target one by one.
        let [source_ns, target_ns] = self.latency_ns.map(|(least_ns, _)| least_ns);
        let transfer_ns = match self.rate_bytes_per_s {
            0 => 0,
            rate => u128::from(left_bytes) * 1_000_000_000 / u128::from(rate),
        };
        let transfer_ns = u64::try_from(transfer_ns).unwrap_or(u64::MAX);
        Duration::from_nanos(transfer_ns.saturating_add(source_ns + 2 * target_ns))
    }
}

impl Simulation {
    /// A job has become ready.
    pub(super) fn look_at_ready(&mut self, status: JobStatus) -> Result<(), Wrong> {
        let ready = status.is_ready();
        if !ready || std::mem::replace(&mut self.watch.was_ready, true) {
            return Ok(());
        }
        let Some(Live { share, options, job, .. }) = &self.live else { return Ok(()) };
        if !share.sweep_is_claimed() {
            return Err(Wrong::new("ready before the first pass was over"));
        }
        if options.strict_ready && !(share.dirty.is_clean() && share.is_finished()) {
            return Err(Wrong::new("strictly ready, and something is dirty or under way"));
        }
        if let Some(max) = share.max_pause.get() {
            let left_bytes = self.differing_bytes().saturating_sub(share.progress().in_flight_bytes);
            let told = job.query().predicted_pause;
            let least = self.recipe.least_pause(left_bytes);
            if least > max {
                return Err(Wrong::new(format!(
                    "ready with {left_bytes} bytes left, which take {least:?}, and {max:?} are allowed"
                )));
            }
            // With nothing left there may be nothing to flush, and then the forecast does not count.
            if told.is_none_or(|told| told > max) && !share.is_finished() {
                return Err(Wrong::new(format!(
                    "ready, and a switch-over is said to take {told:?}, with {max:?} allowed"
                )));
            }
        }
        self.check_clean(false)
    }

    /// Bytes that must go through the target before both sides are equal, as the disks say and not as the job does: what differs
    /// and is not zero.
    fn differing_bytes(&self) -> u64 {
        let Some(Live { source, target, .. }) = &self.live else { return 0 };
        let differs = |(a, b): &(&[u8], &[u8])| a != b && a.iter().any(|&byte| byte != 0);
        let blocks = source.look(|source| {
            target.look(|target| {
                let block = bytes_usize(BLOCK);
                source.chunks(block).zip(target.chunks(block)).filter(differs).count()
            })
        });
        bytes_u64(blocks) * BLOCK
    }

    /// The host asks a job that is ready for the switch-over. While nothing goes wrong and nobody asks for anything, it must
    /// fit, if what is left goes through the target in the part of the pause that is not kept for what cannot be foreseen. The
    /// forecast may think that more fits, where zeroes went fast and what is left is data; then a miss is no lie.
    pub(super) fn switch_over_is_asked(&mut self) {
        let Some(Live { share, options, .. }) = &self.live else { return };
        let quiet = self.lines.iter().all(Line::is_idle) && self.tracked.iter().all(Tracked::is_idle);
        // In whole chunks, which may be more than what differs.
        let least = self.recipe.least_pause(share.unfinished_bytes());
        let fits = options.max_pause.is_none_or(|max| least <= max / 4 * 3);
        let calm = quiet && fits && self.recipe.is_calm();
        self.watch.must_fit = calm.then_some(self.asked);
        self.story.calm += u32::from(calm);
    }

    /// A switch-over did not fit into its time.
    pub(super) fn check_miss(&self) -> Result<(), Wrong> {
        if self.watch.must_fit == Some(self.asked) {
            return Err(Wrong::new("ready, asked for the end, disturbed by nobody, and it did not fit"));
        }
        Ok(())
    }
}
