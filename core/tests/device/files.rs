//! Opening regular files, and everything that is refused because of what it is.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use blkmirror_core::ErrorKind;
use blkmirror_core::device::{AlignmentOrigin, Device, DeviceKind, ExtentKind, Role, TargetOptions};
use blkmirror_core::units::{ByteRange, GIB, MIB, TIB};
use rustix::fs::{OFlags, RawMode};

use crate::kit::{
    Mounted, assert_refused, filled, flags, let_go, needs_root_and, on_disk, on_tmpfs, read_all, source,
    sparse, target, waits_for_a_moment,
};

#[test]
fn what_is_no_disk_is_refused_by_name_and_cause() {
    let dir = on_disk();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    let _listener = UnixListener::bind(at("socket")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600 as RawMode);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    filled(&at("file"), 4096);
    symlink("nowhere", at("dangling")).unwrap();
    symlink("circle", at("circle")).unwrap();
    for open in [source, target] {
        assert_refused(open(&at("missing")), ErrorKind::NotFound, &at("missing"), "no such file or device");
        assert_refused(
            open(&at("dangling")),
            ErrorKind::NotFound,
            &at("dangling"),
            "a symbolic link to nothing",
        );
        assert_refused(open(&at("file/x")), ErrorKind::NotFound, &at("file/x"), "not a directory");
        assert_refused(open(&at("dir")), ErrorKind::WrongFileType, &at("dir"), "it is a directory");
        // These two would block, or fail in strange ways, if they were opened first and judged later.
        assert_refused(open(&at("fifo")), ErrorKind::WrongFileType, &at("fifo"), "it is a fifo");
        assert_refused(open(&at("socket")), ErrorKind::WrongFileType, &at("socket"), "it is a socket");
        let null = Path::new("/dev/null");
        assert_refused(open(null), ErrorKind::WrongFileType, null, "it is a character device");
        assert_refused(open(&at("circle")), ErrorKind::InvalidArgument, &at("circle"), "symbolic links");
        let version = Path::new("/proc/version");
        assert_refused(open(version), ErrorKind::WrongFileType, version, "it is a file of procfs");
    }
}

#[test]
fn whoever_only_looks_is_not_told_of_a_source() {
    let dir = on_tmpfs();
    let path = dir.path().join("missing");
    let error = Device::open_for_reading(&path).unwrap_err();
    assert_eq!((error.attempt(), error.kind()), ("open", ErrorKind::NotFound));
    let device = Device::open_for_reading(&filled(&path, 4096)).unwrap();
    assert_eq!(flags(&device) & OFlags::RWMODE, OFlags::RDONLY);
}

#[test]
fn sizes_that_cannot_be_mirrored_are_refused() {
    let dir = on_tmpfs();
    let odd = sparse(&dir.path().join("odd"), 4096 + 100);
    assert_refused(
        source(&odd),
        ErrorKind::WrongSize,
        &odd,
        "4196 bytes is not a multiple of the sector, 512 bytes",
    );
    assert_refused(target(&odd), ErrorKind::WrongSize, &odd, "not a multiple of the sector");
    let huge = sparse(&dir.path().join("huge"), 64 * TIB + 512);
    assert_refused(source(&huge), ErrorKind::WrongSize, &huge, "above the limit of 64 TiB");
    let largest = sparse(&dir.path().join("largest"), 64 * TIB);
    assert_eq!(source(&largest).unwrap().size_bytes(), 64 * TIB);
}

#[test]
fn an_empty_file_is_a_disk_without_bytes() {
    let dir = on_disk();
    let empty = sparse(&dir.path().join("empty"), 0);
    for device in [source(&empty).unwrap(), target(&empty).unwrap()] {
        assert_eq!(device.size_bytes(), 0);
        assert!(device.reads_as_zeroes());
        assert!(device.status(0).unwrap().range.is_empty());
        assert_eq!(device.next_data(0).unwrap(), None);
    }
}

#[test]
fn a_source_is_never_open_for_writing_and_both_sides_are_direct() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    let device = source(&path).unwrap();
    assert_eq!(device.kind(), DeviceKind::RegularFile);
    assert_eq!(flags(&device) & OFlags::RWMODE, OFlags::RDONLY);
    assert!(flags(&device).contains(OFlags::DIRECT) && device.is_direct());
    assert_eq!(flags(&device.reopen().unwrap()), flags(&device));
    let written = device.write_zeroes(ByteRange::new(0, 4096), blkmirror_core::device::ZeroMode::Punch);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(device);
    let device = target(&path).unwrap();
    assert_eq!(flags(&device) & OFlags::RWMODE, OFlags::RDWR);
    assert!(flags(&device).contains(OFlags::DIRECT));
    assert_eq!(read_all(&path), read_all(&filled(&dir.path().join("again"), 8192)));
}

