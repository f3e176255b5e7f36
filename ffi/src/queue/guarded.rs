//! A queue for one thread at a time, also if the host has it wrong.
//!
//! The ring and the lists belong to the thread that uses them first. Which one that is, is one word that every call compares with
//! the address of a variable of its own thread, so that a call from elsewhere never touches what is inside. What it submits is
//! refused, as everything that cannot be accepted: it is kept in a list of its own until the queue is processed, with a text, and
//! the completion descriptor says that there is something. **Exactly one completion for each request.**
//!
//! The list has room for as many as the queue is deep. A host that submits more than that without ever processing makes it grow;
//! nothing else could be done with a request that must not be lost.
#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::ffi::{CString, c_void};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkmirror_core::drive::queue::{Queue, QueueWaker};
use blkmirror_core::{Error, ErrorKind, Result};

use super::blkm_completion;
use crate::border::handle::{Health, object};

thread_local! {
    /// Its address is the thread's name here. It needs no destructor.
    static HERE: Cell<u8> = const { Cell::new(0) };
}

/// The calling thread's name; never 0.
#[inline]
fn here() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// A queue of guest requests to a drive. When its ring broke, or a call has answered -ENOTRECOVERABLE, nothing is sent through it
/// any more: destroy it, and see to requests that had no completion as after a crash of the disk, for their memory may be the
/// kernel's.
///
/// It belongs to the thread that uses it first: one queue for each of the host's threads. It may
/// be created, and destroyed once nobody uses it any more, on any.
#[allow(non_camel_case_types, reason = "as in C")]
pub struct blkm_queue {
    /// Whether it may be used.
    health: Health,
    /// The thread that may look inside; 0: nobody has yet.
    owner: AtomicUsize,
    /// A call of that thread is inside: a log handler that calls back would come in twice.
    inside: AtomicBool,
    /// What belongs to that thread.
    inner: UnsafeCell<Inner>,
    /// Wakes that thread where it sleeps in a call, from any other.
    waker: QueueWaker,
    /// How many were refused and not taken yet.
    refused: AtomicUsize,
    /// These.
    refusals: Mutex<VecDeque<Refused>>,
    /// The completion descriptor, if there is one.
    eventfd: Option<OwnedFd>,
    /// Requests accepted at most.
    depth: usize,
}
object!(blkm_queue);

// SAFETY: `inner` is used by one thread only, see `on_its_thread`; dropping it on another is what `Queue` allows. All else is shared
// as its types say.
unsafe impl Sync for blkm_queue {}

/// What belongs to the queue's thread.
#[derive(Debug)]
pub(super) struct Inner {
    /// The queue.
    pub(super) queue: Queue,
    /// Texts of the completions that were taken last.
    pub(super) texts: Vec<CString>,
}

impl Inner {
    /// The completion of a request that failed; its text stays until the queue is processed again.
    #[cold]
    pub(super) fn failed(&mut self, user_data: *mut c_void, error: &Error, flags: u32) -> blkm_completion {
        // The text of an error has no control characters, so no 0 either.
        let text = CString::new(error.to_string()).unwrap_or_default();
        let error_msg = text.as_ptr();
        self.texts.push(text);
        blkm_completion { user_data, error_msg, ret: -error.errno(), flags, reserved: 0 }
    }
}

/// A request that was not accepted.
#[derive(Debug)]
pub(super) struct Refused {
    /// What it was sent with.
    pub(super) user_data: *mut c_void,
    /// Why.
    pub(super) error: Error,
}

// SAFETY: the pointer is the host's word, handed back and never followed.
unsafe impl Send for Refused {}

impl blkm_queue {
    /// A queue that nobody has used.
    pub(super) fn new(health: Health, queue: Queue, eventfd: Option<OwnedFd>, depth: usize) -> Self {
        Self {
            health,
            owner: AtomicUsize::new(0),
            inside: AtomicBool::new(false),
            waker: queue.waker(),
            inner: UnsafeCell::new(Inner { queue, texts: Vec::new() }),
            refused: AtomicUsize::new(0),
            refusals: Mutex::new(VecDeque::with_capacity(depth)),
            eventfd,
            depth,
        }
    }

    /// Whether no thread has used it yet, so that there is nothing inside to look at.
    pub(super) fn is_unused(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == 0
    }

    /// Runs `body` with what is inside, on the thread that may look there.
    #[inline]
    pub(super) fn on_its_thread<T>(
        &self,
        attempt: &'static str,
        body: impl FnOnce(&mut Inner) -> Result<T>,
    ) -> Result<T> {
        let (here, owner) = (here(), self.owner.load(Ordering::Relaxed));
        if owner != here {
            self.take_over(owner, here, attempt)?;
        }
        if self.inside.load(Ordering::Relaxed) {
            return Err(called_back(attempt));
        }
        self.inside.store(true, Ordering::Relaxed);
        // SAFETY: `owner` is this thread and never changes once it is set, and no other call of this thread is inside.
        let done = body(unsafe { &mut *self.inner.get() });
        // Not reached by a panic; then the queue is poisoned and nobody comes in again.
        self.inside.store(false, Ordering::Relaxed);
        done
    }

