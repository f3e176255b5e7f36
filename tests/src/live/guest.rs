//! Guests: threads that write to a disk until they are told to stop.
//!
//! They stop when [`Guests`] is dropped, too, so a test that fails does not hang.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::api::buffer::AlignedBuf;
use crate::api::drive::{Admission, Drive, IoKind, Tracker};
use crate::api::units::ByteRange;

use super::history::{History, Kind, Write, stamp};
use super::queued::Queued;

/// Around the page cache.
const O_DIRECT: i32 = nix::libc::O_DIRECT;
/// Longer than any switch-over of a test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What one guest does.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// Where chance begins.
    pub seed: u64,
    /// Where it writes; ends before `end_bytes`.
    pub start_bytes: u64,
    /// Where its area ends.
    pub end_bytes: u64,
    /// Offsets and lengths are multiples of this.
    pub align_bytes: u64,
    /// The longest write.
    pub max_bytes: u64,
    /// Between two writes.
    pub rest: Duration,
    /// Requests that a queue's guest has under way at most.
    pub depth: usize,
    /// Of 100 requests of a queue's guest so many write zeroes.
    pub zeroes_percent: u64,
}

impl GuestPlan {
    /// Writes of 4 to 16 KiB all over the first `len_bytes`, some hundred a second.
    #[must_use]
    pub const fn over(len_bytes: u64, seed: u64) -> Self {
        Self {
            seed,
            start_bytes: 0,
            end_bytes: len_bytes,
            align_bytes: 4096,
            max_bytes: 16 << 10,
            rest: Duration::from_micros(500),
            depth: 4,
            zeroes_percent: 0,
        }
    }

    /// With another time between two writes.
    #[must_use]
    pub const fn resting(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// The next range, and the next state of chance.
    pub(super) fn next(&self, chance: &mut Chance) -> ByteRange {
        let blocks = (self.end_bytes - self.start_bytes) / self.align_bytes;
        let len = 1 + chance.below((self.max_bytes / self.align_bytes).min(blocks));
        let start = chance.below(blocks - len + 1);
        ByteRange::at(self.start_bytes + start * self.align_bytes, len * self.align_bytes)
    }
}

/// Chance, from a seed.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// From `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % end
    }
}

/// What the threads share with whoever started them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// They are to stop.
    stop: AtomicBool,
    /// Writes that succeeded.
    written: AtomicU64,
    /// Writes that failed.
    failed: AtomicU64,
    /// The longest time that a write took, being held included.
    longest_ns: AtomicU64,
}

impl Shared {
    /// Whether they are to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts a write that began then.
    pub(super) fn count(&self, begun: Instant, ok: bool) {
        let taken_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap();
        self.longest_ns.fetch_max(taken_ns, Ordering::Relaxed);
        let counter = if ok { &self.written } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Guests that write.
#[derive(Debug)]
pub struct Guests {
    /// For both sides.
    shared: Arc<Shared>,
    /// The guests.
    threads: Vec<JoinHandle<()>>,
}

impl Guests {
    /// Guests that write to the files at `disks` and tell the drive of it; which of them is said by the drive's device number.
    ///
    /// # Panics
    /// When a file cannot be opened.
    #[must_use]
    pub fn tracked(drive: &Drive, disks: &[PathBuf], history: &Arc<History>, plans: &[GuestPlan]) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = plans.iter().map(|plan| {
            let guest = Tracked {
                tracker: drive.tracker(),
                disks: disks.iter().map(|path| direct(path)).collect(),
                history: Arc::clone(history),
                plan: plan.clone(),
                log: Vec::new(),
            };
            let shared = Arc::clone(&shared);
            thread::spawn(move || guest.run(&shared))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Guests that write through queues of the drive.
    ///
    /// # Panics
    /// When a queue cannot be made.
    #[must_use]
    pub fn queued(drive: &Drive, history: &Arc<History>, plans: &[GuestPlan]) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = plans.iter().map(|plan| {
            let guest = Queued::new(drive, history, plan);
            let shared = Arc::clone(&shared);
            thread::spawn(move || guest.run(&shared))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Writes that succeeded so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Writes that failed so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// The longest time that a write took.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_ns.load(Ordering::Relaxed))
    }

    /// Waits until so many more writes have succeeded: guest I/O goes on.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn go_on(&self, writes: u64) {
        let (wanted, end) = (self.written() + writes, Instant::now() + PATIENCE);
        while self.written() < wanted {
            assert!(Instant::now() < end, "guest writes do not go on");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops them and returns how many writes succeeded.
    ///
    /// # Panics
    /// When a guest panicked.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.written()
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Opens a disk as a VMM does.
fn direct(path: &Path) -> File {
    let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(path);
    open(O_DIRECT).or_else(|_| open(0)).unwrap()
}

/// A guest of a host that does its own I/O.
struct Tracked {
    /// Tells the drive.
    tracker: Tracker,
    /// Where the drive stands at first, and after a pivot.
    disks: Vec<File>,
    /// Takes down what was written.
    history: Arc<History>,
    /// What it does.
    plan: GuestPlan,
    /// What it has done.
    log: Vec<Write>,
}

impl Tracked {
    /// Writes until it is told to stop.
    fn run(mut self, shared: &Shared) {
        let mut chance = Chance::new(self.plan.seed);
        let longest = usize::try_from(self.plan.max_bytes).unwrap();
        let mut buffer = AlignedBuf::new(longest, 4096).unwrap();
        while !shared.is_stopped() {
            let range = self.plan.next(&mut chance);
            let begun = Instant::now();
            let data = &mut buffer[..usize::try_from(range.len()).unwrap()];
            if let Some(write) = self.write(range, data, shared) {
                shared.count(begun, write.ok);
                self.log.push(write);
            }
            if !self.plan.rest.is_zero() {
                thread::sleep(self.plan.rest);
            }
        }
        self.history.add(&self.log);
    }

    /// One write, once it is let in; `None` when it is to stop before that.
    fn write(&self, range: ByteRange, data: &mut [u8], shared: &Shared) -> Option<Write> {
        let end = Instant::now() + PATIENCE;
        let token = loop {
            match self.tracker.begin(range, IoKind::Write).unwrap() {
                Admission::Go(token) => break token,
                Admission::Held if shared.is_stopped() => return None,
                Admission::Held => assert!(Instant::now() < end, "the gate stays closed"),
            }
            let _ = self.tracker.wait_open(Duration::from_millis(50));
        };
        let number = self.history.tick();
        stamp(number, range.start(), data);
        let disk = &self.disks[usize::try_from(token.device_number()).unwrap()];
        let result = disk.write_all_at(data, range.start());
        let ended = self.history.tick();
        let errno = result.as_ref().map_err(|e| e.raw_os_error().unwrap_or(super::EIO));
        self.tracker.end(token, errno.map(|&()| ())).unwrap();
        Some(Write { number, ended, inside: true, range, kind: Kind::Data, ok: result.is_ok() })
    }
}
