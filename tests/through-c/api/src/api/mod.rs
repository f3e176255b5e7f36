//! The part of blkmirror-core's API that the live tests use, made of the functions of the C library.
//!
//! | file | idea |
//! |---|---|
//! | `error` | numbers and texts of C as errors |
//! | `handle` | an object of C's with its end; options and facts by their size |
//! | `names` | core's states and choices from C's numbers, and the other way |
//! | `device`, `drive`, `tracker`, `bitmap` | what C calls so |
//! | `queue` | requests by completions; what was refused comes back as if it had been refused at once |
//! | `buffer` | memory of requests |
//! | `options` | what a host chooses for a job |
//! | `job`, `facts` | jobs; what is read of them |
//! | `events`, `engine` | the events of all jobs by one descriptor, given to each |
//!
//! What is only data comes from core. What core keeps to itself (`#[non_exhaustive]`) has a twin here with the same fields.
//!
//! It differs from core where C does, and nowhere else:
//!
//! - An error has a number in place of a kind, so kinds that share one are equal here ([`ErrorKind`]).
//! - A request that is refused has a completion in C, as every other. The queue here takes it at once, and gives it back as core does.
//! - A bitmap belongs to a drive in C. One that belongs to none yet is made when a job is given it ([`bitmap::DirtyBitmap`]).
//! - The figures of C have no rate and time left of the first pass alone (`Progress::rate_bytes_per_s`, `Progress::eta`): 0 and `None`.
//! - The descriptor of C is the engine's, so that of a job is readable while any job of its engine has events.
//! - A drive can always be closed, and is not given back while a job runs ([`drive::Drive::close`]).
#![allow(unsafe_code, reason = "it calls C")]

pub mod bitmap;
pub mod buffer;
pub mod device;
pub mod drive;
pub mod engine;
mod error;
mod events;
mod facts;
mod handle;
mod job;
mod names;
mod options;
mod queue;
mod tracker;

pub use blkmirror_core::units;
pub use error::{Error, ErrorKind, Result};

/// What jobs are given.
pub mod mirror {
    pub use super::options::{ExtentMap, MirrorOptions};
    pub use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget, OnCopied, SyncMode};
}
