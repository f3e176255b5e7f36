//! Events of jobs, for C: one descriptor and one list for all jobs of an engine.
//!
//! Each job has a bounded ring of events and an eventfd of its own. An epoll instance over these is itself readable while one of
//! them is, so it is the engine's descriptor, and what it reports says whose turn it is. So nothing is queued twice, nothing can be
//! lost here, and a job that says much takes no place from another.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkmirror_core::engine::{Event, EventKind, Job};
use blkmirror_core::{Error, Result};
use rustix::event::{Timespec, epoll};

use crate::border::sized::{Structure, structure};
use crate::border::{sum, text};
use crate::job::names::{
    blkm_budget_level, blkm_copy_mode, blkm_error_action, blkm_escalation, blkm_escalation_reason,
    blkm_io_status, blkm_job_status, blkm_side,
};
use crate::job::{blkm_job, names};

/// What happened to a job.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_event_type = u32;
/// The job's state has changed, from `from` to `status`.
pub const BLKM_EVENT_STATUS: blkm_event_type = 1;
/// A switch-over is possible: `blkm_job_complete` may be asked. The first time only.
pub const BLKM_EVENT_READY: blkm_event_type = 2;
/// A request of the job failed for good: `ret`, `side`, `offset_bytes`, `len_bytes` (0 for a flush), `action`, `io_status`.
pub const BLKM_EVENT_ERROR: blkm_event_type = 3;
/// The host has changed how guest writes are followed: `copy_mode`.
pub const BLKM_EVENT_COPY_MODE: blkm_event_type = 4;
/// The remainder stopped shrinking, or switch-overs were missed, and something is done about it: `step`, `reason`, `left_bytes`,
/// `budget_level` for `BLKM_ESCALATION_BUDGET_LOOSENED`. Nothing needs to be asked for; but after `BLKM_ESCALATION_WRITE_BLOCKING`
/// a target that hangs holds guest writes until the job is cancelled by force.
pub const BLKM_EVENT_ESCALATED: blkm_event_type = 5;
/// A latency budget that was loosened has come back to `budget_level`.
pub const BLKM_EVENT_BUDGET_TIGHTENED: blkm_event_type = 6;
/// Copy mode auto does not brake the guest any more.
pub const BLKM_EVENT_BRAKING_ENDED: blkm_event_type = 7;
/// A switch-over did not fit into its time and will be tried again: `held_ns`, `left_bytes`.
pub const BLKM_EVENT_SWITCH_OVER_MISSED: blkm_event_type = 8;
/// Everything is copied and flushed, and guest requests are held. With `BLKM_EVENT_F_PIVOTS` the drive is about to move: it is the
/// moment to write down, durably, that the target is the guest's disk from now on. Without, the drive stays where it is, and there
/// is nothing to write down. `blkm_job_finalize` goes on. Only with `BLKM_MIRROR_F_MANUAL_FINALIZE`.
///
/// How the job ends is decided in one step; what you write down and that step are two. So where more than one thread of yours may
/// end it, hold one lock of yours around writing down the target and `blkm_job_finalize`, and the same one around writing down the
/// old disk and `blkm_job_cancel` by force, `blkm_job_close` or `blkm_engine_destroy`. Once finalize has succeeded what is written
/// down stays, unless the outcome comes without `BLKM_OUTCOME_PIVOTED`: note that under the lock, too.
///
/// A pending job may also fail by itself, but only if the worker that would carry it out breaks: its ring, or by a bug that is
/// caught; whatever else fails changes nothing any more. Guest requests then go on, on the old disk, before anybody can take back
/// what is written down, and finalize is refused: write down the old disk at once, before anything else, and not only when the
/// outcome is there. A host that crashes before it has, and starts its guest on the target, loses what the guest has written in
/// between.
pub const BLKM_EVENT_PENDING: blkm_event_type = 9;
/// The job is over; `blkm_job_get_outcome` tells how.
pub const BLKM_EVENT_CONCLUDED: blkm_event_type = 10;
/// So many events (`lost`) were lost here, because nobody took them. What a job tells of only once is never among them: ready,
/// pending, concluded, and the changes of state to these. `blkm_job_query` says how the job stands.
pub const BLKM_EVENT_OVERFLOW: blkm_event_type = 11;

