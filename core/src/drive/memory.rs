//! The memory that a host registered with its drive, so that requests inside it are cheap.
//!
//! The list of regions is published as a whole: who changes it makes a new one and bumps the drive's generation, and each queue
//! reads it on its own thread when it finds the generation changed. A queue registers the regions with its own ring, in pieces no
//! larger than the kernel takes; which buffer each piece is, is decided here and is the same in every ring.
//!
//! Mapping and unmapping touch no ring and wait for nobody, so any thread may do both. Why a region that was unmapped is never used
//! again is in `in_use`. What this module keeps for that: a region has the number of the list that it first was in (`since`), a
//! request the number of the list that it was counted under, and a region that is younger than that is not used for it.
#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::in_use::{InUse, MAX_REGIONS, RegionSet};
use crate::buffer::{HostMemory, HostRegion};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::uring::MAX_BUFFER_BYTES;

/// Buffers of all regions together, in every ring: 4 TiB less one GiB, for 64 KiB of the kernel's memory in each.
pub(crate) const HOST_BUFFERS: u16 = 4095;

/// A region that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapped {
    /// Where it lies.
    pub(crate) region: HostRegion,
    /// Its place among the drive's regions, of [`MAX_REGIONS`].
    pub(crate) place: u8,
    /// The buffer of its first piece; the others follow.
    pub(crate) first: u16,
    /// The number of the list that it first was in.
    pub(crate) since: u64,
    /// Somebody is unmapping it: it is not to be used any more, unless that fails.
    leaving: bool,
}

impl Mapped {
    /// Its pieces, each with the buffer that it is.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u16, HostRegion)> {
        let region = self.region;
        let offsets = (0..region.len()).step_by(MAX_BUFFER_BYTES);
        (self.first..).zip(offsets.map(move |offset| region.part(offset, MAX_BUFFER_BYTES)))
    }

    /// How many pieces it has.
    fn count(&self) -> usize {
        pieces_of(self.region)
    }

    /// The piece that holds so many bytes at an address, if one does.
    #[inline]
    fn piece(&self, start: usize, len: usize) -> Option<Piece> {
        let offset = start.checked_sub(self.region.start())?;
        let number = offset / MAX_BUFFER_BYTES;
        let fits =
            len > 0 && self.region.covers(start, len) && (offset + len - 1) / MAX_BUFFER_BYTES == number;
        let number = u16::try_from(number).ok().filter(|_| fits)?;
        Some(Piece { place: self.place, number, buffer: self.first + number })
    }
}

/// A piece of a region: what one buffer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// The region's place.
    pub(crate) place: u8,
    /// Its number in the region.
    pub(crate) number: u16,
    /// Its buffer.
    pub(crate) buffer: u16,
}

/// How many buffers a region needs.
fn pieces_of(region: HostRegion) -> usize {
    region.len().div_ceil(MAX_BUFFER_BYTES)
}

/// All regions of a drive at some time, in the order of their addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Regions {
    /// The number of this list.
    pub(crate) serial: u64,
    /// The regions.
    list: Vec<Mapped>,
    /// Where each of them ends: what is searched, and fits in a few cache lines.
    ends: Vec<usize>,
}

