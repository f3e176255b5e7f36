//! From a path or a descriptor to a device.
//!
//! The order matters: look (`O_PATH`, which neither blocks nor triggers anything), judge, open through the handle that
//! was judged, hold, look again at size and limits. A target is judged before it is opened for writing, so what
//! is refused was never touched.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::fs::{
    FileType, Mode, OFlags, SeekFrom, Stat, fcntl_getfl, fcntl_setfl, fstat, fsync, ftruncate, open, seek,
    syncfs, unlink,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::exclusive::{Claim, Patience, SHARE_IT};
use super::filesystem::FileSystem;
use super::{Device, DeviceKind, FileId, Role, Shared, TargetOptions, exclusive, limits, space};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{MAX_DISK_BYTES, format_size};

/// The unit that the size of every disk must be a multiple of.
const SECTOR_BYTES: u64 = 512;

/// A file being opened: what it is called and what for.
#[derive(Clone, Copy)]
struct Request<'a> {
    /// How the caller calls it.
    name: &'a str,
    /// What opening it is called in an error.
    attempt: &'static str,
    /// What for.
    role: Role,
    /// How, if it is to be written.
    options: TargetOptions,
}

impl<'a> Request<'a> {
    /// A request for one side of a job.
    const fn new(name: &'a str, role: Role, options: TargetOptions) -> Self {
        Self { name, attempt: role.attempt(), role, options }
    }

    /// An error about this file.
    fn error(&self, kind: ErrorKind, why: impl Into<String>) -> Error {
        Error::new(kind, self.attempt).at(self.name).because(why)
    }

    /// An error from a failed system call, with the cause in words where the errno alone says too little.
    fn failed(&self, errno: Errno) -> Error {
        let error = Error::from_io(self.attempt, errno).at(self.name);
        match errno {
            Errno::NOENT => error.because("no such file or device"),
            Errno::ACCESS | Errno::PERM => error.because(format!(
                "no permission to {}",
                match self.role {
                    Role::Source => "read it",
                    Role::Target | Role::Disk => "write to it, or it is read-only",
                }
            )),
            Errno::ROFS => error.because("it is on a read-only file system"),
            Errno::NXIO | Errno::NODEV => error.because("there is no device behind this node"),
            Errno::NOMEDIUM => {
                error.with_kind(ErrorKind::NotFound).because("there is no medium in the drive")
            }
            Errno::TXTBSY => error.because("it is in use as a program or as swap space"),
            Errno::NOTDIR => error.because("a part of the path before the last is not a directory"),
            Errno::LOOP => {
                error.because("its symbolic links lead in a circle, or there are too many of them")
            }
            _ => error,
        }
    }
}

/// Opens what `path` names.
pub(super) fn by_path(path: &Path, role: Role, options: TargetOptions) -> Result<Device> {
    let name = path.display().to_string();
    look_and_open(path, &Request::new(&name, role, options))
}

/// Opens what `path` names with the rights of a source, for something that is no job.
pub(super) fn for_reading(path: &Path) -> Result<Device> {
    let name = path.display().to_string();
    let request = Request::new(&name, Role::Source, TargetOptions::default());
    look_and_open(path, &Request { attempt: "open", ..request })
}

/// Looks, judges, and opens through the handle that was judged.
fn look_and_open(path: &Path, request: &Request<'_>) -> Result<Device> {
    let seen = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|e| match e {
        Errno::NOENT if path.is_symlink() => request.failed(e).because("it is a symbolic link to nothing"),
        e => request.failed(e),
    })?;
    let (id, kind) = judge(request, seen.as_fd())?;
    let (fd, direct) = match claim_seen(seen.as_fd(), access(request, kind), (id, kind)) {
        // Without /proc there is no way through the handle; go by the path and see that it is still the same file.
        Err(Errno::NOENT) => open_by_path_again(path, request, id, kind)?,
        other => other.map_err(|e| opening_failed(request, id, kind, e))?,
    };
    finish(request, fd, direct, (id, kind))
}

