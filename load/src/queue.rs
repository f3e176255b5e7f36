//! A drive's queue as a guest's disk.
#![forbid(unsafe_code)]

use std::time::Duration;

use blkmirror_core::Result;
use blkmirror_core::buffer::{AlignedBuf, GuestBuffer};
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, QueueOptions, Rejected, WriteFlags, ZeroFlags};
use blkmirror_core::units::ByteRange;

use crate::disk::{Done, GuestDisk, Refused};

/// A guest's disk over a drive: one queue, for one thread.
#[derive(Debug)]
pub struct QueueDisk {
    /// The queue.
    queue: Queue,
    /// Bytes of the drive.
    size_bytes: u64,
    /// What offsets and lengths must be multiples of.
    align_bytes: u64,
}

impl QueueDisk {
    /// A queue of `drive` with so many requests at a time. Data is copied before it is mirrored, as for a guest that may
    /// change it at any time.
    ///
    /// # Errors
    /// When the depth is out of bounds.
    pub fn open(drive: &Drive, depth: usize) -> Result<Self> {
        // A writer sleeps in the queue itself.
        let options = QueueOptions { depth, eventfd: false, ..QueueOptions::default() };
        let queue = drive.queue(options)?;
        Ok(Self { queue, size_bytes: drive.size_bytes(), align_bytes: drive.align_bytes() })
    }
}

/// What was not accepted, with the buffer as the writer knows it.
fn refused(rejected: Rejected) -> Refused {
    Refused { error: rejected.error, buffer: rejected.buffer.and_then(GuestBuffer::into_aligned) }
}

impl GuestDisk for QueueDisk {
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
        self.queue.write(offset, buffer, WriteFlags { fua, ..WriteFlags::default() }, tag).map_err(refused)
    }

    fn read(&mut self, offset: u64, buffer: AlignedBuf, tag: u64) -> std::result::Result<(), Refused> {
        self.queue.read(offset, buffer, tag).map_err(refused)
    }

    fn write_zeroes(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Refused> {
        self.queue
            .write_zeroes(range, ZeroFlags { punch: true, ..ZeroFlags::default() }, tag)
            .map_err(refused)
    }

    fn flush(&mut self, tag: u64) -> std::result::Result<(), Refused> {
        self.queue.flush(tag).map_err(refused)
    }

    fn wait(&mut self, min_done: usize, timeout: Duration) -> Result<()> {
        self.queue.wait(min_done, Some(timeout))
    }

    fn pop(&mut self) -> Option<Done> {
        let done = self.queue.pop()?;
        let buffer = done.buffer.and_then(GuestBuffer::into_aligned);
        Some(Done { tag: done.tag, result: done.result, buffer })
    }
}
