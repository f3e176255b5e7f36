//! Reads the extent list of `qemu-img map --output=json`.
//!
//! That list says for each range in which image of the backing chain it was found (`depth`, 0 is the topmost) and
//! whether it reads as zeroes. With `--sync top` only the topmost image's ranges are copied, so deeper ones and those
//! present nowhere become [`ExtentKind::Absent`].
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use blkmirror_core::device::{Extent, ExtentKind};
use blkmirror_core::units::ByteRange;
use serde::Deserialize;

use crate::exit::{Failure, Outcome};

/// The longest list that is read: enough for 20 million extents.
const MAX_MAP_BYTES: u64 = 2 << 30;

/// The ends of extents are multiples of this, as the sizes of disks are.
const SECTOR_BYTES: u64 = 512;

/// One entry of the list. Fields that are not needed (`data`, `offset`, `filename`, `compressed`) are passed over.
#[derive(Deserialize, Debug)]
struct Entry {
    /// First byte.
    start: u64,
    /// Bytes.
    length: u64,
    /// 0 for the topmost image.
    depth: u64,
    /// Whether any image of the chain holds it; older versions of the tool do not say.
    #[serde(default = "yes")]
    present: bool,
    /// Whether it reads as zeroes.
    zero: bool,
}

/// The default of [`Entry::present`].
const fn yes() -> bool {
    true
}

impl Entry {
    /// What a copy of the topmost image has to do here.
    fn kind(&self) -> ExtentKind {
        match self {
            Self { present: false, .. } => ExtentKind::Absent,
            Self { depth: 1.., .. } => ExtentKind::Absent,
            Self { zero: true, .. } => ExtentKind::Zero,
            Self { .. } => ExtentKind::Data,
        }
    }
}

/// Reads the list from `path`, or from standard input if it is `-`. The extents lie within `disk_bytes`.
pub(crate) fn read(path: &Path, disk_bytes: u64) -> Outcome<Vec<Extent>> {
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(|e| Failure::failed(format!("cannot open the map {name}: {e}")))?)
    };
    let text = |why: &str| format!("cannot use the map {name}: {why}");
    let extents = parse(BufReader::new(input.take(MAX_MAP_BYTES)), disk_bytes)
        .map_err(|why| Failure::failed(text(&why)))?;
    check_sectors(&extents).map_err(|why| Failure::usage(text(&why)))?;
    Ok(extents)
}

/// Refuses extents that no disk has; the error is the reason in words.
fn check_sectors(extents: &[Extent]) -> Result<(), String> {
    let whole = |range: &ByteRange| {
        range.start().is_multiple_of(SECTOR_BYTES) && range.end().is_multiple_of(SECTOR_BYTES)
    };
    match extents.iter().find(|extent| !whole(&extent.range)) {
        None => Ok(()),
        Some(Extent { range, .. }) => Err(format!(
            "the extent at {} with {} bytes does not begin and end at a multiple of {SECTOR_BYTES}",
            range.start(),
            range.len()
        )),
    }
}

/// Parses and checks the list; the error is the reason in words.
fn parse(input: impl Read, disk_bytes: u64) -> Result<Vec<Extent>, String> {
    let entries: Vec<Entry> = serde_json::from_reader(input)
        .map_err(|e| format!("it is not the output of `qemu-img map --output=json` ({e})"))?;
    let mut extents = Vec::with_capacity(entries.len());
    let mut reached = 0;
    for entry in &entries {
        let Some(end) = entry.start.checked_add(entry.length) else {
            return Err(format!("the extent at {} is {} bytes long", entry.start, entry.length));
        };
        if entry.start < reached {
            return Err(format!("the extent at {} lies before the end of the one above it", entry.start));
        }
        if end > disk_bytes {
            return Err(format!(
                "it reaches to byte {end}, the source has {disk_bytes}; was it made from another image?"
            ));
        }
        reached = end;
        if entry.length > 0 {
            extents.push(Extent { range: ByteRange::new(entry.start, end), kind: entry.kind() });
        }
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the tool prints for an overlay with data and a zero cluster, over a backing image.
    const MAP: &str = r#"[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680},
{ "start": 65536, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "offset": 0, "filename": "b.raw"},
{ "start": 131072, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false},
{ "start": 196608, "length": 65536, "depth": 1, "present": false, "zero": true, "data": false}]"#;

    /// A deeper extent taken for data would be copied into the overlay.
    #[test]
    fn only_the_topmost_image_counts() {
        let extents = parse(MAP.as_bytes(), 262_144).unwrap();
        let kinds: Vec<_> = extents.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [ExtentKind::Data, ExtentKind::Absent, ExtentKind::Zero, ExtentKind::Absent]);
        assert_eq!(extents[2].range, ByteRange::at(131_072, 65536));
    }

    /// Versions before 6.1 do not print `present`.
    #[test]
    fn a_missing_present_means_present() {
        let text = r#"[{"start":0,"length":512,"depth":0,"zero":false,"data":true,"offset":0}]"#;
        assert_eq!(parse(text.as_bytes(), 512).unwrap()[0].kind, ExtentKind::Data);
    }

    /// Each of these would copy the wrong bytes if it were taken as it stands.
    #[test]
    fn a_list_that_does_not_fit_the_source_is_refused() {
        let entry = |start: u64, length: u64| {
            format!(r#"{{"start":{start},"length":{length},"depth":0,"zero":false,"data":true}}"#)
        };
        for (list, why) in [
            (format!("[{}]", entry(0, 1024)), "another image"),
            (format!("[{},{}]", entry(0, 512), entry(256, 256)), "lies before"),
            (format!("[{}]", entry(u64::MAX, 2)), "bytes long"),
            ("Offset Length Mapped".into(), "not the output"),
            (r#"[{"start":-1,"length":1,"depth":0,"zero":false,"data":true}]"#.into(), "not the output"),
            (r#"[{"start":0}]"#.into(), "not the output"),
        ] {
            let error = parse(list.as_bytes(), 512).unwrap_err();
            assert!(error.contains(why), "{list}: {error}");
        }
    }

    /// Part of a sector cannot be copied, and to round it would copy what is not in the layer.
    #[test]
    fn an_extent_that_ends_inside_a_sector_is_refused_by_its_place() {
        let extent = |start, length| Extent { range: ByteRange::at(start, length), kind: ExtentKind::Data };
        assert!(check_sectors(&[extent(0, 512), extent(1024, 4096)]).is_ok());
        for odd in [extent(512, 100), extent(100, 412)] {
            let why = check_sectors(&[extent(0, 0), odd]).unwrap_err();
            assert!(
                why.contains(&format!("at {} with {} bytes", odd.range.start(), odd.range.len())),
                "{why}"
            );
        }
    }

    /// An empty image has an empty list.
    #[test]
    fn an_empty_list_is_a_list() {
        assert!(parse("[]".as_bytes(), 0).unwrap().is_empty());
    }
}
