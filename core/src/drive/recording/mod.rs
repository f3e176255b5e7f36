//! Who is told of a guest's writes: the job that follows the drive, and the bitmaps that record for the host.
//!
//! | file | idea |
//! |---|---|
//! | this one | one pointer for all of them, and why no write falls between two |
//! | `bitmap` | the host's handle of a bitmap, and what it does to one by hand |
//!
//! It may assume that [`Watchers::after_write`] is called after a write has ended, whatever its result, with its pass in hand and
//! before the guest hears of it (*Mark after, before the ack*), and that bits of a bitmap which a job holds
//! (`bitmap/hold.rs`) are changed by that job alone, and by who records into it until [`Watchers::attach`] returns.
//!
//! # One look
//!
//! A write that ends looks once, at one pointer, and finds a pair that belongs together: the job, and the bitmaps that record
//! beside it. Whatever changes, the job or a bitmap, replaces the pair as a whole; with neither there is no pair, and a write
//! finds what it would find on a drive without bitmaps. The memory order is that of [`Attached`]: *Tracked from birth* holds for
//! a bitmap that is enabled as for a job that attaches. When [`Watchers::record`] returns, a write that ends later is recorded,
//! and one that was not is visible to the reads of whoever enabled it.
//!
//! Who has looked may be late with his mark. Where that matters, the one who replaces the pair waits until nobody has an old one
//! any more (a mark takes some nanoseconds, and takes no lock): when a bitmap is disabled, so that it stands still from then on,
//! and when a job attaches, so that nobody else marks what it works with.
//!
//! # A bitmap that records and that a job works with
//!
//! The job clears a bit when it is about to copy the chunk, and marks through its [`Share`](crate::mirror::Share) what guests
//! write. Would the recorder mark such a bitmap besides, a write-blocking write would leave its own chunk dirty, and no such job
//! would ever be done. Would it not be recorded while a job comes or goes, a write could be marked by nobody. So the bitmap
//! leaves the pair in the very store that brings its job in, and comes back in the one that takes the job out. Call the bitmap W,
//! its job J; a write ends, and finds
//!
//! - *the pair before J*: it is recorded in W. J counts on what is in W, and the bitmap counts for whoever changes it
//!   (`bitmap/changes.rs`), so J knows of it whenever it came. J's home may only sleep on a W that nobody changes without ringing
//!   its bell (*No dirty chunk is slept over*): so `attach` waits for the last who has an old pair, and no worker begins before it
//!   returns.
//! - *J*: J marks it (background, `Share::guest_wrote`), or knows that both sides have it, or marks it for its error
//!   (write-blocking, `Share::end_active`). What counts is the job found at the end and not the one known at the beginning: a
//!   write that J had sent to both sides and that ends while J is attached is J's alone; W is not in the pair.
//! - *the pair after J*, with W in it: it is recorded in W, also a write that J had sent to both sides and that ends only now.
//!   That happens to jobs that failed or were cancelled, whose target is no copy of any moment; one mark too many is right. A job
//!   that completes is detached behind the gate, closed and quiet (*Zero is decided behind the gate*): no write is between its
//!   look and its mark, and none that began under J ends after it.
//! - *another job*, K: K marks its own bitmap, and W is recorded. K's own bitmap cannot be W while somebody is left who changes
//!   bits in the name of J: the hold of J goes on until J's workers are gone and its last active write has ended, and a queue
//!   that still has J in its hands and comes too late is refused (`Hold::enter`). So nobody clears a bit of W in J's name after
//!   the host, or K, has W.
//!
//! A pivot changes nothing here. Bitmaps belong to the drive and not to the device, and the drive moves behind the closed gate,
//! before its job is taken out of the pair. So after J, W says: what J did not copy, and everything that changed since the moment
//! that the target is a copy of, which with a pivot is the moment of the pivot. All other bitmaps record as if there were no job.
//!
//! A queue whose ring broke marks what the kernel may still have twice: when it is lost, and when the kernel has let go of it.
//! Should that never be seen, a write may land after its only mark, and a bitmap that was cleared in between does not know of it;
//! such a write never leaves the gate (`drive/queue/end.rs`), and its host was told that it failed.
#![forbid(unsafe_code)]

