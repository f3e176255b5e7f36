//! What a host may ask of a live job, when, and what it hears: states, verbs, speed, events.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule};
use blkmirror_testkit::{MIB, needs};
use blkmirror_tests::api::engine::{
    Cancel, Completion, CopyMode, CopyModeChoice, End, EventKind, Job, JobStatus, MirrorOptions, Verb,
};
use blkmirror_tests::api::{Error, ErrorKind, Result};
use blkmirror_tests::live::{GuestPlan, Medium, Scene, events_of, statuses_of, until, until_status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;

/// A slow job does not end before a test has looked at it.
fn slowly() -> MirrorOptions {
    MirrorOptions { speed_bytes_per_s: MIB, ..Scene::options() }
}

/// Asks a job for something.
fn ask(job: &Job, verb: Verb) -> Result<()> {
    match verb {
        Verb::Pause => job.pause(),
        Verb::Resume => job.resume(),
        Verb::SetSpeed => job.set_speed(MIB),
        Verb::SetCopyMode => job.set_copy_mode(CopyMode::Background),
        Verb::SetMaxPause => job.set_max_pause(None),
        Verb::Complete => job.complete(Completion::PointInTime),
        Verb::Cancel => job.cancel(Cancel::Force),
        Verb::Finalize => job.finalize(),
        Verb::Dismiss => job.dismiss(),
    }
}

/// Asserts that a refusal names what was asked, and one of the states in which the job may have been.
#[track_caller]
fn assert_names_both(error: &Error, verb: Verb, states: &[JobStatus]) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::WrongState, "{text}");
    assert!(text.contains(verb.name()), "{verb:?}: {text}");
    let named = states.iter().any(|status| text.contains(&format!("the job is {status}")));
    assert!(named, "{verb:?} in one of {states:?}: {text}");
}

/// Asserts that every verb that the state forbids is refused, with both in the text, and changes nothing.
#[track_caller]
fn refuses_what_is_forbidden(job: &Job, status: JobStatus) {
    for verb in Verb::ALL {
        if !verb.is_allowed_in(status) {
            assert_names_both(&ask(job, verb).unwrap_err(), verb, &[status]);
        }
    }
    assert_eq!(job.status(), status);
}

/// Scenario 19: every verb that a state forbids, on a real job in that state.
#[test]
fn every_state_of_a_real_job_refuses_what_it_forbids_by_name() {
    needs!(Fuse);
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Faulty);
    let job = scene.mirror(MirrorOptions { auto_finalize: false, ..slowly() });
    until_status(&job, JobStatus::Running);
    refuses_what_is_forbidden(&job, JobStatus::Running);
    job.pause().unwrap();
    until_status(&job, JobStatus::Paused);
    refuses_what_is_forbidden(&job, JobStatus::Paused);
    job.set_speed(0).unwrap();
    job.resume().unwrap();
    until_status(&job, JobStatus::Ready);
    refuses_what_is_forbidden(&job, JobStatus::Ready);
    job.pause().unwrap();
    until_status(&job, JobStatus::Standby);
    refuses_what_is_forbidden(&job, JobStatus::Standby);
    job.resume().unwrap();
    until_status(&job, JobStatus::Ready);
    job.complete(Completion::PointInTime).unwrap();
    until_status(&job, JobStatus::Pending);
    refuses_what_is_forbidden(&job, JobStatus::Pending);
    job.finalize().unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    refuses_what_is_forbidden(&job, JobStatus::Concluded);
    job.dismiss().unwrap();
    refuses_what_is_forbidden(&job, JobStatus::Null);

    // Aborting: a request hangs, so it takes a moment until the job is over.
    scene.target.control().add_rule(Rule::on(Operation::Write, Effect::Stuck));
    let job = scene.mirror(Scene::options());
    until("a write hangs", || scene.target.control().counters().stuck > 0);
    job.cancel(Cancel::Soft).unwrap();
    until_status(&job, JobStatus::Aborting);
    // It is over in half a second, so that it may be concluded before the last verb was tried.
    for verb in Verb::ALL.into_iter().filter(|verb| !verb.is_allowed_in(JobStatus::Aborting)) {
        let before = job.status();
        match ask(&job, verb) {
            Err(error) => assert_names_both(&error, verb, &[before, job.status()]),
            Ok(()) => assert!(verb == Verb::Dismiss && job.status() == JobStatus::Null, "{verb:?}"),
        }
    }
    job.cancel(Cancel::Force).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(5)).unwrap().end, End::Cancelled);
    let _ = scene.target.control().release_stuck(None);
}

