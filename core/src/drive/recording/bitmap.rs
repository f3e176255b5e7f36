//! A host's bitmap of a drive, and what it does to one by hand.
//!
//! Everything that changes bits or the recording is done under the lock of the bitmap's usage, and refused while a job has the
//! bitmap (`bitmap/hold.rs`): a job that starts in this moment finds it as it was before or as it is after.
//!
//! A handle does not keep the drive's device open. When the last handle is dropped the bitmap leaves the drive; a job that works
//! with it keeps the bits for itself until its end.
#![forbid(unsafe_code)]

use std::sync::{Arc, MutexGuard, Weak};

use crate::bitmap::{DirtyBitmap, Usage};
use crate::drive::Drive;
use crate::drive::core::DriveCore;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteRange, Chunk, ChunkRange, Granularity};

/// The longest name of a bitmap.
const MAX_NAME_BYTES: usize = 255;

/// The drive, as far as its bitmaps need to know it.
pub(crate) trait Recorder: Send + Sync {
    /// Lets a bitmap record, or not any more.
    fn record(&self, bits: &Arc<DirtyBitmap>, records: bool);

    /// Takes a bitmap off the drive.
    fn remove(&self, bits: &Arc<DirtyBitmap>);
}

/// A named bitmap of a [`Drive`]: while it records, every guest write (data, zeroes, discards; failed ones, too) marks the chunks
/// that it touches before the guest hears of its end.
///
/// Clones are the same bitmap, which may be used from any thread; when the last one is dropped it leaves the drive. It stays with
/// the drive over a pivot. All but [`info`](Self::info), [`next_dirty`](Self::next_dirty) and what only asks is refused as
/// [`ErrorKind::Busy`] while a job works with the bitmap.
#[derive(Clone, Debug)]
pub struct Bitmap {
    /// What all handles share.
    named: Arc<Named>,
}

/// What all handles of a bitmap share.
#[derive(Debug)]
struct Named {
    /// What the host calls it.
    name: String,
    /// The bits.
    bits: Arc<DirtyBitmap>,
    /// The drive.
    drive: Weak<dyn Recorder>,
}

impl Drop for Named {
    fn drop(&mut self) {
        let Some(drive) = self.drive.upgrade() else { return };
        let mut usage = self.bits.usage();
        drive.remove(&self.bits);
        usage.recording = false;
    }
}

/// What a bitmap is at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the drive.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub granularity: Granularity,
    /// Bytes of the chunks that are dirty, the last one counted as long as it is; exact when nobody writes.
    pub dirty_bytes: u64,
    /// Guest writes are recorded in it, by the drive or by the job that works with it.
    pub recording: bool,
    /// A job works with it.
    pub busy: bool,
}

impl Drive {
    /// Adds a bitmap, with nothing dirty in it, in chunks of `granularity`, or of 64 KiB. With `enabled` it records: every write
    /// that ends after this has returned is in it, and every write that is not in it is seen by who reads the device from then
    /// on.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when the drive has a bitmap of this name, [`ErrorKind::InvalidArgument`] for a name that is
    /// empty or has more than 255 bytes, [`ErrorKind::LimitReached`] when the drive has [`MAX_BITMAPS`](super::MAX_BITMAPS); and
    /// as [`DirtyBitmap::new`].
    pub fn add_bitmap(&self, name: &str, granularity: Option<Granularity>, enabled: bool) -> Result<Bitmap> {
        self.core().add_bitmap(name, granularity, enabled)
    }
}

impl<D: Send + Sync + 'static> DriveCore<D> {
    /// See [`Drive::add_bitmap`].
    pub(crate) fn add_bitmap(
        self: &Arc<Self>,
        name: &str,
        granularity: Option<Granularity>,
        enabled: bool,
    ) -> Result<Bitmap> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let why = format!("its name has {} bytes; 1 to {MAX_NAME_BYTES} are possible", name.len());
            return Err(Error::new(ErrorKind::InvalidArgument, "add a bitmap").because(why));
        }
        let bits = Arc::new(DirtyBitmap::new(self.size_bytes(), granularity.unwrap_or_default())?);
        self.watchers().add(name, &bits)?;
        let drive: Weak<Self> = Arc::downgrade(self);
        let bitmap = Bitmap { named: Arc::new(Named { name: name.to_owned(), bits, drive }) };
        if enabled {
            bitmap.enable()?;
        }
        Ok(bitmap)
    }
}

