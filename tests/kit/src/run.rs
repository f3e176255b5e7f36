//! Running the tools of the machine.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Runs `program` to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the error quotes what it wrote to standard error.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().map_err(|error| context(program, &error))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{command:?}: {}: {}", output.status, complaint.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `error` with a word on what was attempted.
pub(crate) fn context(what: impl Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The directory of the io_uring tracepoints; mounts tracefs if that is all that is missing.
#[must_use]
pub fn tracefs() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let root = Path::new("/sys/kernel/tracing");
        let ready = || root.join("events/io_uring/io_uring_queue_async_work").is_dir();
        if !ready() {
            let flags = nix::mount::MsFlags::empty();
            let _ = nix::mount::mount(Some("tracefs"), root, Some("tracefs"), flags, None::<&str>);
        }
        ready().then(|| root.to_owned())
    });
    found.as_deref()
}
