//! What a test needs of the machine, and what happens when it is not there.
//!
//! On a developer's laptop such a test says `skipped: needs X` and passes. Under `CI=true` it fails, since there a
//! missing tool would mean that nobody runs the test at all.
#![forbid(unsafe_code)]

use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Something outside this project that a test cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Requirement {
    /// Being root.
    Root,
    /// `losetup` with the right to attach loop devices.
    Losetup,
    /// `mkfs.ext4` and the right to mount on a loop device.
    Ext4,
    /// The `fio` load generator.
    Fio,
    /// `qemu-img`.
    QemuImg,
    /// `qemu-storage-daemon`.
    QemuStorageDaemon,
    /// `/dev/fuse` and the right to mount (root, or `fusermount3`).
    Fuse,
    /// `partx`, to add partitions to a loop device.
    Partx,
    /// `setpriv`, to run a command as somebody else.
    Setpriv,
    /// The io_uring tracepoints in tracefs.
    Tracepoints,
}

impl Requirement {
    /// Whether this machine has it.
    #[must_use]
    pub fn is_met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Losetup => Self::Root.is_met() && has("losetup") && opens("/dev/loop-control"),
            Self::Ext4 => Self::Losetup.is_met() && has("mkfs.ext4"),
            Self::Fio => has("fio"),
            Self::QemuImg => has("qemu-img"),
            Self::QemuStorageDaemon => has("qemu-storage-daemon"),
            Self::Fuse => opens("/dev/fuse") && (Self::Root.is_met() || has("fusermount3")),
            Self::Partx => Self::Root.is_met() && has("partx"),
            Self::Setpriv => Self::Root.is_met() && has("setpriv"),
            Self::Tracepoints => Self::Root.is_met() && crate::run::tracefs().is_some(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Losetup => "losetup as root",
            Self::Ext4 => "mkfs.ext4 and losetup as root",
            Self::Fio => "fio",
            Self::QemuImg => "qemu-img",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
            Self::Fuse => "/dev/fuse, and root or fusermount3",
            Self::Partx => "partx as root",
            Self::Setpriv => "setpriv as root",
            Self::Tracepoints => "the io_uring tracepoints (tracefs, as root)",
        })
    }
}

/// Whether everything in `requirements` is there; says what is missing otherwise.
///
/// # Panics
/// Under `CI=true`, when something is missing.
#[must_use]
pub fn all_met(requirements: &[Requirement]) -> bool {
    let missing: Vec<String> =
        requirements.iter().filter(|need| !need.is_met()).map(ToString::to_string).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    let ci = env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "needs {missing}, which CI=true must have");
    // Not println!: the test harness would swallow it, and a skipped test must be seen.
    // Formatted first and written at once, or lines of tests that run at the same time mix.
    let line = format!("skipped: needs {missing}\n");
    let _ = io::stderr().write_all(line.as_bytes());
    false
}

/// Leaves the calling test, with a word, unless the machine has every [`Requirement`] named.
#[macro_export]
macro_rules! needs {
    ($($requirement:ident),+ $(,)?) => {
        if !$crate::need::all_met(&[$($crate::need::Requirement::$requirement),+]) {
            return;
        }
    };
}

/// Whether `program` is on the path, or in an sbin directory that a user's path may lack.
fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// Whether `path` can be opened for reading and writing.
fn opens(path: &str) -> bool {
    OpenOptions::new().read(true).write(true).open(Path::new(path)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_the_path_only_if_it_is_there() {
        assert!(has("sh"));
        assert!(!has("no-such-program-anywhere"));
    }
}
