//! What the workers of a job share: bitmaps, the sweep, the command word, counters. Atomics only.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;

use super::active::CopyMode;
use super::activity::Activity;
use super::doorbell::Doorbell;
use super::follow::Figures;
use super::geometry::Geometry;
use super::limiter::Limiter;
use super::marks::Marks;
use super::mutation::Mutation;
use super::options::{CopyModeChoice, MirrorOptions, OnCopied, SyncMode};
use super::pace::Pace;
use super::policy::{self, ErrorAction, ErrorPolicy, Side};
use super::progress::{Progress, Tally};
use super::states::{JobStatus, Turn};
use super::sweep::Sweep;
use super::writers::Writers;
use crate::bitmap::DirtyBitmap;
use crate::error::Result;
use crate::units::{ByteRange, bytes_u64};

/// The size of requests that salvage what can be read around a bad block.
const SALVAGE_BYTES: u64 = 4096;

/// A round of an ignored error in which nothing failed for so long is over: what failed would have been tried by then.
const ROUND_SETTLED_NS: u64 = 200_000_000;

/// Why a job failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureCause {
    /// A request failed and the policy said `report`.
    Io,
    /// The source became shorter than it was.
    SourceShrank,
    /// The target could not be flushed; what it was given may be lost.
    Flush,
    /// The policy said `ignore`, and the bounded number of rounds is used up.
    GaveUp,
    /// A bug was caught in a worker.
    Panic,
    /// The ring of a worker broke.
    Ring,
}

/// The first failure of a job; later ones are counted only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which side.
    pub side: Side,
    /// What the kernel said.
    pub errno: i32,
    /// The bytes it was about; empty for a flush.
    pub range: ByteRange,
    /// Why it ended the job.
    pub cause: FailureCause,
}

/// What copy mode auto does when the remainder stops shrinking, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Escalation {
    /// Guest writes through queues go to both sides.
    WriteBlocking,
    /// That was not enough, as with hosts that do their own I/O: guest requests are held again and again, for `max_pause` at
    /// most each time, until the remainder fits into one pause.
    Braking,
}

/// Something that a host wants to hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A request failed for good.
    Error {
        /// Which side.
        side: Side,
        /// What the kernel said.
        errno: i32,
        /// The bytes it was about; empty for a flush.
        range: ByteRange,
        /// What is done about it.
        action: ErrorAction,
    },
    /// The job's state has changed.
    Status {
        /// What it was.
        from: JobStatus,
        /// What it is.
        to: JobStatus,
    },
    /// The way in which guest writes are followed has changed.
    CopyMode(CopyMode),
    /// Copy mode auto: the remainder stopped shrinking.
    Escalated {
        /// What is done about it.
        step: Escalation,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// A switch-over did not fit into its time; the gate is open again, and it will be tried again.
    SwitchOverMissed {
        /// How long guest requests were held.
        held_ns: u64,
        /// Bytes that were left.
        left_bytes: u64,
    },
}

/// Bits of the command word.
mod flag {
    /// The host paused the job.
    pub(super) const PAUSED: u32 = 1;
    /// An error policy stopped the job.
    pub(super) const STOPPED: u32 = 2;
    /// ... because the target is full.
    pub(super) const NO_SPACE: u32 = 4;
    /// The host cancelled the job.
    pub(super) const CANCELLED: u32 = 8;
    /// The job failed.
    pub(super) const FAILED: u32 = 16;
    /// Not every worker has its part yet.
    pub(super) const STARTING: u32 = 32;
    /// The host wants the job to come to its end.
    pub(super) const COMPLETE: u32 = 64;
    /// ... with the drive on the target.
    pub(super) const PIVOT: u32 = 128;
    /// The host wants a pending switch-over to be carried out.
    pub(super) const FINALIZE: u32 = 256;
    /// A switch-over is being made: no speed limit, no pacing.
    pub(super) const URGENT: u32 = 512;
}

/// Notices that wait for the host at most; more are counted.
const MAX_NOTICES: usize = 128;

/// The bitmaps of a job.
#[derive(Debug)]
pub struct Bitmaps {
    /// What is dirty; a caller's own, or a new one.
    pub dirty: Arc<DirtyBitmap>,
    /// Who writes to the target.
    pub writers: Writers,
    /// Which clusters of the target were written as a whole; only with clusters.
    pub touched: Option<DirtyBitmap>,
    /// Chunks that the guest wrote since the job began; only with sync mode top.
    pub rewritten: Option<DirtyBitmap>,
}

