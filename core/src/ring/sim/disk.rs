//! A simulated disk: its content, what of it is durable, and how long its requests take.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::cache::Cache;
use super::{BLOCK, Faults, World, blocks_of, lock};
use crate::device::{Extent, ExtentKind};
use crate::units::{ByteRange, bytes_u64, bytes_usize};

/// A disk in memory, shared by the rings that it is attached to.
#[derive(Debug)]
pub struct SimDisk {
    /// Everything that changes.
    state: Mutex<DiskState>,
}

/// A request that failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// It was a read; else a write, a zeroing or a flush.
    reads: bool,
    /// The bytes it was about; empty for a flush.
    range: ByteRange,
    /// What was said of it.
    errno: i32,
}

/// The inside of a [`SimDisk`].
#[derive(Debug)]
pub(super) struct DiskState {
    /// Content, as requests see it.
    pub(super) bytes: Vec<u8>,
    /// Blocks that were never written or were punched.
    holes: Vec<bool>,
    /// What a crash may lose of it.
    cache: Cache,
    /// How many writes and zeroings it took.
    writes: u64,
    /// How many of them the last successful flush began after.
    flushed: u64,
    /// What goes wrong here; `None` = as in the world.
    faults: Option<Faults>,
    /// The shortest time that a request takes, besides what its bytes take.
    min_ns: u64,
    /// How much longer it may take.
    spread_ns: u64,
    /// How much longer a flush takes.
    flush_ns: u64,
    /// Flushes that have begun and not ended.
    flushing: u32,
    /// Bytes that it transfers in a second, one request after the other; 0 = in no time, all at once.
    rate: u64,
    /// Until when the requests so far keep it busy.
    busy_until_ns: u64,
    /// Nothing comes back.
    dead: bool,
    /// Where reads fail, and how long they take to.
    bad: Option<(ByteRange, u64)>,
    /// Requests that failed, for who asks whether an error that he was told of was there.
    failed: Vec<Failed>,
}

impl SimDisk {
    /// A disk that is one hole.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        let state = DiskState {
            bytes: vec![0; bytes_usize(bytes)],
            holes: vec![true; bytes_usize(bytes.div_ceil(BLOCK))],
            cache: Cache::default(),
            writes: 0,
            flushed: 0,
            faults: None,
            min_ns: 1_000,
            spread_ns: 400_000,
            flush_ns: 0,
            flushing: 0,
            rate: 0,
            busy_until_ns: 0,
            dead: false,
            bad: None,
            failed: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Takes the lock.
    pub(super) fn state(&self) -> MutexGuard<'_, DiskState> {
        lock(&self.state)
    }

    /// Writes as somebody outside the simulation: at once, and durably.
    pub fn poke(&self, at: u64, data: &[u8]) {
        let mut state = self.state();
        let start = bytes_usize(at);
        state.bytes[start..start + data.len()].copy_from_slice(data);
        for block in blocks_of(ByteRange::at(at, bytes_u64(data.len()))) {
            state.holes[block] = false;
            state.cache.make_durable(block);
        }
    }

    /// Its content, as a read sees it.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Looks at its content.
    pub fn look<R>(&self, at: impl FnOnce(&[u8]) -> R) -> R {
        at(&self.state().bytes)
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.look(|bytes| bytes_u64(bytes.len()))
    }

    /// Whether the block at `offset` was never written or was punched.
    #[must_use]
    pub fn is_hole(&self, offset: u64) -> bool {
        self.state().holes.get(bytes_usize(offset / BLOCK)).copied().unwrap_or(true)
    }

    /// Where a crash now could leave something else than the content.
    #[must_use]
    pub fn may_lose(&self) -> Option<u64> {
        let state = self.state();
        let block = state.cache.first_loss(|number| &state.bytes[state.bytes_of(number)]);
        block.map(|number| bytes_u64(number) * BLOCK)
    }

    /// Writes as a host that does its own I/O: at once, and not durably.
    pub fn write(&self, at: u64, data: &[u8]) {
        let range = ByteRange::at(at, bytes_u64(data.len()));
        let mut state = self.state();
        for number in blocks_of(range) {
            let block = ByteRange::at(bytes_u64(number) * BLOCK, BLOCK).intersect(range);
            let from = bytes_usize(block.start() - at);
            state.change(block, false, |into| into.copy_from_slice(&data[from..from + into.len()]));
        }
        state.end_write(range, true, false);
    }

    /// Flushes as a host that does its own I/O: at once.
    pub fn flush(&self) {
        let mut state = self.state();
        let (covered, _) = state.begin_flush();
        state.end_flush(covered, false);
    }

    /// How many writes and zeroings requests made.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// How many writes the last flush covers.
    #[must_use]
    pub fn flushed(&self) -> u64 {
        self.state().flushed
    }

    /// Cuts the end off.
    pub fn shrink_to(&self, bytes: u64) {
        self.state().bytes.truncate(bytes_usize(bytes));
    }

    /// What goes wrong on this disk from now on, whatever the world says.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = Some(faults);
    }

    /// How long each request takes from now on, besides its place in the queue: `min_ns` and up to `spread_ns` more.
    pub fn set_latency(&self, min_ns: u64, spread_ns: u64) {
        let mut state = self.state();
        (state.min_ns, state.spread_ns) = (min_ns, spread_ns);
    }

    /// How much longer a flush takes from now on than another request.
    pub fn set_flush_latency(&self, ns: u64) {
        self.state().flush_ns = ns;
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.state().flushing > 0
    }

    /// From now on, requests are transferred one after the other at `bytes_per_s`, those of all rings in the order in which
    /// they were pushed. So a small one waits behind all that was pushed before it, as on a real disk. 0 = no limit.
    pub fn set_rate(&self, bytes_per_s: u64) {
        let mut state = self.state();
        state.rate = bytes_per_s;
        state.busy_until_ns = 0;
    }

    /// From now on, reads of what overlaps this range fail, and take so long to; `None` = none does.
    pub fn set_bad(&self, bad: Option<(ByteRange, u64)>) {
        self.state().bad = bad;
    }

    /// While it is dead, no request comes back, old or new. Once it is not, all of them do.
    pub fn set_dead(&self, dead: bool) {
        self.state().dead = dead;
    }

    /// Whether a read, or else a write, zeroing or flush, failed with this errno somewhere inside `range`. A flush has an empty
    /// range, and nothing else has.
    #[must_use]
    pub fn has_failed(&self, reads: bool, range: ByteRange, errno: i32) -> bool {
        self.state().failed.iter().any(|failed| {
            (failed.reads, failed.errno) == (reads, errno)
                && failed.range.is_empty() == range.is_empty()
                && failed.range.intersect(range) == failed.range
        })
    }

    /// Whether it is dead.
    #[must_use]
    pub fn answers(&self) -> bool {
        !self.state().dead
    }

    /// The power fails: of each block, some version is left that it had since the last flush that covers it. Requests that
    /// are under way go on for whoever has kept his ring; a test of a crash drops it.
    pub fn crash(&self, world: &World) {
        let mut state = self.state();
        let lost: Vec<_> = state.cache.crash().collect();
        for (number, versions) in lost {
            let left = bytes_usize(world.pick(bytes_u64(versions.len() + 1)));
            let Some(version) = versions.get(left) else { continue };
            let bytes = state.bytes_of(number);
            let kept = bytes.len().min(version.bytes.len());
            state.bytes[bytes][..kept].copy_from_slice(&version.bytes[..kept]);
            state.holes[number] = version.hole;
        }
    }

    /// Block status.
    pub(super) fn status(&self, offset: u64) -> Extent {
        let state = self.state();
        let first = bytes_usize(offset / BLOCK);
        let hole = state.holes.get(first).copied().unwrap_or(true);
        let run = state.holes.iter().skip(first).take_while(|&&h| h == hole).count();
        let end = bytes_u64(first + run) * BLOCK;
        let end = end.min(bytes_u64(state.bytes.len())).max(offset + 1);
        let kind = if hole { ExtentKind::Zero } else { ExtentKind::Data };
        Extent { range: ByteRange::new(offset, end), kind }
    }
}

