//! A region of the host's memory: a guest's RAM, or a part of it, registered once so that requests inside it are cheap.
//!
//! Plain data: an address and a length. Nothing here reads or writes the bytes; a ring hands the range to the kernel, which pins
//! its pages and moves data to and from them.
#![allow(unsafe_code)]

/// A contiguous range of memory that a host vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRegion {
    /// First byte.
    ptr: *mut u8,
    /// Bytes.
    len: usize,
}

// SAFETY: it is an address and a length; who made it promised that the memory may be used from any thread.
unsafe impl Send for HostRegion {}
// SAFETY: as for Send; nothing is reached through a reference to it.
unsafe impl Sync for HostRegion {}

impl HostRegion {
    /// `len` bytes at `ptr`.
    ///
    /// # Safety
    /// From when it is given to [`Drive::map_memory`](crate::drive::Drive::map_memory) until
    /// [`Drive::unmap_memory`](crate::drive::Drive::unmap_memory) of it has succeeded, or the drive and every queue of it are gone:
    /// the bytes stay mapped, readable and writable, as the same memory (it is not replaced by other memory at the same address,
    /// nor are its pages given back with `madvise(2)`; the kernel goes on using the pages that it found here), and may be used from
    /// any thread. They are no memory of a ring.
    #[must_use]
    pub const unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// First byte.
    #[must_use]
    pub const fn as_ptr(self) -> *mut u8 {
        self.ptr
    }

    /// Bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there is not a byte in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The address of the first byte.
    pub(crate) fn start(self) -> usize {
        self.ptr.addr()
    }

    /// The address behind the last byte; it does not wrap, or the region was refused.
    pub(crate) fn end(self) -> usize {
        self.start().saturating_add(self.len)
    }

    /// Whether `len` bytes at `start` lie inside.
    pub(crate) fn covers(self, start: usize, len: usize) -> bool {
        start >= self.start() && len <= self.len && start - self.start() <= self.len - len
    }

    /// Some of its bytes; less where it ends.
    #[must_use]
    pub(crate) fn part(self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self { ptr: self.ptr.wrapping_add(offset), len: len.min(self.len - offset) }
    }

    /// A range of addresses for a simulated ring, which compares addresses and hands nothing to a kernel.
    #[cfg(test)]
    pub(crate) fn simulated(start: usize, len: usize) -> Self {
        Self { ptr: std::ptr::without_provenance_mut(start), len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_inside_as_a_whole_is_covered() {
        let region = HostRegion::simulated(1000, 100);
        for (start, len, inside) in [
            (1000, 100, true),
            (1099, 1, true),
            (1100, 0, true),
            (999, 1, false),
            (1000, 101, false),
            (1099, 2, false),
            (usize::MAX, 10, false),
            (1050, usize::MAX, false),
        ] {
            assert_eq!(region.covers(start, len), inside, "{start} {len}");
        }
        assert_eq!(region.part(90, 100), HostRegion::simulated(1090, 10));
        assert!(region.part(200, 1).is_empty());
    }
}
