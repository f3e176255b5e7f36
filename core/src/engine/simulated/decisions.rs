//! How a pending job ends is decided once: who is told yes can rely on it, and who comes too late is told what was decided.

use super::windows::{options, turn_all};
use super::*;
use crate::engine::IoStatus;
use crate::engine::crew::Crew;
use crate::engine::{Completion, Event};
use crate::error::{Error, ErrorKind};
use crate::mirror::{End, Failure, FailureCause, Side};

/// The disks.
const BYTES: u64 = 1 << 20;

/// A job that was asked for its end.
struct Stand {
    world: Arc<World>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
    drive: Arc<DriveCore<SimDisk>>,
    target: Arc<SimDisk>,
}

/// What a host asks for so that a job becomes pending.
type Ask = fn(&Job) -> Result<(), Error>;
const PIVOT: Ask = |job| job.complete(Completion::Pivot);
const POINT_IN_TIME: Ask = |job| job.complete(Completion::PointInTime);
const SOFT_CANCEL: Ask = |job| job.cancel(Cancel::Soft);

impl Stand {
    /// A job that is ready, and was asked for its end.
    fn asked(ask: Ask, auto_finalize: bool) -> Self {
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        let drive = DriveCore::new(source, BYTES, 512, true);
        let mut crew = Crew::new(&world, 1, 2 << 20);
        let options = MirrorOptions { auto_finalize, ..options() };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        turn_all(&mut crew, &world, 2000);
        assert_eq!(job.status(), JobStatus::Ready);
        assert!(!job.query().pivots);
        ask(&job).unwrap();
        Self { world, crew, job, share, drive, target }
    }

    /// A job that waits to be finalized.
    fn pending(ask: Ask) -> Self {
        let mut stand = Self::asked(ask, false);
        stand.turn();
        assert_eq!(stand.job.status(), JobStatus::Pending);
        stand
    }

    fn turn(&mut self) {
        turn_all(&mut self.crew, &self.world, 3000);
    }

    fn outcome(&mut self) -> Outcome {
        self.turn();
        Crew::outcome(&self.job).unwrap()
    }

    fn has_moved(&self) -> bool {
        Arc::ptr_eq(&self.drive.place().device, &self.target)
    }

    fn fail(&self) {
        let cause = FailureCause::Ring;
        self.share.fail(Failure { side: Side::Source, errno: libc::EIO, range: ByteRange::default(), cause });
    }
}

/// Asserts that something was refused because of what had been decided.
#[track_caller]
fn assert_too_late(answer: Result<(), Error>, why: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongState, "{error}");
    assert!(error.to_string().ends_with(why), "{error}");
}

/// A host that has written down where its guest's disk is must not find that the job went the other way behind its back.
#[test]
fn of_a_finalize_and_a_cancel_the_first_happens_and_the_second_is_told_what_was_decided() {
    for (ask, moves, text) in [
        (PIVOT, true, "its end is decided: the drive moves to the target"),
        (POINT_IN_TIME, false, "its end is decided: the target is a copy, and the drive stays where it is"),
    ] {
        let mut stand = Stand::pending(ask);
        stand.job.finalize().unwrap();
        assert_too_late(stand.job.cancel(Cancel::Force), text);
        assert_too_late(stand.job.cancel(Cancel::Soft), text);
        assert_too_late(stand.job.finalize(), text);
        assert_eq!(stand.outcome().end, End::Completed);
        assert_eq!(stand.has_moved(), moves);
        let over = if moves { "the drive has moved to the target" } else { "the target is a copy" };
        assert_too_late(stand.job.cancel(Cancel::Force), &format!("it is over: {over}"));
        assert_too_late(stand.job.finalize(), &format!("it is over: {over}"));

        let mut stand = Stand::pending(ask);
        stand.job.cancel(Cancel::Force).unwrap();
        assert_too_late(stand.job.finalize(), "it was cancelled before");
        stand.job.cancel(Cancel::Force).unwrap();
        assert_eq!(stand.outcome().end, End::Cancelled);
        assert!(!stand.has_moved());
    }
}

/// Also when nobody has to finalize: then the home decides, and a cancel that comes while the drive moves is no cancel.
#[test]
fn nobody_is_told_that_a_job_is_cancelled_whose_drive_moves() {
    let mut stand = Stand::asked(PIVOT, true);
    let mut half = None;
    for _ in 0..3000 {
        if !stand.drive.gate().is_closed() && half.is_none() {
            // So that something is copied and flushed behind the gate, which takes some turns.
            let _ = stand.share.guest_wrote(ByteRange::at(0, 4096));
        } else if stand.share.is_finished() {
            // As of a request whose thread had read "open" before. The drive cannot move before it has stepped back.
            half.get_or_insert_with(|| stand.drive.gate().try_a_slot());
        }
        if stand.job.status() == JobStatus::Pending {
            break;
        }
        turn_all(&mut stand.crew, &stand.world, 1);
    }
    assert_eq!(stand.job.status(), JobStatus::Pending, "caught on its way");
    assert_too_late(stand.job.cancel(Cancel::Force), "the drive moves to the target");
    stand.drive.gate().step_back(half.unwrap());
    assert!(stand.outcome().pivoted && stand.has_moved());
}

