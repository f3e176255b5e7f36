//! A disk in memory, with everything about it that may go wrong.
//!
//! A disk made by [`SimDisk::with_cache`] has a volatile write cache: what was written is read back at once, and survives a
//! [`crash`](SimDisk::crash) for certain only if it was written through, or had reached the disk before a flush began that
//! succeeded. What is neither may survive or not, block by block, as on a real disk.

use std::sync::{Arc, Mutex};

use super::{BLOCK, Faults, World, blocks_of, lock};
use crate::device::{Extent, ExtentKind};
use crate::units::{ByteRange, bytes_u64, bytes_usize};

/// The shortest time that a request takes unless a disk says otherwise.
const MIN_NS: u64 = 1_000;
/// How much longer it may take.
const SPREAD_NS: u64 = 400_000;

/// A disk in memory; see the module.
#[derive(Debug)]
pub struct SimDisk {
    /// Everything that changes.
    pub(super) state: Mutex<DiskState>,
}

/// The inside of a [`SimDisk`].
#[derive(Debug)]
pub(super) struct DiskState {
    /// What a read sees.
    pub(super) bytes: Vec<u8>,
    /// Blocks that were never written or were punched.
    pub(super) holes: Vec<bool>,
    /// How many writes and zeroings it took.
    pub(super) writes: u64,
    /// How many of them the last successful flush began after.
    pub(super) flushed: u64,
    /// The volatile cache.
    cache: Option<Cache>,
    /// What goes wrong here, instead of what goes wrong in the world.
    pub(super) faults: Option<Faults>,
    /// The shortest time that a request takes, and how much longer it may take.
    latency_ns: (u64, u64),
    /// Bytes per second at most; 0 = no limit.
    rate_bytes_per_s: u64,
    /// With such a limit: when the last request that was taken is through.
    busy_until_ns: u64,
    /// It does not answer.
    pub(super) dead: bool,
}

/// What a power failure leaves.
#[derive(Debug)]
struct Cache {
    /// What is on the medium.
    durable: Vec<u8>,
    /// The last write of each block.
    written: Vec<u64>,
    /// The write of each block that is on the medium.
    kept: Vec<u64>,
    /// Counts writes of blocks.
    version: u64,
}

/// What was in the cache when a flush began: block, its last write, its bytes.
#[derive(Debug)]
pub(super) struct FlushPoint(Vec<(usize, u64, Vec<u8>)>);

impl Cache {
    /// Blocks that a power failure may lose.
    fn volatile(&self) -> impl Iterator<Item = usize> {
        (0..self.written.len()).filter(|&block| self.written[block] != self.kept[block])
    }
}

/// The bytes of a block of a disk of `len` bytes.
fn bytes_of(block: usize, len: usize) -> std::ops::Range<usize> {
    let size = bytes_usize(BLOCK);
    (block * size).min(len)..((block + 1) * size).min(len)
}

impl DiskState {
    /// Notes that blocks were written, in the cache only.
    pub(super) fn touched(&mut self, range: ByteRange) {
        let Some(cache) = &mut self.cache else { return };
        for block in blocks_of(range) {
            cache.version += 1;
            cache.written[block] = cache.version;
        }
    }

    /// Makes a range durable as it is now.
    pub(super) fn write_through(&mut self, range: ByteRange) {
        let range = bytes_usize(range.start())..bytes_usize(range.end()).min(self.bytes.len());
        if let Some(cache) = &mut self.cache {
            cache.durable[range.clone()].copy_from_slice(&self.bytes[range]);
        }
    }

    /// A flush begins.
    pub(super) fn flush_point(&self) -> FlushPoint {
        let Some(cache) = &self.cache else { return FlushPoint(Vec::new()) };
        let len = self.bytes.len();
        let block = |block| (block, cache.written[block], self.bytes[bytes_of(block, len)].to_vec());
        FlushPoint(cache.volatile().map(block).collect())
    }

