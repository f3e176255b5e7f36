//! What is mounted and what is swapped to, from `/proc`.
//!
//! Only our own mount namespace is visible here. A device that is mounted in another one is caught by `O_EXCL` when it
//! is opened as a target: a mount is an exclusive holder.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::major;

use super::sysfs;

/// One mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    /// The device numbers of the file system; major 0 if it is not on one device.
    pub(super) device: u64,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// What was mounted: `/dev/sda1`, or a word.
    pub(super) source: PathBuf,
    /// Whether it can be written to.
    pub(super) writable: bool,
}

impl Mount {
    /// The block device under it, as far as `/proc` tells. Several (btrfs) show only the one that was named.
    pub(super) fn block_device(&self) -> Option<u64> {
        if major(self.device) != 0 {
            return Some(self.device);
        }
        let named = self.source.starts_with("/dev").then(|| sysfs::identify(&self.source))??;
        (named.2 != 0).then_some(named.2)
    }
}

/// Everything mounted in our mount namespace.
pub(super) fn mounts() -> Vec<Mount> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|&b| b == b'\n').filter_map(parse_mount).collect()
}

/// Reads one line of mountinfo: `id parent MAJ:MIN root point options [tags] - type source superoptions`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let device = sysfs::parse_device_number(std::str::from_utf8(fields.get(2)?).ok()?)?;
    let has_rw = |field: &[u8]| field.split(|&b| b == b',').any(|option| option == b"rw");
    Some(Mount {
        device,
        point: unescape(fields.get(4)?),
        source: unescape(fields.get(dash + 2)?),
        writable: has_rw(fields.get(dash + 3)?),
    })
}

/// The files and devices that are swapped to.
pub(super) fn swaps() -> Vec<PathBuf> {
    let table = fs::read("/proc/swaps").unwrap_or_default();
    table
        .split(|&b| b == b'\n')
        .skip(1)
        .filter_map(|line| line.split(|&b| b == b' ' || b == b'\t').next())
        .filter(|path| !path.is_empty())
        .map(unescape)
        .collect()
}

/// Turns `\040` and its like, which the kernel writes for blanks, tabs, newlines and backslashes, back.
fn unescape(field: &[u8]) -> PathBuf {
    let octal = |digits: &[u8]| {
        let text = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(text, 8).ok()
    };
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    #[test]
    fn a_mount_is_read_with_its_escapes_and_its_optional_tags() {
        let line = br"36 35 7:1 / /mnt/a\040b\134c rw,noatime shared:7 master:1 - ext4 /dev/loop1 rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.device, makedev(7, 1));
        assert_eq!(mount.point, PathBuf::from(r"/mnt/a b\c"));
        assert_eq!(mount.source, PathBuf::from("/dev/loop1"));
        assert!(mount.writable);
        assert_eq!(mount.block_device(), Some(makedev(7, 1)));
        let plain = parse_mount(b"1 0 0:21 / /proc ro - proc proc ro").unwrap();
        assert!(!plain.writable);
        assert_eq!(plain.block_device(), None);
    }

    #[test]
    fn lines_that_are_cut_short_are_passed_over() {
        for line in [
            &b""[..],
            b"36 35",
            b"36 35 7:1 / /mnt rw",
            b"36 35 7:1 / /mnt rw - ext4",
            b"a b c d e f - g h i",
        ] {
            assert_eq!(parse_mount(line), None);
        }
    }
}
