//! The ring as older kernels have it: every set of flags on the ladder, with and without what came by and by.
//!
//! On a new kernel only the best set is ever used, so the others would be seen to work only by the users of old ones. What
//! a ring does without is forced here; the kernel under it stays the new one, so this shows that the code paths are
//! right, not that an old kernel takes the flags.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on; the exemption misses its helpers"
)]
#![allow(clippy::cast_possible_truncation, reason = "all numbers here are small")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_core::buffer::BufRange;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::ring::uring::{UringLimits, UringOptions, UringRing, with_ring};
use blkmirror_core::ring::{Completion, DeviceSlot, Op, Request, Ring, Tag, Wait};
use blkmirror_core::units::{ByteRange, KIB, MIB};

/// What each rung of the ladder is named after, best first.
const RUNGS: [&str; 4] = ["6.6", "6.1", "5.19", "5.15"];
/// Size of the disks here.
const SIZE: u64 = 4 * MIB;
/// Size of a request.
const PIECE: u64 = 64 * KIB;
/// Requests in flight.
const DEPTH: u64 = 16;
/// A ring that sleeps longer than this hangs.
const TOO_LONG: Duration = Duration::from_secs(5);

/// Every rung with all that the kernel has beside it, and with nothing of it.
fn all_limits() -> Vec<(&'static str, UringLimits)> {
    let mut all = Vec::new();
    for (skip_rungs, since) in RUNGS.into_iter().enumerate() {
        let rich = UringLimits { skip_rungs, ..UringLimits::default() };
        let poor = UringLimits { no_new_waits: true, no_fixed_buffer: true, no_ring_fd: true, ..rich };
        all.extend([
            (since, rich),
            (since, UringLimits { no_new_waits: true, ..rich }),
            (since, UringLimits { no_fixed_buffer: true, ..rich }),
            (since, poor),
        ]);
    }
    all
}

/// Runs `body` on a ring for each of them, on a thread of its own, as in the engine.
fn on_every_ring(body: impl Fn(&mut UringRing) + Sync) {
    for (since, limits) in all_limits() {
        let options = UringOptions { limits, ..UringOptions::new(2 * MIB) };
        let run = || {
            with_ring(options, |ring| {
                let setup = ring.setup().clone();
                println!("{limits:?}: {setup:?}");
                // A kernel older than the rung takes a lower one; this one must not take a better one.
                assert!(RUNGS.iter().position(|r| *r == setup.flags_since) >= Some(limits.skip_rungs));
                assert!(!(limits.no_new_waits && (setup.min_wait || setup.no_iowait)));
                assert!(!(limits.no_fixed_buffer && setup.fixed_buffer));
                assert!(!(limits.no_ring_fd && setup.ring_fd));
                body(ring);
                assert_eq!(ring.in_flight(), 0, "{limits:?}");
            })
            .unwrap();
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|_| panic!("{since}: {limits:?}")));
    }
}

/// A directory on a file system with O_DIRECT.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("blkmirror-ring").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Bytes that differ from block to block.
fn content() -> Vec<u8> {
    (0..SIZE).map(|at| u8::try_from((at / 512 * 37 + at) % 251).unwrap()).collect()
}

/// Waits for one completion and takes it.
#[track_caller]
fn next(ring: &mut UringRing) -> Completion {
    let start = Instant::now();
    loop {
        if let Some(completion) = ring.pop() {
            return completion;
        }
        assert!(start.elapsed() < TOO_LONG, "a request does not end");
        let wait = Wait { completions: DEPTH as usize / 2, batch_ns: 1_000_000, timeout_ns: None };
        ring.enter(wait).unwrap();
    }
}

/// Sends a request and waits for its end.
#[track_caller]
fn ask(ring: &mut UringRing, device: DeviceSlot, range: ByteRange, op: Op) -> Result<u64, i32> {
    ring.push(Request { device, range, op }, Tag(u64::MAX)).unwrap();
    next(ring).result
}

/// Copies source to target with several requests in flight, as a copier would.
fn copy(ring: &mut UringRing, source: DeviceSlot, target: DeviceSlot) {
    let place = |piece: u64| {
        let start = u32::try_from(piece % DEPTH * PIECE).unwrap();
        (ByteRange::at(piece * PIECE, PIECE), BufRange { start, len: u32::try_from(PIECE).unwrap() })
    };
    let read = |ring: &mut UringRing, piece: u64| {
        let (range, buf) = place(piece);
        ring.push(Request { device: source, range, op: Op::Read(buf) }, Tag(piece * 2)).unwrap();
    };
    (0..DEPTH).for_each(|piece| read(ring, piece));
    let mut left = SIZE / PIECE;
    while left > 0 {
        let done = next(ring);
        assert_eq!(done.result, Ok(PIECE));
        let piece = done.tag.0 / 2;
        let (range, buf) = place(piece);
        if done.tag.0.is_multiple_of(2) {
            assert!(!ring.is_zero(buf));
            ring.push(Request { device: target, range, op: Op::Write(buf) }, Tag(piece * 2 + 1)).unwrap();
        } else {
            left -= 1;
            if piece + DEPTH < SIZE / PIECE {
                read(ring, piece + DEPTH);
            }
        }
    }
}

/// The two files of a copy, on the ring.
fn attach(ring: &mut UringRing, dir: &Path) -> (DeviceSlot, DeviceSlot) {
    let source = Device::open_source(&dir.join("source")).unwrap();
    let target = Device::open_target(&dir.join("target"), TargetOptions::default()).unwrap();
    (ring.attach(&Arc::new(source)).unwrap(), ring.attach(&Arc::new(target)).unwrap())
}