mod bitmap;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::sync::{Arc, PoisonError};

pub use bitmap::{Bitmap, BitmapInfo};

use super::follower::{Attached, Replaced};
use crate::bitmap::DirtyBitmap;
use crate::bitmap::sync::{Mutex, MutexGuard, yield_now};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::Mutation;
use crate::units::ByteRange;

/// Bitmaps that a drive has at most: each write that ends goes through all that record.
pub const MAX_BITMAPS: usize = 64;

/// A job, as far as this needs to know it.
pub trait Follows {
    /// The bitmap that it marks.
    fn works_with(&self) -> &Arc<DirtyBitmap>;

    /// Whether the protocol is broken on purpose in this way.
    fn breaks(&self, mutation: Mutation) -> bool {
        let _ = mutation;
        false
    }
}

/// What a write that has ended finds.
#[derive(Debug)]
struct Told<F> {
    /// The job that follows.
    follower: Option<Arc<F>>,
    /// What is recorded besides: never what the job works with.
    bitmaps: Box<[Arc<DirtyBitmap>]>,
}

/// A bitmap of the drive.
#[derive(Debug)]
struct Listed {
    /// What the host calls it.
    name: String,
    /// The bits.
    bits: Arc<DirtyBitmap>,
    /// It records, by itself or through the job that works with it.
    records: bool,
}

/// Who is to be told.
#[derive(Debug)]
struct Registry<F> {
    /// The job that follows.
    follower: Option<Arc<F>>,
    /// The drive's bitmaps.
    bitmaps: Vec<Listed>,
    /// What was published before, and may still be in somebody's hands.
    replaced: Vec<Replaced<Told<F>>>,
}

impl<F> Registry<F> {
    /// The entry of a bitmap.
    fn listed(&mut self, bits: &Arc<DirtyBitmap>) -> Option<&mut Listed> {
        self.bitmaps.iter_mut().find(|listed| Arc::ptr_eq(&listed.bits, bits))
    }
}

/// Who is told of a drive's writes; see the module.
#[derive(Debug)]
pub struct Watchers<F> {
    /// What writes find.
    told: Attached<Told<F>>,
    /// What it is made from. A lock of the control path; whoever holds it takes no other.
    registry: Mutex<Registry<F>>,
}

impl<F> Default for Watchers<F> {
    fn default() -> Self {
        let registry = Registry { follower: None, bitmaps: Vec::new(), replaced: Vec::new() };
        Self { told: Attached::default(), registry: Mutex::new(registry) }
    }
}

impl<F: Follows> Watchers<F> {
    // ---- requests ----

    /// A write of `range` has ended, and nobody has heard of it yet: tells the job by `mark`, and records it.
    #[inline]
    pub fn after_write(&self, range: ByteRange, mark: impl FnOnce(&Arc<F>)) {
        self.told.after_write(|told| {
            if let Some(follower) = &told.follower {
                mark(follower);
            }
            for bitmap in &told.bitmaps {
                bitmap.set_bytes(range);
            }
        });
    }

    /// The job that follows now.
    pub fn follower(&self) -> Option<Arc<F>> {
        self.told.look(|told| told.and_then(|told| told.follower.clone()))
    }

    // ---- jobs ----

    /// A job comes: when this returns, writes that end find it, and the bitmap that it works with is changed by nobody else. The
    /// caller sees to it that there is one at a time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when that bitmap records another drive's writes.
    pub fn attach(&self, follower: Arc<F>) -> Result<()> {
        let works_with = Arc::clone(follower.works_with());
        // It is held, so it is not enabled or disabled now; but its last handle may be dropped.
        let usage = works_with.usage();
        let mut registry = self.registry();
        let records = registry.listed(&works_with).is_some_and(|listed| listed.records);
        if usage.recording && !records {
            return Err(Error::new(ErrorKind::InvalidArgument, "use the working bitmap").because(
                "it records the writes of another drive, which say nothing about this one; disable it first",
            ));
        }
        registry.follower = Some(follower);
        self.publish(&mut registry);
        self.settle(&mut registry);
        Ok(())
    }

