//! Holes stay holes, zeroes are found where asked for, and what the target held before is gone in any case.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::path::{Path, PathBuf};

use blkmirror_testkit::{
    Ext4OnLoop, FaultDisk, KIB, LoopDevice, LoopOptions, MIB, ScratchDir, compare, fill, needs,
};
use blkmirror_tests::{Ended, Untouched, allocated_bytes, assert_equal, copy_json};

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;
/// Data in a scattered source: one chunk of 64 KiB in eight.
const DATA: u64 = SIZE / 8;

/// A scattered source in `dir`.
fn scattered(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    fill::scattered_file(&source, SIZE, 64 * KIB, 512 * KIB, 7).unwrap();
    source
}

/// Asserts that the parts of the report add up to the disk.
#[track_caller]
fn adds_up(ended: &Ended) {
    let sum =
        ["bytes_copied", "bytes_zeroed", "bytes_skipped"].map(|name| ended.number(name)).iter().sum::<u64>();
    assert_eq!(sum, ended.number("bytes_total"), "{ended:?}");
}

/// Asserts that a file takes `bytes`, and a little for the file system's own lists.
#[track_caller]
fn takes(path: &Path, bytes: u64) {
    let found = allocated_bytes(path);
    assert!((bytes..=bytes + 64 * KIB).contains(&found), "{} takes {found}, not {bytes}", path.display());
}

#[test]
fn holes_of_the_source_are_holes_of_a_new_target() {
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &[]).succeeded();
    adds_up(&ended);
    assert_eq!(ended.number("bytes_copied"), DATA);
    assert_equal(&source, &target);
    takes(&target, DATA);
}

#[test]
fn holes_of_the_source_are_holes_on_ext4() {
    needs!(Ext4);
    let fs = Ext4OnLoop::new(64 * MIB).unwrap();
    let source = scattered(fs.path());
    let target = fs.join("target");
    let ended = copy_json(&source, &target, &[]).succeeded();
    assert_eq!(ended.number("bytes_copied"), DATA);
    assert_equal(&source, &target);
    takes(&target, DATA);
}

#[test]
fn an_empty_source_of_any_size_writes_nothing() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.sparse_file("source", 1 << 40).unwrap();
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &[]).succeeded();
    adds_up(&ended);
    assert_eq!(ended.number("bytes_copied"), 0);
    assert_eq!(fs::metadata(&target).unwrap().len(), 1 << 40);
    takes(&target, 0);
}

#[test]
fn old_content_of_the_target_is_gone_where_the_source_has_holes() {
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let target = Untouched::file(dir.join("target"), SIZE);
    let ended = copy_json(&source, target.path(), &[]).succeeded();
    adds_up(&ended);
    assert_eq!(ended.number("bytes_zeroed"), SIZE - DATA);
    assert_equal(&source, target.path());
    takes(target.path(), DATA);
}

#[test]
fn old_content_of_a_block_device_is_gone_where_the_source_has_holes() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let device = LoopDevice::in_memory(SIZE, LoopOptions::default()).unwrap();
    let target = Untouched::disk(device.path(), SIZE);
    let ended = copy_json(&source, target.path(), &[]).succeeded();
    adds_up(&ended);
    assert_eq!(ended.number("bytes_copied"), DATA);
    assert_equal(&source, target.path());
}

#[test]
fn a_target_that_cannot_punch_gets_its_zeroes_written() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let disk = FaultDisk::of_size(SIZE).unwrap();
    disk.control().set_fallocate_supported(false);
    fill::pattern(disk.content_path(), 0, SIZE, 0xee).unwrap();
    let ended = copy_json(&source, disk.path(), &[]).succeeded();
    adds_up(&ended);
    assert_equal(&source, disk.content_path());
}

#[test]
fn a_source_that_cannot_tell_its_holes_is_copied_whole() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let disk = FaultDisk::of_size(SIZE).unwrap();
    fill::scattered_device(disk.content_path(), SIZE, 64 * KIB, 512 * KIB, 7).unwrap();
    disk.control().set_seek_supported(false);
    let target = dir.join("target");
    let ended = copy_json(disk.path(), &target, &[]).succeeded();
    assert_eq!(ended.number("bytes_copied"), SIZE);
    assert_equal(disk.content_path(), &target);
}

/// Zeroes that are data in the source: what becomes of them, by option and by what the target was.
#[test]
fn zeroes_in_the_data_take_space_unless_they_are_looked_for() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.join("source");
    fs::File::create(&source).unwrap().set_len(SIZE).unwrap();
    fill::pattern(&source, 0, SIZE, 0).unwrap();
    fill::random(&source, MIB, MIB, 3).unwrap();
    takes(&source, SIZE);
    for (options, expected) in [
        (&[][..], SIZE),
        (&["--zero-detect"], MIB),
        (&["--zero-detect", "--granularity=4K"], MIB),
        (&["--preallocate"], SIZE),
    ] {
        let target = dir.join("target");
        let ended = copy_json(&source, &target, options).succeeded();
        adds_up(&ended);
        assert_equal(&source, &target);
        takes(&target, expected);
        fs::remove_file(&target).unwrap();

        let old = Untouched::file(target, SIZE);
        let _ = copy_json(&source, old.path(), options).succeeded();
        assert_equal(&source, old.path());
        takes(old.path(), expected);
        fs::remove_file(old.path()).unwrap();
    }
}