#[test]
fn a_writable_descriptor_of_the_host_makes_a_read_only_source() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let device = Device::source_from_fd(file.as_fd(), "disk0").unwrap();
    assert_eq!(device.name(), "disk0");
    assert_eq!(flags(&device) & OFlags::RWMODE, OFlags::RDONLY);
    assert!(device.is_direct());
    // The name may be gone by now, and the host's file position is the host's.
    fs::remove_file(&path).unwrap();
    let again = device.reopen().unwrap();
    device.status(0).unwrap();
    assert_eq!(again.status(4096).unwrap().kind, ExtentKind::Data);
    assert_eq!(rustix::fs::tell(&file).unwrap(), 0);
}

#[test]
fn a_descriptor_with_too_few_rights_is_refused() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    let reader = fs::File::open(&path).unwrap();
    let refused = Device::target_from_fd(reader.as_fd(), "disk0", TargetOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(
        refused.to_string().contains("disk0: the descriptor was not opened for reading and writing"),
        "{refused}"
    );
    let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let refused = Device::source_from_fd(writer.as_fd(), "disk0").unwrap_err();
    assert!(refused.to_string().contains("not opened for reading;"), "{refused}");
}

#[test]
fn a_target_file_has_one_owner_until_its_last_descriptor_is_gone() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    let first = target(&path).unwrap();
    assert_refused(target(&path), ErrorKind::Busy, &path, "(this process or another) holds a lock");
    let worker = first.reopen().unwrap();
    drop(first);
    assert_refused(target(&path), ErrorKind::Busy, &path, "in use");
    // Whoever says that sharing is fine may share.
    let shared = Device::open_target(&path, TargetOptions { allow_shared: true }).unwrap();
    assert!(worker.is_locked() && !shared.is_locked() && !source(&path).unwrap().is_locked());
    let_go(worker);
    target(&path).unwrap();
}

/// The kernel keeps a file for a moment after the process that had it is gone, and its successor would not start.
#[test]
fn a_lock_that_is_about_to_go_is_waited_for_and_one_that_stays_is_not() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    waits_for_a_moment(&path, || target(&path).unwrap());
}

#[test]
fn who_finds_a_file_locked_is_told_what_to_allow_in_rust_and_in_c() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    let _first = target(&path).unwrap();
    assert_refused(target(&path), ErrorKind::Busy, &path, "TargetOptions::allow_shared");
    assert_refused(target(&path), ErrorKind::Busy, &path, "BLKM_DEVICE_F_ALLOW_SHARED");
}

#[test]
fn a_guests_disk_is_writable_ours_alone_and_of_any_size_that_a_source_may_have() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192 + 512);
    let disk = Device::open_disk(&path).unwrap();
    assert_eq!((disk.role(), disk.size_bytes()), (Role::Disk, 8192 + 512));
    assert_eq!(flags(&disk) & OFlags::RWMODE, OFlags::RDWR);
    assert!(disk.is_direct());
    assert_refused(Device::open_disk(&path), ErrorKind::Busy, &path, "open the guest's disk");
    assert_refused(target(&path), ErrorKind::Busy, &path, "in use");
    // Reading it beside us is allowed, and it is seen to be the same disk.
    assert!(disk.is_same_as(&source(&path).unwrap()));
    disk.discard(ByteRange::at(0, disk.limits().logical_block_bytes)).unwrap();
    drop(disk);
    let file = fs::File::open(&path).unwrap();
    let poor = Device::disk_from_fd(file.as_fd(), path.to_str().unwrap(), TargetOptions::default());
    assert_refused(poor, ErrorKind::PermissionDenied, &path, "for reading and writing");
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let disk = Device::disk_from_fd(file.as_fd(), "the disk of a guest", TargetOptions::default()).unwrap();
    assert_refused(Device::open_disk(&path), ErrorKind::Busy, &path, "in use");
    assert_eq!(disk.name(), "the disk of a guest");
    let odd = filled(&dir.path().join("odd"), 1000);
    assert_refused(Device::open_disk(&odd), ErrorKind::WrongSize, &odd, "open the guest's disk");
}

#[test]
fn a_source_may_be_written_by_somebody_else_and_says_so() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    assert!(source(&path).unwrap().notes().is_empty());
    let _writer = target(&path).unwrap();
    let reader = source(&path).unwrap();
    assert!(reader.notes()[0].contains("write lock"), "{:?}", reader.notes());
}

#[test]
fn a_file_without_permission_is_refused() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 8192);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        return as_nobody(&path);
    }
    assert_refused(source(&path), ErrorKind::PermissionDenied, &path, "no permission to read it");
    assert_refused(target(&path), ErrorKind::PermissionDenied, &path, "no permission to write to it");
}

