//! What is known about a device, for people: each number with its origin, and what is off and why.
#![forbid(unsafe_code)]

use super::limits::{BIO_MAX_PIECES, HUGE_PAGE_BYTES, PAGE_BYTES};
use super::{AlignmentOrigin, Device, DeviceKind, QueueLimits};
use crate::units::format_size;

/// One thing that is known about a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detail {
    /// What: "largest request".
    pub name: &'static str,
    /// The value, ready to print.
    pub value: String,
    /// Where it comes from: a system call or a sysfs entry.
    pub origin: String,
    /// What it means, or why something is off; may be empty.
    pub note: String,
}

impl Detail {
    /// A detail without a note.
    fn new(name: &'static str, value: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { name, value: value.into(), origin: origin.into(), note: String::new() }
    }

    /// Adds the note.
    fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// Everything worth showing, in the order in which it is worth showing.
pub(super) fn details(device: &Device) -> Vec<Detail> {
    let mut all =
        vec![kind(device), Detail::new("size", bytes(device.size_bytes()), "lseek or fstat"), direct(device)];
    all.extend(alignment(device));
    all.extend(requests(device));
    if let Some(queue) = &device.limits().queue {
        all.extend(queue_details(queue));
    }
    all.push(block_status(device));
    all.extend(device.notes().iter().map(|note| Detail::new("note", "", "").note(note.clone())));
    all
}

/// Bytes exactly, and rounded for people where that is shorter.
fn bytes(n: u64) -> String {
    if n < 1024 { format!("{n} B") } else { format!("{n} B ({})", format_size(n)) }
}

/// Block device or file.
fn kind(device: &Device) -> Detail {
    let text = match device.kind() {
        DeviceKind::BlockDevice => "block device",
        DeviceKind::RegularFile => "regular file",
    };
    Detail::new("kind", text, "fstat")
}

/// Whether the page cache is bypassed.
fn direct(device: &Device) -> Detail {
    if device.is_direct() {
        Detail::new("direct I/O", "on", "open with O_DIRECT")
    } else {
        Detail::new("direct I/O", "off", "open with O_DIRECT")
            .note("refused here; requests go through the page cache and, for io_uring, through kernel worker threads")
    }
}

/// Blocks and alignments.
fn alignment(device: &Device) -> [Detail; 4] {
    let limits = device.limits();
    let (origin, note) = match limits.alignment_origin {
        AlignmentOrigin::Reported => ("statx STATX_DIOALIGN", ""),
        AlignmentOrigin::SectorSize => {
            ("BLKSSZGET", "the kernel reports no alignment for direct I/O (before Linux 6.1)")
        }
        AlignmentOrigin::Assumed => ("assumed", "the file system reports none, and trying out is not safe"),
        AlignmentOrigin::NotNeeded => ("none needed", "requests are copied through memory here"),
    };
    let (logical, physical) = match device.kind() {
        DeviceKind::BlockDevice => ("BLKSSZGET", "BLKPBSZGET"),
        DeviceKind::RegularFile => (origin, "sysfs, of the disk below"),
    };
    [
        Detail::new("logical block", bytes(limits.logical_block_bytes), logical),
        Detail::new("physical block", bytes(limits.physical_block_bytes), physical),
        Detail::new("memory alignment", bytes(limits.memory_align_bytes), origin).note(note),
        Detail::new("offset alignment", bytes(limits.offset_align_bytes), origin).note(note),
    ]
}

/// The two request limits.
fn requests(device: &Device) -> [Detail; 2] {
    let limits = device.limits();
    let (origin, why) = match (device.kind(), &limits.queue) {
        (DeviceKind::RegularFile, _) => {
            ("file system", "file systems split requests without a kernel worker thread")
        }
        (DeviceKind::BlockDevice, Some(_)) => {
            ("sysfs queue limits", "larger ones are split by a kernel worker thread, which costs more")
        }
        (DeviceKind::BlockDevice, None) => {
            ("assumed", "sysfs does not know this device; a size that every driver takes")
        }
    };
    let pages = |piece: u64| format!("for memory in pieces of {}; {why}", format_size(piece));
    [
        Detail::new("largest request", bytes(limits.max_request_bytes), origin).note(pages(HUGE_PAGE_BYTES)),
        Detail::new("largest request, scattered", bytes(limits.max_request_scattered_bytes), origin)
            .note(format!("{}; one request holds at most {BIO_MAX_PIECES} pieces", pages(PAGE_BYTES))),
    ]
}

/// The queue's own numbers; those that sysfs does not have are left out.
fn queue_details(queue: &QueueLimits) -> Vec<Detail> {
    let mut list = Vec::new();
    let mut add = |name, entry: &str, value: Option<String>, note: &str| {
        if let Some(value) = value {
            list.push(Detail::new(name, value, format!("{} queue/{entry}", queue.disk)).note(note));
        }
    };
    let plain = |value: Option<u64>| value.map(|n| n.to_string());
    let size = |value: Option<u64>| value.map(bytes);
    let on_off = |value: Option<bool>| value.map(|on| if on { "on" } else { "off" }.to_owned());
    let none = |value: Option<u64>, why: &'static str| if value == Some(0) { why } else { "" };
    add("request size", "max_sectors_kb", size(queue.max_sectors_kib.map(|n| n.saturating_mul(1024))), "");
    add(
        "request size, hardware",
        "max_hw_sectors_kb",
        size(queue.max_hw_sectors_kib.map(|n| n.saturating_mul(1024))),
        "max_sectors_kb can be raised to this",
    );
    add("segments", "max_segments", plain(queue.max_segments), "pieces of contiguous memory in one request");
    add("segment size", "max_segment_size", size(queue.max_segment_bytes), "");
    add(
        "chunk",
        "chunk_sectors",
        plain(queue.chunk_sectors.filter(|n| *n > 0)),
        "requests are split at multiples",
    );
    add("queue depth", "nr_requests", plain(queue.nr_requests), "");
    add(
        "discard",
        "discard_max_bytes",
        size(queue.discard_max_bytes),
        none(queue.discard_max_bytes, "off: the device cannot discard"),
    );
    add(
        "write zeroes",
        "write_zeroes_max_bytes",
        size(queue.write_zeroes_max_bytes),
        none(queue.write_zeroes_max_bytes, "off: the kernel writes pages of zeroes instead"),
    );
    add(
        "polled completions",
        "io_poll",
        on_off(queue.io_poll),
        if queue.io_poll == Some(false) { "off: the driver has no poll queues" } else { "" },
    );
    add(
        "FUA",
        "fua",
        on_off(queue.fua),
        if queue.fua == Some(false) { "off: durable writes need a flush" } else { "" },
    );
    add("rotational", "rotational", queue.rotational.map(|r| if r { "yes" } else { "no" }.to_owned()), "");
    add("write cache", "write_cache", queue.write_cache.clone(), "");
    add("scheduler", "scheduler", queue.scheduler.clone(), "");
    list
}

/// Whether holes can be told from data.
fn block_status(device: &Device) -> Detail {
    match device.kind() {
        DeviceKind::BlockDevice => Detail::new("block status", "all data", "a block device")
            .note("holes are not visible; zero detection looks into the data instead"),
        DeviceKind::RegularFile => match device.status(0) {
            Ok(_) if device.shared.no_status.load(std::sync::atomic::Ordering::Relaxed) => {
                Detail::new("block status", "off", "lseek SEEK_DATA")
                    .note("the file system cannot tell holes from data")
            }
            Ok(_) => Detail::new("block status", "on", "lseek SEEK_DATA"),
            Err(e) => Detail::new("block status", "off", "lseek SEEK_DATA").note(e.to_string()),
        },
    }
}
