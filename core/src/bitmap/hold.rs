//! The right to work with a caller's bitmap: one job has it at a time.
//!
//! A job clears the bits of what it is about to copy. With two jobs on one bitmap, each would take what the other has cleared for
//! copied.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DirtyBitmap;
use crate::error::{Error, ErrorKind, Result};

/// A bitmap in use; it is free again when this is released or dropped, whichever comes first.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The bitmap.
    bitmap: Arc<DirtyBitmap>,
    /// This was released.
    released: AtomicBool,
}

impl Hold {
    /// Takes the bitmap into use.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when it is in use.
    pub(crate) fn take(bitmap: &Arc<DirtyBitmap>) -> Result<Self> {
        if bitmap.in_use.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::Busy, "use the working bitmap").because(
                "another job works with it; wait for that job's end, or give each job a bitmap of its own",
            ));
        }
        Ok(Self { bitmap: Arc::clone(bitmap), released: AtomicBool::new(false) })
    }

    /// Makes it free for the next; what was set and cleared until now is visible to it.
    pub(crate) fn release(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.bitmap.in_use.store(false, Ordering::Release);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}
