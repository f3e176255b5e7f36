//! What bad input gets: errors that name what is wrong, never a panic, never a hang.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::thread;
use std::time::{Duration, Instant};

use blkmirror_testkit::{KIB, MIB, needs};
use blkmirror_tests::WAY;
use blkmirror_tests::api::ErrorKind;
use blkmirror_tests::api::buffer::AlignedBuf;
use blkmirror_tests::api::device::{Device, TargetOptions};
use blkmirror_tests::api::drive::queue::{QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_tests::api::drive::{Admission, Drive, IoKind, Token, Tracker};
use blkmirror_tests::api::engine::{
    Cancel, Completion, End, Engine, EngineOptions, JobStatus, MirrorOptions,
};
use blkmirror_tests::api::units::ByteRange;
use blkmirror_tests::live::{GuestPlan, Medium, Place, Scene, Way, until_status};

/// Size of the disks here.
const SIZE: u64 = 4 * MIB;

/// A slow job does not end before a test has looked at it.
fn slowly() -> MirrorOptions {
    MirrorOptions { speed_bytes_per_s: 256 * KIB, ..Scene::options() }
}

/// A guest that was promised small blocks is not moved to a disk with large ones; everything else works.
#[test]
fn a_pivot_to_a_target_with_larger_blocks_is_refused_in_words() {
    needs!(Fuse);
    let (source, target) = (Place::new(Medium::Memory, SIZE), Place::new(Medium::Faulty, SIZE));
    let drive = Drive::new(Device::open_disk(&source.path).unwrap()).unwrap();
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let target = Device::open_target(&target.path, TargetOptions::default()).unwrap();
    let job = engine.mirror(&drive, target, Scene::options()).unwrap();
    until_status(&job, JobStatus::Ready);
    let text = job.complete(Completion::Pivot).unwrap_err().to_string();
    assert!(text.contains("4096") && text.contains("512"), "{text}");
    job.complete(Completion::PointInTime).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
}

/// Opens a target.
fn target(place: &Place) -> Device {
    Device::open_target(&place.path, TargetOptions::default()).unwrap()
}

#[test]
fn a_drive_takes_one_job_at_a_time() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let second = Place::new(Medium::Memory, SIZE);
    let job = scene.mirror(slowly());
    let refused = scene.engine.mirror(&scene.drive, target(&second), Scene::options()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("another job"), "{refused}");
    // Another engine is no way around it.
    let other = Engine::start(EngineOptions::default()).unwrap();
    let refused = other.mirror(&scene.drive, target(&second), Scene::options()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(std::fs::read(&second.content).unwrap().iter().all(|byte| *byte == 0), "it was touched");
    job.cancel(Cancel::Force).unwrap();
    assert_eq!(job.wait().end, End::Cancelled);
    let again = other.mirror(&scene.drive, target(&second), Scene::options()).unwrap();
    until_status(&again, JobStatus::Ready);
}

#[test]
fn a_target_that_is_too_small_is_refused_with_both_sizes() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    for size in [4096, SIZE - 512] {
        let small = Place::new(Medium::Memory, size);
        let refused = scene.engine.mirror(&scene.drive, target(&small), Scene::options()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WrongSize, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(small.path.to_str().unwrap()), "{text}");
        for named in [size, SIZE] {
            assert!(text.contains(&named.to_string()), "{named}: {text}");
        }
    }
    // And it is not busy with what was refused.
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
}

