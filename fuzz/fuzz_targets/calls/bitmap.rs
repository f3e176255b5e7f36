//! Calls on a bitmap that may be NULL: what it says is dirty lies on the disk.
use std::ptr::null;

use blkmirror::*;
use blkmirror_fuzz::check;

use crate::run::{DISK, Run};

// SAFETY of all calls below: they pass on handles and variables of the run, or NULL, as its contract says.
impl Run {
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn new_bitmap(&mut self, name: u8, flags: u8, granularity: u64) {
        if !self.bitmap.is_null() {
            return;
        }
        let names = [c"a".as_ptr(), c"".as_ptr(), null(), c"\xff".as_ptr()];
        let opts = blkm_bitmap_opts {
            struct_size: size_of::<blkm_bitmap_opts>(),
            flags: u64::from(flags & 3),
            name: names[usize::from(name % 4)],
            granularity_bytes: granularity,
            reserved: [0; 4],
        };
        // SAFETY: see above.
        check(unsafe { blkm_bitmap_create(self.drive, &raw const opts, &raw mut self.bitmap) });
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn drop_bitmap(&mut self) {
        // SAFETY: see above.
        unsafe { blkm_bitmap_close(&raw mut self.bitmap) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn use_bitmap(&mut self, verb: u8, (at, len, most): (u64, u64, u64)) {
        let bitmap = self.bitmap;
        let (near, short) = if verb & 128 == 0 { (at % DISK, len % DISK) } else { (at, len) };
        // SAFETY: see above; one call, which the verb chooses.
        let answer = unsafe {
            match verb % 8 {
                0 => blkm_bitmap_enable(bitmap),
                1 => blkm_bitmap_disable(bitmap),
                2 => blkm_bitmap_clear(bitmap),
                3 => blkm_bitmap_set_dirty(bitmap, near, short),
                4 => blkm_bitmap_reset_dirty(bitmap, near, short),
                5 => blkm_bitmap_merge(bitmap, &raw const bitmap, 1),
                6 => query(bitmap),
                _ => next_area(bitmap, near, at.max(near), most),
            }
        };
        check(answer);
    }
}

/// What it has.
///
/// # Safety
/// It is NULL, or was made by the run and is not closed.
unsafe fn query(bitmap: *mut blkm_bitmap) -> i32 {
    // SAFETY: numbers and arrays of them, which may all be zero.
    let mut info = unsafe { std::mem::zeroed::<blkm_bitmap_info>() };
    info.struct_size = size_of::<blkm_bitmap_info>();
    // SAFETY: the caller's promise.
    let answer = unsafe { blkm_bitmap_query(bitmap, &raw mut info) };
    assert!(info.dirty_bytes <= info.size_bytes);
    answer
}

/// The next dirty area from `near` on, at most `most` bytes of it.
///
/// # Safety
/// It is NULL, or was made by the run and is not closed.
unsafe fn next_area(bitmap: *mut blkm_bitmap, near: u64, end: u64, most: u64) -> i32 {
    let (mut found, mut found_len) = (0, 0);
    // SAFETY: the caller's promise.
    let answer =
        unsafe { blkm_bitmap_next_dirty_area(bitmap, near, end, most, &raw mut found, &raw mut found_len) };
    if answer == 1 {
        assert!(found >= near && found_len > 0 && found_len <= most && found + found_len <= DISK);
    }
    answer
}
