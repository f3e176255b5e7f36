//! A disk that `qemu-storage-daemon` serves as a file: faults and latency from somebody else's block layer.
//!
//! ```text
//! healthy   top ----------------------> file
//! failing   top ----> blkdebug -------> file      from one to the other at any time, by the daemon's monitor
//! slow      top ----> quorum of two files and one that answers after 20 ms
//! ```
//!
//! `throttle` makes no latency: it lets 100 ms worth of requests through at once and delays the next one. A quorum answers when all
//! its members have, so the slowest one decides.
//!
//! QEMU 10.0 mixes up the data of two writes that are under way at once on such a file, so the kernel sends it one at a time
//! (`one_by_one`) where the test may ask for that; where it may not, a test must keep one under way.
#![forbid(unsafe_code)]

mod monitor;
mod one_by_one;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_testkit::{ScratchDir, StorageDaemon};

use monitor::Monitor;

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
    _daemon: StorageDaemon,
    /// Holds the files.
    dir: ScratchDir,
}

impl Served {
    /// How long each request to a slow disk takes.
    pub const LATENCY: Duration = Duration::from_millis(20);

    /// Serves a new disk of `len_bytes` that `prepare` may fill before. It fails when it is told to.
    ///
    /// # Panics
    /// When the daemon does not start.
    #[must_use]
    pub fn start(len_bytes: u64, faults: &[Inject], prepare: impl FnOnce(&Path)) -> Self {
        let dir = ScratchDir::new().unwrap();
        let content = dir.sparse_file("content", len_bytes).unwrap();
        prepare(&content);
        let rules = dir.join("rules");
        fs::write(&rules, rules_of(faults)).unwrap();
        let nodes = [
            file_node("file", &content),
            format!("driver=blkdebug,node-name=failing,image=file,config={}", rules.display()),
            "driver=raw,node-name=top,file=file".to_owned(),
        ];
        Self::serve(dir, content, &nodes)
    }

    /// The same with a disk that takes [`Self::LATENCY`] for every read, write and flush.
    ///
    /// # Panics
    /// When the daemon does not start.
    #[must_use]
    pub fn start_slow(len_bytes: u64, prepare: impl FnOnce(&Path)) -> Self {
        let dir = ScratchDir::new().unwrap();
        let content = dir.sparse_file("content", len_bytes).unwrap();
        prepare(&content);
        // Two that agree outvote the slow one, which holds nothing.
        let twin = dir.join("twin");
        fs::copy(&content, &twin).unwrap();
        let ns = Self::LATENCY.as_nanos();
        let nodes = [
            file_node("file", &content),
            file_node("twin", &twin),
            format!("driver=null-aio,node-name=slow,size={len_bytes},latency-ns={ns},read-zeroes=on"),
            "driver=quorum,node-name=top,vote-threshold=2,children.0=file,children.1=twin,children.2=slow"
                .to_owned(),
        ];
        Self::serve(dir, content, &nodes)
    }

    /// Starts the daemon with these nodes, of which it exports the one called `top`.
    fn serve(dir: ScratchDir, content: PathBuf, nodes: &[String]) -> Self {
        let path = dir.sparse_file("disk", 0).unwrap();
        let socket = dir.join("monitor");
        let mut arguments = vec![
            "--chardev".to_owned(),
            format!("socket,id=monitor,path={},server=on,wait=off", socket.display()),
            "--monitor".to_owned(),
            "chardev=monitor".to_owned(),
        ];
        for node in nodes {
            arguments.extend(["--blockdev".to_owned(), node.clone()]);
        }
        let export = format!("type=fuse,id=disk,node-name=top,mountpoint={},writable=on", path.display());
        arguments.extend(["--export".to_owned(), export]);
        let daemon = StorageDaemon::start(&arguments, &dir.join("pid"), vec![path.clone()]).unwrap();
        if blkmirror_testkit::Requirement::Root.is_met() {
            one_by_one::ask(&path, &dir.join("control")).unwrap();
        }
        Self { path, content, _daemon: daemon, dir }
    }

    /// The served file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file behind it, without faults.
    #[must_use]
    pub fn content(&self) -> &Path {
        &self.content
    }

    /// From now on its faults show.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn fail(&self) {
        self.put_top_on("failing");
    }

    /// From now on they do not.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn heal(&self) {
        self.put_top_on("file");
    }

    /// Puts the exported node on another one, between two requests.
    fn put_top_on(&self, node: &str) {
        let mut monitor = Monitor::connect(&self.dir.join("monitor"));
        let options = format!(r#"{{"driver": "raw", "node-name": "top", "file": "{node}"}}"#);
        monitor.execute("blockdev-reopen", &format!(r#"{{"options": [{options}]}}"#));
    }
}

/// The daemon's words for a file.
fn file_node(name: &str, path: &Path) -> String {
    format!("driver=file,node-name={name},filename={},discard=unmap", path.display())
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
