//! Space without data: preallocate, write zeroes, discard; and flush.
//!
//! Zeroes are written by a ladder: the best way first, and a way that the kernel says it does not have is not tried
//! again. The calls block, some for long (a block device without an offload is zeroed by the kernel, page by page), so
//! callers keep ranges bounded and stay off latency paths. Ranges must be whole blocks: `fallocate` on a block device
//! insists on it, and on a file a partial block would be zeroed through the page cache behind our direct writes.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::{Device, DeviceKind, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteRange;

/// Whether zeroing may release space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ZeroMode {
    /// Release the space if possible: holes stay holes.
    Punch,
    /// Keep the space allocated.
    Keep,
}

/// How zeroes came about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Zeroed {
    /// By releasing space, or by a command that may release it.
    Punched,
    /// With the space kept.
    Kept,
}

/// Which ways of zeroing failed as unsupported.
#[derive(Debug, Default)]
pub(super) struct Ladder(AtomicU8);

/// A way of zeroing: a rung of the ladder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rung {
    /// A hole in a file; a write-zeroes command that may unmap on a block device.
    Punch,
    /// Zeroes that keep the space; on a block device without the command the kernel writes pages of zeroes.
    ZeroRange,
    /// Space without zeroing what is there.
    Allocate,
}

impl Rung {
    /// Its bit in the ladder.
    const fn bit(self) -> u8 {
        match self {
            Self::Punch => 1,
            Self::ZeroRange => 2,
            Self::Allocate => 4,
        }
    }

    /// How to ask the kernel for it.
    const fn flags(self) -> FallocateFlags {
        match self {
            Self::Punch => FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
            Self::ZeroRange => FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
            Self::Allocate => FallocateFlags::KEEP_SIZE,
        }
    }
}

/// How one rung went.
enum Tried {
    /// The range is done.
    Done,
    /// Not here; take the next one.
    Unsupported,
}

impl Device {
    /// Reserves space for a range without changing what it reads as. A block device has its space and is left alone.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`], [`ErrorKind::Unsupported`] where the file system cannot (nothing is lost then: writes
    /// allocate), [`ErrorKind::InvalidArgument`] for a range that is not whole blocks inside the device.
    pub fn preallocate(&self, range: ByteRange) -> Result<()> {
        let attempt = "preallocate space in";
        self.check_range(attempt, range)?;
        if self.kind() == DeviceKind::BlockDevice || range.is_empty() {
            return Ok(());
        }
        match self.try_rung(attempt, Rung::Allocate, range)? {
            Tried::Done => Ok(()),
            Tried::Unsupported => Err(self.unsupported(
                attempt,
                range,
                "its file system cannot reserve space; writes will allocate it",
            )),
        }
    }

    /// Makes a range read as zero without sending zeroes, with `fallocate(2)`.
    ///
    /// [`ZeroMode::Punch`] tries `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`, then `FALLOC_FL_ZERO_RANGE |
    /// FALLOC_FL_KEEP_SIZE`; [`ZeroMode::Keep`] only the latter. What answers `EOPNOTSUPP` is not tried again on this
    /// device. On a block device both are a write-zeroes command, with and without the permission to unmap; if it has none,
    /// zero-range makes the kernel write pages of zeroes, which takes as long as writing does.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if there is no way but to write zeroes; [`ErrorKind::NoSpace`];
    /// [`ErrorKind::InvalidArgument`] for a range that is not whole blocks inside the device; errors of the medium.
    pub fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<Zeroed> {
        let attempt = "write zeroes to";
        self.check_range(attempt, range)?;
        let rungs: &[(Rung, Zeroed)] = match mode {
            ZeroMode::Punch => &[(Rung::Punch, Zeroed::Punched), (Rung::ZeroRange, Zeroed::Kept)],
            ZeroMode::Keep => &[(Rung::ZeroRange, Zeroed::Kept)],
        };
        for &(rung, how) in rungs {
            if let Tried::Done = self.try_rung(attempt, rung, range)? {
                return Ok(how);
            }
        }
        Err(self.unsupported(
            attempt,
            range,
            "neither holes nor zero ranges are supported; write zeroes instead",
        ))
    }

