//! Disks that do not answer: a forced cancel is over soon, guests go on, and nobody hangs with the disk.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::num::NonZeroUsize;
use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule};
use blkmirror_testkit::{KIB, MIB, equal, fill, needs};
use blkmirror_tests::api::device::{Device, TargetOptions};
use blkmirror_tests::api::engine::{
    Completion, CopyModeChoice, End, Engine, EngineOptions, Job, JobStatus, MirrorOptions,
};
use blkmirror_tests::live::{
    CANCELLED_WITHIN, Guests, Medium, Place, Scene, cancel_soon, timed, until, until_status,
};

/// Size of the disks here. Where a drive moves both are of one kind, or the target might want memory that guests did not promise.
const SIZE: u64 = 4 * MIB;

/// Cancels by force; the job is over within a second and guests go on.
#[track_caller]
fn cancels_soon(job: &Job, guests: &Guests) {
    cancel_soon(job);
    if guests.written() > 0 {
        guests.go_on(20);
    }
    assert_eq!(guests.failed(), 0);
}

/// Guests as the mode wants them.
fn guests_for(scene: &Scene, mode: CopyModeChoice) -> Guests {
    if mode == CopyModeChoice::WriteBlocking { scene.queued_guests() } else { scene.guests() }
}

/// Scenario 28, before and after the job is ready.
#[test]
fn a_target_that_hangs_does_not_hold_up_a_forced_cancel_or_the_guest() {
    needs!(Fuse);
    for mode in [CopyModeChoice::Background, CopyModeChoice::WriteBlocking] {
        for after_ready in [false, true] {
            let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
            let stuck = Rule::on(Operation::Write, Effect::Stuck);
            if !after_ready {
                scene.target.control().add_rule(stuck.clone());
            }
            let guests = guests_for(&scene, mode);
            let job = scene.mirror(Scene::options_in(mode));
            if after_ready {
                until_status(&job, JobStatus::Ready);
                scene.target.control().add_rule(stuck);
            }
            until("a write hangs", || scene.target.control().counters().stuck > 0);
            if mode == CopyModeChoice::Background {
                guests.go_on(20);
            }
            cancels_soon(&job, &guests);
            // What hung comes back after the job is over, and disturbs nobody.
            let _ = scene.target.control().release_stuck(None);
            guests.go_on(20);
            let _ = guests.stop();
            scene.check_source();
        }
    }
}

/// Scenario 28: a target that hangs when the end is asked for does not hold the guest; the job can be cancelled, or completes when
/// the target is back.
#[test]
fn a_target_that_hangs_at_the_switch_over_does_not_take_the_guest_along() {
    needs!(Fuse);
    for comes_back in [false, true] {
        let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
        let guests = scene.guests();
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        scene.target.control().add_rule(Rule::on(Operation::Write, Effect::Stuck));
        guests.go_on(20);
        job.complete(Completion::Pivot).unwrap();
        until("it hangs", || scene.target.control().counters().stuck > 0);
        guests.go_on(100);
        ends_with(&scene, &job, &guests, comes_back);
        let _ = guests.stop();
        if comes_back { scene.check_target() } else { scene.check_source() }
    }
}

/// The same for the flush. Nobody writes meanwhile: on a FUSE file the kernel lets no write begin while a flush is under way, and
/// whoever sends one waits in the system call, a worker too. Disks do not do that.
#[test]
fn a_flush_that_hangs_at_the_switch_over_does_not_hold_up_a_forced_cancel() {
    needs!(Fuse);
    for comes_back in [false, true] {
        let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
        let guests = scene.guests();
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        guests.go_on(50);
        let _ = guests.stop();
        until("all is copied", || job.query().dirty_bytes == 0);
        scene.target.control().add_rule(Rule::on(Operation::Flush, Effect::Stuck));
        job.complete(Completion::Pivot).unwrap();
        until("it hangs", || scene.target.control().counters().stuck > 0);
        let guests = scene.guests_with(&[]);
        ends_with(&scene, &job, &guests, comes_back);
        if comes_back { scene.check_target() } else { scene.check_source() }
    }
}

