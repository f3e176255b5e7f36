//! A user without rights and with little locked memory copies files all the same.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use blkmirror_testkit::{MIB, ScratchDir, needs};
use blkmirror_tests::{assert_equal, binary};

/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// Locked memory for the rings of a worker and not for its window.
const ENOUGH_FOR_RINGS_KIB: u64 = 1024;

/// Runs the command as nobody, with at most `locked_kib` of locked memory.
fn as_nobody(command: &Path, locked_kib: u64, arguments: &[&str]) -> Output {
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -l {locked_kib} && \
             exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all \"$@\""
        ))
        .arg("sh")
        .arg(command)
        .args(arguments)
        .output()
        .unwrap()
}

/// A directory of nobody's with the command, which its builder may have put out of others' sight, and a source.
fn for_nobody() -> ScratchDir {
    let dir = ScratchDir::new().unwrap();
    fs::copy(binary(), dir.join("blkmirror")).unwrap();
    let source = dir.random_file("source", 24 * MIB, 5).unwrap();
    for path in [dir.path(), &source] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// What `info` says of registered memory.
fn registered_memory(info: &Output) -> String {
    assert!(info.status.success(), "{info:?}");
    let text = String::from_utf8_lossy(&info.stdout);
    text.lines().find(|line| line.contains("registered memory")).unwrap().to_owned()
}

/// The copy memory then stays unregistered, which is slower and not wrong.
#[test]
fn a_copy_works_with_too_little_locked_memory_to_register_the_window() {
    needs!(Root, Setpriv);
    let dir = for_nobody();
    let (command, source) = (dir.join("blkmirror"), dir.join("source"));
    let name = source.to_str().unwrap();

    let target = dir.join("target");
    let copy = ["copy", name, target.to_str().unwrap(), "--quiet", "--verify"];
    let info = as_nobody(&command, ENOUGH_FOR_RINGS_KIB, &["info", name]);
    let line = registered_memory(&info);
    assert!(line.contains(" off ") && line.contains("ulimit -l"), "{line}");
    let copied = as_nobody(&command, ENOUGH_FOR_RINGS_KIB, &copy);
    assert!(copied.status.success(), "{copied:?}");
    assert_equal(&source, &target);

    // Root may lock as much as it likes, so this can tell the two apart.
    let line = registered_memory(&Command::new(&command).args(["info", name]).output().unwrap());
    assert!(line.contains(" on "), "{line}");
}

/// Since Linux 6.13 the rings themselves count as locked memory too; what is too little even for them is named.
#[test]
fn a_copy_without_the_locked_memory_for_its_rings_says_what_to_do() {
    needs!(Root, Setpriv);
    let dir = for_nobody();
    let (command, source) = (dir.join("blkmirror"), dir.join("source"));
    let target = dir.join("target");
    let copied =
        as_nobody(&command, 16, &["copy", source.to_str().unwrap(), target.to_str().unwrap(), "--quiet"]);
    if copied.status.success() {
        assert_equal(&source, &target);
        return;
    }
    let complaint = String::from_utf8_lossy(&copied.stderr).into_owned();
    assert!(complaint.contains("ulimit -l") && complaint.lines().count() == 1, "{complaint}");
    assert!(!target.exists(), "{complaint}");
}
