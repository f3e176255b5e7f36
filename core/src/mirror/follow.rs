//! How the job's home follows the guest: when it looks, and what it expects.
//!
//! While there is work, the home takes stock every [`TICK_NS`]: rates, the forecast of a switch-over, whether the remainder
//! still shrinks, how much the copiers may have in flight. When everything is copied it looks for dirty chunks every
//! [`LOOK_NS`], which gathers neighbouring writes and costs the guest nothing. When nothing turned dirty for
//! [`QUIET_NS`], it sleeps, and the next guest write that dirties a chunk wakes it (see `doorbell`): a
//! guest pays for that at most a few times a second, and an idle disk costs nothing.

use super::coordinator::Sight;
use super::escalate::{Escalator, Stock};
use super::estimate::{Attempt, Effort, Estimate, Sample};
use super::figures::to_ns;
use super::options::{LatencyBudget, MirrorOptions};
use super::pace::Pace;
use super::pacer::{Budget, GuestLatency, Pacer, Tick};
use super::progress::Progress;
use super::share::Share;

/// How often stock is taken while there is work.
const TICK_NS: u64 = 10_000_000;
/// How often a job that has copied everything looks for dirty chunks.
const LOOK_NS: u64 = 2_000_000;
/// After so long without a dirty chunk the home sleeps until it is woken.
const QUIET_NS: u64 = 100_000_000;
/// A home that sleeps looks up all the same, in case that a host marks chunks without telling anybody.
const LONGEST_SLEEP_NS: u64 = 500_000_000;
/// After so long without a flush, or an attempt to switch over, the next one is expected to take half as long as the last.
const FADES_NS: u64 = 1_000_000_000;

/// What the home knows of the guest's requests when it takes stock.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// How long those took that ended since the last time.
    pub latency: GuestLatency,
    /// Whether some are under way.
    pub waits: bool,
}

/// A switch-over that is being tried, to learn from it for the next forecast.
#[derive(Clone, Copy, Debug)]
struct Attempting {
    /// When the gate was closed.
    closed_ns: u64,
    /// When the last guest request had left it.
    quiet_ns: Option<u64>,
    /// What had been copied by then.
    copied_bytes: u64,
    /// What its flushes took.
    flush_ns: u64,
}

/// A time that was measured, and is believed half as much after every [`FADES_NS`] in which it was not measured again.
#[derive(Clone, Copy, Debug, Default)]
struct Fading {
    /// The time.
    ns: u64,
    /// When it was measured, or believed half as much.
    known_ns: u64,
}

impl Fading {
    /// Believes half of it if it is time for that; whether it was.
    fn fades(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.known_ns + FADES_NS;
        if due {
            *self = Self { ns: self.ns / 2, known_ns: now_ns };
        }
        due
    }
}

/// The home's view of a job; see the module.
#[derive(Debug)]
pub struct Follow {
    /// Rates and forecasts.
    estimate: Estimate,
    /// What is done when the remainder does not shrink.
    escalator: Escalator,
    /// How fast the copiers may go for the guest's sake; `None` = as fast as they can.
    pacer: Option<Pacer>,
    /// When stock is taken next.
    tick_at_ns: u64,
    /// When the flush that is under way was sent.
    flush_sent_ns: Option<u64>,
    /// What flushes take.
    flush: Fading,
    /// The switch-over that is being tried.
    attempting: Option<Attempting>,
    /// How long the last one waited for guest requests.
    overhead: Fading,
    /// Since when nothing was dirty.
    clean_since_ns: Option<u64>,
}

impl Follow {
    /// The view of a job with these options.
    #[must_use]
    pub fn new(options: &MirrorOptions) -> Self {
        let budget = match options.latency_budget.in_force() {
            LatencyBudget::Off => None,
            LatencyBudget::Absolute(time) => Some(Budget::AbsoluteNs(to_ns(Some(time)))),
            LatencyBudget::Baseline(times) => Some(Budget::Baseline(times)),
        };
        Self {
            pacer: budget.map(Pacer::new),
            estimate: Estimate::new(),
            escalator: Escalator::new(options),
            tick_at_ns: 0,
            flush_sent_ns: None,
            flush: Fading::default(),
            attempting: None,
            overhead: Fading::default(),
            clean_since_ns: None,
        }
    }

    /// What the coordinator is told. `left_bytes` is what is left at this moment: a guest can write more than fits into a pause
    /// in the time since stock was taken.
    #[must_use]
    pub fn sight(&self, left_bytes: u64, now_ns: u64, gate_is_quiet: bool) -> Sight {
        let predicted_pause = self.estimate.predicted_pause_with(left_bytes);
        let predicted_pause_ns = predicted_pause.map(|pause| to_ns(Some(pause)));
        let slow_flush_ns = self.estimate.slow_flush_ns();
        Sight { now_ns, gate_is_quiet, predicted_pause_ns, flush_ns: self.flush.ns, slow_flush_ns }
    }