impl Bitmaps {
    /// What a job of this shape needs.
    ///
    /// # Errors
    /// When there are not enough addresses for them.
    pub fn new(geometry: &Geometry, options: &MirrorOptions) -> Result<Self> {
        let bits = |granularity| DirtyBitmap::new(geometry.disk_bytes, granularity);
        let dirty = match &options.bitmap {
            Some(bitmap) => Arc::clone(bitmap),
            None => Arc::new(bits(geometry.granularity)?),
        };
        let top = options.sync == SyncMode::Top;
        Ok(Self {
            dirty,
            writers: Writers::new(geometry.disk_bytes, geometry.granularity)?,
            touched: geometry.cluster.map(bits).transpose()?,
            rewritten: top.then(|| bits(geometry.granularity)).transpose()?,
        })
    }
}

/// The shared state of a job.
#[derive(Debug)]
pub struct Share {
    /// Sizes.
    pub geometry: Geometry,
    /// Chunks whose copy is stale, below the sweep's position.
    pub dirty: Marks,
    /// Who has the right to write to the target now.
    pub writers: Writers,
    /// Chunks that the guest wrote since the job began; only with sync mode top, where what was said of the layer at the
    /// start does not hold there any more.
    pub(super) rewritten: Option<DirtyBitmap>,
    /// Clusters of the target that were written as a whole; only with copy-on-write.
    pub(super) touched: Option<DirtyBitmap>,
    /// The first pass.
    pub sweep: Sweep,
    /// The speed limit.
    pub limiter: Limiter,
    /// What a failed read leads to.
    on_source_error: ErrorPolicy,
    /// What a failed write leads to.
    on_target_error: ErrorPolicy,
    /// A job that completes by itself gives up on what fails again and again; one that follows never does.
    gives_up: bool,
    /// Look for zeroes in the data.
    pub(super) zero_detect: bool,
    /// Block status says `Zero` for what the topmost layer does not hold.
    pub(super) top: bool,
    /// The target reads as zeroes wherever the sweep has not been.
    pub(super) target_is_zero: bool,
    /// Zeroes leave the target's space allocated.
    pub(super) keep_allocated: bool,
    /// The target cannot zero, so zeroes are written as data.
    zero_by_writing: AtomicBool,
    /// The command word; bits in [`flag`].
    command: AtomicU32,
    /// Where the job stands, a [`JobStatus`]; written by its home only.
    status: AtomicU8,
    /// Guest writes go to both sides.
    pub(super) write_blocking: AtomicBool,
    /// Guest requests are held from time to time, so that the copiers gain on them.
    pub(super) braking: AtomicBool,
    /// The host has chosen the copy mode while the job ran.
    pub(super) mode_is_chosen: AtomicBool,
    /// The home sleeps until a chunk turns dirty.
    pub doorbell: Doorbell,
    /// How much copiers may have in flight.
    pace: AtomicU64,
    /// Whose turn it is where the pace is too slow for all workers.
    turn: AtomicUsize,
    /// Rates and forecasts, as the home sees them.
    pub figures: Figures,
    /// Bytes that guest writes took to both sides.
    pub(super) active_bytes: AtomicU64,
    /// For the host.
    notices: ArrayQueue<Notice>,
    /// Notices that found no room.
    lost_notices: AtomicU64,
    /// The first failure.
    failure: OnceLock<Failure>,
    /// Who is at work.
    pub(super) activity: Activity,
    /// With policy `ignore`: rounds so far.
    round: AtomicU32,
    /// With policy `ignore`: whether something failed since the last round began.
    round_pending: AtomicBool,
    /// With policy `ignore`: when the next round may begin.
    round_at_ns: AtomicU64,
    /// How the protocol is broken.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) mutation: Option<Mutation>,
    /// One per worker.
    pub(super) tallies: Box<[Tally]>,
}

