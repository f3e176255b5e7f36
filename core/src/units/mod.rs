//! Units of the disk: bytes, chunks and the granularity that ties them.
//!
//! A number that has been through here is known to be good: ranges do not end before they start, a granularity is a
//! power of two inside its bounds, a chunk index is not mistaken for a byte offset. Everything above relies on that and
//! checks nothing again (parse, don't validate).
#![forbid(unsafe_code)]

mod chunk;
mod range;
mod size;

pub use chunk::{Chunk, ChunkRange, Granularity};
pub use range::ByteRange;
pub use size::{format_size, parse_size};

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;
/// 1 TiB in bytes.
pub const TIB: u64 = 1 << 40;
/// The largest disk that blkmirror mirrors: 64 TiB.
pub const MAX_DISK_BYTES: u64 = 64 * TIB;

/// A length in memory as a length on disk.
///
/// Lossless on every target that Linux io_uring runs on, where `usize` has at most 64 bits.
#[must_use]
#[inline]
pub const fn bytes_u64(len: usize) -> u64 {
    len as u64
}

/// A length on disk as a length in memory, saturating where `usize` is narrower.
#[must_use]
#[inline]
pub fn bytes_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
