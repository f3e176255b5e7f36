//! A `qemu-storage-daemon` that shows files by FUSE, and goes away when it is dropped.
//!
//! QEMU 10.0 can miss a SIGTERM: its handler sets a flag that the main loop reads before it sleeps, so a signal that comes between
//! the two is noticed when the next event wakes the loop, and after the last request of a test there is none. So it is sent
//! again until the daemon is gone, and a daemon that does not go is killed, for a test that waits for one says nothing for hours.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it may take to show its files.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long it has to end by itself.
const POLITE_FOR: Duration = Duration::from_secs(3);
/// How long a look at it is worth.
const LOOK: Duration = Duration::from_millis(2);
/// Looks between two signals.
const LOOKS_PER_SIGNAL: u32 = 20;

/// The daemon.
#[derive(Debug)]
pub struct StorageDaemon {
    /// The process.
    child: Child,
    /// Where it shows its files.
    shown: Vec<PathBuf>,
}

impl StorageDaemon {
    /// Starts the daemon with these arguments, and waits until it shows all it exports. Its process id goes to the file `ready`;
    /// `shown` are its mount points.
    ///
    /// # Errors
    /// When it cannot be started, or is not ready in ten seconds.
    pub fn start(arguments: &[String], ready: &Path, shown: Vec<PathBuf>) -> io::Result<Self> {
        // One that was here before must not be taken for this one.
        let _ = fs::remove_file(ready);
        let mut command = Command::new("qemu-storage-daemon");
        let child = command.arg("--pidfile").arg(ready).args(arguments).spawn()?;
        let mut this = Self { child, shown };
        let end = Instant::now() + READY_WITHIN;
        // It says its process id when everything is exported.
        while !fs::read_to_string(ready).is_ok_and(|text| text.ends_with('\n')) {
            if let Some(status) = this.child.try_wait()? {
                return Err(io::Error::other(format!("qemu-storage-daemon has ended: {status}")));
            }
            if Instant::now() >= end {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "qemu-storage-daemon does not get ready",
                ));
            }
            thread::sleep(LOOK);
        }
        Ok(this)
    }

    /// Asked politely, it writes back what it holds and takes its files away; whether it has.
    fn ask(&mut self) -> bool {
        let Ok(pid) = i32::try_from(self.child.id()) else { return false };
        self.ends_within(POLITE_FOR, || {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        })
    }

    /// Whether it ends in this time, with something done at the beginning and now and then.
    fn ends_within(&mut self, time: Duration, act: impl Fn()) -> bool {
        let end = Instant::now() + time;
        for look in 0.. {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            if Instant::now() >= end {
                break;
            }
            if look % LOOKS_PER_SIGNAL == 0 {
                act();
            }
            thread::sleep(LOOK);
        }
        false
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        if !self.ask() {
            let _ = self.child.kill();
            // One that is stuck in the kernel does not even hear that.
            let _ = self.ends_within(POLITE_FOR, || {});
        }
        // It has done so unless it was killed or fell over.
        for path in &self.shown {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MIB, ScratchDir};

    /// A daemon that shows `disk` in `dir`.
    fn daemon(dir: &ScratchDir) -> StorageDaemon {
        let content = dir.sparse_file("content", MIB).unwrap();
        let disk = dir.sparse_file("disk", 0).unwrap();
        let arguments = [
            "--blockdev".to_owned(),
            format!("driver=file,node-name=file,filename={}", content.display()),
            "--export".to_owned(),
            format!("type=fuse,id=disk,node-name=file,mountpoint={},writable=on", disk.display()),
        ];
        StorageDaemon::start(&arguments, &dir.join("pid"), vec![disk]).unwrap()
    }

    /// Were one that does not listen waited for, a test would hang until somebody kills it.
    #[test]
    fn a_daemon_that_does_not_listen_is_ended_and_its_files_are_taken_away() {
        crate::needs!(Fuse, QemuStorageDaemon, Root);
        let dir = ScratchDir::new().unwrap();
        let daemon = daemon(&dir);
        assert_eq!(fs::metadata(dir.join("disk")).unwrap().len(), MIB);
        kill(Pid::from_raw(i32::try_from(daemon.child.id()).unwrap()), Signal::SIGSTOP).unwrap();
        drop(daemon);
        assert_eq!(fs::metadata(dir.join("disk")).unwrap().len(), 0);
    }
}
