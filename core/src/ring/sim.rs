//! A ring without a kernel: deterministic from a seed.
//!
//! A [`World`] holds virtual time, disks in memory and one source of chance. Requests on a [`SimRing`] take a random time,
//! complete out of order, transfer less than asked for, fail, or never come back, as the world's [`Faults`] say. Every
//! 4 KiB block of a transfer is taken over at its own moment between submission and completion, so a write that races a
//! read is torn as on a real device.
//!
//! One thread turns all workers: [`SimRing::due_ns`] says when a ring has something to do, and whoever drives the
//! simulation moves the clock to the earliest ([`World::advance_to`]). The same seed gives the same run.

mod disk;

use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::FlushPoint;
pub use disk::SimDisk;

use super::{Completion, DeviceSlot, Full, Op, Request, Ring, Tag, Wait, Wake};
use crate::buffer::{BufRange, HostMemory};
use crate::device::Extent;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteRange, bytes_u64, bytes_usize};

/// What transfers are torn by, and the unit of holes.
const BLOCK: u64 = 4096;
/// Requests in flight on one ring at most.
const DEPTH: usize = 256;

/// How often things go wrong, in cases per thousand requests; the default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads and writes that transfer only a part.
    pub short: u32,
    /// Reads that fail with EIO.
    pub read_error: u32,
    /// Writes and zeroings that fail with EIO.
    pub write_error: u32,
    /// Writes that fail with ENOSPC.
    pub no_space: u32,
    /// Requests that fail with EAGAIN.
    pub again: u32,
    /// Flushes that fail with EIO.
    pub flush_error: u32,
    /// Requests that never come back.
    pub stuck: u32,
    /// Zeroing is not supported at all.
    pub no_zeroing: bool,
    /// The next look at the memory panics, as a bug in the logic would.
    pub panic_on_look: bool,
}

/// Virtual time, chance and rules shared by all rings of a simulation.
#[derive(Debug)]
pub struct World {
    /// Everything that changes.
    state: Mutex<WorldState>,
}

/// The inside of a [`World`].
#[derive(Debug)]
struct WorldState {
    /// Virtual time.
    now_ns: u64,
    /// splitmix64.
    chance: u64,
    /// What goes wrong.
    faults: Faults,
}

/// Takes a lock whose holder cannot have left anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world at time zero.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(WorldState { now_ns: 1, chance: seed, faults }) })
    }

    /// A number below `below`, which must not be 0.
    pub fn pick(&self, below: u64) -> u64 {
        let mut state = lock(&self.state);
        state.chance = state.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    /// Virtual time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        lock(&self.state).now_ns
    }

    /// Moves the clock on; it never goes back.
    pub fn advance_to(&self, now_ns: u64) {
        let mut state = lock(&self.state);
        state.now_ns = state.now_ns.max(now_ns);
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// What goes wrong now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        lock(&self.state).faults
    }

    /// Whether a case of so many per thousand happens.
    fn happens(&self, per_mille: u32) -> bool {
        per_mille > 0 && self.pick(1000) < u64::from(per_mille)
    }
}