/// Scenario 19: a job that waits for its finalize holds the guest, and lets it go when it is cancelled instead.
#[test]
fn a_pending_job_holds_the_guest_until_it_is_finalized_or_cancelled() {
    for finalize in [true, false] {
        let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
        let guests = scene.guests();
        let job = scene.mirror(MirrorOptions { auto_finalize: false, ..Scene::options() });
        until_status(&job, JobStatus::Ready);
        job.complete(Completion::Pivot).unwrap();
        until_status(&job, JobStatus::Pending);
        thread::sleep(Duration::from_millis(20));
        let held = guests.written();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(guests.written(), held, "guests write while the job is pending");
        if finalize {
            job.finalize().unwrap();
        } else {
            job.cancel(Cancel::Force).unwrap();
        }
        let outcome = job.wait_for(Duration::from_secs(5)).unwrap();
        assert_eq!(outcome.pivoted, finalize);
        assert_eq!(outcome.end, if finalize { End::Completed } else { End::Cancelled });
        guests.go_on(20);
        let _ = guests.stop();
        if finalize { scene.check_target() } else { scene.check_source() }
    }
}

/// Scenario 7: the speed may be changed at any time, and is kept before the job is ready and after: a guest is not disturbed by
/// more, and a job that is not held up does not copy much less either.
#[test]
fn the_speed_limit_is_kept_in_both_phases() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let job = scene.mirror(MirrorOptions {
        speed_bytes_per_s: 4 * MIB,
        ..Scene::options_in(CopyModeChoice::Background)
    });
    // Over a whole second, in which a machine that is busy otherwise makes up for most of what it held up.
    let keeps = |speed: u64| {
        let (begun, before) = (Instant::now(), job.query().progress.copied_bytes);
        thread::sleep(Duration::from_secs(1));
        let copied = job.query().progress.copied_bytes - before;
        let time = begun.elapsed();
        let exact = u64::try_from(u128::from(speed) * time.as_millis() / 1000).unwrap();
        // What began before and ended in it, on a disk that is held up for a moment; bursts are far below that.
        let most = exact + speed / 20;
        assert!(copied <= most, "{copied} in {time:?} at {speed} a second");
        assert!(copied >= exact / 10 * 7, "only {copied} in {time:?} at {speed} a second");
    };
    keeps(4 * MIB);
    job.set_speed(0).unwrap();
    until_status(&job, JobStatus::Ready);
    // A job may be ready with some of the first pass on its way, which no limit holds up any more.
    until("the first pass is copied", || job.query().dirty_bytes == 0);
    // Guests that write much more than that.
    job.set_speed(2 * MIB).unwrap();
    assert_eq!(job.query().speed_bytes_per_s, 2 * MIB);
    let plans = [1, 2].map(|seed| GuestPlan::over(SIZE, seed));
    let guests = scene.guests_with(&plans);
    until("enough is dirty", || job.query().dirty_bytes > 4 * MIB);
    keeps(2 * MIB);
    job.set_speed(0).unwrap();
    until("it catches up", || job.query().dirty_bytes < MIB);
    let _ = scene.complete(&job, Completion::PointInTime);
    let _ = guests.stop();
    let _ = scene.history.check_moment(&scene.target.content);
}

/// While a job is paused nothing is copied, and what guests write then is copied afterwards.
#[test]
fn what_is_written_during_a_pause_is_copied_after_it() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let guests = scene.guests();
    let job = scene.mirror(slowly());
    until_status(&job, JobStatus::Running);
    job.pause().unwrap();
    until_status(&job, JobStatus::Paused);
    assert_names_both(&job.pause().unwrap_err(), Verb::Pause, &[JobStatus::Paused]);
    let copied = job.query().progress.copied_bytes;
    guests.go_on(100);
    assert_eq!(job.query().progress.copied_bytes, copied);
    job.set_speed(0).unwrap();
    job.resume().unwrap();
    let again = job.resume().unwrap_err();
    assert!(again.to_string().contains("not paused"), "{again}");
    assert_names_both(&again, Verb::Resume, &JobStatus::ALL);
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    guests.go_on(20);
    let _ = guests.stop();
    scene.check_target();
}

