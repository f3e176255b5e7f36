//! A lane: one thread for a device on a ring, for what the kernel cannot do asynchronously.
//!
//! FSYNC and FALLOCATE through io_uring always go to a kernel worker thread (measured: every one of them, on every file
//! system), unpinned and unbounded, and older kernels lack some of them. The same work on a thread of our own costs the
//! same, is bounded, can be counted, and leaves the ring without a single punt. A request that hangs in here never
//! blocks the worker: it waits for the completion like for any other.
//!
//! Block status has no io_uring request at all. Where a server answers the question, or somebody else's program, it goes
//! through here too ([`Device::answers_at_once`]).
//!
//! The thread starts with the first request and ends when the lane is dropped. It is left behind only if it hangs in the
//! kernel at that moment; it then owns nothing but a reference to the device.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Wake;
use crate::device::{Device, Extent, ZeroMode};
use crate::error::{Error, Result};
use crate::units::ByteRange;

/// How many requests may wait for the lane.
pub(super) const LANE_DEPTH: usize = 64;
/// How long a drop waits for the request that is under way.
const PATIENCE: Duration = Duration::from_millis(200);

/// A request that blocks.
#[derive(Debug)]
pub(super) struct Job {
    /// The device; kept open by this.
    pub(super) device: Arc<Device>,
    /// What to do.
    pub(super) work: Work,
    /// Handed back with the result.
    pub(super) key: u32,
}

/// The kinds of blocking requests.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// Make a range read as zeroes.
    Zero(ByteRange, ZeroMode),
    /// Give a range's space back.
    Discard(ByteRange),
    /// fdatasync.
    Flush,
    /// Say what is there.
    Status(u64),
}

/// The end of a blocking request.
#[derive(Debug)]
pub(super) struct Done {
    /// The request's.
    pub(super) key: u32,
    /// Bytes done or a positive errno.
    pub(super) result: std::result::Result<u64, i32>,
    /// The answer, if something was asked.
    pub(super) extent: Option<Extent>,
}

/// The queues to and from the thread.
#[derive(Debug)]
pub(super) struct Lane {
    /// Wakes the ring when something is done.
    waker: Arc<dyn Wake>,
    /// Answers of all lanes of the ring that were sent and not yet received; spares it a look into each per loop.
    ready: Arc<AtomicUsize>,
    /// Present once the thread runs.
    running: Option<Running>,
    /// The thread of a lane that was closed.
    closed: Option<JoinHandle<()>>,
    /// Accepted and not yet taken back; bounds both queues.
    outstanding: usize,
}

/// A started thread.
#[derive(Debug)]
struct Running {
    /// To the thread.
    jobs: SyncSender<Job>,
    /// From the thread; as long as the queue to it, so the thread never waits to answer.
    done: Receiver<Done>,
    /// To wait for its end.
    thread: JoinHandle<()>,
}

impl Lane {
    /// A lane without a thread yet.
    pub(super) fn new(waker: Arc<dyn Wake>, ready: Arc<AtomicUsize>) -> Self {
        Self { waker, ready, running: None, closed: None, outstanding: 0 }
    }

    /// Whether one more request fits.
    pub(super) fn has_room(&self) -> bool {
        self.outstanding < LANE_DEPTH
    }

    /// Queues a request; the caller has seen that there is room.
    pub(super) fn push(&mut self, job: Job) -> Result<()> {
        if self.running.is_none() {
            self.running = Some(Running::start(Arc::clone(&self.waker), Arc::clone(&self.ready))?);
        }
        let Some(running) = &self.running else { return Ok(()) };
        running
            .jobs
            .try_send(job)
            .map_err(|_| Error::new(crate::ErrorKind::Internal, "use the thread for blocking requests"))?;
        self.outstanding += 1;
        Ok(())
    }

    /// Lets the thread end: the requests behind the one that is under way are never begun.
    pub(super) fn close(&mut self) {
        if let Some(Running { jobs, thread, done }) = self.running.take() {
            // With nobody to answer to, it does not begin another one.
            drop((jobs, done));
            self.closed = Some(thread);
        }
    }

    /// Until when lanes that are closed now are waited for. Many that hang are waited for together, not one after the other: who
    /// drops an engine waits for all of them.
    pub(super) fn patience_until() -> Instant {
        Instant::now() + PATIENCE
    }

    /// Ends the thread: the request that is under way is waited for until then. `true` when nothing of this lane can reach the
    /// device any more.
    pub(super) fn end_by(&mut self, deadline: Instant) -> bool {
        self.close();
        let Some(thread) = self.closed.take() else { return true };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let over = thread.is_finished();
        if over {
            // It caught every panic, so there is nothing to learn from the result.
            let _ = thread.join();
        }
        over
    }

    /// Takes one result, if there is one.
    pub(super) fn pop(&mut self) -> Option<Done> {
        let running = self.running.as_ref()?;
        if self.outstanding == 0 {
            return None;
        }
        match running.done.try_recv() {
            Ok(done) => {
                self.ready.fetch_sub(1, Ordering::Relaxed);
                self.outstanding -= 1;
                Some(done)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }
}

impl Running {
    /// Starts the thread.
    fn start(waker: Arc<dyn Wake>, ready: Arc<AtomicUsize>) -> Result<Self> {
        let (jobs, inbox) = sync_channel(LANE_DEPTH);
        let (outbox, done) = sync_channel(LANE_DEPTH);
        // A queue's lane is started by a thread of the host's, whose signals are none of its business.
        let thread =
            crate::threads::spawn("blkm-lane".into(), move || serve(&inbox, &outbox, &ready, &*waker))
                .map_err(|e| Error::from_io("start the thread for blocking requests", e))?;
        Ok(Self { jobs, done, thread })
    }
}

/// The thread: one request after the other, until the queue is closed.
fn serve(inbox: &Receiver<Job>, outbox: &SyncSender<Done>, ready: &AtomicUsize, waker: &dyn Wake) {
    while let Ok(Job { device, work, key }) = inbox.recv() {
        let ran = catch_unwind(AssertUnwindSafe(|| run(&device, work))).unwrap_or(Err(libc::EIO));
        let (result, extent) = match ran {
            Ok((bytes, extent)) => (Ok(bytes), extent),
            Err(errno) => (Err(errno), None),
        };
        // Closed before anybody hears of it: whoever does may want the device for himself.
        drop(device);
        // A bug in the device layer must look like a failed request, not like one that never ends.
        if outbox.send(Done { key, result, extent }).is_err() {
            return;
        }
        ready.fetch_add(1, Ordering::Release);
        waker.wake();
    }
}

/// Runs one request: bytes done, and the answer to a question.
fn run(device: &Device, work: Work) -> std::result::Result<(u64, Option<Extent>), i32> {
    match work {
        Work::Zero(range, mode) => device.write_zeroes(range, mode).map(|_| (range.len(), None)),
        Work::Discard(range) => device.discard(range).map(|()| (range.len(), None)),
        Work::Flush => device.flush().map(|()| (0, None)),
        Work::Status(offset) => device.status(offset).map(|extent| (0, Some(extent))),
    }
    .map_err(|e| e.errno())
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.end_by(Self::patience_until());
    }
}
