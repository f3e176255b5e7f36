//! What a drive promises to hosts and jobs, without a queue and without an engine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::core::DriveCore;
use super::follower::Follower;
use super::{Admission, IoKind, PASSES, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Share};
use crate::ring::Wake;
use crate::units::{ByteRange, Chunk, GIB, KIB, MIB};

/// Bytes of the drive.
const DISK: u64 = GIB;

/// Counts how often it is woken.
#[derive(Debug, Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A drive on a device that is a name.
fn drive() -> Arc<DriveCore<&'static str>> {
    DriveCore::new(Arc::new("source"), DISK, 512, true)
}

/// A job in background mode with nothing to do, and its home.
fn follower() -> (Arc<Follower<&'static str>>, Arc<Woken>) {
    let shape =
        DeviceShape { size_bytes: DISK, align_bytes: 512, max_request_bytes: MIB, ..DeviceShape::default() };
    let options = MirrorOptions::default();
    let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let share = Arc::new(Share::new(geometry, &options, bitmaps, false, 1));
    let home = Arc::new(Woken::default());
    let waker: Arc<dyn Wake> = Arc::<Woken>::clone(&home);
    (Arc::new(Follower { share, target: Arc::new("target"), home: waker }), home)
}

/// A write of 4 KiB that was let in.
fn begin(drive: &DriveCore<&'static str>, start: u64, kind: IoKind) -> Token {
    match drive.begin(ByteRange::at(start, 4 * KIB), kind, || 1).unwrap() {
        Admission::Go(token) => token,
        Admission::Held => panic!("the gate is closed"),
    }
}

/// Ends a request well.
fn end(drive: &DriveCore<&'static str>, token: Token) -> Result<()> {
    drive.end(token, Ok(()), || 1)
}