    /// Whether it is time to take stock. The home is awake from here on.
    #[must_use]
    pub fn is_due(&self, share: &Share, now_ns: u64) -> bool {
        share.doorbell.disarm();
        now_ns >= self.tick_at_ns
    }

    /// Whether the guest's latencies decide how fast the copiers go; a job without a budget need not look at them.
    #[must_use]
    pub fn makes_room(&self) -> bool {
        self.pacer.is_some()
    }

    /// Takes stock; `guest` is there if [`Self::makes_room`], `has_queues` says whether the drive has any. `true` when the copiers
    /// may go faster than before, so that those who sleep must be woken.
    #[must_use]
    pub fn tick(
        &mut self,
        share: &Share,
        missed: u32,
        guest: Option<&Guest>,
        has_queues: &dyn Fn() -> bool,
        now_ns: u64,
    ) -> bool {
        self.tick_at_ns = now_ns + TICK_NS;
        self.fade_flushes(now_ns);
        self.fade_overhead(now_ns);
        let progress = share.progress();
        let sample = Sample {
            now_ns,
            copied_bytes: progress.copied_bytes + progress.zeroed_bytes,
            dirtied_bytes: share.dirty.dirtied_bytes(),
            left_bytes: share.remaining_bytes(&progress),
            effort: Self::effort(share),
        };
        self.estimate.sample(sample);
        share.figures.publish(&self.estimate);
        share.tail.look(sample.left_bytes, self.estimate.able_rate_bytes_per_s(), share.max_pause.get());
        let stock = Stock { sample, missed, estimate: &self.estimate, has_queues };
        self.escalator.look(share, &stock, self.pacer.as_mut());
        self.set_pace(share, guest, &progress, now_ns)
    }

    /// Makes room for the guest; `true` when the copiers may go faster than before.
    fn set_pace(&mut self, share: &Share, guest: Option<&Guest>, progress: &Progress, now_ns: u64) -> bool {
        let (Some(pacer), Some(guest)) = (&mut self.pacer, guest) else { return false };
        let before = share.pace();
        let copying_bytes = progress.in_flight_bytes;
        share.set_pace(pacer.tick(&Tick {
            now_ns,
            guest: &guest.latency,
            guest_waits: guest.waits,
            copying_bytes,
        }));
        // A turn in which nobody may copy is none.
        let passed = before.in_flight_bytes > 0 && share.pass_turn(now_ns);
        passed || share.pace().in_flight_bytes > before.in_flight_bytes
    }

    /// What slows the copiers down.
    fn effort(share: &Share) -> Effort {
        match share.pace() {
            _ if share.is_held() => Effort::Held,
            Pace { in_flight_bytes: 0, .. } => Effort::Held,
            _ if share.is_urgent() => Effort::Full,
            pace if pace == Pace::FULL && share.limiter.speed() == 0 => Effort::Full,
            _ => Effort::Paced,
        }
    }

    /// The gate was closed for a switch-over.
    pub fn gate_closed(&mut self, share: &Share, now_ns: u64) {
        let copied_bytes = Self::copied_bytes(share);
        self.attempting = Some(Attempting { closed_ns: now_ns, quiet_ns: None, copied_bytes, flush_ns: 0 });
    }

    /// Nobody is inside the closed gate.
    pub fn gate_is_quiet(&mut self, now_ns: u64) {
        if let Some(attempting) = &mut self.attempting {
            attempting.quiet_ns.get_or_insert(now_ns);
        }
    }

    /// The gate is open again, whatever came of it.
    pub fn gate_opened(&mut self, share: &Share, now_ns: u64) {
        let Some(attempting) = self.attempting.take() else { return };
        let Some(quiet_ns) = attempting.quiet_ns else { return };
        self.overhead = Fading { ns: quiet_ns.saturating_sub(attempting.closed_ns), known_ns: now_ns };
        self.estimate.attempted(Attempt {
            copied_bytes: Self::copied_bytes(share).saturating_sub(attempting.copied_bytes),
            copy_ns: now_ns.saturating_sub(quiet_ns).saturating_sub(attempting.flush_ns),
            overhead_ns: self.overhead.ns,
        });
    }

    /// Bytes that copiers have written.
    fn copied_bytes(share: &Share) -> u64 {
        let progress = share.progress();
        progress.copied_bytes + progress.zeroed_bytes
    }

    /// A flush is sent.
    pub fn flush_sent(&mut self, now_ns: u64) {
        self.flush_sent_ns = Some(now_ns);
    }

