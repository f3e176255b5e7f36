//! Memory for requests.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use blkmirror_core::buffer::HostRegion;
use blkmirror_core::{Error, ErrorKind, Result};

use crate::border::handle::{borrow, with};
use crate::border::{guard, sum};
use crate::drive::blkm_drive;

/// Memory for requests of a drive: at least `len_bytes`, aligned as the drive's queues want it, in whole blocks, not cleared. It is
/// given back with `blkm_vfree`, and may be used with every drive whose alignment is not larger.
///
/// Returns the memory, or NULL with a text (`blkm_error_msg`). Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_blockalign(drive: *mut blkm_drive, len_bytes: usize) -> *mut c_void {
    let attempt = "allocate memory for requests";
    let mut memory = std::ptr::null_mut();
    let _: c_int = guard(attempt, || {
        // SAFETY: the caller's handle, as the header says.
        let drive = unsafe { borrow(drive, attempt)? };
        memory = allocate(len_bytes, drive.drive.memory_align_bytes(), drive.drive.align_bytes(), attempt)?;
        Ok(())
    });
    memory
}

/// Gives memory of `blkm_blockalign` back. NULL is allowed. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_vfree(memory: *mut c_void) {
    // SAFETY: it came from posix_memalign, by the caller's promise, or is NULL.
    unsafe { libc::free(memory) }
}

/// Registers memory of the host's with a drive, such as its guest's RAM, once for all queues: requests whose data lies in one piece
/// inside it spare the kernel the look-up of its pages, which for small requests is a good part of their cost. Map it before the
/// first request. `flags` is zero.
///
/// From then on none of its pages may be given back or replaced (`madvise(2)`, balloons, free page reporting, virtio-mem,
/// userfaultfd): the kernel would go on with the old ones, and the guest's data would be wrong. The kernel takes 1 GiB at a time; a
/// request across such a border, counted from the region's start, or from one region into the next, is sent as if it were not
/// mapped.
///
/// The memory stays mapped as it is, readable and writable, until `blkm_mem_region_unmap` of it has succeeded, or the drive and all
/// its queues are closed.
///
/// What it costs: each queue takes it up when it is used next, on its own thread, which does nothing else meanwhile. The kernel
/// pins every page then, and fetches those that are not there: 1 GiB takes in the order of 40 ms in small pages, of 5 ms in huge
/// ones, and seconds where the pages are not there yet (measured on a virtual machine). A queue for rare requests does without
/// (`BLKM_QUEUE_F_NO_REGIONS`). However many regions there are, finding its own costs a request 10 to 20 ns.
///
/// The kernel pins the pages once for each queue, and counts them each time against `RLIMIT_MEMLOCK`, unless the process has
/// CAP_IPC_LOCK when the ring is made (of a worker: with the engine; of a queue: when it is used first). The count is the user's,
/// not the process's: the limit of each process must have room for the sum over all processes of that user, of the mapped bytes of
/// each drive times its queues, and of the copy memory of all workers (`window_bytes` and 4 MiB) and queues (`staging_bytes`). What
/// the kernel refuses is used unregistered, which `blkm_queue_get_info` tells of regions; what a process then gets depends on who
/// came first.
///
/// Returns 0, or -errno: `-EINVAL` for memory that is empty or wraps, or flags; `-EEXIST` when it overlaps another region;
/// `-EMFILE` with 256 regions, or when all of them together need more than 4095 pieces of 1 GiB (4 TiB). Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_mem_region_map(
    drive: *mut blkm_drive,
    addr: *mut c_void,
    len_bytes: usize,
    flags: u64,
) -> c_int {
    let attempt = "map a memory region";
    let body = |d: &blkm_drive| {
        sum::known_flags(flags, 0, attempt)?;
        // SAFETY: the caller's memory, as the header says.
        d.drive.map_memory(unsafe { HostRegion::from_raw(addr.cast(), len_bytes) })
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(drive, attempt, body) }
}

/// Takes a region back, given as it was mapped. From when this has succeeded the host may unmap the memory, or map other memory at
/// the same address. Its pages stay pinned until every queue of the drive that took it up has been used once more; their completion
/// descriptors are made readable for that.
///
/// Returns 0, or -errno, and nothing has changed: `-ENOENT` for what is no region; `-EBUSY` while a request that came after it was
/// mapped has memory in it, or in more than seven regions, and is under way. The memory of any request stays as it is until its
/// completion, mapped with a drive or not. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_mem_region_unmap(
    drive: *mut blkm_drive,
    addr: *mut c_void,
    len_bytes: usize,
) -> c_int {
    let body = |d: &blkm_drive| d.drive.unmap_memory(addr.cast_const().cast(), len_bytes);
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(drive, "unmap a memory region", body) }
}

/// Whole blocks, aligned to a page at least.
fn allocate(len: usize, memory_align: u64, block: u64, attempt: &'static str) -> Result<*mut c_void> {
    let no_memory = || Error::new(ErrorKind::NoMemory, attempt).because(format!("no memory for {len} bytes"));
    let align = usize::try_from(memory_align.max(4096)).map_err(|_| no_memory())?;
    let block = usize::try_from(block.max(1)).map_err(|_| no_memory())?;
    let len = len.max(1).checked_next_multiple_of(block).ok_or_else(no_memory)?;
    let mut memory = std::ptr::null_mut();
    // SAFETY: the alignment is a power of two and a multiple of a pointer's size, the variable is ours.
    match unsafe { libc::posix_memalign(&raw mut memory, align, len) } {
        0 => Ok(memory),
        _ => Err(no_memory()),
    }
}
