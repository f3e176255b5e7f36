//! A job as the host sees it, and the part of it that all workers share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::event::Event;
use crate::error::{Error, ErrorKind};
use crate::mirror::{ExtentMap, Failure, FailureCause, JobStatus, Progress, RateMeter, Share, Side, Verdict};
use crate::ring::{Wake, monotonic_ns};

/// Events kept for a host that does not take them.
const EVENT_DEPTH: usize = 256;
/// After the verdict, how long a waiting host waits for the last worker to let go of the devices.
const LET_GO: Duration = Duration::from_millis(250);

/// A wait without an end looks up this often.
const LONG: Duration = Duration::from_secs(3600);

/// What the target is after a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetState {
    /// Everything that the sync mode asked for was copied, and flushed; with `SyncMode::Full` it equals the source.
    Complete,
    /// Not a copy.
    Incomplete,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the target is now.
    pub target: TargetState,
    /// Why the job failed, if it did.
    pub error: Option<Error>,
    /// Whether the host cancelled it.
    pub cancelled: bool,
    /// What was done.
    pub progress: Progress,
    /// Bytes that were not copied, in whole chunks.
    pub left_dirty_bytes: u64,
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
    verdict: OnceLock<(Verdict, u64, Instant)>,
    /// Workers that still hold their part.
    parts: AtomicUsize,
    /// Jobs of the engine; this one counts until its last part is gone.
    jobs: Arc<AtomicUsize>,
    /// For hosts that wait.
    over: (Mutex<()>, Condvar),
    /// To the host.
    events: SyncSender<Event>,
    /// Events that found the queue full.
    lost_events: AtomicU64,
}

/// A handle to a mirror job; it may be used from any thread. Dropping it leaves the job running.
#[derive(Debug)]
pub struct Job {
    /// The shared part.
    core: Arc<JobCore>,
    /// Events, taken by one thread at a time.
    events: Mutex<Receiver<Event>>,
    /// The rate, sampled by whoever asks for progress.
    meter: Mutex<RateMeter>,
}

impl JobCore {
    /// The shared part and the host's handle of a new job.
    pub(super) fn start(
        share: Arc<Share>,
        extents: Option<ExtentMap>,
        names: [String; 2],
        wakers: Vec<Arc<dyn Wake>>,
        jobs: Arc<AtomicUsize>,
    ) -> Job {
        let (events, receiver) = sync_channel(EVENT_DEPTH);
        let core = Arc::new(Self {
            share,
            extents,
            names,
            parts: AtomicUsize::new(wakers.len()),
            jobs,
            wakers,
            started_ns: monotonic_ns(),
            verdict: OnceLock::new(),
            over: (Mutex::new(()), Condvar::new()),
            events,
            lost_events: AtomicU64::new(0),
        });
        Job { core, events: Mutex::new(receiver), meter: Mutex::new(RateMeter::default()) }
    }

    /// Gives the host an event; it is counted when nobody takes them.
    pub(super) fn emit(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.lost_events.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The home worker's verdict: the job is over.
    pub(super) fn conclude(&self, verdict: Verdict, now_ns: u64) {
        if self.verdict.set((verdict, now_ns, Instant::now())).is_ok() {
            self.emit(Event::Concluded);
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
        let Failure { side, errno, range, cause } = self.share.failure()?;
        let (place, verb) = match side {
            Side::Source => (&self.names[0], "read the source"),
            Side::Target if range.is_empty() => (&self.names[1], "flush the target"),
            Side::Target => (&self.names[1], "write the target"),
        };
        let error = Error::from_errno(verb, errno).at(place);
        let error = if range.is_empty() { error } else { error.in_range(range) };
        let reason = std::io::Error::from_raw_os_error(errno);
        Some(match cause {
            FailureCause::Io => error,
            FailureCause::Flush => {
                error.because(format!("{reason}; what was written may be lost, so copy again"))
            }
            FailureCause::SourceShrank => error
                .with_kind(ErrorKind::SourceShrank)
                .because("it became shorter while it was copied; the rest is gone"),
            FailureCause::GaveUp => error.because(format!("{reason}; given up after several tries")),
            FailureCause::Panic => Error::new(ErrorKind::Internal, "go on with the job")
                .because("a bug in blkmirror was caught; please report it"),
            FailureCause::Ring => Error::from_errno("run the io_uring of a worker", errno),
        })
    }

    /// The outcome, once the verdict is there.
    fn outcome(&self) -> Option<Outcome> {
        let &(verdict, at_ns, _) = self.verdict.get()?;
        let complete = verdict == Verdict::Complete;
        let mut progress = self.share.progress();
        progress.status = JobStatus::Concluded;
        progress.elapsed = Duration::from_nanos(at_ns.saturating_sub(self.started_ns));
        progress.eta = None;
        let nanos = progress.elapsed.as_nanos().max(1);
        let rate = u128::from(progress.done_bytes) * 1_000_000_000 / nanos;
        progress.rate_bytes_per_s = u64::try_from(rate).unwrap_or(u64::MAX);
        Some(Outcome {
            target: if complete { TargetState::Complete } else { TargetState::Incomplete },
            error: if complete { None } else { self.error() },
            cancelled: !complete && self.share.is_cancelled(),
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

    /// What was done so far; the rate looks back over the calls of the last seconds.
    #[must_use]
    pub fn progress(&self) -> Progress {
        if let Some(outcome) = self.core.outcome() {
            return outcome.progress;
        }
        let now_ns = monotonic_ns();
        let mut p = self.core.share.progress();
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        p.rate_bytes_per_s = meter.sample(now_ns, p.done_bytes);
        p.eta = RateMeter::eta(p.disk_bytes - p.done_bytes, p.rate_bytes_per_s);
        p.elapsed = Duration::from_nanos(now_ns.saturating_sub(self.core.started_ns));
        p
    }

    /// Cancels the job: nothing new is started, and it is over within a second even if a request hangs.
    pub fn cancel(&self) {
        self.core.share.cancel();
        self.core.wake_all();
    }

    /// Pauses the job; what is in flight is finished.
    pub fn pause(&self) {
        self.core.share.pause();
        self.core.wake_all();
    }

    /// Goes on after a pause, or after an error policy stopped the job.
    pub fn resume(&self) {
        self.core.share.resume();
        self.core.wake_all();
    }

    /// Changes the speed limit at once; 0 = none.
    pub fn set_speed(&self, bytes_per_s: u64) {
        self.core.share.limiter.set_speed(bytes_per_s);
        self.core.wake_all();
    }

    /// Takes the next event, if there is one.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        let lost = self.core.lost_events.swap(0, Ordering::Relaxed);
        if lost > 0 {
            return Some(Event::Overflow(lost));
        }
        self.events.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()
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
    /// When it is over, every device is closed, with one exception: a worker whose requests hang keeps its devices until
    /// they come back. That is waited for 250 ms at most.
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
