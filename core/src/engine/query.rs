//! What a host may read of a job while it runs and after it.

use std::sync::PoisonError;
use std::time::Duration;

use super::event::{IoStatus, LastError};
use super::job::Job;
use super::latencies::GuestLatencies;
use crate::mirror::{BudgetLevel, CopyMode, End, JobStatus, Progress, RateMeter};
use crate::ring::monotonic_ns;

/// Where a job stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its state.
    pub status: JobStatus,
    /// Bytes done plus bytes left; only the difference to `offset_bytes` has meaning, as in QEMU.
    pub len_bytes: u64,
    /// Bytes dealt with so far; grows while the job follows the guest.
    pub offset_bytes: u64,
    /// Bytes that differ or may differ: dirty chunks, what the first pass has not dealt with, and what workers have in hand.
    pub dirty_bytes: u64,
    /// Bytes that turn dirty per second.
    pub dirty_rate_bytes_per_s: u64,
    /// Bytes copied per second.
    pub copy_rate_bytes_per_s: u64,
    /// Time until nothing is left at these rates; `None` = not in sight.
    pub eta: Option<Duration>,
    /// How long a switch-over begun now would hold guest requests; `None` = not known yet.
    pub predicted_pause: Option<Duration>,
    /// The part of `predicted_pause` that is a flush of the target: the slowest of the last few, less if that is long ago; `None` =
    /// none has ended yet. While it alone is longer than three quarters of `max_pause`, no switch-over fits, however little is
    /// dirty.
    pub flush: Option<Duration>,
    /// How long guest requests may be held now, see [`Job::set_max_pause`]; `None` = as long as it takes.
    pub max_pause: Option<Duration>,
    /// Whether `predicted_pause` fits into `max_pause`, with the quarter that the job keeps in reserve. A forecast, and no
    /// permission: `complete` also needs a job that is ready, and waits for up to 2 s after a switch-over that was missed. Not
    /// while the job is held, before the first pass has taken up every chunk, or while something failed and is to be tried again.
    /// Without a `max_pause` any pause fits.
    pub fits_now: bool,
    /// The speed limit; 0 = none.
    pub speed_bytes_per_s: u64,
    /// How guest writes are followed now.
    pub copy_mode: CopyMode,
    /// How much of the latency budget is in force, `Chosen` also without one: a remainder that does not shrink loosens it, see
    /// [`LatencyBudget`](crate::mirror::LatencyBudget).
    pub budget_level: BudgetLevel,
    /// Whether copy mode auto holds guest requests now and then, because nothing else has helped: before the job is ready, and once
    /// its end is wanted. Between the two nobody is held.
    pub braking: bool,
    /// Write-blocking, and nothing is dirty or in any worker's hand: what the guest is told is written through queues is on both
    /// sides. A `false` may be wrong for a moment: of a worker that was stopped by the scheduler while it looked for work nobody
    /// can say whether it has found some.
    pub actively_synced: bool,
    /// Switch-overs that did not fit into `max_pause` so far; each is an event, too.
    pub missed: u32,
    /// Whether the host has asked for the end.
    pub completing: bool,
    /// Whether the end that it has asked for moves the drive to the target. Whether the drive has moved is
    /// [`Outcome::pivoted`](super::Outcome::pivoted).
    pub pivots: bool,
    /// What errors have done to the job.
    pub io_status: IoStatus,
    /// The last request that failed for good, whatever was done about it.
    pub last_error: Option<LastError>,
    /// The workers' counters.
    pub progress: Progress,
}
impl Job {
    /// Where the job stands and what it has done.
    ///
    /// State and bytes are of this moment. Rates, `eta`, `predicted_pause` and so `fits_now` are from when the job took stock
    /// last: at most some 10 ms ago while there is anything to copy, at most half a second once nothing has turned dirty for a
    /// tenth of one. They change with the first write that comes then.
    #[must_use]
    pub fn query(&self) -> JobInfo {
        let share = &self.core().share;
        let progress = self.progress();
        let dirty_bytes = share.remaining_bytes(&progress);
        let offset_bytes =
            progress.copied_bytes + progress.zeroed_bytes + progress.skipped_bytes + progress.active_bytes;
        let copy_mode = share.copy_mode();
        JobInfo {
            status: self.status(),
            len_bytes: offset_bytes.saturating_add(dirty_bytes),
            offset_bytes,
            dirty_bytes,
            dirty_rate_bytes_per_s: share.figures.dirty_rate_bytes_per_s(),
            copy_rate_bytes_per_s: share.figures.copy_rate_bytes_per_s(),
            eta: share.figures.eta(),
            predicted_pause: share.figures.predicted_pause(),
            flush: share.figures.flush(),
            max_pause: share.max_pause.get(),
            fits_now: share.fits_now(),
            speed_bytes_per_s: share.limiter.speed(),
            copy_mode,
            budget_level: share.figures.budget_level(),
            braking: share.is_braking() && !share.status().is_over(),
            actively_synced: copy_mode == CopyMode::WriteBlocking
                && dirty_bytes == 0
                && share.is_finished_but_for_looks(),
            missed: share.figures.missed(),
            completing: share.wants_completion(),
            pivots: share.wants_pivot(),
            io_status: match share.stopped() {
                Some(true) => IoStatus::NoSpace,
                Some(false) => IoStatus::Failed,
                // What fails once all is copied and flushed is not the job's failure, unless nobody is left to end it otherwise.
                None if share.is_sealed() && !self.has_failed() => IoStatus::Ok,
                None => share.failure().map_or(IoStatus::Ok, |failure| IoStatus::of_failure(failure.errno)),
            },
            last_error: self.core().events.last_error(),
            progress,
        }
    }

    /// Whether it is over, and has failed.
    fn has_failed(&self) -> bool {
        self.core().outcome().is_some_and(|outcome| outcome.end == End::Failed)
    }

    /// What the guest's requests took since the job began, and what they took before, without one; p50 to p99.99 of either is
    /// [`LatencyCounts::percentiles`](crate::drive::LatencyCounts::percentiles).
    #[must_use]
    pub fn latencies(&self) -> GuestLatencies {
        self.core().latencies.read()
    }

    /// What was done so far; the rate looks back over the calls of the last seconds.
    #[must_use]
    pub fn progress(&self) -> Progress {
        if let Some(outcome) = self.core().outcome() {
            return outcome.progress;
        }
        let now_ns = monotonic_ns();
        let mut p = self.core().share.progress();
        let mut meter = self.core().meter.lock().unwrap_or_else(PoisonError::into_inner);
        p.rate_bytes_per_s = meter.sample(now_ns, p.done_bytes);
        p.eta = RateMeter::eta(p.disk_bytes - p.done_bytes, p.rate_bytes_per_s);
        p.elapsed = Duration::from_nanos(now_ns.saturating_sub(self.core().started_ns));
        p
    }
}
