//! A row of zeroed atomic words that costs no memory until it is written.
//!
//! It is a private anonymous mapping with `MAP_NORESERVE`: the bits of a 64 TiB disk at 4 KiB take 2 GiB of addresses, and
//! as many pages as were ever touched. Huge pages are declined, for one bit would then cost 2 MiB. Under loom, whose
//! atomics are no plain memory, it is a vector.
//!
//! The only `unsafe` of the bitmap is here: map, view, unmap.
#![allow(unsafe_code)]

use super::sync::AtomicU64;
use crate::error::Result;

/// A row of zeroed atomic words.
#[cfg(not(loom))]
pub(super) struct Words {
    /// The first word; the mapping starts here.
    first: std::ptr::NonNull<AtomicU64>,
    /// How many words.
    len: usize,
}

#[cfg(not(loom))]
impl Words {
    /// A row of `len` zeroed words, at least one.
    pub(super) fn new(len: usize) -> Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

        let len = len.max(1);
        let size_bytes = Self::size_bytes(len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without an address hint and without MAP_FIXED the kernel picks free addresses, so no memory that
        // anybody uses is replaced.
        let mapped = unsafe {
            mmap_anonymous(std::ptr::null_mut(), size_bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let address = mapped.map_err(|errno| no_memory(size_bytes, Some(errno.into())))?;
        let Some(first) = std::ptr::NonNull::new(address.cast::<AtomicU64>()) else {
            return Err(no_memory(size_bytes, None));
        };
        let words = Self { first, len };
        // A kernel without huge pages refuses the advice, and has done what it asks for: the result does not matter.
        // SAFETY: the range is the mapping made above, which `words` owns alone; the advice changes no content.
        let _ = unsafe { madvise(address, size_bytes, Advice::LinuxNoHugepage) };
        Ok(words)
    }

    /// The bytes of a mapping of `len` words; saturates, and the kernel refuses that much.
    fn size_bytes(len: usize) -> usize {
        len.saturating_mul(size_of::<AtomicU64>())
    }
}

/// The error for a mapping that could not be had.
#[cfg(not(loom))]
fn no_memory(size_bytes: usize, source: Option<std::io::Error>) -> crate::Error {
    use crate::error::{Error, ErrorKind};
    use crate::units::{bytes_u64, format_size};

    let cause = source.as_ref().map_or_else(|| "no usable address".to_owned(), ToString::to_string);
    let attempt = "reserve memory for a bitmap";
    source
        .map_or_else(|| Error::new(ErrorKind::NoMemory, attempt), |source| Error::from_io(attempt, source))
        .because(format!(
            "{cause} for {} of addresses; use a coarser granularity, or allow more address space (ulimit -v, \
             vm.overcommit_memory)",
            format_size(bytes_u64(size_bytes))
        ))
}

#[cfg(not(loom))]
impl std::ops::Deref for Words {
    type Target = [AtomicU64];

    #[inline(always)]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped `len` words at `first`, page aligned and readable and writable, which live until `drop`
        // has `&mut self` and so no borrow is left. Zero bytes are a valid `AtomicU64`, and all access to the
        // mapping goes through these atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

#[cfg(not(loom))]
impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped; `&mut self` proves that no borrow of it is left.
        let unmapped = unsafe { rustix::mm::munmap(self.first.as_ptr().cast(), Self::size_bytes(self.len)) };
        debug_assert!(unmapped.is_ok(), "the kernel refused to unmap what it had mapped");
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and may be unmapped from any.
#[cfg(not(loom))]
unsafe impl Send for Words {}

// SAFETY: a shared `Words` gives out nothing but `&[AtomicU64]`, which is Sync.
#[cfg(not(loom))]
unsafe impl Sync for Words {}

/// A row of zeroed atomic words.
#[cfg(loom)]
pub(super) struct Words(Vec<AtomicU64>);

#[cfg(loom)]
impl Words {
    /// A row of `len` zeroed words, at least one.
    pub(super) fn new(len: usize) -> Result<Self> {
        Ok(Self((0..len.max(1)).map(|_| AtomicU64::new(0)).collect()))
    }
}

#[cfg(loom)]
impl std::ops::Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Words({})", self.len())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_start_as_zero_and_keep_what_is_stored() {
        let words = Words::new(100_000).unwrap();
        assert_eq!(words.len(), 100_000);
        assert!(words.iter().all(|w| w.load(Ordering::Relaxed) == 0));
        words[99_999].store(7, Ordering::Relaxed);
        assert_eq!(words[99_999].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn a_row_that_no_machine_can_map_is_an_error_that_says_what_to_do() {
        let error = Words::new(usize::MAX / 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoMemory);
        let text = error.to_string();
        assert!(text.contains("coarser granularity"), "{text}");
    }
}
