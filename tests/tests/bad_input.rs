//! Bad input gets one clear line that names the file and the cause, exit code 1 or 2, and leaves the target alone.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use blkmirror_testkit::faultdisk::Options;
use blkmirror_testkit::{
    Ext4OnLoop, FaultDisk, KIB, LoopDevice, LoopOptions, MIB, ScratchDir, fill, needs, run::run as tool,
};
use blkmirror_tests::{Untouched, assert_equal, assert_random, binary, command, copy, copy_json, start};

/// Runs `copy source target` and expects exit code 1 and a line with `words`.
#[track_caller]
fn refuse(source: &Path, target: &Path, words: &[&str]) {
    let _ = start(copy(source, target, &[])).wait().failed(1, words);
}

/// The text of a path, to be looked for in a complaint.
fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_missing_source_is_named_and_no_target_is_created() {
    let dir = ScratchDir::new().unwrap();
    let (source, target) = (dir.join("no-such-source"), dir.join("target"));
    refuse(&source, &target, &[&text(&source), "no such file"]);
    assert!(!target.exists());
    let target = Untouched::file(target, 64 * KIB);
    refuse(&source, target.path(), &[&text(&source), "no such file"]);
    target.check();
}

#[test]
fn a_target_in_a_missing_directory_is_named() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let target = dir.join("missing/target");
    refuse(&source, &target, &[&text(&target), "directory does not exist"]);
}

#[test]
fn directories_are_refused_on_both_sides() {
    let dir = ScratchDir::new().unwrap();
    let other = Untouched::file(dir.join("other"), 64 * KIB);
    refuse(dir.path(), other.path(), &[&text(dir.path()), "directory"]);
    refuse(other.path(), dir.path(), &[&text(dir.path()), "directory"]);
    other.check();
}

#[test]
fn character_devices_are_refused_on_both_sides() {
    let dir = ScratchDir::new().unwrap();
    let other = Untouched::file(dir.join("other"), 64 * KIB);
    for device in ["/dev/null", "/dev/zero"] {
        refuse(Path::new(device), other.path(), &[device, "character device"]);
        refuse(other.path(), Path::new(device), &[device, "character device"]);
    }
    other.check();
}

/// Opening a pipe for reading waits for a writer: a command that does so hangs instead of complaining.
#[test]
fn pipes_are_refused_without_waiting_for_the_other_end() {
    let dir = ScratchDir::new().unwrap();
    let other = Untouched::file(dir.join("other"), 64 * KIB);
    let pipe = dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refuse(&pipe, other.path(), &[&text(&pipe), "pipe"]);
    refuse(other.path(), &pipe, &[&text(&pipe), "pipe"]);
    other.check();
}

#[test]
fn files_without_permission_are_refused() {
    needs!(Setpriv);
    let dir = ScratchDir::new().unwrap();
    let secret = Untouched::file(dir.join("secret"), 64 * KIB);
    fs::set_permissions(secret.path(), Permissions::from_mode(0o600)).unwrap();
    let public = Untouched::file(dir.join("public"), 64 * KIB);
    fs::set_permissions(public.path(), Permissions::from_mode(0o666)).unwrap();
    // The build directory may be out of reach for somebody else.
    let program = dir.join("blkmirror");
    fs::copy(binary(), &program).unwrap();
    let as_nobody = |source: &Path, target: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.arg("copy").arg(source).arg(target);
        start(command).wait()
    };
    let named = text(secret.path());
    let _ = as_nobody(secret.path(), public.path()).failed(1, &[&named, "permission"]);
    let _ = as_nobody(public.path(), secret.path()).failed(1, &[&named, "permission"]);
    let new = dir.join("new");
    let _ = as_nobody(public.path(), &new).failed(1, &[&text(&new), "permission"]);
    assert!(!new.exists());
    secret.check();
    public.check();
}

#[test]
fn a_read_only_block_device_is_no_target() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let backing = Untouched::file(dir.join("backing"), MIB);
    let options = LoopOptions { read_only: true, ..LoopOptions::default() };
    let device = LoopDevice::attach(backing.path(), options).unwrap();
    refuse(&source, device.path(), &[&text(device.path()), "read-only"]);
    backing.check();
    // As a source it is as good as any.
    let target = dir.join("target");
    let _ = copy_json(device.path(), &target, &[]).succeeded();
    assert_equal(backing.path(), &target);
}

