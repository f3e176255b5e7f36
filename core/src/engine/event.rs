//! What a host hears of a job, in order.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};
use crate::mirror::{CopyMode, ErrorAction, Escalation, JobStatus, Notice, Reason, Side};
use crate::ring::monotonic_ns;
use crate::units::ByteRange;

/// Events kept for a host that does not take them.
const EVENT_DEPTH: usize = 256;

/// Something that happened to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Counts the job's events from 0; a gap is as long as the [`EventKind::Overflow`] that fills it says.
    pub seq: u64,
    /// CLOCK_MONOTONIC when it was noticed.
    pub time_ns: u64,
    /// What it is.
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// The job's state has changed.
    Status {
        /// What it was.
        from: JobStatus,
        /// What it is.
        to: JobStatus,
    },
    /// A switch-over is possible; comes right after the change to [`JobStatus::Ready`] that it is about, the first only. It says
    /// that the forecast fitted into `max_pause` then, and is not taken back when guests write more than that afterwards:
    /// `JobInfo::fits_now` says whether it fits now, `JobInfo::predicted_pause` how long it would take. Whatever these say, `complete`
    /// keeps guest requests no longer than `max_pause`; it waits until the rest fits.
    Ready,
    /// A request of the job failed for good.
    Error {
        /// Which side.
        side: Side,
        /// What the kernel said.
        errno: i32,
        /// The bytes it was about; empty for a flush.
        range: ByteRange,
        /// What is done about it.
        action: ErrorAction,
        /// What the job's I/O status is by that.
        io_status: IoStatus,
    },
    /// The way in which guest writes are followed was changed by the host.
    CopyMode(CopyMode),
    /// Copy mode auto: the remainder stopped shrinking.
    Escalated {
        /// What is done about it.
        step: Escalation,
        /// Why.
        reason: Reason,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// A switch-over did not fit into its time; the gate is open again, and it will be tried again.
    SwitchOverMissed {
        /// How long guest requests were held.
        held_ns: u64,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// Everything is copied and flushed, guest requests are held; `Job::finalize` goes on.
    Pending,
    /// The job is over; the outcome is there.
    Concluded,
    /// So many events were lost here because nobody took them.
    Overflow(u64),
}

/// What errors have done to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoStatus {
    /// Nothing that stops it.
    #[default]
    Ok,
    /// An error stopped it.
    Failed,
    /// A full target stopped it.
    NoSpace,
}

impl IoStatus {
    /// What an error with this errno and this action leads to.
    fn of(errno: i32, action: ErrorAction) -> Self {
        if action == ErrorAction::Ignore { Self::Ok } else { Self::of_failure(errno) }
    }

    /// What an error with this errno leads to that ends or stops the job.
    pub(super) fn of_failure(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            _ => Self::Failed,
        }
    }
}

/// The last request of a job that failed for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastError {
    /// Which side.
    pub side: Side,
    /// What the kernel said.
    pub errno: i32,
    /// The bytes it was about; empty for a flush.
    pub range: ByteRange,
    /// What was done about it.
    pub action: ErrorAction,
    /// CLOCK_MONOTONIC when it was noticed.
    pub time_ns: u64,
}

/// The bounded queue of a job's events. The job's home puts them in, any thread takes them out.
#[derive(Debug)]
pub(super) struct Events {
    /// In.
    sender: SyncSender<Event>,
    /// Out.
    receiver: Mutex<Receiver<Event>>,
    /// The next number.
    seq: AtomicU64,
    /// Events that found the queue full, not yet told.
    lost: AtomicU64,
    /// The last error, for who asks later.
    last_error: Mutex<Option<LastError>>,
    /// Readable while there are events.
    fd: OwnedFd,
}

