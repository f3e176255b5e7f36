//! The right to work with a caller's bitmap: one job has it at a time.
//!
//! A job clears the bits of what it is about to copy. With two jobs on one bitmap, each would take what the other has cleared for
//! copied. And what a host clears, sets or merges while a job works with the bitmap would be lost to the job, or seen by it
//! half done. So a host changes a bitmap by hand under a lock that a job needs for its hold, and only while there is no hold.
//!
//! A hold is over when the last who can still change bits in the job's name has gone: its parts, which workers have, and the guest
//! writes that it had sent to both sides, which queues have (`mirror/active.rs`). Those enter and leave; [`Hold::enter`] is refused
//! once all have gone, so a queue that looked at the job long ago cannot clear bits that are somebody else's by now.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::DirtyBitmap;
use crate::error::{Error, ErrorKind, Result};

/// Who uses a bitmap.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// A job works with it.
    pub(crate) held: bool,
    /// A drive records its writes in it. It changes only while no job has it, so who has it may rely on what it finds.
    pub(crate) recording: bool,
}

impl DirtyBitmap {
    /// Who uses it. While the lock is held no job takes it into use; a panic under it leaves nothing half done.
    pub(crate) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bitmap in use; it is free again when everybody who entered has left and it was released, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The bitmap.
    bitmap: Arc<DirtyBitmap>,
    /// Who can change bits: 1 until this is released, and each who has entered.
    inside: AtomicUsize,
    /// This was released.
    released: AtomicBool,
}

impl Hold {
    /// Takes the bitmap into use.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when it is in use.
    pub(crate) fn take(bitmap: &Arc<DirtyBitmap>) -> Result<Self> {
        if std::mem::replace(&mut bitmap.usage().held, true) {
            return Err(Error::new(ErrorKind::Busy, "use the working bitmap").because(
                "another job works with it; wait for that job's end, or give each job a bitmap of its own",
            ));
        }
        let (inside, released) = (AtomicUsize::new(1), AtomicBool::new(false));
        Ok(Self { bitmap: Arc::clone(bitmap), inside, released })
    }

    /// Somebody is about to change bits; `false` when it is too late for that.
    #[must_use = "who entered must leave"]
    pub(crate) fn enter(&self) -> bool {
        let more = |inside| (inside > 0).then_some(inside + 1);
        self.inside.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// He is done with it. The last makes it free for the next; what was set and cleared until now is visible to it.
    pub(crate) fn leave(&self) {
        if self.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.bitmap.usage().held = false;
        }
    }

    /// The job has let go of it.
    pub(crate) fn release(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.leave();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Whoever entered without leaving has lost the means to change bits with this.
        if self.inside.swap(0, Ordering::AcqRel) > 0 {
            self.bitmap.usage().held = false;
        }
    }
}
