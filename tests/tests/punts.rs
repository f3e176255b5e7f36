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
use std::sync::atomic::{AtomicU32, Ordering};

use blkmirror_testkit::{Ext4OnLoop, KIB, LoopDevice, LoopOptions, MIB, fill, needs, run::tracefs};
use blkmirror_tests::{assert_equal, binary};

/// The number of io_uring_enter, the same on every architecture.
const SYS_IO_URING_ENTER: u32 = 426;

/// A private buffer of the kernel's tracing; removed when dropped.
struct Trace {
    /// Its directory in tracefs.
    path: PathBuf,
}

impl Trace {
    /// Counts punts, requests and system calls of process `pid`, and of every thread it will have.
    fn of(pid: u32, name: &str) -> Self {
        // Tests run side by side, and two of them may use one name.
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let instance = format!("instances/blkmirror-kit-{}-{serial}-{name}", std::process::id());
        let path = tracefs().unwrap().join(instance);
        fs::create_dir(&path).unwrap();
        let trace = Self { path };
        trace.set("options/event-fork", "1");
        trace.set("set_event_pid", &pid.to_string());
        trace.set("events/io_uring/io_uring_queue_async_work/enable", "1");
        trace
    }

    /// Counts requests and calls of io_uring_enter too.
    fn with_calls(self) -> Self {
        self.set("buffer_size_kb", "4096");
        self.set("events/io_uring/io_uring_submit_req/enable", "1");
        self.set("events/raw_syscalls/sys_enter/filter", &format!("id == {SYS_IO_URING_ENTER}"));
        self.set("events/raw_syscalls/sys_enter/enable", "1");
        self
    }

    /// Writes a setting.
    fn set(&self, file: &str, value: &str) {
        fs::write(self.path.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// The punts so far, one line each.
    fn punts(&self) -> Vec<String> {
        self.lines("io_uring_queue_async_work:")
    }

    /// What was seen of an event so far, one line each.
    fn lines(&self, event: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("trace")).unwrap();
        text.lines().filter(|line| line.contains(event)).map(str::to_owned).collect()
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
    traced_copy(source, target, options, |pid| Trace::of(pid, name)).punts()
}

/// Runs the copy under a trace.
#[track_caller]
fn traced_copy(source: &Path, target: &Path, options: &[&str], trace: impl FnOnce(u32) -> Trace) -> Trace {
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
    let trace = trace(child.id());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    trace
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

/// Takes a file out of the page cache: a direct write to a range that is in there is punted, to throw it out.
fn drop_cache(path: &Path) {
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// Zeroing and flushing through io_uring are punted always, so they go another way.
#[test]
fn nothing_is_punted_by_zeroing_and_flushing() {
    needs!(Ext4, Tracepoints);
    let size = 32 * MIB;
    let fs = Ext4OnLoop::new(128 * MIB).unwrap();
    let source = fs.join("source");
    fill::scattered_file(&source, size, 64 * KIB, 512 * KIB, 1).unwrap();
    let target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    fill::random(target.path(), 0, size, 2).unwrap();
    let found = punts("zeroing", &source, target.path(), &[]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(&source, target.path());
}

/// On a file system a hole is punched with the file locked, and a write that meets the lock is punted. That is some of the
/// writes beside the zeroes; without zeroes it is none, and the zeroes and the flush themselves never are.
#[test]
fn only_writes_beside_zeroes_are_punted_on_an_old_ext4_file() {
    needs!(Ext4, Tracepoints);
    let size = 32 * MIB;
    let disk = Ext4OnLoop::new(128 * MIB).unwrap();
    let (full, scattered, target) = (disk.join("full"), disk.join("scattered"), disk.join("target"));
    fill::random_file(&full, size, 1).unwrap();
    fill::scattered_file(&scattered, size, 64 * KIB, 512 * KIB, 2).unwrap();
    fill::random_file(&target, size, 3).unwrap();

    drop_cache(&target);
    let found = punts("full", &full, &target, &[]);
    assert!(found.is_empty(), "{} punts, the first: {}", found.len(), found[0]);
    assert_equal(&full, &target);

    drop_cache(&target);
    let found = punts("beside", &scattered, &target, &[]);
    let writes = size / (512 * KIB);
    assert!(found.iter().all(|line| line.contains("opcode WRITE")), "{found:?}");
    assert!(found.len() as u64 <= writes, "{} punts of {writes} writes", found.len());
    assert_equal(&scattered, &target);
}

/// One call submits requests and collects completions, several of each where there are many.
#[test]
fn there_are_no_more_system_calls_than_requests() {
    needs!(Losetup, Tracepoints);
    let size = 32 * MIB;
    let source = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    let mut target = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    fill::random(source.path(), 0, size, 1).unwrap();
    // A few large requests cannot share many calls; many small ones must.
    for (request_kib, requests_per_call) in [(1024, 1), (64, 4)] {
        target.limit_request_kib(request_kib).unwrap();
        let traced = |pid| Trace::of(pid, "calls").with_calls();
        let trace = traced_copy(source.path(), target.path(), &["--threads=1"], traced);
        let (requests, calls) = (trace.lines("io_uring_submit_req:").len(), trace.lines("sys_enter:").len());
        println!("{request_kib} KiB: {calls} calls for {requests} requests");
        assert!(requests as u64 >= 2 * size / (request_kib * KIB), "{requests} requests were seen");
        assert!(calls * requests_per_call <= requests, "{calls} calls for {requests} requests");
    }
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
