//! A job as the host sees it, and the part of it that all workers share.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Event, Events, IoStatus, LastError};
use super::outcome::{self, Outcome, TargetState};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{
    CopyMode, End, ExtentMap, JobStatus, MirrorOptions, Notice, Progress, RateMeter, Share, Turn, Verb,
};
use crate::ring::{Wake, monotonic_ns};

/// After the verdict, how long a waiting host waits for the last worker to let go of the devices.
const LET_GO: Duration = Duration::from_millis(250);
/// A wait without an end looks up this often.
const LONG: Duration = Duration::from_secs(3600);
/// No pause was measured.
const NO_PAUSE: u64 = u64::MAX;

/// How a switch-over is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Completion {
    /// The drive moves to the target: guest requests go there from then on.
    #[default]
    Pivot,
    /// The drive stays where it is; the target is a copy as of that moment.
    PointInTime,
}

/// How a job is cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancel {
    /// As QEMU's `block-job-cancel`: a job that is ready ends as a copy as of now, with the target complete; any other is
    /// cancelled by force.
    Soft,
    /// At once; the target is no copy.
    Force,
}

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
    /// Bytes that differ or may differ: dirty chunks, what the first pass has not reached, and what is in flight.
    pub dirty_bytes: u64,
    /// Bytes that turn dirty per second.
    pub dirty_rate_bytes_per_s: u64,
    /// Bytes copied per second.
    pub copy_rate_bytes_per_s: u64,
    /// Time until nothing is left at these rates; `None` = not in sight.
    pub eta: Option<Duration>,
    /// How long a switch-over begun now would hold guest requests; `None` = not known yet.
    pub predicted_pause: Option<Duration>,
    /// The speed limit; 0 = none.
    pub speed_bytes_per_s: u64,
    /// How guest writes are followed now.
    pub copy_mode: CopyMode,
    /// Write-blocking, and nothing is dirty: what the guest is told is written through queues is on both sides.
    pub actively_synced: bool,
    /// Whether the host has asked for the end.
    pub completing: bool,
    /// What errors have done to the job.
    pub io_status: IoStatus,
    /// The last request that failed for good, whatever was done about it.
    pub last_error: Option<LastError>,
    /// The workers' counters.
    pub progress: Progress,
}

/// What all workers and the host share of a job.
#[derive(Debug)]
pub(super) struct JobCore {
    /// The logic's shared state.
    pub(super) share: Arc<Share>,
    /// In place of block status.
    pub(super) extents: Option<ExtentMap>,
    /// Names of source and target, for error texts.
    names: [String; 2],
    /// The workers' wakers, home first.
    wakers: Vec<Arc<dyn Wake>>,
    /// When the job was made.
    started_ns: u64,
    /// The verdict and when it was given, by the ring's clock and by the host's.
    verdict: OnceLock<(End, u64, Instant)>,
    /// How long the switch-over held guest requests.
    pause_ns: AtomicU64,
    /// Workers that still hold their part.
    parts: AtomicUsize,
    /// Jobs of the engine; this one counts until its last part is gone.
    jobs: Arc<AtomicUsize>,
    /// For hosts that wait.
    over: (Mutex<()>, Condvar),
    /// To the host.
    events: Events,
    /// The rate, sampled by whoever asks for progress.
    meter: Mutex<RateMeter>,
    /// A pending switch-over needs no word of the host.
    auto_finalize: bool,
    /// Why the drive cannot move to the target, if so.
    no_pivot: Option<String>,
}

/// A handle to a mirror job; it may be used from any thread, and cloned. Dropping the last one leaves the job running, and then
/// only the end of its engine ends it; a job that needs to be finalized is cancelled.
#[derive(Clone, Debug)]
#[must_use = "a job that nobody has a handle of runs until its engine ends"]
pub struct Job {
    /// The shared part.
    core: Arc<JobCore>,
    /// Gone with the last handle.
    _held: Arc<Held>,
}

/// What all handles of a job hold together.
#[derive(Debug)]
struct Held {
    /// The shared part.
    core: Arc<JobCore>,
}

