//! The live tests once more, through the C library.
//!
//! `tests/tests/live_*.rs` and `tests/src/live/` are written once. They use `api`, which is blkmirror-core in blkmirror-tests; here
//! it is [`api`], which has the same names and is made of nothing but the functions of `include/blkmirror.h`, used as a careful
//! author of C would. So whatever a live test promises of the library, it promises of both.
//!
//! `cargo test -p blkmirror-through-c --test live_verbs NAME` runs one; `--workspace` runs all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code, where a panic is how a test fails"
)]

pub mod api;
#[path = "../../../src/live/mod.rs"]
pub mod live;

/// How the live tests go to the library here.
pub const WAY: live::Way = live::Way::C;
