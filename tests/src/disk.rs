//! Looking at the disks after a run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blkmirror_testkit::{compare, fill};

/// Asserts that the two have the same size and content.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_equal(a: &Path, b: &Path) {
    assert_eq!(compare::first_difference(a, b).unwrap(), None, "{} and {}", a.display(), b.display());
}

/// Asserts that `len_bytes` at `offset` hold what [`fill::random`] wrote there with `seed`.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_random(path: &Path, offset: u64, len_bytes: u64, seed: u64) {
    let wrong = compare::first_not_random(path, offset, len_bytes, seed).unwrap();
    assert_eq!(wrong, None, "{} was changed", path.display());
}

/// Bytes that the file takes on its file system.
///
/// # Panics
/// When there is no such file.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// A disk with known content that a refused run must leave as it is.
#[derive(Debug)]
pub struct Untouched {
    /// Where it is.
    path: PathBuf,
    /// How long it is.
    len_bytes: u64,
}

impl Untouched {
    /// What the content is made from.
    const SEED: u64 = 0x0dd5_eed5;

    /// Creates the file `path` with known content.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(path: PathBuf, len_bytes: u64) -> Self {
        fill::random_file(&path, len_bytes, Self::SEED).unwrap();
        Self { path, len_bytes }
    }

    /// Fills the existing disk `path` of `len_bytes` with known content.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn disk(path: &Path, len_bytes: u64) -> Self {
        fill::random(path, 0, len_bytes, Self::SEED).unwrap();
        Self { path: path.to_owned(), len_bytes }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asserts that it still is what it was.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn check(&self) {
        assert_random(&self.path, 0, self.len_bytes, Self::SEED);
    }

    /// Asserts that it still is what it was from `offset` on.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn check_from(&self, offset: u64) {
        assert_random(&self.path, offset, self.len_bytes - offset, Self::SEED);
    }
}
