//! Flushes of the target: slow ones, and failing ones, before a job is ready and at the switch-over.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{MIB, needs};
use blkmirror_tests::api::engine::{
    Cancel, Completion, End, ErrorPolicy, EventKind, JobStatus, MirrorOptions, Side, TargetState,
};
use blkmirror_tests::live::{EIO, Medium, Scene, events_of, until, until_status};

/// Size of the disks here. Where a drive moves both are of one kind, or the target might want memory that guests did not promise.
const SIZE: u64 = 4 * MIB;
/// Every policy.
const POLICIES: [ErrorPolicy; 4] =
    [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Enospc, ErrorPolicy::Stop];

/// The default pause.
fn within_50_ms() -> MirrorOptions {
    MirrorOptions { max_pause: Some(Duration::from_millis(50)), ..Scene::options() }
}

/// Flushes that were slow once are measured again: the first one after a long copy says little about the next.
#[test]
fn one_slow_flush_does_not_keep_a_job_from_being_ready() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    scene.target.control().set_flush_latency(Duration::from_millis(200));
    let guests = scene.guests();
    let job = scene.mirror(within_50_ms());
    until("the target was flushed", || scene.target.control().counters().flushes > 0);
    scene.target.control().set_flush_latency(Duration::ZERO);
    until_status(&job, JobStatus::Ready);
    let outcome = scene.complete(&job, Completion::Pivot);
    assert!(outcome.pause.unwrap() <= Duration::from_millis(50), "{:?}", outcome.pause);
    guests.go_on(20);
    let _ = guests.stop();
    scene.check_target();
}

/// The same after the job is ready: the switch-over waits until flushes are fast again, and comes then.
#[test]
fn one_slow_flush_does_not_keep_a_job_from_completing() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    let guests = scene.guests();
    let job = scene.mirror(within_50_ms());
    until_status(&job, JobStatus::Ready);
    scene.target.control().set_flush_latency(Duration::from_millis(200));
    let before = scene.target.control().counters().flushes;
    job.complete(Completion::Pivot).unwrap();
    until("the target was flushed", || scene.target.control().counters().flushes > before);
    scene.target.control().set_flush_latency(Duration::ZERO);
    let outcome = job.wait_for(Duration::from_secs(20)).unwrap();
    assert!(outcome.pause.unwrap() <= Duration::from_millis(50), "{:?}", outcome.pause);
    let _ = guests.stop();
    scene.check_target();
}

/// A guest that does nothing leaves nothing to flush, so the slowest flush does not matter.
#[test]
fn a_target_with_slow_flushes_is_ready_while_the_guest_is_idle() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    scene.target.control().set_flush_latency(Duration::from_millis(120));
    let job = scene.mirror(within_50_ms());
    until_status(&job, JobStatus::Ready);
    let outcome = scene.complete(&job, Completion::Pivot);
    assert!(outcome.pause.unwrap() <= Duration::from_millis(50), "{:?}", outcome.pause);
    scene.check_target();
}

/// 20 ms of latency on everything that the target does is within the pause, flush included.
#[test]
fn a_target_with_20_ms_of_latency_switches_over_within_the_pause() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    let slow = Duration::from_millis(20);
    scene.target.control().set_flush_latency(slow);
    scene.target.control().set_write_latency(Duration::from_millis(5));
    let guests = scene.guests();
    let job = scene.mirror(MirrorOptions { max_pause: Some(Duration::from_millis(150)), ..Scene::options() });
    until_status(&job, JobStatus::Ready);
    let outcome = scene.complete(&job, Completion::PointInTime);
    assert!(outcome.pause.unwrap() <= Duration::from_millis(150), "{:?}", outcome.pause);
    let _ = guests.stop();
    let _ = scene.history.check_moment(&scene.target.content);
    scene.check_source();
}

/// Scenario 20: a flush that failed once has lost something, so the job fails whatever the policy, and the guest stays where it
/// was.
#[test]
fn a_failed_flush_fails_the_job_and_no_guest_request_under_every_policy() {
    needs!(Fuse);
    for (policy, times, after_ready) in POLICIES
        .into_iter()
        .flat_map(|policy| [(policy, Times::Once, false), (policy, Times::Once, true)])
        .chain([(ErrorPolicy::Report, Times::Forever, true)])
    {
        let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
        let guests = scene.guests();
        let fault = || {
            let rule = Rule::on(Operation::Flush, Effect::Error(EIO)).times(times);
            scene.target.control().add_rule(rule);
        };
        if !after_ready {
            fault();
        }
        let job = scene.mirror(MirrorOptions { on_target_error: policy, ..Scene::options() });
        if after_ready {
            until_status(&job, JobStatus::Ready);
            fault();
            // Now there is something to flush.
            guests.go_on(50);
            job.complete(Completion::Pivot).unwrap();
        }
        let outcome = job.wait_for(Duration::from_secs(20)).unwrap();
        assert_eq!(outcome.end, End::Failed, "{policy:?}");
        assert!(!outcome.pivoted && scene.drive.device_number() == 0);
        let text = outcome.error.unwrap().to_string();
        assert!(text.contains("flush") && text.contains("Input/output error"), "{text}");
        let told = events_of(&job).iter().any(|event| {
            matches!(event.what, EventKind::Error { side: Side::Target, errno: EIO, range, .. } if range.is_empty())
        });
        assert!(told, "{policy:?}");
        guests.go_on(20);
        assert_eq!(guests.failed(), 0);
        let _ = guests.stop();
        scene.check_source();
    }
}

/// Scenario 20: a soft cancel of a job that is ready promises a copy as of that moment, so a flush that fails after it, once or
/// always, must not end as a cancel that left a good copy.
#[test]
fn a_flush_that_fails_after_a_soft_cancel_fails_the_job() {
    needs!(Fuse);
    for times in [Times::Once, Times::Forever] {
        for policy in POLICIES {
            let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
            let guests = scene.guests();
            let job = scene.mirror(MirrorOptions { on_target_error: policy, ..Scene::options() });
            until_status(&job, JobStatus::Ready);
            guests.go_on(20);
            let rule = Rule::on(Operation::Flush, Effect::Error(EIO)).times(times);
            scene.target.control().add_rule(rule);
            job.cancel(Cancel::Soft).unwrap();
            let outcome = job.wait_for(Duration::from_secs(20)).unwrap();
            assert_eq!((outcome.end, outcome.target), (End::Failed, TargetState::Incomplete), "{policy:?}");
            guests.go_on(20);
            assert_eq!(guests.failed(), 0);
            let _ = guests.stop();
            scene.check_source();
        }
    }
}

/// Scenario 20: cancelled by force there is nothing to flush; flushes that fail do not matter.
#[test]
fn a_forced_cancel_does_not_care_about_flushes() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Faulty, Medium::Faulty);
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    scene.target.control().add_rule(Rule::on(Operation::Flush, Effect::Error(EIO)));
    job.cancel(Cancel::Force).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(5)).unwrap().end, End::Cancelled);
}
