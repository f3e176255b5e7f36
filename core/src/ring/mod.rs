//! The ring: requests in, completions out.
//!
//! A [`Ring`] belongs to one worker thread and carries every device request of that worker: reads and writes between a
//! device and the worker's copy memory, zeroing, flushes. Two implementations stand behind the trait: [`uring`], the
//! kernel's io_uring, and [`sim`], a deterministic simulation from a seed. The mirror logic runs unchanged under both,
//! which is how it can be tested against reordering, short transfers and errors that no real device produces on demand.
//!
//! What every implementation keeps:
//! - exactly one completion for each request that `push` accepted, unless the ring is dropped;
//! - **Every buffer has a bound**: `push` refuses instead of queueing without end;
//! - a buffer range belongs to the request from `push` to its completion.

mod clock;
mod lane;
pub mod probe;
pub mod sim;
pub mod uring;

use std::sync::Arc;

pub use clock::monotonic_ns;
pub use probe::{Feature, KernelSupport, probe};

use crate::buffer::{BufRange, HostMemory, HostRegion};
use crate::device::Extent;
use crate::error::Result;
use crate::units::ByteRange;

/// A device that was attached to a ring.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceSlot(pub u16);

/// What the caller wants to be told when a request completes; opaque to the ring.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tag(pub u64);

/// What to do with a range of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read the range into the buffer, which is as long.
    Read(BufRange),
    /// Write the buffer, which is as long, to the range.
    Write(BufRange),
    /// As `Write`, and durable when it completes, whatever cache the device has (FUA).
    WriteThrough(BufRange),
    /// Read the range into the host's memory, which is as long.
    ReadHost(HostMemory),
    /// Write the host's memory, which is as long, to the range.
    WriteHost {
        /// The data.
        memory: HostMemory,
        /// Whether it is durable when it completes.
        fua: bool,
    },
    /// Make the range read as zeroes without sending zeroes; space may be given back if `punch`.
    Zero {
        /// Whether space may be given back.
        punch: bool,
    },
    /// Tell the device that the range is not needed. It may refuse; if it does not, the range reads as zeroes afterwards.
    Discard,
    /// Make everything written so far durable (fdatasync); the range is ignored.
    Flush,
    /// Say what is at the range's start, and up to where: [`Completion::extent`]. For devices where
    /// [`Ring::status_at_once`] has no answer.
    Status,
}

/// A request to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which device.
    pub device: DeviceSlot,
    /// Where on it, in bytes, aligned to its logical blocks.
    pub range: ByteRange,
    /// What to do there.
    pub op: Op,
}

/// The end of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The tag it was pushed with.
    pub tag: Tag,
    /// Bytes done, possibly fewer than asked for; or a positive errno.
    pub result: std::result::Result<u64, i32>,
    /// The answer to [`Op::Status`], if the device has one.
    pub extent: Option<Extent>,
}

/// How long [`Ring::enter`] may sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// Return once so many completions are there; 0 = do not sleep.
    pub completions: usize,
    /// Be content with one completion after this time, where the kernel can (Linux 6.12); 0 = do not.
    pub batch_ns: u64,
    /// Return after this time in any case; `None` = sleep until a completion or a wake-up.
    pub timeout_ns: Option<u64>,
}

impl Wait {
    /// Submit what was pushed, collect what is there, and return at once.
    pub const POLL: Self = Self { completions: 0, batch_ns: 0, timeout_ns: None };
}

/// The queue that was asked to take one request more is full; nothing was queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Wakes the thread that sleeps in [`Ring::enter`], from any thread, any number of times.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Makes the current or the next `enter` return.
    fn wake(&self);
}

/// A worker's way to its devices. See the module for what every implementation keeps.
pub trait Ring {
    /// What can be attached.
    type Device: Send + Sync + std::fmt::Debug + 'static;

    /// Attaches a device; it stays open until it is detached and its last request is done.
    ///
    /// # Errors
    /// [`QueueFull`](crate::ErrorKind::QueueFull) when every slot is taken.
    fn attach(&mut self, device: &Arc<Self::Device>) -> Result<DeviceSlot>;

    /// Detaches a device that has no request in flight.
    fn detach(&mut self, slot: DeviceSlot);

    /// Queues a request for the next `enter`.
    ///
    /// # Errors
    /// [`Full`] when there is no room; complete something first.
    fn push(&mut self, request: Request, tag: Tag) -> std::result::Result<(), Full>;

    /// Submits what was pushed and sleeps as `wait` says. Returns early when woken.
    ///
    /// # Errors
    /// When the kernel refuses to run the ring; the worker cannot go on then.
    fn enter(&mut self, wait: Wait) -> Result<()>;

    /// Takes one completion, if there is one.
    fn pop(&mut self) -> Option<Completion>;

    /// Requests that were pushed and not yet popped.
    fn in_flight(&self) -> usize;

    /// How many of them there may be.
    fn capacity(&self) -> usize;

    /// The monotonic time in nanoseconds; virtual in the simulation.
    fn now_ns(&self) -> u64;

    /// Block status of a device from `offset` to where it changes, or why there is none; `None` where asking may take as long
    /// as a request or for ever. There it is asked with [`Op::Status`], so that nobody else of this thread waits for it.
    fn status_at_once(&mut self, slot: DeviceSlot, offset: u64) -> Option<Result<Extent>>;

    /// Whether a device makes a write durable that asks to be durable at its end; otherwise a flush must follow.
    fn writes_through(&self, slot: DeviceSlot) -> bool;

    /// Whether [`Op::Zero`] on a device makes zeroes without writing any, or fails with `EOPNOTSUPP`. Otherwise the kernel may
    /// write pages of zeroes itself.
    fn zeroes_quickly(&self, slot: DeviceSlot) -> bool {
        let _ = slot;
        true
    }

    /// Whether a range of the copy memory holds only zeroes; `false` while a request uses it.
    fn is_zero(&self, buf: BufRange) -> bool;

    /// How many buffers for memory of the host's there are, from index 0 on: what [`register_memory`](Self::register_memory) takes.
    /// 0: the kernel has none, or none were asked for.
    fn host_buffers(&self) -> u16 {
        0
    }

    /// Makes memory of the host's the buffer `index`, which is empty. From now on requests whose memory lies inside may name it
    /// ([`HostMemory::in_buffer`]), and cost less. It may take a while: the kernel pins every page.
    ///
    /// # Errors
    /// The errno of the kernel's refusal; the buffer is empty as before.
    fn register_memory(&mut self, index: u16, region: HostRegion) -> std::result::Result<(), i32> {
        let _ = (index, region);
        Err(libc::EOPNOTSUPP)
    }

    /// Empties the buffer `index`; no request that names it is under way.
    fn unregister_memory(&mut self, index: u16) {
        let _ = index;
    }

    /// Copies the host's bytes into a range of the copy memory, as many as fit. The caller owns that range: no request
    /// uses it. A range outside the memory is left alone, and a request with it is refused.
    ///
    /// This is the one stable copy of data that a guest may go on changing: what is read once here goes to both disks.
    fn stage(&mut self, from: HostMemory, into: BufRange);

    /// Fills a range of the copy memory with zeroes; the same rules as for [`stage`](Self::stage).
    fn fill_zero(&mut self, buf: BufRange);

    /// Bytes of copy memory.
    fn memory_bytes(&self) -> usize;

    /// A handle that wakes this ring's thread.
    fn waker(&self) -> Arc<dyn Wake>;
}
