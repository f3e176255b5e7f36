//! Where a job stands, and what may be done with it there: one table for states, one for verbs.
//!
//! ```text
//!                   pause  resume  set-speed  set-copy-mode  set-max-pause  complete  cancel  finalize  dismiss
//! created             p      r         x            x              x           .        d        .         .
//! running             p      r         x            x              x           .        d        .         .
//! paused              p      r         x            x              x           .        d        .         .
//! ready               p      r         x            x              x           c        d        .         .
//! standby             p      r         x            x              x           c        d        .         .
//! waiting             .      .         .            .              .           .        d        .         .
//! pending             .      .         .            .              .           .        d        d         .
//! aborting            .      .         .            .              .           .        d        .         .
//! concluded           .      .         .            .              .           .        .        .         x
//! null                .      .         .            .              .           .        .        .         .
//!
//! x  always p  unless the host has paused it already; one that an error policy stopped may be paused, too r  if the host has
//! paused it or an error policy has stopped it, though the state may not show that yet c  once; a soft cancel of a job that is
//! ready counts as that d  unless its switch-over is being carried out already, which a finalize decides, or the job's home where
//! none is needed; a finalize
//!    also unless the job was cancelled or has failed. So of a finalize and a cancel one is refused.
//!
//! created -> running <-> paused          running -> ready <-> standby
//! running, ready -> waiting -> pending -> concluded -> null
//! any before concluded -> aborting -> concluded
//! ```
//!
//! What the letters ask for is in the command word (`share/command.rs`), which is ahead of the state: a pause shows once nothing is
//! under way any more. [`Verb::unmet`] is what a host reads when it does not hold, or for `d` what was decided.
//!
//! States and verbs are QEMU's (`JobStatus`, `JobVerb`), so that a management layer can map one to one. Two differences: a
//! job that aborts may be cancelled once more, which is how a soft cancel becomes a forced one; and a job
//! that was told to copy and be done goes from running to waiting without a stop at ready.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum JobStatus {
    /// Made, and not yet taken up by a worker.
    #[default]
    Created,
    /// Copying, or following, and not ready.
    Running,
    /// Paused by the host or stopped by an error policy, before it was ready; nothing is copied.
    Paused,
    /// A switch-over is possible: when the job came to this state, the forecast of its pause fitted into `max_pause` (with
    /// `strict_ready`: nothing was dirty), and the target had been flushed. It stays ready when guests write more afterwards;
    /// whether a switch-over fits at this moment is what `JobInfo::fits_now` and `predicted_pause` are for. With a `max_pause`
    /// of `None` any pause fits, so a job is ready as soon as its first pass has taken up every chunk, however much is dirty
    /// then.
    Ready,
    /// Paused or stopped after it was ready.
    Standby,
    /// Everything is copied and flushed behind the closed gate.
    Waiting,
    /// ... and the host has to finalize.
    Pending,
    /// Cancelled or failed, and not yet over.
    Aborting,
    /// Over; the outcome is there.
    Concluded,
    /// The host has dismissed it.
    Null,
}

/// What a host may ask of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    /// Stop copying until resumed.
    Pause,
    /// Go on.
    Resume,
    /// Change the speed limit.
    SetSpeed,
    /// Change how guest writes are followed.
    SetCopyMode,
    /// Change how long guest requests may be held.
    SetMaxPause,
    /// Switch over.
    Complete,
    /// End the job.
    Cancel,
    /// Carry out a switch-over that is pending.
    Finalize,
    /// Forget a job that is over.
    Dismiss,
}

/// What happens to a job from inside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Turn {
    /// A worker has taken it up.
    Start,
    /// Nothing is copied any more, by pause or stop.
    Hold,
    /// It goes on.
    Release,
    /// A switch-over has become possible.
    BecomeReady,
    /// Everything is copied and flushed behind the closed gate.
    Seal,
    /// The host may finalize.
    Prepare,
    /// It was cancelled or failed.
    Abort,
    /// It is over.
    Conclude,
    /// The host dismissed it.
    Dismiss,
}

