//! Block devices: real loop devices.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use blkmirror_core::ErrorKind;
use blkmirror_core::device::{AlignmentOrigin, Device, DeviceKind, ExtentKind, TargetOptions};
use blkmirror_core::units::{ByteRange, KIB, MIB};
use rustix::fs::{FileType, Mode, OFlags};

use crate::kit::{
    Loop, Mounted, assert_refused, filled, flags, let_go, needs_root_and, on_disk, on_tmpfs, read_all, run,
    source, sparse, target, waits_for_a_moment, write_mbr,
};

#[test]
fn a_block_device_is_all_data_and_knows_its_queue() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &["--direct-io=on"]);
    for device in [source(&disk.path).unwrap(), target(&disk.path).unwrap()] {
        assert_eq!(device.kind(), DeviceKind::BlockDevice);
        assert_eq!(device.size_bytes(), 16 * MIB);
        let extent = device.status(MIB).unwrap();
        assert_eq!((extent.range, extent.kind), (ByteRange::new(MIB, 16 * MIB), ExtentKind::Data));
        assert_eq!(device.next_data(0).unwrap(), Some(ByteRange::new(0, 16 * MIB)));
        assert!(!device.reads_as_zeroes());
        assert_eq!(device.limits().logical_block_bytes, 512);
        let queue = device.limits().queue.as_ref().unwrap();
        assert_eq!(queue.disk, disk.path.to_str().unwrap());
        let said = |entry: &str| {
            let text = fs::read_to_string(disk.sysfs().join("queue").join(entry)).unwrap();
            text.trim().parse::<u64>().ok()
        };
        assert_eq!(queue.max_sectors_kib, said("max_sectors_kb"));
        assert_eq!(queue.max_segments, said("max_segments"));
        device.flush().unwrap();
    }
}

#[test]
fn the_largest_request_follows_the_queue() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &["--direct-io=on"]);
    let knob = disk.sysfs().join("queue/max_sectors_kb");
    for kib in [128, 512, 1024_u64] {
        fs::write(&knob, kib.to_string()).unwrap();
        let limits = source(&disk.path).unwrap().limits().clone();
        let segments = limits.queue.unwrap().max_segments.unwrap();
        assert_eq!(limits.max_request_bytes, kib * KIB);
        assert_eq!(limits.max_request_scattered_bytes, (kib * KIB).min(segments * 4 * KIB).min(MIB));
    }
}

#[test]
fn a_4kn_disk_has_blocks_of_4_kib_and_refuses_smaller_ranges() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &["--sector-size", "4096"]);
    let device = target(&disk.path).unwrap();
    let limits = device.limits();
    assert_eq!((limits.logical_block_bytes, limits.offset_align_bytes), (4096, 4096));
    assert!(limits.physical_block_bytes >= 4096);
    assert_ne!(limits.alignment_origin, AlignmentOrigin::Assumed);
    let error = device.discard(ByteRange::new(512, 8192)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("not whole blocks of 4096 bytes"), "{error}");
}

