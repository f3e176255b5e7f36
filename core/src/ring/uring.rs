//! The real ring: io_uring.
//!
//! One ring for one thread: SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1) keep completions on that thread and batch them,
//! NO_SQARRAY (6.6) drops an indirection, the ring's own descriptor, the devices and the copy memory are registered so
//! that the kernel looks nothing up per request. [`Setup`] falls back step by step to what Linux 5.15 has.
//!
//! Assumes that requests fit the device's limits: one that must be split by the block layer is handed to a kernel worker
//! thread and loses all the gain (see `device::Limits::max_request_bytes`, which the mirror logic obeys). Reads and writes
//! are never linked: links switch off the batching of completions.
//!
//! The memory is safe from the kernel because a ring owns both and ends in one way only (`own`): what is left is cancelled,
//! and the memory is rather leaked than unmapped under a request that does not come back.
#![allow(unsafe_code)]

mod enter;
mod entry;
mod flight;
mod own;
mod setup;
mod wake;

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use io_uring::squeue;
use io_uring::types::Fixed;

use self::entry::Way;
use self::flight::{Flights, Held};
use self::own::{Kernel, Sentinel};
pub use self::own::{OwnedRing, with_ring};
pub use self::setup::Setup;
use self::wake::EventWake;
use super::lane::{Done, Job, LANE_DEPTH, Lane, Work};
use super::{Completion, DeviceSlot, Full, Op, Request, Ring, Tag, Wait, Wake, monotonic_ns};
use crate::buffer::{BufRange, HostMemory, HostRegion, Region};
use crate::device::{Device, Extent, ZeroMode};
use crate::error::{Error, ErrorKind, Result};

/// Submission queue entries at most.
const SQ_ENTRIES: u32 = 1024;
/// Requests in flight at most; the completion queue is twice as long and cannot overflow.
pub(crate) const MAX_IN_FLIGHT: u32 = 4096;
/// Devices that can be attached at a time.
const MAX_DEVICES: usize = 256;
/// The completion of the read of the wake-up eventfd.
const WAKE_KEY: u64 = u64::MAX;
/// The completion of a cancel request.
const CANCEL_KEY: u64 = u64::MAX - 1;

/// Buffers for memory of the host's at most, each of up to [`MAX_BUFFER_BYTES`]: the kernel's limit less the copy memory.
pub const MAX_HOST_BUFFERS: u16 = (1 << 14) - 1;
/// The largest buffer that the kernel registers.
pub const MAX_BUFFER_BYTES: usize = 1 << 30;

/// What a ring is made with.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Bytes of copy memory.
    pub memory_bytes: u64,
    /// Requests in flight at most, up to 4096. The kernel goes round its queues, which are in proportion, so that short ones stay
    /// in the processor's cache.
    pub in_flight: u32,
    /// Buffers for memory of the host's, at most [`MAX_HOST_BUFFERS`]; each costs the kernel a few bytes, used or not.
    pub host_buffers: u16,
    /// What to do without, as on an older kernel.
    pub limits: UringLimits,
}

/// What a ring does without although the kernel has it. For tests: every fallback must be seen to work on one kernel.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UringLimits {
    /// How many of the best sets of flags are passed over; the last set is never.
    pub skip_rungs: usize,
    /// No waiting for batches (6.12) and no sleep outside the iowait statistics (6.15).
    pub no_new_waits: bool,
    /// The copy memory is not registered.
    pub no_fixed_buffer: bool,
    /// The ring's own descriptor is not registered.
    pub no_ring_fd: bool,
    /// There is no table for memory of the host's.
    pub no_host_buffers: bool,
}

impl UringOptions {
    /// A ring with so much copy memory and all that the kernel has.
    #[must_use]
    pub fn new(memory_bytes: u64) -> Self {
        Self { memory_bytes, in_flight: MAX_IN_FLIGHT, host_buffers: 0, limits: UringLimits::default() }
    }
}

