//! Devices: opened block devices and files.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::os::fd::BorrowedFd;

use blkmirror_core::Result;
use blkmirror_core::device::{
    AlignmentOrigin, Device, DeviceKind, ExtentKind, Role, TargetOptions, ZeroMode,
};

use crate::border::handle::{Health, borrow, close, create, object, with};
use crate::border::sized::{self, structure};
use crate::border::{invalid, sum, text};

/// An opened block device or regular file (a raw image). Every function that takes one may be called from any thread.
///
/// A drive or a job that is given a device keeps it open for itself; the caller closes his handle whenever he likes.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_device {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    pub(crate) device: Device,
}
object!(blkm_device);

/// What a device is opened for.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_role = u32;
/// A guest's disk, to make a drive of: read and written, and held exclusively.
pub const BLKM_ROLE_DISK: blkm_role = 1;
/// The target of a job: read and written, and held exclusively.
pub const BLKM_ROLE_TARGET: blkm_role = 2;
/// The source of a copy, or a disk that is only read: opened read-only, without any lock.
pub const BLKM_ROLE_SOURCE: blkm_role = 3;

/// Take no exclusive hold: no `O_EXCL` on a block device, no lock on a file. For a host that holds it exclusively itself and hands
/// its descriptor over, or whose management sees to it that one process at a time writes. One that is mounted is refused all the
/// same.
pub const BLKM_DEVICE_F_ALLOW_SHARED: u64 = 1;

/// How a device is opened. All zero (or NULL) is the default.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_device_opts {
    /// sizeof(blkm_device_opts).
    pub struct_size: usize,
    /// `BLKM_DEVICE_F_*`.
    pub flags: u64,
    /// What error texts call a device that is opened by a descriptor; NULL: "fd N". Copied. UTF-8. One opened by its path is called
    /// that.
    pub name: *const c_char,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_device_opts, first 56, reserved reserved);

/// What a device is made of.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_device_kind = u32;
/// A block device.
pub const BLKM_DEVICE_BLOCK: blkm_device_kind = 1;
/// A regular file.
pub const BLKM_DEVICE_FILE: blkm_device_kind = 2;

/// Reads and writes bypass the page cache (`O_DIRECT`).
pub const BLKM_DEVICE_IS_DIRECT: u64 = 1;
/// All of it is known to read as zeroes now: a file that is one hole.
pub const BLKM_DEVICE_IS_ZERO: u64 = 2;
/// A write that asks to be durable (FUA) needs no flush after it.
pub const BLKM_DEVICE_HAS_FUA: u64 = 4;
/// Memory that is mapped with `blkm_mem_region_map` is pinned: none of it may be given back (QEMU: `ram_block_discard_disable`).
pub const BLKM_DEVICE_MAY_PIN: u64 = 8;
/// It is kept from others: a block device is claimed, a file is locked (`blkm_device_open`). Not so for a source, with
/// `BLKM_DEVICE_F_ALLOW_SHARED`, and on a file system without locks.
pub const BLKM_DEVICE_IS_LOCKED: u64 = 16;
/// Nobody says what this file system's direct I/O must be aligned to (`statx(2)`, since Linux 6.1), so 4096 is taken, which all
/// that we know are content with. Show the guest no smaller blocks.
pub const BLKM_DEVICE_IS_ALIGN_ASSUMED: u64 = 32;

/// What a device demands; sizes in bytes.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_device_info {
    /// Set by the caller: sizeof(blkm_device_info).
    pub struct_size: usize,
    /// `BLKM_DEVICE_IS_*`, `BLKM_DEVICE_HAS_*`, `BLKM_DEVICE_MAY_*`.
    pub flags: u64,
    /// Its size when it was last looked at.
    pub size_bytes: u64,
    /// What offset and length of a request must be multiples of.
    pub request_align_bytes: u64,
    /// What the address of a request's memory must be a multiple of.
    pub memory_align_bytes: u64,
    /// Its logical block.
    pub logical_block_bytes: u64,
    /// What it writes without reading first.
    pub physical_block_bytes: u64,
    /// The largest request that the kernel does not split, from memory in huge pages.
    pub max_request_bytes: u64,
    /// The same from memory in scattered pages.
    pub max_request_scattered_bytes: u64,
    /// The most that one discard of the device covers; 0: it has none, or it is not known. Larger requests are split by the
    /// library.
    pub max_discard_bytes: u64,
    /// The same for the device's command for zeroes; 0: zeroes are written, or it is not known.
    pub max_write_zeroes_bytes: u64,
    /// Block device or file.
    pub kind: blkm_device_kind,
    /// What it was opened for.
    pub role: blkm_role,
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_device_info, first 128);

