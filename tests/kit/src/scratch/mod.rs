//! Scratch directories, loop devices and file systems that clean up after themselves.
//!
//! Everything lives in a directory `/dev/shm/blkmirror-kit-PID-N`: memory is fast, and the process id in the name
//! lets [`sweep()`] tell what a killed run left behind from what a running test still uses.
#![forbid(unsafe_code)]

mod dir;
mod ext4;
mod loopdev;
mod sweep;

pub use dir::ScratchDir;
pub use ext4::Ext4OnLoop;
pub use loopdev::{LoopDevice, LoopOptions};
pub use sweep::sweep;
