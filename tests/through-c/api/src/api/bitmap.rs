//! Bitmaps that a host brings for a job.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard};

use blkmirror::{
    BLKM_BITMAP_F_DISABLED, blkm_bitmap, blkm_bitmap_close, blkm_bitmap_create, blkm_bitmap_opts_init,
    blkm_bitmap_query, blkm_bitmap_set_dirty,
};
use blkmirror_core::units::{ByteRange, Granularity};

use super::drive::Drive;
use super::error::{Result, must};
use super::handle::{Handle, facts, options};

/// A bitmap. In C each belongs to a drive: this one keeps what is set in it until a job is given it, and is made then, on the job's
/// drive and so that it does not record, with the same chunks dirty.
#[derive(Debug)]
pub struct DirtyBitmap {
    /// Bytes of the disk.
    disk_bytes: u64,
    /// Bytes of a chunk.
    granularity: Granularity,
    /// Where its bits are.
    bits: Mutex<Bits>,
}

/// Where the bits are.
#[derive(Debug)]
enum Bits {
    /// No drive yet: the numbers of dirty chunks.
    Here(BTreeSet<u64>),
    /// With C.
    There(Handle<blkm_bitmap>),
}

impl DirtyBitmap {
    /// Nothing is dirty.
    ///
    /// # Errors
    /// None.
    pub fn new(disk_bytes: u64, granularity: Granularity) -> Result<Self> {
        Ok(Self { disk_bytes, granularity, bits: Mutex::new(Bits::Here(BTreeSet::new())) })
    }

    /// Marks every chunk that a range touches; how many were clean.
    ///
    /// # Panics
    /// When C refuses.
    pub fn set_bytes(&self, range: ByteRange) -> u64 {
        let mut bits = self.lock();
        let before = self.count_in(&bits);
        match &mut *bits {
            Bits::Here(chunks) => {
                let chunk = self.granularity.bytes();
                chunks.extend(range.start() / chunk..range.end().div_ceil(chunk));
            }
            Bits::There(bitmap) => set(bitmap, range),
        }
        self.count_in(&bits) - before
    }

    /// How many chunks are dirty.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count_in(&self.lock())
    }

    /// The same under the lock.
    fn count_in(&self, bits: &Bits) -> u64 {
        match bits {
            Bits::Here(chunks) => u64::try_from(chunks.len()).unwrap(),
            Bits::There(bitmap) => {
                // SAFETY: a handle that is open, and a structure.
                let query = |info| unsafe { blkm_bitmap_query(bitmap.raw(), info) };
                let (_, info) = facts::<blkmirror::blkm_bitmap_info>(query).unwrap();
                assert_eq!(
                    (info.size_bytes, info.granularity_bytes),
                    (self.disk_bytes, self.granularity.bytes())
                );
                info.dirty_bytes.div_ceil(self.granularity.bytes())
            }
        }
    }

    /// The handle, for a job on this drive; good for as long as this lives.
    pub(super) fn on(&self, drive: &Drive) -> Result<*mut blkm_bitmap> {
        let mut bits = self.lock();
        if let Bits::Here(chunks) = &*bits {
            // Unlike any other name.
            let name = CString::new(format!("of a test at {self:p}")).unwrap();
            let mut opts = options(blkm_bitmap_opts_init);
            opts.flags = BLKM_BITMAP_F_DISABLED;
            (opts.name, opts.granularity_bytes) = (name.as_ptr(), self.granularity.bytes());
            // SAFETY: a handle that is open, a structure and a variable that live to the end of the call.
            let make = |out| unsafe { blkm_bitmap_create(drive.raw(), &raw const opts, out) };
            let bitmap = Handle::make(blkm_bitmap_close, make)?;
            let chunk = self.granularity.bytes();
            for &number in chunks {
                set(&bitmap, ByteRange::new(number * chunk, ((number + 1) * chunk).min(self.disk_bytes)));
            }
            *bits = Bits::There(bitmap);
        }
        match &*bits {
            Bits::There(bitmap) => Ok(bitmap.raw()),
            Bits::Here(_) => unreachable!("it was made above"),
        }
    }

    /// The bits; whoever panicked with them has failed the test.
    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap()
    }
}

/// Marks what a range touches.
fn set(bitmap: &Handle<blkm_bitmap>, range: ByteRange) {
    // SAFETY: a handle that is open.
    must(unsafe { blkm_bitmap_set_dirty(bitmap.raw(), range.start(), range.len()) });
}
