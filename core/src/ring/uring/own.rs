//! How a ring begins and ends.
//!
//! A [`UringRing`] owns all that the kernel may touch: the copy memory, the count that the wake-up writes, the devices. It
//! ends in one way, whoever drops it and by whatever road, a panic too: cancel what is in flight and wait a little, close
//! the ring, and give back only what the kernel cannot touch any more. **Rather leak than unmap**: a late write into memory
//! that serves another purpose by then is the worst that can happen here.
//!
//! On its own thread the ring knows what is in flight. Another thread may not enter it (the kernel ties a ring to its
//! thread), and completions that wait there are seen by nobody. So the ring holds one end of a pipe as a registered file,
//! the [`Sentinel`]: once the kernel has let go of the ring, and that is after its last request, the other end reports it.
//! It does not while a child of a fork has a copy of the ring's descriptor; then a ring without a request still gives back all
//! but the word that the wake-up is counted in.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{PipeReader, PipeWriter, pipe};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use io_uring::types::CancelBuilder;
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, opcode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::flight::Flights;
use super::setup::Asked;
use super::wake::EventWake;
use super::{CANCEL_KEY, MAX_DEVICES, MAX_IN_FLIGHT, SQ_ENTRIES, UringOptions, UringRing, setup};
use crate::buffer::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::lane::{LANE_DEPTH, Lane};
use crate::ring::{Wait, Wake, monotonic_ns};
use crate::threads;

/// How long the end of a ring waits for cancelled requests before it leaks their memory.
const PATIENCE_NS: u64 = 300_000_000;
/// How often it looks meanwhile.
const LOOK_NS: u64 = 20_000_000;

/// The kernel's side of a ring: its queues, and what keeps them mapped. The fields are dropped in this order.
pub(super) struct Kernel {
    /// Where requests are queued.
    pub(super) sq: SubmissionQueue<'static>,
    /// Where completions arrive.
    pub(super) cq: CompletionQueue<'static>,
    /// The system calls; it knows the registered ring descriptor, so there is only this one.
    pub(super) submitter: Submitter<'static>,
    /// What the three borrow from.
    _anchor: Anchor,
}

/// A ring on the heap that others borrow from; freed when this is dropped.
struct Anchor(NonNull<IoUring>);

impl Drop for Anchor {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box, which is taken back once, here; what borrowed from it is gone, because the
        // fields of `Kernel`, the only one to have an anchor, are dropped in order.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Kernel {
    /// Takes a ring apart for good.
    fn new(io: IoUring) -> Self {
        let anchor = Anchor(NonNull::from(Box::leak(Box::new(io))));
        // SAFETY: the box was leaked a moment ago, this is the only reference to it, and the anchor frees it after all that
        // borrows from it is gone.
        let io = unsafe { &mut *anchor.0.as_ptr() };
        let (submitter, sq, cq) = io.split();
        Self { sq, cq, submitter, _anchor: anchor }
    }
}

/// The end of a pipe whose other end only a ring holds, as a registered file.
#[derive(Debug)]
pub(super) struct Sentinel(PipeReader);

impl Sentinel {
    /// A sentinel, and the end that the ring must hold.
    fn new() -> Result<(Self, PipeWriter)> {
        let (reader, writer) = pipe().map_err(|e| Error::from_io("make a pipe for the ring", e))?;
        Ok((Self(reader), writer))
    }