impl Share {
    /// The state of a new job; the bitmaps are made by the caller because mapping memory is a system call.
    #[must_use]
    pub fn new(
        geometry: Geometry,
        options: &MirrorOptions,
        bitmaps: Bitmaps,
        target_is_zero: bool,
        workers: usize,
    ) -> Self {
        let Bitmaps { dirty, writers, touched, rewritten } = bitmaps;
        let sweep = match options.sync {
            SyncMode::Full | SyncMode::Top if options.bitmap.is_none() => Sweep::new(geometry.disk_bytes),
            _ => Sweep::done(geometry.disk_bytes),
        };
        Self {
            geometry,
            dirty: Marks::new(dirty),
            writers,
            rewritten,
            touched,
            sweep,
            limiter: Limiter::new(options.speed_bytes_per_s),
            on_source_error: options.on_source_error,
            on_target_error: options.on_target_error,
            gives_up: options.on_copied == OnCopied::Complete,
            zero_detect: options.zero_detect,
            top: options.sync == SyncMode::Top && options.extents.is_none(),
            // A layer's target may get its backing file later. Zeroes that are not written then show what is below.
            target_is_zero: target_is_zero && options.sync != SyncMode::Top,
            keep_allocated: options.keep_allocated,
            zero_by_writing: AtomicBool::new(false),
            command: AtomicU32::new(0),
            status: AtomicU8::new(JobStatus::Created as u8),
            write_blocking: AtomicBool::new(options.copy_mode == CopyModeChoice::WriteBlocking),
            braking: AtomicBool::new(false),
            mode_is_chosen: AtomicBool::new(false),
            doorbell: Doorbell::default(),
            pace: AtomicU64::new(Pace::FULL.pack()),
            turn: AtomicUsize::new(0),
            figures: Figures::default(),
            active_bytes: AtomicU64::new(0),
            notices: ArrayQueue::new(MAX_NOTICES),
            lost_notices: AtomicU64::new(0),
            failure: OnceLock::new(),
            activity: Activity::default(),
            round: AtomicU32::new(0),
            round_pending: AtomicBool::new(false),
            round_at_ns: AtomicU64::new(0),
            #[cfg(any(test, feature = "sim"))]
            mutation: None,
            tallies: (0..workers).map(|_| Tally::default()).collect(),
        }
    }

    /// The job is being started: nothing is done before every worker has its part.
    pub fn hold(&self) {
        self.command.fetch_or(flag::STARTING, Ordering::AcqRel);
    }

    /// Whether some worker has not got its part yet.
    #[must_use]
    pub(super) fn is_starting(&self) -> bool {
        self.commanded(flag::STARTING)
    }

    /// Every worker has its part.
    pub fn let_start(&self) {
        self.command.fetch_and(!flag::STARTING, Ordering::AcqRel);
    }

    /// The host pauses the job; what is in flight is finished.
    pub fn pause(&self) {
        self.command.fetch_or(flag::PAUSED, Ordering::AcqRel);
    }

    /// The host resumes the job after a pause or a stop.
    pub fn resume(&self) {
        self.command.fetch_and(!(flag::PAUSED | flag::STOPPED | flag::NO_SPACE), Ordering::AcqRel);
    }

    /// The host cancels the job; nothing new is started.
    pub fn cancel(&self) {
        self.command.fetch_or(flag::CANCELLED, Ordering::AcqRel);
    }

    /// The host wants the job's end: with `pivot` the drive moves to the target, else the target is a copy as of then.
    /// `false` when that was wanted already.
    #[must_use]
    pub fn complete(&self, pivot: bool) -> bool {
        let pivot = if pivot { flag::PIVOT } else { 0 };
        let more = |word| (word & flag::COMPLETE == 0).then_some(word | flag::COMPLETE | pivot);
        self.command.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Whether the host wants the job's end.
    #[must_use]
    pub fn wants_completion(&self) -> bool {
        self.commanded(flag::COMPLETE)
    }

    /// Whether the drive is to move to the target.
    #[must_use]
    pub fn wants_pivot(&self) -> bool {
        self.commanded(flag::PIVOT)
    }

    /// The host wants a pending switch-over to be carried out.
    pub fn finalize(&self) {
        self.command.fetch_or(flag::FINALIZE, Ordering::AcqRel);
    }

    /// Whether the host wants that.
    pub(super) fn wants_finalize(&self) -> bool {
        self.commanded(flag::FINALIZE)
    }

    /// A switch-over begins or ends: as long as it lasts there is neither speed limit nor pacing.
    pub(super) fn set_urgent(&self, urgent: bool) {
        if urgent {
            self.command.fetch_or(flag::URGENT, Ordering::AcqRel);
        } else {
            self.command.fetch_and(!flag::URGENT, Ordering::AcqRel);
        }
    }

    /// Whether a switch-over is being made.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.commanded(flag::URGENT)
    }

