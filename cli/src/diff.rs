//! Compares two devices: large O_DIRECT reads by a few threads, common holes skipped.
//!
//! The *planner* cuts the disk into blocks in order and asks both sides for their holes. A block that is a hole on both
//! is equal without being read; where one side has a hole only the other is read and checked for zeroes. The
//! *collector* takes the findings back into disk order, so that a range that spans blocks is one range, and memory
//! stays bounded: the first ranges are kept, the rest is counted.
//!
//! Plain preads and not a ring on purpose: what proves a copy should share as little as possible with what made it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use blkmirror_core::device::{Device, Extent, ExtentKind};
use blkmirror_core::units::{ByteRange, KIB, MIB, bytes_u64, bytes_usize};
use blkmirror_core::{Error, ErrorKind};

use crate::aligned::{ALIGN_BYTES, Aligned};
use crate::signals::Interrupts;

/// Bytes read at once from each side.
const BLOCK_BYTES: u64 = MIB;
/// Shorter extents are read together with their neighbours: reading a hole is cheaper than another request.
const SMALL_BYTES: u64 = 128 * KIB;
/// Where ranges begin and end: as fine as file systems allocate.
const RESOLUTION_BYTES: usize = 4096;
/// Reading threads: enough to have both sides busy while something is compared.
const THREADS: usize = 4;
/// Findings that may wait for an earlier block.
const MAX_PENDING: usize = 256;

/// What part of the disks is compared.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// All of the common length.
    All,
    /// Only where the first device holds data.
    DataOfFirst,
    /// Only these ranges, in order.
    Ranges(Vec<ByteRange>),
}

/// What a comparison found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Differences {
    /// The first differing ranges, in order, merged.
    pub(crate) first: Vec<ByteRange>,
    /// How many there are.
    pub(crate) ranges: u64,
    /// Bytes in them.
    pub(crate) bytes: u64,
    /// Bytes compared, common holes included.
    pub(crate) compared_bytes: u64,
    /// Bytes read from both together.
    pub(crate) read_bytes: u64,
    /// A signal ended it early.
    pub(crate) interrupted: bool,
}

/// A comparison that is running: what its threads share.
struct Comparison<'a> {
    /// The two sides.
    sides: [&'a Device; 2],
    /// Cuts the disk into blocks.
    planner: Mutex<Planner>,
    /// Puts the findings into order.
    collector: Mutex<Collector>,
    /// Wakes threads whose findings wait for room.
    room: Condvar,
    /// Ends every thread.
    stop: AtomicBool,
    /// Bytes planned so far; for the progress bar.
    compared_bytes: AtomicU64,
    /// Bytes read so far.
    read_bytes: AtomicU64,
    /// The first error.
    error: Mutex<Option<Error>>,
}

/// Locks, also after a panic elsewhere: the scope's join reports that.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares the first `bytes` of `a` and `b` within `scope`, keeping at most `limit` ranges; `tick` hears of progress.
pub(crate) fn compare(
    sides: [&Device; 2],
    bytes: u64,
    scope: Scope,
    limit: usize,
    interrupts: &Interrupts,
    mut tick: impl FnMut(u64),
) -> Result<Differences, Error> {
    let comparison = Comparison {
        sides,
        planner: Mutex::new(Planner::new(bytes, scope)),
        collector: Mutex::new(Collector { limit, ..Collector::default() }),
        room: Condvar::new(),
        stop: AtomicBool::new(false),
        compared_bytes: AtomicU64::new(0),
        read_bytes: AtomicU64::new(0),
        error: Mutex::new(None),
    };
    let interrupted = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| comparison.work())).collect();
        // Short at first, so that a small comparison is not waited for.
        let mut pause = Duration::from_micros(200);
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            if interrupts.sleep(pause) {
                comparison.end();
                return true;
            }
            tick(comparison.compared_bytes.load(Ordering::Relaxed));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        false
    });
    if let Some(error) = lock(&comparison.error).take() {
        return Err(error);
    }
    let mut found = lock(&comparison.collector).finish();
    found.compared_bytes = comparison.compared_bytes.into_inner();
    found.read_bytes = comparison.read_bytes.into_inner();
    found.interrupted = interrupted;
    Ok(found)
}