impl<D: Send + Sync> Recorder for DriveCore<D> {
    fn record(&self, bits: &Arc<DirtyBitmap>, records: bool) {
        self.watchers().record(bits, records);
    }

    fn remove(&self, bits: &Arc<DirtyBitmap>) {
        self.watchers().remove(bits);
    }
}

impl Bitmap {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.named.name
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn granularity(&self) -> Granularity {
        self.bits().granularity()
    }

    /// Lets it record: every write that ends after this has returned is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a job works with it, [`ErrorKind::WrongState`] when its drive is gone.
    pub fn enable(&self) -> Result<()> {
        let mut usage = self.free("enable the bitmap")?;
        let Some(drive) = self.named.drive.upgrade() else {
            return Err(self.error(ErrorKind::WrongState, "enable the bitmap", "its drive is gone"));
        };
        drive.record(self.bits(), true);
        usage.recording = true;
        Ok(())
    }

    /// Lets it not record any more: when this has returned no guest write changes it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a job works with it.
    pub fn disable(&self) -> Result<()> {
        let mut usage = self.free("disable the bitmap")?;
        if let Some(drive) = self.named.drive.upgrade() {
            drive.record(self.bits(), false);
        }
        usage.recording = false;
        Ok(())
    }

    /// Makes everything clean. While it records, a write that ends meanwhile is in it, or seen by who reads the device afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a job works with it.
    pub fn clear(&self) -> Result<()> {
        let _usage = self.free("clear the bitmap")?;
        self.bits().drain(|_| ());
        Ok(())
    }

    /// Marks what is dirty in any of `sources`, bitmaps of this drive or of others; it may be among them itself. All or nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless all have the same size and granularity, [`ErrorKind::Busy`] while a job works with
    /// one of them. Nothing has changed then.
    pub fn merge_from(&self, sources: &[&Self]) -> Result<()> {
        let attempt = "merge into the bitmap";
        // In one order, so that two who merge do not wait for each other.
        let mut all: Vec<&Self> = sources.iter().copied().chain([self]).collect();
        all.sort_by_key(|bitmap| Arc::as_ptr(bitmap.bits()).addr());
        all.dedup_by(|a, b| Arc::ptr_eq(a.bits(), b.bits()));
        let _usages = all.iter().map(|bitmap| bitmap.free(attempt)).collect::<Result<Vec<_>>>()?;
        let shape = |bitmap: &Self| (bitmap.bits().disk_bytes(), bitmap.granularity().bytes());
        let (disk_bytes, chunk_bytes) = shape(self);
        if let Some(other) = all.iter().find(|bitmap| shape(bitmap) != shape(self)) {
            let why = format!(
                "it is for {disk_bytes} bytes in chunks of {chunk_bytes}, {} for {} in chunks of {}; make them alike",
                other.name(),
                shape(other).0,
                shape(other).1
            );
            return Err(self.error(ErrorKind::InvalidArgument, attempt, why));
        }
        sources.iter().try_for_each(|source| self.bits().merge_from(source.bits()).map(drop))
    }

    /// Marks every chunk that `range` touches.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a range past the end of the drive, [`ErrorKind::Busy`] while a job works with it.
    pub fn set(&self, range: ByteRange) -> Result<()> {
        let attempt = "set bits of the bitmap";
        self.check(range, attempt)?;
        let _usage = self.free(attempt)?;
        self.bits().set_bytes(range);
        Ok(())
    }