#[test]
fn a_size_that_is_no_multiple_of_the_sector_is_refused() {
    let dir = ScratchDir::new().unwrap();
    let odd = dir.random_file("odd", 64 * KIB + 100, 1).unwrap();
    let target = dir.join("target");
    refuse(&odd, &target, &[&text(&odd), "65636", "sector"]);
    assert!(!target.exists());
    let even = dir.random_file("even", 64 * KIB, 1).unwrap();
    let target = Untouched::file(dir.join("odd-target"), 64 * KIB + 100);
    let _ =
        start(copy(&even, target.path(), &["--force"])).wait().failed(1, &[&text(target.path()), "sector"]);
    target.check();
}

#[test]
fn an_empty_source_is_a_success_with_no_bytes() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.sparse_file("source", 0).unwrap();
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &["--verify"]).succeeded();
    assert_eq!(ended.number("bytes_total"), 0);
    assert_eq!(ended.number("bytes_copied"), 0);
    assert_eq!(ended.json()["target_state"], "complete");
    assert_eq!(fs::metadata(&target).unwrap().len(), 0);
}

#[test]
fn a_target_of_another_size_needs_force_and_must_be_larger() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let small = Untouched::file(dir.join("small"), MIB - 64 * KIB);
    let large = Untouched::file(dir.join("large"), MIB + 64 * KIB);
    let named = [text(small.path()), text(large.path())];
    refuse(&source, small.path(), &[&named[0], "small"]);
    let _ = start(copy(&source, small.path(), &["--force"])).wait().failed(1, &[&named[0], "small"]);
    small.check();
    refuse(&source, large.path(), &[&named[1], "larger", "--force"]);
    large.check();
    let _ = copy_json(&source, large.path(), &["--force"]).succeeded();
    assert_random(large.path(), 0, MIB, 1);
    large.check_from(MIB);
}

#[test]
fn numbers_that_make_no_sense_are_wrong_usage() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let target = Untouched::file(dir.join("target"), 64 * KIB);
    for (option, values) in [
        ("--granularity", &["0", "1", "256", "3000", "65537", "128M", "16E", "-1", "", "64 K", "many"][..]),
        ("--buf-size", &["16T", "99999999999999999999", "99999999T", "-1", "1.5M", "full"]),
        ("--threads", &["0", "-1", "1000000000", "99999999999999999999", "1K"]),
        ("--speed", &["99999999999999999999", "-1", "fast", "99999999T"]),
        ("--target-cluster-size", &["0", "3000", "1T", "-1"]),
        ("--on-source-error", &["", "panic"]),
        ("--on-target-error", &["", "retry"]),
        ("--sync", &["", "incremental", "FULL"]),
    ] {
        for value in values {
            let line = format!("{option}={value}");
            let ended = start(copy(&source, target.path(), &[&line])).wait();
            let _ = ended.failed(2, &[option]);
        }
    }
    target.check();
}

#[test]
fn a_command_line_that_makes_no_sense_is_wrong_usage() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let source = text(&source);
    for words in [
        &["copy"][..],
        &["copy", &source],
        &["copy", &source, &source, &source],
        &["copy", &source, &source, "--no-such-option"],
        &["no-such-command"],
        &["compare", &source],
    ] {
        let _ = start(command(words)).wait().failed(2, &[]);
    }
}

#[test]
fn a_source_that_shrinks_under_the_copy_is_noticed() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let read_latency = Duration::from_millis(3);
    let source =
        FaultDisk::new(&Options { size_bytes: 8 * MIB, read_latency, ..Options::default() }).unwrap();
    fill::random(source.content_path(), 0, 8 * MIB, 1).unwrap();
    let target = dir.join("target");
    let running = start(copy(source.path(), &target, &["--buf-size=64K", "--threads=1", "--json"]));
    let disk = source.control();
    assert!(disk.wait_until(Duration::from_secs(10), |counters| counters.reads >= 10));
    disk.set_size(4 * MIB).unwrap();
    let ended = running.wait().failed(1, &[&text(source.path())]);
    assert!(
        ["shrank", "shorter", "shrunk", "ends at", "smaller"].iter().any(|word| ended.stderr.contains(word)),
        "{ended:?}"
    );
    assert_eq!(ended.json()["target_state"], "incomplete");
}

