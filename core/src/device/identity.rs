//! Which bytes a device stands on, and whether two devices share some.
//!
//! Every device is taken apart into pieces: a range of a whole disk, or a range of a file. A partition is a range of its
//! disk. A loop device is a range of its disk *and* a range of what is behind it, and so on down. Two devices share
//! bytes if a piece of one touches a piece of the other.
//!
//! Some pieces are only known to lie *within* a range: a file lies somewhere within the disk of its file system, a
//! logical volume somewhere within its physical volumes. Two such pieces prove nothing (two files of one file system are
//! not the same bytes); one against a piece that is known exactly does.
#![forbid(unsafe_code)]

use std::path::Path;

use rustix::fs::major;

use super::{DeviceKind, FileId, Shared, sysfs};
use crate::units::ByteRange;

/// How deep devices may stand on devices. Deeper ones exist only by accident; the bound keeps a loop from hanging us.
const DEPTH_MAX: u32 = 8;

/// All bytes, as far as we know.
const ALL: ByteRange = ByteRange::new(0, u64::MAX);

/// Where bytes are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Store {
    /// A whole disk.
    Disk(u64),
    /// A regular file, by file system and inode.
    File(u64, u64),
}

/// A range of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Of what.
    store: Store,
    /// Which bytes.
    range: ByteRange,
    /// The device is somewhere within the range and does not fill it.
    within: bool,
    /// How far below the device itself.
    depth: u32,
}

impl Piece {
    /// The bytes that a block device is, on its disk.
    pub(super) fn of_device(rdev: u64) -> Self {
        let location = sysfs::locate(rdev);
        Self { store: Store::Disk(location.disk), range: location.range, within: false, depth: 0 }
    }

    /// The bytes that the file or block device at `path` is.
    pub(super) fn of_path(path: &Path) -> Option<Self> {
        let (dev, ino, rdev) = sysfs::identify(path)?;
        Some(match rdev {
            0 => Self { store: Store::File(dev, ino), range: ALL, within: false, depth: 0 },
            rdev => Self::of_device(rdev),
        })
    }

    /// Only `part` of it, counted from its start.
    pub(super) fn narrowed(self, part: ByteRange) -> Self {
        let start = self.range.start();
        let moved = ByteRange::new(start.saturating_add(part.start()), start.saturating_add(part.end()));
        Self { range: moved.intersect(self.range), ..self }
    }

    /// Whether the two share bytes for certain.
    pub(super) fn touches(&self, other: &Self) -> bool {
        self.store == other.store && self.range.overlaps(other.range) && !(self.within && other.within)
    }
}

/// The piece that a device is itself, without what is below.
pub(super) fn own_piece(id: FileId, kind: DeviceKind) -> Piece {
    match kind {
        DeviceKind::BlockDevice => Piece::of_device(id.rdev),
        DeviceKind::RegularFile => {
            Piece { store: Store::File(id.dev, id.ino), range: ALL, within: false, depth: 0 }
        }
    }
}

/// All pieces of a device, down to the bottom.
fn pieces(id: FileId, kind: DeviceKind) -> Vec<Piece> {
    let mut found = Vec::new();
    match kind {
        DeviceKind::BlockDevice => add_device(&mut found, id.rdev, ALL, false, 0),
        DeviceKind::RegularFile => add_file(&mut found, id.dev, id.ino, ALL, false, 0),
    }
    found
}

/// Adds the bytes `part` of a block device and what is below them.
fn add_device(found: &mut Vec<Piece>, rdev: u64, part: ByteRange, within: bool, depth: u32) {
    if depth >= DEPTH_MAX {
        return;
    }
    let location = sysfs::locate(rdev);
    let on_disk =
        Piece { store: Store::Disk(location.disk), range: location.range, within, depth }.narrowed(part);
    found.push(on_disk);
    let Some(directory) = location.directory else { return };
    if let Some(backing) = sysfs::loop_backing(&directory) {
        let start = backing.range.start();
        let below = ByteRange::new(
            start.saturating_add(on_disk.range.start()),
            start.saturating_add(on_disk.range.end()),
        )
        .intersect(backing.range);
        match sysfs::identify(&backing.path) {
            Some((dev, ino, 0)) => add_file(found, dev, ino, below, within, depth + 1),
            Some((_, _, rdev)) => add_device(found, rdev, below, within, depth + 1),
            // The name is gone; what is behind cannot be told without privileged calls.
            None => {}
        }
    }
    for slave in sysfs::related(&directory, "slaves") {
        add_device(found, slave, ALL, true, depth + 1);
    }
}

