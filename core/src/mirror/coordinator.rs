//! A job's course, decided by one worker, its home: ready, switch-over, end.
//!
//! ```text
//! stage      | what goes on                          | leads to
//! -----------+---------------------------------------+----------------------------------------------------------
//! Copying    | copiers run, or the job is held       | Flushing(ToBeReady) when a switch-over would fit
//!            |                                       | Flushing(BeforeGate) when the end is wanted and fits
//!            |                                       | CloseGate, Draining when it still fits after that, or to brake
//! Flushing   | a flush of the target is under way    | ToBeReady  -> Copying, ready if it still fits
//!            |                                       | BeforeGate -> Copying
//!            |                                       | BehindGate -> Final
//! Draining   | gate closed, guest requests inside    | Final when the gate is quiet
//! Final      | gate closed and quiet, the rest is    | Flushing(BehindGate), or Sealed if all that was written is
//!            | copied                                | flushed already
//! Sealed     | all copied and flushed, nobody writes | waiting, pending, [finalize], Pivot, LetGo, OpenGate, Conclude
//! Over       |                                       |
//!
//! Draining, Final, Flushing(BehindGate): when the pause would become too long, or the job is held -> OpenGate, Copying
//! every stage before Sealed: cancelled or failed -> OpenGate, wait for idle, LetGo, Conclude
//! Sealed, until it is decided: cancelled -> the same
//! ```
//!
//! - **Zero is decided behind the gate.** `Sealed` is reached only with the gate closed and quiet.
//! - **Flushed is flushed.** It is reached only with a flush that succeeded and began after the last write to the target had
//!   completed. One flush comes before the gate is closed, so that the one behind it has little to do; if nothing was
//!   written in between there is no second one.
//! - **Nothing after the verdict.** `Sealed` closes the job's [`Activity`](super::Activity): no copier takes up work any more.
//!
//! When copy mode auto has found that the remainder does not shrink whatever is done, the gate is closed now and then just to gain
//! on the guest (*braking*): guest requests are held for at most `max_pause`, everything is copied that fits in, and the gate is
//! opened again. If that was all, and it could be flushed, too, the job is ready. The times in between become shorter until the
//! remainder fits into one pause. So completion is bounded for every write rate, also of hosts that do their own I/O, if what the
//! guest makes dirty in [`BRAKE_GAP_MIN_NS`] and a flush of the target fit into three quarters of `max_pause`.
//!
//! The pause is bounded: but for braking, the coordinator closes the gate only when the forecast fits into three quarters of
//! `max_pause`, and it opens the gate again, with the job as it was, when that does not come true. It then waits longer each time
//! before it tries again.

mod ending;
mod flush;
mod miss;

use std::time::Duration;

use super::figures::to_ns;
use super::mutation::Mutation;
use super::options::{MirrorOptions, OnCopied};

use super::share::Share;
use super::states::{JobStatus, Turn};
use flush::Vain;

/// What the home is to do now; after each but `Rest` it looks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Nothing.
    Rest,
    /// Send a flush to the target and report its end with [`Coordinator::flushed`], or [`Coordinator::not_sent`].
    Flush,
    /// Close the drive's gate.
    CloseGate,
    /// Open it.
    OpenGate,
    /// Wake every worker: the job ends, and who sleeps must put back what he holds.
    Rouse,
    /// Move the drive to the target.
    Pivot,
    /// Detach the job from the drive.
    LetGo,
    /// Tell the host how it ended.
    Conclude(End),
}

/// How a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The target equals the source as of the switch-over, and is flushed.
    Completed,
    /// The host cancelled it; the target is no copy.
    Cancelled,
    /// It failed; the target is no copy.
    Failed,
}

/// What the coordinator cannot see for itself.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Now.
    pub now_ns: u64,
    /// Nobody is inside the drive's gate.
    pub gate_is_quiet: bool,
    /// How long a switch-over begun now would hold guest requests; `None` = not known yet.
    pub predicted_pause_ns: Option<u64>,
    /// What a flush of the target takes.
    pub flush_ns: u64,
    /// The part of `predicted_pause_ns` that is a flush: the slowest one that is remembered.
    pub slow_flush_ns: u64,
}

/// What a flush is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// To be ready: it shows that the target can be flushed, and how long that takes.
    ToBeReady,
    /// To leave little to the flush behind the gate.
    BeforeGate,
    /// To make the target's content durable before the drive may move.
    BehindGate,
}

