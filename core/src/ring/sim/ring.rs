//! A simulated ring: requests under way and their ends.
#![forbid(unsafe_code)]

use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{BLOCK, SimDisk, World};
use crate::buffer::{BufRange, HostMemory, HostRegion};
use crate::device::Extent;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::{Completion, DeviceSlot, Full, Op, Request, Ring, Tag, Wait, Wake};
use crate::units::{ByteRange, bytes_u64, bytes_usize};

/// Requests in flight on one ring at most.
const DEPTH: usize = 256;
/// Disks that can be attached at a time.
const MAX_DEVICES: usize = 16;
/// Buffers for memory of the host's.
const HOST_BUFFERS: u16 = 64;

/// A request under way, ordered by the time of its completion, earliest first.
#[derive(Debug)]
struct Pending {
    /// When it completes.
    at_ns: u64,
    /// Breaks ties.
    serial: u64,
    /// What it was.
    request: Request,
    /// Whose it is.
    tag: Tag,
    /// The disk that it went to.
    disk: Arc<SimDisk>,
    /// Decided at submission: bytes that it will transfer, or how it will fail.
    fate: std::result::Result<u64, i32>,
    /// Which blocks are transferred at completion instead of at submission; of a flush, how many writes it covers.
    late: u64,
    /// The answer to a question that was answered when it was asked; the others are answered at completion.
    extent: Option<Extent>,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at_ns, other.serial).cmp(&(self.at_ns, self.serial))
    }
}

/// The flag behind [`Wake`].
#[derive(Debug, Default)]
struct SimWake(AtomicBool);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A simulated ring.
#[derive(Debug)]
pub struct SimRing {
    /// Where it lives.
    world: Arc<World>,
    /// The copy memory.
    memory: Vec<u8>,
    /// Registered memory of the host's.
    buffers: Vec<Option<HostRegion>>,
    /// Requests that named such a buffer.
    through_buffers: u64,
    /// Attached disks.
    devices: Vec<Option<Arc<SimDisk>>>,
    /// Requests under way.
    pending: BinaryHeap<Pending>,
    /// Requests whose time has come on a disk that is dead.
    parked: Vec<Pending>,
    /// Requests that will never come back; they count as in flight.
    stuck: usize,
    /// Completions to be popped.
    done: VecDeque<Completion>,
    /// For ties.
    serial: u64,
    /// Until when it sleeps; `None` = until something completes.
    sleeps_until: Option<u64>,
    /// Woken from outside.
    wake: Arc<SimWake>,
}

impl SimRing {
    /// A ring with `memory_bytes` of copy memory.
    #[must_use]
    pub fn new(world: &Arc<World>, memory_bytes: usize) -> Self {
        Self {
            world: Arc::clone(world),
            memory: vec![0; memory_bytes],
            buffers: vec![None; usize::from(HOST_BUFFERS)],
            through_buffers: 0,
            devices: vec![None; MAX_DEVICES],
            pending: BinaryHeap::new(),
            parked: Vec::new(),
            stuck: 0,
            done: VecDeque::new(),
            serial: 0,
            sleeps_until: Some(0),
            wake: Arc::new(SimWake::default()),
        }
    }

