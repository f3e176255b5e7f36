//! What the workers of a job share: bitmaps, the sweep, the command word, counters. Atomics only.

mod command;
mod forecast;
mod notice;
mod rest;
mod rounds;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;

use super::active::mode;
use super::activity::Activity;
use super::bound::MaxPause;
use super::doorbell::Doorbell;
use super::figures::Figures;
use super::geometry::Geometry;
use super::limiter::Limiter;
use super::marks::Marks;
use super::mutation::Mutation;
use super::options::{CopyModeChoice, LatencyBudget, MirrorOptions, OnCopied, SyncMode};
use super::pace::Pace;
use super::policy::ErrorPolicy;
use super::progress::{Progress, Tally};
use super::states::{JobStatus, Turn};
use super::sweep::Sweep;
use super::tail::Tail;
use super::writers::Writers;
use crate::bitmap::{DirtyBitmap, Hold};
use crate::error::Result;
use crate::units::bytes_u64;

pub use self::command::{Command, Decision};
pub use self::notice::{Escalation, Failure, FailureCause, Notice};
pub use self::rest::Rest;

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
    /// The right to work with the caller's own.
    hold: Option<Hold>,
    /// Chunks that failed and were not copied since; only with policy ignore.
    pub suspects: Option<DirtyBitmap>,
}

