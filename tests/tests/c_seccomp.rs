//! The library under the system call filters that `docs/SYSCALLS.md` describes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

mod c_kit;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use blkmirror_testkit::{LoopDevice, LoopOptions, MIB, ScratchDir, needs};
use blkmirror_tests::c::{Program, compile, root};
use blkmirror_tests::{Ended, start};

use self::c_kit::output;

/// The groups of threads, as the program calls them, and the headings of their tables.
const GROUPS: [(&str, &str); 3] = [
    ("engine", "## Engine threads"),
    ("queue", "## Queue and tracker functions"),
    ("control", "## Control functions"),
];

/// A line of a table: the call, and whether it is needed in some cases only.
#[derive(Clone, Debug)]
struct Line {
    call: String,
    is_rare: bool,
}

/// The three lists.
type Lists = [Vec<Line>; 3];

/// The lists of the document.
fn lists() -> Lists {
    let text = fs::read_to_string(root().join("docs/SYSCALLS.md")).unwrap();
    let lists = GROUPS.map(|(_, heading)| {
        let (_, rest) = text.split_once(heading).unwrap();
        let section = rest.split("\n## ").next().unwrap();
        let line = |line: &str| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let call = cells.next()?.trim().trim_end_matches('`').to_owned();
            let when = cells.nth(1)?.trim();
            assert!(when.is_empty() || when.starts_with("only "), "{line}");
            Some(Line { call, is_rare: !when.is_empty() })
        };
        section.lines().filter_map(line).collect::<Vec<_>>()
    });
    assert!(lists.iter().all(|list| list.iter().filter(|line| !line.is_rare).count() > 15), "{lists:?}");
    lists
}

/// The program, with the names of all system calls of this machine.
fn program() -> Program {
    let dir = ScratchDir::new().unwrap();
    let arguments = ["-dM", "-E", "-include", "sys/syscall.h", "-x", "c", "/dev/null"].map(AsRef::as_ref);
    let mut calls = String::new();
    for line in output("cc", &arguments).lines() {
        if let Some(name) = line.strip_prefix("#define SYS_").and_then(|rest| rest.split(' ').next()) {
            writeln!(calls, "CALL({name})").unwrap();
        }
    }
    fs::write(dir.join("calls.h"), calls).unwrap();
    let include = format!("-I{}", dir.path().display());
    compile(&["tests/c/seccomp.c", "tests/c/kit.c"], &[&include])
}

/// Runs it with these lists on files, or on these devices.
#[track_caller]
fn run(program: &Program, lists: &Lists, devices: &[PathBuf]) -> Ended {
    let dir = ScratchDir::new().unwrap();
    let mut command = program.command([dir.path().to_owned()].iter().chain(devices));
    for ((group, _), list) in GROUPS.iter().zip(lists) {
        let names: Vec<&str> = list.iter().map(|line| line.call.as_str()).collect();
        command.env(format!("{}_CALLS", group.to_uppercase()), names.join(" "));
    }
    start(command).wait()
}

/// Otherwise a host that confines its threads as the document says would be killed in the middle of a job.
#[test]
fn the_library_makes_the_system_calls_of_its_document_and_no_others() {
    let (program, lists) = (program(), lists());
    for _ in 0..3 {
        run(&program, &lists, &[]).succeeded();
    }
}

/// The same on block devices, which are asked for more.
#[test]
fn block_devices_need_no_other_system_calls_than_the_document_says() {
    needs!(Losetup);
    let (program, lists) = (program(), lists());
    let devices = [(); 2].map(|()| LoopDevice::in_memory(4 * MIB, LoopOptions::default()).unwrap());
    run(&program, &lists, &devices.each_ref().map(|device| device.path().to_owned())).succeeded();
}

/// A line that nobody needs is a hole in somebody's sandbox.
#[test]
#[ignore = "runs the library some hundred times; see make soak"]
fn no_system_call_is_in_the_document_for_nothing() {
    let (program, lists) = (program(), lists());
    for (at, (group, _)) in GROUPS.iter().enumerate() {
        for line in lists[at].iter().filter(|line| !line.is_rare) {
            let mut fewer = lists.clone();
            fewer[at].retain(|other| other.call != line.call);
            // Some are made when two things happen in a certain order.
            let expect = format!("{group} {}", line.call);
            let missed = (0..8).any(|_| run(&program, &fewer, &[]).stdout.lines().any(|said| said == expect));
            assert!(
                missed,
                "{expect}: nothing stops without it; say in the document when it is needed, or take it out"
            );
        }
    }
}