/// The target comes back and the job completes, or the job is cancelled by force.
#[track_caller]
fn ends_with(scene: &Scene, job: &Job, guests: &Guests, comes_back: bool) {
    let control = scene.target.control();
    if comes_back {
        control.clear_rules();
        // A write that met the rule just before it went may get stuck just after the others were released.
        until("it completes", || {
            let _ = control.release_stuck(None);
            job.wait_for(Duration::from_millis(20)).is_some()
        });
        assert_eq!(job.outcome().unwrap().end, End::Completed);
    } else {
        cancels_soon(job, guests);
        assert_eq!(scene.drive.device_number(), 0);
        let _ = control.release_stuck(None);
    }
}

/// A source that hangs takes the guest along, of course, but not the one who cancels.
#[test]
fn a_source_whose_reads_hang_does_not_hold_up_a_forced_cancel() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Memory);
    scene.source.control().add_rule(Rule::on(Operation::Read, Effect::Stuck));
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    until("a read hangs", || scene.source.control().counters().stuck > 0);
    cancels_soon(&job, &guests);
    let _ = scene.source.control().release_stuck(None);
    let _ = guests.stop();
    scene.check_source();
}

/// Asking where holes are is a system call that nobody can interrupt. On the worker's thread it would hold up every other job
/// there, whose guests may wait at a closed gate, and the cancel of its own.
#[test]
fn a_source_that_does_not_say_where_its_holes_are_holds_up_neither_other_jobs_nor_a_forced_cancel() {
    needs!(Fuse);
    for comes_back in [false, true] {
        let mut scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
        let workers = NonZeroUsize::new(1);
        scene.engine = Engine::start(EngineOptions { workers, ..EngineOptions::default() }).unwrap();
        let (source, target) = (Place::new(Medium::Faulty, SIZE), Place::new(Medium::Memory, SIZE));
        (0..SIZE / (128 * KIB))
            .for_each(|n| fill::random(&source.content, n * 128 * KIB, 64 * KIB, 7).unwrap());
        let control = source.control();
        control.add_rule(Rule::on(Operation::Seek, Effect::Stuck).within(MIB..SIZE));
        let from = Device::open_source(&source.path).unwrap();
        let to = Device::open_target(&target.path, TargetOptions::default()).unwrap();
        let hanging = scene.engine.copy(from, to, MirrorOptions::default()).unwrap();
        until("a question hangs", || control.counters().stuck > 0);
        until("what is known is copied", || hanging.query().progress.copied_bytes == MIB / 2);

        let guests = scene.guests();
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        guests.go_on(20);
        assert!(scene.complete(&job, Completion::Pivot).pivoted);
        guests.go_on(20);

        assert_eq!(control.counters().stuck, 1, "one question at a time");
        if comes_back {
            control.clear_rules();
            let _ = control.release_stuck(None);
            let Some(outcome) = hanging.wait_for(Duration::from_secs(10)) else {
                panic!("{:?}", hanging.query())
            };
            assert_eq!(outcome.end, End::Completed);
            assert!(equal(&source.content, &target.content).unwrap());
        } else {
            cancels_soon(&hanging, &guests);
            let _ = control.release_stuck(None);
        }
        let _ = guests.stop();
        scene.check_target();
    }
}

/// A job that fails while requests hang is over soon, too, and lets go of write-blocking guests.
#[test]
fn a_job_that_fails_beside_hanging_requests_lets_go_of_the_guest() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    let guests = scene.queued_guests();
    let job = scene.mirror(Scene::options_in(CopyModeChoice::WriteBlocking));
    until_status(&job, JobStatus::Ready);
    let control = scene.target.control();
    control.add_rule(Rule::on(Operation::Write, Effect::Stuck).within(0..MIB));
    control.add_rule(Rule::on(Operation::Write, Effect::Error(5)).within(2 * MIB..SIZE).after(20));
    let outcome = job.wait_for(Duration::from_secs(2));
    // If every request of the guests hangs there is nobody left who could meet the error.
    if let Some(outcome) = outcome {
        assert_eq!(outcome.end, End::Failed);
    } else {
        cancel_soon(&job);
    }
    guests.go_on(20);
    assert_eq!(guests.failed(), 0);
    let _ = scene.target.control().release_stuck(None);
    let _ = guests.stop();
    scene.check_source();
}

