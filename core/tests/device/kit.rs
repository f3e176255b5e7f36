//! Scratch files and loop devices that clean up after themselves.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::{Error, ErrorKind};
use tempfile::TempDir;

/// Held while a child is being made.
///
/// Tests run in threads of one process. A child that some other test makes has a copy of every descriptor from its fork
/// until its exec, so one that is closed in between is open until then: for up to 15 ms, as measured on two cores.
static FORKING: Mutex<()> = Mutex::new(());

/// Makes a child. All of them are made here, see [`let_go`].
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _alone = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    // It returns once the child's exec has closed what the child has of ours.
    command.spawn()
}

/// Runs a child to its end.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// Drops something that holds a claim or a lock, so that it is free on return: no child has a copy of it.
pub(crate) fn let_go<T>(held: T) {
    let _alone = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    drop(held);
}

/// Opens a target while somebody holds it who lets go soon, and then one who does not.
pub(crate) fn waits_for_a_moment<T: Send>(path: &Path, hold: impl Fn() -> T) {
    let held = hold();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            let_go(held);
        });
        let opened = Device::open_target(path, TargetOptions::default());
        let_go(opened.unwrap());
    });
    let held = hold();
    let start = Instant::now();
    let refused = Device::open_target(path, TargetOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(150) && waited < Duration::from_secs(5), "{waited:?}");
    let_go(held);
}

/// What a tool printed; panics if it failed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(Command::new(program).args(arguments)).unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Whether a tool is there.
fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(program).exists()))
}

/// Whether a test may go on: it needs root and these tools. Under `CI=true` it is a failure if not.
pub(crate) fn needs_root_and(tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !has(tool)).collect();
    let root = rustix::process::geteuid().is_root();
    if root && missing.is_empty() {
        return true;
    }
    skip(&format!("needs root and {}", tools.join(" and ")))
}

/// Whether a test may go on: it needs these tools, but not root.
pub(crate) fn needs(tools: &[&str]) -> bool {
    tools.iter().all(|tool| has(tool)) || skip(&format!("needs {}", tools.join(" and ")))
}

/// Says that a test is skipped; fails it under `CI=true`.
fn skip(why: &str) -> bool {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped: {why}, which is not allowed under CI=true"
    );
    // Not eprintln!: the test harness would swallow it, and a skipped test must be seen. One write, so that lines of
    // tests that run at the same time do not mix.
    let line = format!("skipped: {why}\n");
    let _ = io::stderr().write_all(line.as_bytes());
    false
}

/// A directory on tmpfs.
pub(crate) fn on_tmpfs() -> TempDir {
    tempfile::Builder::new().prefix("blkmirror-device-").tempdir_in("/dev/shm").unwrap()
}

/// A directory on a disk.
pub(crate) fn on_disk() -> TempDir {
    tempfile::Builder::new().prefix("device-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A sparse file.
pub(crate) fn sparse(path: &Path, bytes: u64) -> PathBuf {
    fs::File::create(path).unwrap().set_len(bytes).unwrap();
    path.to_path_buf()
}

/// A file that holds something.
pub(crate) fn filled(path: &Path, bytes: usize) -> PathBuf {
    let content: Vec<u8> = (0..bytes).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    fs::write(path, content).unwrap();
    path.to_path_buf()
}

/// A loop device over a file; detached when dropped.
pub(crate) struct Loop {
    /// The device node.
    pub(crate) path: PathBuf,
}

impl Loop {
    /// Attaches a file, with further arguments for losetup.
    pub(crate) fn attach(file: &Path, arguments: &[&str]) -> Self {
        let mut all = vec!["--find", "--show"];
        all.extend(arguments);
        all.push(file.to_str().unwrap());
        Self { path: PathBuf::from(run("losetup", &all)) }
    }

    /// Attaches a disk with a partition table. Partitions are added by hand where the kernel cannot read the table.
    pub(crate) fn attach_partitioned(file: &Path) -> Self {
        let disk = Self::attach(file, &["--partscan"]);
        run("partx", &["--update", disk.path.to_str().unwrap()]);
        disk
    }

    /// Its sysfs directory.
    pub(crate) fn sysfs(&self) -> PathBuf {
        Path::new("/sys/block").join(self.path.file_name().unwrap())
    }

    /// The node of a partition, once it is there.
    pub(crate) fn partition(&self, number: u32) -> PathBuf {
        let node = PathBuf::from(format!("{}p{number}", self.path.display()));
        let start = Instant::now();
        while !node.exists() {
            assert!(start.elapsed() < Duration::from_secs(5), "{} did not appear", node.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        node
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A loop device keeps its queue settings over users; 0 is back to the default.
        let _ = fs::write(self.sysfs().join("queue/max_sectors_kb"), "0");
        let _ = output(Command::new("losetup").arg("--detach").arg(&self.path));
    }
}

/// A mounted file system; unmounted when dropped.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    /// Mounts a device on a new directory.
    pub(crate) fn new(device: &Path, point: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        run("mount", &[device.to_str().unwrap(), point.to_str().unwrap()]);
        Self(point.to_path_buf())
    }

    /// Mounts a file system without a device, such as ramfs.
    pub(crate) fn of_type(name: &str, point: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        run("mount", &["-t", name, "none", point.to_str().unwrap()]);
        Self(point.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = output(Command::new("umount").arg(&self.0));
    }
}

/// Writes a partition table with partitions given as `(start, count)` in sectors.
pub(crate) fn write_mbr(image: &Path, partitions: &[(u32, u32)]) {
    use std::os::unix::fs::FileExt;
    let mut sector = [0_u8; 512];
    for (entry, (start, count)) in sector[446..510].chunks_exact_mut(16).zip(partitions) {
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::OpenOptions::new().write(true).open(image).unwrap().write_all_at(&sector, 0).unwrap();
}

/// Opens as a target with the usual options.
pub(crate) fn target(path: &Path) -> Result<Device, Error> {
    Device::open_target(path, TargetOptions::default())
}

/// Opens as a source.
pub(crate) fn source(path: &Path) -> Result<Device, Error> {
    Device::open_source(path)
}

/// The error must be of this kind, be one line, name the file and contain these words.
#[track_caller]
pub(crate) fn assert_refused(result: Result<Device, Error>, kind: ErrorKind, path: &Path, words: &str) {
    let error = match result {
        Ok(device) => panic!("{} was opened as {:?}", path.display(), device.role()),
        Err(error) => error,
    };
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(words), "'{text}' does not say '{words}'");
    assert!(text.contains(path.to_str().unwrap()), "'{text}' does not name the file");
    assert!(!text.contains('\n'), "{text}");
}

/// Reads from a device as a ring would, but through std; the buffer needs no alignment since the page cache is used.
pub(crate) fn read_all(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// The flags that a device was opened with.
pub(crate) fn flags(device: &Device) -> rustix::fs::OFlags {
    rustix::fs::fcntl_getfl(device.as_fd()).unwrap()
}
