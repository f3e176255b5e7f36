//! Devices: opened files and block devices, with their limits.
//!
//! A [`Device`] is one side of a mirror job: a block device or a regular file that holds a raw image, opened with
//! `O_DIRECT`. What it does: it opens (a source never for writing: "Our hands off the source"), keeps others away from a
//! target, says how requests must look ([`Limits`]), where data is ([`Device::status`]), and changes space without data
//! (preallocate, zero, discard). Reads and writes themselves go through a ring, not through here.
//!
//! What it may assume: the caller keeps offsets inside the disk. What it assumes of nobody: that a path still names the
//! same file a moment later. A path is looked at once (`O_PATH`), judged, and then opened through that very handle; so a
//! fifo never blocks us and the thing that was judged is the thing that is used.
//!
//! | file | what is in it |
//! |---|---|
//! | `open` | from a path or a descriptor to a device; which files are refused |
//! | `identity` | which bytes a device stands on, and whether two devices share some |
//! | `exclusive` | mounts, swap, holders, locks: is somebody using the target? |
//! | `limits`, `sysfs` | alignment and request sizes, and where each number comes from |
//! | `describe` | the same for people |
//! | `status` | where data is and where holes are |
//! | `filesystem` | what is known of file systems: which tell that without waiting for somebody else, and more |
//! | `space` | preallocate, write zeroes, discard, flush |
#![forbid(unsafe_code)]

mod describe;
mod exclusive;
mod filesystem;
mod identity;
mod limits;
mod mounts;
mod open;
mod space;
mod status;
mod sysfs;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::exclusive::Claim;
use self::filesystem::FileSystem;
use crate::error::{Error, Result};

pub use describe::Detail;
pub use limits::{AlignmentOrigin, Limits, QueueLimits};
pub use space::{ZeroMode, Zeroed};
pub use status::{Extent, ExtentKind};

/// What a device is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// A block device.
    BlockDevice,
    /// A regular file holding a raw image.
    RegularFile,
}

/// What a device was opened for: a side of a job, or a guest; it decides about rights and locks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Read only, shared with whoever writes to it.
    Source,
    /// Read and write, ours alone.
    Target,
    /// A guest's own disk, read and written for it and by nobody else. It is the source of a job, too.
    Disk,
}

impl Role {
    /// Whether it is opened for writing, and then kept for us alone.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::Target | Self::Disk)
    }

    /// What opening is called in an error.
    const fn attempt(self) -> &'static str {
        match self {
            Self::Source => "open the source",
            Self::Target => "open the target",
            Self::Disk => "open the guest's disk",
        }
    }
}

/// How a target or a guest's disk is opened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TargetOptions {
    /// Take no exclusive hold: no `O_EXCL` on a block device, no lock on a file. For tests, and for a host that holds
    /// the target exclusively itself and hands its descriptor over. A mounted target is refused all the same.
    pub allow_shared: bool,
}

/// Who a file is, under whatever name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct FileId {
    /// The file system it is on.
    dev: u64,
    /// Its inode there.
    ino: u64,
    /// The device behind it, if it is a device node; else 0.
    rdev: u64,
}

/// What all descriptors of one opened device share.
#[derive(Debug)]
struct Shared {
    /// How the caller called it.
    name: String,
    /// Block device or file.
    kind: DeviceKind,
    /// What it was opened for.
    role: Role,
    /// Who it is.
    id: FileId,
    /// Its size when last looked at.
    size_bytes: AtomicU64,
    /// How requests must look.
    limits: Limits,
    /// Whether `O_DIRECT` is on.
    direct: bool,
    /// Things worth knowing that did not stop us.
    notes: Vec<String>,
    /// What kinds of zeroing failed before and need not be tried again.
    ladder: space::Ladder,
    /// What it lies on.
    file_system: FileSystem,
    /// Set when the file system cannot tell holes from data.
    no_status: AtomicBool,
    /// A drive or a job may write to it, and nobody else.
    lent: AtomicBool,
    /// The first descriptor. The exclusive hold (`O_EXCL`, the lock) hangs on it, so it lives as long as any of us.
    ///
    /// Nobody of us writes any more when it is dropped: a ring keeps the devices of requests that may still land.
    hold: Claim,
}

/// An opened block device or regular file with its limits. Cheap to [`reopen`](Self::reopen); closed when the last one
/// is dropped, and with it the exclusive hold goes.
#[derive(Debug)]
pub struct Device {
    /// Our own descriptor, if it is not the first one.
    own: Option<OwnedFd>,
    /// Everything that does not change between descriptors.
    shared: Arc<Shared>,
    /// The right to write to it, if it was lent.
    loan: Option<Arc<Loan>>,
}

/// The right of one drive or job to write to a device that its host goes on holding. Given back when the last descriptor that came
/// with it is closed; one that the kernel may still write through keeps it for ever.
#[derive(Debug)]
struct Loan(Arc<Shared>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.lent.store(false, Ordering::Release);
    }
}