/// Opens what `fd` is, leaving `fd` to its owner.
pub(super) fn by_fd(fd: BorrowedFd<'_>, name: &str, role: Role, options: TargetOptions) -> Result<Device> {
    let request = Request::new(name, role, options);
    let flags = fcntl_getfl(fd).map_err(|e| request.failed(e))?;
    let (id, kind) = judge(&request, fd)?;
    let mode = flags & OFlags::RWMODE;
    let enough = match role {
        Role::Source => mode == OFlags::RDONLY || mode == OFlags::RDWR,
        Role::Target | Role::Disk => mode == OFlags::RDWR,
    };
    if !enough || flags.contains(OFlags::PATH) {
        let need = if role == Role::Source { "reading" } else { "reading and writing" };
        return Err(request.error(
            ErrorKind::PermissionDenied,
            format!("the descriptor was not opened for {need}; open it so and pass it again"),
        ));
    }
    let flags_wanted = access(&request, kind);
    let (own, direct) = match claim_seen(fd, flags_wanted, (id, kind)) {
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS)
            if flags_wanted.contains(OFlags::EXCL) =>
        {
            let why = format!("it cannot be opened anew to claim it for us alone; {SHARE_IT}");
            return Err(request.error(ErrorKind::PermissionDenied, why));
        }
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            let copy = fcntl_dupfd_cloexec(fd, 3).map_err(|e| request.failed(e))?;
            (copy, flags.contains(OFlags::DIRECT))
        }
        other => other.map_err(|e| opening_failed(&request, id, kind, e))?,
    };
    finish(&request, own, direct, (id, kind))
}

/// Creates a target file that is one hole.
pub(super) fn create(path: &Path, size_bytes: u64) -> Result<Device> {
    let name = path.display().to_string();
    let failed = |e: Errno| {
        let error = Error::from_io("create the target", e).at(&name);
        match e {
            Errno::EXIST => error.because("it exists already"),
            Errno::NOENT => error.because("the directory does not exist"),
            Errno::FBIG => error.because(format!(
                "a file of {} is above the process's limit (ulimit -f) or the file system's largest file",
                format_size(size_bytes)
            )),
            _ => error,
        }
    };
    let request = Request::new(&name, Role::Target, TargetOptions::default());
    check_size(&request, size_bytes, SECTOR_BYTES)?;
    // Without O_DIRECT at first: where that is refused, the open fails but the file is there. Disk images hold other
    // people's data, so only the owner may read it.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let made = ftruncate(&fd, size_bytes)
        .map_err(failed)
        .and_then(|()| by_fd(fd.as_fd(), &name, Role::Target, TargetOptions::default()))
        .and_then(|device| {
            let why = |e| Error::from_io("make the name of the new target durable", e).at(&name);
            keep_name(path, fd.as_fd()).map(|()| device).map_err(why)
        });
    if made.is_err() {
        // Ours, made a moment ago with O_EXCL, and of no use to anybody.
        let _ = unlink(path);
    }
    made
}

/// Makes the name of a new file durable: that is its directory's, and a flush of the file need not reach it.
fn keep_name(path: &Path, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => match fsync(&directory) {
            // So say file systems whose directories cannot be flushed.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
            flushed => flushed,
        },
        // Files may be made in it all the same.
        Err(Errno::ACCESS) => syncfs(file),
        Err(e) => Err(e),
    }
}

/// Another open file description of `device`.
pub(super) fn again(device: &Device) -> Result<OwnedFd> {
    let shared = &device.shared;
    let mut flags = base_flags(shared.role);
    flags.set(OFlags::DIRECT, shared.direct);
    // No O_EXCL: the hold of the first descriptor is enough, and a second claim would collide with it.
    match open(proc_path(shared.hold.as_fd()), flags, Mode::empty()) {
        Ok(fd) => {
            without_access_time(fd.as_fd());
            Ok(fd)
        }
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::INVAL) => {
            fcntl_dupfd_cloexec(shared.hold.as_fd(), 3)
                .map_err(|e| Error::from_io("duplicate", e).at(&shared.name))
        }
        Err(e) => Err(Error::from_io("open again", e).at(&shared.name)),
    }
}

