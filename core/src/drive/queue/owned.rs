//! The queue that a host holds: the logic, its ring, the thread that they belong to.
//!
//! The ring is made by the first call that needs it, on the thread that makes it, because the kernel ties a ring to its
//! thread. So a host may make all its queues in one place and hand each to its thread. The eventfd is there from the start,
//! so that it can be put into the host's event loop before.
//!
//! An eventfd says "there may be something to poll for", never "a request has completed": it also becomes readable when
//! the gate opens and when a job comes or ends. The loop is: wait until it is readable, [`Queue::poll`], then
//! [`Queue::pop`] until nothing comes. Nobody but the queue reads it: `poll` and `wait` reset it *before* they collect, so what
//! happens after that makes it readable again, and a loop neither misses anything nor spins.
//!
//! A queue ends in this order: the requests, then the ring, then the marks. A write must not land after its mark, so nothing
//! is marked and given back to the gate before the kernel has let go of the ring (**Mark after, before the ack**).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::core::{QueueCore, ZEROES_BYTES};
use super::request::Wish;
use super::{GuestCompletion, QueueOptions, RegisteredMemory, Rejected, WriteFlags, ZeroFlags};
use crate::buffer::GuestBuffer;
use crate::device::Device;
use crate::drive::core::DriveCore;
use crate::drive::memory::HOST_BUFFERS;
use crate::drive::{Drive, memory_align_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::uring::{OwnedRing, UringLimits, UringOptions};
use crate::ring::{Wait, Wake, monotonic_ns};
use crate::threads;
use crate::units::ByteRange;

/// How long the end of a queue waits for requests under way.
const PATIENCE_NS: u64 = 300_000_000;
/// How often it looks meanwhile.
const LOOK_NS: u64 = 20_000_000;

/// A queue of guest requests to a drive. It belongs to the thread that uses it first.
///
/// Nothing is sent before [`submit`](Self::submit), [`poll`](Self::poll) or [`wait`](Self::wait). Completions come in any
/// order, and an order between requests is the host's to make, as with any disk.
///
/// # Dropping it with requests under way
///
/// There will be no completions. What was not sent is not sent any more. On its own thread it waits for the rest, about 300 ms;
/// then, and on another thread at once, it has the kernel end the ring and waits for that, again about 300 ms. A job copies what
/// those writes may have changed.
///
/// A kernel that does not let go in that time, because a device hangs, may carry out such a write at any later moment. So a job
/// that follows the drive fails, the memory and the devices of the queue are never
/// given back, and the writes are counted as under way for ever: **no later job on this drive can switch over**, each reports
/// that it missed its switch-overs. Make a new [`Drive`] on the device once it is well again. [`close`](Self::close) lets a
/// host wait as long as it likes instead. The same holds for a queue whose ring broke, until that queue is dropped.
///
/// The host's memory is the kernel's until a completion comes. When a drop returns, the host cannot tell whether the kernel has let
/// go; see [`GuestBuffer`].
#[derive(Debug)]
pub struct Queue {
    /// The drive.
    drive: Arc<DriveCore<Device>>,
    /// What the host chose.
    options: QueueOptions,
    /// What its ring does without.
    limits: UringLimits,
    /// Wakes it from any thread.
    waker: QueueWaker,
    /// What exists since the first use.
    pub(super) running: Option<Box<Running>>,
}

/// Wakes the thread that uses a queue, from any thread: its eventfd is readable, and a [`Queue::wait_beside`] looks again. Given by
/// [`Queue::waker`].
#[derive(Clone, Debug)]
pub struct QueueWaker {
    /// The queue's.
    eventfd: Option<Arc<OwnedFd>>,
    /// The ring's, once there is one; it writes to the eventfd, too.
    ring: Arc<OnceLock<Arc<dyn Wake>>>,
}

impl QueueWaker {
    /// Wakes it. What the caller wrote before is seen by who is woken.
    pub fn wake(&self) {
        // Either this sees the ring, or who has just made the ring sees what was written before; see `Queue::running`.
        fence(Ordering::SeqCst);
        match self.ring.get() {
            Some(ring) => ring.wake(),
            None => self.signal(),
        }
    }

    /// Makes the eventfd readable.
    fn signal(&self) {
        if let Some(eventfd) = &self.eventfd {
            // It fails only when the counter is full, and then it is readable.
            let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
        }
    }
}

/// A queue that is in use.
#[derive(Debug)]
pub(super) struct Running {
    /// Whose it is.
    thread: u64,
    /// The logic. Gone before the ring it must assume the worst; [`Running::end`] is how it should be.
    pub(super) core: QueueCore<Device>,
    /// The ring.
    pub(super) ring: OwnedRing,
}

impl Drive {
    /// A queue for one of the host's threads. It costs nothing but the eventfd before it is used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the options are out of bounds; out of descriptors.
    pub fn queue(&self, options: QueueOptions) -> Result<Queue> {
        options.check()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let make = || eventfd(0, flags).map_err(|e| Error::from_io("make an eventfd for a queue", e));
        let eventfd = options.eventfd.then(make).transpose()?.map(Arc::new);
        let (limits, waker) = (UringLimits::default(), QueueWaker { eventfd, ring: Arc::default() });
        Ok(Queue { drive: Arc::clone(self.core()), options, limits, waker, running: None })
    }
}

impl Queue {
    /// Reads `buffer.len()` bytes at `offset` into `buffer`. `tag` comes back with the completion.
    ///
    /// # Errors
    /// Not accepted, and there will be no completion: offset, or the length of any segment of `buffer`, not a multiple of
    /// [`Drive::align_bytes`]; the address of a segment not a multiple of [`Drive::memory_align_bytes`]; past the drive's end;
    /// the queue is full; another thread's queue; the ring could not be made.
    pub fn read(
        &mut self,
        offset: u64,
        buffer: impl Into<GuestBuffer>,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        let buffer = buffer.into();
        self.accept(Wish::Read, ByteRange::at(offset, buffer.len()), Some(buffer), tag)
    }

    /// Writes `buffer` at `offset`.
    ///
    /// # Errors
    /// As [`read`](Self::read); the drive is read-only.
    pub fn write(
        &mut self,
        offset: u64,
        buffer: impl Into<GuestBuffer>,
        flags: WriteFlags,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        let buffer = buffer.into();
        self.accept(Wish::Write(flags), ByteRange::at(offset, buffer.len()), Some(buffer), tag)
    }

    /// Makes `range` read as zeroes; written as data where the device knows no better.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_zeroes(
        &mut self,
        range: ByteRange,
        flags: ZeroFlags,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        self.accept(Wish::WriteZeroes(flags), range, None, tag)
    }

    /// Says that `range` is not needed any more. A device that cannot make use of that changes nothing and succeeds.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn discard(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Rejected> {
        self.accept(Wish::Discard, range, None, tag)
    }

    /// Makes every write durable that completed before this call.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self, tag: u64) -> std::result::Result<(), Rejected> {
        self.accept(Wish::Flush, ByteRange::default(), None, tag)
    }

    /// Sends what was accepted, without looking for completions.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] on another thread; the ring could not be made, or broke: then every request has completed
    /// with an error.
    pub fn submit(&mut self) -> Result<()> {
        let Running { core, ring, .. } = self.running("submit requests")?;
        let before = core.answers();
        let submitted = core.submit(ring.ring());
        if core.answers() > before {
            // It ended without the ring, or with it, so nothing else makes the eventfd readable.
            core.wake();
        }
        core.call_back();
        submitted
    }

    /// Sends what was accepted and collects what has completed, without sleeping.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn poll(&mut self) -> Result<()> {
        let Running { core, ring, .. } = self.collecting("poll a queue")?;
        core.turn(ring.ring(), Wait::POLL)?;
        core.call_back();
        Ok(())
    }

    /// Sends what was accepted and sleeps until `min_completions` completions can be popped, no request is under way, or the
    /// time is over; `None` is for ever.
    ///
    /// Requests that wait for the gate are under way, too.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn wait(&mut self, min_completions: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_beside(min_completions, timeout, || 0)
    }

    /// The same for a host that has completions of its own besides: `beside` says how many, and they count. Who adds to them on
    /// another thread calls [`QueueWaker::wake`] then.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn wait_beside(
        &mut self,
        min_completions: usize,
        timeout: Option<Duration>,
        beside: impl Fn() -> usize,
    ) -> Result<()> {
        let Running { core, ring, .. } = self.collecting("wait for completions")?;
        let (ring, deadline_ns) = (ring.ring(), deadline_ns(timeout));
        loop {
            core.turn_for(ring, min_completions.saturating_sub(beside()), deadline_ns)?;
            let over = deadline_ns.is_some_and(|at_ns| at_ns <= monotonic_ns());
            if over || core.missing(min_completions.saturating_sub(beside())) == 0 {
                core.call_back();
                return Ok(());
            }
        }
    }

    /// Sleeps until nothing is under way, or the time is over, and says which: `true`, nothing is. More is under way than
    /// [`in_flight`](Self::in_flight) tells: writes to the target of a job that has ended, which nobody waits for. The completions
    /// are there to be [popped](Self::pop).
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn drain(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.running.is_none() {
            return Ok(true);
        }
        let Running { core, ring, .. } = self.collecting("wait for the requests of a queue")?;
        let (ring, deadline_ns) = (ring.ring(), deadline_ns(timeout));
        loop {
            core.turn_while_busy(ring, deadline_ns)?;
            let over = deadline_ns.is_some_and(|at_ns| at_ns <= monotonic_ns());
            if over || !core.is_busy() {
                core.call_back();
                return Ok(!core.is_busy());
            }
        }
    }

    /// Takes a completion that [`poll`](Self::poll) or [`wait`](Self::wait) collected.
    #[inline]
    pub fn pop(&mut self) -> Option<GuestCompletion> {
        self.running.as_mut()?.core.pop()
    }

    /// Readable when there may be something to [`poll`](Self::poll) for; `None` if the host chose none.
    ///
    /// The host waits for it, level-triggered or edge-triggered, and never reads it: [`poll`](Self::poll) and
    /// [`wait`](Self::wait) reset it, then collect, so what comes later makes it readable again. It may be readable once more
    /// than there is something to collect. It does not tell of completions that were collected already: [`pop`](Self::pop) them
    /// all before waiting for it, or say so with [`signal`](Self::signal).
    #[must_use]
    pub fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        self.waker.eventfd.as_deref().map(AsFd::as_fd)
    }

    /// Wakes this queue from any thread.
    #[must_use]
    pub fn waker(&self) -> QueueWaker {
        self.waker.clone()
    }

    /// Makes the eventfd readable, from any thread. For a host that leaves completions unpopped, or wants its loop to come round;
    /// without an eventfd it does nothing.
    pub fn signal(&self) {
        self.waker.signal();
    }

    /// Completions that were collected and wait to be [popped](Self::pop).
    #[must_use]
    pub fn ready(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.core.answers())
    }

    /// Requests that were accepted and have not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.core.in_flight())
    }

    /// Of these, requests that wait because the drive's gate is closed: a job is switching over, or waits for the host's word to do
    /// so.
    #[must_use]
    pub fn held(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.core.held())
    }

    /// How much of the memory that is mapped with the drive is registered with this queue's ring, and how many requests made use of
    /// it.
    #[must_use]
    pub fn registered_memory(&self) -> RegisteredMemory {
        self.running.as_ref().map_or_else(RegisteredMemory::default, |running| {
            running.core.memory.report(running.ring.requests_through_buffers())
        })
    }

    /// Has the ring do without what the kernel has, for tests; before the first use.
    #[doc(hidden)]
    pub fn limit(&mut self, limits: UringLimits) {
        self.limits = limits;
    }

    /// Waits at most `timeout` for what is under way ([`drain`](Self::drain)) and ends the queue; gives it back when that did not
    /// end in this time, on a thread that is not its own, too, unless nothing is under way. Requests that wait for a closed gate
    /// are under way.
    ///
    /// Completions that were not popped go with it; a host that wants them [`wait`](Self::wait)s and [`pop`](Self::pop)s before.
    ///
    /// # Errors
    /// The queue, with its requests still under way; or its ring broke, and what it has can only be dropped.
    pub fn close(mut self, timeout: Duration) -> std::result::Result<(), Self> {
        let is_busy = self.running.as_ref().is_some_and(|running| running.core.is_busy());
        // An error: another thread's, where it stays under way, or the ring breaks.
        if is_busy && !self.drain(Some(timeout)).unwrap_or(false) {
            return Err(self);
        }
        let attempt = "close a queue";
        let broken = self.running.as_ref().is_some_and(|running| running.core.check_ring(attempt).is_err());
        if broken { Err(self) } else { Ok(()) }
    }

    /// Ends the queue after a panic in one of its calls: sends and collects nothing, for nobody knows what is in its lists, has the
    /// kernel end the ring, and treats what was under way as [dropping](Self#dropping-it-with-requests-under-way) does. What is
    /// left is a queue to drop.
    pub fn abandon(&mut self) {
        if let Some(running) = self.running.take() {
            running.abandon();
        }
    }

    /// Takes a request.
    fn accept(
        &mut self,
        wish: Wish,
        range: ByteRange,
        buffer: Option<GuestBuffer>,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        match self.running(wish.attempt()) {
            Ok(Running { core, .. }) => core.accept(wish, range, buffer, tag, monotonic_ns()),
            Err(error) => Err(Rejected { error, buffer }),
        }
    }

    /// As [`running`](Self::running), for a call that collects: takes the signal of all that is there to be collected now.
    fn collecting(&mut self, attempt: &'static str) -> Result<&mut Running> {
        self.running(attempt)?;
        if let Some(eventfd) = &self.waker.eventfd {
            // It fails only when there is no signal.
            let _ = rustix::io::read(eventfd, &mut [0_u8; 8]);
        }
        self.running(attempt)
    }

    /// The ring and the logic, made now if this is the first use.
    #[inline]
    fn running(&mut self, attempt: &'static str) -> Result<&mut Running> {
        let thread = threads::number();
        if self.running.as_ref().is_none_or(|running| running.thread != thread) {
            self.first_use(thread, attempt)?;
        }
        self.running.as_deref_mut().ok_or_else(|| Self::not_yours(attempt))
    }

    /// Makes the ring, or says whose it is.
    #[cold]
    fn first_use(&mut self, thread: u64, attempt: &'static str) -> Result<()> {
        if self.running.is_some() {
            return Err(Self::not_yours(attempt));
        }
        let running = Box::new(self.start(thread)?);
        // Only the first is ever used, and this is it.
        let _ = self.waker.ring.set(running.core.waker());
        fence(Ordering::SeqCst);
        self.running = Some(running);
        Ok(())
    }

    /// The error for another thread.
    #[cold]
    fn not_yours(attempt: &'static str) -> Error {
        Error::new(ErrorKind::WrongState, attempt)
            .because("a queue belongs to the thread that used it first; make one for each thread")
    }

    /// Makes the ring on this thread.
    fn start(&self, thread: u64) -> Result<Running> {
        let bytes = self.options.staging_bytes + u64::from(ZEROES_BYTES);
        let options = UringOptions {
            in_flight: self.options.ring_requests(),
            host_buffers: if self.options.regions { HOST_BUFFERS } else { 0 },
            limits: self.limits,
            ..UringOptions::new(bytes)
        };
        let mut ring = OwnedRing::new(options)?;
        if let Some(eventfd) = &self.waker.eventfd {
            ring.register_eventfd(eventfd.as_fd())?;
        }
        let mut core = QueueCore::new(Arc::clone(&self.drive), self.options, ring.ring())?;
        // A device may take less than whole sectors of memory, but the one after a pivot may not.
        core.memory_align_bytes = memory_align_bytes(self.drive.align_bytes(), &self.drive.place().device);
        Ok(Running { thread, core, ring })
    }
}

impl Running {
    /// Ends it, on any thread: the requests, then the ring, then the marks.
    fn end(self) {
        let Self { mut core, mut ring, .. } = self;
        core.lose_unsent();
        let deadline_ns = monotonic_ns().saturating_add(PATIENCE_NS);
        // Another thread cannot use the ring, only end it.
        while ring.is_mine() && core.is_busy() && monotonic_ns() < deadline_ns {
            let wait = Wait { completions: 1, batch_ns: 0, timeout_ns: Some(LOOK_NS) };
            if core.turn(ring.ring(), wait).is_err() {
                break;
            }
        }
        let over = ring.end();
        core.end(over);
    }

    /// Ends it without a look at what is in its lists.
    fn abandon(self) {
        let Self { core, mut ring, .. } = self;
        ring.break_off();
        let over = ring.end();
        // The bug may strike again, and who ends a queue has nobody to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| core.end(over)));
    }
}

/// When a time from now is over.
fn deadline_ns(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_add(monotonic_ns()))
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}