    /// It has succeeded.
    pub(super) fn flushed_at(&mut self, point: FlushPoint) {
        let len = self.bytes.len();
        let Some(cache) = &mut self.cache else { return };
        for (block, version, bytes) in point.0 {
            let range = bytes_of(block, len);
            if cache.kept[block] < version && range.len() == bytes.len() {
                cache.kept[block] = version;
                cache.durable[range].copy_from_slice(&bytes);
            }
        }
    }

    /// When a request that is sent now will be through.
    pub(super) fn completes_at(&mut self, world: &World, bytes: u64) -> u64 {
        let (min_ns, spread_ns) = self.latency_ns;
        let starts_ns = world.now_ns().max(self.busy_until_ns);
        if self.rate_bytes_per_s > 0 {
            self.busy_until_ns = starts_ns + bytes.saturating_mul(1_000_000_000) / self.rate_bytes_per_s;
        }
        starts_ns.max(self.busy_until_ns) + min_ns + world.pick(spread_ns.max(1))
    }
}

impl SimDisk {
    /// A disk that is one hole, without a cache.
    #[must_use]
    pub fn new(bytes: u64) -> Arc<Self> {
        Self::build(bytes, None)
    }

    /// A disk that is one hole, with a volatile cache.
    #[must_use]
    pub fn with_cache(bytes: u64) -> Arc<Self> {
        let blocks = bytes_usize(bytes.div_ceil(BLOCK));
        let durable = vec![0; bytes_usize(bytes)];
        Self::build(
            bytes,
            Some(Cache { durable, written: vec![0; blocks], kept: vec![0; blocks], version: 0 }),
        )
    }

