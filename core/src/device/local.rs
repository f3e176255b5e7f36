//! Whether asking a file where its data is may hang.
//!
//! The question is a system call on the thread that asks. A file system on a disk of this machine answers from its own
//! metadata, in a microsecond or after a read. One whose answers come from a server or from another program (NFS, CIFS, Ceph, 9p,
//! virtiofs, every FUSE) answers when that does, or never, and whoever asked cannot be woken meanwhile. So the list is of
//! those that are known to be quick, and whatever is not on it is asked on a thread of its own: that costs some microseconds
//! a question, a hang on a worker's thread costs every job of that worker.
//!
//! Not on the list although local: ZFS, which may wait for a transaction group to be written before it answers, and
//! overlayfs, which stands on whatever it stands on. What is below a file system is not looked at: metadata that has to be read
//! from a block device which hangs holds up the question like everything else on that file system.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::fs::fstatfs;

/// The magic numbers of ext2 to ext4, XFS, Btrfs, tmpfs, ramfs, F2FS and bcachefs, from `<linux/magic.h>`.
const LOCAL: [u32; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x8584_58f6, 0xf2f5_2010, 0xca45_1a4e];

/// Whether a file lies on a file system of the list. One that does not even say what it is does not.
pub(super) fn is_local(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|fs| u32::try_from(fs.f_type).is_ok_and(|magic| LOCAL.contains(&magic)))
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
        assert!(is_local(File::open("/dev/shm").unwrap().as_fd()));
        assert!(!is_local(File::open("/proc").unwrap().as_fd()));
    }
}
