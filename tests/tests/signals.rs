//! SIGINT and SIGTERM end the command within a second, whatever the disks do, and it says what the target now is.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::{Duration, Instant};

use blkmirror_testkit::faultdisk::{Effect, Operation, Options, Rule};
use blkmirror_testkit::{FaultDisk, KIB, MIB, ScratchDir, compare, fill, needs};
use blkmirror_tests::{Ended, Started, assert_equal, copy, copy_json, start};
use nix::sys::signal::Signal;

/// A second, and what a machine with a busy neighbour needs to notice.
const PROMPT: Duration = Duration::from_millis(1300);

/// Sends `signal` and expects the end the user was promised.
#[track_caller]
fn interrupt(running: Started, signal: Signal) -> Ended {
    let sent = Instant::now();
    running.signal(signal);
    let ended = running.wait();
    let took = sent.elapsed();
    assert!(took < PROMPT, "took {took:?}: {ended:?}");
    assert!(ended.stderr.contains("incomplete"), "{ended:?}");
    ended.failed(130, &["interrupted"])
}

#[test]
fn a_signal_ends_a_copy_within_a_second() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 8 * MIB, 1).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let target = dir.sparse_file("target", 8 * MIB).unwrap();
        let running = start(copy(&source, &target, &["--speed=1M", "--json"]));
        std::thread::sleep(Duration::from_millis(400));
        let ended = interrupt(running, signal);
        let json = ended.json();
        assert_eq!(json["target_state"], "incomplete", "{ended:?}");
        assert!(json["error"].is_string(), "{ended:?}");
        assert!(ended.number("bytes_copied") < 8 * MIB, "{ended:?}");
        // What came of it serves as the beginning of another go.
        let _ = copy_json(&source, &target, &[]).succeeded();
        assert_equal(&source, &target);
    }
}

#[test]
fn a_signal_ends_a_copy_whose_disk_is_slow() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 8 * MIB, 1).unwrap();
    let write_latency = Duration::from_millis(200);
    let disk = FaultDisk::new(&Options { size_bytes: 8 * MIB, write_latency, ..Options::default() }).unwrap();
    let running = start(copy(&source, disk.path(), &["--buf-size=64K", "--threads=1"]));
    assert!(disk.control().wait_until(Duration::from_secs(10), |counters| counters.writes >= 2));
    let _ = interrupt(running, Signal::SIGTERM);
}

/// A disk that never answers must not take the command along.
#[test]
fn a_signal_ends_a_copy_whose_disk_does_not_answer() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    for operation in [Operation::Read, Operation::Write] {
        // One each: the kernel keeps the first run's target locked until its stuck request is gone.
        let file = dir.random_file(&format!("{operation:?}"), MIB, 1).unwrap();
        let disk = FaultDisk::of_size(MIB).unwrap();
        fill::random(disk.content_path(), 0, MIB, 2).unwrap();
        disk.control().add_rule(Rule::on(operation, Effect::Stuck));
        let (source, target) = if operation == Operation::Read {
            (disk.path(), file.as_path())
        } else {
            (file.as_path(), disk.path())
        };
        let running = start(copy(source, target, &["--json"]));
        assert!(disk.control().wait_until(Duration::from_secs(10), |counters| counters.stuck >= 1));
        let ended = interrupt(running, Signal::SIGINT);
        assert_eq!(ended.json()["target_state"], "incomplete", "{operation:?}: {ended:?}");
    }
}

/// The kernel lets no process go that is inside a flush. What can be had is the word to the user.
#[test]
fn a_signal_is_answered_while_a_flush_does_not_end() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let file = dir.random_file("file", MIB, 1).unwrap();
    let disk = FaultDisk::of_size(MIB).unwrap();
    disk.control().add_rule(Rule::on(Operation::Flush, Effect::Stuck));
    let running = start(copy(&file, disk.path(), &["--json"]));
    assert!(disk.control().wait_until(Duration::from_secs(10), |counters| counters.stuck >= 1));
    running.signal(Signal::SIGINT);
    assert!(running.complains("incomplete", PROMPT), "{running:?}");
    assert_eq!(disk.control().release_stuck(None), 1);
    let ended = running.wait().failed(130, &["interrupted", "does not answer"]);
    assert_eq!(ended.json()["target_state"], "incomplete", "{ended:?}");
}

#[test]
fn a_signal_ends_a_job_that_waits_for_space() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 2 * MIB, 1).unwrap();
    let disk = FaultDisk::of_size(2 * MIB).unwrap();
    disk.control().set_capacity(MIB);
    let running = start(copy(&source, disk.path(), &["--on-target-error=stop", "--json"]));
    std::thread::sleep(Duration::from_millis(500));
    let sent = Instant::now();
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    assert!(sent.elapsed() < PROMPT, "{ended:?}");
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_eq!(ended.json()["target_state"], "incomplete", "{ended:?}");
}

#[test]
fn a_target_that_was_created_for_an_interrupted_copy_is_said_to_be_incomplete() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 8 * MIB, 1).unwrap();
    let target = dir.join("target");
    let running = start(copy(&source, &target, &["--speed=1M"]));
    std::thread::sleep(Duration::from_millis(400));
    let ended = interrupt(running, Signal::SIGINT);
    assert!(ended.stderr.contains(&target.display().to_string()), "{ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn the_speed_limit_is_kept_and_lifted() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 4 * MIB, 1).unwrap();
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &["--speed=4M", "--buf-size=64K"]).succeeded();
    let seconds = ended.json()["seconds"].as_f64().unwrap();
    assert!((0.7..2.0).contains(&seconds), "{ended:?}");
    assert_eq!(compare::first_not_random(&target, 0, 4 * MIB, 1).unwrap(), None);
    let ended = copy_json(&source, &target, &["--speed=0"]).succeeded();
    assert!(ended.json()["seconds"].as_f64().unwrap() < 0.7, "{ended:?}");
}

/// A limit below one chunk a second must slow the copy down, not hang it.
#[test]
fn a_limit_below_the_chunk_size_still_makes_progress() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 64 * KIB, 1).unwrap();
    let target = dir.join("target");
    let ended = copy_json(&source, &target, &["--speed=32K", "--granularity=64K"]).succeeded();
    assert!(ended.elapsed < Duration::from_secs(5), "{ended:?}");
    assert_equal(&source, &target);
}