/// The blocks that a range touches.
fn blocks_of(range: ByteRange) -> std::ops::Range<usize> {
    bytes_usize(range.start() / BLOCK)..bytes_usize(range.end().div_ceil(BLOCK))
}

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
    /// Decided at submission: bytes that it will transfer, or how it will fail.
    fate: std::result::Result<u64, i32>,
    /// Which blocks are transferred at completion instead of at submission.
    late: u64,
    /// Of a flush: what it is to make durable.
    flush: Option<FlushPoint>,
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
    /// Attached disks.
    devices: Vec<Option<Arc<SimDisk>>>,
    /// Requests under way.
    pending: BinaryHeap<Pending>,
    /// Requests that will never come back; they count as in flight.
    stuck: usize,
    /// Requests that come back when their disk is alive again.
    parked: Vec<Pending>,
    /// Completions to be popped.
    done: std::collections::VecDeque<Completion>,
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
            devices: vec![None; 16],
            pending: BinaryHeap::new(),
            stuck: 0,
            parked: Vec::new(),
            done: std::collections::VecDeque::new(),
            serial: 0,
            sleeps_until: Some(0),
            wake: Arc::new(SimWake::default()),
        }
    }

    /// When this ring has something to do; `None` = not before somebody wakes it.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        let revived = |pending: &Pending| !self.is_dead(pending.request.device);
        if self.wake.0.load(Ordering::Acquire) || !self.done.is_empty() || self.parked.iter().any(revived) {
            return Some(0);
        }
        self.pending.peek().map(|p| p.at_ns).into_iter().chain(self.sleeps_until).min()
    }

    /// The disk behind a slot.
    fn disk(&self, slot: DeviceSlot) -> Option<Arc<SimDisk>> {
        self.devices.get(usize::from(slot.0)).cloned().flatten()
    }

    /// Whether the disk behind a slot does not answer.
    fn is_dead(&self, slot: DeviceSlot) -> bool {
        self.disk(slot).is_some_and(|disk| disk.is_dead())
    }

    /// What goes wrong on the disk behind a slot.
    fn faults(&self, slot: DeviceSlot) -> Faults {
        self.disk(slot).and_then(|disk| lock(&disk.state).faults).unwrap_or_else(|| self.world.faults())
    }

    /// Decides how a request will end.
    fn fate(&self, request: &Request, faults: &Faults) -> std::result::Result<u64, i32> {
        let world = &self.world;
        let len = request.range.len();
        let fail = |per_mille, errno| if world.happens(per_mille) { Err(errno) } else { Ok(()) };
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
        }
        let short = world.happens(faults.short);
        Ok(if short && len > 512 { (world.pick(len / 512 - 1) + 1) * 512 } else { len })
    }

    /// Transfers the blocks of a request that belong to this moment.
    fn transfer(&mut self, pending: &Pending, at_completion: bool) -> u64 {
        let Some(disk) = self.disk(pending.request.device) else { return 0 };
        let mut state = lock(&disk.state);
        // A failed write may have written anything; here it writes all of it or nothing.
        let len = pending.fate.unwrap_or(if pending.late & 1 == 1 { pending.request.range.len() } else { 0 });
        let range = pending.request.range.prefix(len);
        let range = range.intersect(ByteRange::new(0, bytes_u64(state.bytes.len())));
        let mut at = range.start();
        while at < range.end() {
            let end = (at / BLOCK * BLOCK + BLOCK).min(range.end());
            if ((pending.late >> (at / BLOCK % 64)) & 1 == 1) == at_completion {
                let disk_part = bytes_usize(at)..bytes_usize(end);
                let offset = bytes_usize(at - pending.request.range.start());
                let part_len = disk_part.len();
                let memory = |buf: BufRange| {
                    let start = buf.start as usize + offset;
                    start..start + part_len
                };
                match pending.request.op {
                    Op::Read(buf) if pending.fate.is_ok() => {
                        self.memory[memory(buf)].copy_from_slice(&state.bytes[disk_part]);
                    }
                    Op::ReadHost(memory) if pending.fate.is_ok() => {
                        memory.copy_in_at(bytes_u64(offset), &state.bytes[disk_part]);
                    }
                    Op::WriteHost { memory, .. } => {
                        memory.copy_out_at(bytes_u64(offset), &mut state.bytes[disk_part]);
                        state.holes[blocks_of(ByteRange::new(at, end))].fill(false);
                        state.touched(ByteRange::new(at, end));
                    }
                    Op::Write(buf) | Op::WriteThrough(buf) => {
                        state.bytes[disk_part].copy_from_slice(&self.memory[memory(buf)]);
                        state.holes[blocks_of(ByteRange::new(at, end))].fill(false);
                        state.touched(ByteRange::new(at, end));
                    }
                    Op::Zero { .. } | Op::Discard => {
                        state.bytes[disk_part].fill(0);
                        state.touched(ByteRange::new(at, end));
                        let whole =
                            end - at == BLOCK && !matches!(pending.request.op, Op::Zero { punch: false });
                        if whole {
                            state.holes[blocks_of(ByteRange::new(at, end))].fill(true);
                        }
                    }
                    Op::Read(_) | Op::ReadHost(_) | Op::Flush => {}
                }
            }
            at = end;
        }
        if at_completion && !matches!(pending.request.op, Op::Read(_) | Op::ReadHost(_) | Op::Flush) {
            state.writes += 1;
            let durable = matches!(pending.request.op, Op::WriteThrough(_) | Op::WriteHost { fua: true, .. });
            if durable && pending.fate.is_ok() {
                state.write_through(range);
            }
        }
        range.len()
    }

    /// Completes what is due.
    fn collect(&mut self) {
        let now_ns = self.world.now_ns();
        for mut pending in std::mem::take(&mut self.parked) {
            if self.is_dead(pending.request.device) {
                self.parked.push(pending);
            } else {
                pending.at_ns = pending.at_ns.max(now_ns);
                self.pending.push(pending);
            }
        }
        while self.pending.peek().is_some_and(|p| p.at_ns <= now_ns) {
            let Some(pending) = self.pending.pop() else { return };
            if self.is_dead(pending.request.device) {
                self.parked.push(pending);
            } else {
                self.complete(pending);
            }
        }
    }

    /// A request ends.
    fn complete(&mut self, pending: Pending) {
        let done = self.transfer(&pending, true);
        let Pending { request, tag, fate, late, flush, .. } = pending;
        if let (Some(point), Ok(_), Some(disk)) = (flush, fate, self.disk(request.device)) {
            let mut state = lock(&disk.state);
            state.flushed = late;
            state.flushed_at(point);
        }
        let result = match (request.op, fate) {
            (Op::Read(_) | Op::ReadHost(_), Ok(_)) => Ok(done),
            (_, fate) => fate,
        };
        self.done.push_back(Completion { tag, result });
    }
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
        if self.in_flight() >= DEPTH {
            return Err(Full);
        }
        let faults = self.faults(request.device);
        let fate = self.fate(&request, &faults);
        if self.world.happens(faults.stuck) {
            self.stuck += 1;
            return Ok(());
        }
        self.serial += 1;
        let disk = self.disk(request.device);
        let at_ns = match &disk {
            Some(disk) => lock(&disk.state).completes_at(&self.world, request.range.len()),
            None => self.world.now_ns(),
        };
        let mut late = self.world.pick(u64::MAX);
        let mut flush = None;
        if let (Op::Flush, Some(disk)) = (request.op, disk) {
            let state = lock(&disk.state);
            (late, flush) = (state.writes, Some(state.flush_point()));
        }
        let pending = Pending { at_ns, serial: self.serial, request, tag, fate, late, flush };
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

    fn now_ns(&self) -> u64 {
        self.world.now_ns()
    }

    fn status(&mut self, slot: DeviceSlot, offset: u64) -> Result<Extent> {
        let disk = self.disk(slot).ok_or_else(|| Error::new(ErrorKind::WrongState, "ask a detached disk"))?;
        Ok(disk.status(offset))
    }

    fn is_zero(&self, buf: BufRange) -> bool {
        assert!(!self.world.faults().panic_on_look, "a bug in the logic, made on purpose");
        crate::buffer::is_zero(&self.memory[buf.start as usize..(buf.start + buf.len) as usize])
    }

    fn stage(&mut self, from: HostMemory, into: BufRange) {
        if let Some(into) = self.memory.get_mut(into.start as usize..(into.start + into.len) as usize) {
            from.copy_out(into);
        }
    }

    fn fill_zero(&mut self, buf: BufRange) {
        if let Some(bytes) = self.memory.get_mut(buf.start as usize..(buf.start + buf.len) as usize) {
            bytes.fill(0);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.memory.len()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}