/// Where a job stands on its way; see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Copiers run, or the job is held.
    Copying,
    /// A flush of the target is under way.
    Flushing(Purpose),
    /// The gate is closed, and guest requests are inside.
    Draining,
    /// The gate is closed and quiet, and the rest is copied.
    Final,
    /// All is copied and flushed.
    Sealed(Seal),
    /// Cancelled or failed, and detached.
    Ending,
    /// The verdict was given.
    Over,
}

/// The steps from "all copied and flushed" to the end, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seal {
    /// The host was told that the job is pending.
    Announced,
    /// The drive has moved.
    Moved,
    /// The job is detached from the drive.
    Detached,
    /// The gate is open.
    Opened,
}

/// How long a cancelled or failed job waits for requests that are under way before it ends without them.
const GRACE_NS: u64 = 500_000_000;
/// When the ring has no room for the flush, the wait until it is tried again.
const ROOM_NS: u64 = 1_000_000;
/// How often the gate is looked at while guest requests are inside.
const DRAIN_LOOK_NS: u64 = 100_000;
/// The wait before a switch-over that was missed is tried again; doubled each time up to the longest.
const MISSED_BACKOFF_NS: u64 = 20_000_000;
/// The longest such wait.
const MISSED_BACKOFF_MAX_NS: u64 = 2_000_000_000;
/// When braking, how long the gate stays open between two holds; halved each time down to the shortest.
const BRAKE_GAP_NS: u64 = 200_000_000;
/// The shortest such time.
const BRAKE_GAP_MIN_NS: u64 = 5_000_000;
/// When the drive refused to move, the wait until it is asked again.
const MOVE_AGAIN_NS: u64 = 100_000;
/// How often it is asked.
const MOVES: u32 = 10_000;
/// The part of the pause that is kept for what cannot be foreseen: a switch-over is begun when its forecast fits into the rest.
const RESERVE: u64 = 4;
/// A flush that was to make the job ready and did not is not repeated sooner.
const READY_AGAIN_NS: u64 = 20_000_000;

/// How long a forecast may be for a switch-over that may take `max_pause_ns`.
pub(super) fn within_ns(max_pause_ns: u64) -> u64 {
    max_pause_ns - max_pause_ns / RESERVE
}

/// Whether a forecast is short enough for a switch-over that may take `max_pause`; `None` = any is.
pub(super) fn is_within(forecast: Duration, max_pause: Option<Duration>) -> bool {
    max_pause.is_none_or(|max| to_ns(Some(forecast)) <= within_ns(to_ns(Some(max))))
}

/// A flush that alone stands in the way is tried again after so long: it may have been slow that once, as the first one
/// after a long copy is.
const MEASURE_NS: u64 = 200_000_000;

/// Decides a job's course.
#[derive(Debug)]
pub struct Coordinator {
    /// Where it stands.
    stage: Stage,
    /// How long guest requests may be held, as the host said last.
    max_pause_ns: Option<u64>,
    /// Ready only when nothing is dirty.
    strict_ready: bool,
    /// A pending switch-over needs no word of the host.
    auto_finalize: bool,
    /// The job completes when everything is copied.
    completes_itself: bool,
    /// What had been written to the target when the last flush that succeeded began.
    covers: Option<u64>,
    /// The same for the flush that is under way.
    flush_covers: Option<u64>,
    /// The flush that comes before the gate is closed has just been made.
    preflushed: bool,
    /// When the gate was closed.
    closed_at_ns: Option<u64>,
    /// For how long it was, at the switch-over.
    pause_ns: Option<u64>,
    /// Nothing is tried before this time: after a failed flush, or a switch-over that was missed.
    retry_at_ns: u64,
    /// When a flush is sent only to see how long it takes.
    measure_at_ns: u64,
    /// How often the flush was sent again for a passing error.
    tries: u8,
    /// Switch-overs that were missed.
    missed: u32,
    /// Flushes that were in vain.
    vain: Vain,
    /// How often guest requests were held to gain on them.
    braked: u32,
    /// How often the drive refused to move.
    refused_moves: u32,
    /// When the job was seen to end by cancel or failure.
    ending_since_ns: u64,
}

impl Coordinator {
    /// The course of a job with these options.
    #[must_use]
    pub fn new(options: &MirrorOptions) -> Self {
        Self {
            stage: Stage::Copying,
            max_pause_ns: options.max_pause.map(|pause| to_ns(Some(pause))),
            strict_ready: options.strict_ready,
            auto_finalize: options.auto_finalize,
            completes_itself: options.on_copied == OnCopied::Complete,
            covers: None,
            flush_covers: None,
            preflushed: false,
            closed_at_ns: None,
            pause_ns: None,
            retry_at_ns: 0,
            measure_at_ns: 0,
            tries: 0,
            missed: 0,
            vain: Vain::default(),
            braked: 0,
            refused_moves: 0,
            ending_since_ns: 0,
        }
    }

