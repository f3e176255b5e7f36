//! Faults from somebody else's block layer on the real ring, met by a job: disks that `qemu-storage-daemon` serves through its
//! blkdebug, under every policy, before the job is ready and after, with guests that write through trackers and, in
//! write-blocking mode, through queues. Whatever the disk does, no guest notices.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use blkmirror_testkit::{KIB, MIB, needs};
use blkmirror_tests::api::engine::{
    Completion, CopyModeChoice, End, ErrorAction, ErrorPolicy, EventKind, IoStatus, Job, JobStatus,
    MirrorOptions, Side,
};
use blkmirror_tests::api::units::Granularity;
use blkmirror_tests::live::{
    EIO, ENOSPC, GuestPlan, Guests, History, Inject, Medium, Place, Scene, Served, cancel_soon, events_of,
    until, until_status,
};

/// Size of the disks here.
const SIZE: u64 = MIB;
/// Where it fails.
const WRONG: u64 = 512 * KIB;
/// Before the job is ready, and after.
const WHEN: [bool; 2] = [false, true];
/// Guest writes followed in the background, and carried to both sides.
const MODES: [CopyModeChoice; 2] = [CopyModeChoice::Background, CopyModeChoice::WriteBlocking];
/// Every policy.
const POLICIES: [ErrorPolicy; 4] =
    [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Enospc, ErrorPolicy::Stop];

/// Held alone by the test of flushes that fail once. Every process that is started takes the descriptors of this one along for a
/// moment, and FUSE makes a flush of each close: another test that starts its daemon would use up the one failure.
static STARTS: RwLock<()> = RwLock::new(());

/// Others may start daemons meanwhile.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    STARTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A job between two disks, one of which gets a fault.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// The side with the fault.
    side: Side,
    /// The fault.
    fault: Inject,
    /// It comes when the job is ready.
    after_ready: bool,
    /// How guest writes are followed.
    mode: CopyModeChoice,
    /// What the job makes of it.
    policy: ErrorPolicy,
}

/// A trouble that has begun.
struct Begun {
    /// What it is.
    trouble: Trouble,
    /// The disks.
    scene: Scene,
    /// Who writes.
    guests: Guests,
    /// The job.
    job: Job,
}

impl Trouble {
    /// One side's requests of this kind fail, everywhere if they are flushes, else at one place.
    fn new(side: Side, iotype: &'static str, errno: i32, policy: ErrorPolicy) -> Self {
        let at_bytes = (iotype != "flush").then_some(WRONG);
        let fault = Inject { iotype, errno, at_bytes, once: false };
        Self { side, fault, after_ready: false, mode: CopyModeChoice::Background, policy }
    }

    /// The same, the first time only.
    fn once(mut self) -> Self {
        self.fault.once = true;
        self
    }

    /// The same, before and after the job is ready, in both modes; but in write-blocking mode nobody reads the source of a job
    /// that is ready.
    fn whenever(self) -> impl Iterator<Item = Self> {
        let cases = WHEN.into_iter().flat_map(|after_ready| MODES.map(|mode| (after_ready, mode)));
        cases.map(move |(after_ready, mode)| Self { after_ready, mode, ..self }).filter(|case| {
            !(case.side == Side::Source && case.after_ready && case.mode == CopyModeChoice::WriteBlocking)
        })
    }

    /// Starts guests and a job, and lets the fault come at its time.
    fn begin(self) -> Begun {
        let served = || Place::served(Served::start(SIZE, &[self.fault], |path| History::fill(path, SIZE)));
        let memory = || Place::new(Medium::Memory, SIZE);
        let scene = match self.side {
            Side::Source => Scene::between(SIZE, served(), memory()),
            Side::Target => Scene::between(SIZE, memory(), served()),
        };
        let plans = [5, 6].map(|seed| GuestPlan::over(SIZE, seed));
        let guests = match self.mode {
            CopyModeChoice::WriteBlocking => scene.queued_guests_with(&plans),
            _ => scene.guests_with(&plans),
        };
        // Slow at first, so that what comes before the job is ready does.
        let job = scene.mirror(MirrorOptions {
            granularity: Some(Granularity::new(64 * KIB).unwrap()),
            speed_bytes_per_s: if self.after_ready { 0 } else { 64 * KIB },
            on_source_error: self.policy,
            on_target_error: self.policy,
            ..Scene::options_in(self.mode)
        });
        if self.after_ready {
            until_status(&job, JobStatus::Ready);
        }
        let begun = Begun { trouble: self, scene, guests, job };
        begun.server().fail();
        // Refused if it is over already.
        let _ = begun.job.set_speed(0);
        begun
    }

