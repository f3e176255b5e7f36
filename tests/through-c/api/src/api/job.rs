//! Jobs of C.

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use blkmirror::{
    BLKM_COMPLETE_PIVOT, BLKM_COMPLETE_POINT_IN_TIME, blkm_engine, blkm_job, blkm_job_cancel, blkm_job_close,
    blkm_job_complete, blkm_job_dismiss, blkm_job_finalize, blkm_job_get_error, blkm_job_get_outcome,
    blkm_job_get_status, blkm_job_info, blkm_job_pause, blkm_job_query, blkm_job_resume,
    blkm_job_set_copy_mode, blkm_job_set_max_pause, blkm_job_set_speed, blkm_job_wait, blkm_mirror_opts,
    blkm_outcome,
};
use blkmirror_core::engine::{Cancel, Completion, CopyMode, JobStatus};
use nix::libc::EAGAIN;

use super::error::{Result, check, must};
use super::events::{Event, Hub};
use super::facts::{JobInfo, Outcome};
use super::handle::{Handle, facts, timeout_ns};
use super::names;
use super::options::max_pause_ns;

/// A job.
#[derive(Clone, Debug)]
#[must_use = "a job that nobody has a handle of runs until its engine ends"]
pub struct Job(Arc<Held>);

/// What clones share.
#[derive(Debug)]
struct Held {
    /// C's handle; there until the drop.
    handle: Option<Handle<blkm_job>>,
    /// Where its events come from.
    hub: Arc<Hub>,
    /// What it was started with.
    number: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.handle.take());
        self.hub.leave(self.number);
    }
}

/// What verbs take nothing for.
type Plain = unsafe extern "C" fn(*mut blkm_job) -> i32;

impl Job {
    /// Starts a job of the hub's engine.
    pub(super) fn start(
        hub: &Arc<Hub>,
        mut opts: blkm_mirror_opts,
        start: impl FnOnce(*mut blkm_engine, *const blkm_mirror_opts, *mut *mut blkm_job) -> i32,
    ) -> Result<Self> {
        let number = hub.enter();
        opts.user_data = ptr::without_provenance_mut(number);
        let make = |engine| Handle::make(blkm_job_close, |out| start(engine, &raw const opts, out));
        match hub.with_engine(make).expect("the engine is there") {
            Ok(handle) => {
                hub.started(number, handle.raw());
                Ok(Self(Arc::new(Held { handle: Some(handle), hub: Arc::clone(hub), number })))
            }
            Err(error) => {
                hub.leave(number);
                Err(error)
            }
        }
    }

    /// C's handle.
    fn raw(&self) -> *mut blkm_job {
        self.0.handle.as_ref().unwrap().raw()
    }

    /// Asks for what takes no more than the job.
    fn ask(&self, verb: Plain) -> Result<()> {
        // SAFETY: a handle that is open.
        check(unsafe { verb(self.raw()) }).map(drop)
    }

