//! What all handles of a drive share: the gate, the device it stands on, who is told of its writes, its latencies.
//!
//! The I/O path takes no lock: it passes the gate, reads atomics and borrows the follower. The lock in here is for
//! what happens rarely: attaching, closing and opening the gate, new queues, hosts that wait for the gate.
//!
//! Generic over the device, so that the simulator turns this very code.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, eventfd};

use super::follower::Follower;
use super::gate::{Gate, Pass};
use super::latency::Latencies;
use super::memory::Memory;
use super::recording::{Follows, Watchers};
use crate::buffer::HostRegion;
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::Mutation;
use crate::ring::Wake;
use crate::units::ByteRange;

/// The device that a drive stands on.
#[derive(Debug)]
pub(crate) struct Place<D> {
    /// The device.
    pub(crate) device: Arc<D>,
    /// Whether it may be written.
    pub(crate) writable: bool,
}

/// The shared part of a drive; see the module.
#[derive(Debug)]
pub(crate) struct DriveCore<D> {
    /// Who is inside.
    gate: Gate,
    /// Where the drive stands.
    place: ArcSwap<Place<D>>,
    /// The number of that place, for the I/O path.
    number: AtomicU64,
    /// Who is told of writes: the job that follows, and bitmaps that record.
    watchers: Watchers<Follower<D>>,
    /// Whether there is one; for the choice of the histogram, and under the lock for who attaches.
    has_job: AtomicBool,
    /// What requests took without a job, and with one.
    latencies: [Latencies; 2],
    /// Changes when a queue must look again at place, follower and memory.
    generation: AtomicU64,
    /// The host's memory that is registered.
    memory: Memory,
    /// What the lock guards: the queues' wakers.
    wakers: Mutex<Vec<Weak<dyn Wake>>>,
    /// Signalled when the gate opens.
    opened: Condvar,
    /// Readable while the gate is open; made for the first who asks.
    opened_fd: OnceLock<OwnedFd>,
    /// Bytes of the drive.
    size_bytes: u64,
    /// What offsets and lengths of queued requests must be multiples of.
    align_bytes: u64,
}