/// Own: many threads ask for the end at once; one of them gets it, the job ends once, and every answer is an answer.
#[test]
fn storms_of_complete_and_cancel_end_the_job_once() {
    for round in 0..6 {
        let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
        let guests = scene.guests();
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        let _ = events_of(&job);
        let go = AtomicBool::new(false);
        let accepted: usize = thread::scope(|s| {
            let storm = [0, 1, 2, 3].map(|number| {
                let (job, go) = (&job, &go);
                s.spawn(move || {
                    while !go.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    (0..200).filter(|step| one_of_a_storm(job, round, number, *step)).count()
                })
            });
            go.store(true, Ordering::Release);
            storm.map(|thread| thread.join().unwrap()).into_iter().sum()
        });
        // Rounds without a single cancel have exactly one complete.
        assert!(round % 2 == 1 || accepted == 1, "{accepted} were accepted");
        let outcome = job.wait_for(Duration::from_secs(20)).unwrap();
        guests.go_on(10);
        let _ = guests.stop();
        let events = events_of(&job);
        let ends = events.iter().filter(|event| event.what == EventKind::Concluded).count();
        assert_eq!(ends, 1, "{events:?}");
        assert_eq!(outcome.pivoted, scene.drive.device_number() == 1);
        if outcome.pivoted { scene.check_target() } else { scene.check_source() }
    }
}

/// One request of a storm; whether a complete was accepted. A refusal names the state.
fn one_of_a_storm(job: &Job, round: u64, number: u64, step: u64) -> bool {
    let cancels = round % 2 == 1 && (number + step) % 4 == 3;
    let (verb, result) = match (cancels, step % 2) {
        (true, 0) => (Verb::Cancel, job.cancel(Cancel::Soft)),
        (true, _) => (Verb::Cancel, job.cancel(Cancel::Force)),
        (false, _) => (Verb::Complete, job.complete(Completion::Pivot)),
    };
    if let Err(error) = &result {
        assert_names_both(error, verb, &JobStatus::ALL);
    }
    result.is_ok() && !cancels
}

/// Pausing and resuming from several threads neither loses the job nor a write.
#[test]
fn storms_of_pause_and_resume_leave_a_job_that_goes_on() {
    let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    thread::scope(|s| {
        for number in 0..3u64 {
            let job = &job;
            s.spawn(move || {
                for step in 0..300u64 {
                    let _ = if (number + step) % 2 == 0 { job.pause() } else { job.resume() };
                    let _ = job.set_speed(if step % 3 == 0 { 0 } else { 64 * MIB });
                    let _ = job.set_copy_mode(if step % 2 == 0 {
                        CopyMode::WriteBlocking
                    } else {
                        CopyMode::Background
                    });
                    let _ = job.query();
                }
            });
        }
    });
    let _ = job.resume();
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::Pivot);
    guests.go_on(20);
    let _ = guests.stop();
    scene.check_target();
}

/// Own: events come in order, numbered without a gap, with times that do not go back, and tell of what can be seen already.
#[test]
fn events_are_in_order_and_never_ahead_of_the_job() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    let mut events = Vec::new();
    let mut seen = |job: &Job| {
        while let Some(event) = job.next_event() {
            match event.what {
                EventKind::Ready => assert!(job.status() != JobStatus::Running, "ready is told too early"),
                EventKind::Concluded => {
                    assert!(job.wait_for(Duration::ZERO).is_some() || job.status().is_over());
                }
                _ => {}
            }
            events.push(event);
        }
        events.last().map(|event| event.what)
    };
    until("ready is told", || seen(&job) == Some(EventKind::Ready));
    job.pause().unwrap();
    until_status(&job, JobStatus::Standby);
    job.resume().unwrap();
    until_status(&job, JobStatus::Ready);
    job.complete(Completion::Pivot).unwrap();
    until("the end is told", || seen(&job) == Some(EventKind::Concluded));
    let _ = guests.stop();
    assert!(events.iter().zip(0u64..).all(|(event, number)| event.seq == number), "{events:?}");
    assert!(events.is_sorted_by_key(|event| event.time_ns));
    use JobStatus as S;
    let told = statuses_of(&events);
    assert_eq!(
        told,
        [S::Running, S::Ready, S::Standby, S::Ready, S::Waiting, S::Pending, S::Concluded],
        "{events:?}"
    );
    let ready = events.iter().filter(|event| event.what == EventKind::Ready).count();
    assert_eq!(ready, 1);
}