/// Pending: the drive moves to the target once the job is finalized.
pub const BLKM_EVENT_F_PIVOTS: u32 = 1;

/// Something that happened to a job. Later versions may bring other types; ignore those that you do not know.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_event {
    /// Set by the caller: sizeof(blkm_event).
    pub struct_size: usize,
    /// Whose it is: the caller's handle, good until he closes it.
    pub job: *mut blkm_job,
    /// What the job was started with.
    pub user_data: *mut c_void,
    /// Counts the job's events from 0; a gap is as long as the overflow that fills it says.
    pub seq: u64,
    /// CLOCK_MONOTONIC when it was noticed.
    pub time_ns: u64,
    /// Error: where.
    pub offset_bytes: u64,
    /// Error: how much; 0 for a flush.
    pub len_bytes: u64,
    /// Escalated, switch-over missed: bytes that were left.
    pub left_bytes: u64,
    /// Switch-over missed: how long guest requests were held.
    pub held_ns: u64,
    /// Overflow: how many events.
    pub lost: u64,
    /// What it is: `BLKM_EVENT_*`.
    pub r#type: blkm_event_type,
    /// Status: what it was.
    pub from: blkm_job_status,
    /// Status: what it is; otherwise 0.
    pub status: blkm_job_status,
    /// Error: -errno.
    pub ret: i32,
    /// Error: which side.
    pub side: blkm_side,
    /// Error: what is done about it.
    pub action: blkm_error_action,
    /// Error: what the job's I/O status is by that.
    pub io_status: blkm_io_status,
    /// Copy mode: which.
    pub copy_mode: blkm_copy_mode,
    /// Escalated: what is done.
    pub step: blkm_escalation,
    /// Escalated: why.
    pub reason: blkm_escalation_reason,
    /// Escalated, budget tightened: how much of the budget is in force.
    pub budget_level: blkm_budget_level,
    /// `BLKM_EVENT_F_*`.
    pub flags: u32,
    /// The same in words, for a log.
    pub msg: [c_char; 192],
    /// Zero so far.
    pub reserved: [u64; 4],
}
structure!(blkm_event, first 352);

/// A job whose events are taken here.
#[derive(Debug)]
struct Listed {
    /// The job.
    job: Job,
    /// C's handle of it, once it has one.
    handle: usize,
    /// C's word for it.
    user_data: usize,
}

/// All jobs of an engine that C has handles of.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Readable while one of them has events.
    epoll: OwnedFd,
    /// The jobs by number.
    jobs: Mutex<Jobs>,
}

/// The jobs of a hub.
#[derive(Debug, Default)]
struct Jobs {
    /// By number.
    listed: HashMap<u64, Listed>,
    /// The next number.
    next: u64,
}

/// What registers a job's descriptor is called in errors.
const LISTEN: &str = "listen to a job's events";

