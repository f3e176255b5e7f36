//! The FUSE side: a file system whose root is the one file.
//!
//! What makes hundreds of O_DIRECT requests truly concurrent: `FUSE_ASYNC_DIO` (the kernel does not wait for each),
//! `FOPEN_DIRECT_IO` together with `FOPEN_PARALLEL_DIRECT_WRITES` on every open (writes share the inode lock; one open
//! without them would make all writes exclusive), and a background limit far above the default of 12.
//!
//! Attributes have no lifetime, so that a disk that shrinks is seen to have shrunk.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::control::Control;
use super::pending::Work;

/// The largest request.
const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have open with us.
const MAX_IN_FLIGHT: u16 = 8192;
/// How long the kernel may believe an attribute.
const LIFETIME: Duration = Duration::ZERO;

/// A file system that is one regular file.
#[derive(Debug)]
pub(super) struct OneFile {
    /// The disk.
    control: Control,
}

impl OneFile {
    /// Serves the disk of `control`.
    pub(super) fn new(control: Control) -> Self {
        Self { control }
    }

    /// The attributes of the file.
    fn attributes(&self) -> io::Result<FileAttr> {
        let metadata = self.control.file().metadata()?;
        let now = SystemTime::now();
        Ok(FileAttr {
            ino: INodeNo::ROOT,
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: now,
            mtime: metadata.modified().unwrap_or(now),
            ctime: metadata.modified().unwrap_or(now),
            crtime: now,
            kind: FileType::RegularFile,
            perm: 0o644,
            nlink: 1,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Answers with the attributes.
    fn tell_attributes(&self, reply: ReplyAttr) {
        match self.attributes() {
            Ok(attributes) => reply.attr(&LIFETIME, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| {
            io::Error::new(io::ErrorKind::Unsupported, "this kernel's FUSE has no asynchronous direct I/O")
        })?;
        // Of use to those who map the file; older kernels do without.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        let refused = |nearest| io::Error::other(format!("FUSE takes at most {nearest}"));
        config.set_max_write(MAX_REQUEST_BYTES).map_err(refused)?;
        config.set_max_background(MAX_IN_FLIGHT).map_err(|nearest| refused(nearest.into()))?;
        config.set_congestion_threshold(MAX_IN_FLIGHT).map_err(|nearest| refused(nearest.into()))?;
        Ok(())
    }

    fn getattr(&self, _request: &Request, _ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.tell_attributes(reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(Err(error)) = size.map(|size| self.control.set_size(size)) {
            return reply.error(error.into());
        }
        self.tell_attributes(reply);
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // FOPEN_NOFLUSH: closing is not a flush, and must not use up a rule for one.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = offset..offset + u64::from(size);
        self.control.arrive(Work::Read(bytes.clone(), reply), &bytes);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.control.arrive_with_data(offset, data, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.control.arrive(Work::Flush(reply), &(0..0));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let bytes = offset..offset.saturating_add(length);
        self.control.arrive(Work::Fallocate(bytes.clone(), mode, reply), &bytes);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let offset = u64::try_from(offset).unwrap_or(0);
        self.control.arrive(Work::Seek(offset, whence, reply), &(offset..offset.saturating_add(1)));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let Ok(metadata) = self.control.file().metadata() else { return reply.error(Errno::EIO) };
        let total = self.control.capacity().min(1 << 50) / 4096;
        let free = total.saturating_sub(metadata.blocks() / 8);
        reply.statfs(total, free, free, 1, 0, 4096, 255, 4096);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
