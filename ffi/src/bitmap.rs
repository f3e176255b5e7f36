//! Bitmaps of drives: what was written.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use blkmirror_core::Result;
use blkmirror_core::bitmap::DirtyBitmap;
use blkmirror_core::drive::Bitmap;
use blkmirror_core::units::Granularity;

use crate::border::handle::{Health, borrow, close, create, object, with};
use crate::border::sized::{self, structure};
use crate::border::{invalid, sum, text};
use crate::drive::blkm_drive;

/// A dirty bitmap of a drive. While it is enabled every guest write marks the chunks that it touches, after it has ended, whatever
/// its result, and before the host hears of it. It stays with the drive over a pivot, and goes on recording through jobs and after
/// them, also one that a job works with: after the job it holds what the job did not copy and what changed since the moment that
/// the target is a copy of. Every function that takes one may be called from any thread.
///
/// It is in memory only, and does not keep its drive: when the drive is gone (its handle closed, and no queue, tracker or job left)
/// it can be read and changed, but records nothing any more. When the process ends it is gone, however that ends; bitmaps that are
/// kept on a disk are to come with a later version. Until then a host that ends in good order may keep one itself: with no guest
/// request under way and the bitmap disabled, write down its granularity and its areas (`blkm_bitmap_next_dirty_area`), and that
/// this list is complete. The next process takes that note away, durably, before the guest writes anything, makes the bitmap anew
/// with the same granularity, and marks the areas (`blkm_bitmap_set_dirty`). Where there is no such list, as after a crash, only a
/// full copy is right.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_bitmap {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    bitmap: Bitmap,
}
object!(blkm_bitmap);

/// It does not record until it is enabled.
pub const BLKM_BITMAP_F_DISABLED: u64 = 1;

/// How a bitmap is made. All zero but for the name is the default.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_bitmap_opts {
    /// sizeof(blkm_bitmap_opts).
    pub struct_size: usize,
    /// `BLKM_BITMAP_F_*`.
    pub flags: u64,
    /// Its name: 1 to 255 bytes of UTF-8, unlike those of the drive's other bitmaps. Copied.
    pub name: *const c_char,
    /// Bytes that a bit stands for: a power of two from 512 bytes on; 0: 64 KiB.
    pub granularity_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
}
structure!(blkm_bitmap_opts, first 64, reserved reserved);

/// Guest writes are recorded in it, by the drive or by the job that works with it.
pub const BLKM_BITMAP_IS_RECORDING: u64 = 1;
/// A job works with it: it cannot be changed.
pub const BLKM_BITMAP_IS_BUSY: u64 = 2;

/// What a bitmap is now. As QEMU's BlockDirtyInfo.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_bitmap_info {
    /// Set by the caller: sizeof(blkm_bitmap_info).
    pub struct_size: usize,
    /// `BLKM_BITMAP_IS_*`.
    pub flags: u64,
    /// Bytes of the drive.
    pub size_bytes: u64,
    /// Bytes that a bit stands for.
    pub granularity_bytes: u64,
    /// Bytes of the chunks that are dirty, the last one counted as long as it is; exact when nobody writes.
    pub dirty_bytes: u64,
    /// Its name.
    pub name: [c_char; 256],
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_bitmap_info, first 328);

/// Sets options to the defaults for the size that the caller's header has; the name is the caller's to set.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_opts_init(opts: *mut blkm_bitmap_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// Adds a bitmap to a drive, with nothing dirty in it. Unless it is made disabled, every write that ends after this has returned is
/// in it. On success `*out` is the bitmap, to be closed with `blkm_bitmap_close`; else it is NULL. It lives in memory; see
/// `blkm_bitmap`.
///
/// Returns 0, or -errno: `-EEXIST` for a name that the drive's bitmaps have already; `-EINVAL` without a name or for one that is
/// empty, too long or no UTF-8, for a granularity that is none, and for a drive of more than 64 TiB; `-EMFILE` when the drive has
/// 64 bitmaps; `-ENOMEM`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_create(
    drive: *mut blkm_drive,
    opts: *const blkm_bitmap_opts,
    out: *mut *mut blkm_bitmap,
) -> c_int {
    let attempt = "make a bitmap";
    let make = || {
        // SAFETY: the caller's structure, as the header says.
        let opts = unsafe { sized::read(opts, attempt)? };
        sum::known_flags(opts.flags, BLKM_BITMAP_F_DISABLED, attempt)?;
        // SAFETY: the caller's string, as the header says.
        let name = unsafe { text::name(opts.name, attempt)? };
        let name = name.ok_or_else(|| invalid(attempt, "it needs a name: set `name` in its options"))?;
        let granularity = match opts.granularity_bytes {
            0 => None,
            bytes => Some(Granularity::new(bytes)?),
        };
        // SAFETY: the caller's handle, as the header says.
        let drive = unsafe { borrow(drive, attempt)? };
        let bitmap = drive.drive.add_bitmap(name, granularity, opts.flags & BLKM_BITMAP_F_DISABLED == 0)?;
        Ok(blkm_bitmap { health: Health::new(), bitmap })
    };
    // SAFETY: the caller's variable, as the header says.
    unsafe { create(out, attempt, make) }
}

/// Closes the caller's handle and sets `*bitmap` to NULL: the bitmap leaves its drive, once a job that works with it is over. NULL,
/// and a pointer to NULL, are allowed. Threads: any, while no other call uses this handle. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_close(bitmap: *mut *mut blkm_bitmap) {
    // SAFETY: the caller's handle, as the header says.
    unsafe { close(bitmap) }
}

