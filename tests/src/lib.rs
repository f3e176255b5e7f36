//! What the end-to-end tests share: running the command and reading its answer; live jobs under guests that write (`live`).
//!
//! The command runs as a process of its own, as a user runs it. Every run has a deadline after which it is killed and the
//! test fails, so that a hang in the engine never hangs the suite.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code, where a panic is how a test fails"
)]

pub mod c;
mod command;
mod disk;
pub mod live;

/// What the live tests are about. Here it is the Rust API; in `tests/through-c` the same files see the C functions by these names.
pub use blkmirror_core as api;

/// How the live tests go to the library here.
pub const WAY: live::Way = live::Way::Rust;

pub use command::{Ended, Started, binary, command, copy, copy_json, run, start};
pub use disk::{Untouched, allocated_bytes, assert_equal, assert_random};
