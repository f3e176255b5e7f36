//! A job as the host holds it, and the part of it that all workers share; `verbs` is what may be asked of it, `query` what may
//! be read of it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Event, Events};
use super::latencies::Watched;
use super::outcome::{self, Outcome, TargetState};
use crate::drive::Latencies;
use crate::error::{Error, Result};
use crate::mirror::{End, ExtentMap, JobStatus, MirrorOptions, RateMeter, Share, Turn};
use crate::ring::{Wake, monotonic_ns};

/// After the verdict, how long a waiting host waits for the last worker to let go of the devices.
const LET_GO: Duration = Duration::from_millis(250);
/// A wait without an end looks up this often.
const LONG: Duration = Duration::from_secs(3600);
/// No pause was measured.
const NO_PAUSE: u64 = u64::MAX;

/// What all workers and the host share of a job.
#[derive(Debug)]
pub(super) struct JobCore {
    /// The logic's shared state.
    pub(super) share: Arc<Share>,
    /// In place of block status.
    pub(super) extents: Option<ExtentMap>,
    /// Names of source and target, for error texts.
    pub(super) names: [String; 2],
    /// The workers' wakers, home first.
    wakers: Vec<Arc<dyn Wake>>,
    /// When the job was made.
    pub(super) started_ns: u64,
    /// The verdict and when it was given, by the ring's clock and by the host's.
    verdict: OnceLock<(End, u64, Instant)>,
    /// How long the switch-over held guest requests.
    pause_ns: AtomicU64,
    /// Workers that still hold their part.
    parts: AtomicUsize,
    /// What the guest's requests take.
    pub(super) latencies: Watched,
    /// Jobs of the engine; this one counts until its last part is gone.
    jobs: Arc<AtomicUsize>,
    /// For hosts that wait.
    over: (Mutex<()>, Condvar),
    /// To the host.
    pub(super) events: Events,
    /// The rate, sampled by whoever asks for progress.
    pub(super) meter: Mutex<RateMeter>,
    /// A pending switch-over needs no word of the host.
    auto_finalize: bool,
    /// Why the drive cannot move to the target, if so.
    pub(super) no_pivot: Option<String>,
}

/// A handle to a mirror job; it may be used from any thread, and cloned. Dropping the last one leaves the job running, and no other
/// handle can be had: it ends as it was asked to (also by a pivot, if that was), or with its engine. A job that needs to be
/// finalized is cancelled.
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
            // A switch-over that is being carried out needs nobody any more.
            self.core.share.cancel();
            self.core.wake_all();
        }
    }
}

impl JobCore {
    /// The shared part and the host's handle of a new job on a drive with these latencies.
    pub(super) fn start(
        share: Arc<Share>,
        options: &MirrorOptions,
        names: [String; 2],
        wakers: Vec<Arc<dyn Wake>>,
        jobs: Arc<AtomicUsize>,
        no_pivot: Option<String>,
        latencies: &[Latencies; 2],
    ) -> Result<Job> {
        let events = Events::new(format!("{} to {}", names[0], names[1]), options.auto_finalize)?;
        let core = Arc::new(Self {
            share,
            extents: options.extents.clone(),
            names,
            parts: AtomicUsize::new(wakers.len()),
            latencies: Watched::new(latencies),
            jobs,
            wakers,
            started_ns: monotonic_ns(),
            verdict: OnceLock::new(),
            pause_ns: AtomicU64::new(NO_PAUSE),
            over: (Mutex::new(()), Condvar::new()),
            events,
            meter: Mutex::new(RateMeter::default()),
            auto_finalize: options.auto_finalize,
            no_pivot,
        });
        Ok(Job { _held: Arc::new(Held { core: Arc::clone(&core) }), core })
    }

    /// The home passes notices on to the host.
    pub(super) fn tell_notices(&self) {
        self.events.tell_all(&self.share);
    }

    /// How long the switch-over held guest requests.
    pub(super) fn set_pause_ns(&self, pause_ns: Option<u64>) {
        self.pause_ns.store(pause_ns.unwrap_or(NO_PAUSE), Ordering::Release);
    }

    /// The verdict: the job is over. Only the first counts.
    pub(super) fn conclude(&self, end: End, now_ns: u64) {
        self.latencies.end();
        if self.verdict.set((end, now_ns, Instant::now())).is_ok() {
            self.events.tell_after(&self.share, || {
                // A home that broke did not come this way.
                if end != End::Completed {
                    self.share.turn(Turn::Abort);
                }
                self.share.turn(Turn::Conclude);
            });
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
            self.share.release_bitmap();
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

    /// Where the job stands.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        self.core.share.status()
    }

    /// Takes the next event, if there is one. All handles of a job share its events, and each goes to one caller, so let one thread
    /// take them.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.core.events.next()
    }

    /// A descriptor that is readable while there are events, for `poll(2)` and its kin; only to be waited on. A
    /// [`Self::next_event`] that finds none resets it, so take events until then.
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

    /// Waits for the end of the job for so long; `None` if it is not over then, or its workers have not let go of the devices yet
    /// (for 250 ms at most; [`Self::outcome`] is there already).
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
