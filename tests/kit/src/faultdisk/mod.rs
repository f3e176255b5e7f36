//! A disk with faults: one regular file, served over FUSE by this process, with latency and errors on demand.
//!
//! The kernel offers neither dm-flakey nor null_blk everywhere, and both need root and modules; FUSE is there. The file
//! behaves as a slow disk with a deep queue does: every request waits its latency *concurrently* with all the others,
//! and takes effect when it is answered, not when it arrives. [`Control`] changes everything while the disk is in use.
//!
//! | piece | what it does |
//! |---|---|
//! | [`rules`] | which request fails, gets stuck or comes out short |
//! | `pending` | a request on its way: carrying it out and answering it |
//! | `timer` | the one thread that keeps the requests until their time has come |
//! | `fs` | the FUSE side |
//!
//! A mount must never hang, or it takes the test and everything that looks at it along: dropping a [`FaultDisk`] first
//! answers every stuck request, then aborts the connection, then unmounts.
#![forbid(unsafe_code)]

mod control;
mod fs;
mod pending;
pub mod rules;
mod timer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::mount::{MntFlags, umount2};

pub use control::{Control, Counters};
pub use rules::{Effect, Operation, Rule, Times};

use crate::run::context;
use crate::scratch::ScratchDir;

/// What a [`FaultDisk`] is made of.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Size of the disk; ignored when `backing` names a file.
    pub size_bytes: u64,
    /// Allocate the new file's memory now: first writes to fresh memory are slow, which a measurement must not see.
    pub allocated: bool,
    /// The file that holds the content; `None` for a new sparse one in memory.
    pub backing: Option<PathBuf>,
    /// Where to mount: an existing regular file, whose content is hidden meanwhile; `None` for a scratch file.
    pub mountpoint: Option<PathBuf>,
    /// How long every read takes.
    pub read_latency: Duration,
    /// How long every write takes.
    pub write_latency: Duration,
    /// How long every flush takes.
    pub flush_latency: Duration,
}

/// A mounted disk with faults; unmounted when dropped.
#[derive(Debug)]
pub struct FaultDisk {
    /// The file to use as a disk.
    path: PathBuf,
    /// The file that holds the content.
    backing: PathBuf,
    /// Changes the disk while it is in use.
    control: Control,
    /// The threads that serve it; `None` once unmounted.
    session: Option<BackgroundSession>,
    /// Scratch files, removed last.
    _dir: ScratchDir,
}

impl FaultDisk {
    /// Makes and mounts the disk.
    ///
    /// # Errors
    /// When the backing file cannot be opened or FUSE cannot be mounted.
    pub fn new(options: &Options) -> io::Result<Self> {
        let dir = ScratchDir::new()?;
        let backing = match &options.backing {
            Some(path) => path.clone(),
            None => dir.sparse_file("content", options.size_bytes)?,
        };
        let path = match &options.mountpoint {
            Some(path) => path.clone(),
            None => dir.sparse_file("disk", 0)?,
        };
        let content = File::options()
            .read(true)
            .write(true)
            .open(&backing)
            .map_err(|error| context(backing.display(), &error))?;
        if options.allocated {
            let size_bytes = content.metadata()?.len();
            rustix::fs::fallocate(&content, rustix::fs::FallocateFlags::empty(), 0, size_bytes)?;
        }
        let control = Control::new(content)?;
        control.set_read_latency(options.read_latency);
        control.set_write_latency(options.write_latency);
        control.set_flush_latency(options.flush_latency);
        // From here on the drop cleans up.
        let mut disk = Self { path, backing, control, session: None, _dir: dir };
        let session = Session::new(fs::OneFile::new(disk.control.clone()), &disk.path, &config())
            .and_then(Session::spawn)
            .map_err(|error| context(format_args!("mount {}", disk.path.display()), &error))?;
        disk.session = Some(session);
        Ok(disk)
    }

    /// A disk of `size_bytes` in memory without latency or faults.
    ///
    /// # Errors
    /// When FUSE cannot be mounted.
    pub fn of_size(size_bytes: u64) -> io::Result<Self> {
        Self::new(&Options { size_bytes, ..Options::default() })
    }

    /// The file to use as a disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the content; reading it sees no latency and no faults.
    #[must_use]
    pub fn content_path(&self) -> &Path {
        &self.backing
    }

    /// What changes the disk while it is in use; may be cloned and sent to other threads.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Unmounts, whoever still uses it. Safe to call twice.
    fn unmount(&mut self) {
        self.control.close();
        let Some(session) = self.session.take() else { return };
        // Root does it itself, since that can abort the connection; otherwise dropping the session calls fusermount3.
        if umount2(&self.path, MntFlags::empty()).is_err() {
            let _ = umount2(&self.path, MntFlags::MNT_FORCE);
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
        let guard = {
            // Moved in, so that the rest of it, the mount, is dropped before the waiting.
            let session = session;
            session.guard
        };
        let patience = Instant::now() + Duration::from_secs(2);
        // Where it could only be detached, the server lives as long as somebody has the file open. Then it is left to
        // the end of the process.
        while !guard.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// How to mount.
fn config() -> Config {
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("faultdisk".into()), MountOption::DefaultPermissions, MountOption::NoAtime];
    // Tests run commands as somebody else. Only root may allow that without a line in /etc/fuse.conf.
    config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(2);
    config.clone_fd = true;
    config
}

#[cfg(test)]
mod tests;
