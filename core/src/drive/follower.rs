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

use std::sync::{Arc, Weak};

use super::recording::Follows;
use crate::bitmap::DirtyBitmap;
use crate::bitmap::sync::{fence_before_test, full_fence};
use crate::mirror::{Mutation, Share};
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

impl<D> Follows for Follower<D> {
    fn works_with(&self) -> &Arc<DirtyBitmap> {
        self.share.dirty.bits()
    }

    fn breaks(&self, mutation: Mutation) -> bool {
        self.share.is_mutated(mutation)
    }
}

/// Who follows, if anybody; see the module for its memory order.
#[derive(Debug)]
pub struct Attached<T> {
    /// The follower.
    current: published::Published<T>,
}

/// A follower that was replaced, and that requests which were ending at that moment may still hold.
#[derive(Debug)]
pub struct Replaced<T>(Option<Weak<T>>);

impl<T> Replaced<T> {
    /// Whether nobody holds it any more. What was done with it is visible to this thread then.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // What is lent was counted when it was replaced, so a count of 0 is final. The last one's release is acquired by the fence.
        let gone = self.0.as_ref().is_none_or(|replaced| replaced.strong_count() == 0);
        published::acquire();
        gone
    }
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
        let _ = self.replace(Some(follower));
    }

    /// Detaches. Calls of [`after_write`](Self::after_write) that are under way on other threads may still hold the
    /// follower until they return.
    pub fn detach(&self) {
        let _ = self.replace(None);
    }

    /// Attaches and detaches at one stroke, with what both promise; says who was replaced.
    pub fn replace(&self, follower: Option<Arc<T>>) -> Replaced<T> {
        let replaced = Replaced(self.current.swap(follower).as_ref().map(Arc::downgrade));
        full_fence();
        replaced
    }

    /// Shows the follower to whoever must know now and is not a write that has just ended.
    pub fn look<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> R {
        look(self.current.load().as_deref())
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
    use std::sync::atomic::{Ordering, fence};

    use arc_swap::{ArcSwapOption, Guard};

    /// After a look at how many hold what was published: what they did before they let go is visible.
    pub(super) fn acquire() {
        fence(Ordering::Acquire);
    }

    /// The pointer.
    #[derive(Debug)]
    pub(super) struct Published<T>(ArcSwapOption<T>);

    impl<T> Published<T> {
        /// Nobody.
        pub(super) fn empty() -> Self {
            Self(ArcSwapOption::const_empty())
        }

        /// Replaces who is published. What readers have borrowed of the one before is counted when this returns.
        pub(super) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            self.0.swap(value)
        }

        /// Borrows who is published.
        #[inline]
        pub(super) fn load(&self) -> Guard<Option<Arc<T>>> {
            self.0.load()
        }
    }
}

/// The same for the model checker, which cannot look inside `ArcSwap`: a number with acquire and release order, as
/// weak as the real pointer is to its readers. Who finds that number's follower replaced already looks again, as `ArcSwap` does
/// once it has said what it borrows; so what is lent of one that was replaced is counted.
#[cfg(loom)]
mod published {
    use std::ops::Deref;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use crate::bitmap::sync::{AtomicU64, Ordering, full_fence};

    /// After a look at how many hold what was published. The count is not the model's, but who lets go of it fences, too.
    pub(super) fn acquire() {
        full_fence();
    }

    /// What is lent.
    pub(super) struct Lent<T>(Option<Arc<T>>);

    impl<T> Deref for Lent<T> {
        type Target = Option<Arc<T>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl<T> Drop for Lent<T> {
        fn drop(&mut self) {
            if self.0.is_some() {
                full_fence();
            }
        }
    }

    /// The pointer.
    #[derive(Debug)]
    pub(super) struct Published<T> {
        /// Which one of the list is published; 0 = none.
        number: AtomicU64,
        /// All that ever were; `None` = replaced. A lock that the model does not see, so it orders nothing there.
        all: Mutex<Vec<Option<Arc<T>>>>,
    }

    impl<T> Published<T> {
        /// Nobody.
        pub(super) fn empty() -> Self {
            Self { number: AtomicU64::new(0), all: Mutex::new(Vec::new()) }
        }

        /// The list.
        fn all(&self) -> MutexGuard<'_, Vec<Option<Arc<T>>>> {
            self.all.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Replaces who is published.
        pub(super) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            let number = value.map_or(0, |value| {
                let mut all = self.all();
                all.push(Some(value));
                all.len() as u64
            });
            let before = self.number.swap(number, Ordering::AcqRel);
            self.all().get_mut(index(before)?)?.take()
        }

        /// Borrows who is published.
        pub(super) fn load(&self) -> Lent<T> {
            let mut number = self.number.load(Ordering::Acquire);
            loop {
                let Some(index) = index(number) else { return Lent(None) };
                if let Some(found) = self.all().get(index).cloned().flatten() {
                    return Lent(Some(found));
                }
                // A read-modify-write sees the newest.
                number = self.number.fetch_add(0, Ordering::AcqRel);
            }
        }
    }

    /// Where in the list that number is.
    fn index(number: u64) -> Option<usize> {
        usize::try_from(number).ok()?.checked_sub(1)
    }
}