    /// A disk that is one hole.
    fn build(bytes: u64, cache: Option<Cache>) -> Arc<Self> {
        let state = DiskState {
            bytes: vec![0; bytes_usize(bytes)],
            holes: vec![true; bytes_usize(bytes.div_ceil(BLOCK))],
            writes: 0,
            flushed: 0,
            cache,
            faults: None,
            latency_ns: (MIN_NS, SPREAD_NS),
            rate_bytes_per_s: 0,
            busy_until_ns: 0,
            dead: false,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Writes as somebody outside the simulation: at once, and durable.
    pub fn poke(&self, at: u64, data: &[u8]) {
        let touched = ByteRange::at(at, bytes_u64(data.len()));
        self.write(at, data);
        let mut state = lock(&self.state);
        let point = state.flush_point();
        state.flushed_at(point);
        state.write_through(touched);
    }

    /// Writes as a host that does its own I/O: at once, into the cache.
    pub fn write(&self, at: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        let start = bytes_usize(at);
        state.bytes[start..start + data.len()].copy_from_slice(data);
        let touched = ByteRange::at(at, bytes_u64(data.len()));
        state.holes[blocks_of(touched)].fill(false);
        state.touched(touched);
    }

    /// Flushes as a host that does its own I/O: at once.
    pub fn flush(&self) {
        let mut state = lock(&self.state);
        let point = state.flush_point();
        state.flushed_at(point);
    }

    /// Its content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.look(<[u8]>::to_vec)
    }

    /// Looks at its content.
    pub fn look<R>(&self, at: impl FnOnce(&[u8]) -> R) -> R {
        at(&lock(&self.state).bytes)
    }

    /// What a power failure leaves for certain.
    #[must_use]
    pub fn durable(&self) -> Vec<u8> {
        let state = lock(&self.state);
        state.cache.as_ref().map_or_else(|| state.bytes.clone(), |cache| cache.durable.clone())
    }

    /// Power failure: of what was not flushed, some blocks are lost. Requests that are under way are the ring's affair;
    /// whoever calls this turns no ring any more.
    pub fn crash(&self, world: &World) {
        let mut state = lock(&self.state);
        let DiskState { bytes, cache: Some(cache), .. } = &mut *state else { return };
        let len = bytes.len();
        for block in 0..cache.written.len() {
            let range = bytes_of(block, len);
            if cache.written[block] != cache.kept[block] && world.pick(2) == 0 {
                bytes[range.clone()].copy_from_slice(&cache.durable[range]);
            } else {
                cache.durable[range.clone()].copy_from_slice(&bytes[range]);
            }
            cache.kept[block] = cache.written[block];
        }
    }

    /// Whether the block at `offset` was never written or was punched.
    #[must_use]
    pub fn is_hole(&self, offset: u64) -> bool {
        lock(&self.state).holes.get(bytes_usize(offset / BLOCK)).copied().unwrap_or(true)
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.look(|bytes| bytes_u64(bytes.len()))
    }

    /// How many writes and zeroings requests made.
    #[must_use]
    pub fn writes(&self) -> u64 {
        lock(&self.state).writes
    }

    /// How many writes the last flush covers.
    #[must_use]
    pub fn flushed(&self) -> u64 {
        lock(&self.state).flushed
    }

    /// What goes wrong on this disk, whatever the world says; `None` = as the world says.
    pub fn set_faults(&self, faults: Option<Faults>) {
        lock(&self.state).faults = faults;
    }

    /// How long requests take: so long at least, and up to `spread_ns` longer.
    pub fn set_latency(&self, min_ns: u64, spread_ns: u64) {
        lock(&self.state).latency_ns = (min_ns, spread_ns);
    }

    /// How many bytes go through in a second; requests queue behind each other. 0 = no limit.
    pub fn set_rate(&self, bytes_per_s: u64) {
        lock(&self.state).rate_bytes_per_s = bytes_per_s;
    }

    /// A dead disk answers nothing, until it lives again and answers everything.
    pub fn set_dead(&self, dead: bool) {
        lock(&self.state).dead = dead;
    }

    /// Whether it is dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    /// Cuts the end off.
    pub fn shrink_to(&self, bytes: u64) {
        lock(&self.state).bytes.truncate(bytes_usize(bytes));
    }

    /// Block status.
    pub(super) fn status(&self, offset: u64) -> Extent {
        let state = lock(&self.state);
        let first = bytes_usize(offset / BLOCK);
        let hole = state.holes.get(first).copied().unwrap_or(true);
        let run = state.holes.iter().skip(first).take_while(|&&h| h == hole).count();
        let end = bytes_u64(first + run) * BLOCK;
        let end = end.min(bytes_u64(state.bytes.len())).max(offset + 1);
        let kind = if hole { ExtentKind::Zero } else { ExtentKind::Data };
        Extent { range: ByteRange::new(offset, end), kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flush that misses what was written before it, or keeps what was not flushed for certain, would hide lost writes.
    #[test]
    fn what_was_flushed_survives_and_what_was_not_may_be_lost() {
        let world = World::new(7, Faults::default());
        let disk = SimDisk::with_cache(64 * BLOCK);
        disk.write(0, &[1; 32 * 4096]);
        let point = lock(&disk.state).flush_point();
        // Written after the flush began, so it is not covered.
        disk.write(0, &[2; 64 * 4096]);
        lock(&disk.state).flushed_at(point);
        assert!(disk.durable()[..32 * 4096] == [1; 32 * 4096]);
        disk.crash(&world);
        let (kept, lost): (Vec<_>, Vec<_>) = (0..64).partition(|&block| disk.look(|b| b[block * 4096] == 2));
        assert!(kept.len() > 10 && lost.len() > 10, "{kept:?}");
        assert!(lost.iter().all(|&block| disk.look(|b| b[block * 4096] == u8::from(block < 32))));
        assert!(disk.durable() == disk.content(), "after a crash nothing is in the cache");
    }

    /// An older flush that ends after a newer one must not bring old data back.
    #[test]
    fn flushes_that_overlap_keep_the_newer_data() {
        let disk = SimDisk::with_cache(BLOCK);
        disk.write(0, &[1; 4096]);
        let old = lock(&disk.state).flush_point();
        disk.write(0, &[2; 4096]);
        disk.flush();
        lock(&disk.state).flushed_at(old);
        assert!(disk.durable() == [2; 4096]);
    }
}
