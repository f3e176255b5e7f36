//! Where data is and where holes are.
//!
//! Asked of the file system with `SEEK_DATA` and `SEEK_HOLE`, one extent at a time and never kept: an answer is true for
//! every write that completed before the question, also for data that is only in the page cache so far. So a copier that
//! asks after it cleared the dirty bits ("Claim, clear, read") misses nothing: a write that comes later marks its chunk
//! again.
//!
//! FIEMAP hands over many extents at once and costs a third of it per extent (0.3 against 0.85 microseconds on ext4), but
//! it shows what is on disk: a preallocated range with fresh data in the page cache looks like a range without data. Its
//! sync flag cures that by making the kernel write the source's data out, which is not ours to ask for.
//!
//! A block device has no status; all of it counts as data, and nothing is asked.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{Device, DeviceKind, open};
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteRange;

/// What the bytes of an extent are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExtentKind {
    /// Data, or what must be taken for data.
    Data,
    /// A hole: reads as zero.
    Zero,
    /// Not in this layer; what is below shows.
    Absent,
}

/// A range in which the status does not change. Its ends are where the file system puts them, not aligned to anything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// Which bytes.
    pub range: ByteRange,
    /// What they are.
    pub kind: ExtentKind,
}

impl Device {
    /// The status from `offset` to where it changes or the device ends; empty data at the end.
    ///
    /// Asked with `lseek(2)`: `SEEK_DATA` finds the next data, and `ENXIO` means that there is none up to the end, so the
    /// rest is a hole (or the file shrank, which is looked at then). `SEEK_HOLE` finds the data's end. A file system that
    /// knows neither makes everything data. The file position of this descriptor moves.
    ///
    /// # Errors
    /// [`ErrorKind::SourceShrank`] if the file has become shorter than it was, and errors of the medium.
    pub fn status(&self, offset: u64) -> Result<Extent> {
        let extent =
            |end: u64, kind| Extent { range: ByteRange::new(offset, end.min(self.size_bytes())), kind };
        match self.seek_data(offset)? {
            Sought::All => Ok(extent(u64::MAX, ExtentKind::Data)),
            Sought::None => Ok(extent(u64::MAX, ExtentKind::Zero)),
            Sought::At(start) if start > offset => Ok(extent(start, ExtentKind::Zero)),
            Sought::At(_) => Ok(extent(self.seek_hole(offset)?, ExtentKind::Data)),
        }
    }

    /// Whether [`status`](Self::status) answers without waiting for a server or for another program; where it does not, a thread
    /// that may not hang must not ask.
    #[must_use]
    pub fn answers_at_once(&self) -> bool {
        // Relaxed: as in `seek_data`. A device that needs no system call always answers.
        self.kind() == DeviceKind::BlockDevice
            || self.shared.file_system.answers_at_once()
            || self.shared.no_status.load(Ordering::Relaxed)
    }

    /// The next extent of data at or after `from`, or `None` if only holes follow. Two system calls per extent of data,
    /// where walking with [`status`](Self::status) makes three.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn next_data(&self, from: u64) -> Result<Option<ByteRange>> {
        let size_bytes = self.size_bytes();
        let found = match self.seek_data(from)? {
            Sought::All => ByteRange::new(from, size_bytes),
            Sought::None => return Ok(None),
            Sought::At(start) if start >= size_bytes => return Ok(None),
            Sought::At(start) => ByteRange::new(start, self.seek_hole(start)?.min(size_bytes)),
        };
        Ok((!found.is_empty()).then_some(found))
    }

    /// Whether the whole device is known to read as zero: a file that is one hole. `false` when that cannot be told.
    #[must_use]
    pub fn reads_as_zeroes(&self) -> bool {
        self.kind() == DeviceKind::RegularFile
            && (self.size_bytes() == 0 || matches!(self.seek_data(0), Ok(Sought::None)))
    }

    /// Looks for data at or after `offset`.
    fn seek_data(&self, offset: u64) -> Result<Sought> {
        let size_bytes = self.size_bytes();
        // Relaxed: a hint that saves a system call; no data depends on it.
        if self.kind() == DeviceKind::BlockDevice
            || self.shared.no_status.load(Ordering::Relaxed)
            || offset >= size_bytes
        {
            return Ok(Sought::All);
        }
        match seek(self.as_fd(), SeekFrom::Data(offset)) {
            Ok(start) => Ok(Sought::At(start)),
            // A hole up to the end, or the end has come nearer.
            Err(Errno::NXIO) => {
                let now = open::current_size(self.as_fd(), self.kind()).map_err(|e| self.status_failed(e))?;
                if now < size_bytes { Err(self.shrank(now)) } else { Ok(Sought::None) }
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.shared.no_status.store(true, Ordering::Relaxed);
                Ok(Sought::All)
            }
            Err(e) => Err(self.status_failed(e)),
        }
    }

    /// The end of the data that `offset` lies in.
    fn seek_hole(&self, offset: u64) -> Result<u64> {
        match seek(self.as_fd(), SeekFrom::Hole(offset)) {
            Ok(end) if end > offset => Ok(end),
            // The data became a hole between the two questions. Take one block for data and let the next question tell:
            // reading a hole is correct, only not free.
            Ok(_) => Ok(offset.saturating_add(self.limits().offset_align_bytes)),
            Err(Errno::NXIO) => {
                let now = open::current_size(self.as_fd(), self.kind()).map_err(|e| self.status_failed(e))?;
                Err(self.shrank(now))
            }
            Err(e) => Err(self.status_failed(e)),
        }
    }

    /// An error of the medium.
    fn status_failed(&self, errno: Errno) -> Error {
        Error::from_io("ask where data is in", errno).at(self.name())
    }

    /// The error for a file that became shorter.
    fn shrank(&self, now_bytes: u64) -> Error {
        let why = format!("it became shorter, from {} to {now_bytes} bytes", self.size_bytes());
        Error::new(ErrorKind::SourceShrank, "ask where data is in").at(self.name()).because(why)
    }
}

/// What looking for data found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sought {
    /// Nobody can tell; take all for data.
    All,
    /// Only a hole up to the end.
    None,
    /// Data at this offset.
    At(u64),
}