impl DiskState {
    /// What goes wrong here and now.
    pub(super) fn faults(&self, world: &World) -> Faults {
        self.faults.unwrap_or_else(|| world.faults())
    }

    /// How long a read of this range takes to fail; `None` = it need not.
    pub(super) fn fails_in_ns(&self, range: ByteRange) -> Option<u64> {
        self.bad.filter(|(bad, _)| !bad.intersect(range).is_empty()).map(|(_, takes_ns)| takes_ns)
    }

    /// Whether nothing comes back.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// A request has failed.
    pub(super) fn note_failure(&mut self, reads: bool, range: ByteRange, errno: i32) {
        self.failed.push(Failed { reads, range, errno });
    }

    /// When a request that is pushed now completes; takes its place in the queue.
    pub(super) fn completion_ns(&mut self, world: &World, transferred_bytes: u64) -> u64 {
        let mut at_ns = world.now_ns();
        if self.rate > 0 {
            let service_ns = u128::from(transferred_bytes) * 1_000_000_000 / u128::from(self.rate);
            at_ns = at_ns.max(self.busy_until_ns);
            at_ns = at_ns.saturating_add(u64::try_from(service_ns).unwrap_or(u64::MAX));
            self.busy_until_ns = at_ns;
        }
        let spread_ns = if self.spread_ns == 0 { 0 } else { world.pick(self.spread_ns) };
        at_ns.saturating_add(self.min_ns + spread_ns)
    }

    /// Where a block lies.
    fn bytes_of(&self, number: usize) -> Range<usize> {
        let block = bytes_usize(BLOCK);
        (number * block).min(self.bytes.len())..((number + 1) * block).min(self.bytes.len())
    }

    /// Changes a part of one block. `hole`: the part is released; a block that is released as a whole becomes a hole.
    pub(super) fn change(&mut self, part: ByteRange, hole: bool, write: impl FnOnce(&mut [u8])) {
        let number = bytes_usize(part.start() / BLOCK);
        let block = self.bytes_of(number);
        self.cache.before_change(number, &self.bytes[block.clone()], self.holes[number]);
        let part = bytes_usize(part.start())..bytes_usize(part.end());
        let whole = part == block;
        write(&mut self.bytes[part]);
        self.holes[number] = hole && (whole || self.holes[number]);
    }

    /// A write of `range` has completed. A durable one needs no flush; one that failed is covered by none.
    pub(super) fn end_write(&mut self, range: ByteRange, done: bool, durable: bool) {
        self.writes += 1;
        let writes = self.writes;
        for block in blocks_of(range).filter(|_| done) {
            if durable {
                self.cache.make_durable(block);
            } else {
                self.cache.settle(block, writes);
            }
        }
    }

    /// A flush begins; returns how many writes it covers, and how much longer than another request it takes.
    pub(super) fn begin_flush(&mut self) -> (u64, u64) {
        self.cache.begin_flush();
        self.flushing += 1;
        (self.writes, self.flush_ns)
    }

    /// A flush has ended.
    pub(super) fn end_flush(&mut self, covered: u64, failed: bool) {
        self.flushing -= 1;
        self.cache.end_flush(covered, failed);
        if !failed {
            self.flushed = self.flushed.max(covered);
        }
    }
}
