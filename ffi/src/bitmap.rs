//! Bitmaps of drives.
#![allow(unsafe_code)]

use std::sync::Arc;

use blkmirror_core::Result;
use blkmirror_core::bitmap::DirtyBitmap;

use crate::border::handle::{Health, borrow, object};

/// A dirty bitmap of a drive. Every function that takes one may be called from any thread.
#[allow(non_camel_case_types, reason = "as in C")]
#[derive(Debug)]
pub struct blkm_bitmap {
    /// Whether it may be used.
    health: Health,
    /// What core has.
    bitmap: Arc<DirtyBitmap>,
}
object!(blkm_bitmap);

/// The bitmap for a job to work with, if C gave one.
///
/// # Safety
/// `bitmap` is NULL or a handle of the caller's.
pub(crate) unsafe fn working(
    bitmap: *mut blkm_bitmap,
    attempt: &'static str,
) -> Result<Option<Arc<DirtyBitmap>>> {
    if bitmap.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    Ok(Some(Arc::clone(&unsafe { borrow(bitmap, attempt)? }.bitmap)))
}