/// A device on the ring. Each has a lane of its own: one that hangs holds up nobody else's.
#[derive(Debug)]
struct Attached {
    /// The device.
    device: Arc<Device>,
    /// Its blocking requests.
    lane: Lane,
}

/// The memory of a read or write.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// A range of the copy memory.
    Copy(BufRange),
    /// The host's.
    Host(HostMemory),
}

/// A running io_uring with its copy memory. It belongs to the thread that made it. Made by [`with_ring`] and [`OwnedRing`].
pub struct UringRing {
    /// The queues and the system calls. Gone before anything that the kernel may touch: see `own`.
    kernel: ManuallyDrop<Kernel>,
    /// Who made it, and alone may enter it.
    thread: u64,
    /// How the ring was set up.
    setup: Setup,
    /// The copy memory.
    region: ManuallyDrop<Region>,
    /// Tells when the kernel has let go of everything.
    sentinel: Sentinel,
    /// Attached devices by slot, each with a thread for what blocks.
    devices: Vec<Option<Attached>>,
    /// What is in flight, by the key that the kernel carries.
    flights: Flights,
    /// Results that wait in the lanes of all devices.
    lanes_ready: Arc<AtomicUsize>,
    /// Blocking requests that could not even be started: their keys and errnos.
    refused: VecDeque<(u32, i32)>,
    /// Wakes this thread.
    wake: Arc<EventWake>,
    /// Where the kernel writes the eventfd's count; on the heap, for it must not move.
    wake_count: Box<AtomicU64>,
    /// Whether the read of the eventfd is under way.
    wake_armed: bool,
    /// The kernel refuses to run the ring, with this errno; it is not asked again.
    broken: Option<i32>,
    /// io_uring_enter calls so far.
    enters: u64,
    /// Requests so far that named a buffer of the host's.
    through_buffers: u64,
    /// Told at the end: whether nothing of this ring can reach a device or its memory any more.
    over: Option<Arc<AtomicBool>>,
}

impl UringRing {
    /// How the ring was set up.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// io_uring_enter calls so far.
    #[must_use]
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Requests so far whose memory was registered and the host's.
    #[must_use]
    pub fn through_buffers(&self) -> u64 {
        self.through_buffers
    }

    /// Fills a slot of the kernel's table, or empties it.
    fn update_buffer(&self, index: u16, memory: libc::iovec) -> std::result::Result<(), i32> {
        if !self.is_mine() {
            return Err(libc::EPERM);
        }
        let slot = entry::slot_of(index);
        // SAFETY: the memory is the host's, who promised with its `HostRegion` that it stays mapped until the drive let it be unmapped,
        // which empties this slot first; or it is none.
        let done = unsafe { self.kernel.submitter.register_buffers_update(u32::from(slot), &[memory], None) };
        done.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Where a range of the copy memory begins, if it lies inside.
    fn inside(&self, buf: BufRange) -> Option<*mut u8> {
        let (start, len) = (buf.start as usize, buf.len as usize);
        (start + len <= self.region.len()).then(|| self.region.as_ptr().wrapping_add(start))
    }

    /// How many bytes of the copy memory are on huge pages.
    #[must_use]
    pub fn huge_bytes(&self) -> Option<u64> {
        self.region.huge_bytes()
    }

    /// The submission entry of a read or write, and the memory that it holds; `None` for one outside the copy memory.
    fn entry(&self, request: &Request, way: Way, memory: Memory) -> Option<(squeue::Entry, Held)> {
        let place = (Fixed(u32::from(request.device.0)), request.range.start());
        match memory {
            Memory::Copy(buf) => {
                let ptr = self.inside(buf)?;
                let entry = entry::on_copy_memory(place, way, (ptr, buf.len), self.setup.fixed_buffer);
                Some((entry, Held::Copy(buf)))
            }
            Memory::Host(memory) => Some((entry::on_host_memory(place, way, memory), Held::Host)),
        }
    }

    /// Queues a blocking request on its device's lane.
    fn push_blocking(&mut self, slot: DeviceSlot, work: Work, tag: Tag) -> std::result::Result<(), Full> {
        let Some(Some(Attached { device, lane })) = self.devices.get_mut(usize::from(slot.0)) else {
            return Err(Full);
        };
        if !lane.has_room() || self.refused.len() >= LANE_DEPTH {
            return Err(Full);
        }
        let key = self.flights.start(tag, Held::Nothing).ok_or(Full)?;
        if let Err(e) = lane.push(Job { device: Arc::clone(device), work, key }) {
            self.refused.push_back((key, e.errno()));
            // It does not pass through the ring, so nothing else tells a host that sleeps on the eventfd.
            self.wake.wake();
        }
        Ok(())
    }

    /// Takes a result of a blocking request.
    fn pop_blocking(&mut self) -> Option<Done> {
        if let Some((key, errno)) = self.refused.pop_front() {
            return Some(Done { key, result: Err(errno), extent: None });
        }
        if self.lanes_ready.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.devices.iter_mut().flatten().find_map(|attached| attached.lane.pop())
    }
}

impl Ring for UringRing {
    type Device = Device;

