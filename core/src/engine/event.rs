//! What a host hears of a job, in order.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::log;
use crate::error::{Error, Result};
use crate::mirror::{BudgetLevel, CopyMode, ErrorAction, Escalation, JobStatus, Notice, Reason, Share, Side};
use crate::ring::monotonic_ns;
use crate::units::ByteRange;

/// Events kept for a host that does not take them.
const EVENT_DEPTH: usize = 256;
/// Events that a job tells of once at most and that [`is_landmark`] names.
const LANDMARKS: usize = 9;
/// Places for these, each with the mark of what was lost before it.
const LANDMARK_PLACES: usize = 2 * LANDMARKS;

/// Something that happened to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
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
    /// `JobInfo::fits_now` says whether it fits now, `JobInfo::predicted_pause` how long it would take. Whatever these say,
    /// `complete` holds guest requests for `max_pause` at most at each attempt, as far as the worker's thread gets a core in time;
    /// each that did not fit is a `SwitchOverMissed`.
    Ready,
    /// A request of the job failed for good.
    #[non_exhaustive]
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
    /// The remainder stopped shrinking, or three switch-overs were missed (see `reason`; then also look for tokens that are never
    /// ended) or the guest outran the flush before one again and again, and something is done about it: by copy mode auto, or about
    /// a latency budget that held the copiers back, whatever the copy mode. Nothing needs to be asked for; but after
    /// `WriteBlocking` a target that hangs holds guest writes, see [`CopyModeChoice`](crate::mirror::CopyModeChoice).
    #[non_exhaustive]
    Escalated {
        /// What is done about it.
        step: Escalation,
        /// Why.
        reason: Reason,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// A latency budget that was loosened has come back to this level; all of it is in force only with [`BudgetLevel::Chosen`].
    /// When that is, see [`LatencyBudget`](crate::mirror::LatencyBudget).
    BudgetTightened(BudgetLevel),
    /// Copy mode auto does not brake any more: a switch-over has fitted for 10 s or more, or the host has chosen a copy mode. Not
    /// told once the end is wanted: the end of the job ends braking, too. Also see `JobInfo::braking`.
    BrakingEnded,
    /// A switch-over did not fit into its time; the gate is open again, and it will be tried again. Once the end is wanted, each
    /// time that copy mode auto held the guest in vain is one, too; before, such times are not told.
    #[non_exhaustive]
    SwitchOverMissed {
        /// How long guest requests were held.
        held_ns: u64,
        /// Bytes that were left.
        left_bytes: u64,
    },
    /// Everything is copied and flushed, guest requests are held; `Job::finalize` goes on. Only where it is needed: with
    /// `auto_finalize` the job passes through the state without a stop.
    #[non_exhaustive]
    Pending {
        /// Whether the drive moves to the target then; else it stays where it is, and nothing needs to be written down.
        pivots: bool,
    },
    /// The job is over; the outcome is there.
    Concluded,
    /// So many events were lost here, because 256 were waiting, or because 128 errors came at once. What a job tells of only once
    /// is never among them, however late the host takes its events: `Ready`, `Pending`, `Concluded`, and the changes of state to
    /// ready for the first time, waiting, pending, aborting, concluded and null. All else may be; `Job::query` says how the job
    /// stands.
    Overflow(u64),
}

/// What errors have done to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
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
#[non_exhaustive]
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

/// The bounded queue of a job's events.
///
/// Several threads tell: the home of everything that happens, a host's of what it asks for. So that numbers rise in the order in
/// which events are taken out, and that a host hears of nothing before what led to it, one at a time takes notices and numbers
/// them, under a lock. The lock is the control path's: no request of a guest and no copy waits for it.
#[derive(Debug)]
pub(super) struct Events {
    /// Whose they are, for the log.
    job: String,
    /// What was told and not taken yet.
    told: Mutex<Told>,
    /// Readable while there are events.
    fd: OwnedFd,
}

/// Events in their order.
#[derive(Debug)]
struct Told {
    /// Told, and not in the log yet: a log may take its time, and nobody waits for it with the lock in hand.
    unlogged: Vec<EventKind>,
    /// A pending switch-over needs no word of the host.
    auto_finalize: bool,
    /// Kept for the host, oldest first; never more than [`EVENT_DEPTH`] and [`LANDMARK_PLACES`].
    kept: VecDeque<Event>,
    /// The next number.
    seq: u64,
    /// Events that found no room, after the last that is kept.
    lost: u64,
    /// The last error, for who asks later.
    last_error: Option<LastError>,
}

