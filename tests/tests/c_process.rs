//! What a process does besides calling functions: it forks, loads and unloads libraries, and may have few rights.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

mod c_kit;

use blkmirror_testkit::{FaultDisk, MIB, ScratchDir, needs};
use blkmirror_tests::c::compile;

use self::c_kit::{holds, program, run};

/// Otherwise a child would hang, or disturb its parent's job.
#[test]
fn a_child_uses_nothing_of_its_parents_and_can_work_by_itself() {
    holds("fork");
}

/// Otherwise a host with plugins would crash when a thread ends that has used the library.
#[test]
fn the_library_may_be_closed_while_threads_live_that_used_it() {
    let dir = ScratchDir::new().unwrap();
    let unload = compile(&["tests/c/unload.c"], &["-Wl,--as-needed", "-ldl"]);
    run(unload.command([dir.path()])).succeeded();
}

/// Runs `poor.c` in that way of its own.
fn poor(how: &str) {
    let dir = ScratchDir::new().unwrap();
    run(program("poor", &[]).command([dir.path().as_os_str(), how.as_ref()])).succeeded();
}

/// Otherwise the library would be for root alone: what the kernel refuses to lock is used all the same.
#[test]
fn a_user_with_little_locked_memory_mirrors_with_a_pivot() {
    needs!(Root);
    poor("locked");
}

/// Otherwise nobody would know which limit it was.
#[test]
fn a_user_whose_rings_may_not_be_locked_is_told_which_limit_to_raise() {
    needs!(Root);
    poor("tight");
}

/// Otherwise a host that runs out of descriptors would lose some more each time that it tries, or get a riddle for an error.
#[test]
fn with_few_descriptors_each_step_fails_with_the_limits_name_and_leaves_nothing_behind() {
    needs!(Root);
    poor("files");
}

/// Otherwise somebody in a container would look for the cause in his disks.
#[test]
fn where_io_uring_is_forbidden_the_text_names_what_to_allow() {
    needs!(Root);
    poor("forbidden");
}

/// FUSE says nothing of the alignment that its server wants, and a host that shows its guest smaller blocks would have requests
/// fail.
#[test]
fn a_device_whose_alignment_nobody_reports_says_that_it_is_assumed() {
    needs!(Fuse);
    let (dir, disk) = (ScratchDir::new().unwrap(), FaultDisk::of_size(MIB).unwrap());
    let file = dir.sparse_file("file", MIB).unwrap();
    let assumed = program("assumed", &[]);
    run(assumed.command([disk.path().as_os_str(), "assumed".as_ref()])).succeeded();
    run(assumed.command([file.as_os_str(), "reported".as_ref()])).succeeded();
}
