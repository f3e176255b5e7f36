//! Devices of C.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use blkmirror::{
    BLKM_DEVICE_F_ALLOW_SHARED, BLKM_ROLE_DISK, BLKM_ROLE_SOURCE, BLKM_ROLE_TARGET, blkm_device,
    blkm_device_close, blkm_device_open, blkm_device_opts_init, blkm_role,
};

pub use blkmirror_core::device::{Extent, ExtentKind, TargetOptions};

use super::error::Result;
use super::handle::{Handle, options};

/// An opened device.
#[derive(Debug)]
pub struct Device(Handle<blkm_device>);

impl Device {
    /// Opens a source.
    ///
    /// # Errors
    /// As C says.
    pub fn open_source(path: &Path) -> Result<Self> {
        Self::open(path, BLKM_ROLE_SOURCE, TargetOptions::default())
    }

    /// Opens a target.
    ///
    /// # Errors
    /// As C says.
    pub fn open_target(path: &Path, how: TargetOptions) -> Result<Self> {
        Self::open(path, BLKM_ROLE_TARGET, how)
    }

    /// Opens a guest's disk.
    ///
    /// # Errors
    /// As C says.
    pub fn open_disk(path: &Path) -> Result<Self> {
        Self::open(path, BLKM_ROLE_DISK, TargetOptions::default())
    }

    /// Opens it for what it is used for.
    fn open(path: &Path, role: blkm_role, how: TargetOptions) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut opts = options(blkm_device_opts_init);
        if how.allow_shared {
            opts.flags = BLKM_DEVICE_F_ALLOW_SHARED;
        }
        // SAFETY: a string, a structure and a variable that live to the end of the call.
        let open = |out| unsafe { blkm_device_open(path.as_ptr(), role, &raw const opts, out) };
        Handle::make(blkm_device_close, open).map(Self)
    }

    /// The handle.
    pub(super) fn raw(&self) -> *mut blkm_device {
        self.0.raw()
    }
}