/// A job that waits to be finalized holds guest requests. When nobody is left who could finalize it, it is cancelled (**The
/// guest is not our hostage**).
impl Drop for Held {
    fn drop(&mut self) {
        if !self.core.auto_finalize && !self.core.is_over() {
            self.core.share.cancel();
            self.core.wake_all();
        }
    }
}

impl JobCore {
    /// The shared part and the host's handle of a new job.
    pub(super) fn start(
        share: Arc<Share>,
        options: &MirrorOptions,
        names: [String; 2],
        wakers: Vec<Arc<dyn Wake>>,
        jobs: Arc<AtomicUsize>,
        no_pivot: Option<String>,
    ) -> Result<Job> {
        let core = Arc::new(Self {
            share,
            extents: options.extents.clone(),
            names,
            parts: AtomicUsize::new(wakers.len()),
            jobs,
            wakers,
            started_ns: monotonic_ns(),
            verdict: OnceLock::new(),
            pause_ns: AtomicU64::new(NO_PAUSE),
            over: (Mutex::new(()), Condvar::new()),
            events: Events::new()?,
            meter: Mutex::new(RateMeter::default()),
            auto_finalize: options.auto_finalize,
            no_pivot,
        });
        Ok(Job { _held: Arc::new(Held { core: Arc::clone(&core) }), core })
    }

    /// The home passes notices on to the host.
    pub(super) fn tell_notices(&self) {
        let lost = self.share.take_lost_notices();
        if lost > 0 {
            self.events.count_lost(lost);
        }
        while let Some(notice) = self.share.pop_notice() {
            self.events.tell(notice);
        }
    }

    /// How long the switch-over held guest requests.
    pub(super) fn set_pause_ns(&self, pause_ns: Option<u64>) {
        self.pause_ns.store(pause_ns.unwrap_or(NO_PAUSE), Ordering::Release);
    }

    /// The verdict: the job is over. Only the first counts.
    pub(super) fn conclude(&self, end: End, now_ns: u64) {
        if self.verdict.set((end, now_ns, Instant::now())).is_ok() {
            // A home that broke did not come this way.
            if end != End::Completed {
                self.share.turn(Turn::Abort);
            }
            self.share.turn(Turn::Conclude);
            self.tell_notices();
        }
        self.signal();
        self.wake_all();
    }

    /// Whether the verdict was given.
    pub(super) fn is_over(&self) -> bool {
        self.verdict.get().is_some()
    }

    /// When the verdict was given.
    pub(super) fn over_since_ns(&self) -> Option<u64> {
        self.verdict.get().map(|&(_, at_ns, _)| at_ns)
    }

    /// A worker has let go of its part.
    pub(super) fn part_left(&self) {
        if self.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.jobs.fetch_sub(1, Ordering::AcqRel);
        }
        self.signal();
    }

    /// Wakes every worker of the job.
    pub(super) fn wake_all(&self) {
        for waker in &self.wakers {
            waker.wake();
        }
    }

    /// Wakes the job's home.
    pub(super) fn wake_home(&self) {
        if let Some(home) = self.wakers.first() {
            home.wake();
        }
    }

    /// Wakes hosts that wait.
    fn signal(&self) {
        let _guard = self.over.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.1.notify_all();
    }

    /// The failure in words.
    fn error(&self) -> Option<Error> {
        self.share.failure().map(|failure| outcome::describe(failure, &self.names))
    }

    /// The outcome, once the verdict is there.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        let &(end, at_ns, _) = self.verdict.get()?;
        let complete = end == End::Completed;
        let mut progress = self.share.progress();
        progress.elapsed = Duration::from_nanos(at_ns.saturating_sub(self.started_ns));
        progress.eta = None;
        let nanos = progress.elapsed.as_nanos().max(1);
        let rate = u128::from(progress.done_bytes) * 1_000_000_000 / nanos;
        progress.rate_bytes_per_s = u64::try_from(rate).unwrap_or(u64::MAX);
        let pause_ns = Some(self.pause_ns.load(Ordering::Acquire)).filter(|&ns| ns != NO_PAUSE);
        Some(Outcome {
            end,
            target: if complete { TargetState::Complete } else { TargetState::Incomplete },
            pivoted: complete && self.share.wants_pivot(),
            pause: pause_ns.map(Duration::from_nanos),
            error: if complete { None } else { self.error() },
            cancelled: end == End::Cancelled,
            progress,
            left_dirty_bytes: self.share.left_bytes(),
        })
    }
}

