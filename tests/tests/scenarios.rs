//! docs/SCENARIOS.md says which test holds which scenario; here it is held to that.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::path::{Path, PathBuf};

/// The tests that a table row names, with the file that they are said to be in.
///
/// Names in backquotes: a file ends in `.rs` and holds for the tests behind it; `sim` stands for the simulator's.
fn named_in(row: &str) -> Vec<(PathBuf, String)> {
    let (mut file, mut named) = (None, Vec::new());
    for (at, piece) in row.split('`').enumerate() {
        if at % 2 == 0 {
            if piece.trim_end().ends_with("sim") {
                file = Some(PathBuf::from("core/src/simulator/tests.rs"));
            }
        } else if piece.ends_with(".rs") {
            file =
                Some(if piece.contains('/') { piece.into() } else { Path::new("tests/tests").join(piece) });
        } else if let Some(file) = file.clone().filter(|_| piece.contains('_')) {
            named.push((file, piece.to_owned()));
        }
    }
    named
}

/// Whether the text of a Rust file has a test of this name.
fn has_test(text: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let found = lines.iter().position(|line| line.starts_with(&function));
    // Between the attribute and the name there may be other attributes only.
    found.is_some_and(|at| {
        lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
    })
}

/// If a test could be renamed or removed without a word here, the table would go on to claim that its scenario is held.
#[test]
fn every_scenario_has_the_tests_that_its_row_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/SCENARIOS.md")).unwrap();
    let mut numbers = 1..;
    let mut missing = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")) {
        if row.starts_with("| what") {
            continue;
        }
        let number = row.split('|').nth(1).unwrap().trim();
        if number.parse::<u32>().is_ok() {
            assert_eq!(Some(number), numbers.next().map(|next: u32| next.to_string()).as_deref());
        }
        let named = named_in(row);
        assert!(!named.is_empty() || row.contains("not applicable"), "nothing holds this: {row}");
        for (file, name) in named {
            let text = fs::read_to_string(root.join(&file)).unwrap_or_default();
            if !has_test(&text, &name) {
                missing.push(format!("{} in {}", name, file.display()));
            }
        }
    }
    assert_eq!(numbers.next(), Some(31), "a scenario has no row");
    assert!(missing.is_empty(), "not there: {missing:?}");
}

/// A check that took any text for a test would never complain.
#[test]
fn a_function_that_is_no_test_does_not_count() {
    let text = "#[test]\n#[ignore]\nfn one() {}\nfn two() {}\n// fn three() {}\n";
    assert!(has_test(text, "one"));
    assert!(!has_test(text, "two") && !has_test(text, "three") && !has_test(text, "on"));
    let row = "| 1 | what | `a.rs` `one_a`, `two_b`; sim `three_c` and `core/x.rs` `four_d` |";
    let files: Vec<String> = named_in(row).iter().map(|(file, _)| file.display().to_string()).collect();
    assert_eq!(files, ["tests/tests/a.rs", "tests/tests/a.rs", "core/src/simulator/tests.rs", "core/x.rs"]);
}
