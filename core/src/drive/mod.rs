//! The disk as the guest sees it: requests pass through it, a job hangs on it, and after a switch-over it stands on
//! the target.
//!
//! | file | idea |
//! |---|---|
//! | `gate` | lets requests in, knows who is inside, can be closed |
//! | `follower` | the job as requests see it; how it is attached without missing a write |
//! | `recording` | who is told of writes: the job, and bitmaps that record for the host |
//! | `core` | what all handles of a drive share |
//! | `tracker` | for hosts that do their own I/O: `begin` and `end` of each request |
//! | `queue` | guest I/O through the library |
//! | `latency` | how long requests take |
//! | `memory` | the host's memory that is registered, so that requests inside it cost less |
//! | `in_use` | which of it requests use; why memory that was unmapped is never used again |
//! | `per_thread` | where each thread looks first, and when it takes the time |
//!
//! What it may assume: a host tells it of every write, through a queue or a tracker. What others may rely on:
//! *Tracked from birth* (`follower`), *Mark after, before the ack* (`core`, `written`), and that a gate that is
//! closed and quiet means that no request is under way (`gate`).
#![forbid(unsafe_code)]

mod core;
mod follower;
mod gate;
mod in_use;
mod latency;
mod memory;
mod per_thread;
pub mod queue;
mod recording;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::Arc;

pub use follower::{Attached, Replaced};
pub use gate::{Enter, Gate, Leaving, PASSES, Pass};
pub use in_use::{InUse, MAX_REGIONS, RegionSet};
pub use latency::{LONGEST_NS, Latencies, LatencyCounts, Percentiles};
pub use recording::{Bitmap, BitmapInfo, Follows, MAX_BITMAPS, Watchers};
pub use tracker::{Admission, IoKind, Token, Tracker};

