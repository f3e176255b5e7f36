//! A guest's disk whose host does its own I/O and tells a tracker of it.
//!
//! Every request is carried out by a plain system call with `O_DIRECT`, one after the other on the writer's own thread, between
//! the tracker's `begin` and `end`. So there is one request under way per writer, whatever the depth; those behind it wait,
//! and their latency runs. After a pivot the next request goes to the target, as the token says.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::drive::{Admission, Drive, IoKind, Tracker};
use blkmirror_core::units::{ByteRange, bytes_u64, bytes_usize};
use blkmirror_core::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags, fdatasync, open};

use crate::disk::{Done, GuestDisk, Refused};

/// Requests that may wait for their turn.
const MAX_WAITING: usize = 1024;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// Fills the buffer.
    Read,
    /// Writes the buffer.
    Write {
        /// And makes it durable.
        fua: bool,
    },
    /// Writes zeroes.
    Zero,
    /// Makes durable what was written.
    Flush,
}

/// A request that waits for its turn.
#[derive(Debug)]
struct Waiting {
    /// What it does.
    what: What,
    /// Where.
    range: ByteRange,
    /// With what.
    buffer: Option<AlignedBuf>,
    /// For whom.
    tag: u64,
}

/// One writer's disk.
#[derive(Debug)]
pub struct TrackedDisk {
    /// Hears of every request.
    tracker: Tracker,
    /// The disk before any pivot, and after the first.
    files: [File; 2],
    /// Bytes of the drive.
    size_bytes: u64,
    /// What offsets and lengths must be multiples of.
    align_bytes: u64,
    /// Requests that wait for their turn.
    waiting: VecDeque<Waiting>,
    /// Requests that are done.
    done: VecDeque<Done>,
}

impl TrackedDisk {
    /// A disk over `drive`, whose device is `source`, and will be `target` after a pivot.
    ///
    /// # Errors
    /// When a file cannot be opened for writing.
    pub fn open(drive: &Drive, source: &Path, target: &Path) -> Result<Self> {
        let file = |path: &Path| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            open(path, flags | OFlags::DIRECT, Mode::empty())
                .or_else(|_| open(path, flags, Mode::empty()))
                .map(File::from)
                .map_err(|e| Error::from_io("open a guest's disk", e).at(path))
        };
        Ok(Self {
            tracker: drive.tracker(),
            files: [file(source)?, file(target)?],
            size_bytes: drive.size_bytes(),
            align_bytes: drive.align_bytes(),
            waiting: VecDeque::with_capacity(MAX_WAITING),
            done: VecDeque::with_capacity(MAX_WAITING),
        })
    }

    /// Takes a request.
    fn accept(
        &mut self,
        what: What,
        range: ByteRange,
        buffer: Option<AlignedBuf>,
        tag: u64,
    ) -> std::result::Result<(), Refused> {
        if self.waiting.len() + self.done.len() >= MAX_WAITING {
            return Err(Refused { error: Error::new(ErrorKind::QueueFull, "take a request"), buffer });
        }
        self.waiting.push_back(Waiting { what, range, buffer, tag });
        Ok(())
    }

    /// Carries out a request if the gate is open.
    fn turn(&mut self, mut request: Waiting) -> std::result::Result<Done, Waiting> {
        let kind = match request.what {
            What::Read | What::Flush => IoKind::Read,
            What::Write { .. } => IoKind::Write,
            What::Zero => IoKind::WriteZeroes,
        };
        // A flush has no range, but a pivot must find it done, too.
        let range = if request.what == What::Flush { ByteRange::at(0, 1) } else { request.range };
        let result = match self.tracker.begin(range, kind) {
            Ok(Admission::Held) => return Err(request),
            Ok(Admission::Go(token)) => {
                let file = &self.files[usize::from(token.device_number() > 0)];
                let result = carry_out(file, request.what, request.range, request.buffer.as_deref_mut());
                let errno = result.as_ref().map(|&()| ()).map_err(|e| e.raw_os_error().unwrap_or(0));
                let ended = self.tracker.end(token, errno);
                result.map_err(|e| Error::from_io("write as a guest", e)).and(ended)
            }
            Err(error) => Err(error),
        };
        Ok(Done { tag: request.tag, result, buffer: request.buffer })
    }
}

/// Carries out a request on a file.
fn carry_out(file: &File, what: What, range: ByteRange, buffer: Option<&mut [u8]>) -> std::io::Result<()> {
    match (what, buffer) {
        (What::Read, Some(buffer)) => file.read_exact_at(buffer, range.start()),
        (What::Write { fua }, Some(buffer)) => {
            file.write_all_at(buffer, range.start())?;
            if fua { Ok(fdatasync(file)?) } else { Ok(()) }
        }
        (What::Zero, _) => {
            let zeroes = AlignedBuf::new(bytes_usize(range.len()), 4096).map_err(std::io::Error::other)?;
            file.write_all_at(&zeroes[..bytes_usize(range.len())], range.start())
        }
        (What::Flush, _) => Ok(fdatasync(file)?),
        (What::Read | What::Write { .. }, None) => Ok(()),
    }
}

impl GuestDisk for TrackedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    fn write(
        &mut self,
        offset: u64,
        buffer: AlignedBuf,
        fua: bool,
        tag: u64,
    ) -> std::result::Result<(), Refused> {
        let range = ByteRange::at(offset, bytes_u64(buffer.len()));
        self.accept(What::Write { fua }, range, Some(buffer), tag)
    }

    fn read(&mut self, offset: u64, buffer: AlignedBuf, tag: u64) -> std::result::Result<(), Refused> {
        self.accept(What::Read, ByteRange::at(offset, bytes_u64(buffer.len())), Some(buffer), tag)
    }

    fn write_zeroes(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Refused> {
        self.accept(What::Zero, range, None, tag)
    }

    fn flush(&mut self, tag: u64) -> std::result::Result<(), Refused> {
        self.accept(What::Flush, ByteRange::default(), None, tag)
    }

    fn wait(&mut self, min_done: usize, timeout: Duration) -> Result<()> {
        while self.done.len() < min_done.max(1) {
            let Some(request) = self.waiting.pop_front() else { return Ok(()) };
            match self.turn(request) {
                Ok(done) => self.done.push_back(done),
                Err(held) => {
                    self.waiting.push_front(held);
                    if !self.tracker.wait_open(timeout) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Done> {
        self.done.pop_front()
    }
}
