//! What all objects and structures of C have in common.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use blkmirror::{
    blkm_bitmap_info, blkm_bitmap_opts, blkm_device_opts, blkm_drive_info, blkm_drive_opts, blkm_engine_opts,
    blkm_event, blkm_job_info, blkm_mirror_opts, blkm_outcome, blkm_queue_info, blkm_queue_opts,
};

use super::error::{Result, check};

/// Ends an object and sets its pointer to NULL.
type End<T> = unsafe extern "C" fn(*mut *mut T);

/// An object of C's that ends with this.
#[derive(Debug)]
pub(super) struct Handle<T> {
    /// Not NULL.
    raw: *mut T,
    /// How it ends.
    end: End<T>,
}

// SAFETY: every function may be called from any thread; those of a queue refuse what is not on its own.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: the same.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// What `make` makes; it is NULL exactly if that fails.
    pub(super) fn make(end: End<T>, make: impl FnOnce(*mut *mut T) -> c_int) -> Result<Self> {
        let mut raw = ptr::dangling_mut();
        let ret = make(&raw mut raw);
        assert_eq!(raw.is_null(), ret < 0, "it returned {ret}");
        assert!(ret <= 0, "{ret}");
        check(ret).map(|_| Self { raw, end })
    }

    /// The pointer.
    pub(super) fn raw(&self) -> *mut T {
        self.raw
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: it was made by C, and whoever drops this is the last that has it.
        unsafe { (self.end)(&raw mut self.raw) };
        debug_assert!(self.raw.is_null(), "the pointer is forgotten");
    }
}

/// A structure of C's that begins with its size.
///
/// # Safety
/// `repr(C)`, `struct_size` first, and any bytes are a value of it.
pub(super) unsafe trait Structure: Copy {}

/// Says so of several.
macro_rules! structures {
    ($($name:ident),+ $(,)?) => {
        $(
            // SAFETY: integers, pointers, functions that may be missing, and arrays of these.
            unsafe impl Structure for $name {}
        )+
    };
}
structures!(
    blkm_bitmap_info,
    blkm_bitmap_opts,
    blkm_device_opts,
    blkm_drive_info,
    blkm_drive_opts,
    blkm_engine_opts,
    blkm_event,
    blkm_job_info,
    blkm_mirror_opts,
    blkm_outcome,
    blkm_queue_info,
    blkm_queue_opts
);

/// Options with the defaults.
pub(super) fn options<T: Structure>(init: unsafe extern "C" fn(*mut T, usize)) -> T {
    let mut options = MaybeUninit::<T>::zeroed();
    // SAFETY: a variable of that size.
    unsafe { init(options.as_mut_ptr(), size_of::<T>()) };
    // SAFETY: any bytes are a value, by the contract of the trait.
    unsafe { options.assume_init() }
}

/// What `fill` fills in, with what it returned; before, all is garbage but for the size.
pub(super) fn facts<T: Structure>(fill: impl FnOnce(*mut T) -> c_int) -> Result<(c_int, T)> {
    let mut facts = MaybeUninit::<T>::uninit();
    // SAFETY: a variable of that size.
    unsafe { facts.as_mut_ptr().cast::<u8>().write_bytes(0x5a, size_of::<T>()) };
    // SAFETY: the size is first, by the contract of the trait.
    unsafe { facts.as_mut_ptr().cast::<usize>().write(size_of::<T>()) };
    let ret = check(fill(facts.as_mut_ptr()))?;
    // SAFETY: any bytes are a value, by the contract of the trait.
    Ok((ret, unsafe { facts.assume_init() }))
}

/// A time for C.
pub(super) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A timeout for C.
pub(super) fn timeout_ns(time: Option<Duration>) -> i64 {
    time.map_or(-1, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}