    /// When this ring has something to do; `None` = not before somebody wakes it.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        let revived = self.parked.iter().any(|pending| !pending.disk.state().is_dead());
        if revived || self.wake.0.load(Ordering::Acquire) || !self.done.is_empty() {
            return Some(0);
        }
        self.pending.peek().map(|p| p.at_ns).into_iter().chain(self.sleeps_until).min()
    }

    /// Requests so far that named a registered buffer.
    #[must_use]
    pub fn through_buffers(&self) -> u64 {
        self.through_buffers
    }

    /// Whether the buffer that a request names, if it names one, holds all of its memory.
    fn is_covered(&self, memory: HostMemory) -> bool {
        let Some(index) = memory.buffer_index() else { return true };
        let buffer = self.buffers.get(usize::from(index)).copied().flatten();
        buffer.is_some_and(|buffer| memory.extents().all(|(start, len)| buffer.covers(start, len)))
    }

    /// The disk behind a slot.
    fn disk(&self, slot: DeviceSlot) -> Option<Arc<SimDisk>> {
        self.devices.get(usize::from(slot.0)).cloned().flatten()
    }

    /// Decides how a request will end.
    fn fate(&self, request: &Request, disk: &SimDisk) -> std::result::Result<u64, i32> {
        let world = &self.world;
        let faults = disk.state().faults(world);
        let len = request.range.len();
        let fail = |per_mille, errno| if world.happens(per_mille) { Err(errno) } else { Ok(()) };
        if matches!(request.op, Op::Status) {
            return fail(faults.read_error, libc::EIO).map(|()| 0);
        }
        fail(faults.again, libc::EAGAIN)?;
        match request.op {
            Op::Read(_) | Op::ReadHost(_) => fail(faults.read_error, libc::EIO)?,
            Op::Write(_) | Op::WriteThrough(_) | Op::WriteHost { .. } => {
                fail(faults.write_error, libc::EIO)?;
                fail(faults.no_space, libc::ENOSPC)?;
            }
            Op::Zero { .. } | Op::Discard if faults.no_zeroing => return Err(libc::EOPNOTSUPP),
            Op::Zero { .. } | Op::Discard => {
                fail(faults.write_error, libc::EIO)?;
                return Ok(len);
            }
            Op::Flush => return fail(faults.flush_error, libc::EIO).map(|()| 0),
            Op::Status => return Ok(0),
        }
        let short = world.happens(faults.short);
        Ok(if short && len > 512 { (world.pick(len / 512 - 1) + 1) * 512 } else { len })
    }

    /// Transfers the blocks of a request that belong to this moment. Returns the bytes that lie on the disk.
    fn transfer(&mut self, pending: &Pending, at_completion: bool) -> u64 {
        let (request, disk) = (pending.request, Arc::clone(&pending.disk));
        let disk_bytes = bytes_u64(disk.state().bytes.len());
        // A failed write may have written anything; here it writes all of it or nothing.
        let len = pending.fate.unwrap_or(if pending.late & 1 == 1 { request.range.len() } else { 0 });
        let range = request.range.prefix(len).intersect(ByteRange::new(0, disk_bytes));
        let moves =
            !matches!(request.op, Op::Flush | Op::Status) && (pending.fate.is_ok() || !is_read(request.op));
        let mut at = range.start();
        while moves && at < range.end() {
            let end = (at / BLOCK * BLOCK + BLOCK).min(range.end());
            if ((pending.late >> (at / BLOCK % 64)) & 1 == 1) == at_completion {
                self.transfer_part(&disk, request, ByteRange::new(at, end));
            }
            at = end;
        }
        range.len()
    }

    /// Transfers a part of a request that lies in one block.
    fn transfer_part(&mut self, disk: &SimDisk, request: Request, part: ByteRange) {
        let offset = part.start() - request.range.start();
        let on_disk = bytes_usize(part.start())..bytes_usize(part.end());
        let in_memory = |buf: BufRange| {
            let start = buf.start as usize + bytes_usize(offset);
            start..start + on_disk.len()
        };
        let mut state = disk.state();
        match request.op {
            Op::Read(buf) => self.memory[in_memory(buf)].copy_from_slice(&state.bytes[on_disk]),
            Op::ReadHost(memory) => {
                memory.copy_in_at(offset, &state.bytes[on_disk]);
            }
            Op::Write(buf) | Op::WriteThrough(buf) => {
                let data = &self.memory[in_memory(buf)];
                state.change(part, false, |bytes| bytes.copy_from_slice(data));
            }
            Op::WriteHost { memory, .. } => state.change(part, false, |bytes| {
                memory.copy_out_at(offset, bytes);
            }),
            Op::Zero { punch } => state.change(part, punch, |bytes| bytes.fill(0)),
            Op::Discard => state.change(part, true, |bytes| bytes.fill(0)),
            Op::Flush | Op::Status => {}
        }
    }

    /// Completes what is due.
    fn collect(&mut self) {
        let now_ns = self.world.now_ns();
        let (parked, revived): (Vec<_>, Vec<_>) =
            self.parked.drain(..).partition(|pending| pending.disk.state().is_dead());
        self.parked = parked;
        self.pending.extend(revived);
        while self.pending.peek().is_some_and(|p| p.at_ns <= now_ns) {
            let Some(pending) = self.pending.pop() else { return };
            if pending.disk.state().is_dead() {
                self.parked.push(pending);
            } else {
                self.finish(&pending);
            }
        }
    }

    /// Completes a request.
    fn finish(&mut self, pending: &Pending) {
        let on_disk = self.transfer(pending, true);
        let (op, fate) = (pending.request.op, pending.fate);
        let mut extent = None;
        if matches!(op, Op::Status) {
            let ask = || pending.disk.status(pending.request.range.start());
            extent = fate.is_ok().then(|| pending.extent.unwrap_or_else(ask));
        } else if matches!(op, Op::Flush) {
            // One that was refused for the moment was not begun: it covers nothing, and nothing has lost its claim.
            let refused = fate == Err(libc::EAGAIN);
            pending.disk.state().end_flush(if refused { 0 } else { pending.late }, fate.is_err() && !refused);
        } else if !is_read(op) {
            let asked = matches!(op, Op::WriteThrough(_) | Op::WriteHost { fua: true, .. });
            let durable = asked && !pending.disk.state().faults(&self.world).no_write_through;
            let range = pending.request.range.prefix(fate.unwrap_or(0));
            pending.disk.state().end_write(range, fate.is_ok(), durable);
        }
        if let Err(errno) = fate {
            pending.disk.state().note_failure(is_read(op), pending.request.range, errno);
        }
        let result = if is_read(op) { fate.map(|_| on_disk) } else { fate };
        self.done.push_back(Completion { tag: pending.tag, result, extent });
    }

    /// The copy memory of a test.
    #[cfg(test)]
    pub(super) fn memory_mut(&mut self, buf: BufRange) -> &mut [u8] {
        &mut self.memory[buf.start as usize..(buf.start + buf.len) as usize]
    }

    /// Where a range lies in the copy memory; `None` if it does not.
    fn inside(&self, buf: BufRange) -> Option<Range<usize>> {
        let range = buf.start as usize..buf.start as usize + buf.len as usize;
        (range.end <= self.memory.len()).then_some(range)
    }
}

