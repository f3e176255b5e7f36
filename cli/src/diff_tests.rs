//! Tests of the comparison, on files of the scratch directory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;

/// Two files of `bytes` that read as zero, and the directory that holds them.
fn two_files(bytes: u64) -> (tempfile::TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    for path in &paths {
        File::create(path).unwrap().set_len(bytes).unwrap();
    }
    (dir, paths)
}

/// Writes `len` bytes of `byte` into a file.
fn fill(path: &PathBuf, offset: u64, len: usize, byte: u8) {
    File::options().write(true).open(path).unwrap().write_all_at(&vec![byte; len], offset).unwrap();
}

/// Compares two files, keeping `limit` ranges.
fn run(paths: &[PathBuf; 2], bytes: u64, scope: Scope, limit: usize) -> Differences {
    let [a, b] = paths.each_ref().map(|path| Device::open_source(path).unwrap());
    compare([&a, &b], bytes, scope, limit, &Interrupts::new(), |_| ()).unwrap()
}

/// A range that is cut by a block must not be reported as two.
#[test]
fn differences_are_merged_across_blocks_and_counted_beyond_the_limit() {
    let (_dir, paths) = two_files(8 * MIB);
    for path in &paths {
        fill(path, 0, 8 << 20, 1);
    }
    fill(&paths[1], MIB - 8192, 16384, 2);
    fill(&paths[1], 5 * MIB + 100, 1, 2);
    fill(&paths[1], 7 * MIB, 4096, 2);
    let found = run(&paths, 8 * MIB, Scope::All, 2);
    assert_eq!(found.first, [ByteRange::at(MIB - 8192, 16384), ByteRange::at(5 * MIB, 4096)]);
    assert_eq!((found.ranges, found.bytes), (3, 16384 + 4096 + 4096));
    assert_eq!((found.compared_bytes, found.read_bytes), (8 * MIB, 16 * MIB));
}

/// A hole is equal to written zeroes and to nothing else, from either side.
#[test]
fn holes_compare_as_zeroes() {
    let (_dir, paths) = two_files(64 * MIB);
    fill(&paths[0], 2 * MIB, 1 << 20, 0);
    fill(&paths[1], 9 * MIB, 1 << 20, 0);
    assert_eq!(run(&paths, 64 * MIB, Scope::All, 9).ranges, 0);
    fill(&paths[1], 2 * MIB + 4096, 4096, 3);
    fill(&paths[0], 9 * MIB, 512, 3);
    fill(&paths[1], 40 * MIB, 512, 3);
    let found = run(&paths, 64 * MIB, Scope::All, 9);
    let starts: Vec<_> = found.first.iter().map(ByteRange::start).collect();
    assert_eq!(starts, [2 * MIB + 4096, 9 * MIB, 40 * MIB]);
    assert_eq!(found.compared_bytes, 64 * MIB);
    assert!(found.read_bytes < 8 * MIB, "common holes are not read: {}", found.read_bytes);
}

/// The last block may be short and odd.
#[test]
fn the_tail_is_compared_to_the_last_sector() {
    let bytes = 3 * MIB + 512;
    let (_dir, paths) = two_files(bytes);
    for path in &paths {
        fill(path, 0, usize::try_from(bytes).unwrap(), 7);
    }
    assert_eq!(run(&paths, bytes, Scope::All, 1).ranges, 0);
    fill(&paths[0], bytes - 1, 1, 8);
    assert_eq!(run(&paths, bytes, Scope::All, 1).first, [ByteRange::new(3 * MIB, bytes)]);
}

/// After `--sync top` the target holds other things where the top layer has nothing.
#[test]
fn the_scope_leaves_out_what_was_not_copied() {
    let (_dir, paths) = two_files(8 * MIB);
    fill(&paths[1], 0, 8 << 20, 9);
    fill(&paths[0], 2 * MIB, 1 << 20, 9);
    assert_eq!(run(&paths, 8 * MIB, Scope::DataOfFirst, 1).ranges, 0);
    let ranges = vec![ByteRange::at(2 * MIB, 4096), ByteRange::at(2 * MIB + 512 * 1024, 512)];
    let found = run(&paths, 8 * MIB, Scope::Ranges(ranges), 1);
    assert_eq!((found.ranges, found.compared_bytes), (0, 4608));
    let found = run(&paths, 8 * MIB, Scope::Ranges(vec![ByteRange::at(4 * MIB + 512, 512)]), 1);
    assert_eq!(found.first, [ByteRange::at(4 * MIB + 512, 512)]);
}

/// Neighbours of many small extents must neither be lost nor be taken twice.
#[test]
fn scattered_data_is_compared_exactly_once() {
    let (_dir, paths) = two_files(4 * MIB);
    for at in (0..4 * MIB).step_by(32 * 1024) {
        fill(&paths[0], at, 4096, 1);
    }
    let found = run(&paths, 4 * MIB, Scope::All, 1);
    assert_eq!((found.ranges, found.bytes, found.compared_bytes), (128, 128 * 4096, 4 * MIB));
}

/// An early end must be visible, or half a comparison would pass for a whole one.
#[test]
fn an_interrupted_comparison_says_so() {
    let (_dir, paths) = two_files(4 * MIB);
    let [a, b] = paths.each_ref().map(|path| Device::open_source(path).unwrap());
    let interrupts = Interrupts::new();
    interrupts.raise();
    let found = compare([&a, &b], 4 * MIB, Scope::All, 1, &interrupts, |_| ()).unwrap();
    assert!(found.interrupted);
}