impl<D> DriveCore<D> {
    /// A drive of `size_bytes` on `device`.
    pub(crate) fn new(device: Arc<D>, size_bytes: u64, align_bytes: u64, writable: bool) -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new(),
            place: ArcSwap::from_pointee(Place { device, writable }),
            number: AtomicU64::new(0),
            watchers: Watchers::default(),
            has_job: AtomicBool::new(false),
            latencies: [Latencies::default(), Latencies::default()],
            generation: AtomicU64::new(0),
            memory: Memory::default(),
            wakers: Mutex::new(Vec::new()),
            opened: Condvar::new(),
            opened_fd: OnceLock::new(),
            size_bytes,
            align_bytes,
        })
    }

    /// Bytes of the drive.
    #[inline]
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What offsets and lengths of queued requests must be multiples of.
    pub(crate) fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    /// The device that the drive stands on. It stays that one for whoever is inside the gate.
    pub(crate) fn place(&self) -> Arc<Place<D>> {
        self.place.load_full()
    }

    /// The number of that device.
    #[inline]
    pub(crate) fn device_number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Changes whenever [`place`](Self::place), [`follower`](Self::follower) or [`memory`](Self::memory) may have changed.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The gate, to enter. It is closed and opened through the drive only.
    #[inline]
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The job that follows now.
    pub(crate) fn follower(&self) -> Option<Arc<Follower<D>>> {
        self.watchers.follower()
    }

    /// Who is told of writes.
    pub(super) fn watchers(&self) -> &Watchers<Follower<D>> {
        &self.watchers
    }

    /// Whether a job follows.
    pub(crate) fn has_job(&self) -> bool {
        self.has_job.load(Ordering::Relaxed)
    }

    // ---- requests ----

    /// A guest's write of `range` has completed, whatever its result: tells the job, and the bitmaps that record. Called before its
    /// pass is given back and before the guest hears of it (*Mark after, before the ack*; this is the one place).
    #[inline]
    pub(crate) fn written(&self, range: ByteRange) {
        self.watchers.after_write(range, |follower| {
            if follower.share.guest_wrote(range) {
                follower.home.wake();
            }
        });
    }

    /// The same for a write that `follower` knows of already, because it went to both sides: another job may have
    /// attached while it was under way, and bitmaps record it in any case.
    pub(crate) fn written_beside(&self, range: ByteRange, follower: &Arc<Follower<D>>) {
        let recorded = if follower.breaks(Mutation::ActiveUnrecorded) { ByteRange::default() } else { range };
        self.watchers.after_write(recorded, |current| {
            if !Arc::ptr_eq(current, follower) && current.share.guest_wrote(range) {
                current.home.wake();
            }
        });
    }

    /// Gives a pass back, after [`written`](Self::written). `false`, and nothing was changed: it was not inside.
    #[inline]
    pub(crate) fn leave(&self, pass: Pass) -> bool {
        let ours = self.gate.leave(pass);
        self.has_left();
        ours
    }

    /// A pass came back: with the gate closed, the job may be waiting for that, and its home is woken. A hint only: who
    /// closes the gate must look for himself from time to time, because a pass may come back in the very instant of closing.
    #[inline]
    pub(super) fn has_left(&self) {
        if self.gate.is_closed() {
            self.wake_home();
        }
    }

    /// Wakes the home of the job.
    #[cold]
    fn wake_home(&self) {
        if let Some(follower) = self.follower() {
            follower.home.wake();
        }
    }

    /// Counts a request that took `ns`.
    #[inline]
    pub(crate) fn record_latency(&self, ns: u64) {
        self.latencies(self.has_job()).record(ns);
    }

    /// What requests took without a job, and with one.
    pub(crate) fn both_latencies(&self) -> &[Latencies; 2] {
        &self.latencies
    }

    /// What requests took, with or without a job.
    #[inline]
    pub(crate) fn latencies(&self, with_job: bool) -> &Latencies {
        &self.latencies[usize::from(with_job)]
    }

    // ---- jobs ----

    /// Attaches a job. *Tracked from birth*: when this returns, every write that ends later is recorded, and every
    /// write that ended unrecorded is visible to this thread's reads; the initial fill is decided after it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when one is attached already, [`ErrorKind::InvalidArgument`] when its working bitmap records another
    /// drive's writes.
    pub(crate) fn attach(&self, follower: Arc<Follower<D>>) -> Result<()> {
        let wakers = self.lock();
        if self.has_job.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::Busy, "start a job on the drive").because(
                "another job runs on it, and a drive takes one at a time; cancel that one or wait for its end",
            ));
        }
        if let Err(error) = self.watchers.attach(follower) {
            self.has_job.store(false, Ordering::Release);
            return Err(error);
        }
        self.changed(wakers);
        Ok(())
    }

    /// Detaches the job, if there is one. Its state is freed when the last request that is being marked is done with
    /// it, and when the queues have looked.
    pub(crate) fn detach(&self) {
        let wakers = self.lock();
        self.watchers.detach();
        self.has_job.store(false, Ordering::Release);
        self.changed(wakers);
    }

    /// Moves the drive to another device.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] unless the gate is closed and quiet; nothing has changed then.
    pub(crate) fn pivot(&self, device: Arc<D>, writable: bool) -> Result<()> {
        let wakers = self.lock();
        if !self.gate.is_closed() || !self.gate.is_quiet() {
            let why = "requests may be under way; close the gate and wait until it is quiet";
            return Err(Error::new(ErrorKind::WrongState, "move the drive to the target").because(why));
        }
        let number = self.device_number() + 1;
        self.place.store(Arc::new(Place { device, writable }));
        self.number.store(number, Ordering::Release);
        self.changed(wakers);
        Ok(())
    }

    /// Makes queues look again.
    fn changed(&self, mut wakers: MutexGuard<'_, Vec<Weak<dyn Wake>>>) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        wake_all(&mut wakers);
    }

    // ---- the host's memory ----

    /// The memory that is registered.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Registers memory; queues take it up when they are turned next.
    pub(crate) fn map_memory(&self, region: HostRegion) -> Result<()> {
        self.memory.map(region, || self.changed(self.lock()))
    }

    /// Takes memory back.
    pub(crate) fn unmap_memory(&self, ptr: *const u8, len: usize) -> Result<()> {
        let hint = || _ = self.generation.fetch_add(1, Ordering::AcqRel);
        self.memory.unmap(ptr, len, hint, || self.changed(self.lock()))
    }

    // ---- queues ----

    /// The job is ending: queues must not wait for its target any more.
    pub(crate) fn wake_queues(&self) {
        self.changed(self.lock());
    }

    /// A queue's waker: it is woken when the queue must look again or may send what it held.
    pub(crate) fn add_waker(&self, waker: &Arc<dyn Wake>) {
        let mut wakers = self.lock();
        wakers.retain(|waker| waker.strong_count() > 0);
        wakers.push(Arc::downgrade(waker));
    }

    /// Whether there is a queue now.
    pub(crate) fn has_queues(&self) -> bool {
        self.lock().iter().any(|waker| waker.strong_count() > 0)
    }

    // ---- the gate ----

    /// Closes the gate: requests wait outside from now on.
    pub(crate) fn close_gate(&self) {
        let _wakers = self.lock();
        self.gate.close();
        self.show_gate();
    }

    /// Opens the gate, and wakes whoever waits outside.
    pub(crate) fn open_gate(&self) {
        let mut wakers = self.lock();
        self.gate.open();
        self.show_gate();
        self.opened.notify_all();
        wake_all(&mut wakers);
    }

    /// Whether nobody is inside; final only with the gate closed. `misses` leaves one shard out, which only a broken
    /// protocol asks for.
    pub(crate) fn is_quiet(&self, misses: bool) -> bool {
        if misses { self.gate.is_quiet_but(0) } else { self.gate.is_quiet() }
    }

    /// Sleeps until the gate is open, at most for `timeout`; whether it is.
    pub(crate) fn wait_open(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut wakers = self.lock();
        while self.gate.is_closed() {
            let left = deadline.map_or(LONG, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let sleep = self.opened.wait_timeout(wakers, left.min(LONG));
            wakers = sleep.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A descriptor that is readable while the gate is open.
    pub(crate) fn opened_fd(&self) -> Result<BorrowedFd<'_>> {
        let _wakers = self.lock();
        if let Some(fd) = self.opened_fd.get() {
            return Ok(fd.as_fd());
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::from_io("make an eventfd for the drive's gate", e))?;
        let fd = self.opened_fd.get_or_init(|| fd);
        self.show_gate();
        Ok(fd.as_fd())
    }

    /// Makes the descriptor tell what the gate is; called with the lock held, so that the last one is right.
    fn show_gate(&self) {
        let Some(fd) = self.opened_fd.get() else { return };
        // Neither can fail but for "would block": the counter is 0 or small already, which is what is wanted.
        if self.gate.is_closed() {
            let _ = rustix::io::read(fd, &mut [0_u8; 8]);
        } else {
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    /// The lock; a panic under it leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn Wake>>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait without an end looks up this often.
const LONG: Duration = Duration::from_secs(3600);

/// Wakes every queue, and forgets those that are gone.
fn wake_all(wakers: &mut Vec<Weak<dyn Wake>>) {
    wakers.retain(|waker| waker.upgrade().map(|waker| waker.wake()).is_some());
}