/// Root may open everything, so ask for the user's answer in a thread that has given up root's file rights.
fn as_nobody(path: &Path) {
    let path = path.to_path_buf();
    let answers = std::thread::spawn(move || {
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, own).unwrap();
        (source(&path), target(&path), path)
    });
    let (reading, writing, path): (_, _, PathBuf) = answers.join().unwrap();
    assert_refused(reading, ErrorKind::PermissionDenied, &path, "no permission to read it");
    assert_refused(writing, ErrorKind::PermissionDenied, &path, "no permission to write to it");
}

#[test]
fn a_created_target_is_one_hole_and_never_replaces_a_file() {
    let dir = on_disk();
    let path = dir.path().join("new");
    let device = Device::create_target(&path, GIB).unwrap();
    assert_eq!(device.size_bytes(), GIB);
    assert!(device.reads_as_zeroes() && device.is_direct());
    assert_refused(target(&path), ErrorKind::Busy, &path, "in use");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(device);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_refused(Device::create_target(&path, MIB), ErrorKind::AlreadyExists, &path, "it exists already");
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::metadata(&path).unwrap().len(), GIB);
}

/// Its name is made durable through the directory, which cannot always be read.
#[test]
fn a_target_is_created_in_a_directory_that_may_only_be_written() {
    let dir = on_disk();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o300)).unwrap();
    let made = {
        let path = dir.path().join("new");
        // Rights to read everything go with the thread.
        std::thread::spawn(move || {
            let mut own = rustix::thread::capabilities(None).unwrap();
            own.effective = rustix::thread::CapabilitySet::empty();
            rustix::thread::set_capabilities(None, own).unwrap();
            Device::create_target(&path, MIB).map(|device| device.size_bytes())
        })
    };
    assert_eq!(made.join().unwrap().unwrap(), MIB);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_target_that_cannot_be_made_leaves_nothing_behind() {
    let dir = on_disk();
    let odd = dir.path().join("odd");
    assert_refused(Device::create_target(&odd, 1000), ErrorKind::WrongSize, &odd, "not a multiple");
    let huge = dir.path().join("huge");
    assert_refused(Device::create_target(&huge, 65 * TIB), ErrorKind::WrongSize, &huge, "above the limit");
    let lost = dir.path().join("no/such/dir");
    assert_refused(
        Device::create_target(&lost, MIB),
        ErrorKind::NotFound,
        &lost,
        "the directory does not exist",
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn status_names_data_and_holes_up_to_the_end() {
    for dir in [on_disk(), on_tmpfs()] {
        let path = sparse(&dir.path().join("disk"), MIB);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[1; 8192], 65536).unwrap();
        file.write_all_at(&[2; 4096], MIB - 4096).unwrap();
        let device = source(&path).unwrap();
        let mut extents = Vec::new();
        let mut offset = 0;
        while offset < device.size_bytes() {
            let extent = device.status(offset).unwrap();
            assert_eq!(extent.range.start(), offset);
            offset = extent.range.end();
            extents.push((extent.range, extent.kind));
        }
        let expected = [
            (ByteRange::new(0, 65536), ExtentKind::Zero),
            (ByteRange::new(65536, 73728), ExtentKind::Data),
            (ByteRange::new(73728, MIB - 4096), ExtentKind::Zero),
            (ByteRange::new(MIB - 4096, MIB), ExtentKind::Data),
        ];
        assert_eq!(extents, expected);
        // From inside an extent, the rest of it.
        assert_eq!(device.status(70000).unwrap().range, ByteRange::new(70000, 73728));
        assert_eq!(device.next_data(0).unwrap(), Some(ByteRange::new(65536, 73728)));
        assert_eq!(device.next_data(73728).unwrap(), Some(ByteRange::new(MIB - 4096, MIB)));
        assert_eq!(device.next_data(MIB).unwrap(), None);
        assert!(!device.reads_as_zeroes());
    }
}

#[test]
fn fresh_data_in_preallocated_space_is_data_before_it_reaches_the_disk() {
    let dir = on_disk();
    let path = dir.path().join("disk");
    let device = Device::create_target(&path, MIB).unwrap();
    device.preallocate(ByteRange::new(0, MIB)).unwrap();
    assert!(device.reads_as_zeroes(), "preallocated and never written");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 4096], 512 * 1024).unwrap();
    let reader = source(&path).unwrap();
    assert_eq!(reader.next_data(0).unwrap(), Some(ByteRange::at(512 * 1024, 4096)));
    assert!(!device.reads_as_zeroes());
}