    /// The job goes. What it worked with is recorded from here on, if it was before.
    pub fn detach(&self) {
        let mut registry = self.registry();
        let Some(follower) = registry.follower.take() else { return };
        if follower.breaks(Mutation::RecordingNotResumed)
            && let Some(listed) = registry.listed(follower.works_with())
        {
            listed.records = false;
        }
        self.publish(&mut registry);
    }

    // ---- bitmaps ----

    /// Adds a bitmap that does not record yet.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when one has this name, [`ErrorKind::LimitReached`] when there are [`MAX_BITMAPS`].
    pub fn add(&self, name: &str, bits: &Arc<DirtyBitmap>) -> Result<()> {
        let mut registry = self.registry();
        let refused = |kind, why: String| Err(Error::new(kind, "add the bitmap").at(name).because(why));
        if registry.bitmaps.iter().any(|listed| listed.name == name) {
            let why = "the drive has one of this name; use that one, or drop all its handles first";
            return refused(ErrorKind::AlreadyExists, why.into());
        }
        if registry.bitmaps.len() >= MAX_BITMAPS {
            let why = format!("the drive has {MAX_BITMAPS} bitmaps, which is the most; drop some first");
            return refused(ErrorKind::LimitReached, why);
        }
        registry.bitmaps.push(Listed { name: name.to_owned(), bits: Arc::clone(bits), records: false });
        Ok(())
    }

    /// Lets a bitmap of the drive record, or not any more. When this returns, every write that ends later is recorded, or the
    /// bitmap stands still. Not for one that a job works with.
    pub fn record(&self, bits: &Arc<DirtyBitmap>, records: bool) {
        let mut registry = self.registry();
        let Some(listed) = registry.listed(bits).filter(|listed| listed.records != records) else { return };
        listed.records = records;
        self.publish(&mut registry);
        if !records {
            self.settle(&mut registry);
        }
    }

    /// Takes a bitmap off the drive.
    pub fn remove(&self, bits: &Arc<DirtyBitmap>) {
        let mut registry = self.registry();
        let before = registry.bitmaps.len();
        registry.bitmaps.retain(|listed| !Arc::ptr_eq(&listed.bits, bits));
        if registry.bitmaps.len() < before {
            self.publish(&mut registry);
        }
    }

    /// Makes the pair that writes find from what is registered.
    fn publish(&self, registry: &mut Registry<F>) {
        let follower = registry.follower.clone();
        let breaks = |mutation| follower.as_ref().is_some_and(|follower| follower.breaks(mutation));
        let works_with =
            |bits| follower.as_ref().is_some_and(|follower| Arc::ptr_eq(follower.works_with(), bits));
        let suspended = breaks(Mutation::RecordingSuspended);
        let recording = registry.bitmaps.iter().filter(|listed| listed.records && !works_with(&listed.bits));
        let bitmaps: Box<[_]> =
            recording.filter(|_| !suspended).map(|listed| Arc::clone(&listed.bits)).collect();
        let told = (follower.is_some() || !bitmaps.is_empty()).then(|| Arc::new(Told { follower, bitmaps }));
        registry.replaced.retain(|replaced| !replaced.is_gone());
        registry.replaced.push(self.told.replace(told));
    }

    /// Waits until nobody has anything that was published before. Writers hold it while they mark, and wait for nothing then.
    fn settle(&self, registry: &mut Registry<F>) {
        while !registry.replaced.iter().all(Replaced::is_gone) {
            yield_now();
        }
        registry.replaced.clear();
    }

    /// The lock; a panic under it leaves nothing half done.
    fn registry(&self) -> MutexGuard<'_, Registry<F>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
