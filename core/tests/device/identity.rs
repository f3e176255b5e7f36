//! The same bytes under other names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::units::MIB;

use crate::kit::{
    Loop, Mounted, filled, needs_root_and, on_disk, on_tmpfs, run, source, sparse, target, write_mbr,
};

/// Why the two overlap, asked both ways; the answers must agree.
#[track_caller]
fn overlap(a: &Path, b: &Path) -> Option<String> {
    let open = |path: &Path| source(path).unwrap();
    let (one, two) = (open(a), open(b));
    assert_eq!(one.is_same_as(&two), two.is_same_as(&one), "{} {}", a.display(), b.display());
    assert_eq!(one.is_same_as(&two), one.overlaps_with(&two).is_some());
    one.overlaps_with(&two)
}

#[test]
fn a_file_is_itself_under_every_name_and_nothing_else() {
    let dir = on_disk();
    let at = |name: &str| dir.path().join(name);
    let file = filled(&at("file"), 8192);
    let other = filled(&at("other"), 8192);
    fs::hard_link(&file, at("hard")).unwrap();
    symlink("hard", at("soft")).unwrap();
    let dotted = dir.path().join("../").join(dir.path().file_name().unwrap()).join("file");
    for name in [file.clone(), at("hard"), at("soft"), dotted] {
        assert_eq!(overlap(&file, &name).as_deref(), Some("are the same file"), "{}", name.display());
    }
    assert_eq!(overlap(&file, &other), None);
    // A rename, or a removal, after opening changes nothing.
    let open = source(&file).unwrap();
    fs::rename(&file, at("moved")).unwrap();
    assert!(open.is_same_as(&target(&at("moved")).unwrap()));
    let empty = sparse(&at("empty"), 0);
    assert!(source(&empty).unwrap().is_same_as(&source(&empty).unwrap()));
}

#[test]
fn two_nodes_of_one_block_device_are_the_same() {
    if !needs_root_and(&["losetup", "mknod"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&filled(&dir.path().join("disk"), 1 << 20), &[]);
    let link = dir.path().join("by-name");
    symlink(&disk.path, &link).unwrap();
    assert_eq!(overlap(&disk.path, &link).as_deref(), Some("are the same block device"));
    let node = on_disk();
    let node = node.path().join("second");
    let dev = fs::read_to_string(disk.sysfs().join("dev")).unwrap();
    let (major, minor) = dev.trim().split_once(':').unwrap();
    run("mknod", &[node.to_str().unwrap(), "b", major, minor]);
    assert_eq!(overlap(&disk.path, &node).as_deref(), Some("are the same block device"));
}

#[test]
fn a_partition_is_its_disk_and_not_its_neighbour() {
    if !needs_root_and(&["losetup", "partx"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = sparse(&dir.path().join("disk"), 16 * MIB);
    write_mbr(&image, &[(2048, 8192), (10240, 8192)]);
    let disk = Loop::attach_partitioned(&image);
    let (one, two) = (disk.partition(1), disk.partition(2));
    let words = format!("overlap: both are on the disk {}", disk.path.display());
    assert_eq!(overlap(&one, &disk.path), Some(words));
    assert_eq!(overlap(&one, &two), None);
    // Through the loop device, a partition is a range of the file too.
    assert!(overlap(&two, &image).is_some());
}

#[test]
fn a_loop_device_is_the_bytes_that_it_shows() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = filled(&dir.path().join("disk"), 4 << 20);
    let other = filled(&dir.path().join("other"), 4 << 20);
    let whole = Loop::attach(&image, &[]);
    let words = format!("overlap: {} shows the bytes of {}", whole.path.display(), image.display());
    assert_eq!(overlap(&image, &whole.path), Some(words));
    assert_eq!(overlap(&other, &whole.path), None);
    let renamed = dir.path().join("renamed");
    fs::rename(&image, &renamed).unwrap();
    assert!(overlap(&renamed, &whole.path).is_some(), "the kernel follows a rename");
    let upper = Loop::attach(&whole.path, &[]);
    assert!(overlap(&renamed, &upper.path).is_some());
    assert!(overlap(&whole.path, &upper.path).is_some());
}

#[test]
fn loop_devices_on_different_parts_of_one_file_are_strangers() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = filled(&dir.path().join("disk"), 4 << 20);
    let first = Loop::attach(&image, &["--sizelimit", "2097152"]);
    let second = Loop::attach(&image, &["--offset", "2097152"]);
    let across = Loop::attach(&image, &["--offset", "1048576", "--sizelimit", "1048576"]);
    assert_eq!(overlap(&first.path, &second.path), None);
    assert_eq!(overlap(&across.path, &second.path), None);
    assert_eq!(overlap(&first.path, &across.path).as_deref(), Some("overlap: both stand on one file"));
}

#[test]
fn a_file_lies_on_the_disk_of_its_file_system() {
    if !needs_root_and(&["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let dir = on_tmpfs();
    let image = sparse(&dir.path().join("disk"), 32 * MIB);
    let disk = Loop::attach(&image, &[]);
    run("mkfs.ext4", &["-q", disk.path.to_str().unwrap()]);
    let mounted = Mounted::new(&disk.path, &dir.path().join("mnt"));
    let file = filled(&mounted.0.join("file"), 1 << 20);
    let beside = filled(&mounted.0.join("beside"), 1 << 20);
    let words = format!("overlap: {} lies within {}", file.display(), disk.path.display());
    assert_eq!(overlap(&file, &disk.path), Some(words));
    assert!(overlap(&file, &image).is_some(), "the file system lies in that file");
    assert_eq!(overlap(&file, &beside), None, "two files of one file system");
    let nested = Loop::attach(&file, &[]);
    assert!(overlap(&nested.path, &disk.path).is_some());
    assert_eq!(overlap(&nested.path, &beside), None);
    let shared = TargetOptions { allow_shared: true };
    assert!(!source(&beside).unwrap().is_same_as(&Device::open_target(&nested.path, shared).unwrap()));
}