/// A target may be larger; the rest of it is left alone.
#[test]
fn a_larger_target_is_written_up_to_the_drives_size() {
    let scene = Scene::between(SIZE, Place::new(Medium::Memory, SIZE), Place::new(Medium::Memory, 2 * SIZE));
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let outcome = scene.complete(&job, Completion::Pivot);
    assert!(outcome.pivoted);
    guests.go_on(20);
    let _ = guests.stop();
    assert_eq!(scene.drive.size_bytes(), SIZE);
    let target = std::fs::read(&scene.target.content).unwrap();
    assert!(target[usize::try_from(SIZE).unwrap()..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_disk_is_not_mirrored_to_itself_or_to_what_was_opened_for_something_else() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let same = Device::open_target(&scene.source.path, TargetOptions::default())
        .and_then(|same| scene.engine.mirror(&scene.drive, same, Scene::options()));
    assert_eq!(same.unwrap_err().kind(), ErrorKind::Busy);
    let source = Device::open_source(&scene.target.path).unwrap();
    let wrong = scene.engine.mirror(&scene.drive, source, Scene::options()).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidArgument, "{wrong}");
}

/// Scenario 22: a target is held while the job runs and free afterwards; so is what a drive stands on.
#[test]
fn a_second_writer_is_refused_while_a_job_runs_and_welcome_after_it() {
    needs!(Losetup);
    for medium in [Medium::Memory, Medium::Loop] {
        let scene = Scene::new(SIZE, medium, medium);
        let again = |place: &Place| Device::open_target(&place.path, TargetOptions::default());
        let job = scene.mirror(slowly());
        for place in [&scene.source, &scene.target] {
            assert_eq!(again(place).unwrap_err().kind(), ErrorKind::Busy, "{medium:?}");
        }
        job.cancel(Cancel::Force).unwrap();
        let _ = job.wait();
        assert!(again(&scene.target).is_ok(), "{medium:?}: {:?}", again(&scene.target));
        let job = scene.mirror(Scene::options());
        until_status(&job, JobStatus::Ready);
        let _ = scene.complete(&job, Completion::Pivot);
        // The drive stands on the target now, and has left the source.
        assert_eq!(again(&scene.target).unwrap_err().kind(), ErrorKind::Busy, "{medium:?}");
        drop(scene.drive);
        assert!(again(&scene.target).is_ok(), "{medium:?}");
    }
}

#[test]
fn a_queue_used_from_a_second_thread_refuses_and_goes_on_with_the_first() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    queue.write(0, AlignedBuf::new(4096, 4096).unwrap(), WriteFlags::default(), 1).unwrap();
    thread::scope(|s| {
        let queue = &mut queue;
        s.spawn(move || {
            let refused = queue.write(0, AlignedBuf::new(4096, 4096).unwrap(), WriteFlags::default(), 2);
            let refused = refused.unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::WrongState);
            assert!(refused.error.to_string().contains("thread"), "{}", refused.error);
            assert!(refused.buffer.is_some(), "the buffer comes back");
            for wrong in [queue.submit(), queue.poll(), queue.wait(1, Some(Duration::from_secs(1)))] {
                assert_eq!(wrong.unwrap_err().kind(), ErrorKind::WrongState);
            }
        });
    });
    queue.wait(1, Some(Duration::from_secs(10))).unwrap();
    let done = queue.pop().unwrap();
    assert!(done.tag == 1 && done.result.is_ok(), "{done:?}");
    assert!(queue.pop().is_none());
}

/// A queue that another thread drops, with a request under way.
#[test]
fn a_queue_dropped_on_another_thread_hangs_nobody() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
    queue.write(0, AlignedBuf::new(4096, 4096).unwrap(), WriteFlags::default(), 1).unwrap();
    queue.submit().unwrap();
    thread::spawn(move || drop(queue)).join().unwrap();
    // Nobody is left inside the gate.
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::PointInTime);
}