    /// How long guest requests were held at the switch-over, once it is over.
    #[must_use]
    pub fn pause_ns(&self) -> Option<u64> {
        self.pause_ns
    }

    /// Switch-overs that were missed so far; and what is as bad, a guest that always outruns the flush before one.
    #[must_use]
    pub fn missed(&self) -> u32 {
        self.missed.saturating_add(self.vain.misses())
    }

    /// Looks at the job and says what to do; called again until it says `Rest`.
    pub fn look(&mut self, share: &Share, sight: &Sight) -> Act {
        self.heed_max_pause(share);
        let ends = share.is_ending() && !matches!(self.stage, Stage::Sealed(_) | Stage::Over);
        let gives_up_seal = self.stage == Stage::Sealed(Seal::Announced) && share.gives_up();
        if ends || gives_up_seal {
            return self.end(share, sight.now_ns);
        }
        match self.stage {
            Stage::Copying => self.copying(share, sight),
            Stage::Flushing(Purpose::BehindGate) | Stage::Draining | Stage::Final => {
                self.behind_gate(share, sight)
            }
            Stage::Sealed(seal) => self.sealed(seal, share, sight.now_ns),
            Stage::Flushing(_) => {
                Self::follow_hold(share);
                Act::Rest
            }
            Stage::Ending | Stage::Over => Act::Rest,
        }
    }

    /// The gate is open.
    fn copying(&mut self, share: &Share, sight: &Sight) -> Act {
        if !Self::follow_hold(share) {
            self.vain.does_not_count();
            return Act::Rest;
        }
        if sight.now_ns < self.retry_at_ns || self.flush_covers.is_some() {
            return Act::Rest;
        }
        share.end_rounds();
        let ready = share.status() == JobStatus::Ready;
        if self.may_switch_over(ready, share, sight) {
            if std::mem::take(&mut self.preflushed) || self.covers == Some(Self::written(share)) {
                self.vain.end();
                return self.close_gate(share, sight.now_ns);
            }
            return self.flush(share, Purpose::BeforeGate);
        }
        if std::mem::take(&mut self.preflushed) {
            self.flushed_in_vain(share, sight);
        }
        if !share.is_braking() {
            self.braked = 0;
        }
        if !ready && !self.completes_itself && self.could_be_ready(share, sight) {
            return self.flush(share, Purpose::ToBeReady);
        }
        if (!ready || share.wants_completion()) && self.must_measure(share, sight) {
            let act = self.flush(share, if ready { Purpose::BeforeGate } else { Purpose::ToBeReady });
            self.vain.does_not_count();
            return act;
        }
        // What failed and is tried again later would only hold the guest for nothing.
        if self.must_brake(ready, share, sight) && !share.awaits_round() {
            return self.close_gate(share, sight.now_ns);
        }
        Act::Rest
    }

    /// Whether the next step would be in reach if a flush did not take as long as the slowest one did, and it is time to see
    /// whether it still does.
    fn must_measure(&self, share: &Share, sight: &Sight) -> bool {
        let (Some(max), Some(predicted)) = (self.max_pause_ns, sight.predicted_pause_ns) else {
            return false;
        };
        let else_fits = predicted.saturating_sub(sight.slow_flush_ns) <= within_ns(max);
        else_fits
            && predicted > within_ns(max)
            && share.sweep_is_claimed()
            && sight.now_ns >= self.measure_at_ns
    }

    /// Whether the end is wanted, and the forecast of a switch-over fits.
    fn may_switch_over(&self, ready: bool, share: &Share, sight: &Sight) -> bool {
        if self.completes_itself {
            return share.is_finished() || (self.max_pause_ns.is_some() && self.fits(share, sight));
        }
        ready && share.wants_completion() && self.fits(share, sight)
    }

    /// Whether guest requests are held so that the copiers gain on them: nothing else has helped, and the next step, to be
    /// ready or to switch over, has not come into reach.
    fn must_brake(&self, ready: bool, share: &Share, sight: &Sight) -> bool {
        let waits = !ready || share.wants_completion();
        waits && self.flush_fits(sight) && share.is_braking() && share.sweep_is_claimed()
    }

    /// Whether the flush does not take too long by itself. Where it does, nothing is gained by holding anybody, nor by any other
    /// step; it is measured again from time to time.
    fn flush_fits(&self, sight: &Sight) -> bool {
        self.max_pause_ns.is_none_or(|max| sight.slow_flush_ns <= within_ns(max))
    }

