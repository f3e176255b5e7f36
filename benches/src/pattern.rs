//! The bytes of the source, and the proof that the target holds them.
//!
//! The source's content depends on its offset alone, so the target is compared with what must be there, not with
//! what the source says now: half the reading, and a tool that damaged the source cannot pass. The source itself is
//! checked in the same way when it was made, and again after the last round. All reads and writes here are
//! O_DIRECT, so no page cache can stand in for the disk.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use blkmirror_testkit::fill::random_bytes;
use nix::fcntl::OFlag;

use crate::error::{Context, Failure, Result};

/// Bytes read or written at a time.
const STEP_BYTES: u64 = 4 << 20;
/// Enough for O_DIRECT everywhere.
const ALIGN_BYTES: usize = 4096;
/// Seed of the content; any number will do.
pub const SEED: u64 = 20;

/// Where a disk holds data. What is not data is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Everywhere.
    Full,
    /// The first chunk of every stride.
    Scattered {
        /// Bytes of data.
        chunk_bytes: u64,
        /// From the start of one chunk to the start of the next; divides [`STEP_BYTES`].
        stride_bytes: u64,
    },
}

impl Pattern {
    /// Bytes of data on a disk of this size, a multiple of the stride.
    #[must_use]
    pub fn useful_bytes(self, disk_bytes: u64) -> u64 {
        match self {
            Self::Full => disk_bytes,
            Self::Scattered { chunk_bytes, stride_bytes } => disk_bytes / stride_bytes * chunk_bytes,
        }
    }

    /// Makes what belongs at `offset`, a multiple of the step.
    fn make(self, offset: u64, buffer: &mut [u8]) {
        match self {
            Self::Full => random_bytes(SEED, offset, buffer),
            Self::Scattered { chunk_bytes, stride_bytes } => {
                buffer.fill(0);
                let (chunk, stride) = (to_usize(chunk_bytes), to_usize(stride_bytes));
                for (start, part) in (offset..).step_by(stride).zip(buffer.chunks_mut(stride)) {
                    let len = chunk.min(part.len());
                    random_bytes(SEED, start, &mut part[..len]);
                }
            }
        }
    }
}

/// Writes random data over the whole of an existing file or device.
pub fn write_full(path: &Path, disk_bytes: u64) -> Result<()> {
    let file = open(path, true)?;
    each_step(disk_bytes, |offset, buffer| {
        Pattern::Full.make(offset, buffer);
        file.write_all_at(buffer, offset).context(|| format!("{} at {offset}", path.display()))
    })?;
    file.sync_all().context(|| path.display())
}

/// Overwrites everything with bytes that no source holds, so that nothing a former run wrote can pass as this one's.
pub fn spoil(path: &Path, disk_bytes: u64) -> Result<()> {
    let file = open(path, true)?;
    each_step(disk_bytes, |offset, buffer| {
        buffer.fill(0xA5);
        file.write_all_at(buffer, offset).context(|| format!("{} at {offset}", path.display()))
    })?;
    file.sync_all().context(|| path.display())
}

/// Fails unless every byte of the disk is what the pattern says.
pub fn check(path: &Path, pattern: Pattern, disk_bytes: u64) -> Result<()> {
    let file = open(path, false)?;
    each_step(disk_bytes, |offset, buffer| {
        let mut wanted = vec![0; buffer.len()];
        pattern.make(offset, &mut wanted);
        file.read_exact_at(buffer, offset).context(|| format!("{} at {offset}", path.display()))?;
        if *buffer == *wanted {
            return Ok(());
        }
        let index =
            buffer.iter().zip(&wanted).position(|(found, wanted)| found != wanted).unwrap_or_default();
        let wrong = offset + index as u64;
        Err(Failure::new(format!("{}: differs from the source at byte {wrong}", path.display())))
    })
}

/// Opens around the page cache. Never creates: a slip in a name must not make a file in /dev.
fn open(path: &Path, write: bool) -> Result<File> {
    let flags = OFlag::O_DIRECT.bits();
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).context(|| path.display())
}

/// Calls `work` for every step of the disk, from as many threads as there are cores; the first failure ends it.
fn each_step(disk_bytes: u64, work: impl Fn(u64, &mut [u8]) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let run = || {
        // A longer vector and the aligned part of it: memory for O_DIRECT without unsafe.
        let mut memory = vec![0; to_usize(STEP_BYTES) + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES);
        loop {
            let offset = next.fetch_add(STEP_BYTES, Ordering::Relaxed);
            if offset >= disk_bytes {
                return Ok(());
            }
            let len = to_usize(STEP_BYTES.min(disk_bytes - offset));
            let result = work(offset, &mut memory[start..start + len]);
            if result.is_err() {
                // Nothing is left for the others.
                next.store(disk_bytes, Ordering::Relaxed);
                return result;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("a checking thread panicked")))
        })
    })
}

/// Sizes of buffers; all of them are far below what any platform can address.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkmirror_testkit::fill::scattered_file;

    const SCATTERED: Pattern = Pattern::Scattered { chunk_bytes: 65536, stride_bytes: 524_288 };
    const DISK_BYTES: u64 = 3 * STEP_BYTES;

    /// A file of zeroes on a file system that knows O_DIRECT.
    fn zeroes() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        file.as_file().set_len(DISK_BYTES).unwrap();
        file
    }

    #[test]
    fn a_written_pattern_passes_and_one_wrong_byte_does_not() {
        for pattern in [Pattern::Full, SCATTERED] {
            let file = zeroes();
            assert!(check(file.path(), pattern, DISK_BYTES).is_err());
            match pattern {
                Pattern::Full => write_full(file.path(), DISK_BYTES).unwrap(),
                Pattern::Scattered { chunk_bytes, stride_bytes } => {
                    scattered_file(file.path(), DISK_BYTES, chunk_bytes, stride_bytes, SEED).unwrap();
                }
            }
            check(file.path(), pattern, DISK_BYTES).unwrap();
            for wrong in [0, 65_536, STEP_BYTES + 77, DISK_BYTES - 1] {
                let mut byte = [0];
                file.as_file().read_exact_at(&mut byte, wrong).unwrap();
                file.as_file().write_all_at(&[!byte[0]], wrong).unwrap();
                let failure = check(file.path(), pattern, DISK_BYTES).unwrap_err().to_string();
                assert!(failure.ends_with(&format!("byte {wrong}")), "{failure}");
                file.as_file().write_all_at(&byte, wrong).unwrap();
            }
        }
    }

    #[test]
    fn nothing_of_a_spoiled_disk_passes() {
        let file = zeroes();
        write_full(file.path(), DISK_BYTES).unwrap();
        spoil(file.path(), DISK_BYTES).unwrap();
        let mut page = [0; 8];
        for offset in (0..DISK_BYTES).step_by(4096) {
            file.as_file().read_exact_at(&mut page, offset).unwrap();
            assert_eq!(page, [0xA5; 8]);
        }
    }

    #[test]
    fn one_chunk_in_eight_is_an_eighth_of_the_disk() {
        assert_eq!(SCATTERED.useful_bytes(8 << 30), 1 << 30);
    }
}