impl Regions {
    /// The regions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mapped> {
        self.list.iter()
    }

    /// Whether a region is still in it.
    pub(crate) fn has(&self, mapped: &Mapped) -> bool {
        self.list.get(self.behind(mapped.region.start())).is_some_and(|m| m.since == mapped.since)
    }

    /// The regions that have a byte of some memory, and where in the list the last of them was looked for.
    #[inline]
    pub(crate) fn touched(&self, memory: HostMemory) -> (RegionSet, usize) {
        let (mut set, mut at) = (RegionSet::default(), 0);
        if self.list.is_empty() {
            return (set, at);
        }
        for (start, len) in memory.extents().filter(|&(_, len)| len > 0) {
            at = self.behind(start);
            for mapped in &self.list[at..] {
                if mapped.region.start() >= start.saturating_add(len) {
                    break;
                }
                set = set.with(mapped.place);
            }
        }
        (set, at)
    }

    /// The piece that holds all of some memory, for a request that was counted under the list `serial`. Where it was `at` then it
    /// most likely is now, and no search is needed: there is only one that covers the memory.
    #[inline]
    pub(crate) fn piece(&self, memory: HostMemory, serial: u64, at: usize) -> Option<Piece> {
        if self.list.is_empty() || memory.segments() != 1 {
            return None;
        }
        let (start, len) = memory.extents().next()?;
        let likely = self.list.get(at).filter(|mapped| mapped.region.covers(start, len));
        let mapped = likely.or_else(|| self.list.get(self.behind(start)))?;
        (!mapped.leaving && mapped.since <= serial).then(|| mapped.piece(start, len))?
    }

    /// The first region that ends behind an address.
    #[inline]
    fn behind(&self, address: usize) -> usize {
        self.ends.partition_point(|end| *end <= address)
    }

    /// With one region more.
    fn with(&self, region: HostRegion) -> Result<Self> {
        let (start, len) = (region.start(), region.len());
        let refuse = |kind, why: String| {
            let end = start.wrapping_add(len);
            let attempt = format!("map memory {start:#x}..{end:#x}");
            Err(Error::new(kind, attempt).because(why))
        };
        if region.is_empty() {
            return refuse(ErrorKind::InvalidArgument, "it is empty".to_owned());
        }
        let Some(end) = start.checked_add(len) else {
            return refuse(
                ErrorKind::InvalidArgument,
                "it wraps around the end of the address space".to_owned(),
            );
        };
        if start == 0 {
            return refuse(ErrorKind::InvalidArgument, "it begins at address 0".to_owned());
        }
        let at = self.behind(start);
        if let Some(other) = self.list.get(at).filter(|other| other.region.start() < end) {
            let (from, to) = (other.region.start(), other.region.end());
            let why = format!("{from:#x}..{to:#x} is mapped and overlaps it; unmap that first");
            return refuse(ErrorKind::AlreadyExists, why);
        }
        let mut taken = [false; MAX_REGIONS];
        self.list.iter().for_each(|m| taken[usize::from(m.place)] = true);
        let Some(place) = taken.iter().position(|taken| !taken).and_then(|place| u8::try_from(place).ok())
        else {
            let why = format!("{MAX_REGIONS} regions are mapped already; map larger ones, or unmap one");
            return refuse(ErrorKind::LimitReached, why);
        };
        let Some(first) = self.free_buffers(pieces_of(region)) else {
            let most = usize::from(HOST_BUFFERS) * (MAX_BUFFER_BYTES >> 30);
            let why = format!(
                "a drive maps {most} GiB at once at most; requests in memory that is not mapped go on"
            );
            return refuse(ErrorKind::LimitReached, why);
        };
        let since = self.serial + 1;
        Ok(self.next(|list| list.insert(at, Mapped { region, place, first, since, leaving: false })))
    }

    /// So many buffers in a row that no region has.
    fn free_buffers(&self, count: usize) -> Option<u16> {
        let mut taken: Vec<_> = self.list.iter().map(|m| (usize::from(m.first), m.count())).collect();
        taken.sort_unstable();
        let mut free = 0;
        for (first, pieces) in taken {
            if first >= free + count {
                break;
            }
            free = first + pieces;
        }
        u16::try_from(free).ok().filter(|_| free + count <= usize::from(HOST_BUFFERS))
    }

    /// The region that is exactly this one.
    fn find(&self, ptr: *const u8, len: usize) -> Result<Mapped> {
        let found = self.list.get(self.behind(ptr.addr()));
        found
            .filter(|m| m.region.start() == ptr.addr() && m.region.len() == len)
            .copied()
            .ok_or_else(|| refuse_unmap(ptr.addr(), len, ErrorKind::NotFound, "no such region is mapped"))
    }

    /// The same list, with one region said to be leaving or not.
    fn with_leaving(&self, place: u8, leaving: bool) -> Self {
        self.next(|list| list.iter_mut().filter(|m| m.place == place).for_each(|m| m.leaving = leaving))
    }

    /// Without a region.
    fn without(&self, place: u8) -> Self {
        self.next(|list| list.retain(|m| m.place != place))
    }

    /// The next list, with a change.
    fn next(&self, change: impl FnOnce(&mut Vec<Mapped>)) -> Self {
        let mut list = self.list.clone();
        change(&mut list);
        let ends = list.iter().map(|m| m.region.end()).collect();
        Self { serial: self.serial + 1, list, ends }
    }
}

