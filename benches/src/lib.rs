//! The comparison with the peers: one copy job, many tools, the same devices, the same minute.
//!
//! `cargo bench --bench compare` is a thin `main` over these modules. They may assume root, a Linux kernel with loop
//! devices, and enough memory for the scratch disks, which all live in tmpfs: a benchmark on a real disk measures
//! the disk. How to read the numbers is written in docs/BENCHMARKING.md.
//!
//! - [`options`]: what the command line can change; [`scenario`]: the scratch disks and who runs on them
//! - [`contender`]: what a tool must offer to take part; [`fio`], [`qsd`] (over [`qmp`]), [`qemu_img`], [`dd`], [`blkmirror`]: the tools
//! - [`live`]: the other benchmark: mirroring a disk that is written to (`cargo bench --bench live`)
//! - [`queued`]: what a guest's request costs in a queue (`cargo bench --bench queue`)
//! - [`measure`], [`punts`]: seconds, CPU, context switches, io-wq punts of one run
//! - [`memory`]: what a copy of a large disk holds
//! - [`pattern`]: the bytes of the source, and the proof that the target holds them
//! - [`run`]: the rounds; [`stats`]: medians; [`report`], [`markdown`], [`targets`]: what comes out
#![forbid(unsafe_code)]

pub mod blkmirror;
pub mod contender;
pub mod dd;
pub mod error;
pub mod fio;
pub mod live;
pub mod machine;
pub mod markdown;
pub mod measure;
pub mod memory;
pub mod options;
pub mod pattern;
mod publish;
pub mod punts;
pub mod qemu_img;
pub mod qmp;
pub mod qsd;
pub mod queued;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stats;
pub mod targets;
