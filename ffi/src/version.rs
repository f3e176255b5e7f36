//! Which version this is, and what it can do.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

use blkmirror_core::ring::probe;

use crate::border::{guard, text};

/// Major version of this header. Below 1, a new minor version may break programs.
pub const BLKM_VERSION_MAJOR: u32 = 0;
/// Minor version of this header.
pub const BLKM_VERSION_MINOR: u32 = 1;
/// Patch version of this header.
pub const BLKM_VERSION_PATCH: u32 = 0;

/// What `blkm_has_feature` knows.
const FEATURES: &[&str] = &[
    "auto-escalation",
    "bitmaps",
    "copy",
    "discard",
    "latency-budget",
    "live-mirror",
    "registered-memory",
    "trackers",
    "write-blocking",
    "write-zeroes",
];

/// The version of the library that is loaded, as `BLKM_VERSION_NUMBER` is made: major * 65536 + minor * 256 + patch.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn blkm_version() -> u32 {
    BLKM_VERSION_MAJOR << 16 | BLKM_VERSION_MINOR << 8 | BLKM_VERSION_PATCH
}

/// The version of the library that is loaded, such as "0.1.0". Static; never NULL.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn blkm_version_string() -> *const c_char {
    const VERSION: &[u8] = concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes();
    VERSION.as_ptr().cast()
}

/// Whether the library that is loaded has a feature, by name: "auto-escalation", "bitmaps", "copy", "discard", "latency-budget",
/// "live-mirror", "registered-memory", "trackers", "write-blocking", "write-zeroes". Later versions know more names, such as
/// "persistent-bitmaps". What the kernel can do, `blkm_probe` tells.
///
/// Returns 1 if so, 0 if not or for NULL. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_has_feature(name: *const c_char) -> c_int {
    // SAFETY: a string of the caller's, as the header says.
    let name = unsafe { text::bytes(name) };
    c_int::from(FEATURES.iter().any(|feature| Some(feature.as_bytes()) == name))
}

/// Whether the kernel lets this process use io_uring as the library needs it: sets up a small ring as an engine would, and takes it
/// down again.
///
/// Returns 0, or -errno: `-ENOSYS` or `-EPERM` where io_uring is missing, switched off (`sysctl kernel.io_uring_disabled`) or
/// forbidden by a filter, `-EOPNOTSUPP` below Linux 5.15, `-ENOMEM`. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn blkm_probe() -> c_int {
    guard("look at the kernel", || probe().map(drop))
}

/// What went wrong in the last call that failed on the calling thread, in one line that says what was attempted, where, and why:
/// "cannot open the target /dev/sdb: it is mounted at /srv". "" if none has failed. UTF-8; control characters are escaped.
///
/// The text belongs to the library and stays until the next call that fails on this thread, or its end. Calls that succeed leave it
/// alone. Completions, events and outcomes of jobs carry a text of their own. Never NULL. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn blkm_error_msg() -> *const c_char {
    text::last()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host decides by these macros what it may use.
    #[test]
    fn the_version_macros_are_those_of_the_package() {
        let parts: Vec<u32> =
            env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
        assert_eq!(parts, [BLKM_VERSION_MAJOR, BLKM_VERSION_MINOR, BLKM_VERSION_PATCH]);
        assert_eq!(blkm_version(), parts[0] * 65536 + parts[1] * 256 + parts[2]);
    }
}
