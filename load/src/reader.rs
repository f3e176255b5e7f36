//! Reading a disk back, past the page cache.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::units::{ByteRange, MIB, bytes_u64, bytes_usize};
use blkmirror_core::{Error, Result};
use rustix::fs::{Mode, OFlags, open};

/// Something whose bytes can be looked at.
pub trait ReadAt {
    /// The bytes of `range`, which lies inside of it and is at most [`PIECE_BYTES`] long.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_at(&mut self, range: ByteRange) -> Result<&[u8]>;

    /// How many bytes there are.
    fn size_bytes(&self) -> u64;
}

/// The most that is read at a time.
pub const PIECE_BYTES: u64 = MIB;

/// A file or block device, read with `O_DIRECT` where the file system has it, so that the disk is asked and not the page
/// cache.
#[derive(Debug)]
pub struct DirectFile {
    /// The open file.
    file: File,
    /// For messages.
    name: String,
    /// Its size.
    size_bytes: u64,
    /// What was read last.
    buffer: AlignedBuf,
}

impl DirectFile {
    /// Opens it, read only.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::from_io("open for reading", e).at(path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = open(path, flags | OFlags::DIRECT, Mode::empty())
            .or_else(|_| open(path, flags, Mode::empty()))
            .map_err(failed)?;
        let size_bytes = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).map_err(failed)?;
        let buffer = AlignedBuf::new(bytes_usize(PIECE_BYTES), 4096)?;
        Ok(Self { file: File::from(fd), name: path.display().to_string(), size_bytes, buffer })
    }
}

impl ReadAt for DirectFile {
    fn read_at(&mut self, range: ByteRange) -> Result<&[u8]> {
        let len = bytes_usize(range.len()).min(self.buffer.len());
        // The end of a file need not be aligned; a read past it returns what there is.
        let asked = len.next_multiple_of(512).min(self.buffer.len());
        let mut done = 0;
        while done < len {
            let at = range.start() + bytes_u64(done);
            match self.file.read_at(&mut self.buffer[done..asked], at) {
                Ok(0) => {
                    return Err(Error::from_errno("read back", rustix::io::Errno::IO.raw_os_error())
                        .at(&self.name)
                        .in_range(range)
                        .because("it ends there"));
                }
                Ok(bytes) => done += bytes,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io("read back", e).at(&self.name).in_range(range)),
            }
        }
        Ok(&self.buffer[..len])
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