/// The last handle and the engine may go right after the word was given.
#[test]
fn a_switch_over_that_is_decided_needs_no_host_any_more() {
    for finalized in [true, false] {
        let Stand { world, mut crew, job, drive, target, .. } = Stand::pending(PIVOT);
        if finalized {
            job.finalize().unwrap();
        }
        drop(job);
        turn_all(&mut crew, &world, 3000);
        assert_eq!(
            Arc::ptr_eq(&drive.place().device, &target),
            finalized,
            "else nobody can finalize it any more"
        );
        assert!(!drive.gate().is_closed() && !drive.has_job());
    }
}

/// All is copied and flushed then, so nothing that fails afterwards makes the target worse.
#[test]
fn a_failure_of_a_pending_job_changes_nothing() {
    for before in [false, true] {
        let mut stand = Stand::pending(PIVOT);
        if before {
            stand.fail();
            stand.turn();
            assert!(stand.drive.gate().is_closed(), "the host may have written down the target");
            assert_eq!((stand.job.status(), stand.job.query().io_status), (JobStatus::Pending, IoStatus::Ok));
        }
        stand.job.finalize().unwrap();
        stand.fail();
        let outcome = stand.outcome();
        assert!(outcome.pivoted && outcome.error.is_none() && stand.has_moved());
        assert_eq!(stand.job.query().io_status, IoStatus::Ok);
    }
    let mut stand = Stand::pending(PIVOT);
    stand.fail();
    stand.job.cancel(Cancel::Force).unwrap();
    assert_eq!(stand.outcome().end, End::Cancelled);
    assert!(!stand.has_moved());
}

/// A host that was told that its word is carried out does not ask again.
#[test]
fn a_switch_over_that_is_decided_needs_no_worker_any_more() {
    let Stand { crew, job, drive, target, .. } = Stand::pending(PIVOT);
    job.finalize().unwrap();
    drop(crew);
    let outcome = Crew::outcome(&job).unwrap();
    assert!(outcome.end == End::Completed && outcome.pivoted && outcome.error.is_none());
    assert!(Arc::ptr_eq(&drive.place().device, &target) && !drive.gate().is_closed() && !drive.has_job());

    // Nobody would open the gate any more.
    let Stand { crew, job, drive, target, .. } = Stand::pending(PIVOT);
    drop(crew);
    assert_eq!(Crew::outcome(&job).unwrap().end, End::Failed);
    assert!(!Arc::ptr_eq(&drive.place().device, &target) && !drive.gate().is_closed() && !drive.has_job());
    assert_too_late(job.finalize(), "it is over: it failed");
}

/// Otherwise a host cannot know whether there is anything to write down.
#[test]
fn pending_says_whether_the_drive_is_about_to_move() {
    for (ask, moves) in [(PIVOT, true), (POINT_IN_TIME, false), (SOFT_CANCEL, false)] {
        let mut stand = Stand::pending(ask);
        let told: Vec<Event> = std::iter::from_fn(|| stand.job.next_event()).collect();
        let pending = told.iter().find(|event| matches!(event.what, EventKind::Pending { .. })).unwrap();
        assert_eq!(pending.what, EventKind::Pending { pivots: moves });
        assert_eq!(pending.what.to_string().contains("moves to the target"), moves, "{}", pending.what);
        assert_eq!(stand.job.query().pivots, moves);
        stand.job.finalize().unwrap();
        assert_eq!(stand.outcome().pivoted, moves);
    }
}

/// Otherwise a host that shows why a job has ended shows nothing, or eight states in which it might have been cancelled.
#[test]
fn an_end_that_was_asked_for_has_words_and_what_comes_after_it_few() {
    let mut stand = Stand::asked(PIVOT, false);
    stand.job.cancel(Cancel::Force).unwrap();
    let outcome = stand.outcome();
    assert_eq!(outcome.why().as_deref(), Some("the job was cancelled"));
    let again = stand.job.cancel(Cancel::Force).unwrap_err().to_string();
    assert_eq!(again, "cannot cancel the job: the job is concluded; it is over: it was cancelled");
    let mut stand = Stand::asked(PIVOT, true);
    assert_eq!(stand.outcome().why(), None);
}