/// An engine ends while requests hang; what is in their memory is given up, not the process.
#[test]
fn an_engine_ends_while_its_targets_hang() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    scene.target.control().add_rule(Rule::on(Operation::Write, Effect::Stuck));
    let guests = scene.queued_guests();
    let job = scene.mirror(Scene::options_in(CopyModeChoice::WriteBlocking));
    until("a write hangs", || scene.target.control().counters().stuck > 0);
    let Scene { engine, drive, history, source, target, .. } = scene;
    let ((), taken) = timed(|| drop(engine));
    assert!(taken <= CANCELLED_WITHIN, "{taken:?}");
    assert_eq!(job.wait_for(Duration::from_secs(1)).unwrap().end, End::Cancelled);
    guests.go_on(20);
    let _ = target.control().release_stuck(None);
    let _ = guests.stop();
    history.check_last(&source.content);
    drop(drive);
}

/// Each device has a thread for its flushes. Were those that hang waited for one after the other, a host with a dozen targets on a
/// dead storage system would wait for seconds when it ends.
#[test]
fn an_engine_ends_in_time_however_many_flushes_hang() {
    needs!(Fuse);
    let workers = NonZeroUsize::new(1);
    let engine = Engine::start(EngineOptions { workers, ..EngineOptions::default() }).unwrap();
    let places = || (Place::new(Medium::Memory, MIB), Place::new(Medium::Faulty, MIB));
    let all: Vec<_> = (0..8).map(|_| places()).collect();
    let start = |(source, target): &(Place, Place)| {
        fill::random(&source.content, 0, 64 * KIB, 7).unwrap();
        target.control().add_rule(Rule::on(Operation::Flush, Effect::Stuck));
        let from = Device::open_source(&source.path).unwrap();
        let to = Device::open_target(&target.path, TargetOptions::default()).unwrap();
        engine.copy(from, to, MirrorOptions::default()).unwrap()
    };
    let jobs: Vec<Job> = all.iter().map(start).collect();
    for (_, target) in &all {
        until("a flush hangs", || target.control().counters().stuck > 0);
    }
    let ((), taken) = timed(|| drop(engine));
    assert!(taken <= CANCELLED_WITHIN, "{taken:?}");
    for job in jobs {
        assert_eq!(job.wait_for(Duration::from_secs(1)).unwrap().end, End::Cancelled);
    }
    for (_, target) in &all {
        let _ = target.control().release_stuck(None);
    }
}

/// Targets with latency: the guests of a write-blocking job wait for it, those of a background job do not.
#[test]
fn latency_of_the_target_reaches_write_blocking_guests_only() {
    needs!(Fuse);
    let slow = Duration::from_millis(20);
    for mode in [CopyModeChoice::Background, CopyModeChoice::WriteBlocking] {
        let scene = Scene::new(MIB, Medium::Memory, Medium::Faulty);
        let guests = scene.queued_guests();
        let options = MirrorOptions { max_pause: None, ..Scene::options_in(mode) };
        let job = scene.mirror(options);
        until_status(&job, JobStatus::Ready);
        if mode == CopyModeChoice::WriteBlocking {
            until("it is in sync", || job.query().progress.active_bytes > 0);
        }
        scene.target.control().set_write_latency(slow);
        guests.go_on(50);
        let _ = scene.complete(&job, Completion::PointInTime);
        guests.go_on(20);
        if mode == CopyModeChoice::WriteBlocking {
            assert!(guests.longest() >= slow, "{:?}", guests.longest());
        }
        let _ = guests.stop();
        let _ = scene.history.check_moment(&scene.target.content);
        scene.check_source();
    }
}
