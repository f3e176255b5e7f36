//! Counts the requests that io_uring handed to a kernel worker thread ("punts to io-wq").
//!
//! A punted request costs a thread switch and a second pass through the file system; the count is exact where
//! times are noisy. The kernel has a tracepoint for it. We read it through a tracing instance of our own, which records
//! nothing but this event, only for processes started by this one, and never touches anybody else's tracing. The
//! instance lives in a private mount of tracefs, so nothing of the machine's setup changes.
//!
//! The filter follows children of the *thread* whose number it was given, so contenders must be started from the
//! thread that called [`PuntCounter::reset`]: the main thread.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::error::{Context, Failure, Result};

/// The event, below the instance's directory.
const EVENT: &str = "events/io_uring/io_uring_queue_async_work/enable";

/// What the names of our instances begin with; the number of the process follows.
const PREFIX: &str = "blkmirror-";

/// A tracing instance that records one event.
#[derive(Debug)]
pub struct PuntCounter {
    /// Where tracefs is mounted for us; unmounted and removed on drop.
    mount_point: TempDir,
    /// The instance's directory.
    instance: PathBuf,
}

impl PuntCounter {
    /// Mounts tracefs and makes the instance. Fails without root, or on a kernel without this tracepoint.
    pub fn new() -> Result<Self> {
        let mount_point =
            TempDir::with_prefix("blkmirror-trace-").context(|| "scratch directory for tracefs")?;
        mount(Some("tracefs"), mount_point.path(), Some("tracefs"), MsFlags::empty(), None::<&str>)
            .context(|| "mount of tracefs")?;
        let instance = mount_point.path().join("instances").join(format!("{PREFIX}{}", std::process::id()));
        remove_leftovers(&mount_point.path().join("instances"));
        // From here on drop() cleans up, so build the value before anything else can fail.
        let counter = Self { mount_point, instance };
        fs::create_dir(&counter.instance).context(|| "tracing instance")?;
        // Every counted event takes a slot of the buffer or overwrites one; both are counted, so a small one will do.
        counter.write("buffer_size_kb", "64")?;
        counter.write("options/event-fork", "1")?;
        counter.reset()?;
        counter.write(EVENT, "1")?;
        Ok(counter)
    }

    /// Starts counting from zero, for the children that the calling thread starts from now on.
    pub fn reset(&self) -> Result<()> {
        self.write("set_event_pid", &nix::unistd::gettid().to_string())?;
        self.write("trace", "")
    }

    /// Events since the last reset: those still in the buffers, and those that were overwritten.
    pub fn count(&self) -> Result<u64> {
        let per_cpu = self.instance.join("per_cpu");
        let mut total = 0_u64;
        for cpu in fs::read_dir(&per_cpu).context(|| per_cpu.display())? {
            let path = cpu.context(|| per_cpu.display())?.path().join("stats");
            let text = fs::read_to_string(&path).context(|| path.display())?;
            total = total.saturating_add(entries(&text));
        }
        Ok(total)
    }

    /// Writes one control file of the instance.
    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).map_err(|cause| Failure::new(format!("{}: {cause}", path.display())))
    }
}

impl Drop for PuntCounter {
    fn drop(&mut self) {
        // Best effort: the next counter removes what is left.
        let _ = self.write(EVENT, "0");
        let _ = fs::remove_dir(&self.instance);
        let _ = umount2(self.mount_point.path(), MntFlags::MNT_DETACH);
    }
}

/// Removes the instances of counters that were killed: each slows down every context switch of the machine until then.
fn remove_leftovers(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::write(entry.path().join(EVENT), "0");
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The events that one CPU's `stats` file tells of.
fn entries(stats: &str) -> u64 {
    let value = |line: &str| {
        let (name, number) = line.split_once(':')?;
        matches!(name, "entries" | "overrun").then(|| number.trim().parse::<u64>().ok())?
    };
    stats.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::entries;

    #[test]
    fn overwritten_events_are_counted_and_lost_commits_are_not_counted_twice() {
        let stats = "entries: 3\noverrun: 7\ncommit overrun: 5\nbytes: 912\ndropped events: 0\n";
        assert_eq!(entries(stats), 10);
    }
}