/// Whether a request reads.
fn is_read(op: Op) -> bool {
    matches!(op, Op::Read(_) | Op::ReadHost(_))
}

impl Ring for SimRing {
    type Device = SimDisk;

    fn attach(&mut self, device: &Arc<SimDisk>) -> Result<DeviceSlot> {
        let free = self.devices.iter().position(Option::is_none);
        let slot = free.and_then(|i| u16::try_from(i).ok());
        let slot = slot.ok_or_else(|| Error::new(ErrorKind::QueueFull, "attach a simulated disk"))?;
        self.devices[usize::from(slot)] = Some(Arc::clone(device));
        Ok(DeviceSlot(slot))
    }

    fn detach(&mut self, slot: DeviceSlot) {
        self.devices[usize::from(slot.0)] = None;
    }

    fn push(&mut self, request: Request, tag: Tag) -> std::result::Result<(), Full> {
        let disk = self.disk(request.device).ok_or(Full)?;
        if self.in_flight() >= DEPTH {
            return Err(Full);
        }
        let (mut covered, mut named) = (true, false);
        let transferred_bytes = match request.op {
            Op::Read(buf) | Op::Write(buf) | Op::WriteThrough(buf) => {
                self.inside(buf).ok_or(Full)?;
                request.range.len()
            }
            Op::ReadHost(memory) | Op::WriteHost { memory, .. } => {
                named = memory.buffer_index().is_some();
                covered = self.is_covered(memory);
                request.range.len()
            }
            Op::Zero { .. } | Op::Discard | Op::Flush | Op::Status => 0,
        };
        let bad_ns = disk.state().fails_in_ns(request.range).filter(|_| is_read(request.op));
        let fate = match bad_ns {
            // As the kernel answers.
            _ if !covered => Err(libc::EFAULT),
            Some(_) => Err(libc::EIO),
            None => self.fate(&request, &disk),
        };
        self.through_buffers += u64::from(named);
        let faults = disk.state().faults(&self.world);
        if self.world.happens(faults.stuck) {
            self.stuck += 1;
            return Ok(());
        }
        self.serial += 1;
        let at_ns = disk.state().completion_ns(&self.world, transferred_bytes);
        let mut at_ns = at_ns.saturating_add(bad_ns.unwrap_or(0));
        let mut late = self.world.pick(u64::MAX);
        if matches!(request.op, Op::Flush) {
            let (covered, longer_ns) = disk.state().begin_flush();
            (late, at_ns) = (covered, at_ns.saturating_add(longer_ns));
        }
        // A file system answers at some moment between the question and the answer.
        let answers_now = matches!(request.op, Op::Status) && late & 1 == 0;
        let extent = answers_now.then(|| disk.status(request.range.start()));
        let pending = Pending { at_ns, serial: self.serial, request, tag, disk, fate, late, extent };
        self.transfer(&pending, false);
        self.pending.push(pending);
        Ok(())
    }

