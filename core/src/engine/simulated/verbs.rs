//! Every verb in every state, on whole jobs: what it leads to, and what a refusal says.

use super::windows::turn_all;
use super::*;
use crate::engine::Completion;
use crate::engine::crew::Crew;
use crate::error::{Error, ErrorKind};
use crate::mirror::{CopyMode, End, Turn, Verb};

/// The disks.
const BYTES: u64 = 1 << 20;
/// So slow that a job runs for as long as a test looks at it.
const SLOW: u64 = 64 << 10;

/// A job in a state, with everything around it.
struct Stand {
    world: Arc<World>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
}

impl Stand {
    /// A job that was just made.
    fn new(options: &MirrorOptions, dead_target: bool) -> Self {
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        target.set_dead(dead_target);
        let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
        let crew = Crew::new(&world, 1, 2 << 20);
        let (job, share) = crew.start(&drive, &target, options, None).unwrap();
        Self { world, crew, job, share }
    }

    /// A job that has come to `status` in the way that a host would take it there.
    fn in_state(status: JobStatus) -> Self {
        use JobStatus as S;
        let fast = matches!(status, S::Ready | S::Standby | S::Waiting | S::Pending | S::Aborting);
        let options = MirrorOptions {
            granularity: Granularity::new(4 * KIB).ok(),
            latency_budget: LatencyBudget::Off,
            copy_mode: CopyModeChoice::Background,
            speed_bytes_per_s: if fast { 0 } else { SLOW },
            auto_finalize: status != S::Pending,
            strict_ready: true,
            ..MirrorOptions::default()
        };
        let mut stand = Self::new(&options, status == S::Aborting);
        let steps: &[(Option<Verb>, S)] = match status {
            S::Created => &[],
            S::Running => &[(None, S::Running)],
            S::Paused => &[(None, S::Running), (Some(Verb::Pause), S::Paused)],
            S::Ready | S::Waiting => &[(None, S::Ready)],
            S::Standby => &[(None, S::Ready), (Some(Verb::Pause), S::Standby)],
            S::Pending => &[(None, S::Ready), (Some(Verb::Complete), S::Pending)],
            S::Aborting => &[(None, S::Running), (Some(Verb::Cancel), S::Aborting)],
            S::Concluded => &[(Some(Verb::Cancel), S::Concluded)],
            S::Null => &[(Some(Verb::Cancel), S::Concluded), (Some(Verb::Dismiss), S::Null)],
        };
        for &(verb, reached) in steps {
            verb.map(|verb| stand.ask(verb)).transpose().unwrap();
            stand.turn_until(reached);
            // What a dead disk was sent does not come back.
            if status == S::Aborting && reached == S::Running {
                turn_all(&mut stand.crew, &stand.world, 20);
            }
        }
        if status == S::Waiting {
            // No host can catch it there: the home goes through it in one step.
            assert!(stand.share.turn(Turn::Seal));
        }
        assert_eq!(stand.job.status(), status);
        stand
    }

    /// Asks the job for something.
    fn ask(&self, verb: Verb) -> Result<(), Error> {
        let job = &self.job;
        match verb {
            Verb::Pause => job.pause(),
            Verb::Resume => job.resume(),
            Verb::SetSpeed => job.set_speed(2 * SLOW),
            Verb::SetCopyMode => job.set_copy_mode(CopyMode::WriteBlocking),
            Verb::SetMaxPause => job.set_max_pause(None),
            Verb::Complete => job.complete(Completion::PointInTime),
            Verb::Cancel => job.cancel(Cancel::Force),
            Verb::Finalize => job.finalize(),
            Verb::Dismiss => job.dismiss(),
        }
    }

    /// Turns the crew until the job is in this state.
    fn turn_until(&mut self, status: JobStatus) {
        for _ in 0..5000 {
            if self.job.status() == status {
                return;
            }
            turn_all(&mut self.crew, &self.world, 1);
        }
        panic!("{:?} does not become {status}", self.job.query());
    }

