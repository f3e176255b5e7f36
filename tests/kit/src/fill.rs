//! Content for files and devices: pseudo-random bytes that depend on the seed and the offset alone.
//!
//! Position-addressed, so that any part can be made, or checked, without the parts before it. Fast rather than good:
//! one multiply-and-shift mix per eight bytes, which no zero detection and no compression can shorten.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::run::context;

/// Bytes written at a time.
const BUFFER_BYTES: u64 = 4 << 20;

/// Fills `buffer` with the bytes that belong at `offset` (a multiple of 8) under `seed`.
pub fn random_bytes(seed: u64, offset: u64, buffer: &mut [u8]) {
    debug_assert!(offset.is_multiple_of(8), "content is made in words of 8 bytes");
    let mut index = (offset / 8).wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut words = buffer.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&mix(index).to_le_bytes());
        index = index.wrapping_add(1);
    }
    let tail = words.into_remainder();
    let last = mix(index).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

/// SplitMix64's finisher.
const fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes random bytes over `len_bytes` at `offset` of an existing file or device, and flushes them.
///
/// # Errors
/// When it cannot be opened, written or flushed.
pub fn random(path: &Path, offset: u64, len_bytes: u64, seed: u64) -> io::Result<()> {
    write_with(path, offset, len_bytes, |at, buffer| random_bytes(seed, at, buffer))
}

/// Writes the same byte over `len_bytes` at `offset` of an existing file or device, and flushes it.
///
/// # Errors
/// When it cannot be opened, written or flushed.
pub fn pattern(path: &Path, offset: u64, len_bytes: u64, byte: u8) -> io::Result<()> {
    write_with(path, offset, len_bytes, |_, buffer| buffer.fill(byte))
}

/// Creates (or replaces) the file `path` with `len_bytes` of random content.
///
/// # Errors
/// When it cannot be created or written.
pub fn random_file(path: &Path, len_bytes: u64, seed: u64) -> io::Result<()> {
    File::create(path).map_err(|error| context(path.display(), &error))?;
    random(path, 0, len_bytes, seed)
}

/// Creates (or replaces) the sparse file `path` of `len_bytes`, in which the first `chunk_bytes` of every
/// `every_bytes` hold random content and the rest is a hole.
///
/// # Errors
/// When it cannot be created or written.
pub fn scattered_file(
    path: &Path,
    len_bytes: u64,
    chunk_bytes: u64,
    every_bytes: u64,
    seed: u64,
) -> io::Result<()> {
    let file = File::create(path).map_err(|error| context(path.display(), &error))?;
    file.set_len(len_bytes)?;
    scatter(&file, len_bytes, chunk_bytes, every_bytes, seed)
}

/// Writes random content over the first `chunk_bytes` of every `every_bytes` of an existing device of `len_bytes`, and
/// leaves the rest alone.
///
/// # Errors
/// When it cannot be opened or written.
pub fn scattered_device(
    path: &Path,
    len_bytes: u64,
    chunk_bytes: u64,
    every_bytes: u64,
    seed: u64,
) -> io::Result<()> {
    scatter(&open_existing(path)?, len_bytes, chunk_bytes, every_bytes, seed)
}

/// The writing part of the scattered ones.
fn scatter(file: &File, len_bytes: u64, chunk_bytes: u64, every_bytes: u64, seed: u64) -> io::Result<()> {
    if every_bytes == 0 || chunk_bytes > every_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a chunk must fit in its stride"));
    }
    let mut buffer = vec![0; usize::try_from(chunk_bytes).map_err(io::Error::other)?];
    let mut offset = 0;
    while offset < len_bytes {
        let len = usize::try_from(chunk_bytes.min(len_bytes - offset)).map_err(io::Error::other)?;
        random_bytes(seed, offset, &mut buffer[..len]);
        file.write_all_at(&buffer[..len], offset)?;
        offset += every_bytes;
    }
    file.sync_all()
}

/// Writes what `make(offset, buffer)` produces.
fn write_with(path: &Path, offset: u64, len: u64, mut make: impl FnMut(u64, &mut [u8])) -> io::Result<()> {
    let file = open_existing(path)?;
    let mut buffer = vec![0; usize::try_from(BUFFER_BYTES.min(len)).map_err(io::Error::other)?];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(BUFFER_BYTES.min(len - done)).map_err(io::Error::other)?;
        make(offset + done, &mut buffer[..part]);
        file.write_all_at(&buffer[..part], offset + done)
            .map_err(|error| context(format_args!("{} at {}", path.display(), offset + done), &error))?;
        done += part as u64;
    }
    // Whoever reads with O_DIRECT, or the file below a loop device, must see it.
    file.sync_all()
}

/// Opens what must exist already, so that a slip in a device's name does not make a file in /dev.
fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path).map_err(|error| context(path.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_depends_on_seed_and_offset_alone() {
        let mut whole = [0; 64];
        let mut part = [0; 13];
        random_bytes(7, 4096, &mut whole);
        random_bytes(7, 4096 + 16, &mut part);
        assert_eq!(whole[16..29], part);
        random_bytes(8, 4096 + 16, &mut part);
        assert_ne!(whole[16..29], part);
    }
}