    fn attach(&mut self, device: &Arc<Device>) -> Result<DeviceSlot> {
        let free = self.devices.iter().position(Option::is_none);
        let Some(slot) = free.and_then(|i| u16::try_from(i).ok()) else {
            return Err(Error::new(ErrorKind::QueueFull, "attach a device to the ring").because(format!(
                "{} devices are attached already; end another job first",
                self.devices.len()
            )));
        };
        let fd = device.as_fd().as_raw_fd();
        self.kernel
            .submitter
            .register_files_update(u32::from(slot), &[fd])
            .map_err(|e| Error::from_io("register a device with the io_uring", e).at(device.name()))?;
        let lane = Lane::new(self.waker(), Arc::clone(&self.lanes_ready));
        self.devices[usize::from(slot)] = Some(Attached { device: Arc::clone(device), lane });
        Ok(DeviceSlot(slot))
    }

    fn detach(&mut self, slot: DeviceSlot) {
        // It fails only for slots outside the table; then there is nothing to take back.
        let _ = self.kernel.submitter.register_files_update(u32::from(slot.0), &[-1]);
        if let Some(entry) = self.devices.get_mut(usize::from(slot.0)) {
            *entry = None;
        }
    }

    fn push(&mut self, request: Request, tag: Tag) -> std::result::Result<(), Full> {
        if !matches!(self.devices.get(usize::from(request.device.0)), Some(Some(_))) {
            return Err(Full);
        }
        let (way, memory) = match request.op {
            Op::Read(buf) => (Way::Read, Memory::Copy(buf)),
            Op::Write(buf) => (Way::Write { through: false }, Memory::Copy(buf)),
            Op::WriteThrough(buf) => (Way::Write { through: true }, Memory::Copy(buf)),
            Op::ReadHost(memory) => (Way::Read, Memory::Host(memory)),
            Op::WriteHost { memory, fua } => (Way::Write { through: fua }, Memory::Host(memory)),
            Op::Zero { punch } => {
                let mode = if punch { ZeroMode::Punch } else { ZeroMode::Keep };
                return self.push_blocking(request.device, Work::Zero(request.range, mode), tag);
            }
            Op::Discard => return self.push_blocking(request.device, Work::Discard(request.range), tag),
            Op::Flush => return self.push_blocking(request.device, Work::Flush, tag),
            Op::Status => {
                return self.push_blocking(request.device, Work::Status(request.range.start()), tag);
            }
        };
        let through_buffer = matches!(memory, Memory::Host(memory) if memory.buffer_index().is_some());
        let (entry, held) = self.entry(&request, way, memory).ok_or(Full)?;
        let key = self.flights.start(tag, held).ok_or(Full)?;
        self.through_buffers += u64::from(through_buffer);
        self.queue(&entry.user_data(u64::from(key))).inspect_err(|_| {
            self.flights.finish(key);
        })
    }