    /// Whether [`write_zeroes`](Self::write_zeroes) writes none: a file system never does, and a block device has a command for it.
    /// Without one the kernel writes pages of zeroes.
    pub(crate) fn zeroes_quickly(&self) -> bool {
        let queue = self.limits().queue.as_ref();
        self.kind() != DeviceKind::BlockDevice
            || queue.and_then(|queue| queue.write_zeroes_max_bytes).is_some_and(|bytes| bytes > 0)
    }

    /// Tells the device that a range is not needed. What it reads as afterwards is zero, since only ways that promise
    /// that are used.
    ///
    /// # Errors
    /// As [`write_zeroes`](Self::write_zeroes); [`ErrorKind::Unsupported`] costs nothing but space.
    pub fn discard(&self, range: ByteRange) -> Result<()> {
        let attempt = "discard";
        self.check_range(attempt, range)?;
        match self.try_rung(attempt, Rung::Punch, range)? {
            Tried::Done => Ok(()),
            Tried::Unsupported => Err(self.unsupported(attempt, range, "it cannot release space")),
        }
    }

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// The medium failed. What was written since the last flush must then be taken for lost: the kernel reports such an
    /// error once.
    pub fn flush(&self) -> Result<()> {
        loop {
            match fdatasync(self.as_fd()) {
                Err(Errno::INTR) => {}
                other => return other.map_err(|e| Error::from_io("flush", e).at(self.name())),
            }
        }
    }

    /// Refuses ranges that the kernel would refuse, with words instead of EINVAL.
    fn check_range(&self, attempt: &'static str, range: ByteRange) -> Result<()> {
        let wrong =
            |kind, why: String| Err(Error::new(kind, attempt).at(self.name()).in_range(range).because(why));
        if self.role() == Role::Source {
            return wrong(
                ErrorKind::PermissionDenied,
                "it is a source, and a source is never written to".to_owned(),
            );
        }
        let block = self.limits().logical_block_bytes;
        if !range.start().is_multiple_of(block) || !range.len().is_multiple_of(block) {
            return wrong(
                ErrorKind::InvalidArgument,
                format!("the range is not whole blocks of {block} bytes"),
            );
        }
        if range.end() > self.size_bytes() {
            return wrong(ErrorKind::InvalidArgument, format!("it ends at {} bytes", self.size_bytes()));
        }
        Ok(())
    }

    /// Tries one way, unless it is known not to be there.
    fn try_rung(&self, attempt: &'static str, rung: Rung, range: ByteRange) -> Result<Tried> {
        let ladder = &self.shared.ladder.0;
        if range.is_empty() {
            return Ok(Tried::Done);
        }
        // Relaxed: a hint that saves a system call; no data depends on it.
        if ladder.load(Ordering::Relaxed) & rung.bit() != 0 {
            return Ok(Tried::Unsupported);
        }
        loop {
            match fallocate(self.as_fd(), rung.flags(), range.start(), range.len()) {
                Ok(()) => return Ok(Tried::Done),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                    ladder.fetch_or(rung.bit(), Ordering::Relaxed);
                    return Ok(Tried::Unsupported);
                }
                // The range was checked, so the kernel has a rule of its own about it; another range may pass.
                Err(Errno::INVAL) => return Ok(Tried::Unsupported),
                Err(e) => return Err(Error::from_io(attempt, e).at(self.name()).in_range(range)),
            }
        }
    }

    /// The error for something that cannot be done here.
    fn unsupported(&self, attempt: &'static str, range: ByteRange, why: &str) -> Error {
        Error::new(ErrorKind::Unsupported, attempt).at(self.name()).in_range(range).because(why)
    }
}
