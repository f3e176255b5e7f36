//! The job's end, decided by one worker, its home.
//!
//! ```text
//! state     | everything copied     | flush done        | flush failed        | cancelled or failed
//! ----------+-----------------------+-------------------+---------------------+---------------------------
//! Copying   | ask for flush         | -                 | -                   | wait for idle -> Incomplete
//! Flushing  | -                     | see below         | the job fails       | wait for the flush, then as above
//! Flushed   | nothing written since -> close, Complete; else flush again                | as above
//! Over      | -                     | -                 | -                   | -
//! ```
//!
//! Success is reported only after a flush of the target that began after the last write had completed. A chunk that
//! turned dirty meanwhile sends the job back to copying; one that was even copied meanwhile wants another flush.

use super::policy::{self, Side};
use super::share::{FailureCause, Notice, Share};
use crate::units::ByteRange;

/// How the job stands after a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Send a flush to the target and report its end.
    Flush,
    /// Over; the target equals the source and is flushed.
    Complete,
    /// Over; the target is not a copy.
    Incomplete,
}

/// Where the end of the job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Workers copy.
    Copying,
    /// The flush is under way.
    Flushing,
    /// The flush succeeded.
    Flushed,
    /// The verdict was given.
    Over,
}

/// Decides when a job is over.
#[derive(Debug)]
pub struct Coordinator {
    /// Where the end stands.
    state: State,
    /// What had been written when the flush was asked for.
    covers: u64,
    /// After a failed flush: not again before this time.
    retry_at_ns: u64,
    /// How often the flush was sent again for a passing error.
    tries: u8,
    /// When the job was seen to end by cancel or failure.
    ending_since_ns: Option<u64>,
}

/// How long a cancelled or failed job waits for requests that are under way before it ends without them.
const GRACE_NS: u64 = 500_000_000;
/// When the ring has no room for the flush, the wait until it is tried again.
const ROOM_NS: u64 = 1_000_000;

impl Default for Coordinator {
    fn default() -> Self {
        Self { state: State::Copying, covers: 0, retry_at_ns: 0, tries: 0, ending_since_ns: None }
    }
}

impl Coordinator {
    /// Looks at the job.
    pub fn look(&mut self, share: &Share, now_ns: u64) -> Verdict {
        let verdict = match self.state {
            State::Over => return Verdict::Continue,
            _ if share.is_ending() => self.end(share, now_ns),
            State::Copying if now_ns < self.retry_at_ns || share.is_held() => Verdict::Continue,
            State::Copying if share.is_finished() => Verdict::Flush,
            State::Flushed if Self::written(share) == self.covers && share.close_if_finished() => {
                Verdict::Complete
            }
            // Something was written while the flush was under way; it needs one of its own.
            State::Flushed if share.is_finished() => Verdict::Flush,
            State::Flushed => {
                self.state = State::Copying;
                Verdict::Continue
            }
            State::Copying | State::Flushing => Verdict::Continue,
        };
        match verdict {
            Verdict::Flush => {
                self.state = State::Flushing;
                self.covers = Self::written(share);
            }
            Verdict::Complete | Verdict::Incomplete => self.state = State::Over,
            Verdict::Continue => {}
        }
        verdict
    }

    /// Bytes that reached the target; exact when nobody has anything in hand.
    fn written(share: &Share) -> u64 {
        let p = share.progress();
        p.copied_bytes + p.zeroed_bytes
    }

    /// The flush could not be sent for lack of room: ask again soon.
    pub fn not_sent(&mut self, now_ns: u64) {
        self.state = State::Copying;
        self.retry_at_ns = now_ns + ROOM_NS;
    }

    /// The flush that was asked for has ended, well or with an errno.
    ///
    /// A failed flush fails the job whatever the policy: the kernel reports such an error once and forgets what it could
    /// not write (fsync(2)), so a second flush that succeeds says nothing about what came before the first.
    pub fn flushed(&mut self, result: Result<(), i32>, share: &Share, now_ns: u64) -> Option<Notice> {
        if self.state != State::Flushing {
            return None;
        }
        let Err(errno) = result else {
            self.state = State::Flushed;
            return None;
        };
        self.state = State::Copying;
        if let Some(wait) = policy::transient_backoff_ns(errno, self.tries) {
            self.tries += 1;
            self.retry_at_ns = now_ns + wait;
            return None;
        }
        Some(share.on_error(Side::Target, errno, ByteRange::default(), FailureCause::Flush, now_ns))
    }

    /// When to look again if nothing happens.
    #[must_use]
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let at = match (self.state, self.ending_since_ns) {
            (State::Over, _) => None,
            (_, Some(since)) => Some(since + GRACE_NS),
            (_, None) => Some(self.retry_at_ns),
        };
        at.filter(|at| *at > now_ns)
    }

    /// A job that was cancelled or has failed: over when nothing is under way, or when waiting has no end.
    fn end(&mut self, share: &Share, now_ns: u64) -> Verdict {
        let since = *self.ending_since_ns.get_or_insert(now_ns);
        let quiet = share.is_idle() && self.state != State::Flushing;
        if quiet || now_ns >= since + GRACE_NS { Verdict::Incomplete } else { Verdict::Continue }
    }
}