    fn enter(&mut self, wait: Wait) -> Result<()> {
        self.collect();
        self.wake.0.store(false, Ordering::Release);
        let now_ns = self.world.now_ns();
        // With completions to take, the caller comes back at once to act on them.
        self.sleeps_until = match (wait.completions.min(usize::from(self.done.is_empty())), wait.timeout_ns) {
            (0, _) => Some(now_ns),
            (_, timeout) => timeout.map(|ns| now_ns.saturating_add(ns.max(1))),
        };
        Ok(())
    }

    fn pop(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.parked.len() + self.stuck + self.done.len()
    }

    fn capacity(&self) -> usize {
        DEPTH
    }

    fn now_ns(&self) -> u64 {
        self.world.now_ns()
    }

    fn status_at_once(&mut self, slot: DeviceSlot, offset: u64) -> Option<Result<Extent>> {
        let Some(disk) = self.disk(slot) else {
            return Some(Err(Error::new(ErrorKind::WrongState, "ask a detached disk")));
        };
        let late = disk.state().faults(&self.world).late_status;
        (!self.world.happens(late)).then(|| Ok(disk.status(offset)))
    }

    fn writes_through(&self, slot: DeviceSlot) -> bool {
        self.disk(slot).is_none_or(|disk| !disk.state().faults(&self.world).no_write_through)
    }

    fn is_zero(&self, buf: BufRange) -> bool {
        assert!(!self.world.faults().panic_on_look, "a bug in the logic, made on purpose");
        self.inside(buf).is_some_and(|range| crate::buffer::is_zero(&self.memory[range]))
    }

    fn host_buffers(&self) -> u16 {
        HOST_BUFFERS
    }

    fn register_memory(&mut self, index: u16, region: HostRegion) -> std::result::Result<(), i32> {
        let place = self.buffers.get_mut(usize::from(index)).ok_or(libc::EINVAL)?;
        assert!(place.is_none(), "a buffer that was filled twice");
        *place = Some(region);
        Ok(())
    }

    fn unregister_memory(&mut self, index: u16) {
        let names = |request: &Request| match request.op {
            Op::ReadHost(memory) | Op::WriteHost { memory, .. } => memory.buffer_index() == Some(index),
            _ => false,
        };
        let named = self.pending.iter().chain(&self.parked).any(|pending| names(&pending.request));
        assert!(!named, "a buffer that was emptied under a request");
        if let Some(place) = self.buffers.get_mut(usize::from(index)) {
            *place = None;
        }
    }

    fn stage(&mut self, from: HostMemory, into: BufRange) {
        if let Some(range) = self.inside(into) {
            from.copy_out(&mut self.memory[range]);
        }
    }

    fn fill_zero(&mut self, buf: BufRange) {
        if let Some(range) = self.inside(buf) {
            self.memory[range].fill(0);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.memory.len()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}
