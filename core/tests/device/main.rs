//! The device layer against real files, real loop devices, and QEMU's locks.
#![forbid(unsafe_code)]

mod blocks;
mod files;
mod identity;
mod kit;
mod qemu;
mod space;
