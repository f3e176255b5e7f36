//! How requests must look: alignment, and the largest request that the kernel does not split.
//!
//! A request to a block device that has to be split cannot be submitted without waiting, so it goes to a kernel worker
//! thread and costs several times as much. What fits depends on the memory: a queue takes at most `max_segments` pieces
//! of physically contiguous memory, and a piece has at most `max_segment_size` bytes. Scattered 4 KiB pages are a piece
//! each; huge pages are 2 MiB in one. Hence two limits. Requests to a file on a file system are split without waiting,
//! so only a common-sense bound applies to them.
//!
//! Alignment is asked for, never tried out: a file system may accept an unaligned request to a hole and refuse the same
//! to data. Where nothing is reported, 4096 is assumed, which every device in use accepts.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, ioctl_blkpbszget, ioctl_blksszget, major, statx};

use super::filesystem::FileSystem;
use super::{DeviceKind, FileId, sysfs};
use crate::units::{KIB, MIB};

/// A page of scattered memory.
pub(super) const PAGE_BYTES: u64 = 4 * KIB;
/// A huge page: the most that is contiguous for certain in our windows.
pub(super) const HUGE_PAGE_BYTES: u64 = 2 * MIB;
/// `BIO_MAX_VECS`: one request holds at most 256 pieces of memory, whatever the device takes.
pub(super) const BIO_MAX_PIECES: u64 = 256;
/// Assumed where nothing is reported.
const ASSUMED_ALIGN_BYTES: u64 = 4096;
/// The sector that file systems without any alignment rule are given.
const SECTOR_BYTES: u64 = 512;
/// The largest request to a file; see the head of this file.
const FILE_REQUEST_BYTES: u64 = MIB;
/// The largest request to a block device that says nothing of its queue: what every driver takes.
const UNKNOWN_QUEUE_BYTES: u64 = 128 * KIB;

/// Where the alignment was learnt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AlignmentOrigin {
    /// The kernel reported it for direct I/O (`statx`, since Linux 6.1).
    Reported,
    /// The sector size of the block device.
    SectorSize,
    /// Nothing was reported, so 4096 was assumed.
    Assumed,
    /// Requests go through memory (tmpfs, or no `O_DIRECT`), so any alignment would do.
    NotNeeded,
}

/// How requests to a device must look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The unit of offsets and lengths: every request and the size of a target are multiples of it.
    pub logical_block_bytes: u64,
    /// The unit that the device writes without reading first.
    pub physical_block_bytes: u64,
    /// What the address of a buffer must be a multiple of.
    pub memory_align_bytes: u64,
    /// What the offset and length of a request must be a multiple of.
    pub offset_align_bytes: u64,
    /// The largest request that is not split, for memory in huge pages.
    pub max_request_bytes: u64,
    /// The largest request that is not split, for memory in scattered 4 KiB pages.
    pub max_request_scattered_bytes: u64,
    /// Where the alignment was learnt.
    pub alignment_origin: AlignmentOrigin,
    /// Whether a write that asks to be durable at its end is. Not on FUSE, where Linux forgets the wish when the write is direct
    /// and asynchronous (met on 6.18: `RWF_DSYNC` through io_uring or aio sends no `FUSE_FSYNC`, through pwritev2 it does).
    pub writes_through: bool,
    /// The queue's own numbers, of the whole disk; for a file, of the disk under its file system.
    pub queue: Option<QueueLimits>,
}

/// What sysfs says of a disk's queue. Values are as they are there: possibly 0, possibly absurd.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    /// The disk, `/dev/vda`.
    pub disk: String,
    /// `max_sectors_kb`: the largest request, in KiB.
    pub max_sectors_kib: Option<u64>,
    /// `max_hw_sectors_kb`: the largest request that the hardware takes, in KiB.
    pub max_hw_sectors_kib: Option<u64>,
    /// `max_segments`: pieces of contiguous memory in one request.
    pub max_segments: Option<u64>,
    /// `max_segment_size`: bytes in one such piece.
    pub max_segment_bytes: Option<u64>,
    /// `chunk_sectors`: requests are split where they cross a multiple of this, in 512 byte sectors; 0 is never.
    pub chunk_sectors: Option<u64>,
    /// `nr_requests`: the depth of the queue.
    pub nr_requests: Option<u64>,
    /// `discard_max_bytes`: the largest discard; 0 is none.
    pub discard_max_bytes: Option<u64>,
    /// `write_zeroes_max_bytes`: the largest write-zeroes command; 0 is none.
    pub write_zeroes_max_bytes: Option<u64>,
    /// `logical_block_size`.
    pub logical_block_bytes: Option<u64>,
    /// `physical_block_size`.
    pub physical_block_bytes: Option<u64>,
    /// `io_poll`: completions can be polled for.
    pub io_poll: Option<bool>,
    /// `fua`: a write can be made durable on its own.
    pub fua: Option<bool>,
    /// `rotational`: a spinning disk, or one that does not say.
    pub rotational: Option<bool>,
    /// `write_cache`: `write back` needs flushes, `write through` does not.
    pub write_cache: Option<String>,
    /// `scheduler`: the one in brackets is in use.
    pub scheduler: Option<String>,
}