    /// Pauses it.
    ///
    /// # Errors
    /// As C says.
    pub fn pause(&self) -> Result<()> {
        self.ask(blkm_job_pause)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As C says.
    pub fn resume(&self) -> Result<()> {
        self.ask(blkm_job_resume)
    }

    /// Changes the speed limit.
    ///
    /// # Errors
    /// As C says.
    pub fn set_speed(&self, bytes_per_s: u64) -> Result<()> {
        // SAFETY: a handle that is open.
        check(unsafe { blkm_job_set_speed(self.raw(), bytes_per_s) }).map(drop)
    }

    /// Changes how guest writes are followed.
    ///
    /// # Errors
    /// As C says.
    pub fn set_copy_mode(&self, mode: CopyMode) -> Result<()> {
        // SAFETY: a handle that is open.
        check(unsafe { blkm_job_set_copy_mode(self.raw(), names::number_of_mode(mode)) }).map(drop)
    }

    /// Changes how long guest requests may be held.
    ///
    /// # Errors
    /// As C says.
    pub fn set_max_pause(&self, max_pause: Option<Duration>) -> Result<()> {
        // SAFETY: a handle that is open.
        check(unsafe { blkm_job_set_max_pause(self.raw(), max_pause_ns(max_pause)) }).map(drop)
    }

    /// Asks for the switch-over.
    ///
    /// # Errors
    /// As C says.
    pub fn complete(&self, completion: Completion) -> Result<()> {
        let mode = match completion {
            Completion::Pivot => BLKM_COMPLETE_PIVOT,
            Completion::PointInTime => BLKM_COMPLETE_POINT_IN_TIME,
        };
        // SAFETY: a handle that is open.
        check(unsafe { blkm_job_complete(self.raw(), mode) }).map(drop)
    }

    /// Ends it.
    ///
    /// # Errors
    /// As C says.
    pub fn cancel(&self, how: Cancel) -> Result<()> {
        // SAFETY: a handle that is open.
        check(unsafe { blkm_job_cancel(self.raw(), how == Cancel::Force) }).map(drop)
    }

    /// Carries out a switch-over that is pending.
    ///
    /// # Errors
    /// As C says.
    pub fn finalize(&self) -> Result<()> {
        self.ask(blkm_job_finalize)
    }

    /// Its outcome was read.
    ///
    /// # Errors
    /// As C says.
    pub fn dismiss(&self) -> Result<()> {
        self.ask(blkm_job_dismiss)
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        // SAFETY: a handle that is open.
        names::status(u32::try_from(must(unsafe { blkm_job_get_status(self.raw()) })).unwrap())
    }

    /// Where it stands and what it has done.
    #[must_use]
    pub fn query(&self) -> JobInfo {
        // SAFETY: a handle that is open, and a structure.
        let (_, info) = facts::<blkm_job_info>(|info| unsafe { blkm_job_query(self.raw(), info) }).unwrap();
        JobInfo::new(&info)
    }

    /// Its next event.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.0.hub.next_of(self.0.number)
    }

    /// Readable while there are events; in C it is the engine's.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.hub.fd().as_fd()
    }

    /// How it ended, once it has.
    ///
    /// # Panics
    /// When C says something else than that it has not ended.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        // SAFETY: a handle that is open, and a structure.
        let got = facts::<blkm_outcome>(|outcome| unsafe { blkm_job_get_outcome(self.raw(), outcome) });
        match got {
            Ok((_, outcome)) => Some(Outcome::new(&outcome, self.error_text(), &self.query())),
            Err(early) => {
                assert_eq!(early.errno(), EAGAIN, "{early}");
                assert_eq!(self.outcome_of_early(), 0, "no error before the end");
                None
            }
        }
    }

    /// The length of the error's text while there should be none; it may have come meanwhile.
    fn outcome_of_early(&self) -> i32 {
        if self.status().is_over() {
            return 0;
        }
        // SAFETY: a handle that is open, and no room.
        let len = must(unsafe { blkm_job_get_error(self.raw(), ptr::null_mut(), 0) });
        if self.status().is_over() { 0 } else { len }
    }

    /// The text of the error that ended it, whole.
    fn error_text(&self) -> String {
        // SAFETY: a handle that is open, and no room.
        let len = must(unsafe { blkm_job_get_error(self.raw(), ptr::null_mut(), 0) });
        let len = usize::try_from(len).unwrap();
        let mut text = vec![0x5a_u8; len + 1];
        // SAFETY: a handle that is open, and room for the text and its end.
        let again = must(unsafe { blkm_job_get_error(self.raw(), text.as_mut_ptr().cast(), text.len()) });
        assert_eq!((usize::try_from(again).unwrap(), text.pop()), (len, Some(0)));
        String::from_utf8(text).unwrap()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When C says that it is over and has no outcome.
    #[must_use]
    pub fn wait(&self) -> Outcome {
        // SAFETY: a handle that is open.
        assert_eq!(must(unsafe { blkm_job_wait(self.raw(), timeout_ns(None)) }), 1);
        self.outcome().unwrap()
    }

    /// Waits for the end for so long.
    ///
    /// # Panics
    /// When C says that it is over and has no outcome.
    #[must_use]
    pub fn wait_for(&self, time: Duration) -> Option<Outcome> {
        // SAFETY: a handle that is open.
        let over = must(unsafe { blkm_job_wait(self.raw(), timeout_ns(Some(time))) });
        (over == 1).then(|| self.outcome().unwrap())
    }
}
