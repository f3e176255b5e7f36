//! What the tests of the C ABI share: the header taken apart, and C programs that check one property after the other.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use blkmirror_testkit::ScratchDir;
use blkmirror_tests::c::{Program, compile, root};
use blkmirror_tests::{Ended, start};

/// The header as it is checked in.
pub(crate) fn header() -> String {
    fs::read_to_string(root().join("include/blkmirror.h")).unwrap()
}

/// C without its comments.
pub(crate) fn code(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        out.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    out + rest
}

/// The words of C code that begin with `prefix` and are followed by `next`.
fn words(code: &str, prefix: &str, next: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let begins = |at: usize| !code[..at].ends_with(is_word);
    let found = code.match_indices(prefix).filter(|&(at, _)| begins(at)).filter_map(|(at, _)| {
        let len = code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
        code[at + len..].trim_start().starts_with(next).then(|| code[at..at + len].to_owned())
    });
    found.collect()
}

/// The functions that C code calls or declares.
pub(crate) fn calls(text: &str) -> BTreeSet<String> {
    words(&code(text), "blkm_", "(")
}

/// The functions of the header.
pub(crate) fn functions() -> BTreeSet<String> {
    let functions = calls(&header());
    assert!(functions.len() > 70, "the header was not understood: {functions:?}");
    functions
}

/// The constants of the header, but for its version.
pub(crate) fn constants() -> Vec<String> {
    let header = code(&header());
    let name = |line: &str| Some(line.strip_prefix("#define ")?.split_once(' ')?.0.to_owned());
    let constant = |name: &String| {
        name.starts_with("BLKM_") && !name.contains('(') && !name.starts_with("BLKM_VERSION_")
    };
    let constants: Vec<String> = header.lines().filter_map(name).filter(constant).collect();
    assert!(constants.len() > 90, "the header was not understood: {constants:?}");
    constants
}

/// The structures of the header with their fields.
pub(crate) fn structures() -> Vec<(String, Vec<String>)> {
    let header = code(&header());
    let mut found = Vec::new();
    for (at, begin) in header.match_indices("typedef struct ") {
        let rest = &header[at + begin.len()..];
        let Some((name, body)) = rest.split_once(['{', ';']) else { continue };
        if !rest[name.len()..].starts_with('{') {
            continue;
        }
        let body = body.split_once('}').unwrap().0;
        let field = |text: &str| {
            let text = text.split('[').next().unwrap().trim_end();
            text.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned()
        };
        let fields = body.split(';').map(str::trim).filter(|text| !text.is_empty()).map(field).collect();
        found.push((name.trim().to_owned(), fields));
    }
    assert!(found.len() > 14, "the header was not understood: {found:?}");
    found
}

/// The numbers that have a type of their own.
pub(crate) fn number_types() -> Vec<String> {
    let header = code(&header());
    let name = |line: &str| Some(line.strip_prefix("typedef uint32_t ")?.trim_end_matches(';').to_owned());
    header.lines().filter_map(name).collect()
}

/// A program of `tests/c` with the kit of these.
#[track_caller]
pub(crate) fn program(name: &str, flags: &[&str]) -> Program {
    compile(&[format!("tests/c/{name}.c").as_str(), "tests/c/kit.c"], flags)
}

/// Runs a program of `tests/c`, which ends well if all that it checks holds.
#[track_caller]
pub(crate) fn holds(name: &str) {
    let dir = ScratchDir::new().unwrap();
    run(program(name, &[]).command([dir.path()])).succeeded();
}

/// Runs a command to its end; it knows the version of the package.
#[track_caller]
pub(crate) fn run(mut command: Command) -> Ended {
    command.env("PACKAGE_VERSION", env!("CARGO_PKG_VERSION"));
    start(command).wait()
}

/// What a tool of the machine prints.
#[track_caller]
pub(crate) fn output(tool: &str, arguments: &[&OsStr]) -> String {
    let mut command = Command::new(tool);
    command.args(arguments);
    start(command).wait().succeeded().stdout
}

/// All C and C++ code that is a user of the library: these tests and the examples.
pub(crate) fn users() -> Vec<String> {
    let files = ["tests/c", "c-examples"].into_iter().flat_map(|dir| fs::read_dir(root().join(dir)).unwrap());
    let is_code = |path: &Path| path.extension().is_some_and(|e| ["c", "h", "cpp"].iter().any(|&c| e == c));
    let paths = files.map(|entry| entry.unwrap().path()).filter(|path| is_code(path));
    paths.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Whether a tool of the machine answers; says so if not, and fails under `CI=true`, where nobody would run the test at all.
pub(crate) fn has(name: &str, ask: &mut Command) -> bool {
    ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = ask.status().is_ok_and(|status| status.success());
    if !found {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "needs {name}, which CI=true must have"
        );
        // At once and past the test harness, which would swallow it.
        let _ = std::io::stderr().write_all(format!("skipped: needs {name}\n").as_bytes());
    }
    found
}
