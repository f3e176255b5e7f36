//! What a copy costs, counted and not timed: allocations, threads, system calls.
//!
//! **Every buffer has a bound**: once a job runs, its workers allocate nothing per request, so the count does not depend on the
//! size of the disk. A counting allocator shows it, for the threads of the engine alone.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod alloc_kit;
mod follow_kit;

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkmirror_core::buffer::BufRange;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::{Admission, Drive, IoKind};
use blkmirror_core::engine::{Engine, EngineOptions, MirrorOptions, Outcome, TargetState};
use blkmirror_core::mirror::CopyMode;
use blkmirror_core::ring::uring::{UringOptions, with_ring};
use blkmirror_core::ring::{Op, Request, Ring, Tag, Wait};
use blkmirror_core::units::{ByteRange, Granularity, KIB, MIB};

use crate::alloc_kit::{Telling, allocated_here, count_here};
use crate::follow_kit::follow;

/// Whether allocations are counted, but for those of threads that have opted out.
static COUNTING: AtomicBool = AtomicBool::new(false);
/// Allocations counted.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is one of the test's own.
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Counts one.
fn count() {
    count_here();
    if COUNTING.load(Ordering::Relaxed) && !OURS.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Telling = Telling(count);

/// One test at a time: the counter and the number of threads are the whole process's. What this thread allocates is not
/// counted.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    OURS.set(true);
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory on a file system with O_DIRECT.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("blkmirror-counts").tempdir_in("/dev/shm").unwrap()
}

/// A source of `len` bytes with a hole after each 64 KiB of data, and a target full of other bytes.
fn files(dir: &Path, len: u64) {
    let source = File::create(dir.join("source")).unwrap();
    source.set_len(len).unwrap();
    for at in (0..len).step_by(128 << 10) {
        source.write_all_at(&[0x5a; 64 << 10], at).unwrap();
    }
    let target = File::create(dir.join("target")).unwrap();
    for at in (0..len).step_by(1 << 20) {
        target.write_all_at(&[0xee; 1 << 20], at).unwrap();
    }
}

/// An engine with `workers` workers.
fn engine(workers: usize) -> Engine {
    let options = EngineOptions { workers: NonZeroUsize::new(workers), ..EngineOptions::default() };
    Engine::start(options).unwrap()
}

/// Copies in `dir`.
fn copy(engine: &Engine, dir: &Path, options: &MirrorOptions) -> Outcome {
    let source = Device::open_source(&dir.join("source")).unwrap();
    let target = Device::open_target(&dir.join("target"), TargetOptions::default()).unwrap();
    let outcome = engine.copy(source, target, options.clone()).unwrap().wait();
    assert_eq!(outcome.target, TargetState::Complete, "{:?}", outcome.error);
    outcome
}

/// What the engine's threads allocate for one job.
fn allocations(engine: &Engine, dir: &Path, options: &MirrorOptions) -> u64 {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::Relaxed);
    copy(engine, dir, options);
    COUNTING.store(false, Ordering::Relaxed);
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Data, holes that are punched, a flush; the larger disk has eight times as many requests of each kind.
#[test]
fn workers_allocate_nothing_per_request() {
    let _one = alone();
    let (small, large) = (scratch(), scratch());
    files(small.path(), 8 * MIB);
    files(large.path(), 64 * MIB);
    for workers in [1, 2] {
        for zero_detect in [false, true] {
            let engine = engine(workers);
            let granularity = Granularity::new(64 * KIB).ok();
            let options = MirrorOptions { granularity, zero_detect, ..MirrorOptions::default() };
            let few = allocations(&engine, small.path(), &options);
            let many = allocations(&engine, large.path(), &options);
            println!("{workers} workers, zero detection {zero_detect}: {few} for 8 MiB, {many} for 64 MiB");
            assert!(few > 0, "nothing was counted: a job's part is allocated by its worker");
            // The thread for what blocks is started by each worker that meets a hole, which is not the same ones each time.
            let threads = 20 * u64::try_from(workers).unwrap();
            assert!(many <= few + threads, "{workers} workers, zero detection {zero_detect}: {few}, {many}");
        }
    }
}

/// Tracked requests, also those that end on another thread than they began on, while a job follows or bitmaps record and every
/// write marks its chunk: if one of them allocated, a host that has no memory left could not complete its guest's requests.
#[test]
fn begin_and_end_of_a_tracked_request_allocate_nothing_also_with_a_job_and_bitmaps() {
    let _one = alone();
    let dir = scratch();
    files(dir.path(), 8 * MIB);
    for (with_job, with_bitmaps) in [(false, false), (false, true), (true, false), (true, true)] {
        let drive = Drive::new(Device::open_source(&dir.path().join("source")).unwrap()).unwrap();
        let job = with_job.then(|| {
            let target = Device::open_target(&dir.path().join("target"), TargetOptions::default()).unwrap();
            follow(&drive, target, CopyMode::Background)
        });
        let bitmap = |name| drive.add_bitmap(name, None, true).unwrap();
        let bitmaps: Vec<_> = ["one", "two"].into_iter().filter(|_| with_bitmaps).map(bitmap).collect();
        no_tracked_request_allocates(&drive);
        assert!(bitmaps.iter().all(|bitmap| bitmap.info().dirty_bytes > MIB / 2));
        if let Some(share) = job {
            assert!(share.left_bytes() > MIB / 2, "{} bytes were marked", share.left_bytes());
        }
    }
}