    /// Asserts what a verb has done besides moving the job on.
    fn assert_done(&self, verb: Verb) {
        let (info, outcome) = (self.job.query(), self.job.outcome());
        let done = match verb {
            Verb::SetSpeed => info.speed_bytes_per_s == 2 * SLOW,
            Verb::SetCopyMode => info.copy_mode == CopyMode::WriteBlocking,
            Verb::SetMaxPause => info.max_pause.is_none(),
            Verb::Complete => info.completing && outcome.is_none_or(|o| o.end == End::Completed),
            Verb::Cancel => outcome.is_some_and(|o| o.end == End::Cancelled),
            Verb::Finalize => outcome.is_some_and(|o| o.end == End::Completed),
            Verb::Pause | Verb::Resume | Verb::Dismiss => true,
        };
        assert!(done, "{verb:?}: {info:?}");
    }
}

/// Where a job goes from `status` when it is asked for `verb` and nothing else; `None` = it refuses. Written down here once more,
/// because the table of `mirror/states.rs` is what is tested.
fn leads_to(status: JobStatus, verb: Verb) -> Option<JobStatus> {
    use JobStatus as S;
    use Verb as V;
    match (status, verb) {
        (S::Created | S::Running, V::Pause) | (S::Paused, V::SetSpeed | V::SetCopyMode | V::SetMaxPause) => {
            Some(S::Paused)
        }
        (S::Created | S::Running, V::SetSpeed | V::SetCopyMode | V::SetMaxPause) | (S::Paused, V::Resume) => {
            Some(S::Running)
        }
        (S::Ready, V::SetSpeed | V::SetCopyMode | V::SetMaxPause) | (S::Standby, V::Resume) => Some(S::Ready),
        (S::Ready, V::Pause) | (S::Standby, V::SetSpeed | V::SetCopyMode | V::SetMaxPause | V::Complete) => {
            Some(S::Standby)
        }
        (S::Ready, V::Complete) | (S::Pending, V::Finalize) => Some(S::Concluded),
        (S::Concluded, V::Dismiss) => Some(S::Null),
        (S::Concluded | S::Null, _) => None,
        (_, V::Cancel) => Some(S::Concluded),
        _ => None,
    }
}

/// Asserts that a refusal names what was asked and where the job stands.
fn assert_names_both(error: &Error, verb: Verb, status: JobStatus) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::WrongState, "{text}");
    assert!(text.contains(verb.name()), "{verb:?} in {status}: {text}");
    assert!(text.contains(&format!("the job is {status}")), "{verb:?} in {status}: {text}");
}

/// Otherwise a host could be told that a job was paused, completed or dismissed when nothing of the kind happened, or be refused
/// without a word about where the job stands.
#[test]
fn every_verb_in_every_state_of_a_job_does_what_it_says_or_is_refused_by_both_names() {
    for status in JobStatus::ALL {
        for verb in Verb::ALL {
            let mut stand = Stand::in_state(status);
            match (stand.ask(verb), leads_to(status, verb)) {
                (Ok(()), Some(next)) => {
                    stand.turn_until(next);
                    turn_all(&mut stand.crew, &stand.world, 50);
                    assert_eq!(stand.job.status(), next, "{verb:?} in {status}");
                    stand.assert_done(verb);
                }
                (Err(error), None) => {
                    assert_names_both(&error, verb, status);
                    assert_eq!(stand.job.status(), status, "{verb:?} was refused");
                }
                (got, expected) => panic!("{verb:?} in {status}: {got:?} instead of {expected:?}"),
            }
        }
    }
}

/// Otherwise a host that cancels softly would read that it must not complete, which it never asked for.
#[test]
fn what_is_asked_for_twice_is_refused_by_the_verb_that_was_used() {
    let stand = Stand::in_state(JobStatus::Standby);
    stand.ask(Verb::Complete).unwrap();
    let again = stand.ask(Verb::Complete).unwrap_err();
    assert_names_both(&again, Verb::Complete, JobStatus::Standby);
    let soft = stand.job.cancel(Cancel::Soft).unwrap_err();
    assert_names_both(&soft, Verb::Cancel, JobStatus::Standby);
    assert!(!soft.to_string().contains(Verb::Complete.name()), "{soft}");
}
