//! The host: starts jobs, gives commands at random, and brings every job to its end.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::recipe::{Death, MS, Recipe, Wanted};
use super::simulation::{Live, Simulation, Wrong};
use crate::engine::{Cancel, Completion};
use crate::error::{Error, ErrorKind};
use crate::mirror::{CopyMode, JobStatus, MirrorOptions, Verb};
use crate::ring::sim::{Faults, SimDisk};
use crate::units::bytes_usize;

/// A host that waits looks this often.
const LOOK_NS: u64 = 3 * MS;
/// The time between two jobs.
const BETWEEN_NS: u64 = 2 * MS;

/// The host's plan.
#[derive(Debug)]
pub(super) struct Host {
    /// When it acts next.
    next_ns: Option<u64>,
    /// When it wants the job's end.
    end_ns: u64,
    /// What is broken was mended.
    pub(super) mended: Option<u64>,
    /// When it cancelled by force.
    pub(super) forced_ns: Option<u64>,
    /// It asked for the end.
    pub(super) asked_end: bool,
    /// It was told that the job completes, or that it is cancelled.
    pub(super) decided: Option<bool>,
}

impl Host {
    /// The host of a recipe.
    pub(super) fn new(recipe: &Recipe) -> Self {
        Self {
            next_ns: Some(recipe.start_ns),
            end_ns: 0,
            mended: None,
            forced_ns: None,
            asked_end: false,
            decided: None,
        }
    }

    /// When it acts next.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.next_ns
    }

    /// A job is over.
    pub(super) fn job_is_over(&mut self, now_ns: u64, more: bool) {
        *self = Self {
            next_ns: more.then_some(now_ns + BETWEEN_NS),
            end_ns: 0,
            mended: None,
            forced_ns: None,
            asked_end: false,
            decided: None,
        };
    }

    /// A verb that decides the end was answered. Of two that exclude each other one is refused.
    fn told(&mut self, completes: bool, answer: Result<(), Error>) -> Result<(), Wrong> {
        if answer.is_ok() && self.decided.replace(completes) == Some(!completes) {
            return Err(Wrong::new("the host was told that the job completes and that it is cancelled"));
        }
        refused(answer)
    }
}

/// A verb may be refused because of the job's state, and for nothing else.
fn refused(result: Result<(), Error>) -> Result<(), Wrong> {
    match result {
        Err(e) if e.kind() != ErrorKind::WrongState => Err(Wrong::new(format!("a verb failed: {e}"))),
        _ => Ok(()),
    }
}

