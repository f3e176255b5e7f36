//! Scratch devices, slow and faulty disks for tests and benchmarks.
//!
//! What a test makes here goes away when it is dropped, also when the test panics. A run that was killed leaves things
//! behind; their names carry its process id, and [`scratch::sweep`] takes away those whose process is gone.
//!
//! Start a test that needs a tool of the machine with [`needs!`], so that it is skipped on a laptop and fails under
//! `CI=true`.
#![forbid(unsafe_code)]

pub mod compare;
pub mod faultdisk;
pub mod fill;
pub mod need;
pub mod run;
pub mod scratch;
pub mod storage_daemon;

pub use compare::{Difference, equal, first_difference};
pub use faultdisk::FaultDisk;
pub use need::Requirement;
pub use scratch::{Ext4OnLoop, LoopDevice, LoopOptions, ScratchDir};
pub use storage_daemon::StorageDaemon;

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;