    /// The first use of a queue, or a use by a wrong thread.
    #[cold]
    fn take_over(&self, owner: usize, here: usize, attempt: &'static str) -> Result<()> {
        let free = owner == 0;
        if free && self.owner.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongState, attempt)
            .because("a queue belongs to the thread that used it first; make one for each thread"))
    }

    /// Keeps a request that was not accepted until it is taken as a completion.
    #[cold]
    pub(super) fn refuse(&self, user_data: *mut c_void, error: Error) {
        let mut refusals = self.refusals();
        refusals.push_back(Refused { user_data, error });
        self.refused.store(refusals.len(), Ordering::Release);
        drop(refusals);
        // The queue's thread may sleep in a call until there is a completion, and here is one.
        self.waker.wake();
    }

    /// Takes one of these.
    #[inline]
    pub(super) fn take_refused(&self) -> Option<Refused> {
        if self.refused() == 0 {
            return None;
        }
        let mut refusals = self.refusals();
        let refused = refusals.pop_front();
        self.refused.store(refusals.len(), Ordering::Release);
        refused
    }

    /// How many there are.
    #[inline]
    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::Acquire)
    }

    /// Makes the completion descriptor readable.
    #[cold]
    pub(super) fn signal(&self) {
        if let Some(fd) = &self.eventfd {
            // It fails only when the counter is full, and then it is readable already.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    /// The completion descriptor.
    pub(super) fn eventfd(&self) -> Option<&OwnedFd> {
        self.eventfd.as_ref()
    }

    /// Requests accepted at most.
    pub(super) fn depth(&self) -> u32 {
        u32::try_from(self.depth).unwrap_or(u32::MAX)
    }

    /// The list; a panic under its lock leaves nothing half done.
    fn refusals(&self) -> MutexGuard<'_, VecDeque<Refused>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue in which a panic was caught is ended without a look at what is inside, which may be anything.
impl Drop for blkm_queue {
    fn drop(&mut self) {
        if self.health.is_poisoned() {
            self.inner.get_mut().queue.abandon();
        }
    }
}

impl fmt::Debug for blkm_queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("blkm_queue").field("depth", &self.depth).finish_non_exhaustive()
    }
}

/// The error for a call from inside a call.
#[cold]
fn called_back(attempt: &'static str) -> Error {
    Error::new(ErrorKind::WrongState, attempt).because("a handler of the log must not call the library")
}

#[cfg(test)]
mod tests {
    use blkmirror_core::device::Device;
    use blkmirror_core::drive::Drive;
    use blkmirror_core::drive::queue::QueueOptions;
    use blkmirror_core::units::ByteRange;

    use super::*;
    use crate::border::handle::{close, create, with};

    /// Otherwise a bug that was caught would cost the host its disk, or its life when it destroys the queue.
    #[test]
    fn a_queue_in_which_a_panic_was_caught_is_refused_and_ends_and_its_device_is_free() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let drive = Drive::new(Device::open_disk(file.path()).unwrap()).unwrap();
        let (mut queue, options) = (std::ptr::null_mut(), QueueOptions::default());
        let make = || Ok(blkm_queue::new(Health::new(), drive.queue(options)?, None, options.depth));
        // SAFETY: a variable of ours.
        assert_eq!(unsafe { create(&raw mut queue, "make", make) }, 0);
        let ask = |queue: *mut blkm_queue, body: &dyn Fn(&mut Inner) -> Result<()>| {
            // SAFETY: made above, and closed below.
            unsafe { with(queue, "ask", |q: &blkm_queue| q.on_its_thread("ask", body)) }
        };
        let discard = |inner: &mut Inner| Ok(inner.queue.discard(ByteRange::at(0, 4096), 1)?);
        assert_eq!(ask(queue, &|inner| discard(inner).and_then(|()| inner.queue.submit())), 0);
        assert_eq!(ask(queue, &|inner| discard(inner).map(|()| panic!("a bug"))), -libc::ENOTRECOVERABLE);
        assert_eq!(ask(queue, &|_| Ok(())), -libc::ENOTRECOVERABLE);
        // SAFETY: made above, and closed once.
        unsafe { close(&raw mut queue) };
        drive.close().unwrap();
        let begin = std::time::Instant::now();
        while let Err(e) = Device::open_target(file.path(), blkmirror_core::device::TargetOptions::default())
        {
            assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{e}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