impl Hub {
    /// No jobs yet.
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| Error::from_io("make an epoll instance for an engine's events", e))?;
        Ok(Self { epoll, jobs: Mutex::default() })
    }

    /// Readable while there are events.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// A number for a job.
    pub(crate) fn number(&self) -> u64 {
        let mut jobs = self.lock();
        jobs.next += 1;
        jobs.next
    }

    /// Listens to the job of this number from now on: from here its events, and with them the handle, may be in anybody's hands.
    pub(crate) fn enter(
        &self,
        number: u64,
        job: &Job,
        handle: *mut blkm_job,
        user_data: *mut c_void,
    ) -> Result<()> {
        let mut jobs = self.lock();
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, job.event_fd(), data, epoll::EventFlags::IN)
            .map_err(|e| Error::from_io(LISTEN, e))?;
        let (handle, user_data) = (handle.expose_provenance(), user_data.expose_provenance());
        jobs.listed.insert(number, Listed { job: job.clone(), handle, user_data });
        Ok(())
    }

    /// Does not listen to it any more.
    pub(crate) fn leave(&self, number: u64) {
        if let Some(listed) = self.lock().listed.remove(&number) {
            // It was added, so it is there.
            let _ = epoll::delete(&self.epoll, listed.job.event_fd());
        }
    }

    /// Takes an event, if there is one.
    pub(crate) fn next(&self) -> Result<Option<blkm_event>> {
        let jobs = self.lock();
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut report =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        loop {
            let count = match epoll::wait(&self.epoll, &mut report[..], Some(&none)) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|e| Error::from_io(LISTEN, e))?,
            };
            if count == 0 {
                return Ok(None);
            }
            let Some(listed) = jobs.listed.get(&report[0].data.u64()) else { continue };
            // One that finds nothing has made its descriptor silent, so this ends.
            if let Some(event) = listed.job.next_event() {
                return Ok(Some(event_of(&event, listed)));
            }
        }
    }

    /// The jobs; a panic under the lock leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event for C.
fn event_of(event: &Event, listed: &Listed) -> blkm_event {
    let mut out = blkm_event::zeroed();
    out.job = std::ptr::with_exposed_provenance_mut(listed.handle);
    out.user_data = std::ptr::with_exposed_provenance_mut(listed.user_data);
    (out.seq, out.time_ns) = (event.seq, event.time_ns);
    describe(&mut out, event.what);
    out
}

/// What it says, in numbers and in words.
fn describe(out: &mut blkm_event, what: EventKind) {
    text::fill(&mut out.msg, &what);
    match what {
        EventKind::Status { from, to } => {
            out.r#type = BLKM_EVENT_STATUS;
            (out.from, out.status) = (names::status(from), names::status(to));
        }
        EventKind::Ready => out.r#type = BLKM_EVENT_READY,
        EventKind::Error { side, errno, range, action, io_status, .. } => {
            out.r#type = BLKM_EVENT_ERROR;
            (out.ret, out.side) = (sum::negative(errno), names::side(side));
            (out.offset_bytes, out.len_bytes) = (range.start(), range.len());
            (out.action, out.io_status) = (names::action(action), names::io_status(io_status));
        }
        EventKind::CopyMode(mode) => {
            out.r#type = BLKM_EVENT_COPY_MODE;
            out.copy_mode = names::copy_mode(mode);
        }
        EventKind::Escalated { step, reason, left_bytes, .. } => {
            out.r#type = BLKM_EVENT_ESCALATED;
            (out.step, out.budget_level) = names::step(step);
            (out.reason, out.left_bytes) = (names::reason(reason), left_bytes);
        }
        EventKind::BudgetTightened(level) => {
            out.r#type = BLKM_EVENT_BUDGET_TIGHTENED;
            out.budget_level = names::budget_level(level);
        }
        EventKind::BrakingEnded => out.r#type = BLKM_EVENT_BRAKING_ENDED,
        EventKind::SwitchOverMissed { held_ns, left_bytes, .. } => {
            out.r#type = BLKM_EVENT_SWITCH_OVER_MISSED;
            (out.held_ns, out.left_bytes) = (held_ns, left_bytes);
        }
        EventKind::Pending { pivots, .. } => {
            out.r#type = BLKM_EVENT_PENDING;
            out.flags = if pivots { BLKM_EVENT_F_PIVOTS } else { 0 };
        }
        EventKind::Concluded => out.r#type = BLKM_EVENT_CONCLUDED,
        EventKind::Overflow(lost) => (out.r#type, out.lost) = (BLKM_EVENT_OVERFLOW, lost),
        // It has words, and no number yet.
        _ => {}
    }
}