#[test]
fn one_byte_is_enough_for_a_chunk_to_be_data() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.join("source");
    fs::File::create(&source).unwrap().set_len(MIB).unwrap();
    fill::pattern(&source, 0, MIB, 0).unwrap();
    for offset in [0, 4095, 4096, 65535, 65536 + 2049, MIB - 1] {
        fill::pattern(&source, offset, 1, 1).unwrap();
    }
    for granularity in ["512", "4K", "64K", "1M"] {
        let target = dir.join("target");
        let _ = copy_json(&source, &target, &["--zero-detect", "--granularity", granularity]).succeeded();
        assert_equal(&source, &target);
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn a_target_that_is_known_to_be_zero_is_written_only_where_there_is_data() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let disk = FaultDisk::of_size(SIZE).unwrap();
    let ended = copy_json(&source, disk.path(), &["--target-is-zero"]).succeeded();
    adds_up(&ended);
    assert_equal(&source, disk.content_path());
    let counters = disk.control().counters();
    assert_eq!((counters.written_bytes, counters.fallocates), (DATA, 0), "{ended:?}");
}

#[test]
fn a_preallocated_target_has_all_its_blocks_and_keeps_them() {
    needs!(Ext4);
    let fs = Ext4OnLoop::new(64 * MIB).unwrap();
    let source = scattered(fs.path());
    let target = fs.join("target");
    let _ = copy_json(&source, &target, &["--preallocate"]).succeeded();
    assert_equal(&source, &target);
    takes(&target, SIZE);
}

#[test]
fn only_the_topmost_layer_is_copied_with_sync_top() {
    let dir = ScratchDir::new().unwrap();
    let source = scattered(dir.path());
    let target = Untouched::file(dir.join("target"), SIZE);
    let ended = copy_json(&source, target.path(), &["--sync=top"]).succeeded();
    assert_eq!(ended.number("bytes_copied"), DATA);
    for chunk in 0..SIZE / (512 * KIB) {
        let start = chunk * 512 * KIB;
        assert_eq!(compare::first_not_random(target.path(), start, 64 * KIB, 7).unwrap(), None);
    }
    let old = fill_of(&dir, SIZE);
    let range = (64 * KIB, 448 * KIB);
    same_range(&old, target.path(), range.0, range.1);
}

/// What [`Untouched`] writes, in a file of its own.
fn fill_of(dir: &ScratchDir, size: u64) -> PathBuf {
    Untouched::file(dir.join("old"), size).path().to_owned()
}

/// Asserts that a range of two files is the same.
#[track_caller]
fn same_range(a: &Path, b: &Path, start: u64, len: u64) {
    let read = |path: &Path| {
        let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
        fs::read(path).unwrap()[range].to_vec()
    };
    assert!(read(a) == read(b), "{} and {} differ in {start}+{len}", a.display(), b.display());
}

#[test]
fn a_map_decides_what_the_topmost_layer_is() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 5).unwrap();
    let target = Untouched::file(dir.join("target"), MIB);
    let map = dir.join("map.json");
    let text = format!(
        r#"[{{"start":0,"length":{0},"depth":0,"present":true,"zero":false,"data":true,"offset":0}},
            {{"start":{0},"length":{0},"depth":1,"present":true,"zero":false,"data":true,"offset":0}},
            {{"start":{1},"length":{0},"depth":0,"present":true,"zero":true,"data":false}}]"#,
        256 * KIB,
        512 * KIB
    );
    fs::write(&map, text).unwrap();
    let option = format!("--map={}", map.display());
    let ended = copy_json(&source, target.path(), &["--sync=top", &option]).succeeded();
    assert_eq!(ended.number("bytes_copied"), 256 * KIB);
    let old = fill_of(&dir, MIB);
    same_range(&source, target.path(), 0, 256 * KIB);
    same_range(&old, target.path(), 256 * KIB, 256 * KIB);
    assert_eq!(compare::first_not_pattern(target.path(), 512 * KIB, 256 * KIB, 0).unwrap(), None);
    same_range(&old, target.path(), 768 * KIB, 256 * KIB);
}

/// The target has a backing file: a cluster that is written to for the first time must be written whole, or the rest of
/// it would show the backing file.
#[test]
fn the_first_write_to_a_large_cluster_copies_all_of_it() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.sparse_file("source", MIB).unwrap();
    fill::random(&source, 256 * KIB + 4096, 4096, 7).unwrap();
    let target = Untouched::file(dir.join("target"), MIB);
    let options = ["--sync=top", "--granularity=4K", "--target-cluster-size=256K"];
    let _ = copy_json(&source, target.path(), &options).succeeded();
    let old = fill_of(&dir, MIB);
    same_range(&old, target.path(), 0, 256 * KIB);
    same_range(&source, target.path(), 256 * KIB, 256 * KIB);
    same_range(&old, target.path(), 512 * KIB, 512 * KIB);
}

#[test]
fn nothing_is_copied_with_sync_none() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let target = Untouched::file(dir.join("target"), MIB);
    let ended = copy_json(&source, target.path(), &["--sync=none"]).succeeded();
    assert_eq!(ended.number("bytes_copied"), 0);
    target.check();
}
