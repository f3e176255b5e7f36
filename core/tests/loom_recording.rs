//! Every interleaving of writes that end with bitmaps that are enabled and disabled, and with a job that comes and goes on one.
//!
//! Run with `make loom`. The models use the real `Watchers` and `DirtyBitmap`. Data is accessed with the weakest order, so that
//! nothing but the marks orders it. Each is also run with its protocol broken, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::bitmap::DirtyBitmap;
use blkmirror_core::drive::{Follows, Watchers};
use blkmirror_core::units::{ByteRange, Chunk, Granularity};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;

use crate::loom_kit::{check, chunks};

/// The bits of bitmaps and jobs, which are not the model's own.
type Bits = std::sync::Arc<DirtyBitmap>;

/// How the protocol is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// A write looks who is to be told before it reaches the disk.
    LooksFirst,
    /// The host reads the disk before the bitmap is enabled.
    EnablesLate,
    /// The host does not wait for who has looked already when it disables.
    DoesNotWait,
    /// A bitmap is taken out before its job comes.
    OutThenIn,
    /// A bitmap comes back only after its job has gone.
    GoneThenBack,
    /// What a job works with is recorded besides.
    RecordedBesides,
}

/// A job.
#[derive(Debug)]
struct Job {
    /// What it works with.
    bits: Bits,
}

impl Follows for Job {
    fn works_with(&self) -> &Bits {
        &self.bits
    }
}

/// A drive of one chunk.
struct Drive {
    watchers: Watchers<Job>,
    data: AtomicU64,
    broken: Broken,
}

/// A bitmap for it.
fn bits() -> Bits {
    std::sync::Arc::new(DirtyBitmap::new(1024, Granularity::new(512).unwrap()).unwrap())
}

impl Drive {
    fn new(broken: Broken) -> Arc<Self> {
        Arc::new(Self { watchers: Watchers::default(), data: AtomicU64::new(0), broken })
    }

    /// A bitmap of the drive.
    fn add(&self, name: &str, records: bool) -> Bits {
        let bits = bits();
        self.watchers.add(name, &bits).unwrap();
        self.watchers.record(&bits, records);
        bits
    }

    /// The end of a write: what it went through to the other side is not marked by its job.
    fn ended(&self, both: Option<&std::sync::Arc<Job>>) {
        self.watchers.after_write(ByteRange::new(0, 512), |job| {
            if both.is_none_or(|both| !std::sync::Arc::ptr_eq(both, job)) {
                job.bits.set(chunks(0, 1));
            }
        });
    }

    /// A guest writes.
    fn guest_writes(&self, value: u64) {
        if self.broken == Broken::LooksFirst {
            self.ended(None);
        }
        self.data.store(value, Relaxed);
        if self.broken != Broken::LooksFirst {
            self.ended(None);
        }
    }

    /// A job with these bits comes.
    fn attach(&self, bits: &Bits) -> std::sync::Arc<Job> {
        let job = std::sync::Arc::new(Job { bits: std::sync::Arc::clone(bits) });
        if self.broken == Broken::OutThenIn {
            self.watchers.record(bits, false);
        }
        self.watchers.attach(std::sync::Arc::clone(&job)).unwrap();
        job
    }

    /// It goes.
    fn detach(&self, bits: &Bits) {
        if self.broken == Broken::GoneThenBack {
            self.watchers.record(bits, false);
        }
        self.watchers.detach();
        if matches!(self.broken, Broken::GoneThenBack | Broken::OutThenIn) {
            self.watchers.record(bits, true);
        }
    }
}