/// The size of an opened device now.
pub(super) fn current_size(fd: BorrowedFd<'_>, kind: DeviceKind) -> rustix::io::Result<u64> {
    match kind {
        // fstat says 0 for a block device. The file position that this moves is used by nobody.
        DeviceKind::BlockDevice => seek(fd, SeekFrom::End(0)),
        DeviceKind::RegularFile => fstat(fd).map(|stat| u64::try_from(stat.st_size).unwrap_or(0)),
    }
}

/// Looks at a handle: is it something that can be mirrored, and, if it is to be written, is it free?
fn judge(request: &Request<'_>, seen: BorrowedFd<'_>) -> Result<(FileId, DeviceKind)> {
    let stat = fstat(seen).map_err(|e| request.failed(e))?;
    let wrong = |what: &str| {
        let why = format!("it is {what}; only block devices and regular files can be mirrored");
        Err(request.error(ErrorKind::WrongFileType, why))
    };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => DeviceKind::BlockDevice,
        FileType::RegularFile => match FileSystem::of(seen).made_up() {
            None => DeviceKind::RegularFile,
            Some(file_system) => {
                return wrong(&format!("a file of {file_system}, which the kernel makes up when it is read"));
            }
        },
        FileType::Directory => return wrong("a directory"),
        FileType::CharacterDevice => return wrong("a character device"),
        FileType::Fifo => return wrong("a fifo"),
        FileType::Socket => return wrong("a socket"),
        _ => return wrong("a file of an unknown type"),
    };
    let id = file_id(&stat, kind);
    if request.role.is_writable() {
        if let Some(why) = exclusive::read_only(id, kind) {
            return Err(request.error(ErrorKind::PermissionDenied, why));
        }
        if let Some(why) = exclusive::used_by(id, kind) {
            return Err(request.error(ErrorKind::Busy, why));
        }
    }
    Ok((id, kind))
}

/// Who a file is.
fn file_id(stat: &Stat, kind: DeviceKind) -> FileId {
    let rdev = if kind == DeviceKind::BlockDevice { stat.st_rdev } else { 0 };
    FileId { dev: stat.st_dev, ino: stat.st_ino, rdev }
}

/// The rights that a role needs, and never more.
const fn base_flags(role: Role) -> OFlags {
    match role {
        Role::Source => OFlags::RDONLY.union(OFlags::CLOEXEC),
        Role::Target | Role::Disk => OFlags::RDWR.union(OFlags::CLOEXEC),
    }
}

/// The flags to open with, except `O_DIRECT`.
fn access(request: &Request<'_>, kind: DeviceKind) -> OFlags {
    let exclusive =
        request.role.is_writable() && kind == DeviceKind::BlockDevice && !request.options.allow_shared;
    let mut flags = base_flags(request.role);
    // On a block device, O_EXCL without O_CREAT claims it: mounts, RAID and other claimers stay out.
    flags.set(OFlags::EXCL, exclusive);
    flags
}

/// The path that leads through a handle to the file behind it.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens the file behind a handle, with `O_DIRECT` if the file system takes it. Says whether it did.
fn open_seen(seen: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<(OwnedFd, bool)> {
    open_direct(Path::new(&proc_path(seen)), flags)
}

/// The same for a device that may be on its way back from a process that has just ended: waits a little if nothing says who else
/// has it.
fn claim_seen(
    seen: BorrowedFd<'_>,
    flags: OFlags,
    (id, kind): (FileId, DeviceKind),
) -> rustix::io::Result<(OwnedFd, bool)> {
    let mut patience = Patience::default();
    loop {
        match open_seen(seen, flags) {
            Err(Errno::BUSY) if exclusive::used_by(id, kind).is_none() && patience.sleeps() => {}
            other => return other,
        }
    }
}

/// Opens with `O_DIRECT` if the file system takes it; else without, which is slower but as correct.
fn open_direct(path: &Path, flags: OFlags) -> rustix::io::Result<(OwnedFd, bool)> {
    let (fd, direct) = match open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(Errno::INVAL) => (open(path, flags, Mode::empty())?, false),
        other => (other?, true),
    };
    without_access_time(fd.as_fd());
    Ok((fd, direct))
}

