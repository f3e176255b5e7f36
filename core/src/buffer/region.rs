//! One private anonymous mapping on huge pages.
//!
//! Assumes nothing of the kernel beyond mmap: where transparent huge pages are off, the region is made of small pages
//! and [`Region::huge_bytes`] says so; requests are then cut to what scattered memory allows.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{Error, ErrorKind, Result};

/// Size and alignment of a huge page on the architectures that matter here (x86-64, AArch64 with 4 KiB pages).
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A mapping of whole huge pages, aligned to them, touched, never moved, unmapped on drop.
///
/// Whoever lets a device write into it must keep it alive until the last request is done; the ring does.
#[derive(Debug)]
pub struct Region {
    /// First byte; aligned to a huge page.
    base: NonNull<u8>,
    /// Bytes; a multiple of the huge page.
    len: usize,
}

// SAFETY: a Region is a plain range of memory that it owns alone; nothing in it is tied to the creating thread.
unsafe impl Send for Region {}

impl Region {
    /// Maps at least `bytes`, asks for huge pages and touches every page.
    ///
    /// # Errors
    /// [`ErrorKind::NoMemory`] when the memory cannot be had, [`ErrorKind::InvalidArgument`] for absurd sizes.
    pub fn new(bytes: u64) -> Result<Self> {
        let too_large = || {
            Error::new(ErrorKind::InvalidArgument, "allocate copy memory")
                .because(format!("{bytes} bytes is not a size this machine can map"))
        };
        let wanted = usize::try_from(bytes.max(1)).map_err(|_| too_large())?;
        let len = wanted.checked_next_multiple_of(HUGE_PAGE_BYTES).ok_or_else(too_large)?;
        let padded = len.checked_add(HUGE_PAGE_BYTES).ok_or_else(too_large)?;
        let no_memory = |e: rustix::io::Errno| {
            Error::from_io("allocate copy memory", e)
                .with_kind(ErrorKind::NoMemory)
                .because(format!("{} for {len} bytes; use a smaller --buf-size or fewer workers", e))
        };
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let raw = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                padded,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(no_memory)?;
        let lead = raw.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        let base = raw.cast::<u8>().wrapping_add(lead);
        Self::unmap(raw.cast(), lead);
        Self::unmap(base.wrapping_add(len), padded - lead - len);
        // mmap never returns null without MAP_FIXED, and base lies inside the mapping.
        let base = NonNull::new(base).ok_or_else(too_large)?;
        let region = Self { base, len };
        region.fault_in().map_err(no_memory)?;
        Ok(region)
    }

    /// Asks for huge pages, then touches every page, so that no fault happens on the I/O path.
    fn fault_in(&self) -> rustix::io::Result<()> {
        // Refused where transparent huge pages are not built in; small pages work too.
        // SAFETY: the range is exactly the mapping that this Region owns; the advice changes no content.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
        // Never inherited over fork: a child must not share memory that a device writes to.
        // SAFETY: as above.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontFork) };
        // SAFETY: as above; populating writes zeroes into pages that nobody has used yet (Linux 5.14).
        match unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) } {
            Err(rustix::io::Errno::INVAL) => {
                // SAFETY: the whole range is mapped writable and owned by this Region alone.
                unsafe { self.base.as_ptr().write_bytes(0, self.len) };
                Ok(())
            }
            other => other,
        }
    }

    /// Unmaps `len` bytes at `at`, both whole pages of a mapping owned by the caller.
    fn unmap(at: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        // SAFETY: the caller owns these pages and gives them up; failure only leaks address space.
        let _ = unsafe { munmap(at.cast(), len) };
    }

    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a region has at least one huge page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes of it the kernel put on huge pages, from `/proc/self/smaps`; `None` where that cannot be read.
    #[must_use]
    pub fn huge_bytes(&self) -> Option<u64> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        huge_bytes_in(&smaps, self.base.as_ptr().addr(), self.len)
    }
}

/// Sums the huge pages of the mappings in `smaps` that overlap `base..base + len`.
///
/// The kernel may have merged the region with a neighbour, so this is an upper bound; it is only reported.
fn huge_bytes_in(smaps: &str, base: usize, len: usize) -> Option<u64> {
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let head = line.split(' ').next()?;
        if let Some((start, end)) = head.split_once('-') {
            let start = usize::from_str_radix(start, 16).ok()?;
            let end = usize::from_str_radix(end, 16).ok()?;
            inside = start < base + len && base < end;
        } else if inside && head == "AnonHugePages:" {
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            sum += kib << 10;
        }
    }
    Some(sum.min(len as u64))
}

impl Drop for Region {
    fn drop(&mut self) {
        Self::unmap(self.base.as_ptr(), self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_whole_huge_pages_on_their_boundary() {
        let r = Region::new(3 << 20).unwrap();
        assert_eq!(r.len(), 4 << 20);
        assert_eq!(r.as_ptr().addr() % HUGE_PAGE_BYTES, 0);
        assert!(r.huge_bytes().is_some());
    }

    #[test]
    fn absurd_sizes_are_refused_not_a_crash() {
        assert!(Region::new(u64::MAX).is_err());
        assert!(Region::new(1 << 62).is_err());
    }

    #[test]
    fn huge_pages_are_counted_only_inside_the_region() {
        let smaps = "1000-3000 rw-p 0 00:00 0 \nAnonHugePages:      2048 kB\n9000-a000 rw-p 0 00:00 0 \nAnonHugePages: 4096 kB\n";
        assert_eq!(huge_bytes_in(smaps, 0x2000, 8 << 20), Some(2048 << 10 | 4096 << 10));
        assert_eq!(huge_bytes_in(smaps, 0x9000, 0x1000), Some(0x1000));
        assert_eq!(huge_bytes_in(smaps, 0x4000, 0x1000), Some(0));
    }
}