impl Device {
    /// Opens a source, read only.
    ///
    /// Opened with `O_RDONLY | O_DIRECT` (see `open(2)`), without `O_DIRECT` where the file system refuses that
    /// ([`is_direct`](Self::is_direct) tells). The path is followed through symbolic links once; what it names later does
    /// not matter.
    ///
    /// A source takes no lock and asks for none: a guest may be writing to it, and any lock of ours could stop that
    /// guest's VMM from opening or re-opening its disk. What we noticed about other users is in [`notes`](Self::notes).
    ///
    /// # Errors
    /// One line that names the file and the cause: missing, a directory, a character device, a file of procfs or sysfs, no
    /// permission, a size that is not a multiple of 512, larger than 64 TiB.
    pub fn open_source(path: &Path) -> Result<Self> {
        open::by_path(path, Role::Source, TargetOptions::default())
    }

    /// Opens a device only to look at it, as [`open_source`](Self::open_source) does; errors do not speak of a source.
    ///
    /// # Errors
    /// As [`open_source`](Self::open_source).
    pub fn open_for_reading(path: &Path) -> Result<Self> {
        open::for_reading(path)
    }

    /// Opens a target with `O_RDWR | O_DIRECT`, and keeps others away from it as long as it lives.
    ///
    /// A block device is opened with `O_EXCL` (see `open(2)`: without `O_CREAT` it fails with `EBUSY` while the device is
    /// in use by the system, such as mounted), so mounts and other claimers stay out; whoever opens it without `O_EXCL`
    /// does not. A regular file gets a write lock over all its bytes with `F_OFD_SETLK` (see `fcntl(2)`), which is
    /// advisory: it keeps away those who ask, as VMMs do.
    ///
    /// Both belong to the open file description, not to the process. So a second open in the same process is refused like
    /// anybody else's, and a child made by `fork` shares the hold of a block device: until the child calls `execve` (`O_CLOEXEC`
    /// closes it) or ends, the device stays held even after this one was dropped. Use threads, or `execve` soon. The lock of a file
    /// is given up with the last of these in the process that took it.
    ///
    /// What somebody has locked or claimed is tried again for 200 ms: the kernel takes the rings of a process that was killed apart
    /// after the process is gone, and keeps its files until then, for some tens of milliseconds as a rule and for over a second
    /// while many writes are under way.
    ///
    /// # Errors
    /// As [`open_source`](Self::open_source), and: read-only, mounted, used as swap, held by another block device, locked
    /// or opened exclusively by somebody else. Nothing is changed on a target that is refused.
    pub fn open_target(path: &Path, options: TargetOptions) -> Result<Self> {
        open::by_path(path, Role::Target, options)
    }

    /// Opens a guest's disk, for a host that carries out its guest's requests through this library: for reading and writing,
    /// and exclusively, as [`open_target`](Self::open_target) does. It may be the source of a job.
    ///
    /// # Errors
    /// As [`open_target`](Self::open_target), except that any size is taken that a source may have.
    pub fn open_disk(path: &Path) -> Result<Self> {
        Self::open_disk_with(path, TargetOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk).
    pub fn open_disk_with(path: &Path, options: TargetOptions) -> Result<Self> {
        open::by_path(path, Role::Disk, options)
    }

    /// A guest's disk from a descriptor of the host's; see [`source_from_fd`](Self::source_from_fd).
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk). A host that itself opened the block device with `O_EXCL` or locked the file is
    /// "somebody else" here, unless it passes [`TargetOptions::allow_shared`].
    pub fn disk_from_fd(fd: BorrowedFd<'_>, name: &str, options: TargetOptions) -> Result<Self> {
        open::by_fd(fd, name, Role::Disk, options)
    }

    /// Creates a regular file of `size_bytes` that is one hole, and opens it as a target. Disk images hold other people's
    /// data, so its mode is 0600 (less what the umask takes away).
    ///
    /// A size above the process's `RLIMIT_FSIZE` makes `ftruncate(2)` raise SIGXFSZ, which ends a process that neither
    /// handles nor ignores it; with a handler, or ignored, the error is [`ErrorKind::WrongSize`](crate::ErrorKind).
    /// The same holds for writes past that limit in an existing file.
    ///
    /// When this returns the file's name is durable, so that a crash does not take away a target that a host has written down as
    /// its guest's disk: its directory was flushed, or, where that may not be read, all of the file system. (What is in the file is
    /// made durable by whoever writes it.) It blocks until then.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind), also for a symbolic link to nothing; it cannot be created, made so large,
    /// or made durable. A file that was half made is removed again.
    pub fn create_target(path: &Path, size_bytes: u64) -> Result<Self> {
        open::create(path, size_bytes)
    }

    /// A source from a descriptor of the host's, which stays the host's. `name` is for messages.
    ///
    /// The file is opened anew through `/proc/self/fd`, so the host's file position and flags are left alone. Where that
    /// is forbidden (a descriptor from somebody with more rights) the descriptor is duplicated; then `O_DIRECT` is
    /// whatever the host chose, and asking for holes moves the file position that both share.
    ///
    /// # Errors
    /// As [`open_source`](Self::open_source).
    pub fn source_from_fd(fd: BorrowedFd<'_>, name: &str) -> Result<Self> {
        open::by_fd(fd, name, Role::Source, TargetOptions::default())
    }

