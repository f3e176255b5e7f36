//! What ends a sleep: the ring's own, and a host's on its eventfd.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};
use crate::ring::Wake;

/// The eventfds behind [`Wake`].
#[derive(Debug)]
pub(super) struct EventWake {
    /// The ring reads this one, so a write ends its sleep.
    ring: OwnedFd,
    /// The host's, written to as well: it sleeps outside the ring, while the read of the other may not be under way.
    host: OnceLock<OwnedFd>,
}

impl EventWake {
    /// The ring's eventfd.
    pub(super) fn new() -> Result<Self> {
        // Not O_NONBLOCK: io_uring would complete the read with EAGAIN instead of waiting for a wake-up.
        let ring = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|e| Error::from_io("create an eventfd for the ring", e))?;
        Ok(Self { ring, host: OnceLock::new() })
    }

    /// What the ring reads.
    pub(super) fn ring_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Wakes the host's eventfd, too, from now on; `false` if there is one already.
    pub(super) fn set_host(&self, fd: OwnedFd) -> bool {
        self.host.set(fd).is_ok()
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        for fd in [Some(&self.ring), self.host.get()].into_iter().flatten() {
            // It fails only when the counter is full, and then the reader is being woken already.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }
}