impl QueueLimits {
    /// Reads the queue of the disk in a sysfs directory.
    fn read(disk: String, directory: &Path) -> Option<Self> {
        let queue = directory.join("queue");
        if !queue.is_dir() {
            return None;
        }
        let number = |entry: &str| sysfs::number::<u64>(&queue.join(entry));
        let flag = |entry: &str| number(entry).map(|value| value != 0);
        Some(Self {
            disk,
            max_sectors_kib: number("max_sectors_kb"),
            max_hw_sectors_kib: number("max_hw_sectors_kb"),
            max_segments: number("max_segments"),
            max_segment_bytes: number("max_segment_size"),
            chunk_sectors: number("chunk_sectors"),
            nr_requests: number("nr_requests"),
            discard_max_bytes: number("discard_max_bytes"),
            write_zeroes_max_bytes: number("write_zeroes_max_bytes"),
            logical_block_bytes: number("logical_block_size"),
            physical_block_bytes: number("physical_block_size"),
            io_poll: flag("io_poll"),
            fua: flag("fua"),
            rotational: flag("rotational"),
            write_cache: sysfs::text(&queue.join("write_cache")),
            scheduler: sysfs::text(&queue.join("scheduler")),
        })
    }

    /// The largest request that is not split, if memory comes in contiguous pieces of `piece_bytes`.
    fn unsplit_bytes(&self, piece_bytes: u64) -> u64 {
        // 0 in an entry means that it says nothing, not that nothing fits.
        let said = |value: Option<u64>| value.filter(|v| *v > 0).unwrap_or(u64::MAX);
        let by_size = said(self.max_sectors_kib).saturating_mul(KIB);
        let by_chunk = said(self.chunk_sectors).saturating_mul(sysfs::SYSFS_SECTOR_BYTES);
        let segment = piece_bytes.min(said(self.max_segment_bytes));
        let by_segments = said(self.max_segments).saturating_mul(segment);
        // A request holds 256 pieces before the device is even asked.
        let by_pieces = BIO_MAX_PIECES * piece_bytes;
        by_size.min(by_chunk).min(by_segments).min(by_pieces)
    }
}

/// Alignment as learnt from one place.
struct Alignment {
    /// Of buffers.
    memory: u64,
    /// Of offsets and lengths.
    offset: u64,
    /// From where.
    origin: AlignmentOrigin,
}

/// Finds the limits of an opened device.
pub(super) fn of(
    fd: BorrowedFd<'_>,
    id: FileId,
    kind: DeviceKind,
    file_system: FileSystem,
    direct: bool,
) -> Limits {
    let disk_under = match kind {
        DeviceKind::BlockDevice => Some(id.rdev),
        DeviceKind::RegularFile => (major(id.dev) != 0).then_some(id.dev),
    };
    let queue = disk_under.and_then(|rdev| {
        let location = sysfs::locate(rdev);
        QueueLimits::read(sysfs::device_name(location.disk), location.directory.as_deref()?)
    });
    let sector = match kind {
        DeviceKind::BlockDevice => ioctl_blksszget(fd).ok().map(u64::from).filter(|b| b.is_power_of_two()),
        DeviceKind::RegularFile => None,
    };
    let alignment = alignment(fd, sector, direct && !file_system.is_tmpfs());
    let logical = sector.unwrap_or(0).max(alignment.offset);
    let physical = match kind {
        DeviceKind::BlockDevice => ioctl_blkpbszget(fd).ok().map(u64::from),
        DeviceKind::RegularFile => queue.as_ref().and_then(|q| q.physical_block_bytes),
    };
    let physical = physical.filter(|b| b.is_power_of_two()).unwrap_or(0).max(logical);
    let largest = |piece_bytes: u64| {
        let bytes = match (kind, &queue) {
            (DeviceKind::RegularFile, _) => FILE_REQUEST_BYTES,
            (DeviceKind::BlockDevice, Some(queue)) => queue.unsplit_bytes(piece_bytes),
            (DeviceKind::BlockDevice, None) => UNKNOWN_QUEUE_BYTES,
        };
        floor_to_block(bytes, logical, physical)
    };
    Limits {
        logical_block_bytes: logical,
        physical_block_bytes: physical,
        memory_align_bytes: alignment.memory,
        offset_align_bytes: alignment.offset.max(logical),
        max_request_bytes: largest(HUGE_PAGE_BYTES),
        max_request_scattered_bytes: largest(PAGE_BYTES),
        alignment_origin: alignment.origin,
        writes_through: file_system.writes_through(),
        queue,
    }
}