#[test]
fn a_file_that_shrinks_is_an_error_and_not_a_hole() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 1 << 20);
    let device = source(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(65536).unwrap();
    let error = device.status(65536).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceShrank);
    assert!(error.to_string().contains("from 1048576 to 65536 bytes"), "{error}");
    assert_eq!(device.next_data(500_000).unwrap_err().kind(), ErrorKind::SourceShrank);
    assert_eq!(device.size_bytes(), 1 << 20);
    assert_eq!(device.refresh_size().unwrap(), 65536);
    assert_eq!(device.reopen().unwrap().size_bytes(), 65536);
}

#[test]
fn limits_of_a_file_are_whole_blocks_and_one_mebibyte() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 1 << 20);
    let device = source(&path).unwrap();
    let limits = device.limits();
    assert!(limits.logical_block_bytes.is_power_of_two() && limits.logical_block_bytes >= 512);
    assert!(limits.memory_align_bytes.is_power_of_two());
    assert_eq!(limits.max_request_bytes, MIB);
    assert_eq!(limits.max_request_scattered_bytes, MIB);
    let memory = on_tmpfs();
    let device = source(&filled(&memory.path().join("disk"), 1 << 20)).unwrap();
    assert_eq!(device.limits().alignment_origin, AlignmentOrigin::NotNeeded);
    assert_eq!(device.limits().logical_block_bytes, 512);
    assert_eq!(device.limits().queue, None);
}

#[test]
fn a_file_system_without_direct_io_is_used_through_the_page_cache() {
    if !needs_root_and(&["mount"]) {
        return;
    }
    let dir = on_tmpfs();
    // ramfs refuses O_DIRECT.
    let mounted = Mounted::of_type("ramfs", &dir.path().join("mnt"));
    let device = source(&filled(&mounted.0.join("disk"), 8192)).unwrap();
    assert!(!device.is_direct());
    assert!(device.notes()[0].contains("O_DIRECT is not possible"), "{:?}", device.notes());
    assert_eq!(device.limits().alignment_origin, AlignmentOrigin::NotNeeded);
    let direct = device.describe().into_iter().find(|d| d.name == "direct I/O").unwrap();
    assert_eq!(direct.value, "off");
    assert!(!direct.note.is_empty());
}

#[test]
fn what_was_written_before_the_question_is_never_called_a_hole() {
    // "Claim, clear, read": a copier asks after a write completed and takes a hole for zeroes.
    const BLOCK: usize = 4096;
    for (dir, direct) in [(on_disk(), false), (on_disk(), true), (on_tmpfs(), false)] {
        let path = sparse(&dir.path().join("disk"), 256 * MIB);
        let device = source(&path).unwrap();
        let (sender, written) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let mut flags = OFlags::WRONLY;
            flags.set(OFlags::DIRECT, direct);
            let file = fs::File::from(rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap());
            let buffer = vec![7_u8; 2 * BLOCK];
            let aligned = &buffer[buffer.as_ptr().align_offset(BLOCK)..][..BLOCK];
            // One block in eight, in an order that keeps splitting holes.
            for i in 0..4000_u64 {
                let offset = i * 7919 % 8192 * 8 * 4096;
                file.write_all_at(aligned, offset % (256 * MIB)).unwrap();
                sender.send(offset % (256 * MIB)).unwrap();
            }
        });
        for offset in written {
            let extent = device.status(offset).unwrap();
            assert_eq!(extent.kind, ExtentKind::Data, "at {offset}, direct {direct}");
            assert!(extent.range.len() >= 4096, "{extent:?}");
            assert_eq!(device.next_data(offset).unwrap().unwrap().start(), offset);
        }
        writer.join().unwrap();
    }
}

/// A copy that changed the source's times would not leave it as it was, and would pay for it with each read.
#[test]
fn reading_leaves_the_time_of_the_last_access_alone() {
    use std::os::unix::fs::MetadataExt;
    for dir in [on_disk(), on_tmpfs()] {
        let path = dir.path().join("disk");
        filled(&path, 65536);
        // Long before the last change, so that every file system would move it.
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(then)).unwrap();
        let accessed = || fs::metadata(&path).unwrap().atime();
        for reads in [source(&path).unwrap(), source(&path).unwrap().reopen().unwrap()] {
            let mut buffer = blkmirror_core::buffer::AlignedBuf::new(4096, 4096).unwrap();
            assert_eq!(rustix::io::pread(reads.as_fd(), &mut *buffer, 0).unwrap(), 4096);
            assert_eq!(accessed(), 1_000_000_000, "{:?}", dir.path());
        }
        // What others do to it still counts.
        fs::read(&path).unwrap();
        println!("another reader leaves {}", accessed());
    }
}
