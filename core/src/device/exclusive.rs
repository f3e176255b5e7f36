//! Is somebody using the target, and how do we keep others away?
//!
//! A block device is claimed with `O_EXCL`: the kernel refuses that while a mount, RAID, device-mapper or another claimer
//! has it, and refuses them while we have it. The tables in /proc and /sys are read first, to say *who* has it, and to
//! catch what the kernel does not count as a claim (a loop device over it).
//!
//! A regular file gets a write lock over all its bytes that belongs to our open file description (OFD), so it does not
//! vanish when some other part of the host closes the same file. VMMs such as QEMU take shared OFD locks on single bytes
//! of the images they use, so the two see each other: an image in use by a running guest is refused as a target, and a
//! guest cannot be started on our target. A *source* gets no lock at all: a shared lock over all its bytes would look to
//! such a VMM like somebody who forbids everything, and could stop a guest from re-opening its own disk.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::identity::{self, Piece};
use super::mounts::{Mount, mounts, swaps};
use super::{DeviceKind, FileId, sysfs};

/// Why a target cannot be written to, whoever asks; `None` if nothing says so.
pub(super) fn read_only(id: FileId, kind: DeviceKind) -> Option<String> {
    if kind != DeviceKind::BlockDevice {
        return None;
    }
    // Root may open a read-only block device for writing and fails only at the first write.
    let flag: u32 = sysfs::number(&sysfs::directory(id.rdev)?.join("ro"))?;
    (flag != 0).then(|| "the block device is read-only (see blockdev --getro)".to_owned())
}

/// Who uses a would-be target, in words, as far as /proc and /sys tell.
pub(super) fn used_by(id: FileId, kind: DeviceKind) -> Option<String> {
    let own = identity::own_piece(id, kind);
    let user = mounted(&own, kind).or_else(|| swapped_to(&own)).or_else(|| behind_loop(&own));
    match kind {
        DeviceKind::BlockDevice => user.or_else(|| held(id.rdev)),
        DeviceKind::RegularFile => user,
    }
}

/// The mounted file system on a block device, on a part of it, or on the disk it is a part of.
fn mounted(own: &Piece, kind: DeviceKind) -> Option<String> {
    if kind != DeviceKind::BlockDevice {
        return None;
    }
    let (mount, device) = mounts().into_iter().find_map(|mount| {
        let device = mount.block_device()?;
        own.touches(&Piece::of_device(device)).then_some((mount, device))
    })?;
    let Mount { point, .. } = mount;
    Some(format!("{} is mounted on {}; unmount it first", which(own, device), point.display()))
}

/// Names `device` as seen from the target: itself, or a part, or the whole of it.
fn which(own: &Piece, device: u64) -> String {
    if Piece::of_device(device) == *own { "it".to_owned() } else { sysfs::device_name(device) }
}

/// The swap space on it or in it.
fn swapped_to(own: &Piece) -> Option<String> {
    let swap = swaps().into_iter().find(|path| Piece::of_path(path).is_some_and(|p| own.touches(&p)))?;
    Some(format!("it is used as swap space ({}); run swapoff first", swap.display()))
}

/// The loop device that shows it.
fn behind_loop(own: &Piece) -> Option<String> {
    let (device, _) = sysfs::loops().into_iter().find(|(_, backing)| {
        Piece::of_path(&backing.path).is_some_and(|p| own.touches(&p.narrowed(backing.range)))
    })?;
    let name = sysfs::device_name(device);
    Some(format!(
        "it is behind the loop device {name}; detach that (losetup -d {name}), or write to {name} instead"
    ))
}

/// The device-mapper or RAID device that is made from it or from a part of it.
fn held(rdev: u64) -> Option<String> {
    let directory = sysfs::directory(rdev)?;
    let mut holders = sysfs::related(&directory, "holders");
    for partition in sysfs::partitions(&directory) {
        holders.extend(sysfs::directory(partition).iter().flat_map(|d| sysfs::related(d, "holders")));
    }
    let location = sysfs::locate(rdev);
    if location.disk != rdev {
        holders.extend(location.directory.iter().flat_map(|d| sysfs::related(d, "holders")));
    }
    let holder = holders.first()?;
    Some(format!(
        "it is a part of {} (device-mapper or RAID); use that one, or stop it",
        sysfs::device_name(*holder)
    ))
}

/// What a host may do that holds the device itself, in the words of both its languages.
pub(super) const SHARE_IT: &str = "if you hold it for this yourself, allow sharing \
    (TargetOptions::allow_shared, in C BLKM_DEVICE_F_ALLOW_SHARED)";

/// How long a hold is waited for. The kernel takes a ring apart after the process that had it has ended, and until then the ring
/// has the files that were attached to it, with their locks: some milliseconds.
const PATIENCE: Duration = Duration::from_millis(200);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Waits for a hold that may be about to go.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// When it was met first.
    since: Option<Instant>,
}

impl Patience {
    /// Sleeps a little and says that it is worth another look, unless it has waited long enough.
    pub(super) fn sleeps(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let goes_on = since.elapsed() < PATIENCE;
        if goes_on {
            std::thread::sleep(LOOK);
        }
        goes_on
    }
}