    /// What the policy does about it.
    fn action(&self) -> ErrorAction {
        match self.policy {
            _ if self.fault.iotype == "flush" => ErrorAction::Report,
            ErrorPolicy::Report => ErrorAction::Report,
            ErrorPolicy::Ignore => ErrorAction::Ignore,
            ErrorPolicy::Stop => ErrorAction::Stop,
            ErrorPolicy::Enospc if self.fault.errno == ENOSPC => ErrorAction::Stop,
            ErrorPolicy::Enospc => ErrorAction::Report,
        }
    }

    /// What errors of this kind do to a job that they end or stop.
    fn io_status(&self) -> IoStatus {
        if self.fault.errno == ENOSPC { IoStatus::NoSpace } else { IoStatus::Failed }
    }
}

impl Begun {
    /// What serves the disk with the fault.
    fn server(&self) -> &Served {
        match self.trouble.side {
            Side::Source => self.scene.source.server(),
            Side::Target => self.scene.target.server(),
        }
    }

    /// When the job's events told of the fault, with the bytes and what is done about it.
    fn told_ns(&self) -> Vec<u64> {
        let Trouble { side, fault, .. } = self.trouble;
        let told = events_of(&self.job).into_iter().filter(|event| match event.what {
            EventKind::Error { side: s, errno, range, action, .. } => {
                let inside = match fault.at_bytes {
                    Some(at) => range.start() <= at && at < range.end(),
                    None => range.is_empty(),
                };
                inside && (s, errno, action) == (side, fault.errno, self.trouble.action())
            }
            _ => false,
        });
        told.map(|event| event.time_ns).collect()
    }

    /// The job has failed by the fault, and the drive stays where it was.
    #[track_caller]
    fn fails(self) {
        let Some(outcome) = self.job.wait_for(Duration::from_secs(10)) else {
            panic!("{:?}: {:?}", self.trouble, self.job.query())
        };
        assert!(outcome.end == End::Failed && !outcome.pivoted, "{:?}", self.trouble);
        assert_eq!(self.job.query().io_status, self.trouble.io_status(), "{:?}", self.trouble);
        assert!(!self.told_ns().is_empty(), "{:?}", self.trouble);
        self.unnoticed();
    }

    /// The job stops, guests go on, and it goes on when it is resumed.
    #[track_caller]
    fn stops(&self) {
        // What is left fits into the pause once the speed limit is gone, so a job may become ready before it meets the fault.
        until("it stops", || match self.job.status() {
            JobStatus::Standby => true,
            JobStatus::Paused => !self.trouble.after_ready,
            status => {
                assert!(!status.is_over(), "{:?}: {:?}", self.trouble, self.job.query());
                false
            }
        });
        assert_eq!(self.job.query().io_status, self.trouble.io_status(), "{:?}", self.trouble);
        assert!(!self.told_ns().is_empty(), "{:?}", self.trouble);
        self.guests.go_on(10);
        self.server().heal();
        self.job.resume().unwrap();
    }

    /// The job completes with everything.
    #[track_caller]
    fn completes(self) {
        until_status(&self.job, JobStatus::Ready);
        let _ = self.scene.complete(&self.job, Completion::PointInTime);
        let scene = self.unnoticed();
        let _ = scene.history.check_moment(&scene.target.content);
    }

    /// Guests go on, and nothing of theirs has failed or is lost.
    #[track_caller]
    fn unnoticed(self) -> Scene {
        self.guests.go_on(5);
        assert_eq!(self.guests.failed(), 0, "{:?}", self.trouble);
        let _ = self.guests.stop();
        self.scene.check_source();
        self.scene
    }
}

/// The errors of a job's own reads and writes.
const KINDS: [(Side, &str, i32); 3] =
    [(Side::Source, "read", EIO), (Side::Target, "write", EIO), (Side::Target, "write", ENOSPC)];

/// Scenarios 5 and 6: if a policy were not followed in some phase or mode, a host would lose a job that it wanted to keep, or keep
/// one that it wanted to lose, or its guest would see the job's errors. Errors that stay, and go when somebody repairs the disk.
#[test]
fn errors_that_stay_fail_or_stop_the_job_as_the_policy_says() {
    needs!(Fuse, QemuStorageDaemon, Root);
    let _beside = beside_others();
    for (side, iotype, errno) in KINDS {
        for policy in [ErrorPolicy::Report, ErrorPolicy::Enospc, ErrorPolicy::Stop] {
            for trouble in Trouble::new(side, iotype, errno, policy).whenever() {
                let begun = trouble.begin();
                if trouble.action() == ErrorAction::Stop {
                    begun.stops();
                    begun.completes();
                } else {
                    begun.fails();
                }
            }
        }
    }
}