impl Comparison<'_> {
    /// What each thread does.
    fn work(&self) {
        if let Err(error) = self.compare_blocks() {
            lock(&self.error).get_or_insert(error);
            self.end();
        }
    }

    /// Ends every thread.
    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // The lock makes sure that no thread sits between its look at `stop` and its sleep.
        drop(lock(&self.collector));
        self.room.notify_all();
    }

    /// Takes blocks until there are none.
    fn compare_blocks(&self) -> Result<(), Error> {
        // A block, and what alignment adds at both ends.
        let room = bytes_usize(BLOCK_BYTES) + 2 * ALIGN_BYTES;
        let mut buffers = [Aligned::new(room), Aligned::new(room)];
        while !self.stop.load(Ordering::SeqCst) {
            let Some(block) = lock(&self.planner).next(self.sides)? else { return Ok(()) };
            let mut found = Vec::new();
            if block.read[0] || block.read[1] {
                let window = block.range.align_out(bytes_u64(ALIGN_BYTES));
                for ((buffer, device), _) in
                    buffers.iter_mut().zip(self.sides).zip(block.read).filter(|(_, r)| *r)
                {
                    let read = fill(buffer, device, window, block.range.end())?;
                    self.read_bytes.fetch_add(read, Ordering::Relaxed);
                }
                let skip = bytes_usize(block.range.start() - window.start());
                let len = bytes_usize(block.range.len());
                let part = |side: usize| block.read[side].then(|| &buffers[side].bytes()[skip..skip + len]);
                find_differences(part(0), part(1), block.range.start(), &mut found);
            }
            self.compared_bytes.fetch_add(block.range.len(), Ordering::Relaxed);
            self.hand_in(block.number, found);
        }
        Ok(())
    }

    /// Gives the findings of a block to the collector; waits while too many others wait for an earlier block.
    fn hand_in(&self, number: u64, found: Vec<ByteRange>) {
        let mut collector = lock(&self.collector);
        while number != collector.next
            && collector.pending.len() >= MAX_PENDING
            && !self.stop.load(Ordering::SeqCst)
        {
            collector = self.room.wait(collector).unwrap_or_else(PoisonError::into_inner);
        }
        collector.take(number, found);
        drop(collector);
        self.room.notify_all();
    }
}

/// A piece of both disks.
#[derive(Debug)]
struct Block {
    /// Its place in the order.
    number: u64,
    /// The bytes; at most [`BLOCK_BYTES`] if anything is to be read.
    range: ByteRange,
    /// Which sides are to be read; the others are zero here.
    read: [bool; 2],
}

/// Cuts the disk into blocks.
struct Planner {
    /// What is left, the next last.
    ranges: Vec<ByteRange>,
    /// Whether holes of the first side are left out.
    only_data_of_first: bool,
    /// What was last heard of each side.
    known: [Option<Extent>; 2],
    /// The number of the next block.
    number: u64,
}

impl Planner {
    /// A plan for the first `bytes` within `scope`.
    fn new(bytes: u64, scope: Scope) -> Self {
        let only_data_of_first = matches!(scope, Scope::DataOfFirst);
        let whole = ByteRange::new(0, bytes);
        let mut ranges = match scope {
            Scope::All | Scope::DataOfFirst => vec![whole],
            Scope::Ranges(ranges) => ranges.iter().map(|range| range.intersect(whole)).collect(),
        };
        ranges.retain(|range| !range.is_empty());
        ranges.reverse();
        Self { ranges, only_data_of_first, known: [None, None], number: 0 }
    }

    /// The next block, or none at the end.
    fn next(&mut self, sides: [&Device; 2]) -> Result<Option<Block>, Error> {
        while let Some(left) = self.ranges.pop() {
            let first = self.extent(sides, 0, left.start())?;
            let second = self.extent(sides, 1, left.start())?;
            let read = [first.kind == ExtentKind::Data, second.kind == ExtentKind::Data];
            let same = left.range_to(first.range.end().min(second.range.end()));
            let range = if !read[0] && (!read[1] || self.only_data_of_first) {
                same
            } else if self.only_data_of_first {
                left.range_to(first.range.end()).prefix(BLOCK_BYTES)
            } else if same.len() < SMALL_BYTES {
                left.prefix(SMALL_BYTES)
            } else {
                same.prefix(BLOCK_BYTES)
            };
            let rest = ByteRange::new(range.end(), left.end());
            if !rest.is_empty() {
                self.ranges.push(rest);
            }
            if self.only_data_of_first && !read[0] {
                continue;
            }
            let read = if range.end() > same.end() { [true, true] } else { read };
            self.number += 1;
            return Ok(Some(Block { number: self.number - 1, range, read }));
        }
        Ok(None)
    }

