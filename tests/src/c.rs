//! C and C++ programs that use the library.
//!
//! ```ignore
//! let program = c::compile(&["c-examples/copy.c"], &[]);                // paths from the root of the repository
//! let ended = start(program.command(["a", "b"])).wait().succeeded();    // as any other command: a deadline, both outputs
//! ```
//!
//! [`library`] is the directory with `libblkmirror.so` and `libblkmirror.so.0`, built first with the profile of the running test;
//! [`archive`] is the static library of the same build. [`compile`] takes every warning for an error, looks for `<blkmirror.h>` in
//! `include/`, and links the shared library; flags come last, so that `-std=c99` or `-fsanitize=address` is respected.
//! [`try_compile`] is for a test that wants another compiler, or the complaint. [`has_cxx`] is asked first by tests of C++. A
//! program that needs more than C11 has says `#define _GNU_SOURCE 1` itself, as its users would.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// What every program is compiled with, before the caller's flags.
const FLAGS: &[&str] = &["-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-pthread"];

/// The library as it was built.
#[derive(Debug)]
struct Built {
    /// Where `libblkmirror.so` and `libblkmirror.so.0` are, and nothing else.
    links: PathBuf,
    /// `libblkmirror.a`.
    archive: PathBuf,
}

/// A program that was compiled; its file goes away with this.
#[derive(Debug)]
pub struct Program {
    /// Its file.
    path: PathBuf,
    /// Where that is.
    _dir: TempDir,
}

impl Program {
    /// `PROGRAM ARGUMENTS`, not yet started, that finds the library.
    #[must_use]
    pub fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).env("LD_LIBRARY_PATH", library());
        command
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The directory for `-L` and `LD_LIBRARY_PATH`.
///
/// # Panics
/// When the library cannot be built.
#[must_use]
pub fn library() -> &'static Path {
    &built().links
}

/// The static library.
///
/// # Panics
/// When the library cannot be built.
#[must_use]
pub fn archive() -> &'static Path {
    &built().archive
}

/// Builds the library, once for a process: a stale one would make every test meaningless.
fn built() -> &'static Built {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    // A build that failed is remembered, so that it fails once and not for every test.
    BUILT.get_or_init(build).as_ref().expect("the C library cannot be built")
}

/// Builds the library next to the running test, with the same profile; `None` if that fails.
fn build() -> Option<Built> {
    // target/PROFILE/deps/TEST-HASH
    let test = std::env::current_exe().ok()?;
    let profile = test.ancestors().nth(2)?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--locked", "--package", "blkmirror-ffi", "--target-dir"]);
    build.arg(profile.parent()?).current_dir(root());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    build.status().ok()?.success().then_some(())?;
    // A directory of its own: with the archive beside it, a program could be linked to that one by mistake.
    let links = profile.join("c-library");
    fs::create_dir_all(&links).ok()?;
    let file = fs::canonicalize(profile.join("libblkmirror.so")).ok()?;
    for name in ["libblkmirror.so", "libblkmirror.so.0"] {
        link(&file, &links, name)?;
    }
    Some(Built { links, archive: profile.join("libblkmirror.a") })
}

/// Makes `links/name` lead to `file`. Other tests may be doing the same, or run a program with it: there is no moment without it.
fn link(file: &Path, links: &Path, name: &str) -> Option<()> {
    let own = links.join(format!("{name}.{}", std::process::id()));
    let _ = fs::remove_file(&own);
    std::os::unix::fs::symlink(file, &own).ok()?;
    fs::rename(&own, links.join(name)).ok()
}

/// Compiles `sources`, which are paths from the root of the repository or absolute ones: C11, or C++17 if one ends in `.cpp`.
///
/// # Panics
/// When the compiler complains.
#[must_use]
#[track_caller]
pub fn compile(sources: &[impl AsRef<Path>], flags: &[&str]) -> Program {
    match try_compile(compiler(sources), sources, flags) {
        Ok(program) => program,
        Err(complaint) => panic!("{complaint}"),
    }
}

/// The same with a compiler of the caller's choice, and its complaint if it has one.
///
/// # Errors
/// What the compiler says.
///
/// # Panics
/// When there is no such compiler.
pub fn try_compile(compiler: &str, sources: &[impl AsRef<Path>], flags: &[&str]) -> Result<Program, String> {
    let dir = TempDir::with_prefix("blkmirror-c").unwrap();
    let path = dir.path().join("program");
    let mut command = Command::new(compiler);
    command.current_dir(root()).args(FLAGS).arg(if is_cxx(sources) { "-std=c++17" } else { "-std=c11" });
    command.args(flags).arg("-Iinclude").args(sources.iter().map(AsRef::as_ref)).arg("-o").arg(&path);
    // Last, and after the sources: that is the order in which linkers look.
    command.arg("-L").arg(library()).arg("-lblkmirror").stdin(Stdio::null());
    let ended = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if ended.status.success() {
        return Ok(Program { path, _dir: dir });
    }
    Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&ended.stderr)))
}

/// Whether this machine has a C++ compiler; says so if not.
///
/// # Panics
/// Under `CI=true`, when it has none: nobody would run the test at all.
#[must_use]
pub fn has_cxx() -> bool {
    let found = works(cxx());
    if !found {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "needs {}, which CI=true must have",
            cxx()
        );
        // At once and past the test harness, which would swallow it.
        let _ = std::io::stderr().write_all(format!("skipped: needs {}\n", cxx()).as_bytes());
    }
    found
}

/// Whether a program of that name can be started.
#[must_use]
pub fn works(compiler: &str) -> bool {
    let mut asked = Command::new(compiler);
    asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}

/// The compiler for these.
fn compiler(sources: &[impl AsRef<Path>]) -> &'static str {
    if is_cxx(sources) { cxx() } else { named("CC", "cc") }
}

/// The C++ compiler: `CXX` in the environment, or `c++`.
#[must_use]
pub fn cxx() -> &'static str {
    named("CXX", "c++")
}

/// What the environment says, or `otherwise`.
fn named(variable: &str, otherwise: &'static str) -> &'static str {
    std::env::var(variable).map_or(otherwise, |name| name.leak())
}

/// Whether one of them is C++.
fn is_cxx(sources: &[impl AsRef<Path>]) -> bool {
    sources.iter().any(|source| source.as_ref().extension() == Some(OsStr::new("cpp")))
}