impl Simulation {
    /// The host acts.
    pub(super) fn act_as_host(&mut self) -> Result<(), Wrong> {
        let now_ns = self.world.now_ns();
        if self.live.is_none() {
            self.start()?;
            self.host.end_ns = now_ns + self.recipe.end_ns;
            self.host.next_ns = Some(now_ns);
            return Ok(());
        }
        if self.recipe.drop_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.recipe.drop_ns = None;
            self.drop_queue()?;
        }
        let pause_ns = if self.recipe.meddle_ns > 0 && now_ns < self.host.end_ns {
            self.meddle()?;
            self.world.pick(2 * self.recipe.meddle_ns) + 1
        } else {
            LOOK_NS
        };
        let ends = now_ns >= self.host.end_ns;
        let next_ns = now_ns + pause_ns;
        self.host.next_ns = Some(if ends { next_ns } else { next_ns.min(self.host.end_ns.max(now_ns + 1)) });
        if ends { self.want_end(now_ns) } else { Ok(()) }
    }

    /// Some command.
    fn meddle(&mut self) -> Result<(), Wrong> {
        let pick = self.world.pick(14);
        let number = self.world.pick(4);
        let Some(Live { job, .. }) = &self.live else { return Ok(()) };
        let status = job.status();
        let exact = |verb: Verb, result: Result<(), Error>| match result {
            Ok(()) if !verb.is_allowed_in(status) => {
                Err(Wrong::new(format!("{verb:?} was allowed in {status}")))
            }
            Err(e) if verb.is_allowed_in(status) => Err(Wrong::new(format!("{verb:?} in {status}: {e}"))),
            _ => Ok(()),
        };
        refused(match pick {
            0 => job.pause(),
            1..4 => job.resume(),
            4 => return exact(Verb::SetSpeed, job.set_speed_at(number * (10 << 20), self.world.now_ns())),
            5 => return exact(Verb::SetCopyMode, job.set_copy_mode(CopyMode::WriteBlocking)),
            6 => return exact(Verb::SetCopyMode, job.set_copy_mode(CopyMode::Background)),
            7 if number == 0 => job.complete(Completion::Pivot),
            7 if number == 1 => job.complete(Completion::PointInTime),
            8 => return self.host.told(true, job.finalize()),
            9 => return exact(Verb::Dismiss, job.dismiss()),
            10 => {
                let info = job.query();
                let wrong = info.dirty_bytes > info.progress.disk_bytes || info.len_bytes < info.offset_bytes;
                return if wrong {
                    Err(Wrong::new(format!("figures that cannot be: {info:?}")))
                } else {
                    Ok(())
                };
            }
            11 => return self.start_another(),
            12 if number == 0 && status.is_ready() => job.cancel(Cancel::Soft),
            12 if number == 0 => return self.host.told(false, job.cancel(Cancel::Soft)),
            13 => {
                let pause_ms = [Some(8), Some(20), Some(50), None][bytes_usize(number)];
                return exact(Verb::SetMaxPause, job.set_max_pause(pause_ms.map(Duration::from_millis)));
            }
            _ => Ok(()),
        })
    }

    /// A second job on the drive is refused, and nothing has changed.
    fn start_another(&self) -> Result<(), Wrong> {
        let target = SimDisk::new(self.recipe.bytes);
        match self.crew.start(&self.drive, &target, &MirrorOptions::default(), None) {
            Err(e) if e.kind() == ErrorKind::Busy => Ok(()),
            other => Err(Wrong::new(format!("a second job on a drive: {:?}", other.map(drop)))),
        }
    }

    /// The host wants the end, and does what is needed for it.
    fn want_end(&mut self, now_ns: u64) -> Result<(), Wrong> {
        let Some(live) = &self.live else { return Ok(()) };
        let forever = self.recipe.target_may_hang();
        let impatient = now_ns >= self.host.end_ns + self.recipe.patience_ns;
        if impatient && self.host.mended.is_none() {
            self.host.mended = Some(now_ns);
            self.recipe.deaths = self.recipe.deaths.map(|death| match death {
                Death::For(..) => Death::None,
                other => other,
            });
            for disk in [&live.source, &live.target] {
                disk.set_faults(Faults::default());
            }
            self.live_or_die();
        }
        let Some(Live { job, share, .. }) = &self.live else { return Ok(()) };
        refused(job.resume())?;
        if impatient {
            refused(job.set_speed_at(0, self.world.now_ns()))?;
        }
        let force = self.recipe.wanted == Wanted::ForceCancel || (impatient && forever);
        let status = job.status();
        if status == JobStatus::Pending && self.host.forced_ns.is_none() {
            // Nobody has a turn in between, so the home sees both at once.
            let completes: &[bool] = match self.world.pick(8) {
                0 => &[false],
                1 => &[false, true],
                2 | 3 => &[true, false],
                _ => &[true],
            };
            for &completes in completes {
                let answer = if completes { job.finalize() } else { job.cancel(Cancel::Force) };
                self.host.told(completes, answer)?;
            }
            return Ok(());
        }
        if force && self.host.forced_ns.is_none() {
            self.host.forced_ns = Some(now_ns);
            return self.host.told(false, job.cancel(Cancel::Force));
        }
        let ready = status.is_ready() && !share.wants_completion();
        let result = match self.recipe.wanted {
            Wanted::Pivot if ready => job.complete(Completion::Pivot),
            Wanted::PointInTime if ready => job.complete(Completion::PointInTime),
            Wanted::SoftCancel if !self.host.asked_end && status.is_ready() => job.cancel(Cancel::Soft),
            Wanted::SoftCancel if !self.host.asked_end => {
                self.host.asked_end = true;
                return self.host.told(false, job.cancel(Cancel::Soft));
            }
            _ => return Ok(()),
        };
        self.host.asked_end = true;
        if ready {
            self.switch_over_is_asked();
        }
        refused(result)
    }
}
