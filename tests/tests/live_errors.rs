//! Errors of the disks while a job follows: what each policy does, before and after the job is ready, with guests that write
//! through trackers and through queues, and that never notice.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{KIB, MIB, compare, needs};
use blkmirror_tests::api::engine::{
    Completion, CopyModeChoice, End, ErrorAction, ErrorPolicy, EventKind, IoStatus, Job, JobStatus,
    MirrorOptions, Side,
};
use blkmirror_tests::live::{EIO, ENOSPC, Guests, Medium, Scene, events_of, until, until_status};

/// Size of the disks here.
const SIZE: u64 = 2 * MIB;
/// The byte at which it fails: inside a chunk, inside 4 KiB.
const WRONG: u64 = MIB + 64 * KIB + 777;
/// Before the job is ready, and after.
const WHEN: [bool; 2] = [false, true];

/// A job with a fault on one side.
struct Trouble {
    /// The disks.
    scene: Scene,
    /// The side with faults.
    side: Side,
    /// What is injected.
    errno: i32,
    /// The fault comes when the job is ready.
    after_ready: bool,
    /// How guest writes are followed.
    mode: CopyModeChoice,
}

impl Trouble {
    /// Two disks, one of them with faults.
    fn new(side: Side, errno: i32, after_ready: bool, mode: CopyModeChoice) -> Self {
        let (source, target) = match side {
            Side::Source => (Medium::Faulty, Medium::Memory),
            Side::Target => (Medium::Memory, Medium::Faulty),
        };
        Self { scene: Scene::new(SIZE, source, target), side, errno, after_ready, mode }
    }

    /// What changes the disk with faults.
    fn control(&self) -> &blkmirror_testkit::faultdisk::Control {
        match self.side {
            Side::Source => self.scene.source.control(),
            Side::Target => self.scene.target.control(),
        }
    }

    /// Adds the fault.
    fn inject(&self, times: Times) {
        let operation = if self.side == Side::Source { Operation::Read } else { Operation::Write };
        let effect = Effect::Error(self.errno);
        self.control().add_rule(Rule::on(operation, effect).within(WRONG..WRONG + 1).times(times));
    }

    /// Starts guests and a job, and lets the fault come at its time.
    fn start(&self, policy: ErrorPolicy, times: Times) -> (Guests, Job) {
        if !self.after_ready {
            self.inject(times);
        }
        let guests = match self.mode {
            CopyModeChoice::Background => self.scene.guests(),
            _ => self.scene.queued_guests(),
        };
        let options = MirrorOptions {
            on_source_error: policy,
            on_target_error: policy,
            ..Scene::options_in(self.mode)
        };
        let job = self.scene.mirror(options);
        if self.after_ready {
            until_status(&job, JobStatus::Ready);
            self.inject(times);
        }
        (guests, job)
    }

    /// Waits for the fault; a read of the source needs a chunk that is copied again, and write-blocking reads nothing.
    fn met(&self) {
        until("the fault is met", || self.control().counters().faults > 0);
    }

    /// Asserts that the job failed, said so, and that the guests did not notice.
    #[track_caller]
    fn failed(&self, guests: Guests, job: &Job) {
        let Some(outcome) = job.wait_for(Duration::from_secs(20)) else { panic!("{:?}", job.query()) };
        assert_eq!(outcome.end, End::Failed, "{self:?}");
        let text = outcome.error.unwrap().to_string();
        let disk = if self.side == Side::Source { &self.scene.source } else { &self.scene.target };
        assert!(text.contains(disk.path.to_str().unwrap()), "{text}");
        assert_eq!(
            job.query().io_status,
            if self.errno == EIO { IoStatus::Failed } else { IoStatus::NoSpace }
        );
        self.told(job, ErrorAction::Report);
        self.unnoticed(guests);
    }

    /// Asserts that events told of the error, each with what it does to the job, and with offset and length of a request in which
    /// the byte was; the last one can be asked for later, too.
    #[track_caller]
    fn told(&self, job: &Job, expected: ErrorAction) {
        let status = match (expected, self.errno) {
            (ErrorAction::Ignore, _) => IoStatus::Ok,
            (_, ENOSPC) => IoStatus::NoSpace,
            _ => IoStatus::Failed,
        };
        let events = events_of(job);
        let mut told = 0;
        for event in &events {
            let EventKind::Error { side, errno, range, action, io_status, .. } = event.what else { continue };
            assert_eq!((side, errno), (self.side, self.errno), "{self:?}: {event:?}");
            assert_eq!((action, io_status), (expected, status), "{self:?}: {event:?}");
            assert!(range.start() <= WRONG && WRONG < range.end(), "{self:?}: {event:?}");
            // A request, not the whole disk: whole sectors, and no more than the largest one.
            assert!(range.start().is_multiple_of(512) && range.len().is_multiple_of(512), "{event:?}");
            assert!(range.len() <= MIB && range.end() <= SIZE, "{self:?}: {event:?}");
            told += 1;
        }
        assert!(told > 0, "{self:?}: {events:?}");
        let last = job.query().last_error.unwrap();
        assert_eq!((last.side, last.errno, last.action), (self.side, self.errno, expected), "{self:?}");
        assert!(last.range.start() <= WRONG && WRONG < last.range.end(), "{self:?}: {last:?}");
    }

