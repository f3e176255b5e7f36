//! A disk that `qemu-storage-daemon` serves as a file, through its blkdebug: faults from somebody else's block layer.
//!
//! QEMU 10.0 mixes up the data of two writes that are under way at once on such a file, so a test keeps one under way.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_testkit::ScratchDir;

/// A fault that blkdebug injects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inject {
    /// `read`, `write` or `flush`.
    pub iotype: &'static str,
    /// What it fails with.
    pub errno: i32,
    /// Where; everywhere if `None`.
    pub at_bytes: Option<u64>,
    /// The first time only.
    pub once: bool,
}

/// A served disk; dropped, the server ends.
#[derive(Debug)]
pub struct Served {
    /// The served file.
    path: PathBuf,
    /// The file behind it.
    content: PathBuf,
    /// The server.
    daemon: Child,
    /// Holds the files.
    dir: ScratchDir,
}

impl Served {
    /// Serves a new disk of `len_bytes` that `prepare` may fill before.
    ///
    /// # Panics
    /// When the daemon does not start.
    #[must_use]
    pub fn start(len_bytes: u64, faults: &[Inject], prepare: impl FnOnce(&std::path::Path)) -> Self {
        let dir = ScratchDir::new().unwrap();
        let content = dir.sparse_file("content", len_bytes).unwrap();
        prepare(&content);
        let path = dir.sparse_file("disk", 0).unwrap();
        let rules = dir.join("rules");
        fs::write(&rules, rules_of(faults)).unwrap();
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--pidfile").arg(dir.join("pid")).args([
            "--blockdev",
            &format!("driver=file,node-name=file,filename={},discard=unmap", content.display()),
            "--blockdev",
            &format!("driver=blkdebug,node-name=disk,image=file,config={}", rules.display()),
            "--export",
            &format!("type=fuse,id=disk,node-name=disk,mountpoint={},writable=on", path.display()),
        ]);
        let this = Self { path, content, daemon: command.spawn().unwrap(), dir };
        let end = Instant::now() + Duration::from_secs(10);
        // The daemon says its process id when everything is exported.
        while !fs::read_to_string(this.dir.join("pid")).is_ok_and(|text| text.ends_with('\n')) {
            assert!(Instant::now() < end, "qemu-storage-daemon does not get ready");
            thread::sleep(Duration::from_millis(2));
        }
        this
    }

    /// The served file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The file behind it, without faults.
    #[must_use]
    pub fn content(&self) -> &std::path::Path {
        &self.content
    }
}

/// The daemon's words for faults.
fn rules_of(faults: &[Inject]) -> String {
    let mut text = String::new();
    for fault in faults {
        let once = if fault.once { "on" } else { "off" };
        let _ = writeln!(text, "[inject-error]\nevent = \"none\"\niotype = \"{}\"", fault.iotype);
        let _ = writeln!(text, "errno = \"{}\"\nonce = \"{once}\"", fault.errno);
        if let Some(at) = fault.at_bytes {
            let _ = writeln!(text, "sector = \"{}\"", at / 512);
        }
    }
    text
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.daemon.id()).unwrap_or(0));
        // Asked politely, it takes its files away.
        if pid.as_raw() > 0 {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.daemon.wait();
    }
}
