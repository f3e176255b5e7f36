//! What a writer writes to.
//!
//! The shape of a drive's queue and no more of it than a writer needs, so that the same writers run on memory in the tests.
//! Buffers go in and come back with the completion, and nothing is allocated in between.
#![forbid(unsafe_code)]

use std::time::Duration;

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::units::ByteRange;
use blkmirror_core::{Error, Result};

/// A request that was not accepted; there will be no completion.
#[derive(Debug)]
pub struct Refused {
    /// Why; [`QueueFull`](blkmirror_core::ErrorKind::QueueFull) means: later.
    pub error: Error,
    /// What it was to carry.
    pub buffer: Option<AlignedBuf>,
}

/// The end of a request.
#[derive(Debug)]
pub struct Done {
    /// As it was given with the request.
    pub tag: u64,
    /// Whether it worked.
    pub result: Result<()>,
    /// The request's buffer.
    pub buffer: Option<AlignedBuf>,
}

/// A guest's disk as one thread sees it. Exactly one completion comes for each request that was accepted.
pub trait GuestDisk {
    /// Bytes of the disk.
    fn size_bytes(&self) -> u64;

    /// What offsets and lengths must be multiples of.
    fn align_bytes(&self) -> u64;

    /// Queues a write of the whole buffer.
    ///
    /// # Errors
    /// [`Refused`], with the buffer.
    fn write(
        &mut self,
        offset: u64,
        buffer: AlignedBuf,
        fua: bool,
        tag: u64,
    ) -> std::result::Result<(), Refused>;

    /// Queues a read that fills the whole buffer.
    ///
    /// # Errors
    /// [`Refused`], with the buffer.
    fn read(&mut self, offset: u64, buffer: AlignedBuf, tag: u64) -> std::result::Result<(), Refused>;

    /// Queues a write of zeroes without data; the blocks may lose their space.
    ///
    /// # Errors
    /// [`Refused`].
    fn write_zeroes(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Refused>;

    /// Queues a flush: what was completed before it is durable once it is done.
    ///
    /// # Errors
    /// [`Refused`].
    fn flush(&mut self, tag: u64) -> std::result::Result<(), Refused>;

    /// Sends what is queued, collects what is done, and sleeps until `min_done` requests are done or `timeout` is over.
    ///
    /// # Errors
    /// When the disk cannot go on at all.
    fn wait(&mut self, min_done: usize, timeout: Duration) -> Result<()>;

    /// Takes one completion, if there is one.
    fn pop(&mut self) -> Option<Done>;
}
