//! The ABI as it was recorded in `ffi/abi`, compared by libabigail.
//!
//! What is described is the header, not the library: every function that it declares is given a body by this test, and compiled
//! with debugging information. A description of the library itself would be a hundred times as large, full of Rust's own types, and
//! another one after each change inside. That the library has these functions and no others is a test of its own (`c_abi`), and
//! that the header is what the library's source says, too (`ffi/tests/header.rs`). Numbers of constants are no part of it; they are
//! in `tests/c/layout.c`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

mod c_kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blkmirror_testkit::ScratchDir;
use blkmirror_tests::c::root;

use self::c_kit::{code, functions, has, header, output};

/// How to record the ABI as it is now.
const RECORD: &str = "BLKMIRROR_WRITE_ABI=1 cargo test -p blkmirror-tests --test c_abidiff";

/// Where it is recorded.
fn recorded() -> PathBuf {
    root().join("ffi/abi/libblkmirror.abi")
}

/// A C file that includes the header and has a body for each function.
fn bodies(header: &str) -> String {
    let mut text = String::from("#include \"blkmirror.h\"\n");
    // Declarations end with a semicolon and have neither braces nor `typedef`, which structures and handlers have.
    for statement in code(header).split_inclusive([';', '}', '{']) {
        let lines = statement.lines().filter(|line| !line.trim_start().starts_with('#'));
        let statement = lines.collect::<Vec<_>>().join(" ");
        let declaration = statement.trim().trim_end_matches(';');
        let is_function =
            declaration.contains("blkm_") && declaration.ends_with(')') && !declaration.contains("typedef");
        if is_function {
            text += &format!("{declaration} {{ __builtin_trap(); }}\n");
        }
    }
    text
}

/// Describes the ABI that `header` declares, in a file of `dir`.
fn describe(dir: &Path, name: &str, header: &str) -> PathBuf {
    let place = dir.join(name);
    fs::create_dir(&place).unwrap();
    fs::write(place.join("blkmirror.h"), header).unwrap();
    fs::write(place.join("blkmirror.c"), bodies(header)).unwrap();
    let mut cc = Command::new("cc");
    cc.args([
        "-std=c11",
        "-g",
        "-O0",
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-Wl,-soname,libblkmirror.so.0",
        "-I.",
    ]);
    cc.args(["blkmirror.c", "-o", "libblkmirror.so"]).current_dir(&place);
    assert!(cc.status().unwrap().success(), "{cc:?}");
    let description = place.join("abi");
    let mut abidw = Command::new("abidw");
    abidw.args([
        "--no-corpus-path",
        "--no-comp-dir-path",
        "--no-show-locs",
        "--out-file",
        "abi",
        "libblkmirror.so",
    ]);
    assert!(abidw.current_dir(&place).status().unwrap().success(), "{abidw:?}");
    description
}

/// What abidiff says of a change from `old` to `new`; `None` if there is none.
fn change(old: &Path, new: &Path) -> Option<String> {
    let mut abidiff = Command::new("abidiff");
    let ended = abidiff.arg(old).arg(new).output().unwrap();
    let code = ended.status.code().unwrap();
    assert!(code & 3 == 0, "{abidiff:?}: {ended:?}");
    (code != 0).then(|| String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Whether libabigail is there.
fn has_abigail() -> bool {
    has("abidiff and abidw", Command::new("abidiff").arg("--version"))
}

/// Otherwise programs that were built before could break without anybody having meant it.
#[test]
fn the_abi_is_the_recorded_one() {
    if !has_abigail() {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    let now = describe(dir.path(), "now", &header());
    if std::env::var_os("BLKMIRROR_WRITE_ABI").is_some() {
        fs::copy(&now, recorded()).unwrap();
    }
    let names = fs::read_to_string(&now).unwrap();
    for function in functions() {
        assert!(names.contains(&format!("elf-symbol-id='{function}'")), "{function} is not described");
    }
    if let Some(change) = change(&recorded(), &now) {
        panic!(
            "the ABI is not the recorded one. If a program that was built before would break, do not do it, or raise the soname \
             (ffi/build.rs); otherwise record it with\n    {RECORD}\n{change}"
        );
    }
}

/// Otherwise the test above would find nothing.
#[test]
fn a_change_of_the_abi_is_seen() {
    if !has_abigail() {
        return;
    }
    let (dir, header) = (ScratchDir::new().unwrap(), header());
    let now = describe(dir.path(), "now", &header);
    assert_eq!(change(&now, &describe(dir.path(), "same", &header)), None);
    let changes = [
        ("gone", "int blkm_probe(void);", "", "blkm_probe"),
        ("added", "int blkm_probe(void);", "int blkm_probe(void); int blkm_more(void);", "blkm_more"),
        ("wider", "    blkm_extent_kind kind;", "    uint64_t kind;", "blkm_extent"),
        (
            "type",
            "int blkm_job_pause(struct blkm_job *job)",
            "void blkm_job_pause(struct blkm_job *job)",
            "blkm_job_pause",
        ),
    ];
    for (name, from, to, word) in changes {
        let changed = header.replacen(from, to, 1);
        assert_ne!(changed, header, "{name}");
        let said = change(&now, &describe(dir.path(), name, &changed)).unwrap_or_default();
        assert!(said.contains(word), "{name}: {said}");
    }
    // It is the same on every machine and in every directory.
    let text = fs::read_to_string(recorded()).unwrap();
    assert!(
        !text.contains("/work") && !text.contains("/home") && !text.contains("/shm") && text.len() < 200_000
    );
    output("abidw", &["--version".as_ref()]);
}