/// Leaves the time of the last access alone, which would be looked at for each read, and is nothing that a guest's reads should
/// change. Only the owner may ask for that; others do without. It must be a descriptor that we opened, for a duplicate shares its
/// flags.
fn without_access_time(own: BorrowedFd<'_>) {
    if let Ok(flags) = fcntl_getfl(own) {
        let _ = fcntl_setfl(own, flags | OFlags::NOATIME);
    }
}

/// Opens by path a second time, where /proc is missing, and checks that it is the file that was judged.
fn open_by_path_again(
    path: &Path,
    request: &Request<'_>,
    id: FileId,
    kind: DeviceKind,
) -> Result<(OwnedFd, bool)> {
    let opened =
        open_direct(path, access(request, kind)).map_err(|e| opening_failed(request, id, kind, e))?;
    let stat = fstat(&opened.0).map_err(|e| request.failed(e))?;
    if file_id(&stat, kind) == id {
        Ok(opened)
    } else {
        Err(request.error(ErrorKind::Busy, "it was replaced by another file while it was opened"))
    }
}

/// An error from opening; for a busy device it says who has it, as far as that can be seen.
fn opening_failed(request: &Request<'_>, id: FileId, kind: DeviceKind, errno: Errno) -> Error {
    if errno != Errno::BUSY {
        return request.failed(errno);
    }
    let why = exclusive::used_by(id, kind).unwrap_or_else(|| {
        format!(
            "it is in use: somebody (this process or another) holds it exclusively, or it is mounted where we cannot see it; \
             close it there, or {SHARE_IT}"
        )
    });
    Error::from_io(request.attempt, errno).at(request.name).because(why)
}

/// Takes the lock, looks at size and limits, and puts the device together.
fn finish(
    request: &Request<'_>,
    hold: OwnedFd,
    direct: bool,
    (id, kind): (FileId, DeviceKind),
) -> Result<Device> {
    let mut hold = Claim::without_lock(hold, access(request, kind).contains(OFlags::EXCL));
    let mut notes = Vec::new();
    match (request.role, kind) {
        (Role::Target | Role::Disk, DeviceKind::RegularFile) if !request.options.allow_shared => {
            match hold.lock() {
                Ok(note) => notes.extend(note),
                Err(why) => return Err(request.error(ErrorKind::Busy, why)),
            }
        }
        (Role::Source, _) => notes.extend(exclusive::source_notes(hold.as_fd(), id, kind)),
        _ => {}
    }
    if !direct {
        notes.push(
            "O_DIRECT is not possible here, so the page cache is used and copying costs more".to_owned(),
        );
    }
    let size_bytes = current_size(hold.as_fd(), kind).map_err(|e| request.failed(e))?;
    let file_system = FileSystem::of(hold.as_fd());
    let limits = limits::of(hold.as_fd(), id, kind, file_system, direct);
    let unit = match request.role {
        // The last, short part of a source can be read with a request that goes past the end.
        Role::Source | Role::Disk => SECTOR_BYTES,
        Role::Target => limits.logical_block_bytes.max(SECTOR_BYTES),
    };
    check_size(request, size_bytes, unit)?;
    Ok(Device {
        own: None,
        shared: Arc::new(Shared {
            name: request.name.to_owned(),
            kind,
            role: request.role,
            id,
            size_bytes: AtomicU64::new(size_bytes),
            limits,
            direct,
            notes,
            ladder: space::Ladder::default(),
            file_system,
            no_status: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            hold,
        }),
        loan: None,
    })
}

/// Refuses sizes that cannot be mirrored.
fn check_size(request: &Request<'_>, size_bytes: u64, unit_bytes: u64) -> Result<()> {
    if size_bytes > MAX_DISK_BYTES {
        let why =
            format!("its size of {size_bytes} bytes is above the limit of {}", format_size(MAX_DISK_BYTES));
        return Err(request.error(ErrorKind::WrongSize, why));
    }
    if !size_bytes.is_multiple_of(unit_bytes) {
        let why =
            format!("its size of {size_bytes} bytes is not a multiple of the sector, {unit_bytes} bytes");
        return Err(request.error(ErrorKind::WrongSize, why));
    }
    Ok(())
}
