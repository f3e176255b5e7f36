//! Trackers of C.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use blkmirror::{
    BLKM_HELD, blkm_token, blkm_tracker, blkm_tracker_begin, blkm_tracker_close, blkm_tracker_create,
    blkm_tracker_end, blkm_tracker_wait,
};
use blkmirror_core::drive::IoKind;
use blkmirror_core::units::ByteRange;

use super::drive::Drive;
use super::error::{Result, check, must};
use super::handle::{Handle, timeout_ns};
use super::names;

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
#[must_use = "a request that is never ended keeps every switch-over from happening"]
pub struct Token(blkm_token);

impl Token {
    /// Which device it must be sent to.
    #[must_use]
    pub fn device_number(&self) -> u64 {
        self.0.device_number
    }
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug)]
#[must_use = "a request may be sent only when it was let in"]
pub enum Admission {
    /// Send it.
    Go(Token),
    /// Not yet.
    Held,
}

/// Tells a drive of requests.
#[derive(Clone, Debug)]
pub struct Tracker(Arc<Handle<blkm_tracker>>);

impl Drive {
    /// A tracker.
    #[must_use]
    pub fn tracker(&self) -> Tracker {
        // SAFETY: a handle that is open, and a variable.
        let make = |out| unsafe { blkm_tracker_create(self.raw(), out) };
        Tracker(Arc::new(Handle::make(blkm_tracker_close, make).unwrap()))
    }
}

impl Tracker {
    /// A request is about to be sent.
    ///
    /// # Errors
    /// As C says.
    pub fn begin(&self, range: ByteRange, kind: IoKind) -> Result<Admission> {
        let (start, len, kind) = (range.start(), range.len(), names::number_of_kind(kind));
        let mut token = MaybeUninit::uninit();
        // SAFETY: a handle that is open, and a variable.
        let ret = unsafe { blkm_tracker_begin(self.0.raw(), start, len, kind, token.as_mut_ptr()) };
        match check(ret)? {
            0 => {
                // SAFETY: it is filled in when the request is let in.
                Ok(Admission::Go(Token(unsafe { token.assume_init() })))
            }
            BLKM_HELD => Ok(Admission::Held),
            other => panic!("neither let in nor held: {other}"),
        }
    }

    /// A request has ended.
    ///
    /// # Errors
    /// As C says.
    pub fn end(&self, token: Token, result: std::result::Result<(), i32>) -> Result<()> {
        let result = result.map_or_else(|errno| -errno, |()| 0);
        // SAFETY: a handle that is open, and a token.
        check(unsafe { blkm_tracker_end(self.0.raw(), &raw const token.0, result) }).map(drop)
    }

    /// Waits until the gate is open; whether it is.
    #[must_use]
    pub fn wait_open(&self, timeout: Duration) -> bool {
        // SAFETY: a handle that is open.
        must(unsafe { blkm_tracker_wait(self.0.raw(), timeout_ns(Some(timeout))) }) == 1
    }
}
