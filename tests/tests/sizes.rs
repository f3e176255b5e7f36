//! Every byte arrives, whatever the size of the disk, the chunk, the buffer, and the number of threads.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::path::Path;

use blkmirror_testkit::{Ext4OnLoop, KIB, LoopDevice, LoopOptions, MIB, ScratchDir, fill, needs};
use blkmirror_tests::{assert_equal, copy_json};

/// Ends in the middle of a sector's neighbours, of 4 KiB, of a chunk, of a window, and exactly at each of them.
const SIZES: [u64; 12] = [
    512,
    1024,
    4096 - 512,
    4096,
    4096 + 512,
    64 * KIB - 512,
    64 * KIB,
    64 * KIB + 4096,
    MIB - 512,
    MIB + 512,
    2 * MIB,
    3 * MIB + 64 * KIB + 4096 + 512,
];

/// Copies a new random source of `size` into a new target in `dir` and compares.
#[track_caller]
fn check(dir: &Path, size: u64, options: &[&str]) {
    let (source, target) = (dir.join("source"), dir.join("target"));
    fill::random_file(&source, size, size).unwrap();
    let ended = copy_json(&source, &target, options).succeeded();
    assert_equal(&source, &target);
    assert_eq!(ended.number("bytes_total"), size, "{ended:?}");
    assert_eq!(ended.number("bytes_copied"), size, "{ended:?}");
    assert_eq!(ended.json()["target_state"], "complete", "{ended:?}");
    fs::remove_file(&target).unwrap();
}

#[test]
fn every_size_arrives_with_every_granularity() {
    let dir = ScratchDir::new().unwrap();
    for size in SIZES {
        for granularity in ["512", "4K", "64K", "1M", "64M"] {
            check(dir.path(), size, &["--granularity", granularity]);
        }
    }
}

#[test]
fn every_size_arrives_with_every_buffer() {
    let dir = ScratchDir::new().unwrap();
    for size in SIZES {
        // One chunk, less than a chunk (rounded up), no multiple of a chunk, and more than the disk.
        for buffer in ["64K", "4K", "100000", "8M"] {
            for threads in ["1", "2"] {
                check(dir.path(), size, &["--buf-size", buffer, "--threads", threads]);
            }
        }
    }
}

#[test]
fn lengths_that_end_inside_the_default_window_arrive() {
    let dir = ScratchDir::new().unwrap();
    for size in [16 * MIB - 512, 16 * MIB, 16 * MIB + 512, 33 * MIB + 4096 + 512] {
        check(dir.path(), size, &[]);
        check(dir.path(), size, &["--threads=1", "--granularity=4K"]);
    }
}

#[test]
fn more_threads_than_chunks_do_no_harm() {
    let dir = ScratchDir::new().unwrap();
    check(dir.path(), 64 * KIB, &["--threads=8", "--buf-size=64K"]);
    check(dir.path(), 512, &["--threads=8"]);
}

#[test]
fn every_size_arrives_on_ext4() {
    needs!(Ext4);
    let fs = Ext4OnLoop::new(64 * MIB).unwrap();
    for size in SIZES {
        check(fs.path(), size, &["--granularity=4K"]);
        check(fs.path(), size, &["--preallocate", "--buf-size=64K"]);
    }
}

#[test]
fn block_devices_of_odd_lengths_arrive() {
    needs!(Losetup);
    for size in [512, 4096 + 512, 64 * KIB + 512, MIB + 4096 + 512] {
        let source = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
        let target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
        fill::random(source.path(), 0, size, size).unwrap();
        for options in [&[][..], &["--granularity=512"], &["--buf-size=64K", "--threads=2"]] {
            fill::pattern(target.path(), 0, size, 0x55).unwrap();
            let _ = copy_json(source.path(), target.path(), options).succeeded();
            assert_equal(source.path(), target.path());
        }
    }
}

/// A disk that takes only small requests is where a request has to be cut into many.
#[test]
fn a_device_with_small_requests_gets_every_byte() {
    needs!(Losetup);
    let size = 4 * MIB + 512;
    let mut source = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    let mut target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    source.limit_request_kib(128).unwrap();
    target.limit_request_kib(16).unwrap();
    fill::random(source.path(), 0, size, 1).unwrap();
    let _ = copy_json(source.path(), target.path(), &["--granularity=1M"]).succeeded();
    assert_equal(source.path(), target.path());
}