/// Why memory cannot be unmapped.
fn refuse_unmap(start: usize, len: usize, kind: ErrorKind, why: &'static str) -> Error {
    let end = start.wrapping_add(len);
    Error::new(kind, format!("unmap memory {start:#x}..{end:#x}")).because(why)
}

/// The regions of a drive, and who may be using them.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What is mapped now.
    regions: ArcSwap<Regions>,
    /// The counters of every queue, also of those that are gone with requests that may still be carried out. The lock of all
    /// changes.
    queues: Mutex<Vec<Arc<InUse>>>,
}

impl Memory {
    /// What is mapped now.
    pub(crate) fn regions(&self) -> Arc<Regions> {
        self.regions.load_full()
    }

    /// A queue begins, with counters that only it writes.
    pub(crate) fn add_queue(&self) -> Arc<InUse> {
        let mut queues = self.lock();
        queues.retain(|queue| {
            let used = Arc::strong_count(queue) > 1;
            // What its queue counted last, before it let go, must be seen here.
            fence(Ordering::Acquire);
            used || !queue.is_idle()
        });
        let in_use = Arc::new(InUse::default());
        queues.push(Arc::clone(&in_use));
        in_use
    }

    /// Maps a region; then `changed` is told.
    pub(crate) fn map(&self, region: HostRegion, changed: impl FnOnce()) -> Result<()> {
        let _queues = self.lock();
        self.regions.store(Arc::new(self.regions.load().with(region)?));
        changed();
        Ok(())
    }

    /// Unmaps a region. `hint` makes queues look again when they are turned, `changed` also wakes them.
    pub(crate) fn unmap(
        &self,
        ptr: *const u8,
        len: usize,
        hint: impl FnOnce(),
        changed: impl FnOnce(),
    ) -> Result<()> {
        let queues = self.lock();
        let before = self.regions.load_full();
        let place = before.find(ptr, len)?.place;
        let busy = || {
            let why = "a request that uses it is under way on a queue of the drive; wait for its completion";
            Err(refuse_unmap(ptr.addr(), len, ErrorKind::Busy, why))
        };
        let in_use = || queues.iter().any(|queue| queue.uses(place));
        if in_use() {
            return busy();
        }
        let leaving = before.with_leaving(place, true);
        let (back, gone) = (leaving.with_leaving(place, false), leaving.without(place));
        self.regions.store(Arc::new(leaving));
        hint();
        // See `in_use`: from here on either a queue sees that the region is leaving, or we see its request.
        crate::bitmap::sync::full_fence();
        let is_busy = in_use();
        self.regions.store(Arc::new(if is_busy { back } else { gone }));
        changed();
        if is_busy { busy() } else { Ok(()) }
    }

    /// The lock; a panic under it leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<InUse>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = MAX_BUFFER_BYTES;

    /// The buffer for some memory of a request that was accepted under this list.
    fn buffer_of(regions: &Regions, memory: HostMemory, serial: u64) -> Option<u16> {
        regions.piece(memory, serial, 0).map(|piece| piece.buffer)
    }

    fn region(start: usize, len: usize) -> HostRegion {
        HostRegion::simulated(start, len)
    }

    fn memory(start: usize, len: usize) -> HostMemory {
        HostMemory::simulated(start, len)
    }

    fn map(memory: &Memory, start: usize, len: usize) -> Result<()> {
        memory.map(region(start, len), || {})
    }