    fn enter(&mut self, wait: Wait) -> Result<()> {
        self.arm_wake();
        self.kernel.sq.sync();
        // What a lane finished does not pass through the ring, so it must not be slept over. The thread counts the result
        // before it wakes, so either it is seen here or the wake-up ends the sleep.
        let awake =
            self.lanes_ready.load(Ordering::Acquire) > 0 || !self.refused.is_empty() || !self.wake_armed;
        let wait = if awake { Wait::POLL } else { wait };
        let entered = self.call_enter(wait);
        self.kernel.sq.sync();
        // Also of a ring that broke: what it has completed is there to be taken.
        self.kernel.cq.sync();
        entered
    }

    fn pop(&mut self) -> Option<Completion> {
        if let Some((key, result)) = self.take_cqe() {
            let tag = self.flights.finish(key)?;
            return Some(Completion {
                tag,
                result: u64::try_from(result).map_err(|_| result.saturating_neg()),
                extent: None,
            });
        }
        let Done { key, result, extent } = self.pop_blocking()?;
        let tag = self.flights.finish(key)?;
        Some(Completion { tag, result, extent })
    }

    fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn capacity(&self) -> usize {
        self.flights.capacity()
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn status_at_once(&mut self, slot: DeviceSlot, offset: u64) -> Option<Result<Extent>> {
        match self.devices.get(usize::from(slot.0)) {
            Some(Some(Attached { device, .. })) => device.answers_at_once().then(|| device.status(offset)),
            _ => Some(Err(Error::new(
                ErrorKind::WrongState,
                "ask for block status of a device that is not attached",
            ))),
        }
    }

    fn writes_through(&self, slot: DeviceSlot) -> bool {
        let attached = self.devices.get(usize::from(slot.0)).and_then(Option::as_ref);
        attached.is_none_or(|attached| attached.device.limits().writes_through)
    }

    fn zeroes_quickly(&self, slot: DeviceSlot) -> bool {
        let attached = self.devices.get(usize::from(slot.0)).and_then(Option::as_ref);
        attached.is_none_or(|attached| attached.device.zeroes_quickly())
    }

    fn is_zero(&self, buf: BufRange) -> bool {
        let Some(ptr) = self.inside(buf).filter(|_| !self.flights.uses(buf)) else { return false };
        // SAFETY: the range lies in the region, was written when the region was made, and no request of this ring, the
        // only user of the region, has it in flight, so nobody writes to it while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(ptr, buf.len as usize) };
        crate::buffer::is_zero(bytes)
    }

    fn host_buffers(&self) -> u16 {
        self.setup.host_buffers
    }

    fn register_memory(&mut self, index: u16, region: HostRegion) -> std::result::Result<(), i32> {
        if index >= self.setup.host_buffers {
            return Err(libc::EINVAL);
        }
        self.update_buffer(index, libc::iovec { iov_base: region.as_ptr().cast(), iov_len: region.len() })
    }

    fn unregister_memory(&mut self, index: u16) {
        if index < self.setup.host_buffers {
            // It fails only on another thread than the ring's, where nobody can send a request with it either.
            let _ = self.update_buffer(index, libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        }
    }

    fn stage(&mut self, from: HostMemory, into: BufRange) {
        debug_assert!(!self.flights.uses(into), "the caller owns the bytes that it stages into");
        let Some(ptr) = self.inside(into) else { return };
        // SAFETY: the range lies in the region, which is mapped, and is the caller's, so no request uses it; nothing else
        // refers to the region's bytes while `self` is borrowed exclusively.
        let into = unsafe { std::slice::from_raw_parts_mut(ptr, into.len as usize) };
        from.copy_out(into);
    }

    fn fill_zero(&mut self, buf: BufRange) {
        debug_assert!(!self.flights.uses(buf), "the caller owns the bytes that it zeroes");
        let Some(ptr) = self.inside(buf) else { return };
        // SAFETY: as for `stage`.
        unsafe { ptr.write_bytes(0, buf.len as usize) };
    }

    fn memory_bytes(&self) -> usize {
        self.region.len()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}

impl fmt::Debug for UringRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringRing")
            .field("setup", &self.setup)
            .field("in_flight", &self.flights.len())
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}
