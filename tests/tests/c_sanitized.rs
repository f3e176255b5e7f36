//! The C programs under tools that see what a test does not: accesses outside of memory, what is undefined, leaks.
//!
//! | tool | the library | when |
//! |---|---|---|
//! | AddressSanitizer and UndefinedBehaviorSanitizer in the C programs | as it is | always |
//! | valgrind | built with the feature `valgrind`, in `target/valgrind` | `make soak` |
//! | AddressSanitizer in both | built by a nightly compiler, in `target/asan` | `make soak` |
//!
//! The last two build the library once more, which takes minutes. Processes that fork are run without tools: AddressSanitizer's
//! allocator does not see to its locks at a fork (gcc 12), so that a child waits for ever for one that a thread of its parent held,
//! seen once in some hundred runs; and valgrind does not know of memory that children do not get (`MADV_DONTFORK`) and fails an
//! assertion of its own. Nor does valgrind see what a thread's status says of signals, because it has masks of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

mod c_kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blkmirror_testkit::ScratchDir;
use blkmirror_tests::c::root;

use self::c_kit::{has, program, run};

/// The programs that are run, each with all its checks.
const PROGRAMS: [&str; 8] = ["version", "null", "sized", "queues", "queue_end", "drives", "jobs", "threads"];

/// What instruments the C programs.
const SANITIZERS: &[&str] =
    &["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];

/// The library of a build of its own, as a directory for the loader.
fn library_of(kind: &str, cargo: &[&str], rustflags: Option<&str>, file: &str) -> PathBuf {
    let target = root().join("target").join(kind);
    let mut build = Command::new("cargo");
    build
        .args(cargo)
        .args(["--quiet", "--locked", "--package", "blkmirror-ffi", "--target-dir"])
        .arg(&target);
    // Another cargo than that of this test may be meant.
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
        build.env_remove(variable);
    }
    build.envs(rustflags.map(|flags| ("RUSTFLAGS", flags))).current_dir(root());
    assert!(build.status().unwrap().success(), "{build:?}");
    let links = target.join("c-library");
    fs::create_dir_all(&links).unwrap();
    let link = links.join("libblkmirror.so.0");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(fs::canonicalize(target.join(file)).unwrap(), link).unwrap();
    links
}

/// Runs a program with sanitizers; `library` is another one than usual.
#[track_caller]
fn sanitized(name: &str, library: Option<&Path>) {
    let dir = ScratchDir::new().unwrap();
    let program = program(name, SANITIZERS);
    let mut command = program.command([dir.path()]);
    command
        .env("KIT_FEW", "1")
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .env("UBSAN_OPTIONS", "print_stacktrace=1");
    command.envs(library.map(|library| ("LD_LIBRARY_PATH", library)));
    run(command).succeeded();
}

/// Otherwise the library would write where the host's memory ends, or leak.
#[test]
fn the_host_keeps_its_memory_and_nothing_leaks() {
    PROGRAMS.iter().for_each(|name| sanitized(name, None));
}

/// The same inside the library.
#[test]
#[ignore = "builds the library with a nightly compiler; see make soak"]
fn the_library_keeps_to_its_own_memory() {
    if !has(
        "cargo +nightly",
        Command::new("cargo").args(["+nightly", "--version"]).env_remove("RUSTUP_TOOLCHAIN"),
    ) {
        return;
    }
    let cargo = ["+nightly", "build", "--target", "x86_64-unknown-linux-gnu"];
    let file = "x86_64-unknown-linux-gnu/debug/libblkmirror.so";
    let library = library_of("asan", &cargo, Some("-Zsanitizer=address"), file);
    let symbols = c_kit::output("nm", &["-D".as_ref(), library.join("libblkmirror.so.0").as_ref()]);
    assert!(symbols.contains("__asan_report_load"), "the library is not instrumented");
    PROGRAMS.iter().for_each(|name| sanitized(name, Some(&library)));
}

/// Otherwise the library would use memory that was never written, or was given back, or would leak.
#[test]
#[ignore = "builds the library for valgrind; see make soak"]
fn valgrind_finds_nothing() {
    if !has("valgrind", Command::new("valgrind").arg("--version")) {
        return;
    }
    let library = library_of("valgrind", &["build", "--features", "valgrind"], None, "debug/libblkmirror.so");
    for name in PROGRAMS {
        let (dir, program) = (ScratchDir::new().unwrap(), program(name, &[]));
        let mut command = Command::new("valgrind");
        command.args([
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ]);
        command.args(["--show-leak-kinds=definite", "--fair-sched=yes"]).arg(program.path()).arg(dir.path());
        command.env("LD_LIBRARY_PATH", &library).env("KIT_FEW", "1").env("KIT_VALGRIND", "1");
        let ended = run(command).succeeded();
        assert!(!ended.stderr.contains("definitely lost"), "{ended:?}");
    }
}
