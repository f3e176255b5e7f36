//! One buffer with a device's alignment, the role of QEMU's `qemu_blockalign`.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::{Error, ErrorKind, Result};

/// The alignment that suits every device: a page.
const DEFAULT_ALIGN: usize = 4096;

/// A zeroed heap buffer whose address and length are multiples of an alignment.
pub struct AlignedBuf {
    /// First byte, aligned.
    base: NonNull<u8>,
    /// What was allocated.
    layout: Layout,
    /// Bytes of it that are used: what was asked for, rounded up to the alignment that was asked for.
    len: usize,
}

// SAFETY: an AlignedBuf owns its bytes alone, like a Vec<u8>.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read, as with Vec<u8>.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len_bytes`, rounded up to a multiple of `align_bytes`, both from the device's limits; its address is a
    /// multiple of `align_bytes` and of a page.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the alignment is no power of two, [`ErrorKind::NoMemory`] if memory is short.
    pub fn new(len_bytes: usize, align_bytes: usize) -> Result<Self> {
        let align = align_bytes.max(DEFAULT_ALIGN);
        let size = len_bytes.max(1).checked_next_multiple_of(align);
        let layout = size.and_then(|size| Layout::from_size_align(size, align).ok()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "allocate a buffer")
                .because(format!("{len_bytes} bytes aligned to {align_bytes} is not possible"))
        })?;
        // SAFETY: the layout has a size of at least one alignment unit, so it is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(raw).ok_or_else(|| {
            Error::new(ErrorKind::NoMemory, "allocate a buffer")
                .because(format!("no memory for {len_bytes} bytes"))
        })?;
        let len = len_bytes.max(1).next_multiple_of(align_bytes.max(1)).min(layout.size());
        Ok(Self { base, layout, len })
    }

    /// First byte, for requests that read into it or write from it.
    pub(super) const fn as_raw(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: base points to layout.size() zero-initialised bytes that live as long as self; len is no more (`new`).
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref; the exclusive borrow of self makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: base was allocated with exactly this layout and is freed once, here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes at {:p})", self.len, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_length_are_aligned_and_the_content_is_zero() {
        let mut b = AlignedBuf::new(5000, 512).unwrap();
        assert_eq!(b.as_ptr().addr() % 4096, 0);
        assert_eq!(b.len(), 5120, "a write of it must not reach further than was asked");
        assert!(b.iter().all(|&x| x == 0));
        b[5119] = 7;
        assert_eq!(b[5119], 7);
        assert_eq!(AlignedBuf::new(512, 512).unwrap().len(), 512);
    }

    #[test]
    fn impossible_alignments_and_sizes_are_errors() {
        assert!(AlignedBuf::new(1, 4097).is_err());
        assert!(AlignedBuf::new(usize::MAX, 4096).is_err());
    }
}
