//! The engine: worker threads, each with its own ring and window, running the mirror logic of its share of every job.
//!
//! Workers share only atomics and bounded mailboxes; no lock is taken per chunk. A worker without work sleeps in its
//! ring and costs nothing. One worker is a job's home and decides its end; the others only copy. A panic in the logic of
//! a job is caught: that job fails, the worker and every other job go on.
//!
//! Threads: an [`Engine`] and a [`Job`] may be used from any thread. Engine threads block all signals, so the host's
//! handlers never run on them. An engine does not survive `fork`: make it after daemonising.
#![forbid(unsafe_code)]

mod core_set;
mod courtesy;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod crew;
mod event;
mod home;
mod job;
mod latencies;
mod log;
mod outcome;
mod query;
#[cfg(test)]
mod simulated;
mod start;
mod verbs;
mod words;
mod worker;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;

pub use event::{Event, EventKind, IoStatus, LastError};
pub use job::Job;
pub use latencies::GuestLatencies;
pub use outcome::{Outcome, TargetState};
pub use query::JobInfo;
pub use verbs::{Cancel, Completion};

pub use crate::mirror::{
    BudgetLevel, CopyMode, CopyModeChoice, End, ErrorAction, ErrorPolicy, Escalation, ExtentMap, JobStatus,
    LatencyBudget, MirrorOptions, OnCopied, Progress, Reason as EscalationReason, Side, SyncMode, Verb,
};

use self::worker::Mail;
use crate::buffer::DEFAULT_WINDOW_BYTES;
use crate::device::Device;
use crate::drive::{Drive, DriveCore};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::Wake;

/// How many messages may wait for a worker.
const MAILBOX_DEPTH: usize = 64;
/// Workers that an engine gets at most unless the host says otherwise.
const MOST_HELPFUL_WORKERS: usize = 4;
/// Workers at most.
const MAX_WORKERS: usize = 256;
/// The least copy memory of a worker: one run. With less, a request could wait for room that there never is.
const MIN_WINDOW_BYTES: u64 = 1 << 20;

/// How an engine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Worker threads; `None` = as many as help (see [`EngineOptions::default_workers`]).
    pub workers: Option<NonZeroUsize>,
    /// Copy memory of each worker in bytes, at least 1 MiB; requests in flight live in it. One job alone fills it. A worker has
    /// 4 MiB more, so that others find some when its requests never come back.
    pub window_bytes: u64,
    /// Pin each worker to a core of the process's set. For a machine that does nothing else: a worker that may not move
    /// away takes the core from a guest's thread, and copies less beside it.
    pub pin: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { workers: None, window_bytes: DEFAULT_WINDOW_BYTES, pin: false }
    }
}

impl EngineOptions {
    /// How many workers an engine gets unless the host says otherwise.
    ///
    /// One for every two cores this process may run on, and no more than four.
    ///
    /// A worker spends about 20 us of CPU per 1 MiB, while the devices' own work (interrupts, loop, dm, nbd) wants cores
    /// too. Measured on two cores, loop to loop: one worker reaches 4.5 to 4.8 GiB/s at 0.02 CPU seconds per GiB, a second
    /// one adds nothing at 1 MiB and 64 KiB and costs another window of memory.
    #[must_use]
    pub fn default_workers() -> usize {
        (core_set::allowed().len() / 2).clamp(1, MOST_HELPFUL_WORKERS)
    }

    /// Bytes of memory that each worker maps and uses: its window, and what is kept for jobs that come beside others.
    #[must_use]
    pub fn worker_memory_bytes(&self) -> u64 {
        self.window_bytes.saturating_add(crate::mirror::spare_bytes(worker::MAX_PARTS))
    }
}

/// What a host has run on each worker's thread before it does anything, with the worker's number from 0: to name the thread, to
/// confine it (control groups, seccomp, scheduling), to count it. It must return, and must not call this library. The threads that
/// a worker starts for requests that block are named `blkm-lane`; they inherit what the worker's thread is confined to.
pub type ThreadStart = Arc<dyn Fn(usize) + Send + Sync>;