impl Bitmaps {
    /// What a job of this shape needs. A caller's own bitmap is this job's from here on: what is dirty is counted next, and until
    /// the job before it had let go of the bitmap it could still set bits.
    ///
    /// # Errors
    /// When there are not enough addresses for them, or another job works with the caller's bitmap.
    pub fn new(geometry: &Geometry, options: &MirrorOptions) -> Result<Self> {
        let hold = options.bitmap.as_ref().map(Hold::take).transpose()?;
        let bits = |granularity| DirtyBitmap::new(geometry.disk_bytes, granularity);
        let dirty = match &options.bitmap {
            Some(bitmap) => Arc::clone(bitmap),
            None => Arc::new(bits(geometry.granularity)?),
        };
        let top = options.sync == SyncMode::Top;
        let ignores = [options.on_source_error, options.on_target_error].contains(&ErrorPolicy::Ignore);
        Ok(Self {
            dirty,
            writers: Writers::new(geometry.disk_bytes, geometry.granularity)?,
            touched: geometry.cluster.map(bits).transpose()?,
            rewritten: top.then(|| bits(geometry.granularity)).transpose()?,
            hold,
            suspects: ignores.then(|| bits(geometry.granularity)).transpose()?,
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
    /// The caller's working bitmap is this job's until its last part is gone and the last guest write that it had sent to both
    /// sides has ended, or until this is gone for a job that did not start: until then bits may change that nobody else knows of.
    hold: Option<Hold>,
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
    /// The command word.
    command: Command,
    /// Where the job stands, a [`JobStatus`]; written by its home only.
    status: AtomicU8,
    /// How guest writes are followed, and who says so; bits in [`active::mode`](super::active::mode).
    pub(super) mode: AtomicU8,
    /// The home sleeps until a chunk turns dirty.
    pub doorbell: Doorbell,
    /// How much copiers may have in flight.
    pace: AtomicU64,
    /// How long guest requests may be held.
    pub max_pause: MaxPause,
    /// How large requests may be when the end is near.
    pub(super) tail: Tail,
    /// Whose turn it is where the pace is too slow for all workers.
    turn: AtomicUsize,
    /// Whether something was begun since the turn was passed.
    turn_was_used: AtomicBool,
    /// When all of them rest, where the pace asks for it.
    rest: Rest,
    /// Rates and forecasts, as the home sees them.
    pub figures: Figures,
    /// Bytes that guest writes took to both sides.
    pub(super) active_bytes: AtomicU64,
    /// For the host.
    notices: ArrayQueue<Notice>,
    /// Errors among them, and errors that are just being put there.
    waiting_errors: AtomicUsize,
    /// Notices that found no room.
    lost_notices: AtomicU64,
    /// The first failure.
    failure: OnceLock<Failure>,
    /// Who is at work.
    pub(super) activity: Activity,
    /// With policy `ignore`: rounds so far.
    round: AtomicU32,
    /// With policy `ignore`: when the next round may begin; 0 = nothing failed since the last one began.
    next_round_ns: AtomicU64,
    /// With policy `ignore`: chunks that failed and were not copied since.
    suspects: Option<DirtyBitmap>,
    /// With policy `ignore`: until when guest writes leave the target alone.
    spared_until_ns: AtomicU64,
    /// How the protocol is broken.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) mutation: Option<Mutation>,
    /// One per worker.
    pub(super) tallies: Box<[Tally]>,
}

/// Which worker is the home.
const HOME: usize = 0;
/// A job that has less than this left is following, and what a guest wrote just now must not wait.
const FEW_BYTES: u64 = 4 << 20;

/// The pace until the home has looked at the guest for the first time, 10 ms later: a busy guest must not be met by a full queue
/// of copies, and an idle one does not notice.
fn first_pace(options: &MirrorOptions) -> Pace {
    if options.latency_budget.in_force() == LatencyBudget::Off { Pace::FULL } else { Pace::SLOWEST }
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
        let Bitmaps { dirty, writers, touched, rewritten, suspects, hold } = bitmaps;
        let sweep = match options.sync {
            SyncMode::Full | SyncMode::Top if options.bitmap.is_none() => Sweep::new(geometry.disk_bytes),
            _ => Sweep::done(geometry.disk_bytes),
        };
        Self {
            geometry,
            dirty: Marks::new(dirty),
            hold,
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
            command: Command::default(),
            status: AtomicU8::new(JobStatus::Created as u8),
            mode: AtomicU8::new(match options.copy_mode {
                CopyModeChoice::WriteBlocking => mode::WRITE_BLOCKING,
                CopyModeChoice::Background | CopyModeChoice::Auto => 0,
            }),
            doorbell: Doorbell::default(),
            pace: AtomicU64::new(first_pace(options).pack()),
            tail: Tail::default(),
            max_pause: MaxPause::new(options.max_pause),
            turn: AtomicUsize::new(0),
            turn_was_used: AtomicBool::new(false),
            rest: Rest::default(),
            figures: Figures::default(),
            active_bytes: AtomicU64::new(0),
            notices: notice::queue(),
            waiting_errors: AtomicUsize::new(0),
            lost_notices: AtomicU64::new(0),
            failure: OnceLock::new(),
            activity: Activity::default(),
            round: AtomicU32::new(0),
            next_round_ns: AtomicU64::new(0),
            suspects,
            spared_until_ns: AtomicU64::new(0),
            #[cfg(any(test, feature = "sim"))]
            mutation: None,
            tallies: (0..workers).map(|_| Tally::default()).collect(),
        }
    }

    /// Where the job stands.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        JobStatus::from_number(self.status.load(Ordering::Acquire))
    }

    /// Moves the job on and makes a notice of it; nothing happens where the table has no arrow. Only the job's home does that, and
    /// when the job is over who dismisses it; those two take turns, so that the host hears of both in order.
    pub fn turn(&self, turn: Turn) -> bool {
        let from = self.status();
        let Some(to) = from.after(turn) else { return false };
        self.status.store(to as u8, Ordering::Release);
        self.post(Notice::Status { from, to });
        true
    }

    /// The last part of the job is gone: the caller's bitmap is free for another job, once no guest write changes it any more.
    pub(crate) fn release_bitmap(&self) {
        self.hold.iter().for_each(Hold::release);
    }

    /// A guest write is about to change the caller's bitmap in the job's name; `false` when the job has let go of it.
    pub(super) fn enter_bitmap(&self) -> bool {
        self.hold.as_ref().is_none_or(Hold::enter)
    }

    /// It does not change it any more.
    pub(super) fn leave_bitmap(&self) {
        self.hold.iter().for_each(Hold::leave);
    }

    /// How much copiers may have in flight now.
    #[must_use]
    pub(crate) fn pace(&self) -> Pace {
        if self.is_urgent() {
            return Pace::FULL;
        }
        let pace = Pace::unpack(self.pace.load(Ordering::Acquire));
        let is_slow = pace.in_flight_bytes < Pace::SLOWEST.in_flight_bytes || pace.rest_quarters > 0;
        if is_slow && self.has_few_left() { pace.max_without_rest(Pace::SLOWEST) } else { pace }
    }

    /// Whether the job follows: the first pass is over, and so little is left that the guest hardly notices when that is copied
    /// at once, one small request after the other. What a guest wrote just now must not wait for a rest, a turn or a probe.
    pub(super) fn has_few_left(&self) -> bool {
        self.sweep_is_claimed() && self.unfinished_bytes() <= FEW_BYTES
    }

    /// Whether the copiers are held back for the guest, and have so much to do that it does not matter when they go on.
    pub(crate) fn gives_way(&self) -> bool {
        self.pace() != Pace::FULL && self.left_bytes() > FEW_BYTES
    }

    /// Whether the copiers are held back for the guest.
    pub(super) fn is_paced(&self) -> bool {
        self.pace() != Pace::FULL
    }

    /// Changes how much that is.
    pub(super) fn set_pace(&self, pace: Pace) {
        self.pace.store(pace.pack(), Ordering::Release);
    }

    /// Bytes that `worker` may have in flight now. Where the pace is too slow to be divided, it is one worker's at a time;
    /// who has to wait for that says so.
    pub(super) fn paced_bytes(&self, worker: usize) -> u64 {
        let (pace, workers) = (self.pace(), bytes_u64(self.tallies.len()));
        if let Some(each) = pace.of_each(workers, self.geometry.run_bytes) {
            self.tallies[worker].set_waits(false);
            return each;
        }
        // When little is left the others may sleep, and it is the home that sees what a guest writes: it need not wait until
        // they have passed the turn on.
        let its_turn = self.turn.load(Ordering::Acquire) == worker || (worker == HOME && self.has_few_left());
        self.tallies[worker].set_waits(!its_turn);
        if its_turn { pace.in_flight_bytes } else { 0 }
    }

    /// Gives the turn to the next worker that waits for it; whether there was one. Each has a part of the disk in hand that
    /// nobody else copies, so none may be left out: one that had to rest all its turn long keeps it, or rests and turns in step
    /// could favour some of them for ever.
    pub(super) fn pass_turn(&self, now_ns: u64) -> bool {
        let rests = || self.rest.is_on(self.pace().rest_quarters, now_ns);
        if !self.turn_was_used.load(Ordering::Acquire) && rests() {
            return false;
        }
        self.turn_was_used.store(false, Ordering::Release);
        let workers = self.tallies.len();
        let turn = self.turn.load(Ordering::Acquire);
        let next = (1..workers).map(|step| (turn + step) % workers).find(|&w| self.tallies[w].waits());
        if let Some(next) = next {
            self.turn.store(next, Ordering::Release);
        }
        next.is_some()
    }

    /// A worker that has nothing on its way is about to send something; `Err` = it is to rest until then.
    pub(super) fn go_out(&self, now_ns: u64) -> std::result::Result<(), u64> {
        self.rest.begin(self.pace().rest_quarters, now_ns)?;
        self.turn_was_used.store(true, Ordering::Release);
        Ok(())
    }

    /// It has nothing on its way any more.
    pub(super) fn come_back(&self, now_ns: u64) {
        self.rest.end(now_ns);
    }

    /// The largest request that the speed limit and the pace allow.
    pub(super) fn most_at_once_bytes(&self) -> u64 {
        let limit = if self.is_urgent() { u64::MAX } else { self.limiter.cut_bytes() };
        limit.min(self.pace().request_bytes)
    }

    /// The largest request that reads and writes with the end as near as it is; see [`tail`](super::tail).
    pub(super) fn tail_bytes(&self) -> u64 {
        let counts = self.is_urgent() || self.wants_completion();
        if counts { self.tail.request_bytes().max(self.geometry.align_bytes) } else { u64::MAX }
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

    /// Whether nothing is left to copy, but for what somebody has in hand.
    fn nothing_is_left(&self) -> bool {
        self.sweep.is_over() && self.dirty.is_clean()
    }

    /// Whether nothing is left to copy and nobody has anything in hand.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.activity.is_finished(|| self.nothing_is_left())
    }

    /// The same for a host that asks once; see [`Activity::is_finished_but_for_looks`].
    pub(crate) fn is_finished_but_for_looks(&self) -> bool {
        self.activity.is_finished_but_for_looks(|| self.nothing_is_left())
    }

    /// The same, and if so nobody takes up work any more.
    #[must_use]
    pub(super) fn close_if_finished(&self) -> bool {
        self.activity.close_if_finished(|| self.nothing_is_left())
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

    /// Whether zeroing the target is writing, so that it counts under the speed limit.
    pub(super) fn writes_zeroes(&self) -> bool {
        self.keep_allocated || self.geometry.writes_zeroes
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
