//! Byte ranges of a disk.

use std::fmt;

/// A half-open range of bytes on a disk; `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteRange {
    /// First byte.
    start: u64,
    /// One past the last byte.
    end: u64,
}

impl ByteRange {
    /// The range `start..end`; empty at `start` if `end` lies before it.
    #[must_use]
    #[inline]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// The range of `len` bytes at `start`, cut at `u64::MAX`.
    #[must_use]
    #[inline]
    pub const fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// First byte.
    #[must_use]
    #[inline]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    #[inline]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The common part; empty if there is none.
    #[must_use]
    #[inline]
    pub fn intersect(&self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end).max(start))
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(&self, other: Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// Grown outwards to multiples of `align` (a power of two), saturating at the end of the number line.
    #[must_use]
    pub const fn align_out(&self, align: u64) -> Self {
        let mask = align - 1;
        Self { start: self.start & !mask, end: self.end.saturating_add(mask) & !mask }
    }

    /// Shrunk inwards to multiples of `align` (a power of two); may become empty.
    #[must_use]
    pub const fn align_in(&self, align: u64) -> Self {
        let mask = align - 1;
        Self::new(self.start.saturating_add(mask) & !mask, self.end & !mask)
    }

    /// The first `len` bytes, or all if there are fewer.
    #[must_use]
    #[inline]
    pub fn prefix(&self, len: u64) -> Self {
        Self { start: self.start, end: self.start.saturating_add(len).min(self.end) }
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_ends_before_it_starts() {
        assert!(ByteRange::new(10, 5).is_empty());
        assert_eq!(ByteRange::at(u64::MAX - 1, 10).end(), u64::MAX);
    }

    #[test]
    fn alignment_grows_outwards_and_shrinks_inwards() {
        let r = ByteRange::new(5000, 9000);
        assert_eq!(r.align_out(4096), ByteRange::new(4096, 12288));
        assert_eq!(r.align_in(4096), ByteRange::new(8192, 8192));
        assert!(ByteRange::new(1, 4095).align_in(4096).is_empty());
    }

    #[test]
    fn intersection_of_strangers_is_empty() {
        assert!(ByteRange::new(0, 5).intersect(ByteRange::new(7, 9)).is_empty());
        assert!(!ByteRange::new(0, 5).overlaps(ByteRange::new(5, 9)));
        assert!(ByteRange::new(0, 6).overlaps(ByteRange::new(5, 9)));
    }
}
