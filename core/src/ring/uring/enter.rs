//! The way in and out of the kernel: entries to its queue, the system call, completions from its queue.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, opcode, squeue};

use super::{CANCEL_KEY, UringRing, WAKE_KEY};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::{Full, Wait, monotonic_ns};

/// A sleep without a timeout is one of an hour.
const LONGEST_SLEEP_NS: u64 = 3_600_000_000_000;
/// What the system call attempts, for errors.
const ATTEMPT: &str = "run the io_uring";

impl UringRing {
    /// Queues an entry, submitting first if the queue is full.
    pub(super) fn queue(&mut self, entry: &squeue::Entry) -> std::result::Result<(), Full> {
        if self.kernel.sq.is_full() {
            self.kernel.sq.sync();
            if self.call_enter(Wait::POLL).is_err() {
                return Err(Full);
            }
            self.kernel.sq.sync();
        }
        // SAFETY: the entry's buffer lies in the region (or is the wake counter), which stays mapped until the
        // request has completed or for ever (`own`), or is the host's, who promised the same; its device is registered and held
        // open by `devices`.
        unsafe { self.kernel.sq.push(entry) }.map_err(|_| Full)
    }

    /// Keeps one read of the eventfd under way, so that a wake-up ends a sleep in the ring.
    pub(super) fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let fd = Fd(self.wake.ring_fd().as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_count.as_ptr().cast(), 8).build().user_data(WAKE_KEY);
        self.wake_armed = self.queue(&entry).is_ok();
    }

    /// The system call. Once it has failed for good it is not made again.
    pub(super) fn call_enter(&mut self, wait: Wait) -> Result<()> {
        // A registered descriptor is another ring's on another thread, and the kernel would refuse anyway.
        if !self.is_mine() {
            return Err(Error::new(ErrorKind::WrongState, ATTEMPT)
                .because("a ring belongs to the thread that made it"));
        }
        if let Some(errno) = self.broken {
            return Err(Error::from_errno(ATTEMPT, errno));
        }
        if cfg!(feature = "valgrind") && wait.completions > 0 {
            return self.enter_and_nap(wait);
        }
        let to_submit = u32::try_from(self.kernel.sq.len()).unwrap_or(u32::MAX);
        // Without a timeout of its own, a wait for a batch ends at the batch's time even with nothing there (Linux 6.18,
        // measured: one empty return for each full one), so there always is one.
        let timeout_ns = wait.timeout_ns.unwrap_or(LONGEST_SLEEP_NS);
        let nanos = u32::try_from(timeout_ns % 1_000_000_000).unwrap_or(0);
        let timeout = Timespec::new().sec(timeout_ns / 1_000_000_000).nsec(nanos);
        let mut args = SubmitArgs::new().timespec(&timeout);
        if self.setup.min_wait && wait.completions > 1 {
            args = args.min_wait_usec(u32::try_from(wait.batch_ns / 1000).unwrap_or(u32::MAX));
        }
        let want = if self.setup.min_wait { wait.completions } else { wait.completions.min(1) };
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if self.setup.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        // The kernel counts what was taken off the queue as still there until it is told, and would not sleep.
        self.kernel.cq.sync();
        self.enters += 1;
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        // SAFETY: the argument is the kernel's io_uring_getevents_arg (SubmitArgs is transparent around it) as EXT_ARG
        // says, and the timespec it points to lives to the end of this function.
        let done = unsafe { self.kernel.submitter.enter(to_submit, want, flags.bits(), Some(&args)) };
        match done.map_err(|e| (e.raw_os_error().unwrap_or(0), e)) {
            Ok(_) => Ok(()),
            // The time is over, a signal came, or the kernel is short of memory or of room for completions: all of
            // these end well once the caller has taken the completions that are there and comes back.
            Err((libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY, _)) => Ok(()),
            Err((errno, e)) => {
                // What is queued there stays there: its author hears that it has failed, and may use its memory for something else.
                self.broken = Some(errno);
                Err(Error::from_io(ATTEMPT, e))
            }
        }
    }

    /// The same without a sleep in the kernel, for valgrind: it lets one thread run at a time, and does not know that this call may
    /// block, so all others would stand still. Looks every now and then instead.
    fn enter_and_nap(&mut self, wait: Wait) -> Result<()> {
        const NAP: std::time::Duration = std::time::Duration::from_micros(200);
        let until_ns = monotonic_ns().saturating_add(wait.timeout_ns.unwrap_or(LONGEST_SLEEP_NS));
        loop {
            self.call_enter(Wait::POLL)?;
            self.kernel.sq.sync();
            self.kernel.cq.sync();
            if !self.kernel.cq.is_empty() || monotonic_ns() >= until_ns {
                return Ok(());
            }
            std::thread::sleep(NAP);
        }
    }

    /// Takes a completion off the queue; `None` for those that were not a request.
    pub(super) fn take_cqe(&mut self) -> Option<(u32, i32)> {
        loop {
            let cqe = self.kernel.cq.next()?;
            match cqe.user_data() {
                WAKE_KEY => self.wake_armed = false,
                CANCEL_KEY => {}
                key => return Some((u32::try_from(key).ok()?, cqe.result())),
            }
        }
    }
}