/// What the bytes of an extent are.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_extent_kind = u32;
/// Data, or what must be taken for data.
pub const BLKM_EXTENT_DATA: blkm_extent_kind = 1;
/// A hole: reads as zeroes.
pub const BLKM_EXTENT_ZERO: blkm_extent_kind = 2;

/// Sets options to the defaults for the size that the caller's header has: `blkm_device_opts_init(&opts, sizeof(opts))`.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_opts_init(opts: *mut blkm_device_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// Opens a block device or an image file by its path, past the page cache where that is possible.
///
/// As a disk or a target it is kept from others: `O_EXCL` on a block device, which keeps away mounts and whoever claims it the same
/// way; a write lock over all bytes (`F_OFD_SETLK`) on a file, which is advisory. Both hang on an open file description of the
/// library's own, so a second opening is refused in this process, too, and they last until the last user of the device has closed
/// it. A source takes no lock.
///
/// They cannot be handed over to another process. When a guest moves to another process on this host, as with live migration to a
/// new version of the hypervisor, the old one stops the guest, takes all completions, and closes queues, jobs, drive and device;
/// then the new one opens it. Where the new one must have it open before, both open it with `BLKM_DEVICE_F_ALLOW_SHARED`. Whether a
/// device is kept from others is chosen when it is opened, and for as long as anybody uses it: a hold cannot be taken later, nor
/// given up before.
///
/// What is locked or claimed is tried again for 200 ms before it is refused: the kernel takes the rings of a process that was
/// killed, or that ended with requests under way, apart after the process is gone, and keeps its files locked until then (measured:
/// 50 ms as a rule, over a second while many writes were under way; so a host that restarts tries again for some seconds).
///
/// `opts` may be NULL. On success `*out` is the device, to be closed with `blkm_device_close`; else it is NULL.
///
/// Returns 0, or -errno with a text that names the file and the cause: `-ENOENT`, `-EACCES`, `-EBUSY` (mounted, swap, locked,
/// held), `-ENOTBLK` (a directory, a character device), `-EINVAL` (its size is no multiple of 512, an unknown role or flag). It
/// blocks as long as the file system does. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_open(
    path: *const c_char,
    role: blkm_role,
    opts: *const blkm_device_opts,
    out: *mut *mut blkm_device,
) -> c_int {
    let attempt = "open a device";
    let open = || {
        // SAFETY: a string of the caller's, as the header says.
        let path = unsafe { text::path(path, attempt)? };
        // SAFETY: the caller's structure, as the header says.
        let (options, _) = unsafe { options(opts, attempt)? };
        match role_of(role, attempt)? {
            Role::Source => Device::open_source(path),
            Role::Target => Device::open_target(path, options),
            Role::Disk => Device::open_disk_with(path, options),
        }
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, || Ok(opened(open()?))) }
}

/// The same for a descriptor of the caller's, who keeps his and closes it whenever he likes. The file is opened anew through
/// /proc/self/fd, so a lock or an `O_EXCL` of the caller's own counts as somebody else's: pass `BLKM_DEVICE_F_ALLOW_SHARED` then.
/// Where opening anew is forbidden, the descriptor is duplicated: it should have `O_DIRECT` (`BLKM_DEVICE_IS_DIRECT` tells), must
/// be open for writing unless the role is that of a source, and a block device needs `BLKM_DEVICE_F_ALLOW_SHARED`, else `-EACCES`.
///
/// Returns as `blkm_device_open`, and `-EBADF`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_open_fd(
    fd: c_int,
    role: blkm_role,
    opts: *const blkm_device_opts,
    out: *mut *mut blkm_device,
) -> c_int {
    let attempt = "open a device by its descriptor";
    let open = || {
        if fd < 0 {
            return Err(blkmirror_core::Error::from_errno(attempt, libc::EBADF)
                .because(format!("{fd} is no descriptor")));
        }
        // SAFETY: the caller's structure, as the header says.
        let (options, name) = unsafe { options(opts, attempt)? };
        let name = name.map_or_else(|| format!("fd {fd}"), str::to_owned);
        // SAFETY: open for the length of this call, as the header says; if it is not, the kernel says so.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match role_of(role, attempt)? {
            Role::Source => Device::source_from_fd(fd, &name),
            Role::Target => Device::target_from_fd(fd, &name, options),
            Role::Disk => Device::disk_from_fd(fd, &name, options),
        }
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, || Ok(opened(open()?))) }
}