pub(crate) use self::core::DriveCore;
pub(crate) use self::follower::Follower;
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::per_thread::{act_as, start_anew};
use crate::buffer::HostRegion;
use crate::device::{Device, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::Share;
use crate::ring::Wake;

/// What memory of requests must be aligned to, for a drive with blocks of `align_bytes` on `device`. A host that asked for larger
/// blocks than the device's, so that the drive can move, aligns the memory to them, too.
pub(crate) fn memory_align_bytes(align_bytes: u64, device: &Device) -> u64 {
    let limits = device.limits();
    let asked = if align_bytes > limits.offset_align_bytes { align_bytes } else { 0 };
    limits.memory_align_bytes.max(asked).max(512)
}

/// A guest's disk.
///
/// Queues and trackers of it, and a job that runs on it, live on when this handle is dropped; [`close`](Self::close)
/// refuses while a job runs. It may be used from any thread; a [`Queue`](queue::Queue) belongs to one, a [`Tracker`] to all.
#[derive(Debug)]
pub struct Drive {
    /// The shared part.
    core: Arc<DriveCore<Device>>,
}

impl Drive {
    /// A drive on `device`, with the blocks of that device. It is read-only if the device was opened as a source, and stays so
    /// over a pivot.
    ///
    /// # Errors
    /// As [`Self::with_align_bytes`].
    pub fn new(device: Device) -> Result<Self> {
        let align_bytes = device.limits().offset_align_bytes;
        Self::with_align_bytes(device, align_bytes)
    }

    /// A drive whose queues take requests in blocks of `align_bytes`, which a host shows its guest as logical blocks. Larger
    /// blocks than the device's, with memory aligned to them, let the drive move to a device that has such blocks.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless `align_bytes` is a power of two and no less than the device's blocks, and for a device
    /// that was opened as a target, which a job writes; [`ErrorKind::WrongSize`] when the device's size is not a multiple of it.
    pub fn with_align_bytes(device: Device, align_bytes: u64) -> Result<Self> {
        let (size_bytes, least) = (device.size_bytes(), device.limits().offset_align_bytes);
        let refused = |kind, why| Err(Error::new(kind, "make a drive of").at(device.name()).because(why));
        if device.role() == Role::Target {
            let why =
                "it was opened as the target of a job; open it as a disk, or as a source if it is only read";
            return refused(ErrorKind::InvalidArgument, why.to_owned());
        }
        if !align_bytes.is_power_of_two() || align_bytes < least {
            let why = format!("blocks of {align_bytes} bytes are not possible; its own have {least}");
            return refused(ErrorKind::InvalidArgument, why);
        }
        if !size_bytes.is_multiple_of(align_bytes) {
            let why = format!("its size {size_bytes} is not a multiple of blocks of {align_bytes} bytes");
            return refused(ErrorKind::WrongSize, why);
        }
        let writable = device.role() != Role::Source;
        Ok(Self { core: DriveCore::new(Arc::new(device), size_bytes, align_bytes, writable) })
    }

    /// Bytes of the drive.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.core.size_bytes()
    }

    /// What offsets and lengths of queued requests must be multiples of. A pivot does not change it.
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        self.core.align_bytes()
    }

    /// What every address of a queued request's memory must be a multiple of, at least 512; lengths are multiples of
    /// [`align_bytes`](Self::align_bytes). Ask once, before the first job: a pivot may lower it, and queues in use keep the old
    /// one.
    #[must_use]
    pub fn memory_align_bytes(&self) -> u64 {
        memory_align_bytes(self.align_bytes(), &self.core.place().device)
    }

    /// Whether it takes writes: its device was not opened as a source. A pivot does not change that.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.core.place().writable
    }

    /// Whether a job runs on it now.
    #[must_use]
    pub fn has_job(&self) -> bool {
        self.core.has_job()
    }

    /// How often the drive was moved to another device.
    #[must_use]
    pub fn device_number(&self) -> u64 {
        self.core.device_number()
    }

    /// The device that it stands on now.
    #[must_use]
    pub fn device(&self) -> Arc<Device> {
        Arc::clone(&self.core.place().device)
    }

    /// Registers memory of the host's, such as a guest's RAM: requests of any queue whose data lies in one piece inside it spare
    /// the kernel the look-up of its pages, which for small requests is a good part of their cost. Map it before the first request;
    /// each queue takes it up when it is turned next, on its own thread, and then the kernel pins every page of it (some tens of
    /// milliseconds for each GiB of small pages, seconds where they are not there yet), once for each queue. That counts against
    /// the limit on locked memory (`RLIMIT_MEMLOCK`) of a process without `CAP_IPC_LOCK`, and the kernel counts it for all
    /// processes of the user together, with the copy memory of workers and queues. What the kernel refuses is used unregistered,
    /// and [`Queue::registered_memory`](queue::Queue::registered_memory) tells. The kernel registers 1 GiB at a time; a request
    /// across such a border (counted from `region`'s start) goes unregistered, too.
    ///
    /// It touches no ring and waits for nobody.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a region that is empty or wraps, [`ErrorKind::AlreadyExists`] for one that overlaps
    /// another, [`ErrorKind::LimitReached`] with [`MAX_REGIONS`] regions, or 4 TiB, mapped already.
    pub fn map_memory(&self, region: HostRegion) -> Result<()> {
        self.core.map_memory(region)
    }

    /// Takes back a region that was mapped, given exactly as it was. From when it returns on, no request is sent through the
    /// registration, and the host may unmap the memory, or map other memory at the same address.
    ///
    /// The kernel keeps the pages pinned, so that they are not free, until every queue has been turned once more
    /// ([`poll`](queue::Queue::poll), [`submit`](queue::Queue::submit), [`wait`](queue::Queue::wait)) or is gone; their eventfds
    /// are made readable for that. A queue that is never turned again keeps them.
    ///
    /// It touches no ring and waits for nobody.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for what is not a mapped region; [`ErrorKind::Busy`] while a request that came after it was mapped
    /// and has a byte of its data in it, or in more than seven regions, is accepted and not yet complete on any queue, or was lost
    /// with a queue that the kernel has not let go of. Nothing has changed then.
    pub fn unmap_memory(&self, ptr: *const u8, len: usize) -> Result<()> {
        self.core.unmap_memory(ptr, len)
    }

    /// What requests took while no job ran, since the drive was made. Requests that failed do not count. Of a queue all others
    /// count, from when they were accepted to their completion, the time before a closed gate included; of a tracker one in eight
    /// counts, from when it was let in.
    #[must_use]
    pub fn latencies_without_job(&self) -> LatencyCounts {
        self.core.latencies(false).snapshot()
    }

    /// The same while a job ran, over all jobs; [`Job::latencies`](crate::engine::Job::latencies) is about one.
    #[must_use]
    pub fn latencies_with_job(&self) -> LatencyCounts {
        self.core.latencies(true).snapshot()
    }

    /// Lets `share` follow the drive without an engine, for the benchmark of what tracking costs.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when a job follows already.
    #[doc(hidden)]
    pub fn follow_for_benchmark(&self, share: Arc<Share>, target: Device, home: Arc<dyn Wake>) -> Result<()> {
        self.core.attach(Arc::new(Follower { share, target: Arc::new(target), home }))
    }

    /// The shared part, for queues and jobs.
    pub(crate) fn core(&self) -> &Arc<DriveCore<Device>> {
        &self.core
    }

    /// Gives up the drive. Its device is closed once its queues and trackers are gone.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a job runs; the drive comes back with it.
    pub fn close(self) -> std::result::Result<(), (Self, Error)> {
        if !self.core.has_job() {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Busy, "close the drive on")
            .at(self.device().name())
            .because("a job runs on it; cancel the job or wait for its end");
        Err((self, error))
    }
}