#[test]
fn a_partition_shows_the_queue_of_its_disk() {
    if !needs_root_and(&["losetup", "partx"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = sparse(&dir.path().join("disk"), 16 * MIB);
    write_mbr(&image, &[(2048, 8192)]);
    let disk = Loop::attach_partitioned(&image);
    let part = disk.partition(1);
    let device = target(&part).unwrap();
    assert_eq!(device.size_bytes(), 4 * MIB);
    assert_eq!(device.limits().queue.as_ref().unwrap().disk, disk.path.to_str().unwrap());
    // The disk cannot be had while its partition is, and the other way round.
    assert_refused(target(&disk.path), ErrorKind::Busy, &disk.path, "in use");
    let_go(device);
    let _whole = target(&disk.path).unwrap();
    assert_refused(target(&part), ErrorKind::Busy, &part, "in use");
}

#[test]
fn a_mounted_target_is_refused_under_each_of_its_names_and_stays_as_it_is() {
    if !needs_root_and(&["losetup", "partx", "mkfs.ext4", "mount"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = sparse(&dir.path().join("disk"), 16 * MIB);
    write_mbr(&image, &[(2048, 16384), (18432, 8192)]);
    let disk = Loop::attach_partitioned(&image);
    let (part, free) = (disk.partition(1), disk.partition(2));
    run("mkfs.ext4", &["-q", part.to_str().unwrap()]);
    let mounted = Mounted::new(&part, &dir.path().join("a mount"));
    fs::write(mounted.0.join("file"), "content").unwrap();
    run("sync", &["-f", mounted.0.to_str().unwrap()]);
    let before = read_all(&image);
    let words = format!("it is mounted on {}; unmount it first", mounted.0.display());
    assert_refused(target(&part), ErrorKind::Busy, &part, &words);
    let words = format!("{} is mounted on {}", part.display(), mounted.0.display());
    assert_refused(target(&disk.path), ErrorKind::Busy, &disk.path, &words);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&part, &link).unwrap();
    assert_refused(target(&link), ErrorKind::Busy, &link, "it is mounted on");
    assert_refused(Device::open_disk(&part), ErrorKind::Busy, &part, "open the guest's disk");
    // Sharing is for locks; nobody shares with a mount.
    let shared = Device::open_target(&part, TargetOptions { allow_shared: true });
    assert_refused(shared, ErrorKind::Busy, &part, "it is mounted on");
    // The neighbour is free, and reading is free, with a remark.
    target(&free).unwrap();
    let reader = source(&disk.path).unwrap();
    assert!(reader.notes()[0].contains("mounted for writing"), "{:?}", reader.notes());
    assert!(before == read_all(&image), "a refused target was changed");
}

#[test]
fn a_disk_mounted_as_a_whole_keeps_its_partition_nodes_from_us() {
    if !needs_root_and(&["losetup", "partx", "mkfs.ext4", "mount"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = sparse(&dir.path().join("disk"), 16 * MIB);
    let disk = Loop::attach(&image, &["--partscan"]);
    run("mkfs.ext4", &["-q", disk.path.to_str().unwrap()]);
    // ext4 leaves the first 1024 bytes alone, so a table fits in front of it. Written through the disk: beneath it, what somebody
    // who looks at all loop devices keeps in its cache would hide it.
    write_mbr(&disk.path, &[(2048, 8192)]);
    run("partx", &["--update", disk.path.to_str().unwrap()]);
    let part = disk.partition(1);
    let _mounted = Mounted::new(&disk.path, &dir.path().join("mnt"));
    assert_refused(target(&part), ErrorKind::Busy, &part, &format!("{} is mounted on", disk.path.display()));
}

#[test]
fn a_swap_device_is_refused() {
    if !needs_root_and(&["losetup", "mkswap", "swapon"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), MIB), &[]);
    let node = disk.path.to_str().unwrap();
    run("mkswap", &[node]);
    run("swapon", &["--priority", "0", node]);
    let refused = target(&disk.path);
    run("swapoff", &[node]);
    assert_refused(refused, ErrorKind::Busy, &disk.path, "used as swap space");
    target(&disk.path).unwrap();
}

#[test]
fn a_file_behind_a_loop_device_is_refused_and_a_disk_behind_one_too() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = filled(&dir.path().join("disk"), 1 << 20);
    let lower = Loop::attach(&image, &[]);
    let words = format!("it is behind the loop device {}", lower.path.display());
    assert_refused(target(&image), ErrorKind::Busy, &image, &words);
    let link = dir.path().join("hard link");
    fs::hard_link(&image, &link).unwrap();
    assert_refused(target(&link), ErrorKind::Busy, &link, &words);
    let upper = Loop::attach(&lower.path, &[]);
    assert_refused(target(&lower.path), ErrorKind::Busy, &lower.path, &upper.path.display().to_string());
    target(&upper.path).unwrap();
    // Reading from below is no harm.
    source(&image).unwrap();
    source(&lower.path).unwrap();
}

#[test]
fn an_exclusive_holder_keeps_us_away_until_it_lets_go() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &[]);
    let flags_of_others = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let holder = rustix::fs::open(&disk.path, flags_of_others, Mode::empty()).unwrap();
    assert_refused(target(&disk.path), ErrorKind::Busy, &disk.path, "holds it exclusively");
    source(&disk.path).unwrap();
    let_go(holder);
    let device = target(&disk.path).unwrap();
    let worker = device.reopen().unwrap();
    assert!(device.is_locked() && worker.is_locked() && !source(&disk.path).unwrap().is_locked());
    assert!(flags(&worker).contains(OFlags::DIRECT));
    drop(device);
    assert_refused(target(&disk.path), ErrorKind::Busy, &disk.path, "in use");
    let_go(worker);
    target(&disk.path).unwrap();
}

/// The kernel keeps a disk for a moment after the process that had it is gone, and its successor would not start.
#[test]
fn a_holder_that_is_about_to_go_is_waited_for_and_one_that_stays_is_not() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &[]);
    let hold = || {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(&disk.path, flags, Mode::empty()).unwrap()
    };
    waits_for_a_moment(&disk.path, hold);
}

