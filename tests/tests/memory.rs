//! How much memory the command takes, whatever the size of the disk.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use blkmirror_testkit::{GIB, KIB, MIB, ScratchDir};
use blkmirror_tests::{copy, copy_json, start};

/// A worker's window.
const WINDOW: u64 = 16 * MIB;
/// What a copy may take beside the windows, what workers have to spare for other jobs included.
const BESIDE: u64 = 24 * MIB;
/// The claims of 1 TiB in chunks of 4 KiB, one bit each. A hole is claimed as data is, so all of them are used in the end.
const FINE_CLAIMS: u64 = 32 * MIB;

/// The most memory that the copy of a sparse 1 TiB file with some data had at a time, and the data it copied.
fn peak_bytes(dir: &ScratchDir, source: &Path, options: &[&str]) -> u64 {
    let target = dir.join("target");
    // The speed limit keeps the command alive for a look at its end: all is allocated and used by then.
    let mut command = copy(source, &target, options);
    command.args(["--quiet", "--speed=48M"]);
    let running = start(command);
    let status = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    let end = Instant::now() + Duration::from_secs(20);
    // A process that has ended and was not waited for has no such line any more.
    while let Some(kib) = fs::read_to_string(&status).ok().as_deref().and_then(peak_kib) {
        peak = peak.max(kib * KIB);
        assert!(Instant::now() < end, "the copy does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = running.wait().succeeded();
    fs::remove_file(&target).unwrap();
    peak
}

/// The line `VmHWM` of a process's status: the most that it had in memory at a time.
fn peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// A sparse file of 1 TiB with a chunk of data in each of many places far apart.
fn sparse_tib(dir: &ScratchDir) -> std::path::PathBuf {
    let source = dir.sparse_file("source", 1024 * GIB).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&source).unwrap();
    for at in (0..1024 * GIB).step_by(usize::try_from(4 * GIB).unwrap()) {
        file.write_all_at(&[0x5a; 64 << 10], at).unwrap();
    }
    source
}

#[test]
fn a_tebibyte_takes_no_more_memory_than_the_windows_and_a_little() {
    let dir = ScratchDir::new().unwrap();
    let source = sparse_tib(&dir);
    for (workers, more, options) in [
        (1, 0, &["--threads=1"][..]),
        (2, 0, &["--threads=2"]),
        (1, 0, &["--threads=1", "--zero-detect"]),
        (1, FINE_CLAIMS, &["--threads=1", "--granularity=4K"]),
    ] {
        let peak = peak_bytes(&dir, &source, options);
        let most = WINDOW * workers + BESIDE + more;
        println!("{options:?}: {} KiB of {} KiB", peak / KIB, most / KIB);
        assert!(
            peak >= WINDOW * workers,
            "{options:?}: {peak} bytes cannot be right: the windows are touched"
        );
        assert!(peak <= most, "{options:?}: {peak} bytes, more than {most}");
    }
}

/// The bound above says nothing about a copy that does nothing.
#[test]
fn the_sparse_tebibyte_is_copied() {
    let dir = ScratchDir::new().unwrap();
    let source = sparse_tib(&dir);
    let ended = copy_json(&source, &dir.join("target"), &[]).succeeded();
    assert_eq!(ended.number("bytes_copied"), 256 * 64 * KIB);
}
