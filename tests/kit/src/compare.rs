//! Comparing two files or devices, byte for byte.
//!
//! Reads go around the page cache (O_DIRECT) wherever the file system lets them: the cache of a loop device does not
//! notice what is written to the file below it, and a comparison that reads stale pages proves nothing. Where O_DIRECT is
//! refused, the cache of the file is written back and dropped first.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::run::context;

/// Bytes compared at a time.
const STEP_BYTES: u64 = 4 << 20;
/// Enough for O_DIRECT on every device there is.
const ALIGN_BYTES: usize = 4096;

/// How two files differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The sizes differ: of the first, of the second.
    Size(u64, u64),
    /// The first byte that differs.
    Byte(u64),
}

/// Whether the two hold the same bytes and have the same size.
///
/// # Errors
/// When one cannot be opened or read.
pub fn equal(a: &Path, b: &Path) -> io::Result<bool> {
    Ok(first_difference(a, b)?.is_none())
}

/// Where the two differ first, if they do.
///
/// # Errors
/// When one cannot be opened or read.
pub fn first_difference(a: &Path, b: &Path) -> io::Result<Option<Difference>> {
    let (a, b) = (Side::open(a)?, Side::open(b)?);
    if a.len_bytes != b.len_bytes {
        return Ok(Some(Difference::Size(a.len_bytes, b.len_bytes)));
    }
    first_difference_in(&a, &b, a.len_bytes)
}

/// Where the first `len_bytes` of the two differ first; sizes may differ.
///
/// # Errors
/// When one cannot be opened or read, or is shorter.
pub fn first_difference_within(a: &Path, b: &Path, len_bytes: u64) -> io::Result<Option<Difference>> {
    first_difference_in(&Side::open(a)?, &Side::open(b)?, len_bytes)
}

/// The first offset at which `path` does not hold what [`crate::fill::random_bytes`] makes for it, if there is one.
///
/// # Errors
/// When it cannot be opened or read.
pub fn first_not_random(path: &Path, offset: u64, len_bytes: u64, seed: u64) -> io::Result<Option<u64>> {
    let mut wanted = vec![0; usize::try_from(STEP_BYTES).map_err(io::Error::other)?];
    first_unlike(path, offset, len_bytes, |at, found| {
        crate::fill::random_bytes(seed, at, &mut wanted[..found.len()]);
        mismatch(found, &wanted[..found.len()])
    })
}

/// The first offset at which `path` holds another byte than `byte`, if there is one.
///
/// # Errors
/// When it cannot be opened or read.
pub fn first_not_pattern(path: &Path, offset: u64, len_bytes: u64, byte: u8) -> io::Result<Option<u64>> {
    first_unlike(path, offset, len_bytes, |_, found| found.iter().position(|&other| other != byte))
}

/// Steps through a range of `path`; `check` returns the index of the first wrong byte.
fn first_unlike(
    path: &Path,
    offset: u64,
    len_bytes: u64,
    mut check: impl FnMut(u64, &[u8]) -> Option<usize>,
) -> io::Result<Option<u64>> {
    let side = Side::open(path)?;
    let mut buffer = Aligned::new(STEP_BYTES)?;
    let end = offset + len_bytes;
    // O_DIRECT wants aligned offsets: read from the aligned offset below and look at the part that was asked for.
    let mut at = offset - offset % ALIGN_BYTES as u64;
    while at < end {
        let found = side.read(&mut buffer, at, STEP_BYTES.min(end - at))?;
        let skip = usize::try_from(offset.saturating_sub(at)).map_err(io::Error::other)?;
        if let Some(index) = check(at + skip as u64, &found[skip..]) {
            return Ok(Some(at + (skip + index) as u64));
        }
        at += found.len() as u64;
    }
    Ok(None)
}

/// Two threads, a half of the disk each: on two cores that is as fast as memory.
fn first_difference_in(a: &Side, b: &Side, len: u64) -> io::Result<Option<Difference>> {
    let middle = len / 2 / STEP_BYTES * STEP_BYTES;
    let (low, high) = thread::scope(|scope| {
        let high = scope.spawn(|| compare_range(a, b, middle, len));
        (compare_range(a, b, 0, middle), high.join())
    });
    let high = high.map_err(|_| io::Error::other("a comparing thread panicked"))?;
    Ok(low?.or(high?).map(Difference::Byte))
}

