//! A small ext4 file system on a loop device in memory.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{FallocateFlags, fallocate};

use super::{LoopDevice, LoopOptions, ScratchDir};
use crate::run::{context, run};

/// An ext4 file system that is unmounted, detached and removed when dropped.
#[derive(Debug)]
pub struct Ext4OnLoop {
    /// Where it is mounted.
    mountpoint: PathBuf,
    /// The device below; dropped after the unmounting in `drop`.
    device: LoopDevice,
    /// Holds the backing file and the mountpoint; dropped last.
    _dir: ScratchDir,
}

impl Ext4OnLoop {
    /// Makes and mounts a file system on a device of `len_bytes`.
    ///
    /// # Errors
    /// When one of the steps fails.
    pub fn new(len_bytes: u64) -> io::Result<Self> {
        let dir = ScratchDir::new()?;
        let backing = dir.sparse_file("ext4.img", len_bytes)?;
        let device = LoopDevice::attach(&backing, LoopOptions::default())?;
        // No lazy initialisation: its writes in the background would disturb whoever measures. No reserved blocks, so
        // that "full" means the same for root as for everybody.
        let options = ["-q", "-F", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run("mkfs.ext4", options.iter().map(AsRef::as_ref).chain([device.path().as_os_str()]))?;
        let mountpoint = dir.join("mnt");
        fs::create_dir(&mountpoint)?;
        mount(Some(device.path()), &mountpoint, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
            .map_err(|error| context("mount", &error.into()))?;
        Ok(Self { mountpoint, device, _dir: dir })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &LoopDevice {
        &self.device
    }

    /// The path of `name` inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// Makes the file `name` with all of its `len_bytes` allocated and nothing written: reads as zero.
    ///
    /// # Errors
    /// When there is not enough space.
    pub fn preallocated_file(&self, name: &str, len_bytes: u64) -> io::Result<PathBuf> {
        let path = self.join(name);
        let file = File::create(&path)?;
        fallocate(&file, FallocateFlags::empty(), 0, len_bytes)?;
        file.sync_all()?;
        Ok(path)
    }

    /// Makes the file `name` of `len_bytes`, one single hole.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sparse_file(&self, name: &str, len_bytes: u64) -> io::Result<PathBuf> {
        let path = self.join(name);
        File::create(&path)?.set_len(len_bytes)?;
        Ok(path)
    }
}

impl Drop for Ext4OnLoop {
    fn drop(&mut self) {
        // A command that was just killed may hold a file for another moment.
        for _ in 0..20 {
            match umount2(&self.mountpoint, MntFlags::empty()) {
                Err(nix::Error::EBUSY) => thread::sleep(Duration::from_millis(25)),
                _ => return,
            }
        }
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MIB, equal, fill, needs};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn preallocated_files_have_their_blocks_and_sparse_ones_do_not() {
        needs!(Ext4);
        let fs = Ext4OnLoop::new(32 * MIB).unwrap();
        let full = fs.preallocated_file("full", 4 * MIB).unwrap();
        let sparse = fs.sparse_file("sparse", 4 * MIB).unwrap();
        assert!(full.metadata().unwrap().blocks() * 512 >= 4 * MIB);
        assert_eq!(sparse.metadata().unwrap().blocks(), 0);
        assert!(equal(&full, &sparse).unwrap());
        fill::scattered_file(&sparse, 4 * MIB, 4096, 65536, 1).unwrap();
        // The data, and a block or two for the list of extents.
        let allocated = sparse.metadata().unwrap().blocks() * 512;
        assert!((4 * MIB / 16..4 * MIB / 16 + 16 * 1024).contains(&allocated), "{allocated}");
        assert!(!equal(&full, &sparse).unwrap());
        let mountpoint = fs.path().to_owned();
        drop(fs);
        assert!(!mountpoint.exists());
    }
}
