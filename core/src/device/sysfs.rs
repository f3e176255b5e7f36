//! What sysfs knows about block devices.
//!
//! Everything here is best effort: sysfs may be absent (a container), an entry may be newer than the kernel, a value may
//! be 0 or absurd. So each reader returns an `Option` or an empty list, and judging is left to the caller.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{major, makedev, minor};

use crate::units::ByteRange;

/// The unit of sizes and offsets in sysfs, whatever the device's own sector is.
pub(super) const SYSFS_SECTOR_BYTES: u64 = 512;

/// The sysfs directory of a block device, if it has one.
pub(super) fn directory(rdev: u64) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev))).ok()
}

/// The trimmed text of an entry.
pub(super) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// An entry that is a number.
pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// Reads `MAJ:MIN`.
pub(super) fn parse_device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The names in a directory, sorted; empty if there is no such directory.
pub(super) fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A disk, and which of its bytes a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Location {
    /// The whole disk.
    pub(super) disk: u64,
    /// The sysfs directory of the whole disk.
    pub(super) directory: Option<PathBuf>,
    /// Where on the disk the device lies.
    pub(super) range: ByteRange,
}

/// Finds the disk under a device; the device itself if it is no partition or sysfs does not know it.
pub(super) fn locate(rdev: u64) -> Location {
    let whole = |directory| Location { disk: rdev, directory, range: ByteRange::new(0, u64::MAX) };
    let Some(directory) = directory(rdev) else { return whole(None) };
    if !directory.join("partition").exists() {
        return whole(Some(directory));
    }
    let sectors = |entry| number::<u64>(&directory.join(entry)).map(|n| n.saturating_mul(SYSFS_SECTOR_BYTES));
    let parent = directory.parent().map(Path::to_path_buf);
    let disk = parent.as_ref().and_then(|p| parse_device_number(&text(&p.join("dev"))?));
    match (disk, sectors("start"), sectors("size")) {
        (Some(disk), Some(start), Some(len)) => {
            Location { disk, directory: parent, range: ByteRange::at(start, len) }
        }
        _ => whole(Some(directory)),
    }
}

/// The name of a device as in `/dev`, or its numbers.
pub(super) fn device_name(rdev: u64) -> String {
    directory(rdev)
        .and_then(|d| Some(format!("/dev/{}", d.file_name()?.to_str()?.replace('!', "/"))))
        .unwrap_or_else(|| format!("block device {}:{}", major(rdev), minor(rdev)))
}

/// What is behind a loop device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LoopBacking {
    /// The path as the kernel knows it now; ends in ` (deleted)` if the name is gone.
    pub(super) path: PathBuf,
    /// The bytes of the backing file that the loop device shows.
    pub(super) range: ByteRange,
}

/// What is behind the disk in `directory`, if it is a loop device in use.
pub(super) fn loop_backing(directory: &Path) -> Option<LoopBacking> {
    let path = PathBuf::from(text(&directory.join("loop/backing_file"))?);
    let bytes = |entry| number::<u64>(&directory.join("loop").join(entry)).unwrap_or(0);
    let (offset, limit) = (bytes("offset"), bytes("sizelimit"));
    let range = if limit == 0 { ByteRange::new(offset, u64::MAX) } else { ByteRange::at(offset, limit) };
    Some(LoopBacking { path, range })
}

/// All loop devices in use: the device and what is behind it.
pub(super) fn loops() -> Vec<(u64, LoopBacking)> {
    let block = Path::new("/sys/block");
    entries(block)
        .iter()
        .filter(|name| name.starts_with("loop"))
        .filter_map(|name| {
            let directory = block.join(name);
            let rdev = parse_device_number(&text(&directory.join("dev"))?)?;
            Some((rdev, loop_backing(&directory)?))
        })
        .collect()
}

/// The devices in `directory/slaves` or `directory/holders`.
pub(super) fn related(directory: &Path, relation: &str) -> Vec<u64> {
    let list = directory.join(relation);
    entries(&list)
        .iter()
        .filter_map(|name| parse_device_number(&text(&list.join(name).join("dev"))?))
        .collect()
}

/// The partitions of the disk in `directory`.
pub(super) fn partitions(directory: &Path) -> Vec<u64> {
    entries(directory)
        .iter()
        .map(|name| directory.join(name))
        .filter(|path| path.join("partition").exists())
        .filter_map(|path| parse_device_number(&text(&path.join("dev"))?))
        .collect()
}

/// A name of the disk that is the same on every path to it, if it is of a kind that is unique by its making.
pub(super) fn wwid(directory: &Path) -> Option<String> {
    let wwid = text(&directory.join("wwid")).or_else(|| text(&directory.join("device/wwid")))?;
    let (scheme, id) = wwid.split_once('.')?;
    let unique = matches!(scheme, "naa" | "eui" | "uuid") && id.bytes().any(|b| !matches!(b, b'0' | b'-'));
    unique.then_some(wwid)
}

/// The device numbers behind a path: `(st_dev, st_ino, rdev)`, with `rdev` 0 unless it is a block device.
pub(super) fn identify(path: &Path) -> Option<(u64, u64, u64)> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = fs::metadata(path).ok()?;
    let rdev = if metadata.file_type().is_block_device() { metadata.rdev() } else { 0 };
    Some((metadata.dev(), metadata.ino(), rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read_as_sysfs_writes_them() {
        assert_eq!(parse_device_number("7:3\n"), Some(makedev(7, 3)));
        assert_eq!(parse_device_number("259:1048575"), Some(makedev(259, 1_048_575)));
        for bad in ["", "7", "7:", ":3", "a:b", "-1:2"] {
            assert_eq!(parse_device_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_unknown_device_is_its_own_disk() {
        let location = locate(makedev(4000, 77));
        assert_eq!(location.disk, makedev(4000, 77));
        assert_eq!(location.range, ByteRange::new(0, u64::MAX));
        assert_eq!(device_name(makedev(4000, 77)), "block device 4000:77");
    }

    #[test]
    fn a_wwid_that_is_not_unique_by_its_making_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let read = |content: &str| {
            fs::write(dir.path().join("wwid"), content).unwrap();
            wwid(dir.path())
        };
        assert_eq!(read("naa.600508b1001c\n").as_deref(), Some("naa.600508b1001c"));
        assert_eq!(read("eui.0000000000000000"), None);
        assert_eq!(read("t10.ATA     QEMU HARDDISK   QM00001"), None);
        assert_eq!(read(""), None);
    }
}
