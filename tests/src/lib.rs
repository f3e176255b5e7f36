//! What the end-to-end tests share: running the command and reading its answer.
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

pub use command::{Ended, Started, binary, command, copy, copy_json, run, start};
pub use disk::{Untouched, allocated_bytes, assert_equal, assert_random};
