//! The device layer against real files, real loop devices, and QEMU's locks.
#![forbid(unsafe_code)]
// clippy.toml exempts test functions; the helpers beside them may panic as well.
#![allow(clippy::unwrap_used, clippy::panic)]

mod blocks;
mod files;
mod identity;
mod kit;
mod qemu;
mod space;
