//! Chunks: `granularity` bytes of the disk, one bit in every bitmap; the last one may be short.

use std::fmt;

use super::{ByteRange, KIB, MIB};
use crate::error::{Error, ErrorKind, Result};

/// Index of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Chunk(pub u64);

/// A half-open range of chunks; `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChunkRange {
    /// First chunk.
    start: u64,
    /// One past the last chunk.
    end: u64,
}

impl ChunkRange {
    /// The range `start..end`; empty at `start` if `end` lies before it.
    #[must_use]
    #[inline]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// First chunk.
    #[must_use]
    #[inline]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// One past the last chunk.
    #[must_use]
    #[inline]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// How many chunks.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no chunk.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl fmt::Debug for ChunkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunks {}..{}", self.start, self.end)
    }
}

/// Bytes a bit stands for: a power of two from 512 bytes to 64 MiB, as in QEMU's `granularity`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Granularity {
    /// log2 of the bytes.
    shift: u32,
}

impl Granularity {
    /// The smallest granularity in bytes.
    pub const MIN_BYTES: u64 = 512;
    /// The largest granularity in bytes.
    pub const MAX_BYTES: u64 = 64 * MIB;
    /// 64 KiB, the default where nothing is known of clusters.
    pub const DEFAULT: Self = Self { shift: 16 };

    /// A granularity of `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless `bytes` is a power of two from 512 to 64 MiB.
    pub fn new(bytes: u64) -> Result<Self> {
        if !bytes.is_power_of_two() || !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes) {
            return Err(Error::new(ErrorKind::InvalidArgument, "set the granularity")
                .because(format!("{bytes} bytes is not a power of two from 512 bytes to 64 MiB; try 64K")));
        }
        Ok(Self { shift: bytes.trailing_zeros() })
    }

    /// The default for a target: its cluster size clamped to 4 KiB..64 KiB, 64 KiB where there are no clusters.
    #[must_use]
    pub fn default_for(cluster_bytes: Option<u64>) -> Self {
        cluster_bytes
            .filter(|bytes| bytes.is_power_of_two())
            .and_then(|bytes| Self::new(bytes.clamp(4 * KIB, 64 * KIB)).ok())
            .unwrap_or(Self::DEFAULT)
    }

    /// Bytes of a chunk.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The chunk that holds byte `offset`.
    #[must_use]
    #[inline]
    pub const fn chunk_of(self, offset: u64) -> Chunk {
        Chunk(offset >> self.shift)
    }

    /// How many chunks a disk of `disk_bytes` has; the last may be short.
    #[must_use]
    pub const fn chunks_in(self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(self.bytes())
    }

    /// Every chunk that `range` touches.
    #[must_use]
    #[inline]
    pub const fn chunks_touched(self, range: ByteRange) -> ChunkRange {
        if range.is_empty() {
            return ChunkRange::new(range.start() >> self.shift, range.start() >> self.shift);
        }
        ChunkRange::new(range.start() >> self.shift, ((range.end() - 1) >> self.shift) + 1)
    }

    /// The bytes of `chunks` on a disk of `disk_bytes`.
    #[must_use]
    #[inline]
    pub fn bytes_of(self, chunks: ChunkRange, disk_bytes: u64) -> ByteRange {
        let start = (chunks.start() << self.shift).min(disk_bytes);
        ByteRange::new(start, (chunks.end() << self.shift).min(disk_bytes))
    }
}

impl Default for Granularity {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Debug for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Granularity({})", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_inside_the_bounds_are_granularities() {
        for bytes in [0, 1, 256, 513, 3000, 128 * MIB, u64::MAX] {
            assert!(Granularity::new(bytes).is_err(), "{bytes}");
        }
        for bytes in [512, 4096, 65536, 64 * MIB] {
            assert_eq!(Granularity::new(bytes).unwrap().bytes(), bytes);
        }
    }

    #[test]
    fn the_default_is_the_cluster_size_clamped() {
        assert_eq!(Granularity::default_for(None).bytes(), 64 * KIB);
        assert_eq!(Granularity::default_for(Some(512)).bytes(), 4 * KIB);
        assert_eq!(Granularity::default_for(Some(32 * KIB)).bytes(), 32 * KIB);
        assert_eq!(Granularity::default_for(Some(2 * MIB)).bytes(), 64 * KIB);
    }

    #[test]
    fn the_last_chunk_may_be_short() {
        let g = Granularity::new(4096).unwrap();
        assert_eq!(g.chunks_in(4097), 2);
        assert_eq!(g.bytes_of(ChunkRange::new(1, 2), 4097), ByteRange::new(4096, 4097));
        assert_eq!(g.chunks_touched(ByteRange::new(4095, 4097)), ChunkRange::new(0, 2));
        assert!(g.chunks_touched(ByteRange::new(4095, 4095)).is_empty());
    }
}