    /// Asserts that the guests go on, and that no write of theirs has failed or is lost.
    #[track_caller]
    fn unnoticed(&self, guests: Guests) {
        guests.go_on(20);
        assert_eq!(guests.failed(), 0, "{self:?}");
        let _ = guests.stop();
        self.scene.check_source();
    }

    /// Asserts that the job becomes ready and completes with everything.
    #[track_caller]
    fn completes(&self, guests: Guests, job: &Job) {
        until_status(job, JobStatus::Ready);
        let outcome = self.scene.complete(job, Completion::PointInTime);
        assert!(outcome.error.is_none());
        self.unnoticed(guests);
        let _ = self.scene.history.check_moment(&self.scene.target.content);
    }
}

impl std::fmt::Debug for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { side, errno, after_ready, mode, .. } = self;
        write!(f, "errno {errno} on the {side:?}, after ready: {after_ready}, {mode:?}")
    }
}

/// Every case that makes sense: in write-blocking mode nobody reads the source once the job is ready.
fn cases(errnos: &[i32]) -> Vec<Trouble> {
    let mut all = Vec::new();
    for &errno in errnos {
        for after_ready in WHEN {
            for mode in [CopyModeChoice::Background, CopyModeChoice::WriteBlocking] {
                for side in [Side::Source, Side::Target] {
                    let unread = after_ready && mode == CopyModeChoice::WriteBlocking && side == Side::Source;
                    if !unread && (side == Side::Target || errno == EIO) {
                        all.push(Trouble::new(side, errno, after_ready, mode));
                    }
                }
            }
        }
    }
    all
}

/// Scenarios 5 and 6.
#[test]
fn an_error_fails_the_job_under_report() {
    needs!(Fuse);
    for trouble in cases(&[EIO, ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Report, Times::Forever);
        trouble.failed(guests, &job);
    }
}

/// Scenarios 5 and 6: `ignore` converges when the error goes away.
#[test]
fn passing_errors_are_made_up_for_under_ignore() {
    needs!(Fuse);
    for trouble in cases(&[EIO, ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Ignore, Times::Count(3));
        trouble.met();
        trouble.completes(guests, &job);
        trouble.told(&job, ErrorAction::Ignore);
    }
}

/// Scenarios 5 and 6: the job stops where it is, guests go on, and it goes on when it is resumed; too early it stops again.
#[test]
fn an_error_stops_the_job_until_it_is_resumed_under_stop() {
    needs!(Fuse);
    for trouble in cases(&[EIO, ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Stop, Times::Forever);
        stops_and_goes_on(&trouble, guests, &job);
    }
}

/// Scenario 6: only a full target stops the job.
#[test]
fn a_full_target_stops_the_job_under_enospc_and_other_errors_fail_it() {
    needs!(Fuse);
    for trouble in cases(&[ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Enospc, Times::Once);
        let stopped = if trouble.after_ready { JobStatus::Standby } else { JobStatus::Paused };
        until_status(&job, stopped);
        assert_eq!(job.query().io_status, IoStatus::NoSpace, "{trouble:?}");
        job.resume().unwrap();
        trouble.completes(guests, &job);
    }
    for trouble in cases(&[EIO]) {
        let (guests, job) = trouble.start(ErrorPolicy::Enospc, Times::Forever);
        trouble.failed(guests, &job);
    }
}

/// Scenario 6: a target that was full for a single request. Were that passed over because the next one succeeded, a host that asked
/// for `report` or `stop` would never hear of it; were what failed forgotten, the target would lack it after `resume`.
#[test]
fn a_target_that_is_full_once_fails_the_job_under_report_and_stops_it_once_under_stop() {
    needs!(Fuse);
    for trouble in cases(&[ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Report, Times::Once);
        trouble.failed(guests, &job);
    }
    for trouble in cases(&[ENOSPC]) {
        let (guests, job) = trouble.start(ErrorPolicy::Stop, Times::Once);
        until_status(&job, if trouble.after_ready { JobStatus::Standby } else { JobStatus::Paused });
        assert_eq!(job.query().io_status, IoStatus::NoSpace, "{trouble:?}");
        trouble.told(&job, ErrorAction::Stop);
        // Nobody resumes it but the host.
        guests.go_on(20);
        assert!(matches!(job.status(), JobStatus::Paused | JobStatus::Standby), "{:?}", job.query());
        job.resume().unwrap();
        until_status(&job, JobStatus::Ready);
        assert_eq!(job.query().io_status, IoStatus::Ok, "{trouble:?}");
        guests.go_on(20);
        assert_eq!(guests.failed(), 0, "{trouble:?}");
        let _ = guests.stop();
        let _ = trouble.scene.complete(&job, Completion::PointInTime);
        // Nobody writes any more, so a copy as of a moment is all of it.
        let (source, target) = (&trouble.scene.source.content, &trouble.scene.target.content);
        assert_eq!(compare::first_difference(source, target).unwrap(), None, "{trouble:?}");
        trouble.scene.check_target();
        assert_eq!(trouble.control().counters().faults, 1, "{trouble:?}");
    }
}