    /// Where the job stands.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        JobStatus::from_number(self.status.load(Ordering::Acquire))
    }

    /// Moves the job on and tells the host; only its home does that. Nothing happens where the table has no arrow.
    pub fn turn(&self, turn: Turn) -> bool {
        let from = self.status();
        let Some(to) = from.after(turn) else { return false };
        self.status.store(to as u8, Ordering::Release);
        self.post(Notice::Status { from, to });
        true
    }

    /// Keeps a notice for the host; it is counted when there is no room.
    pub fn post(&self, notice: Notice) {
        if self.notices.push(notice).is_err() {
            self.lost_notices.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a notice waits for the host.
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// Takes a notice for the host.
    #[must_use]
    pub fn pop_notice(&self) -> Option<Notice> {
        self.notices.pop()
    }

    /// Notices that were lost since this was asked last.
    #[must_use]
    pub fn take_lost_notices(&self) -> u64 {
        self.lost_notices.swap(0, Ordering::Relaxed)
    }

    /// How much copiers may have in flight now.
    #[must_use]
    pub(super) fn pace(&self) -> Pace {
        if self.is_urgent() { Pace::FULL } else { Pace::unpack(self.pace.load(Ordering::Acquire)) }
    }

    /// Changes that.
    pub(super) fn set_pace(&self, pace: Pace) {
        self.pace.store(pace.pack(), Ordering::Release);
    }

    /// Bytes that `worker` may have in flight now. Where the pace is too slow to be divided, it is one worker's at a time;
    /// who has to wait for that says so.
    pub(super) fn paced_bytes(&self, worker: usize) -> u64 {
        let (pace, workers) = (self.pace(), bytes_u64(self.tallies.len()));
        if let Some(each) = pace.of_each(workers, self.geometry.run_bytes) {
            return each;
        }
        let its_turn = self.turn.load(Ordering::Acquire) == worker;
        self.tallies[worker].set_waits(!its_turn);
        if its_turn { pace.in_flight_bytes } else { 0 }
    }

    /// Gives the turn to the next worker that waits for it; whether there was one. Each has a part of the disk in hand that
    /// nobody else copies, so none may be left out.
    pub(super) fn pass_turn(&self) -> bool {
        let workers = self.tallies.len();
        let turn = self.turn.load(Ordering::Acquire);
        let next = (1..workers).map(|step| (turn + step) % workers).find(|&w| self.tallies[w].waits());
        if let Some(next) = next {
            self.turn.store(next, Ordering::Release);
        }
        next.is_some()
    }

    /// The job fails; the first failure is kept.
    pub fn fail(&self, failure: Failure) {
        // Losing this race means that somebody else's failure came first, which is what is wanted.
        let _ = self.failure.set(failure);
        self.command.fetch_or(flag::FAILED, Ordering::AcqRel);
    }

    /// The first failure.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get().copied()
    }

    /// Whether one of the bits of the command word is set.
    fn commanded(&self, bits: u32) -> bool {
        self.command.load(Ordering::Acquire) & bits != 0
    }

    /// Whether the host cancelled the job.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.commanded(flag::CANCELLED)
    }

    /// Whether nothing more will be copied: cancelled or failed.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.commanded(flag::CANCELLED | flag::FAILED)
    }

    /// Whether new work must wait: paused or stopped.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.commanded(flag::PAUSED | flag::STOPPED | flag::STARTING)
    }

    /// Whether an error policy stopped the job, and whether that was for lack of space.
    #[must_use]
    pub fn stopped(&self) -> Option<bool> {
        self.commanded(flag::STOPPED).then(|| self.commanded(flag::NO_SPACE))
    }

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
    pub(super) fn awaits_round(&self, now_ns: u64) -> bool {
        let settled_ns = self.round_at_ns.load(Ordering::Acquire).saturating_add(ROUND_SETTLED_NS);
        self.round_pending.load(Ordering::Acquire)
            || (self.round.load(Ordering::Acquire) > 0 && now_ns < settled_ns)
    }

    /// Everything could be copied: requests have their full size again, and the next failure is a first one.
    pub(super) fn end_rounds(&self) {
        if !self.round_pending.load(Ordering::Acquire) {
            self.round.store(0, Ordering::Release);
        }
    }

    /// When dirty chunks may be taken up again; `None` = now. Begins the next round when its time has come.
    pub(super) fn round_wait(&self, now_ns: u64) -> Option<u64> {
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
    pub(super) fn request_bytes(&self) -> u64 {
        let g = &self.geometry;
        match self.round.load(Ordering::Acquire) {
            0 => g.request_bytes,
            1 => g.request_bytes.min(g.granularity.bytes()),
            _ => g.request_bytes.min(SALVAGE_BYTES.max(g.align_bytes)),
        }
    }

    /// The largest request that the speed limit and the pace allow.
    pub(super) fn most_at_once_bytes(&self) -> u64 {
        let limit = if self.is_urgent() { u64::MAX } else { self.limiter.cut_bytes() };
        limit.min(self.pace().request_bytes)
    }

    /// Whether every chunk was claimed from the sweep once.
    ///
    /// Dirty chunks are taken up only then. So a run from the sweep is always the first to write its chunks to the
    /// target, and may rely on what the target was before; a run of dirty chunks never does. Without this a guest write
    /// to a chunk that the sweep took but did not claim could be copied first, zeroed by the guest, and then be skipped
    /// because "the target is zero there".
    pub(crate) fn sweep_is_claimed(&self) -> bool {
        self.activity.sweep_is_claimed(|| self.sweep.is_over())
    }

    /// Whether the gate is quiet. `look` is told whether to miss a part of it, which only a broken protocol does.
    #[must_use]
    pub(crate) fn sees_quiet(&self, look: impl FnOnce(bool) -> bool) -> bool {
        look(self.is_mutated(Mutation::DrainMissesQueue))
    }

    /// Whether the protocol is broken on purpose in this way.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether the protocol is broken on purpose in this way: never, outside the tests.
    #[cfg(not(any(test, feature = "sim")))]
    #[allow(clippy::unused_self, reason = "the tests' twin looks at it")]
    #[must_use]
    pub(crate) const fn is_mutated(&self, _: Mutation) -> bool {
        false
    }

    /// Whether nothing is left to copy and nobody has anything in hand.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.activity.is_finished(|| self.sweep.is_over() && self.dirty.is_clean())
    }

    /// The same, and if so nobody takes up work any more.
    #[must_use]
    pub(super) fn close_if_finished(&self) -> bool {
        self.activity.close_if_finished(|| self.sweep.is_over() && self.dirty.is_clean())
    }

    /// Whether no worker has a request under way; they may hold parts of the disk all the same.
    #[must_use]
    pub(super) fn is_still(&self) -> bool {
        self.tallies.iter().all(Tally::is_still)
    }

    /// Whether no worker has anything in hand.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.activity.is_idle()
    }

    /// Whether zeroes may give the target's space back.
    #[must_use]
    pub(crate) fn may_punch(&self) -> bool {
        !self.keep_allocated
    }

    /// Whether zeroes are written as data because the target cannot zero.
    pub(super) fn zero_by_writing(&self) -> bool {
        self.zero_by_writing.load(Ordering::Relaxed)
    }

    /// From now on zeroes are written as data.
    pub(super) fn set_zero_by_writing(&self) {
        self.zero_by_writing.store(true, Ordering::Relaxed);
    }

    /// Bytes that differ or may differ: dirty chunks and what the sweep has not reached. Exact when the job is idle.
    #[must_use]
    pub fn left_bytes(&self) -> u64 {
        let dirty = self.dirty.dirty_bytes();
        let ahead = self.geometry.disk_bytes - self.sweep.position();
        dirty.saturating_add(ahead).min(self.geometry.disk_bytes)
    }

    /// The workers' counters, added up; times and rates are left to the caller, who has a clock.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let mut progress = Progress::sum(&self.tallies, self.geometry.disk_bytes);
        progress.status = self.status();
        progress.active_bytes = self.active_bytes.load(Ordering::Acquire);
        progress
    }
}
