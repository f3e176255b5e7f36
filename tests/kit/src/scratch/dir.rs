//! A directory in memory.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::run::context;

/// Where scratch directories are made.
pub(super) const ROOT: &str = "/dev/shm";
/// How their names start; the process id follows.
pub(super) const PREFIX: &str = "blkmirror-kit-";

/// A directory in memory (tmpfs) that is removed with all it holds when dropped.
#[derive(Debug)]
pub struct ScratchDir {
    /// Where it is.
    path: PathBuf,
}

impl ScratchDir {
    /// Makes an empty directory. The first call of a process also takes away what killed runs left behind.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> io::Result<Self> {
        static SWEPT: Once = Once::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        SWEPT.call_once(|| {
            // Leftovers are a nuisance, not a reason to fail somebody's test.
            let _ = super::sweep();
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(ROOT).join(format!("{PREFIX}{}-{number}", process::id()));
        fs::create_dir(&path).map_err(|error| context(path.display(), &error))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the file `name` of `len_bytes`, one single hole.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sparse_file(&self, name: &str, len_bytes: u64) -> io::Result<PathBuf> {
        let path = self.join(name);
        File::create(&path)?.set_len(len_bytes)?;
        Ok(path)
    }

    /// Makes the file `name` of `len_bytes` with random content.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn random_file(&self, name: &str, len_bytes: u64, seed: u64) -> io::Result<PathBuf> {
        let path = self.join(name);
        crate::fill::random_file(&path, len_bytes, seed)?;
        Ok(path)
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
