//! Memory for requests.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use blkmirror_core::{Error, ErrorKind, Result};

use crate::border::guard;
use crate::border::handle::borrow;
use crate::drive::blkm_drive;

/// Memory for requests of a drive: at least `len_bytes`, aligned as the drive's queues want it, in whole blocks, not cleared. It is given
/// back with `blkm_vfree`, and may be used with every drive whose alignment is not larger.
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