/// What `work` allocates in this thread.
fn allocated_by<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = allocated_here();
    let made = work();
    (made, allocated_here() - before)
}

/// Begins and ends requests, and counts.
fn no_tracked_request_allocates(drive: &Drive) {
    let tracker = drive.tracker();
    let pass = |start: u64| {
        let Ok(Admission::Go(token)) = tracker.begin(ByteRange::at(start, KIB), IoKind::Write) else {
            unreachable!("nobody closes the gate");
        };
        token
    };
    let guest = || {
        // What a thread keeps for itself is made with its first request.
        tracker.end(pass(0), Ok(())).unwrap();
        allocated_by(|| {
            let tokens = [0; 64].map(|_| pass(KIB));
            for round in 0..10_000 {
                tracker.end(pass(round % 1000 * KIB), Ok(())).unwrap();
            }
            tokens
        })
    };
    let (tokens, allocated) = std::thread::scope(|scope| scope.spawn(guest).join().unwrap());
    assert_eq!(allocated, 0);
    tracker.end(tokens[0], Ok(())).unwrap();
    let (ended, allocated) =
        allocated_by(|| tokens[1..].iter().all(|token| tracker.end(*token, Ok(())).is_ok()));
    assert!(ended);
    assert_eq!(allocated, 0);
}

/// The counter counts: without this, a count of nothing would say nothing.
#[test]
fn an_allocation_is_counted_in_the_thread_that_makes_it() {
    let (made, allocated) = allocated_by(|| Box::new([0_u8; 100]));
    assert_eq!((made.len(), allocated), (100, 1));
}

/// The engine's threads in this process, by their names. A worker's name counts once: a thread that the kernel makes for its
/// ring bears it for a moment, too.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // A thread that ends meanwhile has no name any more.
    let names: Vec<_> =
        tasks.map(|task| name_of(&task.unwrap())).filter(|name| name.starts_with("blkm-")).collect();
    let (lanes, workers): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with("blkm-lane"));
    lanes.len() + workers.into_iter().collect::<HashSet<_>>().len()
}

/// Waits for so many engine threads: the kernel takes one off the list a moment after it has been waited for.
fn settle(count: usize, when: &str) {
    let patience = Instant::now() + Duration::from_secs(2);
    while threads() != count && Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(threads(), count, "{when}");
}

/// A thread's name.
fn name_of(task: &fs::DirEntry) -> String {
    fs::read_to_string(task.path().join("comm")).unwrap_or_default()
}

/// One for each worker, and while a job runs one beside each for what blocks. The job's end takes those away, and the end
/// of the engine the others.
#[test]
fn an_engine_has_two_threads_for_each_worker_at_most() {
    let _one = alone();
    let dir = scratch();
    files(dir.path(), 8 * MIB);
    assert_eq!(threads(), 0);
    for workers in [1, 2, 4] {
        let engine = engine(workers);
        assert_eq!(threads(), workers, "an idle engine");
        for _ in 0..3 {
            let source = Device::open_source(&dir.path().join("source")).unwrap();
            let target = Device::open_target(&dir.path().join("target"), TargetOptions::default()).unwrap();
            let job = engine.copy(source, target, MirrorOptions::default()).unwrap();
            while job.wait_for(Duration::ZERO).is_none() {
                let now = threads();
                assert!((workers..=2 * workers).contains(&now), "{now} threads of {workers} workers");
            }
            settle(workers, "after a job");
        }
        engine.shutdown();
        settle(0, "after its end");
    }
}

/// Requests are submitted and their completions collected in batches: one system call serves several.
#[test]
fn a_full_queue_needs_fewer_system_calls_than_requests() {
    let _one = alone();
    let dir = scratch();
    files(dir.path(), 8 * MIB);
    with_ring(UringOptions::new(2 * MIB), |ring| {
        let source = Arc::new(Device::open_source(&dir.path().join("source")).unwrap());
        let slot = ring.attach(&source).unwrap();
        let (pieces, depth) = (8 * MIB / (4 * KIB), 64);
        let before = ring.enters();
        let (mut sent, mut done) = (0, 0);
        while done < pieces {
            while sent < pieces && sent - done < depth {
                let start = u32::try_from(sent % depth * 4 * KIB).unwrap();
                let op = Op::Read(BufRange { start, len: 4096 });
                let request = Request { device: slot, range: ByteRange::at(sent * 4 * KIB, 4 * KIB), op };
                ring.push(request, Tag(sent)).unwrap();
                sent += 1;
            }
            let completions = (ring.in_flight() / 2).clamp(1, 32);
            ring.enter(Wait { completions, batch_ns: 1_000_000, timeout_ns: None }).unwrap();
            while let Some(completion) = ring.pop() {
                assert_eq!(completion.result, Ok(4 * KIB));
                done += 1;
            }
        }
        let enters = ring.enters() - before;
        println!("{enters} system calls for {pieces} requests");
        // A file in memory completes while it is submitted, so half a queue is the least that each call collects.
        assert!(enters <= pieces / 16, "{enters} system calls for {pieces} requests");
        ring.detach(slot);
    })
    .unwrap();
}
