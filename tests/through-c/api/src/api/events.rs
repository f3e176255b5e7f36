//! Events: C has one list for all jobs of an engine; here each job is given its own.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, RwLock};

use blkmirror::*;
use blkmirror_core::engine::{BudgetLevel, CopyMode, ErrorAction, Escalation, IoStatus, JobStatus, Side};
use blkmirror_core::units::ByteRange;

use super::error::{Result, must};
use super::handle::{Handle, facts};
use super::names;

/// Something that happened to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Counts the job's events.
    pub seq: u64,
    /// When it was noticed.
    pub time_ns: u64,
    /// What it is.
    pub what: EventKind,
}

/// What happened; see core's of that name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is what core says")]
pub enum EventKind {
    Status { from: JobStatus, to: JobStatus },
    Ready,
    Error { side: Side, errno: i32, range: ByteRange, action: ErrorAction, io_status: IoStatus },
    CopyMode(CopyMode),
    Escalated { step: Escalation, reason: EscalationReason, left_bytes: u64 },
    BudgetTightened(BudgetLevel),
    BrakingEnded,
    SwitchOverMissed { held_ns: u64, left_bytes: u64 },
    Pending { pivots: bool },
    Concluded,
    Overflow(u64),
}

/// Why something is done. C says no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EscalationReason {
    /// The remainder no longer shrinks.
    NotShrinking,
    /// Switch-overs were missed.
    Missed,
}

/// A job that events may be of.
#[derive(Debug, Default)]
struct Listed {
    /// Its handle, once it is known.
    handle: Option<usize>,
    /// Its events that were taken for another's sake.
    told: VecDeque<Event>,
}

/// What an engine and its jobs share.
#[derive(Debug)]
pub(super) struct Hub {
    /// The engine, until it is destroyed.
    engine: RwLock<Option<Handle<blkm_engine>>>,
    /// Its descriptor, once more, so that it does not end with the engine.
    fd: OwnedFd,
    /// Its jobs, by what they were started with.
    jobs: Mutex<HashMap<usize, Listed>>,
    /// The next of these.
    next: Mutex<usize>,
}

impl Hub {
    /// Of a new engine.
    pub(super) fn new(engine: Handle<blkm_engine>) -> Self {
        // SAFETY: a handle that is open.
        let fd = must(unsafe { blkm_engine_get_event_fd(engine.raw()) });
        // SAFETY: the engine's, which is open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap();
        Self { engine: RwLock::new(Some(engine)), fd, jobs: Mutex::default(), next: Mutex::new(1) }
    }

    /// Readable while there are events.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Runs `body` with the engine, if it is not destroyed.
    pub(super) fn with_engine<T>(&self, body: impl FnOnce(*mut blkm_engine) -> T) -> Option<T> {
        self.engine.read().unwrap().as_ref().map(|engine| body(engine.raw()))
    }

    /// Destroys the engine.
    pub(super) fn end(&self) {
        drop(self.engine.write().unwrap().take());
    }

    /// A number for a job that is about to be started; its user data.
    pub(super) fn enter(&self) -> usize {
        let mut next = self.next.lock().unwrap();
        let number = *next;
        *next += 1;
        self.jobs.lock().unwrap().insert(number, Listed::default());
        number
    }

    /// The job has this handle.
    pub(super) fn started(&self, number: usize, job: *mut blkm_job) {
        self.jobs.lock().unwrap().get_mut(&number).unwrap().handle = Some(job.addr());
    }

    /// The job's handle is closed, or there never was one.
    pub(super) fn leave(&self, number: usize) {
        self.jobs.lock().unwrap().remove(&number);
    }

    /// The next event of a job. Those of others that come before it are kept for them.
    pub(super) fn next_of(&self, number: usize) -> Option<Event> {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            if let Some(event) = jobs.get_mut(&number).unwrap().told.pop_front() {
                return Some(event);
            }
            let event = self.with_engine(take)?.unwrap()?;
            // Whose handle is closed meanwhile wants no event any more.
            let Some(whose) = jobs.get_mut(&event.user_data.addr()) else { continue };
            let of_another = whose.handle.is_some_and(|handle| handle != event.job.addr());
            assert!(!of_another, "job and user data are of different jobs: {event:?}");
            whose.told.push_back(read(&event));
        }
    }
}

/// Takes an event of an engine.
fn take(engine: *mut blkm_engine) -> Result<Option<blkm_event>> {
    // SAFETY: a handle that is open, and a structure.
    let (ret, event) = facts::<blkm_event>(|event| unsafe { blkm_engine_next_event(engine, event) })?;
    assert!(ret == 0 || ret == 1, "{ret}");
    Ok((ret == 1).then_some(event))
}

/// An event of C's.
fn read(event: &blkm_event) -> Event {
    assert!(event.flags & !BLKM_EVENT_F_PIVOTS == 0 && event.reserved == [0; 4], "zero so far: {event:?}");
    // SAFETY: it ends with a 0 inside the array.
    let words = unsafe { CStr::from_ptr(event.msg.as_ptr()) }.to_str().unwrap();
    assert!(!words.is_empty(), "no words: {event:?}");
    let &blkm_event { seq, time_ns, left_bytes, held_ns, .. } = event;
    let what = match event.r#type {
        BLKM_EVENT_STATUS => {
            EventKind::Status { from: names::status(event.from), to: names::status(event.status) }
        }
        BLKM_EVENT_READY => EventKind::Ready,
        BLKM_EVENT_ERROR => EventKind::Error {
            side: names::side(event.side),
            errno: -event.ret,
            range: ByteRange::at(event.offset_bytes, event.len_bytes),
            action: names::action(event.action),
            io_status: names::io_status(event.io_status),
        },
        BLKM_EVENT_COPY_MODE => EventKind::CopyMode(names::copy_mode(event.copy_mode)),
        BLKM_EVENT_ESCALATED => EventKind::Escalated { step: step(event), reason: reason(event), left_bytes },
        BLKM_EVENT_BUDGET_TIGHTENED => EventKind::BudgetTightened(names::budget_level(event.budget_level)),
        BLKM_EVENT_BRAKING_ENDED => EventKind::BrakingEnded,
        BLKM_EVENT_SWITCH_OVER_MISSED => EventKind::SwitchOverMissed { held_ns, left_bytes },
        BLKM_EVENT_PENDING => EventKind::Pending { pivots: event.flags & BLKM_EVENT_F_PIVOTS != 0 },
        BLKM_EVENT_CONCLUDED => EventKind::Concluded,
        BLKM_EVENT_OVERFLOW => EventKind::Overflow(event.lost),
        other => panic!("{other} is no type of event: {words}"),
    };
    Event { seq, time_ns, what }
}

/// What is done.
fn step(event: &blkm_event) -> Escalation {
    match event.step {
        BLKM_ESCALATION_WRITE_BLOCKING => Escalation::WriteBlocking,
        BLKM_ESCALATION_BUDGET_LOOSENED => {
            Escalation::BudgetLoosened(names::budget_level(event.budget_level))
        }
        BLKM_ESCALATION_BRAKING => Escalation::Braking,
        other => panic!("{other} is no step"),
    }
}

/// Why.
fn reason(event: &blkm_event) -> EscalationReason {
    match event.reason {
        BLKM_REASON_NOT_SHRINKING => EscalationReason::NotShrinking,
        BLKM_REASON_MISSED => EscalationReason::Missed,
        other => panic!("{other} is no reason"),
    }
}