    fn unmap(memory: &Memory, start: usize, len: usize) -> Result<()> {
        memory.unmap(std::ptr::without_provenance(start), len, || {}, || {})
    }

    /// A region that overlapped another would have two buffers for the same bytes, and unmapping one would leave the other.
    #[test]
    fn what_makes_no_sense_or_is_mapped_already_is_refused_with_both_ranges() {
        let all = Memory::default();
        map(&all, 0x10000, 0x1000).unwrap();
        for (start, len) in [(0x10000, 0x1000), (0xf001, 0x1000), (0x10fff, 1), (0x1000, GIB), (0x10800, 1)] {
            let error = map(&all, start, len).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert!(text.contains("0x10000..0x11000") && text.contains(&format!("{start:#x}..")), "{text}");
        }
        for (start, len) in [(0x20000, 0), (usize::MAX - 10, 20), (0, 4096)] {
            assert_eq!(map(&all, start, len).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        map(&all, 0x11000, 1).unwrap();
        map(&all, 0xf000, 0x1000).unwrap();
        for (start, len) in [(0x10000, 0x800), (0x10001, 0xfff), (0x30000, 0x1000)] {
            assert_eq!(unmap(&all, start, len).unwrap_err().kind(), ErrorKind::NotFound);
        }
        unmap(&all, 0x10000, 0x1000).unwrap();
        assert_eq!(unmap(&all, 0x10000, 0x1000).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn regions_and_buffers_are_bounded_and_come_back() {
        let all = Memory::default();
        (0..MAX_REGIONS).for_each(|n| map(&all, (n + 1) << 20, 4096).unwrap());
        assert_eq!(map(&all, 1 << 40, 4096).unwrap_err().kind(), ErrorKind::LimitReached);
        unmap(&all, 5 << 20, 4096).unwrap();
        map(&all, 1 << 40, 3 * GIB).unwrap();
        let all = Memory::default();
        map(&all, 1 << 40, 4000 * GIB).unwrap();
        assert_eq!(map(&all, 1 << 45, 96 * GIB).unwrap_err().kind(), ErrorKind::LimitReached);
        map(&all, 1 << 45, 95 * GIB).unwrap();
        unmap(&all, 1 << 40, 4000 * GIB).unwrap();
        map(&all, 1 << 43, 4000 * GIB).unwrap();
        let mut buffers: Vec<_> = all.regions().iter().flat_map(Mapped::pieces).map(|(b, _)| b).collect();
        buffers.sort_unstable();
        assert_eq!(buffers, (0..4095).collect::<Vec<_>>());
    }

    /// A request over the border of two buffers that named one of them would fail.
    #[test]
    fn a_request_has_a_buffer_only_if_that_holds_all_of_it() {
        let all = Memory::default();
        map(&all, 0x1000, 2 * GIB + 0x1000).unwrap();
        let regions = all.regions();
        let pieces: Vec<_> = regions.iter().flat_map(Mapped::pieces).collect();
        let sizes: Vec<_> = pieces.iter().map(|(buffer, piece)| (*buffer, piece.len())).collect();
        assert_eq!(sizes, [(0, GIB), (1, GIB), (2, 0x1000)]);
        for (start, len, buffer) in [
            (0x1000, 4096, Some(0)),
            (0xfff, 4096, None),
            (GIB, 4096, Some(0)),
            (GIB + 0x800, 4096, None),
            (GIB + 0x1000, 4096, Some(1)),
            (0x1000, GIB, Some(0)),
            (0x1000, GIB + 1, None),
            (2 * GIB + 0x1000, 4096, Some(2)),
            (2 * GIB + 0x1001, 4096, None),
            (3 * GIB, 4096, None),
            (0x2000, 0, None),
        ] {
            assert_eq!(buffer_of(&regions, memory(start, len), regions.serial), buffer, "{start:#x} {len}");
            let touches = len > 0 && start < 2 * GIB + 0x2000 && start + len > 0x1000;
            assert_eq!(!regions.touched(memory(start, len)).0.is_empty(), touches, "{start:#x} {len}");
            for (buffer, piece) in
                pieces.iter().filter(|(b, _)| Some(*b) == buffer_of(&regions, memory(start, len), 9))
            {
                assert!(piece.covers(start, len), "buffer {buffer}");
            }
        }
    }

    /// One that named the buffer of a neighbour would move the wrong memory.
    #[test]
    fn a_buffer_is_found_wherever_in_the_list_it_was_looked_for_before() {
        let all = Memory::default();
        (0..MAX_REGIONS).rev().for_each(|n| map(&all, (n + 1) << 20, 0x10000).unwrap());
        let before = all.regions();
        (0..MAX_REGIONS).step_by(3).for_each(|n| unmap(&all, (n + 1) << 20, 0x10000).unwrap());
        let after = all.regions();
        for n in 0..MAX_REGIONS {
            let inside = memory((n + 1) << 20, 4096);
            let (set, at) = before.touched(inside);
            let piece = before.piece(inside, before.serial, at).unwrap();
            assert_eq!((at, set), (n, RegionSet::default().with(piece.place)));
            assert_eq!(usize::from(piece.buffer), MAX_REGIONS - 1 - n, "in the order of mapping");
            for at in [at, 0, 7, MAX_REGIONS] {
                assert_eq!(before.piece(inside, before.serial, at), Some(piece));
                assert_eq!(after.piece(inside, before.serial, at), (n % 3 > 0).then_some(piece));
            }
        }
    }

    /// Otherwise a request that was accepted before could be sent through a region that it was never counted for.
    #[test]
    fn a_region_is_not_used_for_requests_that_are_older_or_while_it_leaves() {
        let all = Memory::default();
        let old = all.regions().serial;
        map(&all, 0x1000, 0x1000).unwrap();
        let regions = all.regions();
        let inside = memory(0x1000, 512);
        assert_eq!((buffer_of(&regions, inside, old), buffer_of(&regions, inside, old + 1)), (None, Some(0)));
        let leaving = regions.with_leaving(0, true);
        assert_eq!(buffer_of(&leaving, inside, leaving.serial), None);
        assert!(!leaving.touched(inside).0.is_empty(), "it is counted all the same");
        let back = leaving.with_leaving(0, false);
        assert_eq!(buffer_of(&back, inside, old + 1), Some(0), "and is itself again when it stays");
        unmap(&all, 0x1000, 0x1000).unwrap();
        map(&all, 0x1000, 0x1000).unwrap();
        assert_eq!(buffer_of(&all.regions(), inside, old + 1), None, "another one at the same address");
    }

    #[test]
    fn a_region_in_use_is_busy_and_stays_as_it_was_also_when_that_shows_late() {
        let all = Memory::default();
        let (first, second) = (all.add_queue(), all.add_queue());
        map(&all, 0x1000, 0x1000).unwrap();
        map(&all, 0x3000, 0x1000).unwrap();
        let use_of = |address| all.regions().touched(memory(address, 512)).0;
        second.begin(use_of(0x3000));
        unmap(&all, 0x1000, 0x1000).unwrap();
        assert_eq!(unmap(&all, 0x3000, 0x1000).unwrap_err().kind(), ErrorKind::Busy);
        second.end(use_of(0x3000));
        // Between the first look and the second.
        let set = use_of(0x3000);
        let (late, told) = (|| first.begin(set), std::cell::Cell::new(0));
        let error =
            all.unmap(std::ptr::without_provenance(0x3000), 0x1000, late, || told.set(1)).unwrap_err();
        assert_eq!((error.kind(), told.get()), (ErrorKind::Busy, 1));
        let regions = all.regions();
        assert!(buffer_of(&regions, memory(0x3000, 512), regions.serial).is_some());
        // A queue that is gone with a request that may still be carried out keeps it for ever.
        drop(first);
        drop(all.add_queue());
        assert_eq!(unmap(&all, 0x3000, 0x1000).unwrap_err().kind(), ErrorKind::Busy);
    }
}
