//! How long guest requests may be held at a switch-over, which the host may change at any time.
//!
//! Each who asks reads it anew: the home at every look, so that one that is made shorter opens a gate that is closed for too long
//! by it, and one that is made longer lets a switch-over begin that did not fit.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::figures::{from_ns, to_ns};

/// The longest pause; any thread reads and changes it.
#[derive(Debug)]
pub struct MaxPause(AtomicU64);

impl MaxPause {
    /// So long; `None` = as long as it takes.
    pub(super) fn new(pause: Option<Duration>) -> Self {
        Self(AtomicU64::new(to_ns(pause)))
    }

    /// How long.
    #[must_use]
    pub fn get(&self) -> Option<Duration> {
        from_ns(&self.0)
    }

    /// The same in nanoseconds.
    pub(super) fn ns(&self) -> Option<u64> {
        self.get().map(|pause| to_ns(Some(pause)))
    }

    /// From now on so long.
    pub fn set(&self, pause: Option<Duration>) {
        self.0.store(to_ns(pause), Ordering::Relaxed);
    }
}