/// A lock over all bytes of a file.
const fn whole_file(lock_type: libc::c_int) -> libc::flock {
    libc::flock {
        // F_RDLCK and F_WRLCK are 0 and 1.
        #[allow(clippy::cast_possible_truncation)]
        l_type: lock_type as libc::c_short,
        // SEEK_SET is 0.
        #[allow(clippy::cast_possible_truncation)]
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The first descriptor of a device, and the lock on it, if one was taken. The lock goes when this is dropped.
///
/// Closing the file gives it up, too, but only once nobody has the open file description any more: a worker thread of io_uring
/// that carried out the last request may have it for milliseconds after we were told of its end (seen on tmpfs), and whoever opened
/// the target again in that time would find it in use.
#[derive(Debug)]
pub(super) struct Claim {
    /// The descriptor.
    fd: OwnedFd,
    /// The process that took the lock. A child that it forked has the same open file description and must not give up the
    /// lock of both; nor must we, one that a host took on a descriptor that it gave us.
    locked_by: Option<u32>,
    /// The descriptor claims a block device (`O_EXCL`).
    claims_device: bool,
}

impl Claim {
    /// A descriptor without a lock; a block device may be claimed by it.
    pub(super) fn without_lock(fd: OwnedFd, claims_device: bool) -> Self {
        Self { fd, locked_by: None, claims_device }
    }

    /// Whether it keeps others away.
    pub(super) fn is_exclusive(&self) -> bool {
        self.claims_device || self.locked_by.is_some()
    }

    /// Locks a target file for us alone. A file system without locks is no reason to refuse; it gives a note.
    pub(super) fn lock(&mut self) -> Result<Option<String>, String> {
        let mut patience = Patience::default();
        let locked = loop {
            match fcntl(&self.fd, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                Err(Errno::EAGAIN | Errno::EACCES) if patience.sleeps() => {}
                locked => break locked,
            }
        };
        match locked {
            Ok(_) => {
                self.locked_by = Some(std::process::id());
                Ok(None)
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Err(format!(
                "it is in use: somebody (this process or another{}) holds a lock on it; close it there, or {SHARE_IT}",
                lock_owner(self.fd.as_fd(), libc::F_WRLCK).unwrap_or_default()
            )),
            Err(e) => Ok(Some(format!(
                "it could not be locked against other writers ({e}); make sure there are none"
            ))),
        }
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.locked_by == Some(std::process::id()) {
            // A file that cannot be unlocked is unlocked when it is closed.
            let _ = fcntl(&self.fd, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
        }
    }
}

/// The process that stands in the way of a lock, `, pid N`, where the kernel says so; OFD locks have no process.
fn lock_owner(fd: BorrowedFd<'_>, lock_type: libc::c_int) -> Option<String> {
    let mut probe = whole_file(lock_type);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut probe)).ok()?;
    (probe.l_pid > 0).then(|| format!(", pid {}", probe.l_pid))
}

/// Whether somebody holds a write lock on the file. Only asks, takes nothing.
fn write_locked(fd: BorrowedFd<'_>) -> bool {
    let mut probe = whole_file(libc::F_RDLCK);
    let asked = fcntl(fd, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok();
    asked && i32::from(probe.l_type) != libc::F_UNLCK
}

/// What a user should know about other users of a source. None of it stops us: a live mirror's source is in use.
pub(super) fn source_notes(fd: BorrowedFd<'_>, id: FileId, kind: DeviceKind) -> Vec<String> {
    let mut notes = Vec::new();
    match kind {
        DeviceKind::RegularFile => {
            if write_locked(fd) {
                notes.push(
                    "somebody holds a write lock on it and may be changing it; what is read can be a mixture of before \
                     and after"
                        .to_owned(),
                );
            }
        }
        DeviceKind::BlockDevice => {
            let own = identity::own_piece(id, kind);
            let written = |m: &Mount| {
                m.writable && m.block_device().is_some_and(|device| own.touches(&Piece::of_device(device)))
            };
            if let Some(mount) = mounts().into_iter().find(written) {
                notes.push(format!(
                    "a file system on it is mounted for writing on {}; what is read can be a mixture of before and after",
                    mount.point.display()
                ));
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;

    /// A claim on another descriptor of the same open file description, as one that was duplicated.
    fn claim(file: &File) -> Claim {
        Claim::without_lock(file.try_clone().unwrap().into(), false)
    }

    /// Whether somebody with an open file description of his own finds the file locked.
    fn is_locked(path: &Path) -> bool {
        write_locked(File::options().write(true).open(path).unwrap().as_fd())
    }

    /// The kernel may have the file a little longer than we do, and the next job's target would be in use.
    #[test]
    fn a_lock_goes_with_its_claim_although_somebody_still_has_the_file() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let mut claimed = claim(named.as_file());
        assert_eq!(claimed.lock(), Ok(None));
        assert!(is_locked(named.path()));
        drop(claimed);
        assert!(!is_locked(named.path()));
    }

    /// A host that holds its image by a lock of its own would lose it to a job that only read the image.
    #[test]
    fn a_claim_that_took_no_lock_leaves_a_hosts_own_alone() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let mut hosts = claim(named.as_file());
        assert_eq!(hosts.lock(), Ok(None));
        drop(claim(named.as_file()));
        assert!(is_locked(named.path()));
    }
}