/// Creates a regular file of `size_bytes`, one hole, with mode 0600, and opens it as a target. Its name is durable when this
/// returns: its directory is flushed, or, where that may not be read, its file system (`syncfs(2)`). It blocks until then. Where it
/// fails there is no file.
///
/// A size above the process's `RLIMIT_FSIZE` raises SIGXFSZ, which ends a process that neither handles nor ignores it; otherwise it
/// is `-EFBIG`. Writes past that limit in any file do the same.
///
/// Returns 0, or -errno: `-EEXIST`, also for a symbolic link to nothing; `-EINVAL` if the size is no multiple of 512; what the file
/// system says. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_create(
    path: *const c_char,
    size_bytes: u64,
    out: *mut *mut blkm_device,
) -> c_int {
    let attempt = "create a target";
    let make = || {
        // SAFETY: a string of the caller's, as the header says.
        let path = unsafe { text::path(path, attempt)? };
        Ok(opened(Device::create_target(path, size_bytes)?))
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Closes the caller's handle and sets `*device` to NULL. NULL, and a pointer to NULL, are allowed. Drives and jobs that use the
/// device keep it open. Threads: any, while no other call uses this handle. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_close(device: *mut *mut blkm_device) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(device) }
}

/// Fills in what is known of a device, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_get_info(
    device: *mut blkm_device,
    info: *mut blkm_device_info,
) -> c_int {
    let attempt = "describe a device";
    let body = |d: &blkm_device| {
        let value = info_of(&d.device);
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(device, attempt, body) }
}

/// Looks at the size again, after a file or a volume has grown. `size_bytes` may be NULL. Drives that exist keep their size, and so
/// do their jobs (`blkm_drive_create`).
///
/// Returns 0, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_refresh_size(device: *mut blkm_device, size_bytes: *mut u64) -> c_int {
    let body = |d: &blkm_device| {
        let size = d.device.refresh_size()?;
        // SAFETY: the caller's variable, as the header says.
        unsafe { sum::put(size_bytes, size) };
        Ok(())
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(device, "look at a device's size", body) }
}

/// What lies at `offset_bytes` (`BLKM_EXTENT_*`), and for how many bytes from there it is so. Asked of the file system
/// (`SEEK_DATA`); a block device is all data. `kind` and `len_bytes` may be NULL. At the end of the device the length is 0.
///
/// Returns 0, or -errno. It blocks as long as the file system does. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_block_status(
    device: *mut blkm_device,
    offset_bytes: u64,
    kind: *mut blkm_extent_kind,
    len_bytes: *mut u64,
) -> c_int {
    let body = |d: &blkm_device| {
        let extent = d.device.status(offset_bytes)?;
        let what = match extent.kind {
            ExtentKind::Data => BLKM_EXTENT_DATA,
            ExtentKind::Zero | ExtentKind::Absent => BLKM_EXTENT_ZERO,
        };
        // SAFETY: the caller's variable, as the header says.
        unsafe { sum::put(kind, what) };
        // SAFETY: the same.
        unsafe { sum::put(len_bytes, extent.range.len()) };
        Ok(())
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(device, "ask where data is", body) }
}

/// Makes durable what was written to the device, through whatever descriptor (`fdatasync(2)`). It blocks until then.
///
/// Returns 0, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_flush(device: *mut blkm_device) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(device, "flush a device", |d: &blkm_device| d.device.flush()) }
}

/// Reserves space for a range of a file (`fallocate(2)`), so that writes there cannot run out of it. Nothing to do on a block
/// device. Offset and length are multiples of its logical block. It blocks until then.
///
/// Returns 0, or -errno: `-ENOSPC`, `-EOPNOTSUPP`, `-EACCES` for a source. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_preallocate(
    device: *mut blkm_device,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    let attempt = "preallocate space in a device";
    // SAFETY: the caller's handle, as the header says.
    unsafe {
        with(device, attempt, |d: &blkm_device| {
            d.device.preallocate(sum::range(offset_bytes, len_bytes, attempt)?)
        })
    }
}

/// Makes a range read as zeroes without writing any, and gives its space back unless `keep_allocated`. For a target before a job;
/// not for a disk in use, whose drive would not hear of it. Offset and length are multiples of its logical block. It blocks until
/// then.
///
/// Returns 0, or -errno: `-EOPNOTSUPP` where only writing zeroes would help, `-EACCES` for a source. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_write_zeroes(
    device: *mut blkm_device,
    offset_bytes: u64,
    len_bytes: u64,
    keep_allocated: bool,
) -> c_int {
    let attempt = "write zeroes to a device";
    let mode = if keep_allocated { ZeroMode::Keep } else { ZeroMode::Punch };
    let body = |d: &blkm_device| {
        d.device.write_zeroes(sum::range(offset_bytes, len_bytes, attempt)?, mode).map(drop)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(device, attempt, body) }
}

