//! What is known of file systems by what they are.
//!
//! **Whether asking a file where its data is may hang.** The question is a system call on the thread that asks. A file system on
//! a disk of this machine answers from its own metadata, in a microsecond or after a read. One whose answers come from a server or
//! from another program (NFS, CIFS, Ceph, 9p, virtiofs, every FUSE) answers when that does, or never, and whoever asked cannot be
//! woken meanwhile. So there is a list of those that are known to be quick, and whatever is not on it is asked on a thread of its
//! own: that costs some microseconds a question, a hang on a worker's thread costs every job of that worker.
//!
//! Not on the list although local: ZFS, which may wait for a transaction group to be written before it answers, and
//! overlayfs, which stands on whatever it stands on. What is below a file system is not looked at: metadata that has to be read
//! from a block device which hangs holds up the question like everything else on that file system.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::fs::fstatfs;

/// tmpfs.
const TMPFS: u32 = 0x0102_1994;
/// FUSE, virtiofs included.
const FUSE: u32 = 0x6573_5546;
/// ext2 to ext4, XFS, Btrfs, tmpfs, ramfs, F2FS and bcachefs.
const LOCAL: [u32; 7] = [0xef53, 0x5846_5342, 0x9123_683e, TMPFS, 0x8584_58f6, 0xf2f5_2010, 0xca45_1a4e];

/// A file system, by its magic number from `<linux/magic.h>`; `None` = it does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileSystem(Option<u32>);

impl FileSystem {
    /// That of an opened file.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Self {
        Self(fstatfs(fd).ok().and_then(|fs| u32::try_from(fs.f_type).ok()))
    }

    /// Whether it says where data is without waiting for somebody else.
    pub(super) fn answers_at_once(self) -> bool {
        self.0.is_some_and(|magic| LOCAL.contains(&magic))
    }

    /// Whether it is in memory, takes `O_DIRECT` and ignores it.
    pub(super) fn is_tmpfs(self) -> bool {
        self.0 == Some(TMPFS)
    }

    /// Whether a write that asks to be durable at its end is. Not on FUSE, where Linux forgets the wish when the write is direct
    /// and asynchronous (met on 6.18: `RWF_DSYNC` through io_uring or aio sends no `FUSE_FSYNC`, through pwritev2 it does).
    pub(super) fn writes_through(self) -> bool {
        self.0 != Some(FUSE)
    }

    /// Its name, if its files have no bytes of their own: their size is a fiction, and each read may differ.
    pub(super) fn made_up(self) -> Option<&'static str> {
        match self.0? {
            0x9fa0 => Some("procfs"),
            0x6265_6572 => Some("sysfs"),
            0x6462_6720 => Some("debugfs"),
            0x7472_6163 => Some("tracefs"),
            0x6367_7270 => Some("cgroupfs"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// A copy of many small extents would take a detour for each if the list did not know the file system, and a worker could
    /// hang if it knew too much.
    #[test]
    fn memory_is_local_and_what_the_kernel_makes_up_is_not_known() {
        let of = |path| FileSystem::of(File::open(path).unwrap().as_fd());
        assert!(of("/dev/shm").answers_at_once());
        assert!(!of("/proc").answers_at_once());
    }
}