/// Lets it record: every write that ends after this has returned is in it.
///
/// Returns 0, or -errno: `-EBUSY` while a job works with it, `-EPERM` when its drive is gone. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_enable(bitmap: *mut blkm_bitmap) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, "enable a bitmap", |b: &blkm_bitmap| b.bitmap.enable()) }
}

/// Lets it not record any more: when this has returned, no guest write changes it.
///
/// Returns 0, or -errno: `-EBUSY` while a job works with it. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_disable(bitmap: *mut blkm_bitmap) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, "disable a bitmap", |b: &blkm_bitmap| b.bitmap.disable()) }
}

/// Makes everything clean. While it records, a write that ends meanwhile is in it, or is seen by who reads the drive afterwards.
///
/// Returns 0, or -errno: `-EBUSY` while a job works with it. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_clear(bitmap: *mut blkm_bitmap) -> c_int {
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, "clear a bitmap", |b: &blkm_bitmap| b.bitmap.clear()) }
}

/// Marks in `target` what is dirty in any of the `count` bitmaps at `sources`, of this drive or of others; it may be among them
/// itself. All or nothing.
///
/// Returns 0, or -errno, and nothing has changed: `-EINVAL` unless all have the same size and granularity, or for NULL, `-EBUSY`
/// while a job works with one of them. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_merge(
    target: *mut blkm_bitmap,
    sources: *const *mut blkm_bitmap,
    count: usize,
) -> c_int {
    let attempt = "merge bitmaps";
    let body = |b: &blkm_bitmap| {
        if sources.is_null() && count > 0 {
            return Err(invalid(attempt, format!("sources is NULL, count is {count}")));
        }
        let source = |at: usize| {
            // SAFETY: the caller's array has `count` entries, as the header says.
            let source = unsafe { sources.wrapping_add(at).read() };
            // SAFETY: the caller's handle, as the header says.
            unsafe { borrow(source, attempt) }.map(|source| &source.bitmap)
        };
        b.bitmap.merge_from(&(0..count).map(source).collect::<Result<Vec<_>>>()?)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(target, attempt, body) }
}

/// Marks every chunk that a range touches.
///
/// Returns 0, or -errno: `-EINVAL` for a range past the end of the drive, `-EBUSY` while a job works with it. Threads: any. Since
/// 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_set_dirty(
    bitmap: *mut blkm_bitmap,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    let attempt = "mark in a bitmap";
    let body = |b: &blkm_bitmap| b.bitmap.set(sum::range(offset_bytes, len_bytes, attempt)?);
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, attempt, body) }
}

/// Makes clean every chunk that lies in a range as a whole; the last one of the drive does when its last byte does.
///
/// Returns 0, or -errno as `blkm_bitmap_set_dirty`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_reset_dirty(
    bitmap: *mut blkm_bitmap,
    offset_bytes: u64,
    len_bytes: u64,
) -> c_int {
    let attempt = "make clean in a bitmap";
    let body = |b: &blkm_bitmap| b.bitmap.reset(sum::range(offset_bytes, len_bytes, attempt)?);
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, attempt, body) }
}

/// Fills in what a bitmap is, up to `info->struct_size`, which the caller has set.
///
/// Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_query(bitmap: *mut blkm_bitmap, info: *mut blkm_bitmap_info) -> c_int {
    let attempt = "query a bitmap";
    let body = |b: &blkm_bitmap| {
        let now = b.bitmap.info();
        let mut value = blkm_bitmap_info {
            struct_size: 0,
            flags: sum::flag(now.recording, BLKM_BITMAP_IS_RECORDING)
                | sum::flag(now.busy, BLKM_BITMAP_IS_BUSY),
            size_bytes: now.size_bytes,
            granularity_bytes: now.granularity.bytes(),
            dirty_bytes: now.dirty_bytes,
            name: [0; 256],
            reserved: [0; 4],
        };
        text::fill(&mut value.name, &now.name);
        // SAFETY: the caller's structure, as the header says.
        unsafe { sized::write(info, value, attempt) }
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, attempt, body) }
}

/// The first dirty area between `start_bytes` and `end_bytes`, and at most `max_len_bytes` of it, into `*offset_bytes` and
/// `*len_bytes`; either may be NULL. To see all, ask again from `*offset_bytes + *len_bytes` on. `end_bytes` may be `UINT64_MAX`
/// for the drive's end.
///
/// Returns 1 if there is one, 0 if not, or -errno: `-EINVAL` when that is no range of the drive, or the length is 0.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_bitmap_next_dirty_area(
    bitmap: *mut blkm_bitmap,
    start_bytes: u64,
    end_bytes: u64,
    max_len_bytes: u64,
    offset_bytes: *mut u64,
    len_bytes: *mut u64,
) -> c_int {
    let body = |b: &blkm_bitmap| {
        let end = if end_bytes == u64::MAX { b.bitmap.working().disk_bytes() } else { end_bytes };
        let Some(area) = b.bitmap.next_dirty(start_bytes, end, max_len_bytes)? else { return Ok(false) };
        // SAFETY: the caller's variable, as the header says.
        unsafe { sum::put(offset_bytes, area.start()) };
        // SAFETY: the same.
        unsafe { sum::put(len_bytes, area.len()) };
        Ok(true)
    };
    // SAFETY: the caller's handle, as the header says.
    unsafe { with(bitmap, "look for dirty areas in a bitmap", body) }
}

/// The bitmap for a job to work with, if C gave one.
///
/// # Safety
/// `bitmap` is NULL or a handle of the caller's.
pub(crate) unsafe fn working(
    bitmap: *mut blkm_bitmap,
    attempt: &'static str,
) -> Result<Option<Arc<DirtyBitmap>>> {
    if bitmap.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    Ok(Some(unsafe { borrow(bitmap, attempt)? }.bitmap.working()))
}
