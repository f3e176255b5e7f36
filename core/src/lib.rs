//! The data plane of live disk mirroring: a *source* is copied to a *target*, writes are followed, and at the end the
//! two are equal.
//!
//! The folders are the architecture, and arrows point down only:
//!
//! | layer | what it is |
//! |---|---|
//! | [`engine`] | worker threads; each runs the mirror logic of its share over its own ring |
//! | [`drive`] | the disk as the guest sees it: the gate, queues and trackers, latencies; a job hangs on it |
//! | [`mirror`] | pure logic: planner, copier, limiter, error policy, progress; no system call, thread, clock or lock |
//! | [`ring`] | the `Ring` trait; `uring` (io_uring) and `sim` (deterministic) behind it; the kernel probe |
//! | [`device`] | open, limits, block status, preallocation, zeroing, exclusive use |
//! | [`buffer`] | aligned memory, the window |
//! | [`bitmap`] | lock-free dirty bits with summary levels, in-flight claims |
//! | [`units`], [`error`] | byte ranges, chunks, granularity; the one error type |
//! | `simulator` | whole lives of drives and jobs from a seed; for tests, with feature `sim` |
//!
//! The invariants that this code keeps have names, and comments and tests quote them. They are listed in
//! `docs/ARCHITECTURE.md`.

pub mod bitmap;
pub mod buffer;
pub mod device;
pub mod drive;

pub mod engine;
pub mod error;
pub mod mirror;
pub mod ring;
mod scheduling;
#[cfg(any(test, feature = "sim"))]
pub mod simulator;
mod threads;
pub mod units;

pub use error::{Error, ErrorKind, Result};