#[test]
fn a_full_target_ends_the_job_under_report() {
    needs!(Ext4);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 24 * MIB, 1).unwrap();
    let small = Ext4OnLoop::new(16 * MIB).unwrap();
    let target = small.join("target");
    let options = ["--on-target-error=report"];
    let ended = copy_json(&source, &target, &options).failed(1, &[&text(&target), "no space left"]);
    assert_eq!(ended.json()["target_state"], "incomplete");
}

#[test]
fn a_full_target_waits_for_space_under_stop() {
    needs!(Ext4);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 8 * MIB, 1).unwrap();
    let small = Ext4OnLoop::new(24 * MIB).unwrap();
    let _ = fs::remove_dir(small.join("lost+found"));
    let filler = fill_up(&small, 4 * MIB);
    let target = small.join("target");
    let mut running = start(copy(&source, &target, &["--on-target-error=stop", "--json"]));
    std::thread::sleep(Duration::from_millis(500));
    assert!(running.runs(), "{:?}", running.wait());
    fs::remove_file(filler).unwrap();
    let ended = running.wait().succeeded();
    assert!(ended.stderr.contains("stopped") && ended.stderr.contains("No space left"), "{ended:?}");
    assert_equal(&source, &target);
}

/// Takes all of the file system but `keep_bytes`.
fn fill_up(fs: &Ext4OnLoop, keep_bytes: u64) -> std::path::PathBuf {
    let free: u64 = tool("stat", ["-f", "-c", "%a", &text(fs.path())]).unwrap().parse().unwrap();
    let filler = fs.preallocated_file("filler", free * 4096 - keep_bytes).unwrap();
    File::open(fs.path()).unwrap().sync_all().unwrap();
    filler
}

#[test]
fn sectors_of_4_kib_and_of_512_bytes_go_together() {
    needs!(Losetup);
    let large = LoopOptions { sector_bytes: Some(4096), ..LoopOptions::default() };
    let size = 3 * MIB + 4096;
    let old = LoopDevice::in_memory(size, LoopOptions::default()).unwrap();
    let new = LoopDevice::in_memory(size, large).unwrap();
    for (source, target, seed) in [(&old, &new, 1), (&new, &old, 2)] {
        fill::random(source.path(), 0, size, seed).unwrap();
        for options in [&["--granularity=4K"][..], &["--granularity=64K", "--buf-size=64K"]] {
            fill::pattern(target.path(), 0, size, 0xaa).unwrap();
            let _ = copy_json(source.path(), target.path(), options).succeeded();
            assert_equal(source.path(), target.path());
        }
        // Chunks smaller than a sector cannot be written, and saying so beats a surprise.
        let _ = copy_json(source.path(), target.path(), &["--granularity=512"])
            .failed(1, &["granularity", "4096"]);
    }
}

/// A device of 512-byte sectors may end inside a 4 KiB sector of the target; then the tail cannot be written.
#[test]
fn a_length_that_ends_inside_a_4_kib_sector_fits_or_is_refused() {
    needs!(Losetup);
    let large = LoopOptions { sector_bytes: Some(4096), ..LoopOptions::default() };
    let source = LoopDevice::in_memory(MIB + 512, LoopOptions::default()).unwrap();
    fill::random(source.path(), 0, MIB + 512, 1).unwrap();
    let target = LoopDevice::in_memory(MIB + 4096, large).unwrap();
    let before = Untouched::disk(target.path(), MIB + 4096);
    let ended = copy_json(source.path(), target.path(), &["--force"]);
    if ended.code == Some(0) {
        assert_random(target.path(), 0, MIB + 512, 1);
        before.check_from(MIB + 512);
    } else {
        let _ = ended.failed(1, &[&text(target.path())]);
        before.check();
    }
}