/// Adds the bytes `part` of a file, and the device that its file system is on.
fn add_file(found: &mut Vec<Piece>, dev: u64, ino: u64, part: ByteRange, within: bool, depth: u32) {
    found.push(Piece { store: Store::File(dev, ino), range: part, within, depth });
    // Major 0 is a file system that is on no single device.
    if major(dev) != 0 {
        add_device(found, dev, ALL, true, depth + 1);
    }
}

/// Why two devices share bytes, in words that follow "the source and the target ...".
pub(super) fn overlap(a: &Shared, b: &Shared) -> Option<String> {
    let same = match (a.kind, b.kind) {
        (DeviceKind::BlockDevice, DeviceKind::BlockDevice) => a.id.rdev == b.id.rdev,
        (DeviceKind::RegularFile, DeviceKind::RegularFile) => (a.id.dev, a.id.ino) == (b.id.dev, b.id.ino),
        _ => false,
    };
    if same {
        return Some(format!("are the same {}", noun(a.kind)));
    }
    let (of_a, of_b) = (pieces(a.id, a.kind), pieces(b.id, b.kind));
    let (left, right) =
        of_a.iter().flat_map(|x| of_b.iter().map(move |y| (x, y))).find(|(x, y)| x.touches(y)).or_else(
            || {
                let two_paths = |x: &Piece, y: &Piece| x.depth == 0 && y.depth == 0 && two_paths_to_one(x, y);
                of_a.iter().flat_map(|x| of_b.iter().map(move |y| (x, y))).find(|(x, y)| two_paths(x, y))
            },
        )?;
    Some(reason(a, left, b, right))
}

/// Whether two disks are two paths to one, by a name that is unique by its making.
fn two_paths_to_one(x: &Piece, y: &Piece) -> bool {
    let (Store::Disk(one), Store::Disk(two)) = (x.store, y.store) else { return false };
    let wwid = |disk| sysfs::directory(disk).and_then(|d| sysfs::wwid(&d));
    one != two && x.range.overlaps(y.range) && wwid(one).is_some_and(|w| Some(w) == wwid(two))
}

/// What a kind is called.
const fn noun(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::BlockDevice => "block device",
        DeviceKind::RegularFile => "file",
    }
}

/// Says how two pieces that touch make two devices one.
fn reason(a: &Shared, left: &Piece, b: &Shared, right: &Piece) -> String {
    let store = match left.store {
        Store::Disk(disk) => format!("the disk {}", sysfs::device_name(disk)),
        Store::File(..) => "one file".to_owned(),
    };
    let (a_name, b_name) = (&a.name, &b.name);
    match (left.depth, right.depth) {
        (0, 0) if left.store == right.store => format!("overlap: both are on {store}"),
        (0, 0) => format!("are two paths to {store}"),
        (0, _) => format!("overlap: {b_name} {} {a_name}", stands(right)),
        (_, 0) => format!("overlap: {a_name} {} {b_name}", stands(left)),
        _ => format!("overlap: both stand on {store}"),
    }
}

/// How an upper device relates to a lower one.
const fn stands(piece: &Piece) -> &'static str {
    if piece.within { "lies within" } else { "shows the bytes of" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(start: u64, end: u64, within: bool) -> Piece {
        Piece { store: Store::Disk(1), range: ByteRange::new(start, end), within, depth: 0 }
    }

    #[test]
    fn pieces_touch_only_where_bytes_are_shared_for_certain() {
        assert!(disk(0, 10, false).touches(&disk(9, 20, false)));
        assert!(!disk(0, 10, false).touches(&disk(10, 20, false)));
        assert!(disk(0, 10, false).touches(&disk(5, 20, true)));
        assert!(!disk(0, 10, true).touches(&disk(5, 20, true)));
        let other = Piece { store: Store::Disk(2), ..disk(0, 10, false) };
        assert!(!other.touches(&disk(0, 10, false)));
    }

    #[test]
    fn a_narrowed_piece_stays_inside_the_whole() {
        assert_eq!(disk(100, 200, false).narrowed(ByteRange::new(10, 20)).range, ByteRange::new(110, 120));
        assert_eq!(disk(100, 200, false).narrowed(ALL).range, ByteRange::new(100, 200));
        assert!(disk(100, 200, false).narrowed(ByteRange::new(500, 600)).range.is_empty());
    }
}