impl JobStatus {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Running,
        Self::Paused,
        Self::Ready,
        Self::Standby,
        Self::Waiting,
        Self::Pending,
        Self::Aborting,
        Self::Concluded,
        Self::Null,
    ];

    /// The state after `turn`; `None` where that cannot happen.
    #[must_use]
    pub fn after(self, turn: Turn) -> Option<Self> {
        use JobStatus as S;
        use Turn as T;
        match (self, turn) {
            (S::Created | S::Paused, T::Start | T::Release) => Some(S::Running),
            (S::Created | S::Running, T::Hold) => Some(S::Paused),
            (S::Ready, T::Hold) => Some(S::Standby),
            (S::Standby, T::Release) | (S::Running, T::BecomeReady) => Some(S::Ready),
            (S::Running | S::Ready, T::Seal) => Some(S::Waiting),
            (S::Waiting, T::Prepare) => Some(S::Pending),
            (S::Pending | S::Aborting, T::Conclude) => Some(S::Concluded),
            (S::Concluded, T::Dismiss) => Some(S::Null),
            (S::Aborting | S::Concluded | S::Null, T::Abort) => None,
            (_, T::Abort) => Some(S::Aborting),
            _ => None,
        }
    }

    /// Whether a switch-over is possible here.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Standby)
    }

    /// Whether the outcome is there.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }

    /// The state with this number; the last one for numbers that are no state's.
    pub(super) fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Null)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pause,
        Self::Resume,
        Self::SetSpeed,
        Self::SetCopyMode,
        Self::SetMaxPause,
        Self::Complete,
        Self::Cancel,
        Self::Finalize,
        Self::Dismiss,
    ];

    /// Whether a job may be asked this in `status`; where [`Self::unmet`] says something, that must hold besides.
    #[must_use]
    pub const fn is_allowed_in(self, status: JobStatus) -> bool {
        use JobStatus as S;
        match self {
            Self::Pause | Self::Resume | Self::SetSpeed | Self::SetCopyMode | Self::SetMaxPause => {
                matches!(status, S::Created | S::Running | S::Paused | S::Ready | S::Standby)
            }
            Self::Complete => matches!(status, S::Ready | S::Standby),
            Self::Cancel => !matches!(status, S::Concluded | S::Null),
            Self::Finalize => matches!(status, S::Pending),
            Self::Dismiss => matches!(status, S::Concluded),
        }
    }

    /// Checks that a job may be asked this in `status`.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`] naming the verb, the state, and, unless the job is over, the states in which it may be asked.
    pub fn check(self, status: JobStatus) -> Result<()> {
        match status {
            _ if self.is_allowed_in(status) => return Ok(()),
            JobStatus::Concluded => return Err(self.refused(status, "it is over")),
            JobStatus::Null => return Err(self.refused(status, "it is over and was dismissed")),
            _ => {}
        }
        let allowed = JobStatus::ALL.into_iter().filter(|&s| self.is_allowed_in(s)).map(JobStatus::name);
        let allowed = allowed.collect::<Vec<_>>().join(", ");
        Err(self.refused(status, &format!("this needs a job that is {allowed}")))
    }

    /// Why this is refused in a state that would allow it, when what else it needs does not hold; `None` if it needs nothing else.
    #[must_use]
    pub const fn unmet(self) -> Option<&'static str> {
        match self {
            Self::Pause => Some("it was paused already; resume it first"),
            Self::Resume => Some("it was not paused, and no error has stopped it"),
            Self::Complete => Some(
                "it is completing already; if it is in standby, resume it to go on; cancel it by force to stop that",
            ),
            Self::SetSpeed
            | Self::SetCopyMode
            | Self::SetMaxPause
            | Self::Cancel
            | Self::Finalize
            | Self::Dismiss => None,
        }
    }

    /// The error of this verb: it names the verb and the state, whatever the reason is.
    pub(crate) fn refused(self, status: JobStatus, why: &str) -> Error {
        Error::new(ErrorKind::WrongState, self.name()).because(format!("the job is {status}; {why}"))
    }

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause the job",
            Self::Resume => "resume the job",
            Self::SetSpeed => "set the job's speed",
            Self::SetCopyMode => "change the job's copy mode",
            Self::SetMaxPause => "change the job's longest pause",
            Self::Complete => "complete the job",
            Self::Cancel => "cancel the job",
            Self::Finalize => "finalize the job",
            Self::Dismiss => "dismiss the job",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the module's text, row by row.
    const TABLE: [(&str, &str); 10] = [
        ("created", "prxxx.d.."),
        ("running", "prxxx.d.."),
        ("paused", "prxxx.d.."),
        ("ready", "prxxxcd.."),
        ("standby", "prxxxcd.."),
        ("waiting", "......d.."),
        ("pending", "......dd."),
        ("aborting", "......d.."),
        ("concluded", "........x"),
        ("null", "........."),
    ];

    #[test]
    fn every_verb_in_every_state_is_allowed_or_refused_as_the_table_says() {
        for (status, (name, row)) in JobStatus::ALL.into_iter().zip(TABLE) {
            assert_eq!(status.name(), name);
            for (verb, mark) in Verb::ALL.into_iter().zip(row.chars()) {
                let outcome = verb.check(status);
                let is_decided = matches!(verb, Verb::Cancel | Verb::Finalize).then_some('d');
                let condition = is_decided.or_else(|| verb.unmet().and(verb.name().chars().next()));
                let found = if outcome.is_ok() { condition.unwrap_or('x') } else { '.' };
                assert_eq!(found, mark, "{verb:?} in {status}");
                if let Err(e) = outcome {
                    let text = e.to_string();
                    assert!(text.contains(verb.name()) && text.contains(name), "names both: {text}");
                    assert!(!status.is_over() || text.len() < 100, "nothing may be asked any more: {text}");
                }
            }
        }
    }

    #[test]
    fn a_job_only_moves_along_the_arrows() {
        use Turn as T;
        let turns = [
            T::Start,
            T::Hold,
            T::Release,
            T::BecomeReady,
            T::Seal,
            T::Prepare,
            T::Abort,
            T::Conclude,
            T::Dismiss,
        ];
        let mut arrows = Vec::new();
        for from in JobStatus::ALL {
            for turn in turns {
                if let Some(to) = from.after(turn) {
                    arrows.push((from.name(), to.name()));
                }
            }
        }
        arrows.sort_unstable();
        arrows.dedup();
        let mut expected = vec![
            ("created", "running"),
            ("created", "paused"),
            ("running", "paused"),
            ("paused", "running"),
            ("running", "ready"),
            ("ready", "standby"),
            ("standby", "ready"),
            ("running", "waiting"),
            ("ready", "waiting"),
            ("waiting", "pending"),
            ("pending", "concluded"),
            ("aborting", "concluded"),
            ("concluded", "null"),
            ("created", "aborting"),
            ("running", "aborting"),
            ("paused", "aborting"),
            ("ready", "aborting"),
            ("standby", "aborting"),
            ("waiting", "aborting"),
            ("pending", "aborting"),
        ];
        expected.sort_unstable();
        assert_eq!(arrows, expected);
    }

    #[test]
    fn every_state_leads_to_the_end() {
        for from in JobStatus::ALL {
            let over = from.is_over()
                || from.after(Turn::Abort).or(Some(from)).and_then(|s| s.after(Turn::Conclude)).is_some();
            assert!(over, "{from}");
        }
    }

    #[test]
    fn numbers_and_states_are_one_to_one() {
        for (number, status) in (0u8..).zip(JobStatus::ALL) {
            assert_eq!(status as u8, number);
            assert_eq!(JobStatus::from_number(number), status);
        }
    }
}
