//! Drives of C.

use blkmirror::{
    blkm_drive, blkm_drive_close, blkm_drive_create, blkm_drive_get_info, blkm_drive_info,
    blkm_drive_opts_init,
};

pub use super::tracker::{Admission, Token, Tracker};
pub use blkmirror_core::drive::IoKind;

use super::device::Device;
use super::error::{Error, Result};
use super::handle::{Handle, facts, options};

/// Guest I/O through the library.
pub mod queue {
    pub use super::super::queue::{GuestCompletion, Queue, Rejected};
    pub use blkmirror_core::drive::queue::{QueueOptions, WriteFlags, ZeroFlags};
}

/// A disk as its guest sees it.
#[derive(Debug)]
pub struct Drive(Handle<blkm_drive>);

impl Drive {
    /// A drive with the blocks of its device.
    ///
    /// # Errors
    /// As C says.
    #[allow(clippy::needless_pass_by_value, reason = "as in core; the drive keeps the device")]
    pub fn new(device: Device) -> Result<Self> {
        Self::make(&device, 0)
    }

    /// A drive with blocks of this size.
    ///
    /// # Errors
    /// As C says.
    #[allow(clippy::needless_pass_by_value, reason = "as in core; the drive keeps the device")]
    pub fn with_align_bytes(device: Device, align_bytes: u64) -> Result<Self> {
        Self::make(&device, align_bytes)
    }

    /// A drive; 0: with the blocks of its device.
    fn make(device: &Device, align_bytes: u64) -> Result<Self> {
        let mut opts = options(blkm_drive_opts_init);
        opts.align_bytes = align_bytes;
        // SAFETY: a handle that is open, a structure and a variable that live to the end of the call.
        let make = |out| unsafe { blkm_drive_create(device.raw(), &raw const opts, out) };
        Handle::make(blkm_drive_close, make).map(Self)
    }

    /// The handle.
    pub(super) fn raw(&self) -> *mut blkm_drive {
        self.0.raw()
    }

    /// What it is.
    fn info(&self) -> blkm_drive_info {
        // SAFETY: a handle that is open, and a structure.
        facts(|info| unsafe { blkm_drive_get_info(self.raw(), info) }).unwrap().1
    }

    /// Bytes of the drive.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.info().size_bytes
    }

    /// What offsets and lengths must be multiples of.
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        self.info().align_bytes
    }

    /// How often it was moved.
    #[must_use]
    pub fn device_number(&self) -> u64 {
        self.info().device_number
    }

    /// Gives it up. In C that always succeeds: what hangs on the drive lives on, a job too.
    ///
    /// # Errors
    /// None; core gives the drive back while a job runs.
    #[allow(clippy::result_large_err, reason = "as in core")]
    pub fn close(self) -> std::result::Result<(), (Self, Error)> {
        Ok(())
    }
}
