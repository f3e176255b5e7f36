//! Memory of requests.

use std::ffi::c_int;

use nix::libc::iovec;

pub use blkmirror_core::buffer::AlignedBuf;

/// Memory for a request.
#[derive(Debug)]
pub struct GuestBuffer(pub(super) Memory);

/// Whose it is.
#[derive(Debug)]
pub(super) enum Memory {
    /// Ours, kept until the completion.
    Here(AlignedBuf),
    /// The caller's.
    Pieces {
        /// So many.
        count: c_int,
        /// At this place.
        first: *const iovec,
    },
}

// SAFETY: the caller's memory is the caller's promise; here it is handed on and never looked at.
unsafe impl Send for GuestBuffer {}

impl GuestBuffer {
    /// Pieces of memory of the caller's.
    ///
    /// # Safety
    /// They, and the array, stay as they are until the completion.
    #[must_use]
    pub unsafe fn from_iovecs(first: *const iovec, count: usize) -> Self {
        Self(Memory::Pieces { first, count: c_int::try_from(count).unwrap() })
    }

    /// The buffer that it was made from.
    #[must_use]
    pub fn into_aligned(self) -> Option<AlignedBuf> {
        match self.0 {
            Memory::Here(buffer) => Some(buffer),
            Memory::Pieces { .. } => None,
        }
    }
}

impl From<AlignedBuf> for GuestBuffer {
    fn from(buffer: AlignedBuf) -> Self {
        Self(Memory::Here(buffer))
    }
}
