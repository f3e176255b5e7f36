//! No request is handed to a kernel worker thread where the device can take it at once.
//!
//! Such a hand-over (a *punt*) costs two context switches and is the silent performance bug of io_uring. The kernel has
//! a tracepoint for it; counted are the command's own, in a trace instance of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blkmirror_testkit::{Ext4OnLoop, KIB, LoopDevice, LoopOptions, MIB, fill, needs, run::tracefs};
use blkmirror_tests::{assert_equal, binary};

/// A private buffer of the kernel's tracing; removed when dropped.
struct Trace {
    /// Its directory in tracefs.
    path: PathBuf,
}

impl Trace {
    /// Counts punts of process `pid`, and of every thread it will have.
    fn of(pid: u32, name: &str) -> Self {
        let path = tracefs().unwrap().join(format!("instances/blkmirror-kit-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let trace = Self { path };
        trace.set("options/event-fork", "1");
        trace.set("set_event_pid", &pid.to_string());
        trace.set("events/io_uring/io_uring_queue_async_work/enable", "1");
        trace
    }

    /// Writes a setting.
    fn set(&self, file: &str, value: &str) {
        fs::write(self.path.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// The punts so far, one line each.
    fn punts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("trace")).unwrap();
        text.lines().filter(|line| line.contains("io_uring_queue_async_work:")).map(str::to_owned).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// Runs the copy and returns its punts.
#[track_caller]
fn punts(name: &str, source: &Path, target: &Path, options: &[&str]) -> Vec<String> {
    // The shell waits for a line before it becomes the command, so that the trace knows its process by then.
    let mut child = Command::new("sh")
        .args(["-c", "read line; exec \"$@\"", "sh"])
        .arg(binary())
        .arg("copy")
        .args([source, target])
        .args(options)
        .arg("--quiet")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let trace = Trace::of(child.id(), name);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    trace.punts()
}

#[test]
fn nothing_is_punted_from_loop_to_loop() {
    needs!(Losetup, Tracepoints);
    let size = 32 * MIB;
    let source = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    let target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    fill::random(source.path(), 0, size, 1).unwrap();
    for options in [&[][..], &["--granularity=4K"], &["--buf-size=64K"], &["--threads=1"]] {
        let found = punts("loop", source.path(), target.path(), options);
        assert!(found.is_empty(), "{options:?}: {} punts, the first: {}", found.len(), found[0]);
    }
    assert_equal(source.path(), target.path());
}

/// Requests beyond the device's limits are what a real disk punts.
#[test]
fn nothing_is_punted_on_a_device_with_small_requests() {
    needs!(Losetup, Tracepoints);
    let size = 16 * MIB;
    let mut source = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    let mut target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    source.limit_request_kib(128).unwrap();
    target.limit_request_kib(64).unwrap();
    fill::random(source.path(), 0, size, 1).unwrap();
    let found = punts("small", source.path(), target.path(), &[]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(source.path(), target.path());
}

#[test]
fn nothing_is_punted_from_ext4_to_preallocated_ext4() {
    needs!(Ext4, Tracepoints);
    let size = 32 * MIB;
    let fs = Ext4OnLoop::new(128 * MIB).unwrap();
    let source = fs.join("source");
    fill::random_file(&source, size, 1).unwrap();
    let target = fs.preallocated_file("target", size).unwrap();
    let found = punts("ext4", &source, &target, &[]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(&source, &target);

    let created = fs.join("created");
    let found = punts("ext4-new", &source, &created, &["--preallocate"]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(&source, &created);
}

#[test]
fn nothing_is_punted_from_a_scattered_ext4_file() {
    needs!(Ext4, Tracepoints);
    let fs = Ext4OnLoop::new(128 * MIB).unwrap();
    let source = fs.join("source");
    fill::scattered_file(&source, 32 * MIB, 64 * KIB, 512 * KIB, 1).unwrap();
    let target = fs.preallocated_file("target", 32 * MIB).unwrap();
    let found = punts("scattered", &source, &target, &["--target-is-zero"]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(&source, &target);
}

/// Without this the others prove nothing: a write past the end of an ext4 file is punted always.
#[test]
fn the_counter_counts() {
    needs!(Ext4, Tracepoints, Fio);
    let fs = Ext4OnLoop::new(64 * MIB).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "read line; exec \"$@\"", "sh", "fio", "--name=x", "--ioengine=io_uring", "--direct=1"])
        .args(["--rw=write", "--bs=64k", "--size=4m", "--fallocate=none", "--thread=1"])
        .arg(format!("--filename={}", fs.join("grows").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let trace = Trace::of(child.id(), "fio");
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!trace.punts().is_empty());
}