/// Tells a device that a range is not needed, before a job; see `blkm_device_write_zeroes`. It blocks until then.
///
/// Returns 0, or -errno: `-EOPNOTSUPP`, `-EACCES` for a source. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_discard(
    device: *mut blkm_device,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    let attempt = "discard on a device";
    // SAFETY: the caller's handle, as the header says.
    unsafe {
        with(device, attempt, |d: &blkm_device| {
            d.device.discard(sum::range(offset_bytes, len_bytes, attempt)?)
        })
    }
}

/// Whether two devices share bytes: the same file or device under two names, a partition and its disk, a loop device and its file.
///
/// Returns 1 if so, 0 if not, or -errno. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_device_overlaps(device: *mut blkm_device, other: *mut blkm_device) -> c_int {
    let attempt = "compare devices";
    let body = |d: &blkm_device| {
        // SAFETY: the caller's handle, as the header says.
        let other = unsafe { borrow(other, attempt)? };
        Ok(d.device.is_same_as(&other.device))
    };
    // SAFETY: the same.
    unsafe { with(device, attempt, body) }
}

/// What the options say, and the name, if there is one.
///
/// # Safety
/// As the header says of the structure.
unsafe fn options<'a>(
    opts: *const blkm_device_opts,
    attempt: &'static str,
) -> Result<(TargetOptions, Option<&'a str>)> {
    // SAFETY: the caller's promise.
    let opts = unsafe { sized::read(opts, attempt)? };
    sum::known_flags(opts.flags, BLKM_DEVICE_F_ALLOW_SHARED, attempt)?;
    // SAFETY: the caller's promise.
    let name = unsafe { text::name(opts.name, attempt)? };
    Ok((TargetOptions { allow_shared: opts.flags & BLKM_DEVICE_F_ALLOW_SHARED != 0 }, name))
}

/// A handle for C; what is worth knowing of the device goes to the log.
fn opened(device: Device) -> blkm_device {
    for note in device.notes() {
        tracing::info!(device = device.name(), "{note}");
    }
    blkm_device { health: Health::new(), device }
}

/// The role of that number.
fn role_of(role: blkm_role, attempt: &'static str) -> Result<Role> {
    match role {
        BLKM_ROLE_DISK => Ok(Role::Disk),
        BLKM_ROLE_TARGET => Ok(Role::Target),
        BLKM_ROLE_SOURCE => Ok(Role::Source),
        _ => Err(invalid(attempt, format!("{role} is no role; choose BLKM_ROLE_DISK, _TARGET or _SOURCE"))),
    }
}

/// What C is told of a device.
fn info_of(device: &Device) -> blkm_device_info {
    let limits = device.limits();
    let queue = |value: fn(&blkmirror_core::device::QueueLimits) -> Option<u64>| {
        limits
            .queue
            .as_ref()
            .filter(|_| device.kind() == DeviceKind::BlockDevice)
            .and_then(value)
            .unwrap_or(0)
    };
    blkm_device_info {
        struct_size: 0,
        flags: sum::flag(device.is_direct(), BLKM_DEVICE_IS_DIRECT)
            | sum::flag(device.reads_as_zeroes(), BLKM_DEVICE_IS_ZERO)
            | sum::flag(limits.writes_through, BLKM_DEVICE_HAS_FUA)
            | sum::flag(device.is_locked(), BLKM_DEVICE_IS_LOCKED)
            | sum::flag(limits.alignment_origin == AlignmentOrigin::Assumed, BLKM_DEVICE_IS_ALIGN_ASSUMED)
            | BLKM_DEVICE_MAY_PIN,
        size_bytes: device.size_bytes(),
        request_align_bytes: limits.offset_align_bytes,
        memory_align_bytes: limits.memory_align_bytes,
        logical_block_bytes: limits.logical_block_bytes,
        physical_block_bytes: limits.physical_block_bytes,
        max_request_bytes: limits.max_request_bytes,
        max_request_scattered_bytes: limits.max_request_scattered_bytes,
        max_discard_bytes: queue(|q| q.discard_max_bytes),
        max_write_zeroes_bytes: queue(|q| q.write_zeroes_max_bytes),
        kind: match device.kind() {
            DeviceKind::BlockDevice => BLKM_DEVICE_BLOCK,
            DeviceKind::RegularFile => BLKM_DEVICE_FILE,
        },
        role: match device.role() {
            Role::Disk => BLKM_ROLE_DISK,
            Role::Target => BLKM_ROLE_TARGET,
            Role::Source => BLKM_ROLE_SOURCE,
        },
        reserved: [0; 4],
    }
}
