//! Drives: disks as guests see them.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::os::fd::IntoRawFd;

use blkmirror_core::Error;
use blkmirror_core::drive::{Drive, LatencyCounts};

use crate::border::handle::{Health, borrow, close, create, object, with};
use crate::border::sized::{self, structure};
use crate::border::sum;
use crate::device::blkm_device;

/// A disk as a guest sees it. Queues, trackers, bitmaps and jobs hang on it; a completed mirror moves it to the target. Every
/// function that takes one may be called from any thread.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_drive {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    pub(crate) drive: Drive,
}
object!(blkm_drive);

/// How a drive is made. All zero (or NULL) is the default.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_drive_opts {
    /// sizeof(blkm_drive_opts).
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// What offsets and lengths of queued requests must be multiples of: the logical block that the guest is shown. A power of two,
    /// at least the device's blocks, and the size is a multiple of it. 0: the device's. Larger blocks let the drive move to a
    /// device that has such blocks; memory must be aligned to them then, too.
    pub align_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_drive_opts, first 56, reserved reserved);

/// The drive may not be written: its device was opened as a source. A pivot does not change it.
pub const BLKM_DRIVE_IS_READ_ONLY: u64 = 1;
/// A job runs on the drive now: from its start until it is concluded.
pub const BLKM_DRIVE_HAS_JOB: u64 = 2;

/// What a drive is.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_drive_info {
    /// Set by the caller: sizeof(blkm_drive_info).
    pub struct_size: usize,
    /// `BLKM_DRIVE_IS_*`, `BLKM_DRIVE_HAS_*`.
    pub flags: u64,
    /// Bytes of the drive.
    pub size_bytes: u64,
    /// What offsets and lengths of queued requests must be multiples of. A pivot does not change it.
    pub align_bytes: u64,
    /// What every address of a queued request's memory must be a multiple of, at least 512. Ask once, before the first job: a pivot
    /// may lower it, and queues in use keep the old one.
    pub memory_align_bytes: u64,
    /// How often the drive was moved to another device: 0 until the first pivot.
    pub device_number: u64,
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_drive_info, first 80);

/// How long requests took, in nanoseconds, from a histogram whose buckets are 3 % wide.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_latencies {
    /// Set by the caller: sizeof(blkm_latencies).
    pub struct_size: usize,
    /// How many requests were counted. Those that failed are not; of trackers one in eight or fewer is.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 90 of 100 took no longer.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p99_9_ns: u64,
    /// 9999 of 10,000; with fewer requests than that it is the longest.
    pub p99_99_ns: u64,
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_latencies, first 88);

/// The percentiles for C.
fn latencies_of(counts: &LatencyCounts) -> blkm_latencies {
    let p = counts.percentiles();
    blkm_latencies {
        struct_size: 0,
        count: counts.count(),
        p50_ns: p.p50_ns,
        p90_ns: p.p90_ns,
        p99_ns: p.p99_ns,
        p99_9_ns: p.p99_9_ns,
        p99_99_ns: p.p99_99_ns,
        reserved: [0; 4],
    }
}