#[test]
fn queued_requests_that_make_no_sense_are_refused_with_their_reason() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let mut queue = scene.drive.queue(QueueOptions { depth: 2, ..QueueOptions::default() }).unwrap();
    let buffer = |len: usize| AlignedBuf::new(len, 4096).unwrap();
    let align = scene.drive.align_bytes();
    let odd = queue.write(1, buffer(4096), WriteFlags::default(), 0).unwrap_err().error;
    assert_eq!(odd.kind(), ErrorKind::InvalidArgument);
    assert!(odd.to_string().contains(&align.to_string()), "{odd}");
    for past in [SIZE, SIZE - 4096 + align, u64::MAX - 4095] {
        let past = queue.read(past / align * align, buffer(8192), 0).unwrap_err().error;
        assert_eq!(past.kind(), ErrorKind::InvalidArgument, "{past}");
    }
    let empty = queue.write_zeroes(ByteRange::default(), ZeroFlags::default(), 0);
    assert!(empty.is_err());
    queue.flush(1).unwrap();
    queue.flush(2).unwrap();
    assert_eq!(queue.flush(3).unwrap_err().error.kind(), ErrorKind::QueueFull);
    queue.wait(2, Some(Duration::from_secs(10))).unwrap();
    let mut tags = [queue.pop().unwrap().tag, queue.pop().unwrap().tag];
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
    assert!(queue.pop().is_none());
}

/// Begins a write of a block.
fn begin(tracker: &Tracker) -> Token {
    match tracker.begin(ByteRange::at(4096, 4096), IoKind::Write).unwrap() {
        Admission::Go(token) => token,
        Admission::Held => panic!("nobody has closed the gate"),
    }
}

#[test]
fn a_token_ended_twice_or_by_another_drive_is_refused_and_changes_nothing() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let other = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let (tracker, stranger) = (scene.drive.tracker(), other.drive.tracker());
    let token = begin(&tracker);
    assert_eq!(stranger.end(token, Ok(())).unwrap_err().kind(), ErrorKind::WrongState);
    tracker.end(token, Ok(())).unwrap();
    let (second, twice) = (begin(&tracker), tracker.end(token, Ok(())));
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::WrongState);
    // Of two threads that end one token at the same time both may be believed, but somebody is, and then it is over.
    let ends = thread::scope(|s| {
        let both = [(), ()].map(|()| s.spawn(|| tracker.end(second, Ok(())).is_ok()));
        both.map(|thread| thread.join().unwrap())
    });
    assert!(ends.contains(&true), "nobody has ended it");
    assert_eq!(tracker.end(second, Ok(())).unwrap_err().kind(), ErrorKind::WrongState);
    for range in [ByteRange::default(), ByteRange::at(SIZE, 1), ByteRange::at(SIZE - 1, 2)] {
        let refused = tracker.begin(range, IoKind::Write).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    let _ = scene.complete(&job, Completion::PointInTime);
}

/// A token that is never ended keeps the switch-over away, not the rest of the world.
#[test]
fn a_token_that_is_never_ended_keeps_the_job_from_completing_and_nothing_else() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let tracker = scene.drive.tracker();
    let lost = begin(&tracker);
    let guests = scene.guests();
    let job = scene.mirror(Scene::options());
    until_status(&job, JobStatus::Ready);
    job.complete(Completion::Pivot).unwrap();
    assert!(job.wait_for(Duration::from_millis(700)).is_none(), "{:?}", job.query());
    guests.go_on(20);
    assert!(job.status() == JobStatus::Ready, "{:?}", job.query());
    tracker.end(lost, Err(5)).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    guests.go_on(20);
    let _ = guests.stop();
    scene.check_target();
}

/// Scenario 10: a drive is not closed under a job, and a drive that is dropped leaves the job and the guests as they are.
#[test]
fn a_drive_dropped_with_a_running_job_leaves_job_and_guests_alive() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let guests = scene.guests();
    let queued = scene.queued_guests_with(&[GuestPlan { depth: 2, ..GuestPlan::over(SIZE, 8) }]);
    let job = scene.mirror(Scene::options());
    let Scene { engine, drive, history, source, target, .. } = scene;
    match drive.close() {
        Err((drive, refused)) => {
            assert_eq!(refused.kind(), ErrorKind::Busy);
            assert!(refused.to_string().contains("a job runs on it"), "{refused}");
            drop::<Drive>(drive);
        }
        Ok(()) => assert_eq!(WAY, Way::C, "a drive is not closed under a job"),
    }
    until_status(&job, JobStatus::Ready);
    guests.go_on(20);
    job.complete(Completion::Pivot).unwrap();
    assert_eq!(job.wait_for(Duration::from_secs(20)).unwrap().end, End::Completed);
    guests.go_on(20);
    queued.go_on(20);
    let _ = (guests.stop(), queued.stop());
    history.check_last(&target.content);
    drop((engine, source));
}