impl Events {
    /// No events yet, of a job with this name in the log.
    pub(super) fn new(job: String, auto_finalize: bool) -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::from_io("make an eventfd for the job's events", e))?;
        let kept = VecDeque::with_capacity(EVENT_DEPTH + LANDMARK_PLACES);
        let unlogged = Vec::new();
        let told = Told { unlogged, auto_finalize, kept, seq: 0, lost: 0, last_error: None };
        Ok(Self { job, told: Mutex::new(told), fd })
    }

    /// Readable while there are events.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Tells all notices of the job.
    pub(super) fn tell_all(&self, share: &Share) {
        if share.has_notices() {
            self.tell_after(share, || ());
        }
    }

    /// Does what makes notices, and tells them before anybody else tells anything: who acts on what he has seen of it, and tells of
    /// that, waits until it is told.
    pub(super) fn tell_after<T>(&self, share: &Share, act: impl FnOnce() -> T) -> T {
        let mut told = self.lock();
        // What waits already came before what this makes, and makes room for it.
        told.tell_all(share);
        let done = act();
        told.tell_all(share);
        self.show(&told);
        let unlogged = std::mem::take(&mut told.unlogged);
        drop(told);
        unlogged.iter().for_each(|what| log::event(&self.job, what));
        done
    }

    /// The last error.
    pub(super) fn last_error(&self) -> Option<LastError> {
        self.lock().last_error
    }

    /// Takes the next event, if there is one; a mark for those that were lost after the last that was kept.
    pub(super) fn next(&self) -> Option<Event> {
        let mut told = self.lock();
        let event = told.kept.pop_front().or_else(|| told.mark());
        if event.is_none() {
            // With the lock in hand, so that nobody makes it readable in between.
            let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
        }
        event
    }

    /// Makes the descriptor readable if there is something to take.
    fn show(&self, told: &Told) {
        if !told.kept.is_empty() || told.lost > 0 {
            // It fails only when the counter is full, and then it is readable already.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// The lock; a panic under it leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Keeps an event for the host; what finds no room is counted, and the next one that finds room comes after a mark.
    fn emit(&mut self, what: EventKind) {
        self.unlogged.push(what);
        let depth = if is_landmark(what) { EVENT_DEPTH + LANDMARK_PLACES } else { EVENT_DEPTH };
        if self.kept.len() + usize::from(self.lost > 0) < depth {
            let mark = self.mark();
            self.kept.extend(mark);
            self.kept.push_back(Event { seq: self.seq, time_ns: monotonic_ns(), what });
        } else {
            self.lost += 1;
        }
        self.seq += 1;
    }

    /// Tells all notices of the job.
    fn tell_all(&mut self, share: &Share) {
        let mut lost = share.take_lost_notices();
        while let Some(notice) = share.pop_notice() {
            // Errors are lost when many wait, so those that wait came first; and what they led to came after.
            if !notice.is_error() {
                self.lose(std::mem::take(&mut lost));
            }
            self.tell(notice, share);
        }
        self.lose(lost);
    }

    /// Takes note of notices that were lost before they came here.
    fn lose(&mut self, notices: u64) {
        self.seq += notices;
        self.lost += notices;
    }

    /// A mark for what was lost, if anything was.
    fn mark(&mut self) -> Option<Event> {
        let lost = std::mem::take(&mut self.lost);
        let (seq, time_ns) = (self.seq - lost, monotonic_ns());
        (lost > 0).then_some(Event { seq, time_ns, what: EventKind::Overflow(lost) })
    }

    /// What the host hears of a notice.
    fn tell(&mut self, notice: Notice, share: &Share) {
        match notice {
            Notice::Error { side, errno, range, action } => {
                self.last_error = Some(LastError { side, errno, range, action, time_ns: monotonic_ns() });
                let io_status = IoStatus::of(errno, action);
                self.emit(EventKind::Error { side, errno, range, action, io_status });
            }
            Notice::Status { from, to } => {
                self.emit(EventKind::Status { from, to });
                match (from, to) {
                    (JobStatus::Running, JobStatus::Ready) => self.emit(EventKind::Ready),
                    (_, JobStatus::Pending) if !self.auto_finalize => {
                        // It was asked for before, and once.
                        self.emit(EventKind::Pending { pivots: share.wants_pivot() });
                    }
                    (_, JobStatus::Concluded) => self.emit(EventKind::Concluded),
                    _ => {}
                }
            }
            Notice::CopyMode(mode) => self.emit(EventKind::CopyMode(mode)),
            Notice::Escalated { step, reason, left_bytes } => {
                self.emit(EventKind::Escalated { step, reason, left_bytes });
            }
            Notice::BudgetTightened(level) => self.emit(EventKind::BudgetTightened(level)),
            Notice::BrakingEnded => self.emit(EventKind::BrakingEnded),
            Notice::SwitchOverMissed { held_ns, left_bytes } => {
                self.emit(EventKind::SwitchOverMissed { held_ns, left_bytes });
            }
        }
    }
}

/// Whether a job tells of this once at most. A host may wait for it, so it is kept whatever else waits; and because there are few
/// of these, they have a place each.
fn is_landmark(what: EventKind) -> bool {
    use JobStatus as S;
    match what {
        EventKind::Ready | EventKind::Pending { .. } | EventKind::Concluded => true,
        EventKind::Status { from, to } => match to {
            S::Ready => from == S::Running,
            S::Waiting | S::Pending | S::Aborting | S::Concluded | S::Null => true,
            S::Created | S::Running | S::Paused | S::Standby => false,
        },
        _ => false,
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

    /// Tells of something so often.
    fn emit(events: &Events, times: usize, what: EventKind) {
        let mut told = events.lock();
        (0..times).for_each(|_| told.emit(what));
        events.show(&told);
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_there_are_events() {
        let events = Events::new(String::new(), false).unwrap();
        assert!(!readable(&events));
        emit(&events, 3, EventKind::Ready);
        for seq in 0..3 {
            assert!(readable(&events));
            assert_eq!(events.next().unwrap().seq, seq);
        }
        assert!(events.next().is_none());
        assert!(!readable(&events));
    }

    #[test]
    fn numbers_have_no_gap_that_an_overflow_does_not_explain() {
        let events = Events::new(String::new(), false).unwrap();
        emit(&events, EVENT_DEPTH + 10, EventKind::CopyMode(CopyMode::Background));
        let mut expected = 0;
        for _ in 0..5 {
            assert_eq!(events.next().unwrap().seq, expected);
            expected += 1;
        }
        emit(&events, 2, EventKind::Pending { pivots: false });
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

    /// Otherwise a host that takes its events late never hears that the job was ready, or is over.
    #[test]
    fn what_a_job_tells_of_only_once_is_kept_whatever_else_waits() {
        use JobStatus as S;
        let events = Events::new(String::new(), false).unwrap();
        let other = || emit(&events, EVENT_DEPTH + 7, EventKind::CopyMode(CopyMode::Background));
        let status = |from, to| EventKind::Status { from, to };
        let landmarks = [
            status(S::Running, S::Ready),
            EventKind::Ready,
            status(S::Ready, S::Waiting),
            status(S::Waiting, S::Pending),
            EventKind::Pending { pivots: true },
            status(S::Pending, S::Aborting),
            status(S::Aborting, S::Concluded),
            EventKind::Concluded,
            status(S::Concluded, S::Null),
        ];
        assert_eq!(landmarks.len(), LANDMARKS);
        for landmark in landmarks {
            other();
            emit(&events, 1, landmark);
        }
        other();
        let told: Vec<_> = std::iter::from_fn(|| events.next()).collect();
        let mut seq = 0;
        for event in &told {
            assert_eq!(event.seq, seq, "{event:?}");
            seq += if let EventKind::Overflow(lost) = event.what { lost } else { 1 };
        }
        assert_eq!(seq, (LANDMARKS + (LANDMARKS + 1) * (EVENT_DEPTH + 7)) as u64);
        let heard: Vec<_> = told.iter().map(|event| event.what).filter(|&what| is_landmark(what)).collect();
        assert_eq!(heard, landmarks);
    }
}
