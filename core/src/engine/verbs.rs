//! What a host may ask of a job: every verb is checked against the table of `mirror/states.rs`, and carried out by a bit in the
//! command word that the workers read.

use std::time::Duration;

use super::job::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{CopyMode, Decision, End, JobStatus, MirrorOptions, Turn, Verb};
use crate::ring::monotonic_ns;

/// How a switch-over is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Completion {
    /// The drive moves to the target: guest requests go there, and are acknowledged, before the host hears of the end. So a host
    /// that may crash sets `auto_finalize` to false and records the move durably at [`EventKind::Pending`](super::EventKind).
    #[default]
    Pivot,
    /// The drive stays where it is; the target is a copy as of that moment.
    PointInTime,
}

/// How a job is cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancel {
    /// As QEMU's `block-job-cancel`: a job that is ready or standby ends as `complete` with `PointInTime` does, as a copy as of
    /// that switch-over; any other, one that is waiting or pending too, is cancelled by force. Like `complete` it waits for a
    /// switch-over that fits, and on a job in standby for [`Job::resume`]; only `Force` has a bound.
    Soft,
    /// At once, unless the switch-over is being carried out already; the target is no copy then.
    Force,
}
impl Job {
    /// Checks that the job may be asked this now, and says where it stands. It may move on a moment later, and then the request
    /// does nothing.
    fn check(&self, verb: Verb) -> Result<JobStatus> {
        let status = self.status();
        verb.check(status).map(|()| status)
    }

    /// The error of `verb` in a state that would allow it, where what `needs` wants besides does not hold.
    fn unmet(verb: Verb, needs: Verb, status: JobStatus) -> Error {
        verb.refused(status, needs.unmet().unwrap_or("it has moved on meanwhile"))
    }

    /// Pauses the job: what is in flight is finished, and then the job is paused, or standby if it was ready. Guest writes go
    /// on being recorded, and in write-blocking mode go on to both sides.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state, or when the host has paused it already.
    pub fn pause(&self) -> Result<()> {
        let status = self.check(Verb::Pause)?;
        if !self.core().share.pause() {
            return Err(Self::unmet(Verb::Pause, Verb::Pause, status));
        }
        self.core().wake_all();
        Ok(())
    }

    /// Goes on after a pause, or after an error policy stopped the job.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state, or when the job is neither paused nor stopped.
    pub fn resume(&self) -> Result<()> {
        let status = self.check(Verb::Resume)?;
        if !self.core().share.resume() {
            return Err(Self::unmet(Verb::Resume, Verb::Resume, status));
        }
        self.core().wake_all();
        Ok(())
    }

