//! Running `blkmirror`.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// No run of these tests takes longer, on any machine.
const DEADLINE: Duration = Duration::from_secs(40);

/// The command's file.
///
/// `BLKMIRROR` in the environment names another one. Otherwise it is built first, which takes no time if it is up to
/// date: a stale command would make every test meaningless.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn binary() -> &'static Path {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    // A build that failed is remembered, so that it fails once and not for every test.
    FOUND.get_or_init(build).as_deref().expect("the command cannot be built")
}

/// Builds the command next to the running test, with the same profile; `None` if that fails.
fn build() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BLKMIRROR") {
        return Some(path.into());
    }
    // target/PROFILE/deps/TEST-HASH
    let test = std::env::current_exe().ok()?;
    let profile = test.ancestors().nth(2)?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--package", "blkmirror", "--bin", "blkmirror", "--target-dir"]);
    build.arg(profile.parent()?).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    build.status().ok()?.success().then(|| profile.join("blkmirror"))
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; `None` if a signal killed it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Ended {
    /// The one JSON object that it printed.
    ///
    /// # Panics
    /// When it printed something else.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("not one JSON object ({other:?}): {self:?}"),
        }
    }

    /// A number of the JSON object.
    ///
    /// # Panics
    /// When there is no such number.
    #[must_use]
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        self.json()[name].as_u64().unwrap_or_else(|| panic!("no number {name}: {self:?}"))
    }

    /// Asserts that it ended well.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Asserts that it failed with exit code `code` and one line that holds every one of `words`, whatever their case.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        let complaint = self.stderr.trim_end();
        assert!(!complaint.is_empty() && !complaint.contains('\n'), "not one line: {self:?}");
        assert!(!complaint.contains("panicked"), "{self:?}");
        let low = complaint.to_lowercase();
        for word in words {
            assert!(low.contains(&word.to_lowercase()), "'{word}' is missing: {self:?}");
        }
        self
    }
}

/// A run that has not ended; killed when dropped.
#[derive(Debug)]
pub struct Started {
    /// The process.
    child: Child,
    /// The command line, for messages.
    line: String,
    /// Since when.
    started: Instant,
    /// What it prints and what it complains about.
    output: [Output; 2],
}

/// What came out of a pipe so far.
#[derive(Debug)]
struct Output {
    /// The text.
    text: Arc<Mutex<String>>,
    /// Who reads the pipe; ends with it.
    reader: Option<JoinHandle<()>>,
}

impl Started {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`.
    ///
    /// # Panics
    /// When that fails.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the process cannot be asked.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has complained with `word`; `false` if it does not within `patience`.
    #[must_use]
    pub fn complains(&self, word: &str, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.output[1].text.lock().unwrap().contains(word) {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(self.started.elapsed() < DEADLINE, "hangs: {}", self.line);
            thread::sleep(Duration::from_millis(2));
        };
        let elapsed = self.started.elapsed();
        let [stdout, stderr] = self.output.each_mut().map(Output::finish);
        Ended { line: self.line.clone(), code: status.code(), stdout, stderr, elapsed }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // A process that waits for a disk that does not answer cannot be killed. The disk, which is dropped after us,
        // will answer then; waiting here would be a deadlock.
        let patience = Instant::now() + Duration::from_secs(2);
        while Instant::now() < patience && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// `blkmirror ARGUMENTS`, not yet started.
#[must_use]
pub fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments);
    command
}

/// Starts `command`.
///
/// # Panics
/// When it cannot be started.
#[must_use]
#[track_caller]
pub fn start(mut command: Command) -> Started {
    let line = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let output = [Output::of(child.stdout.take().unwrap()), Output::of(child.stderr.take().unwrap())];
    Started { child, line, started, output }
}

impl Output {
    /// Reads a pipe on a thread of its own, so that the command never waits for us.
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(got @ 1..) = pipe.read(&mut bytes) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..got]));
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// All of it.
    fn finish(&mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.text.lock().unwrap())
    }
}

/// Runs `blkmirror ARGUMENTS` to its end.
#[must_use]
#[track_caller]
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ended {
    start(command(arguments)).wait()
}

/// `blkmirror copy SOURCE TARGET OPTIONS`, not yet started.
#[must_use]
pub fn copy(source: &Path, target: &Path, options: &[&str]) -> Command {
    let mut arguments: Vec<OsString> = vec!["copy".into(), source.into(), target.into()];
    arguments.extend(options.iter().map(OsString::from));
    command(arguments)
}

/// Runs `blkmirror copy SOURCE TARGET OPTIONS --json` to its end.
#[must_use]
#[track_caller]
pub fn copy_json(source: &Path, target: &Path, options: &[&str]) -> Ended {
    let mut command = copy(source, target, options);
    command.arg("--json");
    start(command).wait()
}
