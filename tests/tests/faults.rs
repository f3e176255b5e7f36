//! Errors of the disks: each policy does what it says, and a target that is not whole is never called complete.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{FaultDisk, KIB, MIB, ScratchDir, fill, needs};
use blkmirror_tests::{Ended, Started, assert_equal, assert_random, copy, copy_json, start};

/// Size of the disks here.
const SIZE: u64 = 4 * MIB;
/// The byte at which it fails: inside a chunk, inside 4 KiB.
const WRONG: u64 = 2 * MIB + 64 * KIB + 777;
/// What the source is made from.
const SEED: u64 = 11;

/// The errno of a bad block.
const EIO: i32 = 5;
/// The errno of "not now".
const EAGAIN: i32 = 11;
/// The errno of a full disk.
const ENOSPC: i32 = 28;

/// A side of the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// It is read.
    Source,
    /// It is written.
    Target,
}

/// A copy in which one side is a disk with faults.
struct Scene {
    /// The side with faults.
    side: Side,
    /// The disk with faults.
    disk: FaultDisk,
    /// The file on the other side.
    other: PathBuf,
    /// Holds that file.
    _dir: ScratchDir,
}

impl Scene {
    /// A random source, and a target full of something else.
    fn new(side: Side) -> Self {
        let dir = ScratchDir::new().unwrap();
        let disk = FaultDisk::of_size(SIZE).unwrap();
        let other = dir.sparse_file("other", SIZE).unwrap();
        let (source, target) = match side {
            Side::Source => (disk.content_path(), other.as_path()),
            Side::Target => (other.as_path(), disk.content_path()),
        };
        fill::random(source, 0, SIZE, SEED).unwrap();
        fill::pattern(target, 0, SIZE, 0xee).unwrap();
        Self { side, disk, other, _dir: dir }
    }

    /// Adds a fault to the reads of the source or the writes of the target.
    fn fault(&self, effect: Effect, times: Times) {
        self.disk
            .control()
            .add_rule(Rule::on(self.operation(), effect).within(WRONG..WRONG + 1).times(times));
    }

    /// What the copy does with the disk with faults.
    fn operation(&self) -> Operation {
        match self.side {
            Side::Source => Operation::Read,
            Side::Target => Operation::Write,
        }
    }

    /// The option that sets the policy of the side.
    fn policy(&self, policy: &str) -> String {
        match self.side {
            Side::Source => format!("--on-source-error={policy}"),
            Side::Target => format!("--on-target-error={policy}"),
        }
    }

    /// Source and target.
    fn paths(&self) -> (&Path, &Path) {
        match self.side {
            Side::Source => (self.disk.path(), &self.other),
            Side::Target => (&self.other, self.disk.path()),
        }
    }

    /// Runs the copy.
    #[track_caller]
    fn copy(&self, options: &[&str]) -> Ended {
        let (source, target) = self.paths();
        copy_json(source, target, options)
    }

    /// Starts the copy.
    fn start(&self, options: &[&str]) -> Started {
        let (source, target) = self.paths();
        let mut command = copy(source, target, options);
        command.arg("--json");
        start(command)
    }

    /// The file that holds what the target holds, past all faults.
    fn target_content(&self) -> &Path {
        match self.side {
            Side::Source => &self.other,
            Side::Target => self.disk.content_path(),
        }
    }

    /// Asserts that the copy is whole and says so.
    #[track_caller]
    fn complete(&self, ended: Ended) {
        let ended = ended.succeeded();
        assert_eq!(ended.json()["target_state"], "complete", "{:?}: {ended:?}", self.side);
        assert_equal(&self.other, self.disk.content_path());
    }

    /// Asserts that the copy failed, with a line that has `words` and the disk's name.
    #[track_caller]
    fn incomplete(&self, ended: &Ended, words: &[&str]) {
        assert_eq!(ended.code, Some(1), "{:?}: {ended:?}", self.side);
        assert_eq!(ended.json()["target_state"], "incomplete", "{:?}: {ended:?}", self.side);
        let name = self.disk.path().display().to_string();
        let last = ended.stderr.lines().last().unwrap_or_default();
        for word in words.iter().chain([&name.as_str()]) {
            assert!(ended.stderr.contains(word), "'{word}' is missing: {ended:?}");
        }
        assert_eq!(ended.json()["error"].as_str(), last.strip_prefix("blkmirror: "), "{ended:?}");
    }
}

/// Both sides.
const SIDES: [Side; 2] = [Side::Source, Side::Target];

#[test]
fn an_error_ends_the_job_under_report() {
    needs!(Fuse);
    for side in SIDES {
        let scene = Scene::new(side);
        scene.fault(Effect::Error(EIO), Times::Forever);
        let ended = scene.copy(&[&scene.policy("report")]);
        assert!(ended.number("errors") >= 1, "{ended:?}");
        scene.incomplete(&ended, &["Input/output error"]);
    }
}