    /// Changes the speed limit at once, in every phase but the switch-over; 0 = none.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn set_speed(&self, bytes_per_s: u64) -> Result<()> {
        self.set_speed_at(bytes_per_s, monotonic_ns())
    }

    /// The same at a time that the caller tells, for the simulation has a clock of its own.
    pub(crate) fn set_speed_at(&self, bytes_per_s: u64, now_ns: u64) -> Result<()> {
        self.check(Verb::SetSpeed)?;
        self.core().share.limiter.set_speed(bytes_per_s, now_ns);
        self.core().wake_all();
        Ok(())
    }

    /// Changes how guest writes are followed, from each queue's next request on. A job in copy mode auto stays in the mode that
    /// the host chose last.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn set_copy_mode(&self, mode: CopyMode) -> Result<()> {
        self.check(Verb::SetCopyMode)?;
        let share = &self.core().share;
        self.core().events.tell_after(share, || share.choose_copy_mode(mode));
        self.core().wake_home();
        Ok(())
    }

    /// Changes how long guest requests may be held (`MirrorOptions::max_pause`; `None` = as long as it takes), at once: also of an
    /// attempt that is being made, and what did not fit before is tried anew.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state, [`ErrorKind::InvalidArgument`] for less than
    /// [`MIN_MAX_PAUSE`](MirrorOptions::MIN_MAX_PAUSE).
    pub fn set_max_pause(&self, max_pause: Option<Duration>) -> Result<()> {
        MirrorOptions::validate_max_pause(max_pause)?;
        self.check(Verb::SetMaxPause)?;
        self.core().share.max_pause.set(max_pause);
        self.core().wake_home();
        Ok(())
    }

    /// Asks for the switch-over: as soon as it fits into the job's `max_pause`, guest requests are held, the rest is copied,
    /// the target is flushed, and with [`Completion::Pivot`] the drive moves to the target. Returns at once;
    /// [`Self::wait`] and the events tell the end. While the job is paused or stopped, this waits for [`Self::resume`]; there is no
    /// limit to the attempts. It may never fit, above all in copy mode background; a host that cannot wait cancels.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state (wait for [`EventKind::Ready`](super::EventKind)), or when the end was asked for
    /// already; [`ErrorKind::WrongSize`] for a pivot to a target with larger blocks than the drive's guest was promised.
    pub fn complete(&self, completion: Completion) -> Result<()> {
        let status = self.check(Verb::Complete)?;
        if let (Completion::Pivot, Some(why)) = (completion, &self.core().no_pivot) {
            return Err(Error::new(ErrorKind::WrongSize, "move the drive to")
                .at(&self.core().names[1])
                .because(why.clone()));
        }
        self.ask_for_the_end(Verb::Complete, status, completion)
    }

    /// Asks for the switch-over in the name of `verb`; once is enough.
    fn ask_for_the_end(&self, verb: Verb, status: JobStatus, completion: Completion) -> Result<()> {
        if !self.core().share.complete(completion == Completion::Pivot) {
            return Err(Self::unmet(verb, Verb::Complete, status));
        }
        self.core().wake_all();
        Ok(())
    }

    /// Ends the job. By force it is over within a second even if requests hang.
    ///
    /// Where it ends the job by force, `Ok` means that this is decided: the drive does not move, whoever finalizes the job. An
    /// error means the contrary: nothing has changed, and either the switch-over is being carried out or the job is over. A soft
    /// one of a job that is ready has asked for a switch-over only, which may fail or be cancelled by force.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state and, when the switch-over is being carried out, what it leads to, or how the job
    /// has ended; for a soft one of a job that is ready also when its end was asked for already.
    pub fn cancel(&self, how: Cancel) -> Result<()> {
        let status = self.check_end(Verb::Cancel)?;
        if how == Cancel::Soft && status.is_ready() {
            return self.ask_for_the_end(Verb::Cancel, status, Completion::PointInTime);
        }
        if !self.core().share.cancel_unless_decided() {
            return Err(self.decided_before(Verb::Cancel));
        }
        self.core().wake_all();
        Ok(())
    }

    /// Carries out a switch-over that is pending. `Ok` means that this is decided: nobody can cancel it any more, and the job
    /// completes unless a bug is caught while it does.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state and, when the job was cancelled, has failed or was finalized before, that.
    pub fn finalize(&self) -> Result<()> {
        self.check_end(Verb::Finalize)?;
        if !self.core().share.decide() {
            return Err(self.decided_before(Verb::Finalize));
        }
        self.core().wake_all();
        Ok(())
    }

    /// The same as [`Self::check`] for what decides the end; one that comes when the job is over hears how it ended.
    fn check_end(&self, verb: Verb) -> Result<JobStatus> {
        if self.status().is_over() { Err(self.decided_before(verb)) } else { self.check(verb) }
    }

    /// The error of `verb` that comes too late.
    fn decided_before(&self, verb: Verb) -> Error {
        let (status, outcome) = (self.status(), self.core().outcome());
        match outcome.filter(|_| status.is_over()).map(|outcome| (outcome.end, outcome.pivoted)) {
            None => verb.refused(status, self.core().share.decision().map_or("it is over", Decision::name)),
            Some((End::Completed, true)) => {
                verb.refused(status, "it is over: the drive has moved to the target")
            }
            Some((End::Completed, false)) => verb.refused(status, "it is over: the target is a copy"),
            Some((End::Cancelled, _)) => verb.refused(status, "it is over: it was cancelled"),
            Some((End::Failed, _)) => verb.refused(status, "it is over: it failed"),
        }
    }

    /// Says that the outcome of a job that is over was read; its state is null then, and every verb is refused.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the state.
    pub fn dismiss(&self) -> Result<()> {
        self.check(Verb::Dismiss)?;
        let share = &self.core().share;
        if !self.core().events.tell_after(share, || share.turn(Turn::Dismiss)) {
            // Somebody else was faster.
            self.check(Verb::Dismiss)?;
        }
        Ok(())
    }
}
