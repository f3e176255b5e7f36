//! Scratch devices, slow and faulty disks for tests and benchmarks.
#![forbid(unsafe_code)]