    /// Makes clean every chunk that lies in `range` as a whole; the last one of the drive does when its last byte does.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn reset(&self, range: ByteRange) -> Result<()> {
        let attempt = "reset bits of the bitmap";
        self.check(range, attempt)?;
        let _usage = self.free(attempt)?;
        let (chunk_bytes, whole) = (self.granularity().bytes(), range.end() == self.bits().disk_bytes());
        let end = if whole { self.bits().chunks() } else { range.end() / chunk_bytes };
        self.bits().clear(ChunkRange::new(range.start().div_ceil(chunk_bytes), end));
        Ok(())
    }

    /// What it is now.
    #[must_use]
    pub fn info(&self) -> BitmapInfo {
        let (recording, busy) = {
            let usage = self.bits().usage();
            (usage.recording, usage.held)
        };
        let (size_bytes, chunks, chunk_bytes) =
            (self.bits().disk_bytes(), self.bits().chunks(), self.granularity().bytes());
        let missing_bytes = chunks * chunk_bytes - size_bytes;
        let last_is_dirty = chunks > 0 && self.bits().test(Chunk(chunks - 1));
        let dirty_bytes = self.bits().count() * chunk_bytes;
        BitmapInfo {
            name: self.name().to_owned(),
            size_bytes,
            granularity: self.granularity(),
            dirty_bytes: dirty_bytes.saturating_sub(if last_is_dirty { missing_bytes } else { 0 }),
            recording,
            busy,
        }
    }

    /// The first dirty bytes between `start` and `end`, at most `max_len` of them: the part of a dirty area, which ends where a
    /// clean chunk begins, that lies there. To see all, ask again from the end of the answer on. Nothing is remembered in
    /// between.
    ///
    /// While guests write, a chunk that turns dirty behind the caller is not seen by him; nothing that was dirty before and stays
    /// so is missed for good, though one call may miss a bit whose neighbour is just being changed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when `start..end` is no range of the drive, or `max_len` is 0.
    pub fn next_dirty(&self, start: u64, end: u64, max_len: u64) -> Result<Option<ByteRange>> {
        let attempt = "look for dirty bytes in the bitmap";
        self.check(ByteRange::new(start, end), attempt)?;
        if start > end || max_len == 0 {
            let why = format!("nothing of at most {max_len} bytes lies in {start}..{end}");
            return Err(self.error(ErrorKind::InvalidArgument, attempt, why));
        }
        let wanted = ByteRange::new(start, end);
        // A start or an end in the middle of a chunk makes one chunk more.
        let max_chunks = max_len.min(wanted.len()).div_ceil(self.granularity().bytes()).saturating_add(1);
        let run = self.bits().next_run(self.granularity().chunk_of(start), max_chunks);
        let area = run.map(|run| {
            self.granularity().bytes_of(run, self.bits().disk_bytes()).intersect(wanted).prefix(max_len)
        });
        Ok(area.filter(|area| !area.is_empty()))
    }

    /// The bitmap as a job's working bitmap, for [`MirrorOptions::bitmap`](crate::mirror::MirrorOptions::bitmap): what is dirty
    /// in it is copied.
    ///
    /// It may record while the job works with it, if the job is one of this drive's; a job of another drive wants it disabled.
    /// Then the job marks what guests write, and when it is over the drive goes on with that, without a gap. At the job's end it
    /// says what was not copied, and after that also everything that changed since the moment that the target is a copy of. Set
    /// and clear bits through this handle only: what is done to them behind its back, a job that begins in that moment may miss.
    #[must_use]
    pub fn working(&self) -> Arc<DirtyBitmap> {
        Arc::clone(self.bits())
    }

    /// The bits.
    fn bits(&self) -> &Arc<DirtyBitmap> {
        &self.named.bits
    }

    /// The right to change it by hand; no job takes it into use as long as this is kept.
    fn free(&self, attempt: &'static str) -> Result<MutexGuard<'_, Usage>> {
        let usage = self.bits().usage();
        if usage.held {
            let why = "a job works with it; wait until that has let go of it";
            return Err(self.error(ErrorKind::Busy, attempt, why));
        }
        Ok(usage)
    }

    /// Refuses what is past the end.
    fn check(&self, range: ByteRange, attempt: &'static str) -> Result<()> {
        let size_bytes = self.bits().disk_bytes();
        if range.end() > size_bytes {
            let error =
                self.error(ErrorKind::InvalidArgument, attempt, format!("the drive ends at {size_bytes}"));
            return Err(error.in_range(range));
        }
        Ok(())
    }

    /// An error that names it.
    fn error(&self, kind: ErrorKind, attempt: &'static str, why: impl Into<String>) -> Error {
        Error::new(kind, attempt).at(self.name()).because(why)
    }
}
