//! The C ABI of blkmirror: `libblkmirror` and its header.
//!
//! | file | what C finds there |
//! |---|---|
//! | `version` | version, features, the text of the last error |
//! | `log` | the log handler |
//! | `engine`, `event` | worker threads; events of all jobs by one descriptor |
//! | `device` | opened block devices and files |
//! | `drive` | the disk as the guest sees it |
//! | `memory` | aligned memory; guest RAM that is registered once |
//! | `queue` | guest I/O through the library |
//! | `tracker` | guest I/O that the host does itself |
//! | `bitmap` | dirty bitmaps |
//! | `job` | mirrors and copies |
//! | `border` | what all of these pass through |
//!
//! `include/blkmirror.h` is made from this crate: its comments are the comments here, so they are written for authors of C. A test
//! makes it anew and compares (`tests/header.rs`).
//!
//! The functions are thin: each reads what it was given, calls core, and tells how it went. All that is unsafe about C is in
//! `border`; what stays is the contract of each pointer, which the header's head states once for all functions. Their names must be
//! exported as they are, which counts as unsafe code for Rust, so every file with functions allows it.
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract is the header's: it stands at its head, once for all functions"
)]

mod bitmap;
mod border;
mod device;
mod drive;
mod engine;
mod event;
mod job;
mod log;
mod memory;
mod queue;
mod tracker;
mod version;

pub use bitmap::*;
pub use device::*;
pub use drive::*;
pub use engine::*;
pub use event::*;
pub use job::*;
pub use log::*;
pub use memory::*;
pub use queue::*;
pub use tracker::*;
pub use version::*;