/// The first offset in `from..to` at which the two differ.
fn compare_range(a: &Side, b: &Side, from: u64, to: u64) -> io::Result<Option<u64>> {
    let (mut buffer_a, mut buffer_b) = (Aligned::new(STEP_BYTES)?, Aligned::new(STEP_BYTES)?);
    let mut at = from;
    while at < to {
        let want = STEP_BYTES.min(to - at);
        let bytes_a = a.read(&mut buffer_a, at, want)?;
        let bytes_b = b.read(&mut buffer_b, at, want)?;
        if let Some(index) = mismatch(bytes_a, bytes_b) {
            return Ok(Some(at + index as u64));
        }
        at += want;
    }
    Ok(None)
}

/// The index of the first byte in which two slices of the same length differ.
fn mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    // The slice comparison is memcmp; only a difference is looked at byte by byte.
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

/// A file or device opened for comparing.
struct Side {
    /// Opened with O_DIRECT if it can be.
    file: File,
    /// Its size.
    len_bytes: u64,
    /// What to call it in errors.
    name: String,
}

impl Side {
    /// Opens `path` so that reads see what is stored.
    fn open(path: &Path) -> io::Result<Self> {
        let fail = |error: io::Error| context(path.display(), &error);
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        let mut file = match direct {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let file = File::open(path).map_err(fail)?;
                if !file.metadata()?.file_type().is_char_device() {
                    file.sync_all().map_err(fail)?;
                    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                }
                file
            }
            Err(error) => return Err(fail(error)),
        };
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Self { file, len_bytes, name: path.display().to_string() })
    }

    /// Reads exactly `want` bytes at `at`, which is aligned.
    fn read<'b>(&self, buffer: &'b mut Aligned, at: u64, want: u64) -> io::Result<&'b [u8]> {
        let want = usize::try_from(want).map_err(io::Error::other)?;
        let space = buffer.bytes();
        let mut have = 0;
        while have < want {
            // The whole aligned rest, not just `want`: a file may end inside a sector, and O_DIRECT then reads short.
            let until = want.next_multiple_of(ALIGN_BYTES).min(space.len());
            let got = self
                .file
                .read_at(&mut space[have..until], at + have as u64)
                .map_err(|error| context(format_args!("{} at {at}", self.name), &error))?;
            if got == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{} ends at {}, before {}", self.name, at + have as u64, at + want as u64),
                ));
            }
            have += got;
        }
        Ok(&space[..want])
    }
}

/// Memory that O_DIRECT accepts, without unsafe: a longer vector and the aligned part of it.
struct Aligned {
    /// Longer than needed by one alignment.
    memory: Vec<u8>,
    /// Where the aligned part starts.
    start: usize,
    /// How long it is.
    len: usize,
}

impl Aligned {
    /// `len` aligned bytes.
    fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let memory = vec![0; len + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES);
        Ok(Self { memory, start, len })
    }

    /// The aligned part.
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScratchDir, fill};

    #[test]
    fn one_flipped_byte_is_found_wherever_it_is() {
        let dir = ScratchDir::new().unwrap();
        let len = 2 * STEP_BYTES + 4096 + 13;
        let (a, b) = (dir.join("a"), dir.join("b"));
        fill::random_file(&a, len, 1).unwrap();
        fill::random_file(&b, len, 1).unwrap();
        assert!(equal(&a, &b).unwrap());
        for at in [0, 511, 4096, STEP_BYTES - 1, STEP_BYTES, len - 1] {
            let file = OpenOptions::new().read(true).write(true).open(&b).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
            assert_eq!(first_difference(&a, &b).unwrap(), Some(Difference::Byte(at)));
            assert_eq!(first_not_random(&b, 0, len, 1).unwrap(), Some(at));
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(first_not_random(&b, 8, len - 8, 1).unwrap(), None);
        File::options().write(true).open(&b).unwrap().set_len(len - 1).unwrap();
        assert_eq!(first_difference(&a, &b).unwrap(), Some(Difference::Size(len, len - 1)));
    }
}