    /// What `side` holds at `offset`; asked once per extent, never empty.
    fn extent(&mut self, sides: [&Device; 2], side: usize, offset: u64) -> Result<Extent, Error> {
        if let Some(known) = self.known[side]
            && (known.range.start()..known.range.end()).contains(&offset)
        {
            return Ok(known);
        }
        let mut extent = sides[side].status(offset)?;
        if extent.range.end() <= offset {
            // It shrank meanwhile; the read will say so.
            extent = Extent { range: ByteRange::at(offset, BLOCK_BYTES), kind: ExtentKind::Data };
        }
        self.known[side] = Some(extent);
        Ok(extent)
    }
}

/// A range up to a point.
trait RangeTo {
    /// The part that lies before `end`.
    fn range_to(&self, end: u64) -> ByteRange;
}

impl RangeTo for ByteRange {
    fn range_to(&self, end: u64) -> ByteRange {
        Self::new(self.start(), self.end().min(end))
    }
}

/// Puts findings into disk order and merges what touches.
#[derive(Default)]
struct Collector {
    /// The block whose findings come next.
    next: u64,
    /// Findings of later blocks.
    pending: BTreeMap<u64, Vec<ByteRange>>,
    /// The range that may still grow.
    open: Option<ByteRange>,
    /// What was found.
    found: Differences,
    /// How many ranges are kept.
    limit: usize,
}

impl Collector {
    /// Takes the findings of block `number`.
    fn take(&mut self, number: u64, found: Vec<ByteRange>) {
        self.pending.insert(number, found);
        while let Some(found) = self.pending.remove(&self.next) {
            self.next += 1;
            for range in found {
                self.add(range);
            }
        }
    }

    /// Adds the next range in order.
    fn add(&mut self, range: ByteRange) {
        match &mut self.open {
            Some(open) if open.end() == range.start() => *open = ByteRange::new(open.start(), range.end()),
            _ => {
                self.close();
                self.open = Some(range);
            }
        }
    }

    /// Counts the open range.
    fn close(&mut self) {
        if let Some(range) = self.open.take() {
            self.found.ranges += 1;
            self.found.bytes += range.len();
            if self.found.first.len() < self.limit {
                self.found.first.push(range);
            }
        }
    }

    /// What was found; after an early end also from blocks whose predecessors are missing.
    fn finish(&mut self) -> Differences {
        for found in std::mem::take(&mut self.pending).into_values() {
            found.into_iter().for_each(|range| self.add(range));
        }
        self.close();
        std::mem::take(&mut self.found)
    }
}

/// Reads `window` of `device` into `memory`; it may end early, but not before `needed_end`.
fn fill(memory: &mut Aligned, device: &Device, window: ByteRange, needed_end: u64) -> Result<u64, Error> {
    let buffer = &mut memory.bytes_mut()[..bytes_usize(window.len())];
    let mut done = 0;
    loop {
        let offset = window.start() + bytes_u64(done);
        match rustix::io::pread(device.as_fd(), &mut buffer[done..], offset) {
            Ok(count) if offset + bytes_u64(count) >= needed_end => return Ok(bytes_u64(done + count)),
            // A short read is gone on with at the last aligned offset.
            Ok(count) if count >= ALIGN_BYTES => done += count - count % ALIGN_BYTES,
            Ok(_) => {
                return Err(Error::new(ErrorKind::SourceShrank, "read")
                    .at(device.name())
                    .in_range(window)
                    .because("it became shorter meanwhile"));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::from_io("read", errno).at(device.name()).in_range(window)),
        }
    }
}

/// Adds the differing ranges of two pieces of the same length at `offset`; none stands for zeroes.
fn find_differences(a: Option<&[u8]>, b: Option<&[u8]>, offset: u64, found: &mut Vec<ByteRange>) {
    static ZEROES: [u8; RESOLUTION_BYTES] = [0; RESOLUTION_BYTES];
    if a == b {
        return;
    }
    let len = a.or(b).map_or(0, <[u8]>::len);
    let mut at = 0;
    while at < len {
        // Ranges begin and end at multiples of the resolution on the disk, wherever the piece begins.
        let into = bytes_usize((offset + bytes_u64(at)) % bytes_u64(RESOLUTION_BYTES));
        let end = (at + RESOLUTION_BYTES - into).min(len);
        let piece = |side: Option<&'_ [u8]>| side.is_some_and(|s| s[at..end] != ZEROES[..end - at]);
        let differs = match (a, b) {
            (Some(a), Some(b)) => a[at..end] != b[at..end],
            (one, other) => piece(one.or(other)),
        };
        if differs {
            let range = ByteRange::new(offset + bytes_u64(at), offset + bytes_u64(end));
            match found.last_mut() {
                Some(last) if last.end() == range.start() => {
                    *last = ByteRange::new(last.start(), range.end());
                }
                _ => found.push(range),
            }
        }
        at = end;
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