/// A worker as the engine sees it.
#[derive(Debug)]
struct WorkerHandle {
    /// To its mailbox; closing it ends the worker.
    inbox: Option<SyncSender<Mail<Device>>>,
    /// Whether its copy memory is on huge pages.
    contiguous: bool,
    /// Wakes it.
    waker: Arc<dyn Wake>,
    /// To wait for its end.
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Tells it to end.
    fn let_end(&mut self) {
        self.inbox = None;
        self.waker.wake();
    }

    /// Puts a part into the mailbox and wakes the worker.
    fn send(&self, mail: Mail<Device>) -> Result<()> {
        let inbox = self
            .inbox
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::WrongState, "use an engine that ends"))?;
        let sent = inbox.try_send(mail).map_err(|e| {
            let (kind, why) = match e {
                TrySendError::Full(_) => {
                    (ErrorKind::QueueFull, "too many are being started at once; try again later")
                }
                TrySendError::Disconnected(_) => (
                    ErrorKind::WrongState,
                    "a worker has ended after an error of its io_uring; start a new engine",
                ),
            };
            Error::new(kind, "start a job").because(why)
        });
        self.waker.wake();
        sent
    }
}

/// Worker threads that carry mirror jobs.
#[derive(Debug)]
pub struct Engine {
    /// The workers.
    workers: Vec<WorkerHandle>,
    /// Which worker is the next job's home.
    next_home: std::sync::atomic::AtomicUsize,
    /// Jobs that are not over.
    jobs: Arc<std::sync::atomic::AtomicUsize>,
}

impl Engine {
    /// Jobs that an engine carries at a time: 64. One that is over counts until its workers have let go of its devices, so while
    /// its requests hang, too.
    pub const MAX_JOBS: usize = worker::MAX_PARTS as usize;

    /// Starts the workers and waits until each has its ring and memory.
    ///
    /// # Errors
    /// When memory is short, a thread cannot be started, or io_uring is missing, forbidden or too old.
    pub fn start(options: EngineOptions) -> Result<Self> {
        Self::start_with(options, None)
    }