impl Job {
    /// The shared part.
    pub(super) fn core(&self) -> &Arc<JobCore> {
        &self.core
    }

    /// Checks that the job may be asked this now. It may move on a moment later, and then the request does nothing.
    fn check(&self, verb: Verb) -> Result<()> {
        verb.check(self.status())
    }

    /// The error of a verb that the state would allow.
    fn refused(verb: Verb, why: &'static str) -> Error {
        Error::new(ErrorKind::WrongState, verb.name()).because(why)
    }

    /// Where the job stands.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        self.core.share.status()
    }

    /// Pauses the job: what is in flight is finished, and then the job is paused, or standby if it was ready. Guest writes go
    /// on being recorded, and in write-blocking mode go on to both sides.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state, or when the host has paused it already.
    pub fn pause(&self) -> Result<()> {
        self.check(Verb::Pause)?;
        if !self.core.share.pause() {
            return Err(Self::refused(Verb::Pause, "it is paused already; resume it first"));
        }
        self.core.wake_all();
        Ok(())
    }

    /// Goes on after a pause, or after an error policy stopped the job.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state, or when the job is neither paused nor stopped.
    pub fn resume(&self) -> Result<()> {
        self.check(Verb::Resume)?;
        if !self.core.share.resume() {
            return Err(Self::refused(Verb::Resume, "it is not paused"));
        }
        self.core.wake_all();
        Ok(())
    }

    /// Changes the speed limit at once, in every phase but the switch-over; 0 = none.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn set_speed(&self, bytes_per_s: u64) -> Result<()> {
        self.set_speed_at(bytes_per_s, monotonic_ns())
    }

    /// The same at a time that the caller tells, for the simulation has a clock of its own.
    pub(crate) fn set_speed_at(&self, bytes_per_s: u64, now_ns: u64) -> Result<()> {
        self.check(Verb::SetSpeed)?;
        self.core.share.limiter.set_speed(bytes_per_s, now_ns);
        self.core.wake_all();
        Ok(())
    }

    /// Changes how guest writes are followed, from each queue's next request on. A job in copy mode auto stays in the mode that
    /// the host chose last.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn set_copy_mode(&self, mode: CopyMode) -> Result<()> {
        self.check(Verb::SetCopyMode)?;
        if self.core.share.choose_copy_mode(mode) {
            self.core.share.post(Notice::CopyMode(mode));
        }
        self.core.wake_home();
        Ok(())
    }

    /// Asks for the switch-over: as soon as it fits into the job's `max_pause`, guest requests are held, the rest is copied,
    /// the target is flushed, and with [`Completion::Pivot`] the drive moves to the target. Returns at once;
    /// [`Self::wait`] and the events tell the end.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state (wait for [`EventKind::Ready`](super::EventKind)), or when the end was asked for
    /// already; [`ErrorKind::WrongSize`] for a pivot to a target with larger blocks than the drive's guest was promised.
    pub fn complete(&self, completion: Completion) -> Result<()> {
        self.check(Verb::Complete)?;
        if let (Completion::Pivot, Some(why)) = (completion, &self.core.no_pivot) {
            return Err(Error::new(ErrorKind::WrongSize, "move the drive to")
                .at(&self.core.names[1])
                .because(why.clone()));
        }
        if !self.core.share.complete(completion == Completion::Pivot) {
            let why = "it is completing already; cancel it by force to stop that";
            return Err(Self::refused(Verb::Complete, why));
        }
        self.core.wake_all();
        Ok(())
    }

    /// Ends the job. By force it is over within a second even if requests hang.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn cancel(&self, how: Cancel) -> Result<()> {
        self.check(Verb::Cancel)?;
        if how == Cancel::Soft && self.status().is_ready() {
            return self.complete(Completion::PointInTime);
        }
        self.core.share.cancel();
        self.core.wake_all();
        Ok(())
    }

    /// Carries out a switch-over that is pending.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn finalize(&self) -> Result<()> {
        self.check(Verb::Finalize)?;
        self.core.share.finalize();
        self.core.wake_all();
        Ok(())
    }

    /// Says that the outcome of a job that is over was read; its state is null then, and every verb is refused.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn dismiss(&self) -> Result<()> {
        self.check(Verb::Dismiss)?;
        self.core.share.turn(Turn::Dismiss);
        self.core.tell_notices();
        Ok(())
    }

    /// Where the job stands and what it has done; the figures are at most some milliseconds old.
    #[must_use]
    pub fn query(&self) -> JobInfo {
        let share = &self.core.share;
        let progress = self.progress();
        let dirty_bytes =
            share.left_bytes().saturating_add(progress.in_flight_bytes).min(progress.disk_bytes);
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
            speed_bytes_per_s: share.limiter.speed(),
            copy_mode,
            actively_synced: copy_mode == CopyMode::WriteBlocking && dirty_bytes == 0,
            completing: share.wants_completion(),
            io_status: match share.stopped() {
                Some(true) => IoStatus::NoSpace,
                Some(false) => IoStatus::Failed,
                None => share.failure().map_or(IoStatus::Ok, |failure| IoStatus::of_failure(failure.errno)),
            },
            last_error: self.core.events.last_error(),
            progress,
        }
    }

    /// What was done so far; the rate looks back over the calls of the last seconds.
    #[must_use]
    pub fn progress(&self) -> Progress {
        if let Some(outcome) = self.core.outcome() {
            return outcome.progress;
        }
        let now_ns = monotonic_ns();
        let mut p = self.core.share.progress();
        let mut meter = self.core.meter.lock().unwrap_or_else(PoisonError::into_inner);
        p.rate_bytes_per_s = meter.sample(now_ns, p.done_bytes);
        p.eta = RateMeter::eta(p.disk_bytes - p.done_bytes, p.rate_bytes_per_s);
        p.elapsed = Duration::from_nanos(now_ns.saturating_sub(self.core.started_ns));
        p
    }

    /// Takes the next event, if there is one.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.core.events.next()
    }

    /// A descriptor that is readable while there are events, for `poll(2)` and its kin; only to be waited on.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.core.events.fd()
    }

    /// How it ended, once it has; there from [`EventKind::Concluded`](super::EventKind) on. Workers may still be closing the
    /// devices then, which [`Self::wait_for`] waits for.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.core.outcome()
    }

    /// Waits for the end of the job.
    #[must_use]
    pub fn wait(&self) -> Outcome {
        loop {
            if let Some(outcome) = self.wait_for(Duration::MAX) {
                return outcome;
            }
        }
    }

    /// Waits for the end of the job for so long; `None` if it is not over then.
    ///
    /// When it is over, the workers have closed the source and the target. Who may still have them open:
    ///
    /// | ended | source | target |
    /// |---|---|---|
    /// | completed, pivot | each queue until its thread uses it next, and who asked for [`Drive::device`](crate::drive::Drive::device) | the drive |
    /// | completed without, cancelled, failed | the drive | in write-blocking mode each queue until its thread uses it next |
    ///
    /// And a worker whose requests hang keeps both until they come back; that is waited for 250 ms at most.
    #[must_use]
    pub fn wait_for(&self, time: Duration) -> Option<Outcome> {
        let core = &*self.core;
        let deadline = Instant::now().checked_add(time);
        let mut guard = core.over.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            let let_go = core.verdict.get().map(|&(_, _, at)| at + LET_GO);
            if let_go.is_some_and(|at| core.parts.load(Ordering::Acquire) == 0 || now >= at) {
                return core.outcome();
            }
            let until = deadline.into_iter().chain(let_go).min();
            let left = until.map_or(LONG, |until| until.saturating_duration_since(now));
            if left.is_zero() {
                return None;
            }
            guard = core.over.1.wait_timeout(guard, left.min(LONG)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
