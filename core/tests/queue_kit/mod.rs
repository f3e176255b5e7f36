//! What the tests of queues share: disks, buffers, and the end of requests.
#![allow(
    dead_code,
    clippy::unwrap_used,
    missing_docs,
    reason = "each test uses a part of it, and ends where it cannot go on"
)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use blkmirror_core::Result;
use blkmirror_core::buffer::{AlignedBuf, GuestBuffer};
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{GuestCompletion, Queue};

/// A disk's bytes, and what to undo at the end.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    loop_device: Option<PathBuf>,
}

impl Disk {
    /// A file of `len` bytes in memory.
    pub(crate) fn file(len: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("blkmirror-queue").tempdir_in("/dev/shm").unwrap();
        File::create(dir.path().join("disk")).unwrap().set_len(len).unwrap();
        Self { dir, loop_device: None }
    }

    /// A loop device on such a file; `None` where that is not allowed.
    pub(crate) fn loop_device(len: u64) -> Option<Self> {
        let mut disk = Self::file(len);
        let out = Command::new("losetup").args(["-f", "--show"]).arg(disk.path()).output().ok()?;
        if !out.status.success() {
            return None;
        }
        disk.loop_device = Some(String::from_utf8(out.stdout).unwrap().trim().into());
        Some(disk)
    }

    /// What is opened.
    pub(crate) fn path(&self) -> PathBuf {
        self.loop_device.clone().unwrap_or_else(|| self.dir.path().join("disk"))
    }

    /// A drive on it.
    pub(crate) fn drive(&self) -> Drive {
        Drive::new(Device::open_disk(&self.path()).unwrap()).unwrap()
    }

    /// What it holds.
    pub(crate) fn content(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(device) = &self.loop_device {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}

/// A file, and a loop device where there may be one.
pub(crate) fn disks(len: u64) -> Vec<Disk> {
    [Some(Disk::file(len)), Disk::loop_device(len)].into_iter().flatten().collect()
}

/// A buffer full of one byte.
pub(crate) fn filled(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new(len, 4096).unwrap();
    buf.fill(byte);
    buf
}

/// Waits for everything and returns the completions by tag.
pub(crate) fn finish(queue: &mut Queue) -> HashMap<u64, GuestCompletion> {
    queue.wait(usize::MAX, Some(Duration::from_secs(20))).unwrap();
    assert_eq!(queue.in_flight(), 0);
    std::iter::from_fn(|| queue.pop()).map(|done| (done.tag, done)).collect()
}

/// Waits for one request and returns its buffer.
pub(crate) fn one(queue: &mut Queue) -> Result<Option<GuestBuffer>> {
    let mut all = finish(queue);
    assert_eq!(all.len(), 1);
    let done = all.remove(&all.keys().next().copied().unwrap()).unwrap();
    done.result.map(|()| done.buffer)
}

/// A disk that nobody holds can be opened exclusively; the kernel may need a moment.
pub(crate) fn assert_free(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while let Err(e) = Device::open_target(path, TargetOptions::default()) {
        assert!(Instant::now() < deadline, "{e}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