/// Runs guests on threads of their own, `own` on this one, and waits for all.
fn beside(drive: &Arc<Drive>, guests: u64, own: impl FnOnce(&Drive)) {
    let threads: Vec<_> = (1..=guests)
        .map(|value| {
            let drive = Arc::clone(drive);
            thread::spawn(move || drive.guest_writes(value))
        })
        .collect();
    own(drive);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A bitmap is enabled beside writes, alone or beside another: what the host reads then is what the disk holds, or it is in the
/// bitmap.
fn enable_beside_writes(guests: u64, another: bool, broken: Broken) {
    check(Some(3), move || {
        let drive = Drive::new(broken);
        let _other = another.then(|| drive.add("other", true));
        let bitmap = drive.add("bitmap", false);
        let copy = Arc::new(AtomicU64::new(0));
        let (read, enabled) = (Arc::clone(&copy), std::sync::Arc::clone(&bitmap));
        beside(&drive, guests, move |drive| {
            let early = drive.data.load(Relaxed);
            drive.watchers.record(&enabled, true);
            let late = if drive.broken == Broken::EnablesLate { early } else { drive.data.load(Relaxed) };
            read.store(late, Relaxed);
        });
        let equal = copy.load(Relaxed) == drive.data.load(Relaxed);
        assert!(equal || bitmap.test(Chunk(0)), "a write was recorded by nobody");
    });
}

#[test]
fn every_write_that_ends_after_a_bitmap_was_enabled_is_recorded() {
    enable_beside_writes(2, false, Broken::No);
    enable_beside_writes(1, true, Broken::No);
}

#[test]
#[should_panic(expected = "a write was recorded by nobody")]
fn a_host_that_reads_before_the_bitmap_is_enabled_is_noticed() {
    enable_beside_writes(1, false, Broken::EnablesLate);
}

#[test]
#[should_panic(expected = "a write was recorded by nobody")]
fn a_write_that_looks_before_it_reaches_the_disk_is_noticed() {
    enable_beside_writes(1, false, Broken::LooksFirst);
}

/// A bitmap is disabled beside writes, and another one before it, whose pair somebody may still have: it stands still.
fn disable_beside_writes(broken: Broken) {
    check(Some(3), move || {
        let drive = Drive::new(broken);
        let (bitmap, other) = (drive.add("bitmap", true), drive.add("other", false));
        let seen = Arc::new(AtomicU64::new(0));
        let (disabled, told) = (std::sync::Arc::clone(&bitmap), Arc::clone(&seen));
        beside(&drive, 1, move |drive| {
            drive.watchers.record(&other, true);
            if drive.broken == Broken::DoesNotWait {
                // As it is without the wait.
                drive.watchers.remove(&disabled);
            } else {
                drive.watchers.record(&disabled, false);
            }
            told.store(1 + u64::from(disabled.test(Chunk(0))), Relaxed);
        });
        assert_eq!(seen.load(Relaxed), 1 + u64::from(bitmap.test(Chunk(0))), "it did not stand still");
    });
}

#[test]
fn a_disabled_bitmap_stands_still() {
    disable_beside_writes(Broken::No);
}

#[test]
#[should_panic(expected = "it did not stand still")]
fn a_host_that_does_not_wait_for_who_has_looked_is_noticed() {
    disable_beside_writes(Broken::DoesNotWait);
}

/// A job comes on a bitmap that records, copies the chunk if it is dirty, and goes: what it copied is what the disk holds, or the
/// bitmap says so.
fn job_comes_and_goes(guests: u64, broken: Broken) {
    check(Some(3), move || {
        let drive = Drive::new(broken);
        let bitmap = drive.add("bitmap", true);
        let copy = Arc::new(AtomicU64::new(0));
        let (target, bits) = (Arc::clone(&copy), std::sync::Arc::clone(&bitmap));
        beside(&drive, guests, move |drive| {
            drive.attach(&bits);
            if bits.clear(chunks(0, 1)) > 0 {
                target.store(drive.data.load(Relaxed), Relaxed);
            }
            drive.detach(&bits);
        });
        let equal = copy.load(Relaxed) == drive.data.load(Relaxed);
        assert!(equal || bitmap.test(Chunk(0)), "a write was marked by nobody");
        assert_eq!(bitmap.counted(), bitmap.count(), "somebody changed bits and did not count");
    });
}

#[test]
fn a_job_that_comes_and_goes_on_a_bitmap_that_records_leaves_no_gap() {
    job_comes_and_goes(1, Broken::No);
    job_comes_and_goes(2, Broken::No);
}

#[test]
#[should_panic(expected = "a write was marked by nobody")]
fn a_bitmap_that_is_taken_out_before_its_job_comes_is_noticed() {
    job_comes_and_goes(1, Broken::OutThenIn);
}

#[test]
#[should_panic(expected = "a write was marked by nobody")]
fn a_bitmap_that_comes_back_after_its_job_has_gone_is_noticed() {
    job_comes_and_goes(1, Broken::GoneThenBack);
}

/// Once a job is attached, nobody but the job changes what it works with: its home may sleep on that. A write that went to both
/// sides leaves no mark while its job is there.
fn only_the_job_marks(broken: Broken) {
    check(Some(3), move || {
        let drive = Drive::new(broken);
        let bitmap = drive.add("bitmap", true);
        let (own, other) = (Arc::clone(&drive), Arc::clone(&drive));
        // A straggler: it ends while the job comes.
        let early = thread::spawn(move || own.watchers.after_write(ByteRange::new(0, 512), |_| ()));
        let job = drive.attach(&bitmap);
        let found = bitmap.test(Chunk(0));
        let both = thread::spawn(move || {
            if other.broken == Broken::RecordedBesides {
                other.ended(None);
            } else {
                other.ended(Some(&job));
            }
        });
        both.join().unwrap();
        early.join().unwrap();
        assert_eq!(bitmap.test(Chunk(0)), found, "somebody else changed the job's bitmap");
    });
}

#[test]
fn nobody_but_the_job_marks_what_it_works_with() {
    only_the_job_marks(Broken::No);
}

#[test]
#[should_panic(expected = "somebody else changed the job's bitmap")]
fn a_write_to_both_sides_that_is_marked_all_the_same_is_noticed() {
    only_the_job_marks(Broken::RecordedBesides);
}