    /// The flush has ended.
    pub fn flush_ended(&mut self, share: &Share, now_ns: u64) {
        if let Some(sent) = self.flush_sent_ns.take() {
            self.flush = Fading { ns: now_ns.saturating_sub(sent), known_ns: now_ns };
            if let Some(attempting) = &mut self.attempting {
                attempting.flush_ns += self.flush.ns;
            }
            self.estimate.flushed(self.flush.ns);
            share.figures.set_flush(self.estimate.slow_flush_ns());
        }
    }

    /// What is known of flushes fades. Otherwise one slow flush, while the target hung for a moment, could keep the job from
    /// ready for ever: with a forecast that does not fit nothing is flushed, and only a flush would correct the forecast.
    fn fade_flushes(&mut self, now_ns: u64) {
        if self.flush_sent_ns.is_none() && self.flush.fades(now_ns) {
            self.estimate.flushed(self.flush.ns);
        }
    }

    /// So does what is known of attempts: after one in which guest requests took longer than the pause may, no forecast would
    /// fit, and only another attempt would correct it.
    fn fade_overhead(&mut self, now_ns: u64) {
        if self.attempting.is_none() && self.overhead.ns > 0 && self.overhead.fades(now_ns) {
            self.estimate.overhead_fades(self.overhead.ns);
        }
    }

    /// The home has nothing to do now: when to look again if nothing happens; `None` = when it is woken.
    #[must_use]
    pub fn rest_until_ns(&mut self, share: &Share, now_ns: u64) -> Option<u64> {
        if share.is_ending() || share.status().is_over() {
            return None;
        }
        if share.is_held() || !share.is_finished() {
            self.clean_since_ns = None;
            // While another worker has the last of it in hand, the guest goes on writing, and the home is who sees that.
            let soon = if !share.is_held() && share.has_few_left() { now_ns + LOOK_NS } else { u64::MAX };
            return Some(self.tick_at_ns.min(soon).max(now_ns + 1));
        }
        let since = *self.clean_since_ns.get_or_insert(now_ns);
        if now_ns < since + QUIET_NS {
            return Some(now_ns + LOOK_NS);
        }
        share.doorbell.arm();
        if share.is_finished() {
            return Some(now_ns + LONGEST_SLEEP_NS);
        }
        share.doorbell.disarm();
        Some(now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forecast is what decides about the next attempt, so a bad one must not last: the job would never end.
    #[test]
    fn one_slow_attempt_does_not_keep_the_forecast_high_for_ever() {
        let mut follow = Follow::new(&MirrorOptions::default());
        let closed_ns = 1_000_000_000;
        follow.overhead = Fading { ns: 90_000_000, known_ns: closed_ns };
        follow.estimate.overhead_fades(90_000_000);
        let pause_ns = |follow: &Follow| follow.sight(0, 0, false).predicted_pause_ns.unwrap();
        (0..90).for_each(|n| follow.fade_overhead(closed_ns + n * 10_000_000));
        assert!(pause_ns(&follow) >= 90_000_000, "it is believed for a while");
        (0..700).for_each(|n| follow.fade_overhead(closed_ns + 1_000_000_000 + n * 10_000_000));
        assert!(pause_ns(&follow) < 30_000_000, "{} ns", pause_ns(&follow));
        let attempting = Attempting { closed_ns, quiet_ns: None, copied_bytes: 0, flush_ns: 0 };
        follow.attempting = Some(attempting);
        let before = pause_ns(&follow);
        (0..300).for_each(|n| follow.fade_overhead(closed_ns + 9_000_000_000 + n * 10_000_000));
        assert_eq!(pause_ns(&follow), before, "an attempt is under way and will tell");
    }

    /// The forecast is what decides about the next flush, so a bad one must not last.
    #[test]
    fn one_slow_flush_does_not_keep_the_forecast_high_for_ever() {
        let mut follow = Follow::new(&MirrorOptions::default());
        let sample = |now_ns| Sample {
            now_ns,
            copied_bytes: 0,
            dirtied_bytes: 0,
            left_bytes: 0,
            effort: Effort::Full,
        };
        follow.estimate.sample(sample(1));
        follow.estimate.flushed(90_000_000);
        follow.flush = Fading { ns: 90_000_000, known_ns: 90_000_000 };
        let pause_ns = |follow: &Follow| follow.sight(0, 0, false).predicted_pause_ns.unwrap();
        (0..90).for_each(|n| follow.fade_flushes(n * 10_000_000));
        assert!(pause_ns(&follow) >= 89_000_000, "it is believed for a while");
        (0..700).for_each(|n| follow.fade_flushes(1_000_000_000 + n * 10_000_000));
        assert!(pause_ns(&follow) < 30_000_000, "{} ns", pause_ns(&follow));
        follow.flush_sent(8_000_000_000);
        let before = pause_ns(&follow);
        (0..300).for_each(|n| follow.fade_flushes(8_000_000_000 + n * 10_000_000));
        assert_eq!(pause_ns(&follow), before, "a flush is under way and will tell");
    }
}
