//! That every live test goes both ways, and that the exceptions are these and no more.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a test looks at the way, by its file and name, and why it must. There is none that is left out.
const DIFFERENT: [(&str, &str, &str); 1] = [(
    "live_misuse",
    "a_drive_dropped_with_a_running_job_leaves_job_and_guests_alive",
    "C has one way to end a handle and nobody to tell, so blkm_drive_close cannot refuse while a job runs as Drive::close does",
)];

/// The folder of the live tests.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests")
}

/// The live tests, by name.
fn live_tests() -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    names
        .filter_map(|path| path.file_stem().unwrap().to_str().map(str::to_owned))
        .filter(|name| name.starts_with("live_"))
        .collect()
}

/// The function that the place `at` of a text is in.
fn function_at(text: &str, at: usize) -> &str {
    let head = text[..at].rsplit("\nfn ").next().unwrap();
    head.split('(').next().unwrap()
}

/// A live test that is not named in the manifest would be tried by the Rust API alone, and nobody would notice.
#[test]
fn every_live_test_goes_through_c() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let path = |line: &str| Some(line.strip_prefix("path = \"../tests/")?.strip_suffix(".rs\"")?.to_owned());
    let named: BTreeSet<String> = manifest.lines().filter_map(path).collect();
    assert_eq!(named, live_tests(), "Cargo.toml of tests/through-c, and the files in tests/tests");
}

/// A test that asks for core by its own name, or for one of the two crates behind `api`, would not go through C.
#[test]
fn no_live_test_goes_past_the_api() {
    let shared = folder().parent().unwrap().join("src/live");
    let files = live_tests().into_iter().map(|name| folder().join(name + ".rs"));
    let entries = fs::read_dir(&shared).unwrap().chain(fs::read_dir(shared.join("served")).unwrap());
    for file in files.chain(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file())) {
        let text = fs::read_to_string(&file).unwrap();
        for past in ["blkmirror_core", "blkmirror_c_api", "blkmirror::"] {
            assert!(!text.contains(past), "{} uses {past}", file.display());
        }
    }
}

/// If a test could look at the way without a word here, it could as well be skipped on one of them.
#[test]
fn tests_that_differ_are_listed_and_listed_tests_differ() {
    let mut found = BTreeSet::new();
    for name in live_tests() {
        let text = fs::read_to_string(folder().join(format!("{name}.rs"))).unwrap();
        for (at, _) in text.match_indices("Way::") {
            found.insert((name.clone(), function_at(&text, at).to_owned()));
        }
    }
    let listed: BTreeSet<_> =
        DIFFERENT.iter().map(|(file, test, _)| ((*file).to_owned(), (*test).to_owned())).collect();
    assert_eq!(found, listed);
    assert!(DIFFERENT.iter().all(|(_, _, reason)| !reason.is_empty()));
}
