//! A job as the requests of its drive see it, and the one place where it is attached.
//!
//! # Memory order
//!
//! *Tracked from birth.* A job attaches, and only then decides anything from the drive's data. A request that ends
//! looks for the job after its write has completed. Neither waits for the other; what must not be is that the request
//! finds no job *and* the job reads the data as they were before the write:
//!
//! ```text
//! request:  W  the guest's write reaches the device       job:  P  publishes the follower
//!           -- fence --                                         -- fence --
//!           F  looks for a follower, sees none                  D  reads the data
//! ```
//!
//! This is the same picture as a bit against a copier (see `bitmap/sync.rs`): with a sequentially consistent fence on
//! either side, if F does not see P, then W is visible to D. The job's side is rare and has a real fence. The
//! request's side has what `fence_before_test` is: nothing on x86-64, where whoever learns of a write's end through
//! the kernel has that write visible to everybody before its next load, and a real fence elsewhere. Writes by plain
//! stores into mapped memory are the one case that it leaves to the author of the write, see there.
//!
//! *Mark after, before the ack.* [`Attached::after_write`] comes after the completion and before the pass is given
//! back, and so before the guest hears of it. A request that began before the job attached, and ends after it, is
//! marked like any other.
//!
//! *Behind the gate.* Both the look and the mark are made with the pass in hand. So with the gate closed and quiet
//! nobody is between the two: every write that ever completed was marked with the follower that is attached.
//!
//! # Why `ArcSwap`
//!
//! A request needs the job's state for some nanoseconds, while another thread may detach the job and free it. A
//! shared counter would bounce between cores; a copy kept by each thread would keep a finished job's memory for as
//! long as a thread sleeps. `ArcSwap` lends without counting: [`Attached::detach`] settles what is lent at that
//! moment by counting it then, so a job is freed when its last lender's call returns, a bounded time.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::bitmap::sync::{fence_before_test, full_fence};
use crate::mirror::Share;
use crate::ring::Wake;

/// A job as the requests of its drive see it.
#[derive(Debug)]
pub(crate) struct Follower<D> {
    /// The job's state: what was written, and in which mode.
    pub(crate) share: Arc<Share>,
    /// Where active writes go besides.
    pub(crate) target: Arc<D>,
    /// Wakes the worker that decides about the job.
    pub(crate) home: Arc<dyn Wake>,
}

/// Who follows, if anybody; see the module for its memory order.
#[derive(Debug)]
pub struct Attached<T> {
    /// The follower.
    current: published::Published<T>,
}

impl<T> Default for Attached<T> {
    fn default() -> Self {
        Self { current: published::Published::empty() }
    }
}

impl<T> Attached<T> {
    /// Attaches: when this returns, every write that ends later finds the follower, and every write whose end did not
    /// find it is visible to this thread's reads. The caller sees to it that one is attached at a time.
    pub fn attach(&self, follower: Arc<T>) {
        self.current.store(Some(follower));
        full_fence();
    }

    /// Detaches. Calls of [`after_write`](Self::after_write) that are under way on other threads may still hold the
    /// follower until they return.
    pub fn detach(&self) {
        self.current.store(None);
    }

    /// The follower, for whoever must know now and is not a write that has just ended.
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.current.load().as_ref().map(Arc::clone)
    }

    /// Calls `mark` with the follower, if there is one, after a write has completed and before its author hears of
    /// it.
    #[inline]
    pub fn after_write(&self, mark: impl FnOnce(&T)) {
        fence_before_test();
        if let Some(follower) = self.current.load().as_deref() {
            mark(follower);
        }
    }
}

/// The pointer that readers borrow from without counting.
#[cfg(not(loom))]
mod published {
    use std::sync::Arc;

    use arc_swap::{ArcSwapOption, Guard};

    /// The pointer.
    #[derive(Debug)]
    pub(super) struct Published<T>(ArcSwapOption<T>);

    impl<T> Published<T> {
        /// Nobody.
        pub(super) fn empty() -> Self {
            Self(ArcSwapOption::const_empty())
        }

        /// Replaces who is published.
        pub(super) fn store(&self, value: Option<Arc<T>>) {
            self.0.store(value);
        }

        /// Borrows who is published.
        #[inline]
        pub(super) fn load(&self) -> Guard<Option<Arc<T>>> {
            self.0.load()
        }
    }
}

/// The same for the model checker, which cannot look inside `ArcSwap`: a number with acquire and release order, as
/// weak as the real pointer is to its readers, and a list that is only ever added to.
#[cfg(loom)]
mod published {
    use std::sync::{Arc, Mutex, PoisonError};

    use crate::bitmap::sync::{AtomicU64, Ordering};

    /// The pointer.
    #[derive(Debug)]
    pub(super) struct Published<T> {
        /// Which one of the list is published; 0 = none.
        number: AtomicU64,
        /// All that ever were. A lock that the model does not see, so it orders nothing there.
        all: Mutex<Vec<Arc<T>>>,
    }

    impl<T> Published<T> {
        /// Nobody.
        pub(super) fn empty() -> Self {
            Self { number: AtomicU64::new(0), all: Mutex::new(Vec::new()) }
        }

        /// Replaces who is published.
        pub(super) fn store(&self, value: Option<Arc<T>>) {
            let number = value.map_or(0, |value| {
                let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(value);
                all.len() as u64
            });
            self.number.store(number, Ordering::Release);
        }

        /// Borrows who is published.
        pub(super) fn load(&self) -> Option<Arc<T>> {
            let number = usize::try_from(self.number.load(Ordering::Acquire)).ok()?.checked_sub(1)?;
            self.all.lock().unwrap_or_else(PoisonError::into_inner).get(number).map(Arc::clone)
        }
    }
}