/// Scenarios 5 and 6: errors that pass, under the policies that outlive them. Were what failed forgotten, the target would lack it.
#[test]
fn one_error_is_made_up_for_on_either_side() {
    needs!(Fuse, QemuStorageDaemon, Root);
    let _beside = beside_others();
    for (side, iotype, errno) in KINDS {
        for policy in [ErrorPolicy::Ignore, ErrorPolicy::Enospc, ErrorPolicy::Stop] {
            let once = Trouble::new(side, iotype, errno, policy).once();
            if once.action() == ErrorAction::Report {
                continue;
            }
            for trouble in once.whenever() {
                let begun = trouble.begin();
                if trouble.action() == ErrorAction::Stop {
                    begun.stops();
                } else {
                    until("the error is met", || !begun.told_ns().is_empty());
                }
                begun.completes();
            }
        }
    }
}

/// Scenario 6: a target that was full once, by somebody else's hand. The next write to the place succeeds, so a job that asked
/// again before it told would not fail, against the host's wish.
#[test]
fn a_target_that_is_full_once_fails_the_job_under_report() {
    needs!(Fuse, QemuStorageDaemon, Root);
    let _beside = beside_others();
    for trouble in Trouble::new(Side::Target, "write", ENOSPC, ErrorPolicy::Report).once().whenever() {
        trouble.begin().fails();
    }
}

/// Scenario 5: were a block that stays bad passed over for good, a job would complete without it; were it tried without pause, it
/// would take a processor and the disk from the guest. The switch-over waits for it with the gate open, and a host that does not
/// want to wait cancels.
#[test]
fn a_block_that_stays_bad_under_ignore_is_tried_less_and_less_often_and_never_passed_over() {
    needs!(Fuse, QemuStorageDaemon, Root);
    let _beside = beside_others();
    for (side, iotype) in [(Side::Source, "read"), (Side::Target, "write")] {
        for (at, trouble) in Trouble::new(side, iotype, EIO, ErrorPolicy::Ignore).whenever().enumerate() {
            let begun = trouble.begin();
            let mut told = Vec::new();
            until("some rounds have passed", || {
                told.extend(begun.told_ns());
                told.len() >= 6
            });
            if trouble.after_ready {
                begun.job.complete(Completion::Pivot).unwrap();
            }
            let written = begun.guests.written();
            std::thread::sleep(Duration::from_millis(600));
            let more = begun.told_ns().len();
            // In write-blocking mode a guest that writes there asks again each time.
            let of_guests = match trouble.mode {
                CopyModeChoice::WriteBlocking => begun.guests.written() - written,
                _ => 0,
            };
            assert!(more < 10 + usize::try_from(of_guests).unwrap(), "{trouble:?}: {more} more in 600 ms");
            assert!(!begun.job.status().is_over(), "{trouble:?}: {:?}", begun.job.query());
            assert!(begun.job.query().dirty_bytes > 0, "{trouble:?}");
            begun.guests.go_on(20);
            // Half are repaired, half are given up.
            if at % 2 == 0 {
                cancel_soon(&begun.job);
                let _ = begun.unnoticed();
            } else {
                begun.server().heal();
                if trouble.after_ready {
                    let outcome = begun.job.wait_for(Duration::from_secs(10)).unwrap();
                    assert!(outcome.end == End::Completed && outcome.pivoted, "{outcome:?}");
                } else {
                    begun.completes();
                }
            }
        }
    }
}

/// Scenario 20: a flush that failed has lost something, so a job that took the next one for the whole truth would hand over a
/// target with holes. It fails whatever the policy, once or always, before it is ready or at the switch-over.
#[test]
fn a_flush_that_fails_once_fails_the_job_under_every_policy() {
    needs!(Fuse, QemuStorageDaemon, Root);
    let _alone = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    for policy in POLICIES {
        let always = Trouble::new(Side::Target, "flush", EIO, policy);
        for trouble in always.whenever().chain(always.once().whenever()) {
            let begun = trouble.begin();
            if trouble.after_ready {
                // Now there is something to flush.
                begun.guests.go_on(5);
                begun.job.complete(Completion::Pivot).unwrap();
            }
            begun.fails();
        }
    }
}
