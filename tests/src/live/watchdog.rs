//! Ends a test that hangs, and tells where.
//!
//! Everything here waits with a deadline, but a thread in the kernel obeys none, and a process that waits for a stuck one says
//! nothing. So a thread of its own looks at the clock. When a scene has lived for much longer than any test takes, it writes down
//! what every thread of this process and of its children does, and aborts: a run with a reason, and not one that somebody kills
//! after hours.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
        let _ = thread::spawn(move || watch(&leashed, LIMIT, || bark(&name)));
        Self { _leash: leash }
    }
}

/// Waits, and barks if nobody takes the leash away in time.
fn watch(leashed: &Receiver<()>, limit: Duration, bark: impl FnOnce()) {
    if leashed.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        bark();
    }
}

/// Tells where everybody is, and ends the process with its children.
fn bark(name: &str) {
    // Looking may hang, too: some of what the kernel tells of a process waits for that process.
    let _ = thread::spawn(|| {
        thread::sleep(Duration::from_secs(10));
        process::abort();
    });
    let text = format!("\n{name} hangs: over {LIMIT:?}\n{}", everybody());
    // Past the harness, which keeps what a test prints until it ends.
    let _ = std::io::stderr().write_all(text.as_bytes());
    for child in family().into_iter().filter(|&child| child != process::id()) {
        let _ = i32::try_from(child).map(|child| kill(Pid::from_raw(child), Signal::SIGKILL));
    }
    process::abort();
}

/// This process and its children.
fn family() -> Vec<u32> {
    let mut all = numbered(Path::new("/proc"));
    all.retain(|&one| one == process::id() || parent_of(one) == Some(process::id()));
    all
}

/// What every thread of this process and of its children does.
fn everybody() -> String {
    let mut text = String::new();
    for process in family() {
        let dir = Path::new("/proc").join(process.to_string());
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let _ = writeln!(text, "{process}: {}", String::from_utf8_lossy(&command).replace('\0', " "));
        for thread in numbered(&dir.join("task")) {
            text += &describe(&dir.join("task").join(thread.to_string()));
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
fn parent_of(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    /// A report without the thread that hangs would be of no use.
    #[test]
    fn the_report_names_the_threads_and_the_children() {
        let (leash, leashed) = channel::<()>();
        let waiting = thread::Builder::new().name("who-hangs".into()).spawn(move || leashed.recv()).unwrap();
        let mut child = a_child();
        let text = everybody();
        child.kill().unwrap();
        let _ = child.wait().unwrap();
        drop(leash);
        let _ = waiting.join().unwrap();
        assert!(text.contains("who-hangs: system call"), "{text}");
        assert!(text.contains("cat -u -"), "{text}");
    }

    /// A child that runs: what it was asked, it answered. Before its `exec` is through, the kernel knows no command line of it.
    fn a_child() -> process::Child {
        let mut child = process::Command::new("cat")
            .args(["-u", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    /// A watchdog that never barks, or barks at a test that is over, would be worse than none.
    #[test]
    fn it_barks_after_its_time_unless_the_leash_is_dropped() {
        for in_time in [true, false] {
            let (leash, leashed) = channel();
            let mut barked = false;
            let held = (!in_time).then_some(leash);
            watch(&leashed, Duration::from_millis(20), || barked = true);
            assert_eq!(barked, !in_time);
            drop(held);
        }
    }
}
