//! A request on its way: carrying it out on the backing file, and answering it.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};
use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::SeekFrom;

use super::rules::{Effect, Operation};

/// A request that has not been answered.
#[derive(Debug)]
pub(super) struct Pending {
    /// What it does.
    pub(super) work: Work,
    /// The fault it was given when it arrived. [`Effect::Stuck`] is over once it is here.
    pub(super) effect: Option<Effect>,
}

/// What a request does, and whom to tell.
#[derive(Debug)]
pub(super) enum Work {
    /// Read these bytes, at most a megabyte.
    Read(Range<u64>, ReplyData),
    /// Write the data at the offset.
    Write(u64, Vec<u8>, ReplyWrite),
    /// Make everything durable.
    Flush(ReplyEmpty),
    /// Allocate, punch or zero these bytes; which of them, the mode says.
    Fallocate(Range<u64>, i32, ReplyEmpty),
    /// Look for data or a hole from the offset on; which of them, the whence says.
    Seek(u64, i32, ReplyLseek),
}

impl Work {
    /// The kind of request.
    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Read(..) => Operation::Read,
            Self::Write(..) => Operation::Write,
            Self::Flush(..) => Operation::Flush,
            Self::Fallocate(..) => Operation::Fallocate,
            Self::Seek(..) => Operation::Seek,
        }
    }
}

/// Carries out a read and answers it.
pub(super) fn read(file: &File, bytes: &Range<u64>, effect: Option<Effect>, reply: ReplyData) {
    thread_local! {
        /// Kept, since a fresh megabyte for each read would be mapped and zeroed each time.
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let wanted = bytes.end - bytes.start;
    let size = match effect {
        Some(Effect::Error(errno)) => return reply.error(Errno::from_i32(errno)),
        Some(Effect::Short(limit)) => wanted.min(limit.into()),
        Some(Effect::Stuck) | None => wanted,
    };
    BUFFER.with_borrow_mut(|buffer| {
        let size = usize::try_from(size).unwrap_or(0);
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        match read_fully(file, &mut buffer[..size], bytes.start) {
            Ok(got) => reply.data(&buffer[..got]),
            Err(error) => reply.error(error.into()),
        }
    });
}

/// Reads until the buffer is full or the file ends.
fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64)? {
            0 => break,
            got => have += got,
        }
    }
    Ok(have)
}

/// Carries out a write and answers it; `capacity` is how many bytes the backing file may have allocated.
pub(super) fn write(
    file: &File,
    capacity: u64,
    offset: u64,
    data: &[u8],
    effect: Option<Effect>,
    reply: ReplyWrite,
) {
    let data = match effect {
        Some(Effect::Error(errno)) => return reply.error(Errno::from_i32(errno)),
        Some(Effect::Short(bytes)) => &data[..data.len().min(usize::try_from(bytes).unwrap_or(usize::MAX))],
        Some(Effect::Stuck) | None => data,
    };
    let done = has_room(file, capacity, &(offset..offset + data.len() as u64))
        .and_then(|()| file.write_all_at(data, offset));
    match done {
        // A request is at most 1 MiB long, as agreed with the kernel.
        Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
        Err(error) => reply.error(error.into()),
    }
}

/// Fails with ENOSPC if giving blocks to the holes in `bytes` would exceed `capacity`.
fn has_room(file: &File, capacity: u64, bytes: &Range<u64>) -> io::Result<()> {
    if capacity == u64::MAX || bytes.is_empty() {
        return Ok(());
    }
    let hole = match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(bytes.start)) {
        Ok(hole) => hole,
        // Past the end: a file that grows.
        Err(rustix::io::Errno::NXIO) => bytes.start,
        Err(error) => return Err(error.into()),
    };
    let wanted = bytes.end.saturating_sub(hole);
    if wanted > 0 && file.metadata()?.blocks() * 512 + wanted > capacity {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    Ok(())
}

/// Carries out a flush and answers it. The content is in memory, so there is nothing to wait for.
pub(super) fn flush(effect: Option<Effect>, reply: ReplyEmpty) {
    match effect {
        Some(Effect::Error(errno)) => reply.error(Errno::from_i32(errno)),
        Some(Effect::Short(_) | Effect::Stuck) | None => reply.ok(),
    }
}

/// Carries out an fallocate and answers it.
pub(super) fn allocate(
    file: &File,
    capacity: u64,
    bytes: &Range<u64>,
    mode: i32,
    effect: Option<Effect>,
    reply: ReplyEmpty,
) {
    if let Some(Effect::Error(errno)) = effect {
        return reply.error(Errno::from_i32(errno));
    }
    match allocate_in(file, capacity, bytes, FallocateFlags::from_bits_retain(mode)) {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

/// Looks for data or a hole and answers.
pub(super) fn seek(file: &File, offset: u64, whence: i32, effect: Option<Effect>, reply: ReplyLseek) {
    if let Some(Effect::Error(errno)) = effect {
        return reply.error(Errno::from_i32(errno));
    }
    let from = match whence {
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return reply.error(Errno::EINVAL),
    };
    match rustix::fs::seek(file, from) {
        Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
        Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
    }
}

/// fallocate on the backing file, with ZERO_RANGE (which tmpfs lacks) put together from what there is.
fn allocate_in(file: &File, capacity: u64, bytes: &Range<u64>, mode: FallocateFlags) -> io::Result<()> {
    let offset = i64::try_from(bytes.start).map_err(io::Error::other)?;
    let length = i64::try_from(bytes.end - bytes.start).map_err(io::Error::other)?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if mode.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
        return Ok(fallocate(file, mode, offset, length)?);
    }
    if mode.contains(FallocateFlags::FALLOC_FL_ZERO_RANGE) {
        fallocate(file, punch, offset, length)?;
    }
    has_room(file, capacity, bytes)?;
    let keep_size = mode & FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, keep_size, offset, length)?)
}