#[test]
fn an_error_is_passed_over_under_ignore_and_everything_else_arrives() {
    needs!(Fuse);
    for side in SIDES {
        let scene = Scene::new(side);
        scene.fault(Effect::Error(EIO), Times::Forever);
        let ended = scene.copy(&[&scene.policy("ignore")]);
        assert!(ended.number("errors") >= 1, "{ended:?}");
        scene.incomplete(&ended, &["Input/output error", "going on", "given up"]);
        // Later rounds ask for less at a time, so only the block with the error stays behind.
        let block = WRONG / (4 * KIB) * 4 * KIB;
        assert_random(scene.target_content(), 0, block, SEED);
        assert_random(scene.target_content(), block + 4 * KIB, SIZE - block - 4 * KIB, SEED);
    }
}

#[test]
fn an_error_that_passes_is_made_up_for_under_ignore() {
    needs!(Fuse);
    for side in SIDES {
        let scene = Scene::new(side);
        scene.fault(Effect::Error(EIO), Times::Once);
        scene.complete(scene.copy(&[&scene.policy("ignore")]));
    }
}

#[test]
fn an_error_stops_the_job_until_it_is_gone_under_stop() {
    needs!(Fuse);
    for side in SIDES {
        let scene = Scene::new(side);
        scene.fault(Effect::Error(EIO), Times::Forever);
        let mut running = scene.start(&[&scene.policy("stop")]);
        assert!(scene.disk.control().wait_until(Duration::from_secs(10), |counters| counters.faults >= 1));
        std::thread::sleep(Duration::from_millis(300));
        assert!(running.runs(), "{:?}", running.wait());
        scene.disk.control().clear_rules();
        let ended = running.wait();
        assert!(ended.stderr.contains("stopped"), "{ended:?}");
        scene.complete(ended);
    }
}

#[test]
fn only_a_full_disk_stops_the_job_under_enospc() {
    needs!(Fuse);
    let full = Scene::new(Side::Target);
    full.fault(Effect::Error(ENOSPC), Times::Forever);
    let mut running = full.start(&["--on-target-error=enospc"]);
    assert!(full.disk.control().wait_until(Duration::from_secs(10), |counters| counters.faults >= 1));
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.runs(), "{:?}", running.wait());
    full.disk.control().clear_rules();
    full.complete(running.wait());

    for side in SIDES {
        let scene = Scene::new(side);
        scene.fault(Effect::Error(EIO), Times::Forever);
        scene.incomplete(&scene.copy(&[&scene.policy("enospc")]), &["Input/output error"]);
    }
}

#[test]
fn a_disk_that_says_again_is_asked_again_under_every_policy() {
    needs!(Fuse);
    for side in SIDES {
        for policy in ["report", "ignore", "enospc", "stop"] {
            let scene = Scene::new(side);
            scene.fault(Effect::Error(EAGAIN), Times::Count(2));
            scene.complete(scene.copy(&[&scene.policy(policy)]));
        }
    }
}

/// Short writes are left to the simulated ring: the kernel turns those of an asynchronous request to FUSE into EIO.
#[test]
fn short_reads_are_resumed_where_they_ended() {
    needs!(Fuse);
    // Whole blocks, many blocks, and an end inside a block.
    for bytes in [4096, 20480, 6000] {
        let scene = Scene::new(Side::Source);
        let rule = Rule::on(Operation::Read, Effect::Short(bytes)).times(Times::Count(5)).after(1);
        scene.disk.control().add_rule(rule);
        let ended = scene.copy(&["--granularity=64K"]);
        assert!(ended.number("retries") >= 1, "{ended:?}");
        scene.complete(ended);
    }
}

#[test]
fn a_source_that_ends_early_is_an_error_and_never_stale_memory() {
    needs!(Fuse);
    let scene = Scene::new(Side::Source);
    scene.fault(Effect::Short(0), Times::Forever);
    scene.incomplete(&scene.copy(&["--on-source-error=report"]), &[]);
}

#[test]
fn a_flush_that_fails_leaves_the_target_incomplete() {
    needs!(Fuse);
    for times in [Times::Once, Times::Forever] {
        let scene = Scene::new(Side::Target);
        scene.disk.control().add_rule(Rule::on(Operation::Flush, Effect::Error(EIO)).times(times));
        scene.incomplete(&scene.copy(&["--on-target-error=report"]), &["Input/output error"]);
    }
}

#[test]
fn the_target_is_flushed_before_success_is_reported() {
    needs!(Fuse);
    let scene = Scene::new(Side::Target);
    scene.complete(scene.copy(&[]));
    assert!(scene.disk.control().counters().flushes >= 1);
}

#[test]
fn space_that_runs_out_and_comes_back_leaves_no_gap() {
    needs!(Fuse);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", SIZE, SEED).unwrap();
    let disk = FaultDisk::of_size(SIZE).unwrap();
    disk.control().set_capacity(MIB);
    let mut running = start(copy(&source, disk.path(), &["--on-target-error=stop", "--target-is-zero"]));
    std::thread::sleep(Duration::from_millis(400));
    assert!(running.runs(), "{:?}", running.wait());
    disk.control().set_capacity(u64::MAX);
    let _ = running.wait().succeeded();
    assert_equal(&source, disk.content_path());
}