    /// The same, and calls `hook` first thing on each worker's thread.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(options: EngineOptions, hook: Option<&ThreadStart>) -> Result<Self> {
        let count = options.workers.map_or_else(EngineOptions::default_workers, NonZeroUsize::get);
        if count > MAX_WORKERS {
            return Err(Error::new(ErrorKind::InvalidArgument, "start the engine")
                .because(format!("{count} workers are more than {MAX_WORKERS}; one per core is enough")));
        }
        if options.window_bytes < MIN_WINDOW_BYTES {
            let why = format!(
                "{} bytes of copy memory cannot hold the largest request; give each worker {MIN_WINDOW_BYTES}",
                options.window_bytes
            );
            return Err(Error::new(ErrorKind::InvalidArgument, "start the engine").because(why));
        }
        Ok(Self {
            workers: start::workers(count, options, hook)?,
            next_home: std::sync::atomic::AtomicUsize::new(0),
            jobs: Arc::default(),
        })
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Starts a job that mirrors `drive` to `target` and follows the guest's writes until it is completed or cancelled. The
    /// target is held until the job is over, and longer if the drive moves to it. Whether the drive could move to it is not asked
    /// here: [`Self::check`] does.
    ///
    /// # Errors
    /// When an option makes no sense, the devices do not fit each other or are the same;
    /// [`Busy`](ErrorKind::Busy) when a job runs on the drive;
    /// [`QueueFull`](ErrorKind::QueueFull) when the engine carries [`Engine::MAX_JOBS`] jobs. The target is untouched then.
    ///
    /// Each worker opens both devices once more, so a job takes two file descriptors per worker. That happens on the caller's
    /// thread and blocks for as long as the devices' file systems do, so do not call it from an event loop. A refused target is
    /// closed; [`Self::check`] first if that matters.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a job may come to keep its options; callers shall not notice"
    )]
    pub fn mirror(&self, drive: &Drive, target: Device, options: MirrorOptions) -> Result<Job> {
        self.mirror_announced(drive, target, &options, &mut |_| Ok(()))
    }

    /// The same, and gives the job to `announce` when all is prepared and nothing was done yet: for a host that must know of a job
    /// before anything can come of it.
    ///
    /// # Errors
    /// As [`Self::mirror`], and that of `announce`: then the job is over without having touched the target.
    pub fn mirror_announced(
        &self,
        drive: &Drive,
        target: Device,
        options: &MirrorOptions,
        announce: &mut dyn FnMut(&Job) -> Result<()>,
    ) -> Result<Job> {
        self.start_job(drive.core(), target, options, announce)
    }

    /// Whether [`Self::mirror`] would take these, and, if `pivot`, whether the drive could move to the target at the end. Changes
    /// nothing; for a host that wants to know before it does something that cannot be undone.
    ///
    /// # Errors
    /// As [`Self::mirror`] and [`Job::complete`], but for what depends on the moment: a busy drive, a bitmap in use, too many jobs.
    pub fn check(&self, drive: &Drive, target: &Device, options: &MirrorOptions, pivot: bool) -> Result<()> {
        start::check_all(&self.workers, drive.core(), target, options, pivot)
    }

    /// Starts a job that copies `source`, which nobody writes meanwhile, to `target` and completes by itself. Both are held
    /// until the job is over.
    ///
    /// # Errors
    /// As [`Self::mirror`].
    pub fn copy(&self, source: Device, target: Device, options: MirrorOptions) -> Result<Job> {
        self.copy_announced(source, target, options, &mut |_| Ok(()))
    }

    /// The same, with `announce` as in [`Self::mirror_announced`].
    ///
    /// # Errors
    /// As [`Self::mirror_announced`].
    pub fn copy_announced(
        &self,
        source: Device,
        target: Device,
        options: MirrorOptions,
        announce: &mut dyn FnMut(&Job) -> Result<()>,
    ) -> Result<Job> {
        let options = MirrorOptions {
            on_copied: OnCopied::Complete,
            copy_mode: CopyModeChoice::Background,
            latency_budget: LatencyBudget::Off,
            max_pause: None,
            ..options
        };
        let (size_bytes, align_bytes) = (source.size_bytes(), source.limits().offset_align_bytes);
        let drive = DriveCore::new(Arc::new(source), size_bytes, align_bytes, false);
        self.start_job(&drive, target, &options, announce)
    }

    /// Counts a job in, and starts it.
    fn start_job(
        &self,
        drive: &Arc<DriveCore<Device>>,
        target: Device,
        options: &MirrorOptions,
        announce: &mut dyn FnMut(&Job) -> Result<()>,
    ) -> Result<Job> {
        let (claim, look) = (std::sync::atomic::Ordering::AcqRel, std::sync::atomic::Ordering::Acquire);
        let more = |jobs| (jobs < Self::MAX_JOBS).then_some(jobs + 1);
        if self.jobs.fetch_update(claim, look, more).is_err() {
            return Err(Error::new(ErrorKind::QueueFull, "start a job").because(format!(
                "this engine carries {} already, those that are over and whose requests hang included; wait for one or start \
                 another engine",
                Self::MAX_JOBS
            )));
        }
        let home = self.next_home.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        start::job((&self.workers, &self.jobs, home), drive, target, options, announce)
    }

    /// Ends the workers; jobs that are not over are cancelled. Dropping the engine does the same. It blocks for up to a second
    /// while requests hang.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        self.workers.iter_mut().for_each(WorkerHandle::let_end);
    }
}

/// An engine of which only some workers could be started ends these, too.
impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.let_end();
        if let Some(thread) = self.thread.take() {
            // A panic of a worker has been told to its jobs, so there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}