impl Events {
    /// No events yet.
    pub(super) fn new() -> Result<Self> {
        let (sender, receiver) = sync_channel(EVENT_DEPTH);
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::from_io("make an eventfd for the job's events", e))?;
        let (seq, lost) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { sender, receiver: Mutex::new(receiver), seq, lost, last_error: Mutex::new(None), fd })
    }

    /// Readable while there are events.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the host an event; what finds no room is counted, and the next one that finds room comes after a mark.
    pub(super) fn emit(&self, what: EventKind) {
        let time_ns = monotonic_ns();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let seq = self.seq.load(Ordering::Relaxed).saturating_sub(lost);
            if self.sender.try_send(Event { seq, time_ns, what: EventKind::Overflow(lost) }).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let kept = self.lost.load(Ordering::Relaxed) == 0
            && self.sender.try_send(Event { seq, time_ns, what }).is_ok();
        if !kept {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        // It fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Notices that were lost before they came here.
    pub(super) fn count_lost(&self, notices: u64) {
        self.seq.fetch_add(notices, Ordering::Relaxed);
        self.lost.fetch_add(notices, Ordering::Relaxed);
    }

    /// What the host hears of a notice.
    pub(super) fn tell(&self, notice: Notice) {
        match notice {
            Notice::Error { side, errno, range, action } => {
                let last = LastError { side, errno, range, action, time_ns: monotonic_ns() };
                *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
                self.emit(EventKind::Error {
                    side,
                    errno,
                    range,
                    action,
                    io_status: IoStatus::of(errno, action),
                });
            }
            Notice::Status { from, to } => {
                self.emit(EventKind::Status { from, to });
                match (from, to) {
                    (JobStatus::Running, JobStatus::Ready) => self.emit(EventKind::Ready),
                    (_, JobStatus::Pending) => self.emit(EventKind::Pending),
                    (_, JobStatus::Concluded) => self.emit(EventKind::Concluded),
                    _ => {}
                }
            }
            Notice::CopyMode(mode) => self.emit(EventKind::CopyMode(mode)),
            Notice::Escalated { step, reason, left_bytes } => {
                self.emit(EventKind::Escalated { step, reason, left_bytes });
            }
            Notice::SwitchOverMissed { held_ns, left_bytes } => {
                self.emit(EventKind::SwitchOverMissed { held_ns, left_bytes });
            }
        }
    }

    /// The last error.
    pub(super) fn last_error(&self) -> Option<LastError> {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next event, if there is one.
    pub(super) fn next(&self) -> Option<Event> {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(event) = receiver.try_recv() {
            return Some(event);
        }
        // Not readable any more, and then another look: an event that came in between is either seen or makes it
        // readable again.
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
        let event = receiver.try_recv().ok();
        if event.is_some() {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
            return event;
        }
        self.unkept()
    }

    /// The queue is empty, and events were lost after the last that was kept: a mark for them.
    fn unkept(&self) -> Option<Event> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let seq = self.seq.load(Ordering::Relaxed).saturating_sub(lost);
        (lost > 0).then(|| Event { seq, time_ns: monotonic_ns(), what: EventKind::Overflow(lost) })
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable(events: &Events) -> bool {
        let mut fds = [PollFd::new(&events.fd, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_there_are_events() {
        let events = Events::new().unwrap();
        assert!(!readable(&events));
        for _ in 0..3 {
            events.emit(EventKind::Ready);
        }
        for seq in 0..3 {
            assert!(readable(&events));
            assert_eq!(events.next().unwrap().seq, seq);
        }
        assert!(events.next().is_none());
        assert!(!readable(&events));
    }

    #[test]
    fn numbers_have_no_gap_that_an_overflow_does_not_explain() {
        let events = Events::new().unwrap();
        for _ in 0..EVENT_DEPTH + 10 {
            events.emit(EventKind::Ready);
        }
        let mut expected = 0;
        for _ in 0..5 {
            assert_eq!(events.next().unwrap().seq, expected);
            expected += 1;
        }
        for _ in 0..2 {
            events.emit(EventKind::Pending);
        }
        let mut lost = 0;
        while let Some(event) = events.next() {
            assert_eq!(event.seq, expected);
            match event.what {
                EventKind::Overflow(n) => {
                    lost += n;
                    expected += n;
                }
                _ => expected += 1,
            }
        }
        assert_eq!((lost, expected), (10, EVENT_DEPTH as u64 + 12));
    }
}
