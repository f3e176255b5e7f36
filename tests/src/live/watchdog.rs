//! Ends a test that hangs, and tells where.
//!
//! Everything here waits with a deadline, but a thread in the kernel obeys none, and a process that waits for a stuck one says nothing.
//! So a thread of its own looks at the clock. When a scene has lived for much longer than any test takes, it writes down what every
//! thread of this process and of its children does, and aborts: a run with a reason, and not one that somebody kills after hours.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Many times what the longest test takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Barks after [`LIMIT`] unless it is dropped before.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Dropped, it tells the thread that all is well.
    _leash: Sender<()>,
}

impl Watchdog {
    /// Begins to watch.
    pub(super) fn new() -> Self {
        let (leash, leashed) = channel();
        let name = thread::current().name().unwrap_or("a test").to_owned();
        let _ = thread::spawn(move || watch(&leashed, &name));
        Self { _leash: leash }
    }
}

/// Waits, and ends the process if nobody takes the leash away in time.
fn watch(leashed: &Receiver<()>, name: &str) {
    if leashed.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
        let text = format!("\n{name} hangs: over {LIMIT:?}\n{}", everybody());
        // Past the harness, which keeps what a test prints until it ends.
        let _ = std::io::stderr().write_all(text.as_bytes());
        process::abort();
    }
}

/// What every thread of this process and of its children does.
fn everybody() -> String {
    let mut text = String::new();
    for process in numbered(Path::new("/proc")) {
        let dir = Path::new("/proc").join(process.to_string());
        if process == process::id() || parent_of(&dir) == Some(process::id()) {
            let command = fs::read(dir.join("cmdline")).unwrap_or_default();
            let _ = writeln!(text, "{process}: {}", String::from_utf8_lossy(&command).replace('\0', " "));
            for thread in numbered(&dir.join("task")) {
                text += &describe(&dir.join("task").join(thread.to_string()));
            }
        }
    }
    text
}

/// A thread's name, the system call that it is in, and where it is in the kernel, if we may know.
fn describe(dir: &Path) -> String {
    let read = |file| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let (name, call, stack) = (read("comm"), read("syscall"), read("stack"));
    let mut text = format!("  {}: system call {}\n", name.trim(), call.trim());
    for line in stack.lines() {
        let _ = writeln!(text, "      {line}");
    }
    text
}

/// The entries of a directory whose names are numbers.
fn numbered(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The process that started this one.
fn parent_of(dir: &Path) -> Option<u32> {
    let status = fs::read_to_string(dir.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report without the thread that hangs would be of no use.
    #[test]
    fn the_report_names_the_threads_and_the_children() {
        let (leash, leashed) = channel::<()>();
        let waiting = thread::Builder::new().name("who-hangs".into()).spawn(move || leashed.recv()).unwrap();
        let mut child = process::Command::new("sleep").arg("1000").spawn().unwrap();
        let text = everybody();
        child.kill().unwrap();
        let _ = child.wait().unwrap();
        drop(leash);
        let _ = waiting.join().unwrap();
        assert!(text.contains("who-hangs: system call 2"), "{text}");
        assert!(text.contains("sleep 1000"), "{text}");
    }
}
