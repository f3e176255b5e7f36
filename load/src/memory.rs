//! A disk in memory, for tests of the writers and the ledger: it takes its time, answers out of order, and does wrong what it is
//! told to do wrong.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::ring::monotonic_ns;
use blkmirror_core::units::{ByteRange, bytes_u64, bytes_usize};
use blkmirror_core::{Error, ErrorKind, Result};

use crate::disk::{Done, GuestDisk, Refused};
use crate::pace;
use crate::reader::{PIECE_BYTES, ReadAt};

/// What a disk does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Says that a write is done and forgets it.
    Lose,
    /// Writes half of it and says that it is done.
    Tear,
    /// Fails it.
    Fail,
}

/// What all handles of a disk in memory share.
#[derive(Debug)]
struct Store {
    /// The disk.
    bytes: Vec<u8>,
    /// Writes so far.
    writes: u64,
    /// What to do wrong, and with which write.
    fault: Option<(Fault, u64)>,
}

/// The content of a disk in memory.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    /// It.
    store: Arc<Mutex<Store>>,
    /// What was read last.
    piece: Vec<u8>,
    /// Its size.
    size_bytes: u64,
}

impl MemoryStore {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let store = Store { bytes: vec![0; bytes_usize(size_bytes)], writes: 0, fault: None };
        Self { store: Arc::new(Mutex::new(store)), piece: vec![0; bytes_usize(PIECE_BYTES)], size_bytes }
    }

    /// From now on the `nth` write of all goes wrong, and every `nth` after it.
    pub fn set_fault(&self, fault: Fault, nth: u64) {
        self.lock().fault = Some((fault, nth.max(1)));
    }

    /// A handle for one writer; each request takes from `latency` to twice as long.
    #[must_use]
    pub fn open(&self, latency: Duration) -> MemoryDisk {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        MemoryDisk { store: self.clone(), latency_ns, requests: 0, under_way: Vec::new() }
    }

    /// Access to it.
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for MemoryStore {
    fn read_at(&mut self, range: ByteRange) -> Result<&[u8]> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = &mut self.piece[..bytes_usize(range.len())];
        piece.copy_from_slice(&store.bytes[bytes_usize(range.start())..bytes_usize(range.end())]);
        Ok(piece)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Fills the buffer.
    Read,
    /// Takes the buffer.
    Write,
    /// Writes zeroes.
    Zero,
    /// Nothing: memory is as durable as it gets.
    Flush,
}

/// A request under way.
#[derive(Debug)]
struct UnderWay {
    /// What it does.
    what: What,
    /// Where.
    range: ByteRange,
    /// With what.
    buffer: Option<AlignedBuf>,
    /// For whom.
    tag: u64,
    /// When it is done.
    due_ns: u64,
}

/// One writer's handle of a disk in memory.
#[derive(Debug)]
pub struct MemoryDisk {
    /// The disk.
    store: MemoryStore,
    /// How long a request takes at least.
    latency_ns: u64,
    /// Requests so far.
    requests: u64,
    /// What is not done yet.
    under_way: Vec<UnderWay>,
}

/// Requests that a handle takes at a time.
const MAX_UNDER_WAY: usize = 1024;

impl MemoryDisk {
    /// Queues a request.
    fn queue(
        &mut self,
        what: What,
        range: ByteRange,
        buffer: Option<AlignedBuf>,
        tag: u64,
    ) -> std::result::Result<(), Refused> {
        let refuse = |kind, buffer| Err(Refused { error: Error::new(kind, "queue a request"), buffer });
        if range.end() > self.store.size_bytes {
            return refuse(ErrorKind::InvalidArgument, buffer);
        }
        if self.under_way.len() >= MAX_UNDER_WAY {
            return refuse(ErrorKind::QueueFull, buffer);
        }
        self.requests += 1;
        // Out of order, and the same in every run.
        let extra_ns = self.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.latency_ns.max(1);
        let due_ns = monotonic_ns() + self.latency_ns + extra_ns;
        self.under_way.push(UnderWay { what, range, buffer, tag, due_ns });
        Ok(())
    }

    /// Does what a request asks for.
    fn carry_out(&self, what: What, range: ByteRange, buffer: Option<&mut AlignedBuf>) -> Result<()> {
        let mut store = self.store.lock();
        let place = bytes_usize(range.start())..bytes_usize(range.end());
        let mut end = place.end;
        if let What::Write | What::Zero = what {
            store.writes += 1;
            match store.fault.filter(|(_, nth)| store.writes.is_multiple_of(*nth)) {
                None => {}
                Some((Fault::Lose, _)) => return Ok(()),
                Some((Fault::Tear, _)) => end = place.start + place.len() / 2,
                Some((Fault::Fail, _)) => return Err(Error::new(ErrorKind::Io, "write to memory")),
            }
        }
        match (what, buffer) {
            (What::Read, Some(buffer)) => buffer[..place.len()].copy_from_slice(&store.bytes[place]),
            (What::Write, Some(buffer)) => {
                store.bytes[place.start..end].copy_from_slice(&buffer[..end - place.start]);
            }
            (What::Zero, _) => store.bytes[place.start..end].fill(0),
            _ => {}
        }
        Ok(())
    }
}

impl GuestDisk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.store.size_bytes
    }

    fn align_bytes(&self) -> u64 {
        512
    }

    fn write(
        &mut self,
        offset: u64,
        buffer: AlignedBuf,
        _fua: bool,
        tag: u64,
    ) -> std::result::Result<(), Refused> {
        self.queue(What::Write, ByteRange::at(offset, bytes_u64(buffer.len())), Some(buffer), tag)
    }

    fn read(&mut self, offset: u64, buffer: AlignedBuf, tag: u64) -> std::result::Result<(), Refused> {
        self.queue(What::Read, ByteRange::at(offset, bytes_u64(buffer.len())), Some(buffer), tag)
    }

    fn write_zeroes(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Refused> {
        self.queue(What::Zero, range, None, tag)
    }

    fn flush(&mut self, tag: u64) -> std::result::Result<(), Refused> {
        self.queue(What::Flush, ByteRange::default(), None, tag)
    }

    fn wait(&mut self, min_done: usize, timeout: Duration) -> Result<()> {
        let now = monotonic_ns();
        let done = self.under_way.iter().filter(|request| request.due_ns <= now).count();
        if done >= min_done {
            return Ok(());
        }
        let next = self.under_way.iter().map(|request| request.due_ns).filter(|due| *due > now).min();
        let left = next.map_or(timeout, |due| Duration::from_nanos(due - now));
        pace::sleep(left.min(timeout));
        Ok(())
    }

    fn pop(&mut self) -> Option<Done> {
        let now = monotonic_ns();
        let at = self.under_way.iter().position(|request| request.due_ns <= now)?;
        let UnderWay { what, range, mut buffer, tag, .. } = self.under_way.swap_remove(at);
        let result = self.carry_out(what, range, buffer.as_mut());
        Some(Done { tag, result, buffer })
    }
}