/// Rounds a request size down so that neighbours start on a block; never below one.
fn floor_to_block(bytes: u64, logical: u64, physical: u64) -> u64 {
    let block = if bytes >= physical { physical } else { logical };
    (bytes - bytes % block).max(logical)
}

/// Asks for the alignment that I/O needs, if it is `direct` and the file system does not ignore that.
fn alignment(fd: BorrowedFd<'_>, sector: Option<u64>, direct: bool) -> Alignment {
    let same = |bytes, origin| Alignment { memory: bytes, offset: bytes, origin };
    if let Some((memory, offset)) = reported_alignment(fd) {
        return Alignment { memory, offset, origin: AlignmentOrigin::Reported };
    }
    match sector {
        // Older kernels want buffers aligned like offsets.
        Some(bytes) => same(bytes, AlignmentOrigin::SectorSize),
        None if !direct => same(SECTOR_BYTES, AlignmentOrigin::NotNeeded),
        None => same(ASSUMED_ALIGN_BYTES, AlignmentOrigin::Assumed),
    }
}

/// What `statx` reports, if it does and it makes sense. Both zero means that direct I/O is not possible on this file.
fn reported_alignment(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let answer = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if answer.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let (memory, offset) = (u64::from(answer.stx_dio_mem_align), u64::from(answer.stx_dio_offset_align));
    (memory.is_power_of_two() && offset.is_power_of_two()).then(|| (memory, offset.max(SECTOR_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(kib: u64, segments: u64, segment_bytes: u64) -> QueueLimits {
        QueueLimits {
            max_sectors_kib: Some(kib),
            max_segments: Some(segments),
            max_segment_bytes: Some(segment_bytes),
            ..QueueLimits::default()
        }
    }

    #[test]
    fn huge_pages_lift_the_segment_limit_and_scattered_pages_meet_it() {
        // A loop device: 1280 KiB in at most 128 pieces.
        let q = queue(1280, 128, u64::from(u32::MAX));
        assert_eq!(q.unsplit_bytes(HUGE_PAGE_BYTES), 1280 * KIB);
        assert_eq!(q.unsplit_bytes(PAGE_BYTES), 512 * KIB);
        // virtio: 254 pieces do not make 1 MiB of scattered pages.
        assert_eq!(queue(4096, 254, u64::from(u32::MAX)).unsplit_bytes(PAGE_BYTES), 254 * 4 * KIB);
        // Small segments count even in huge pages.
        assert_eq!(queue(4096, 16, 65536).unsplit_bytes(HUGE_PAGE_BYTES), MIB);
        // One request holds 256 pages.
        assert_eq!(queue(8192, 4096, 65536).unsplit_bytes(PAGE_BYTES), MIB);
    }

    #[test]
    fn entries_that_say_nothing_do_not_limit() {
        let silent = QueueLimits::default();
        assert_eq!(silent.unsplit_bytes(PAGE_BYTES), MIB);
        assert_eq!(queue(0, 0, 0).unsplit_bytes(PAGE_BYTES), MIB);
        assert_eq!(queue(u64::MAX, u64::MAX, u64::MAX).unsplit_bytes(PAGE_BYTES), MIB);
        let chunked = QueueLimits { chunk_sectors: Some(256), ..queue(1280, 128, 65536) };
        assert_eq!(chunked.unsplit_bytes(HUGE_PAGE_BYTES), 128 * KIB);
    }

    #[test]
    fn a_request_is_whole_blocks_and_at_least_one() {
        assert_eq!(floor_to_block(254 * 4096 + 100, 512, 4096), 254 * 4096);
        assert_eq!(floor_to_block(3000, 512, 4096), 2560);
        assert_eq!(floor_to_block(100, 4096, 4096), 4096);
        assert_eq!(floor_to_block(0, 512, 512), 512);
    }
}
