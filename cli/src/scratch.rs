//! Scratch disks for the demo: where they can lie, and what they hold.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blkmirror_core::units::{MIB, bytes_usize};
use rustix::fs::{Mode, OFlags, open, statvfs};

use crate::aligned::Aligned;
use crate::exit::{Failure, Outcome};
use crate::signals::Interrupts;

/// The piece of a scratch disk that is either data, scattered data, or a hole.
const PIECE_BYTES: u64 = 4 * MIB;

/// A scratch directory and what it offers.
#[derive(Debug)]
pub(crate) struct Place {
    /// The directory; removed at the end.
    pub(crate) directory: PathBuf,
    /// Whether files in it can be opened with O_DIRECT.
    pub(crate) direct: bool,
    /// Free bytes.
    pub(crate) free_bytes: u64,
}

/// Makes a scratch directory in the first candidate that can do O_DIRECT and has `wanted_bytes`, else in the best.
pub(crate) fn make_place(
    chosen: Option<&Path>,
    wanted_bytes: u64,
    interrupts: &Interrupts,
) -> Outcome<Place> {
    let candidates = match chosen {
        Some(path) => vec![path.to_path_buf()],
        None => std::env::var_os("TMPDIR")
            .into_iter()
            .map(PathBuf::from)
            .chain([".", "/var/tmp", "/tmp"].map(PathBuf::from))
            .collect(),
    };
    let mut best: Option<(Place, tempfile::TempDir)> = None;
    let mut refusal = String::new();
    for candidate in &candidates {
        match look_at(candidate) {
            Ok(found) => {
                let rank = |place: &Place| (place.direct, place.free_bytes.min(wanted_bytes));
                if best.as_ref().is_none_or(|(place, _)| rank(place) < rank(&found.0)) {
                    best = Some(found);
                }
            }
            Err(why) => refusal = format!("{}: {why}", candidate.display()),
        }
    }
    let Some((place, directory)) = best else {
        return Err(Failure::failed(format!(
            "cannot make a scratch directory in {refusal}; name one with --dir"
        )));
    };
    interrupts.on_exit(move || drop(directory));
    Ok(place)
}

/// Makes a directory in `parent`, and finds out what it is good for.
fn look_at(parent: &Path) -> std::io::Result<(Place, tempfile::TempDir)> {
    let parent = std::fs::canonicalize(parent)?;
    let directory = tempfile::Builder::new().prefix("blkmirror-demo-").tempdir_in(parent)?;
    let path = directory.path().to_path_buf();
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let direct = open(path.join("direct"), flags, Mode::RUSR | Mode::WUSR).is_ok();
    let space = statvfs(&path)?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    Ok((Place { directory: path, direct, free_bytes }, directory))
}

/// What a piece of the scratch disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    /// Data throughout.
    Data,
    /// Data in one of four 64 KiB.
    Scattered,
    /// Nothing.
    Hole,
}

/// A disk as guests have them: mostly data, some of it scattered, and holes.
fn piece(number: u64) -> Piece {
    match number % 8 {
        3 | 7 => Piece::Hole,
        5 => Piece::Scattered,
        _ => Piece::Data,
    }
}

/// Makes a sparse image of `bytes` with random data in it; returns how much of it is data.
pub(crate) fn make_source(path: &Path, bytes: u64, interrupts: &Interrupts) -> Outcome<u64> {
    write_source(path, bytes, interrupts)
        .map_err(|e| Failure::failed(format!("cannot make the scratch disk {}: {e}", path.display())))
        .and_then(|data_bytes| interrupts.check().map(|()| data_bytes))
}

/// See [`make_source`].
fn write_source(path: &Path, bytes: u64, interrupts: &Interrupts) -> std::io::Result<u64> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = open(path, flags | OFlags::DIRECT, mode).or_else(|_| open(path, flags, mode))?;
    let file = File::from(file);
    file.set_len(bytes)?;
    let mut memory = Aligned::new(bytes_usize(PIECE_BYTES));
    let mut seed = 1;
    let mut data_bytes = 0;
    for number in 0..bytes.div_ceil(PIECE_BYTES) {
        if interrupts.hit() {
            break;
        }
        let start = number * PIECE_BYTES;
        let (len, step) = match piece(number) {
            Piece::Hole => continue,
            Piece::Data => (PIECE_BYTES.min(bytes - start), PIECE_BYTES),
            Piece::Scattered => (65536, 4 * 65536),
        };
        fill_random(memory.bytes_mut(), &mut seed);
        let end = bytes.min(start + PIECE_BYTES);
        for at in (start..end).step_by(bytes_usize(step)).filter(|at| at + len <= end) {
            file.write_all_at(&memory.bytes()[..bytes_usize(len)], at)?;
            data_bytes += len;
        }
    }
    file.sync_all()?;
    Ok(data_bytes)
}

/// Fills `bytes` with numbers that no compression finds a pattern in (SplitMix64).
fn fill_random(bytes: &mut [u8], seed: &mut u64) {
    for word in bytes.as_chunks_mut::<8>().0 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (z ^ (z >> 31)).to_le_bytes();
    }
}

/// Puts a loop device over a file, detached at the end; none without root, loop devices or `losetup`.
pub(crate) fn attach_loop(path: &Path, interrupts: &Interrupts) -> Option<PathBuf> {
    let answer = Command::new("losetup")
        .args(["--find", "--show", "--direct-io=on"])
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let device = PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim_end());
    if !answer.status.success() || !device.starts_with("/dev") {
        return None;
    }
    let attached = device.clone();
    interrupts.on_exit(move || {
        // What cannot be detached now goes when its last user does; nothing more can be done here.
        let _ = Command::new("losetup").arg("--detach").arg(attached).stderr(Stdio::null()).status();
    });
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo must show all three kinds of content, and the sum that it divides by must be right.
    #[test]
    fn a_scratch_disk_has_data_scattered_data_and_holes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        let data_bytes = make_source(&path, 32 * MIB, &Interrupts::new()).unwrap();
        assert_eq!(data_bytes, 5 * PIECE_BYTES + PIECE_BYTES / 4);
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len(), 32 << 20);
        let zero = |at: usize| content[at..at + 4096].iter().all(|byte| *byte == 0);
        assert!(zero(12 << 20) && !zero(0) && !zero(20 << 20) && zero((20 << 20) + 65536));
    }

    /// Nothing may be left behind in somebody's directory.
    #[test]
    fn the_scratch_directory_goes_with_the_process() {
        let parent = tempfile::tempdir().unwrap();
        let interrupts = Interrupts::new();
        let place = make_place(Some(parent.path()), MIB, &interrupts).unwrap();
        assert!(place.directory.exists() && place.free_bytes > 0);
        interrupts.clean_up();
        assert!(!place.directory.exists());
    }
}
