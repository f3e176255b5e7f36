//! `--json` prints exactly one object with the promised fields, on success and on failure.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use blkmirror_testkit::{KIB, MIB, ScratchDir, fill};
use blkmirror_tests::{Ended, copy, copy_json, run, start};
use serde_json::Value;

/// The name of a field, and whether a value is what it should hold.
type Field = (&'static str, fn(&Value) -> bool);

/// The fields that scripts may rely on.
const FIELDS: [Field; 16] = [
    ("source", Value::is_string),
    ("target", Value::is_string),
    ("target_state", |value| value.is_null() || STATES.iter().any(|state| value == state)),
    ("bytes_total", Value::is_u64),
    ("bytes_copied", Value::is_u64),
    ("bytes_zeroed", Value::is_u64),
    ("bytes_skipped", Value::is_u64),
    ("seconds", Value::is_number),
    ("cpu_seconds", Value::is_number),
    ("bytes_per_second", Value::is_number),
    ("workers", Value::is_u64),
    ("retries", Value::is_u64),
    ("errors", Value::is_u64),
    ("verified", |value| value.is_null() || value.is_boolean()),
    ("notes", |value| value.as_array().is_some_and(|notes| notes.iter().all(Value::is_string))),
    ("error", |value| value.is_null() || value.is_string()),
];

/// What a target can be; nothing if it was not touched.
const STATES: [&str; 3] = ["complete", "incomplete", "not_copied"];

/// Asserts that every field is there and holds what it should.
#[track_caller]
fn check(ended: &Ended) -> Value {
    let json = ended.json();
    for (name, is_right) in FIELDS {
        assert!(json.get(name).is_some_and(is_right), "{name}: {ended:?}");
    }
    json
}

#[test]
fn a_success_has_every_field_and_they_agree() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.join("source");
    fill::scattered_file(&source, 4 * MIB, 64 * KIB, 256 * KIB, 1).unwrap();
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &["--threads=2"]).succeeded();
    let json = check(&ended);
    assert_eq!(json["source"], source.to_str().unwrap());
    assert_eq!(json["target"], target.to_str().unwrap());
    assert_eq!(json["target_state"], "complete");
    assert_eq!(json["bytes_total"], 4 * MIB);
    assert_eq!(json["bytes_copied"], MIB);
    let rest = ended.number("bytes_zeroed") + ended.number("bytes_skipped");
    assert_eq!(rest, 3 * MIB);
    assert!(json["seconds"].as_f64().unwrap() > 0.0 && json["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!((1..=2).contains(&ended.number("workers")), "{ended:?}");
    assert_eq!((ended.number("errors"), ended.number("retries")), (0, 0));
    assert!(json["verified"].is_null() && json["error"].is_null());
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn verification_is_reported_only_when_it_took_place() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let target = dir.join("target");
    assert_eq!(check(&copy_json(&source, &target, &["--verify"]).succeeded())["verified"], true);
    assert!(check(&copy_json(&source, &target, &[]).succeeded())["verified"].is_null());
}

#[test]
fn a_failure_prints_the_object_too() {
    let dir = ScratchDir::new().unwrap();
    let (source, target) = (dir.join("missing"), dir.join("target"));
    let ended = copy_json(&source, &target, &[]).failed(1, &["missing"]);
    let json = check(&ended);
    assert!(json["target_state"].is_null(), "{ended:?}");
    let error = json["error"].as_str().unwrap();
    assert!(ended.stderr.contains(error), "{ended:?}");
}

#[test]
fn wrong_usage_prints_an_object_with_the_error() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let ended = copy_json(&source, &dir.join("target"), &["--granularity=3000"]).failed(2, &["granularity"]);
    assert!(ended.json()["error"].as_str().unwrap().contains("granularity"), "{ended:?}");
}

/// A success that copied nothing must be told from a copy.
#[test]
fn a_copy_of_nothing_says_so() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let target = dir.sparse_file("target", 64 * KIB).unwrap();
    let json = check(&copy_json(&source, &target, &["--sync=none"]).succeeded());
    assert_eq!(json["target_state"], "not_copied");
    assert!(json["notes"].as_array().is_some_and(|notes| !notes.is_empty()), "{json}");
}

/// Whoever asks for the facts about a device must not get the result of a copy.
#[test]
fn wrong_usage_of_info_prints_the_object_of_info() {
    let ended = run(["info", "--json", "--bogus"]).failed(2, &["--bogus"]);
    let json = ended.json();
    assert!(json["error"].is_string() && json["features"].is_array(), "{ended:?}");
    assert!(json.get("target_state").is_none(), "{ended:?}");
}

#[test]
fn quiet_prints_nothing_and_a_pipe_gets_no_progress_bar() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let target = dir.join("target");
    let ended = start(copy(&source, &target, &["--quiet"])).wait().succeeded();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    let ended = start(copy(&source, &target, &[])).wait().succeeded();
    assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:?}");
    assert!(!ended.stdout.contains(['\r', '\u{1b}']), "{ended:?}");
}

#[test]
fn compare_tells_equal_from_different() {
    let dir = ScratchDir::new().unwrap();
    let a = dir.random_file("a", MIB, 1).unwrap();
    let b = dir.random_file("b", MIB, 1).unwrap();
    let names = [a.as_os_str(), b.as_os_str()];
    let compare = |options: &[&str]| {
        run(["compare".as_ref()].into_iter().chain(names).chain(options.iter().map(AsRef::as_ref)))
    };
    let ended = compare(&["--json"]).succeeded();
    assert_eq!(ended.json()["equal"], true);
    fill::pattern(&b, 300_000, 1, 0).unwrap();
    fill::pattern(&b, 300_001, 1, 1).unwrap();
    let ended = compare(&["--json"]);
    assert_eq!((ended.code, &ended.json()["equal"]), (Some(1), &Value::Bool(false)), "{ended:?}");
    let range = &ended.json()["ranges"][0];
    let (start, length) = (range["start"].as_u64().unwrap(), range["length"].as_u64().unwrap());
    assert!(start <= 300_001 && 300_000 < start + length && length <= 4096, "{ended:?}");
    let ended = compare(&[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("differ"), "{ended:?}");
    assert_eq!(compare(&["--quiet"]).stdout, "");
}