    /// Whether the kernel has let go of the ring, and so of every request on it; waits for that up to `patience_ns`, less than a
    /// second.
    fn is_gone_within(&self, patience_ns: u64) -> bool {
        let deadline_ns = monotonic_ns().saturating_add(patience_ns);
        loop {
            let left_ns = i64::try_from(deadline_ns.saturating_sub(monotonic_ns())).unwrap_or(0);
            let timeout = Timespec { tv_sec: 0, tv_nsec: left_ns };
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => return fds[0].revents().contains(PollFlags::HUP),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// How a ring is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// By the thread that makes it, to its end.
    Here,
    /// Kept in something that may be dropped anywhere, and waited for through an eventfd.
    Kept,
}

/// Makes copy memory and a ring on this thread and lends them to `body`.
///
/// # Errors
/// When memory is short, or io_uring is missing, forbidden or too old; the text says which and what to do.
pub fn with_ring<T>(options: UringOptions, body: impl FnOnce(&mut UringRing) -> T) -> Result<T> {
    let mut ring = UringRing::new(options, Use::Here)?;
    Ok(body(&mut ring))
}

/// A ring to keep, for a queue: made on the thread that will use it, dropped on any.
pub struct OwnedRing(UringRing);

// SAFETY: all of it may be freed on any thread. Only `UringRing` makes it one thread's: the kernel's rule about who may
// enter a ring. `UringRing` checks that itself (`call_enter`), has no registered descriptor when it is kept, and its end
// relies on the sentinel where the thread is another's.
unsafe impl Send for OwnedRing {}

impl OwnedRing {
    /// Makes copy memory and a ring that belongs to this thread.
    ///
    /// # Errors
    /// As [`with_ring`].
    pub fn new(options: UringOptions) -> Result<Self> {
        UringRing::new(options, Use::Kept).map(Self)
    }

    /// The ring. On another thread than its own, requests cannot be sent: `enter` is refused.
    pub fn ring(&mut self) -> &mut UringRing {
        &mut self.0
    }

    /// Requests so far whose memory was registered and the host's.
    pub(crate) fn requests_through_buffers(&self) -> u64 {
        self.0.through_buffers()
    }

    /// Nothing is given to the kernel any more, also not what was queued; the ring can only be ended.
    pub(crate) fn break_off(&mut self) {
        self.0.broken.get_or_insert(libc::ECANCELED);
    }

    /// Whether this is the thread that may enter the ring.
    pub(crate) fn is_mine(&self) -> bool {
        self.0.is_mine()
    }

    /// Ends the ring, on any thread, within a bounded time. `true`: every request has ended, and nothing can reach a device or
    /// the host's memory any more. `false`: something may, at any time; the copy memory and the devices stay as they are.
    #[must_use = "a write may still land"]
    pub(crate) fn end(mut self) -> bool {
        let over = Arc::new(AtomicBool::new(false));
        self.0.over = Some(Arc::clone(&over));
        drop(self);
        over.load(Ordering::Acquire)
    }

    /// Makes `fd`, an eventfd of the host's, readable with every completion, result of a blocking request and wake-up from
    /// now on. It may become readable without there being anything to collect.
    ///
    /// The host reads it, enters the ring without sleeping, and takes all completions; then nothing is missed. Where the
    /// kernel holds some back (it runs 20 at a time, Linux 6.18), showing the others makes `fd` readable again.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] if there is one already, or on another thread; out of descriptors.
    pub fn register_eventfd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let attempt = "register an eventfd with the io_uring";
        let ring = &self.0;
        if !ring.is_mine() {
            return Err(Error::new(ErrorKind::WrongState, attempt)
                .because("a ring belongs to the thread that made it"));
        }
        let own = fd.try_clone_to_owned().map_err(|e| Error::from_io(attempt, e))?;
        if !ring.wake.set_host(own) {
            return Err(Error::new(ErrorKind::WrongState, attempt).because("it has one already"));
        }
        ring.kernel.submitter.register_eventfd(fd.as_raw_fd()).map_err(|e| Error::from_io(attempt, e))
    }
}

impl fmt::Debug for OwnedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl UringRing {
    /// Makes copy memory and a ring.
    fn new(options: UringOptions, how: Use) -> Result<Self> {
        let mut limits = options.limits;
        // A registered descriptor is one thread's, and holds the ring until that thread ends or takes it back: a ring that is
        // dropped elsewhere could not end.
        limits.no_ring_fd |= how == Use::Kept;
        // The wake-up and a cancel come on top of the requests, and have room in the half that these leave.
        let in_flight = options.in_flight.clamp(4, MAX_IN_FLIGHT).next_power_of_two();
        let region = Region::new(options.memory_bytes)?;
        let (io, mut setup) = setup::build(SQ_ENTRIES.min(in_flight), in_flight * 2, limits)?;
        let (sentinel, held) = Sentinel::new()?;
        let mut kernel = Kernel::new(io);
        let places = (MAX_DEVICES, held.as_fd());
        let asked = Asked { host_buffers: options.host_buffers, limits };
        let slots = setup.register(&mut kernel.submitter, &region, places, asked)?;
        drop(held);
        let wake = Arc::new(EventWake::new()?);
        let mut ring = Self {
            kernel: ManuallyDrop::new(kernel),
            thread: threads::number(),
            setup,
            region: ManuallyDrop::new(region),
            sentinel,
            devices: (0..slots).map(|_| None).collect(),
            flights: Flights::new(in_flight),
            lanes_ready: Arc::default(),
            refused: std::collections::VecDeque::with_capacity(LANE_DEPTH),
            wake,
            wake_count: Box::new(AtomicU64::new(0)),
            wake_armed: false,
            broken: None,
            enters: 0,
            through_buffers: 0,
            over: None,
        };
        // A first call, so that a filter which forbids it speaks now and not in the middle of a job.
        ring.try_enter()?;
        Ok(ring)
    }