/// Sets options to the defaults for the size that the caller's header has.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_opts_init(opts: *mut blkm_drive_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// Makes a drive on a device that was opened as a disk, or as a source for one that is only read. The drive keeps the device open
/// for itself. `opts` may be NULL. On success `*out` is the drive, to be closed with `blkm_drive_close`; else it is NULL.
///
/// Queues do not bounce: what is not aligned is refused. A host that shows its guest blocks of 512 bytes and may move it to a disk
/// with larger ones sets `align_bytes` to those and sees to the rest itself; it cannot be changed later. Nor can the size, which a
/// job goes by, too: for a disk that has grown, close the drive and all that hangs on it, look at the size with
/// `blkm_device_refresh_size`, and make them anew. After a pivot the drive's device is one that was opened as a target, of which no
/// drive is made: close all, that device as well, and open the disk anew by its path as `BLKM_ROLE_DISK`.
///
/// Returns 0, or -errno: `-EINVAL` if the blocks asked for are not possible, or for a device opened as a target; `-EBUSY` while
/// another drive or a job has the device. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_create(
    device: *mut blkm_device,
    opts: *const blkm_drive_opts,
    out: *mut *mut blkm_drive,
) -> c_int {
    let attempt = "make a drive";
    let make = || {
        // SAFETY: the caller's structure, as the header says.
        let opts = unsafe { sized::read(opts, attempt)? };
        sum::known_flags(opts.flags, 0, attempt)?;
        // SAFETY: the caller's handle, as the header says.
        let device = unsafe { borrow(device, attempt)? }.device.lend()?;
        let drive = match opts.align_bytes {
            0 => Drive::new(device)?,
            bytes => Drive::with_align_bytes(device, bytes)?,
        };
        Ok(blkm_drive { health: Health::new(), drive })
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Closes the caller's handle and sets `*drive` to NULL. NULL, and a pointer to NULL, are allowed. Queues, trackers, bitmaps and
/// jobs of the drive live on; its device is closed with the last of them. Threads: any, while no other call uses this handle. Since
/// 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_close(drive: *mut *mut blkm_drive) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(drive) }
}

/// Fills in what a drive is, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_get_info(drive: *mut blkm_drive, info: *mut blkm_drive_info) -> c_int {
    let attempt = "describe a drive";
    let body = |d: &blkm_drive| {
        let drive = &d.drive;
        let value = blkm_drive_info {
            struct_size: 0,
            flags: sum::flag(!drive.is_writable(), BLKM_DRIVE_IS_READ_ONLY)
                | sum::flag(drive.has_job(), BLKM_DRIVE_HAS_JOB),
            size_bytes: drive.size_bytes(),
            align_bytes: drive.align_bytes(),
            memory_align_bytes: drive.memory_align_bytes(),
            device_number: drive.device_number(),
            reserved: [0; 4],
        };
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(drive, attempt, body) }
}

/// A new descriptor of the device that the drive stands on now, for a host that does its own I/O (see `blkm_tracker_begin`). Fetch
/// it while a token of yours is under way, for the drive does not move then, and the token's `device_number` says which device it
/// is (c-examples/tracker.c); by a number that was read before, it may have moved in between.
///
/// It is the caller's to close, has `O_CLOEXEC` set, `O_DIRECT` where the device is `BLKM_DEVICE_IS_DIRECT`, and shares its file
/// position with the library: use `pread(2)` and its kin. It is a duplicate of the descriptor that the device is claimed by: a
/// block device that the drive has left stays claimed until you have closed every such descriptor of it, too.
///
/// Returns the descriptor, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_dup_fd(drive: *mut blkm_drive) -> c_int {
    let attempt = "duplicate the descriptor of a drive";
    let body = |d: &blkm_drive| {
        let fd = d.drive.device().as_fd().try_clone_to_owned().map_err(|e| Error::from_io(attempt, e))?;
        Ok(usize::try_from(fd.into_raw_fd()).unwrap_or(usize::MAX))
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(drive, attempt, body) }
}

/// What requests of the drive's queues and trackers took, since it was made: while no job ran, and while one did. Either may be
/// NULL.
///
/// Returns 0, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_drive_get_latencies(
    drive: *mut blkm_drive,
    without_job: *mut blkm_latencies,
    with_job: *mut blkm_latencies,
) -> c_int {
    let body = |d: &blkm_drive| {
        let counts = [d.drive.latencies_without_job(), d.drive.latencies_with_job()];
        // SAFETY: the caller's structures, as the header says.
        unsafe { put_latencies([without_job, with_job], &counts) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(drive, "read the latencies of a drive", body) }
}

/// Fills in those that are not NULL.
///
/// # Safety
/// As the header says of the structures.
pub(crate) unsafe fn put_latencies(
    into: [*mut blkm_latencies; 2],
    counts: &[LatencyCounts; 2],
) -> blkmirror_core::Result<()> {
    for (into, counts) in into.into_iter().zip(counts) {
        if !into.is_null() {
            // SAFETY: the caller's promise.
            unsafe { sized::write(into, latencies_of(counts), "read latencies")? };
        }
    }
    Ok(())
}