/// The kind of error that something failed with.
fn kind<T: std::fmt::Debug>(result: std::result::Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn every_write_that_ends_under_a_job_is_marked_whatever_its_result_and_no_read_is() {
    let (drive, (follower, _)) = (drive(), follower());
    let dirty = || follower.share.dirty.dirty_bytes() / follower.share.geometry.granularity.bytes();
    let before = begin(&drive, 0, IoKind::Write);
    drive.attach(Arc::clone(&follower)).unwrap();
    end(&drive, before).unwrap();
    assert_eq!(dirty(), 1, "a write that began before the job attached");
    let read = begin(&drive, 10 * MIB, IoKind::Read);
    end(&drive, read).unwrap();
    assert_eq!(dirty(), 1);
    for (number, kind) in [IoKind::Write, IoKind::WriteZeroes, IoKind::Discard].into_iter().enumerate() {
        let token = begin(&drive, (number as u64 + 1) * 20 * MIB, kind);
        drive.end(token, Err(libc::EIO), || 1).unwrap();
        assert_eq!(dirty(), 2 + number as u64, "{kind:?}");
    }
    drive.detach();
    let after = begin(&drive, 500 * MIB, IoKind::Write);
    end(&drive, after).unwrap();
    assert_eq!(dirty(), 4);
}

#[test]
fn a_home_that_sleeps_is_woken_by_the_first_mark() {
    let (drive, (follower, home)) = (drive(), follower());
    drive.attach(Arc::clone(&follower)).unwrap();
    follower.share.doorbell.arm();
    for _ in 0..3 {
        let token = begin(&drive, 0, IoKind::Write);
        end(&drive, token).unwrap();
    }
    assert_eq!(home.0.load(Ordering::Relaxed), 1);
    drive.written_beside(ByteRange::at(MIB, 512), &follower);
    assert!(!follower.share.dirty.test(Chunk(16)), "its own follower knows of the write already");
}

#[test]
fn a_second_job_is_busy_and_a_detached_one_is_freed() {
    let drive = drive();
    let (first, _) = follower();
    let freed: Weak<_> = Arc::downgrade(&first.share);
    drive.attach(first).unwrap();
    assert_eq!(kind(drive.attach(follower().0)), ErrorKind::Busy);
    let token = begin(&drive, 0, IoKind::Write);
    end(&drive, token).unwrap();
    assert!(freed.upgrade().unwrap().dirty.test(Chunk(0)));
    drive.detach();
    assert!(freed.upgrade().is_none(), "somebody keeps the old job");
    drive.attach(follower().0).unwrap();
}

#[test]
fn a_pivot_needs_a_closed_and_quiet_gate() {
    let drive = drive();
    let token = begin(&drive, 0, IoKind::Write);
    assert_eq!(kind(drive.pivot(Arc::new("target"), true)), ErrorKind::WrongState);
    drive.close_gate();
    assert_eq!(kind(drive.pivot(Arc::new("target"), true)), ErrorKind::WrongState);
    assert_eq!((*drive.place().device, drive.device_number()), ("source", 0));
    end(&drive, token).unwrap();
    let generation = drive.generation();
    drive.pivot(Arc::new("target"), false).unwrap();
    drive.open_gate();
    let place = drive.place();
    assert_eq!((*place.device, drive.device_number(), place.writable), ("target", 1, false));
    assert_ne!(drive.generation(), generation);
    let token = begin(&drive, 0, IoKind::Read);
    assert_eq!(token.device_number(), 1);
    end(&drive, token).unwrap();
}

#[test]
fn queues_are_woken_when_they_must_look_again_and_forgotten_when_they_are_gone() {
    let drive = drive();
    let queue = Arc::new(Woken::default());
    let waker: Arc<dyn Wake> = Arc::<Woken>::clone(&queue);
    drive.add_waker(&waker);
    drive.attach(follower().0).unwrap();
    drive.close_gate();
    drive.pivot(Arc::new("target"), true).unwrap();
    drive.detach();
    drive.open_gate();
    assert_eq!(queue.0.load(Ordering::Relaxed), 4);
    drop(waker);
    drive.open_gate();
    assert_eq!(Arc::strong_count(&queue), 1);
}

/// Whether a descriptor is readable.
fn is_readable(drive: &DriveCore<&'static str>) -> bool {
    let fd = drive.opened_fd().unwrap();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn held_requests_wake_up_when_the_gate_opens() {
    let drive = drive();
    assert!(is_readable(&drive) && drive.wait_open(Duration::ZERO));
    drive.close_gate();
    let held = drive.begin(ByteRange::at(0, 512), IoKind::Write, || 1).unwrap();
    assert_eq!(held, Admission::Held);
    assert!(!is_readable(&drive) && !drive.wait_open(Duration::from_millis(1)));
    std::thread::scope(|scope| {
        let waits = [Duration::from_secs(20), Duration::MAX];
        let drive = &drive;
        let hosts = waits.map(|time| scope.spawn(move || drive.wait_open(time)));
        std::thread::sleep(Duration::from_millis(5));
        drive.open_gate();
        assert!(hosts.into_iter().all(|host| host.join().unwrap()));
    });
    assert!(is_readable(&drive));
    drive.open_gate();
    drive.close_gate();
    assert!(!is_readable(&drive), "opened twice, closed once");
}

#[test]
fn who_leaves_a_closed_gate_wakes_the_home_that_waits_for_it() {
    let (drive, (follower, home)) = (drive(), follower());
    drive.attach(follower).unwrap();
    let token = begin(&drive, 0, IoKind::Read);
    drive.close_gate();
    assert_eq!(home.0.load(Ordering::Relaxed), 0);
    end(&drive, token).unwrap();
    assert!(home.0.load(Ordering::Relaxed) == 1 && drive.is_quiet(false));
}

/// A host in C keeps its tokens as plain numbers, and may spoil them.
#[test]
fn a_token_survives_as_numbers_and_spoilt_ones_are_refused() {
    let drive = drive();
    for kind in [IoKind::Read, IoKind::Write, IoKind::WriteZeroes, IoKind::Discard] {
        let token = begin(&drive, 8 * KIB, kind);
        assert_eq!(drive.token_of_words(token.to_words()), Some(token));
        end(&drive, drive.token_of_words(token.to_words()).unwrap()).unwrap();
    }
    let words = begin(&drive, 8 * KIB, IoKind::Write).to_words();
    for (at, spoilt) in [(2, u64::MAX), (3, 0), (3, DISK + 1), (4, 5), (4, u64::MAX)] {
        let mut words = words;
        words[at] = spoilt;
        assert_eq!(drive.token_of_words(words), None, "{at}: {spoilt}");
    }
    // Any number is a pass that is not under way, or the very one.
    for pass in [0, 1, u64::MAX, words[1] ^ 1, words[1].wrapping_add(1 << 40)] {
        let mut words = words;
        words[1] = pass;
        assert_eq!(kind(end(&drive, drive.token_of_words(words).unwrap())), ErrorKind::WrongState);
    }
    end(&drive, drive.token_of_words(words).unwrap()).unwrap();
}

#[test]
fn a_token_that_is_ended_twice_or_belongs_elsewhere_changes_nothing() {
    let (drive, other, (follower, _)) = (drive(), drive(), follower());
    let token = begin(&drive, 0, IoKind::Write);
    let foreign = begin(&other, 0, IoKind::Write);
    end(&drive, token).unwrap();
    drive.attach(Arc::clone(&follower)).unwrap();
    let next = begin(&drive, 0, IoKind::Read);
    assert_eq!(kind(end(&drive, token)), ErrorKind::WrongState);
    assert_eq!(kind(end(&drive, foreign)), ErrorKind::WrongState);
    assert!(follower.share.dirty.is_clean(), "a refused token marked something");
    drive.close_gate();
    assert!(!drive.is_quiet(false) && !other.is_quiet(false));
    end(&drive, next).unwrap();
    end(&other, foreign).unwrap();
    assert!(drive.is_quiet(false) && other.is_quiet(false));
}

#[test]
fn bad_ranges_and_one_request_too_many_are_refused() {
    let drive = drive();
    for range in [ByteRange::at(5, 0), ByteRange::at(DISK - 1, 2), ByteRange::new(DISK, u64::MAX)] {
        assert_eq!(kind(drive.begin(range, IoKind::Write, || 1)), ErrorKind::InvalidArgument);
    }
    let odd = drive.begin(ByteRange::at(DISK - 1, 1), IoKind::Write, || 1).unwrap();
    assert!(matches!(odd, Admission::Go(_)));
    let _lost: Vec<_> = (1..PASSES).map(|_| begin(&drive, 0, IoKind::Write)).collect();
    assert_eq!(kind(drive.begin(ByteRange::at(0, 1), IoKind::Write, || 1)), ErrorKind::QueueFull);
}

#[test]
fn latencies_are_kept_apart_with_and_without_a_job_and_failures_are_not_counted() {
    let drive = drive();
    let run = |result: std::result::Result<(), i32>, ns: u64| {
        for _ in 0..8000 {
            let range = ByteRange::at(0, 512);
            let Ok(Admission::Go(token)) = drive.begin(range, IoKind::Read, || 5) else { panic!("held") };
            drive.end(token, result, || 5 + ns).unwrap();
        }
    };
    run(Ok(()), 10_000);
    run(Err(libc::EIO), 77_000_000);
    drive.attach(follower().0).unwrap();
    run(Ok(()), 50_000);
    for (with_job, expected) in [(false, 10_000_u64), (true, 50_000)] {
        let counts = drive.latencies(with_job).snapshot();
        assert!(counts.count() > 50, "{counts:?}");
        for q in [0.0, 1.0] {
            assert!(counts.quantile_ns(q).abs_diff(expected) < expected / 30, "{counts:?}");
        }
    }
}