    /// Tells the host when the job is held, once nothing is under way, and when it goes on; whether it runs.
    fn follow_hold(share: &Share) -> bool {
        match (share.is_held(), share.status()) {
            _ if share.is_starting() => {}
            (true, JobStatus::Paused | JobStatus::Standby) => {}
            (true, _) if share.is_still() => {
                share.turn(Turn::Hold);
            }
            (true, _) => {}
            (false, JobStatus::Created) => {
                share.turn(Turn::Start);
            }
            (false, JobStatus::Paused | JobStatus::Standby) => {
                share.turn(Turn::Release);
            }
            (false, _) => return true,
        }
        !share.is_held()
    }

    /// Whether the forecast of a switch-over fits into the pause.
    fn fits(&self, share: &Share, sight: &Sight) -> bool {
        // What failed under policy ignore may fail again, and no pause is long enough for that.
        if !share.sweep_is_claimed() || share.awaits_round() {
            return false;
        }
        // Nothing to copy and nothing to flush.
        if share.is_finished() && self.covers == Some(Self::written(share)) {
            return true;
        }
        match (self.max_pause_ns, sight.predicted_pause_ns) {
            (None, _) => true,
            (Some(max), Some(predicted)) => predicted <= within_ns(max),
            (Some(_), None) => share.is_finished(),
        }
    }

    /// Whether the job could be called ready, but for a flush.
    fn could_be_ready(&self, share: &Share, sight: &Sight) -> bool {
        if self.strict_ready { share.is_finished() } else { self.fits(share, sight) }
    }

    /// Closes the gate. From here on nothing slows the copiers down.
    fn close_gate(&mut self, share: &Share, now_ns: u64) -> Act {
        self.stage = Stage::Draining;
        self.closed_at_ns = Some(now_ns);
        share.set_urgent(true);
        Act::CloseGate
    }

    /// The gate is closed.
    fn behind_gate(&mut self, share: &Share, sight: &Sight) -> Act {
        // What failed and is tried again later would hold the guest until then.
        if share.is_held() || share.awaits_round() || self.is_overdue(sight) {
            return self.miss(share, sight.now_ns);
        }
        if sight.now_ns < self.retry_at_ns {
            return Act::Rest;
        }
        if self.stage == Stage::Draining
            && (sight.gate_is_quiet || share.is_mutated(Mutation::ReadyWithoutGate))
        {
            self.stage = Stage::Final;
        }
        if self.stage != Stage::Final || !share.is_finished() {
            return Act::Rest;
        }
        let only_gains = !share.wants_completion() && !self.completes_itself;
        if only_gains && share.status() == JobStatus::Ready {
            // All is copied, which is what the gate was closed for.
            return self.miss(share, sight.now_ns);
        }
        let flushed =
            self.covers == Some(Self::written(share)) || share.is_mutated(Mutation::PivotBeforeFlush);
        if !flushed {
            return if self.flush_covers.is_some() {
                Act::Rest
            } else {
                self.flush(share, Purpose::BehindGate)
            };
        }
        if only_gains {
            // With the gate open the guest may write more than fits during any flush. But a switch-over would fit into this very
            // pause.
            share.figures.foresee(sight.predicted_pause_ns);
            share.turn(Turn::BecomeReady);
            self.vain.end();
            return self.miss(share, sight.now_ns);
        }
        if share.close_if_finished() {
            share.turn(Turn::Seal);
            share.seal();
            share.turn(Turn::Prepare);
            self.stage = Stage::Sealed(Seal::Announced);
            return self.sealed(Seal::Announced, share, sight.now_ns);
        }
        Act::Rest
    }

    /// When to look again if nothing happens.
    #[must_use]
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let at = match self.stage {
            Stage::Over => return None,
            Stage::Draining => Some(now_ns + DRAIN_LOOK_NS),
            Stage::Final | Stage::Flushing(Purpose::BehindGate) => {
                self.closed_at_ns.zip(self.limit_ns()).map(|(at, limit)| at + limit)
            }
            Stage::Copying | Stage::Flushing(_) | Stage::Sealed(_) => None,
            Stage::Ending => Some(now_ns),
        };
        // A drive that did not move and a flush that found no room are tried again behind the gate, too.
        let again = self.retry_at_ns;
        let grace = (self.ending_since_ns > 0).then_some(self.ending_since_ns + GRACE_NS);
        at.into_iter().chain([again]).chain(grace).filter(|at| *at > now_ns).min()
    }
}