/// Scenario 17: an engine ends with its jobs in every state, throttled ones too, in bounded time; guests do not notice.
#[test]
fn an_engine_dropped_with_everything_alive_cancels_its_jobs_and_leaves_the_guests() {
    let states =
        [JobStatus::Running, JobStatus::Paused, JobStatus::Ready, JobStatus::Standby, JobStatus::Pending];
    for state in states {
        let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
        let (guests, queued) = (scene.guests(), scene.queued_guests());
        let ready = matches!(state, JobStatus::Ready | JobStatus::Standby | JobStatus::Pending);
        let options =
            MirrorOptions { auto_finalize: false, ..if ready { Scene::options() } else { slowly() } };
        let job = scene.mirror(options);
        until_status(&job, if ready { JobStatus::Ready } else { JobStatus::Running });
        match state {
            JobStatus::Paused | JobStatus::Standby => job.pause().unwrap(),
            JobStatus::Pending => job.complete(Completion::Pivot).unwrap(),
            _ => {}
        }
        until_status(&job, state);
        let Scene { engine, drive, history, source, target, .. } = scene;
        let begun = Instant::now();
        engine.shutdown();
        assert!(begun.elapsed() < Duration::from_secs(5), "{state}: {:?}", begun.elapsed());
        let outcome = job.wait_for(Duration::from_secs(1)).unwrap();
        assert_eq!(outcome.end, End::Cancelled, "{state}");
        assert!(job.complete(Completion::Pivot).is_err() && job.pause().is_err());
        guests.go_on(20);
        queued.go_on(20);
        assert_eq!(guests.failed() + queued.failed(), 0);
        let _ = (guests.stop(), queued.stop());
        history.check_last(&source.content);
        drop((drive, target));
    }
}

/// Handles that outlive what they belong to answer, too.
#[test]
fn a_job_handle_outlives_engine_and_drive() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    let tracker = scene.drive.tracker();
    let job = scene.mirror(slowly());
    drop(scene);
    assert_eq!(job.wait_for(Duration::from_secs(5)).unwrap().end, End::Cancelled);
    let _ = (job.query(), job.next_event());
    job.dismiss().unwrap();
    let token = begin(&tracker);
    tracker.end(token, Ok(())).unwrap();
}

/// An engine carries so many jobs, says so, and has room again when some are over.
#[test]
fn an_engine_that_carries_all_it_can_refuses_one_more_by_number() {
    let first = Scene::new(64 * KIB, Medium::Memory, Medium::Memory);
    let engine = &first.engine;
    let mut all = Vec::new();
    let refused = loop {
        let (source, place) = (Place::new(Medium::Memory, 64 * KIB), Place::new(Medium::Memory, 64 * KIB));
        let drive = Drive::new(Device::open_disk(&source.path).unwrap()).unwrap();
        match engine.mirror(&drive, target(&place), Scene::options()) {
            Ok(job) => all.push((job, drive, source, place)),
            Err(refused) => break refused,
        }
        assert!(all.len() <= Engine::MAX_JOBS);
    };
    assert_eq!(all.len(), Engine::MAX_JOBS);
    assert_eq!(refused.kind(), ErrorKind::QueueFull);
    assert!(refused.to_string().contains(&Engine::MAX_JOBS.to_string()), "{refused}");
    for (job, ..) in &all {
        job.cancel(Cancel::Force).unwrap();
        assert_eq!(job.wait_for(Duration::from_secs(10)).unwrap().end, End::Cancelled);
    }
    let job = engine.mirror(&first.drive, first.open_target(), Scene::options()).unwrap();
    until_status(&job, JobStatus::Ready);
}