/// A host that may not claim a disk anew learns how to say that it has claimed it itself, whatever language it is written in.
#[test]
fn who_may_not_claim_a_disk_is_told_what_to_allow_in_rust_and_in_c() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &[]);
    // A node of nobody's.
    let (outside, number) = (on_disk(), fs::metadata(&disk.path).unwrap().rdev());
    let node = outside.path().join("node");
    rustix::fs::mknodat(rustix::fs::CWD, &node, FileType::BlockDevice, Mode::RUSR, number).unwrap();
    chown(&node, Some(65534), None).unwrap();
    let host = rustix::fs::open(&node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let refused = std::thread::spawn(move || {
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, own).unwrap();
        Device::disk_from_fd(host.as_fd(), "disk0", TargetOptions::default())
    });
    let error = refused.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    for words in ["opened anew", "TargetOptions::allow_shared", "BLKM_DEVICE_F_ALLOW_SHARED"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_descriptor_of_a_block_device_is_claimed_or_shared_as_the_host_says() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &[]);
    let host = rustix::fs::open(&disk.path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let device = Device::target_from_fd(host.as_fd(), "disk0", TargetOptions::default()).unwrap();
    assert_refused(target(&disk.path), ErrorKind::Busy, &disk.path, "in use");
    let_go((device, host));
    let host =
        rustix::fs::open(&disk.path, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let refused = Device::target_from_fd(host.as_fd(), "disk0", TargetOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let device = Device::target_from_fd(host.as_fd(), "disk0", TargetOptions { allow_shared: true }).unwrap();
    assert!(device.is_direct() && !device.is_locked());
}

#[test]
fn a_read_only_target_is_refused_even_for_root() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &["--read-only"]);
    assert_refused(target(&disk.path), ErrorKind::PermissionDenied, &disk.path, "read-only");
    source(&disk.path).unwrap();
}

#[test]
fn a_file_on_a_read_only_file_system_is_refused() {
    if !needs_root_and(&["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &[]);
    run("mkfs.ext4", &["-q", disk.path.to_str().unwrap()]);
    let mounted = Mounted::new(&disk.path, &dir.path().join("mnt"));
    let file = filled(&mounted.0.join("file"), 8192);
    run("mount", &["-o", "remount,ro", mounted.0.to_str().unwrap()]);
    assert_refused(target(&file), ErrorKind::PermissionDenied, &file, "read-only file system");
    source(&file).unwrap();
}

#[test]
fn a_disk_that_shrinks_is_noticed() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_disk();
    let image = filled(&dir.path().join("disk"), 2 << 20);
    let disk = Loop::attach(&image, &[]);
    let device = source(&disk.path).unwrap();
    assert_eq!(device.size_bytes(), 2 * MIB);
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(MIB).unwrap();
    run("losetup", &["--set-capacity", disk.path.to_str().unwrap()]);
    assert_eq!(device.refresh_size().unwrap(), MIB);
}

#[test]
fn a_node_without_a_device_is_refused() {
    if !needs_root_and(&["mknod"]) {
        return;
    }
    let dir = on_disk();
    let node = dir.path().join("node");
    run("mknod", &[node.to_str().unwrap(), "b", "241", "77"]);
    for open in [source, target] {
        assert_refused(open(&node), ErrorKind::NotFound, &node, "there is no device behind this node");
    }
}

#[test]
fn details_name_value_and_origin_and_say_why_something_is_off() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &[]);
    let details = source(&disk.path).unwrap().describe();
    let of = |name: &str| details.iter().find(|d| d.name == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(of("kind").value, "block device");
    assert_eq!(of("size").value, "16777216 B (16 MiB)");
    assert!(of("segments").origin.ends_with("queue/max_segments"));
    for detail in &details {
        let off = detail.value == "off" || detail.value == "0 B";
        assert!(!off || !detail.note.is_empty(), "{detail:?} is off and does not say why");
        assert!(detail.name == "note" || !detail.origin.is_empty(), "{detail:?}");
    }
    assert!(Path::new(&of("request size").origin.split(' ').next().unwrap()).exists());
}