    /// A target from a descriptor of the host's; see [`source_from_fd`](Self::source_from_fd).
    ///
    /// # Errors
    /// As [`open_target`](Self::open_target). A host that itself opened the block device with `O_EXCL` or locked the file
    /// is "somebody else" here, unless it passes [`TargetOptions::allow_shared`].
    pub fn target_from_fd(fd: BorrowedFd<'_>, name: &str, options: TargetOptions) -> Result<Self> {
        open::by_fd(fd, name, Role::Target, options)
    }

    /// The same device with an open file description (and so a file position) of its own, for another worker. Rights are
    /// the same; the exclusive hold of the first lives on until the last one is dropped.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn reopen(&self) -> Result<Self> {
        let own = open::again(self)?;
        Ok(Self { own: Some(own), shared: Arc::clone(&self.shared), loan: self.loan.clone() })
    }

    /// The same device for one drive or one job, on the first open file description, for a host that keeps its own. A device that
    /// is written is lent to one at a time, until the last descriptor of that loan is closed: two who write to it would not know of
    /// each other's writes. So it is refused to a second job while a request of the first may still land, as a second opening would
    /// be.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind) while it is lent.
    pub fn lend(&self) -> Result<Self> {
        let mut loan = None;
        if self.role().is_writable() {
            if self.shared.lent.swap(true, Ordering::AcqRel) {
                return Err(Error::new(crate::ErrorKind::Busy, "use").at(self.name()).because(
                    "a drive or a job has it already, or requests of one that is over may still land; wait for its end",
                ));
            }
            loan = Some(Arc::new(Loan(Arc::clone(&self.shared))));
        }
        Ok(Self { own: None, shared: Arc::clone(&self.shared), loan })
    }

    /// How the caller called it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Block device or regular file.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.shared.kind
    }

    /// Source, target or a guest's disk.
    #[must_use]
    pub fn role(&self) -> Role {
        self.shared.role
    }

    /// Its size when it was opened or last [refreshed](Self::refresh_size).
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        // Relaxed: a number on its own, nothing is published with it.
        self.shared.size_bytes.load(Ordering::Relaxed)
    }

    /// Asks the kernel for the size again, so that a device that shrank or grew is noticed.
    ///
    /// # Errors
    /// The device is gone.
    pub fn refresh_size(&self) -> Result<u64> {
        let size_bytes = open::current_size(self.as_fd(), self.kind())
            .map_err(|e| Error::from_io("ask for the size of", e).at(self.name()))?;
        self.shared.size_bytes.store(size_bytes, Ordering::Relaxed);
        Ok(size_bytes)
    }

    /// How requests must look, as learnt when it was opened.
    ///
    /// Alignment is that of `statx(2)` with `STATX_DIOALIGN` (Linux 6.1); where that says nothing, the `BLKSSZGET` ioctl
    /// of a block device, or 4096. Request sizes of a block device come from `max_sectors_kb`, `max_segments` and
    /// `max_segment_size` in `/sys/block/DISK/queue` (Linux's `Documentation/ABI/stable/sysfs-block`). Each number's
    /// origin is in [`describe`](Self::describe).
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Whether requests bypass the page cache. Off only where the file system refuses `O_DIRECT`, or where a host handed
    /// over a descriptor without it that could not be opened anew.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.shared.direct
    }

    /// Whether it is kept from others: claimed with `O_EXCL`, or locked. Not so for a source, with [`TargetOptions::allow_shared`],
    /// and on a file system without locks.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.shared.hold.is_exclusive()
    }

    /// Things worth telling the user that did not stop the device from being opened.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.shared.notes
    }

    /// Whether the two share any byte, under whatever names; see [`overlaps_with`](Self::overlaps_with).
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.overlaps_with(other).is_some()
    }

    /// Why the two must not be the two sides of one job, in words that follow "the source and the target ...", or `None`
    /// if they share nothing that we can see.
    ///
    /// Seen: hard links, symlinks and other nodes of the same device; a partition and its disk, or partitions that
    /// overlap; a loop device and what is behind it; device-mapper and RAID over one of them; a file on a file system that
    /// lies on the other; two paths to one disk (same WWID). Not seen: a file behind a loop device after its name was
    /// deleted, and files of union or network file systems that are one below.
    #[must_use]
    pub fn overlaps_with(&self, other: &Self) -> Option<String> {
        identity::overlap(&self.shared, &other.shared)
    }

    /// What is known about the device, with the origin of every number and what is off and why: for `blkmirror info`.
    #[must_use]
    pub fn describe(&self) -> Vec<Detail> {
        describe::details(self)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or_else(|| self.shared.hold.as_fd(), AsFd::as_fd)
    }
}

/// Workers share devices and pass them on; this does not compile if they no longer could.
const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Device>();
};