    /// One call without work; the error says what to do when it is forbidden.
    fn try_enter(&mut self) -> Result<()> {
        // SAFETY: nothing is submitted, nothing is waited for, and there is no argument.
        let done = unsafe { self.kernel.submitter.enter::<libc::sigset_t>(0, 0, 0, None) };
        done.map(drop).map_err(setup::refused)
    }

    /// Whether this is the thread that may enter the ring.
    pub(super) fn is_mine(&self) -> bool {
        threads::number() == self.thread
    }

    /// Cancels what is in flight and waits a little; `true` when nothing is left that could touch the memory.
    fn cancel_all(&mut self, deadline: u64) -> bool {
        let mut asked = false;
        while self.flights.in_kernel() > 0 || self.wake_armed {
            if !asked {
                let cancel =
                    opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(CANCEL_KEY);
                asked = self.queue(&cancel).is_ok();
                // On kernels before 5.19 the cancel of everything is unknown; a wake-up ends the read at least.
                self.wake.wake();
            }
            self.kernel.sq.sync();
            if self.call_enter(Wait { completions: 1, batch_ns: 0, timeout_ns: Some(LOOK_NS) }).is_err() {
                return false;
            }
            self.kernel.cq.sync();
            while let Some((key, _)) = self.take_cqe() {
                self.flights.finish(key);
            }
            if monotonic_ns() > deadline {
                return self.flights.in_kernel() == 0 && !self.wake_armed;
            }
        }
        true
    }

    /// Lets go of what the ring holds elsewhere, so that a device is free again when this returns and not a moment later.
    ///
    /// The table of files only when nothing is in flight: the sentinel is in it, and must not report before the kernel has
    /// let go of the last request.
    fn let_go(&mut self, safe: bool) {
        // Both fail only where there is nothing to take back.
        if safe {
            let _ = self.kernel.submitter.unregister_files();
        }
        if self.setup.ring_fd {
            let _ = self.kernel.submitter.unregister_ring_fd();
        }
    }

    /// Whether nothing is left in the kernel that uses the copy memory, the host's, or a device, as far as this thread can see: at
    /// most the read of the wake-up, and a cancel.
    fn is_idle(&mut self) -> bool {
        self.kernel.cq.sync();
        while let Some((key, _)) = self.take_cqe() {
            self.flights.finish(key);
        }
        self.flights.in_kernel() == 0
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        let mine = self.is_mine();
        let deadline_ns = monotonic_ns().saturating_add(PATIENCE_NS);
        let ended = mine && self.cancel_all(deadline_ns);
        let idle = ended || self.is_idle();
        if mine {
            self.let_go(ended);
        }
        // SAFETY: dropped once, here, and not used after this.
        unsafe { ManuallyDrop::drop(&mut self.kernel) };
        // The kernel is closing the ring meanwhile.
        let mut lanes_over = true;
        self.devices.iter_mut().flatten().for_each(|attached| attached.lane.close());
        let lanes_until = Lane::patience_until();
        for attached in self.devices.iter_mut().flatten() {
            // Every lane is ended, also after one that did not end.
            lanes_over &= attached.lane.end_by(lanes_until);
        }
        // Who waited in vain for his own requests has no time left to wait for the kernel to fail in the same.
        let gone = ended || self.sentinel.is_gone_within(deadline_ns.saturating_sub(monotonic_ns()));
        if !gone {
            // The read of the wake-up may come back at any time.
            std::mem::forget(std::mem::take(&mut self.wake_count));
        }
        // A child of a fork that has not run another program keeps the ring open for as long as it lives. Nothing is read or
        // written through it meanwhile if nothing was under way.
        let safe = gone || idle;
        if let Some(over) = &self.over {
            over.store(safe && lanes_over, Ordering::Release);
        }
        if safe {
            // SAFETY: dropped once, here; the ring is closed and nothing of it is left that could touch the memory.
            unsafe { ManuallyDrop::drop(&mut self.region) };
        } else {
            // Requests are left that may come back at any time or never: what they may touch is never given back. The devices stay
            // open and locked with it, so that no later job can meet a late write.
            std::mem::forget(std::mem::take(&mut self.devices));
        }
    }
}