/// Whether a descriptor becomes readable in this time.
fn is_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() == 1 && fds[0].revents() == PollFlags::IN
}

/// CLOCK_MONOTONIC now.
fn monotonic_ns() -> u64 {
    let time = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap();
    u64::try_from(time.as_nanos()).unwrap()
}

/// A host waits for events in its own loop, with `poll(2)`. A descriptor that stayed silent would have it sleep while the job is
/// ready or over, one that stayed readable would have it spin; and it puts the events beside its own on one time scale.
#[test]
fn the_descriptor_is_readable_exactly_while_events_wait_and_their_times_are_the_hosts() {
    const SOON: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(100);
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let mut since_ns = monotonic_ns();
    // Nothing happens to it but what it is asked for.
    let job = scene.mirror(MirrorOptions { copy_mode: CopyModeChoice::Background, ..slowly() });
    // Takes events down to the one that tells of a state, then all others; none is from before `since_ns` or from the future.
    let hears_of = |status: JobStatus, since_ns: u64| {
        let mut told = Vec::new();
        while !told.contains(&status) {
            assert!(is_readable(job.event_fd(), SOON), "nothing tells of {status}: {told:?}");
            // Looking takes nothing away.
            assert!(is_readable(job.event_fd(), Duration::ZERO), "{told:?}");
            let Some(event) = job.next_event() else { continue };
            let now_ns = monotonic_ns();
            assert!((since_ns..=now_ns).contains(&event.time_ns), "{since_ns} to {now_ns}: {event:?}");
            told.extend(statuses_of(&[event]));
        }
        while let Some(event) = job.next_event() {
            assert!((since_ns..=monotonic_ns()).contains(&event.time_ns), "{since_ns}: {event:?}");
        }
        assert!(!is_readable(job.event_fd(), A_WHILE), "no event waits after {status}");
        monotonic_ns()
    };
    since_ns = hears_of(JobStatus::Running, since_ns);
    job.pause().unwrap();
    since_ns = hears_of(JobStatus::Paused, since_ns);
    // Two that wait: it stays readable when one is taken.
    job.resume().unwrap();
    until_status(&job, JobStatus::Running);
    job.pause().unwrap();
    until_status(&job, JobStatus::Paused);
    let mut told = Vec::new();
    while told != [JobStatus::Running, JobStatus::Paused] {
        assert!(told.len() < 2 && is_readable(job.event_fd(), SOON), "{told:?}");
        told.extend(statuses_of(job.next_event().as_slice()));
    }
    assert_eq!(job.next_event(), None);
    assert!(!is_readable(job.event_fd(), A_WHILE));
    job.cancel(Cancel::Force).unwrap();
    let _ = hears_of(JobStatus::Concluded, since_ns);
}

/// A host that takes no events loses knowledge, not the job and not its end; and is told how much.
#[test]
fn events_that_nobody_takes_are_bounded_and_counted() {
    let scene = Scene::new(MIB, Medium::Memory, Medium::Memory);
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    for step in 0..1500 {
        let mode = if step % 2 == 0 { CopyMode::WriteBlocking } else { CopyMode::Background };
        job.set_copy_mode(mode).unwrap();
        if step % 50 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    job.cancel(Cancel::Force).unwrap();
    let _ = job.wait();
    let events = events_of(&job);
    let mut next = 0;
    for event in &events {
        assert_eq!(event.seq, next, "{event:?}");
        next += match event.what {
            EventKind::Overflow(lost) => lost,
            _ => 1,
        };
    }
    assert!(events.iter().any(|event| matches!(event.what, EventKind::Overflow(_))));
    assert!(events.len() < 1000, "{}", events.len());
    assert_eq!(events.last().map(|event| event.what), Some(EventKind::Concluded));
}