#[test]
fn every_ring_copies_zeroes_and_flushes() {
    let dir = scratch();
    let mut content = content();
    fs::write(dir.path().join("source"), &content).unwrap();
    content[MIB as usize..2 * MIB as usize].fill(0);
    on_every_ring(|ring| {
        let target = dir.path().join("target");
        fs::write(&target, vec![0xee; SIZE as usize]).unwrap();
        let (from, to) = attach(ring, dir.path());
        copy(ring, from, to);
        assert_eq!(ask(ring, to, ByteRange::at(MIB, MIB), Op::Zero { punch: true }), Ok(MIB));
        assert_eq!(ask(ring, to, ByteRange::default(), Op::Flush), Ok(0));
        [from, to].into_iter().for_each(|slot| ring.detach(slot));
        assert!(fs::read(&target).unwrap() == content);
    });
}

/// A zeroed block in the copy memory is seen whether or not the memory is registered; an error comes back as an errno.
#[test]
fn every_ring_sees_zeroes_and_reports_errors() {
    let dir = scratch();
    fs::write(dir.path().join("source"), vec![0; SIZE as usize]).unwrap();
    fs::write(dir.path().join("target"), vec![1; SIZE as usize]).unwrap();
    on_every_ring(|ring| {
        let (from, to) = attach(ring, dir.path());
        let buf = BufRange { start: 0, len: 4096 };
        assert_eq!(ask(ring, to, ByteRange::at(0, 4096), Op::Read(buf)), Ok(4096));
        assert!(!ring.is_zero(buf));
        assert_eq!(ask(ring, from, ByteRange::at(0, 4096), Op::Read(buf)), Ok(4096));
        assert!(ring.is_zero(buf));
        // The source is open for reading alone.
        assert_eq!(ask(ring, from, ByteRange::at(0, 4096), Op::Write(buf)), Err(9));
        assert_eq!(ask(ring, from, ByteRange::at(SIZE, 4096), Op::Read(buf)), Ok(0));
        [from, to].into_iter().for_each(|slot| ring.detach(slot));
    });
}

#[test]
fn every_ring_is_woken_from_another_thread_and_by_its_timeout() {
    on_every_ring(|ring| {
        // A timeout alone.
        let start = Instant::now();
        ring.enter(Wait { completions: 1, batch_ns: 0, timeout_ns: Some(20_000_000) }).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
        assert!(start.elapsed() < TOO_LONG);
        // Without one, and with a batch that cannot be had.
        for completions in [1, 32] {
            for _ in 0..3 {
                let (start, waker) = (Instant::now(), ring.waker());
                let other = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(5));
                    waker.wake();
                });
                ring.enter(Wait { completions, batch_ns: 1_000_000, timeout_ns: None }).unwrap();
                assert!(start.elapsed() < TOO_LONG, "not woken");
                let slept = start.elapsed();
                other.join().unwrap();
                assert!(slept >= Duration::from_millis(5), "woken by nobody after {slept:?} ({completions})");
                assert_eq!(ring.pop(), None);
            }
        }
        // Woken before it sleeps.
        ring.waker().wake();
        let start = Instant::now();
        ring.enter(Wait { completions: 1, batch_ns: 0, timeout_ns: None }).unwrap();
        assert!(start.elapsed() < TOO_LONG);
    });
}

/// A batch that is larger than what is in flight must not be waited for.
#[test]
fn every_ring_is_content_with_fewer_completions_than_it_waits_for() {
    let dir = scratch();
    fs::write(dir.path().join("source"), content()).unwrap();
    let target = fs::File::create(dir.path().join("target")).unwrap();
    target.write_all_at(&content(), 0).unwrap();
    drop(target);
    on_every_ring(|ring| {
        let (from, to) = attach(ring, dir.path());
        for piece in 0..3 {
            let buf = BufRange { start: piece * 4096, len: 4096 };
            let request = Request {
                device: from,
                range: ByteRange::at(u64::from(piece) * 4096, 4096),
                op: Op::Read(buf),
            };
            ring.push(request, Tag(u64::from(piece))).unwrap();
        }
        let start = Instant::now();
        let mut done = 0;
        while done < 3 {
            ring.enter(Wait { completions: 32, batch_ns: 1_000_000, timeout_ns: None }).unwrap();
            done += std::iter::from_fn(|| ring.pop()).count();
            assert!(start.elapsed() < TOO_LONG);
        }
        [from, to].into_iter().for_each(|slot| ring.detach(slot));
    });
}

/// A queue's ring is as short as its depth allows; one that took more than it has room for would lose completions.
#[test]
fn a_short_ring_takes_what_it_was_made_for_and_no_more() {
    let dir = scratch();
    fs::write(dir.path().join("source"), content()).unwrap();
    for (asked, has) in [(1, 4), (4, 4), (12, 16), (100_000, 4096)] {
        let options = UringOptions { in_flight: asked, ..UringOptions::new(2 * MIB) };
        with_ring(options, |ring| {
            assert_eq!(ring.capacity(), has);
            let source = Device::open_source(&dir.path().join("source")).unwrap();
            let slot = ring.attach(&Arc::new(source)).unwrap();
            for _ in 0..3 {
                let op = Op::Read(BufRange { start: 0, len: 512 });
                let request = Request { device: slot, range: ByteRange::at(0, 512), op };
                let taken = (0..5000).take_while(|&n| ring.push(request, Tag(n)).is_ok()).count();
                assert_eq!(taken, has);
                (0..has).for_each(|_| assert_eq!(next(ring).result, Ok(512)));
                assert!(ring.pop().is_none() && ring.in_flight() == 0);
            }
            ring.detach(slot);
        })
        .unwrap();
    }
}