/// Scenarios 5 and 6: a job that stopped goes on where it was. One that began again after each error would never get to the end of
/// a large disk with some bad places, and the host, who hears only that it goes on, would not know why.
#[test]
fn a_job_that_is_resumed_after_an_error_does_not_copy_again_what_it_had_copied() {
    needs!(Fuse);
    const DISK: u64 = 16 * MIB;
    for side in [Side::Source, Side::Target] {
        let (source, target) = match side {
            Side::Source => (Medium::Faulty, Medium::Memory),
            Side::Target => (Medium::Memory, Medium::Faulty),
        };
        let scene = Scene::new(DISK, source, target);
        let (operation, place) = match side {
            Side::Source => (Operation::Read, &scene.source),
            Side::Target => (Operation::Write, &scene.target),
        };
        // Late, so that most is done when it stops.
        let wrong = [DISK / 2, DISK / 4 * 3, DISK - 4096];
        for at in wrong {
            let rule = Rule::on(operation, Effect::Error(EIO)).within(at..at + 1).times(Times::Once);
            place.control().add_rule(rule);
        }
        let job = scene.mirror(MirrorOptions {
            on_source_error: ErrorPolicy::Stop,
            on_target_error: ErrorPolicy::Stop,
            ..Scene::options_in(CopyModeChoice::Background)
        });
        let (mut stops, mut most_copied) = (0, 0);
        // It may be ready before it has met the last of them. And until its home has heard of the resume it is paused still.
        let mut go_on_when_it_stops = || {
            if matches!(job.status(), JobStatus::Paused | JobStatus::Standby) {
                // Meanwhile what was under way has ended.
                most_copied = job.query().progress.copied_bytes;
                stops += usize::from(job.resume().is_ok());
            }
        };
        until("it is ready", || {
            go_on_when_it_stops();
            job.status() == JobStatus::Ready
        });
        until("all of it is copied", || {
            go_on_when_it_stops();
            job.query().dirty_bytes == 0
        });
        until_status(&job, JobStatus::Ready);
        assert!((1..=wrong.len()).contains(&stops), "{side:?}: it stopped {stops} times");
        assert!(
            most_copied >= DISK / 2,
            "{side:?}: only {most_copied} bytes were copied when it stopped last"
        );
        let copied = job.query().progress.copied_bytes;
        // A little more: neighbours in the requests that failed.
        assert!((DISK..=DISK + DISK / 8).contains(&copied), "{side:?}: {copied} bytes for a disk of {DISK}");
        let _ = scene.complete(&job, Completion::PointInTime);
        scene.check_target();
    }
}

/// Stopped, resumed too early, healed, resumed.
#[track_caller]
fn stops_and_goes_on(trouble: &Trouble, guests: Guests, job: &Job) {
    let stopped = if trouble.after_ready { JobStatus::Standby } else { JobStatus::Paused };
    until_status(job, stopped);
    trouble.told(job, ErrorAction::Stop);
    let expected = if trouble.errno == EIO { IoStatus::Failed } else { IoStatus::NoSpace };
    assert_eq!(job.query().io_status, expected, "{trouble:?}");
    guests.go_on(20);
    let met = trouble.control().counters().faults;
    job.resume().unwrap();
    until("it is tried again", || trouble.control().counters().faults > met);
    until_status(job, stopped);
    trouble.control().clear_rules();
    job.resume().unwrap();
    trouble.completes(guests, job);
    assert_eq!(job.query().io_status, IoStatus::Ok, "{trouble:?}");
}

/// Scenario 5: under `ignore` a block that stays bad keeps the job from being ready and does nothing else: the job waits longer
/// each time before it tries again, and what lies elsewhere is copied all the same, also while guests write to the bad place
/// all the time and, in write-blocking mode, would meet the error themselves each time.
#[test]
fn a_block_that_stays_bad_is_tried_again_and_again_under_ignore() {
    needs!(Fuse);
    use CopyModeChoice::{Background, WriteBlocking};
    for (side, mode) in
        [(Side::Source, Background), (Side::Target, Background), (Side::Target, WriteBlocking)]
    {
        let trouble = Trouble::new(side, EIO, false, mode);
        let (guests, job) = trouble.start(ErrorPolicy::Ignore, Times::Forever);
        until("some rounds have passed", || trouble.control().counters().faults >= 5);
        assert_eq!(job.status(), JobStatus::Running);
        let met = trouble.control().counters().faults;
        guests.go_on(200);
        // Rounds, not a storm.
        let more = trouble.control().counters().faults - met;
        assert!(more < 100, "{more}");
        // Guests dirty the whole disk again and again, so this is more than the bad place and its neighbours.
        let copied = job.query().progress.copied_bytes;
        until("other chunks are copied", || job.query().progress.copied_bytes >= copied + SIZE / 2);
        assert_eq!(job.status(), JobStatus::Running);
        trouble.control().clear_rules();
        trouble.completes(guests, &job);
    }
}
