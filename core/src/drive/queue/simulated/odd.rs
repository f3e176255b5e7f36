//! A simulated ring that can break, and on which a disk can stop to answer and come back.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::buffer::{BufRange, HostMemory, HostRegion};
use crate::device::Extent;
use crate::error::{Error, Result};
use crate::ring::sim::{SimDisk, SimRing};
use crate::ring::{Completion, DeviceSlot, Full, Request, Ring, Tag, Wait, Wake};

/// The ring.
pub(super) struct OddRing {
    inner: SimRing,
    /// Who is attached.
    disks: Vec<(DeviceSlot, Arc<SimDisk>)>,
    /// Who does not answer.
    dead: Option<Arc<SimDisk>>,
    /// What was sent to a dead disk.
    swallowed: Vec<(Request, Tag)>,
    /// How it was entered, each time.
    pub(super) waits: Vec<Wait>,
    /// The next `enter` fails, and every other.
    pub(super) is_broken: bool,
    /// Its disks have no command for zeroes: they write pages of them.
    pub(super) slow_zeroes: bool,
}

impl OddRing {
    pub(super) fn new(inner: SimRing) -> Self {
        Self {
            inner,
            disks: Vec::new(),
            dead: None,
            swallowed: Vec::new(),
            waits: Vec::new(),
            is_broken: false,
            slow_zeroes: false,
        }
    }

    /// When there is something to do.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.inner.due_ns()
    }

    /// Requests that named a registered buffer.
    pub(super) fn through_buffers(&self) -> u64 {
        self.inner.through_buffers()
    }

    /// From now on nothing that is sent to this disk comes back.
    pub(super) fn kill(&mut self, disk: &Arc<SimDisk>) {
        self.dead = Some(Arc::clone(disk));
    }

    /// Requests to dead disks.
    pub(super) fn swallowed(&self) -> usize {
        self.swallowed.len()
    }

    /// The dead disk goes on where it stopped.
    pub(super) fn revive(&mut self) {
        self.dead = None;
        for (request, tag) in self.swallowed.drain(..) {
            self.inner.push(request, tag).unwrap();
        }
        self.inner.waker().wake();
    }

    /// Whether a disk is attached.
    pub(super) fn has(&self, disk: &Arc<SimDisk>) -> bool {
        self.disks.iter().any(|(_, d)| Arc::ptr_eq(d, disk))
    }
}

impl Ring for OddRing {
    type Device = SimDisk;

    fn attach(&mut self, device: &Arc<SimDisk>) -> Result<DeviceSlot> {
        let slot = self.inner.attach(device)?;
        self.disks.push((slot, Arc::clone(device)));
        Ok(slot)
    }

    fn detach(&mut self, slot: DeviceSlot) {
        assert!(self.swallowed.iter().all(|(r, _)| r.device != slot), "detached with a request in flight");
        self.disks.retain(|(s, _)| *s != slot);
        self.inner.detach(slot);
    }

    fn push(&mut self, request: Request, tag: Tag) -> std::result::Result<(), Full> {
        let disk = self.disks.iter().find(|(slot, _)| *slot == request.device).map(|(_, disk)| disk);
        let disk = disk.expect("a request to a device that is not attached");
        if self.dead.as_ref().is_some_and(|dead| Arc::ptr_eq(dead, disk)) {
            self.swallowed.push((request, tag));
            return Ok(());
        }
        self.inner.push(request, tag)
    }

    fn enter(&mut self, wait: Wait) -> Result<()> {
        self.waits.push(wait);
        if self.is_broken {
            return Err(Error::from_errno("run the ring", libc::EBADF));
        }
        self.inner.enter(wait)
    }

    fn pop(&mut self) -> Option<Completion> {
        self.inner.pop()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.swallowed.len()
    }

    fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    fn status_at_once(&mut self, slot: DeviceSlot, offset: u64) -> Option<Result<Extent>> {
        self.inner.status_at_once(slot, offset)
    }

    fn writes_through(&self, slot: DeviceSlot) -> bool {
        self.inner.writes_through(slot)
    }

    fn zeroes_quickly(&self, slot: DeviceSlot) -> bool {
        !self.slow_zeroes && self.inner.zeroes_quickly(slot)
    }

    fn is_zero(&self, buf: BufRange) -> bool {
        self.inner.is_zero(buf)
    }

    fn host_buffers(&self) -> u16 {
        self.inner.host_buffers()
    }

    fn register_memory(&mut self, index: u16, region: HostRegion) -> std::result::Result<(), i32> {
        self.inner.register_memory(index, region)
    }

    fn unregister_memory(&mut self, index: u16) {
        self.inner.unregister_memory(index);
    }

    fn stage(&mut self, from: HostMemory, into: BufRange) {
        self.inner.stage(from, into);
    }

    fn fill_zero(&mut self, buf: BufRange) {
        self.inner.fill_zero(buf);
    }

    fn memory_bytes(&self) -> usize {
        self.inner.memory_bytes()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}
