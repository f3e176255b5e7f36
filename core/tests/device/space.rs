//! Preallocation and the zero ladder.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use blkmirror_core::ErrorKind;
use blkmirror_core::device::{Device, ZeroMode, Zeroed};
use blkmirror_core::units::{ByteRange, MIB, TIB};

use crate::kit::{Loop, Mounted, filled, needs_root_and, on_disk, on_tmpfs, read_all, run, sparse, target};

/// Bytes that a file takes on its disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// The range is zero and nothing around it is.
#[track_caller]
fn assert_zero_only(path: &Path, range: ByteRange) {
    let content = read_all(path);
    let original = filled(&path.with_extension("original"), content.len());
    let mut expected = read_all(&original);
    let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
    expected[start..end].fill(0);
    assert!(content == expected, "more or less than {range} was zeroed");
}

#[test]
fn punching_releases_space_and_touches_nothing_else() {
    let range = ByteRange::new(65536, 196_608);
    for dir in [on_disk(), on_tmpfs()] {
        let path = filled(&dir.path().join("disk"), 1 << 20);
        run("sync", &[path.to_str().unwrap()]);
        let before = allocated(&path);
        let device = target(&path).unwrap();
        assert_eq!(device.write_zeroes(range, ZeroMode::Punch).unwrap(), Zeroed::Punched);
        assert_eq!(allocated(&path), before - range.len());
        assert_zero_only(&path, range);
        assert_eq!(device.size_bytes(), MIB);
        device.discard(ByteRange::new(0, MIB)).unwrap();
        assert!(device.reads_as_zeroes());
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    }
}

#[test]
fn zeroing_that_keeps_space_keeps_it() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 1 << 20);
    run("sync", &[path.to_str().unwrap()]);
    let before = allocated(&path);
    let range = ByteRange::new(65536, 196_608);
    let device = target(&path).unwrap();
    match device.write_zeroes(range, ZeroMode::Keep) {
        Ok(how) => {
            assert_eq!(how, Zeroed::Kept);
            assert!(allocated(&path) >= before);
            assert_zero_only(&path, range);
        }
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}"),
    }
}

#[test]
fn a_missing_rung_is_an_error_that_says_what_to_do_and_is_remembered() {
    // tmpfs knows holes but no zero ranges.
    let dir = on_tmpfs();
    let path = filled(&dir.path().join("disk"), 1 << 20);
    let device = target(&path).unwrap();
    let range = ByteRange::new(0, 65536);
    for _ in 0..2 {
        let error = device.write_zeroes(range, ZeroMode::Keep).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("write zeroes instead"), "{error}");
    }
    assert_zero_only(&path, ByteRange::new(0, 0));
    assert_eq!(device.reopen().unwrap().write_zeroes(range, ZeroMode::Punch).unwrap(), Zeroed::Punched);
    assert_zero_only(&path, range);
}

#[test]
fn a_range_that_is_not_whole_blocks_inside_is_a_clear_error_and_changes_nothing() {
    let dir = on_disk();
    let path = filled(&dir.path().join("disk"), 1 << 20);
    let device = target(&path).unwrap();
    let past = ByteRange::new(MIB - 4096, MIB + 4096);
    for range in [ByteRange::new(100, 4096), ByteRange::new(0, 1000), past] {
        for error in [
            device.write_zeroes(range, ZeroMode::Punch).unwrap_err(),
            device.discard(range).unwrap_err(),
            device.preallocate(range).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(error.range(), Some(range));
        }
    }
    assert_zero_only(&path, ByteRange::new(0, 0));
    device.write_zeroes(ByteRange::new(MIB, MIB), ZeroMode::Punch).unwrap();
    device.preallocate(ByteRange::new(0, 0)).unwrap();
}

#[test]
fn preallocated_space_is_there_reads_as_zero_and_keeps_the_size() {
    for dir in [on_disk(), on_tmpfs()] {
        let path = dir.path().join("disk");
        let device = Device::create_target(&path, 4 * MIB).unwrap();
        assert_eq!(allocated(&path), 0);
        device.preallocate(ByteRange::new(MIB, 3 * MIB)).unwrap();
        assert!(allocated(&path) >= 2 * MIB);
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
        // What is written already stays.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[9; 4096], MIB).unwrap();
        device.preallocate(ByteRange::new(0, 4 * MIB)).unwrap();
        let content = read_all(&path);
        let (zero, rest) = content.split_at(1 << 20);
        assert!(zero.iter().all(|b| *b == 0) && rest[..4096] == [9; 4096]);
    }
}

#[test]
fn a_full_file_system_is_no_space_and_not_an_input_output_error() {
    if !needs_root_and(&["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let dir = on_tmpfs();
    let disk = Loop::attach(&sparse(&dir.path().join("disk"), 16 * MIB), &[]);
    run("mkfs.ext4", &["-q", disk.path.to_str().unwrap()]);
    let mounted = Mounted::new(&disk.path, &dir.path().join("mnt"));
    let path = mounted.0.join("target");
    let device = Device::create_target(&path, 256 * MIB).unwrap();
    let error = device.preallocate(ByteRange::new(0, 256 * MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    let large = mounted.0.join("large");
    let error = Device::create_target(&large, 60 * TIB).unwrap_err();
    assert!(error.to_string().contains("a file of 60 TiB is above"), "{error}");
    assert!(!large.exists());
}

#[test]
fn a_block_device_is_zeroed_and_discarded_within_its_range() {
    if !needs_root_and(&["losetup"]) {
        return;
    }
    for dir in [on_disk(), on_tmpfs()] {
        let image = filled(&dir.path().join("disk"), 1 << 20);
        let disk = Loop::attach(&image, &[]);
        let device = target(&disk.path).unwrap();
        let range = ByteRange::new(65536, 131_072);
        device.write_zeroes(range, ZeroMode::Punch).unwrap();
        device.flush().unwrap();
        assert_zero_only(&image, range);
        let range = ByteRange::new(65536, 196_608);
        assert_eq!(device.reopen().unwrap().write_zeroes(range, ZeroMode::Keep).unwrap(), Zeroed::Kept);
        device.flush().unwrap();
        assert_zero_only(&image, range);
        device.preallocate(ByteRange::new(0, MIB)).unwrap();
        match device.discard(ByteRange::new(0, MIB)) {
            Ok(()) => assert!(read_all(&disk.path).iter().all(|b| *b == 0)),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}"),
        }
    }
}
