//! Writers on real drives, by both ways that a host may take: queues, and its own I/O with a tracker.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is wrong")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::engine::{Completion, Engine, EngineOptions};
use blkmirror_core::mirror::MirrorOptions;
use blkmirror_core::units::MIB;
use blkmirror_load::{
    Areas, Arrival, DirectFile, GuestDisk, Ledger, Load, Pattern, Plan, QueueDisk, TrackedDisk, Untouched,
};

/// Size of the disks.
const DISK: u64 = 16 * MIB;
/// Long enough for the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mirrors a disk under writers, switches over, and checks the target.
fn mirror_under<D, F>(plan: Plan, open: F)
where
    D: GuestDisk,
    F: Fn(&Drive, &Path, &Path) -> blkmirror_core::Result<D> + Send + Sync + 'static,
{
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let paths = ["source", "target"].map(|name| dir.path().join(name));
    for path in &paths {
        File::create(path).unwrap().set_len(DISK).unwrap();
    }
    let [source, target] = paths.clone();
    let drive = Arc::new(Drive::new(Device::open_disk(&source).unwrap()).unwrap());
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let ledger = Arc::new(Ledger::new(DISK, 4096, 11));
    let guest = {
        let drive = Arc::clone(&drive);
        Load::start(plan, Some(&ledger), move |_| open(&drive, &source, &target)).unwrap()
    };
    std::thread::sleep(Duration::from_millis(100));
    let device = Device::open_target(&paths[1], TargetOptions::default()).unwrap();
    let job = engine.mirror(&drive, device, MirrorOptions::default()).unwrap();
    while !job.status().is_ready() {
        assert!(job.wait_for(Duration::from_millis(5)).is_none(), "{:?}", job.query());
    }
    std::thread::sleep(Duration::from_millis(100));
    job.complete(Completion::Pivot).unwrap();
    let outcome = job.wait_for(PATIENCE).unwrap();
    assert!(outcome.pivoted, "{outcome:?}");
    std::thread::sleep(Duration::from_millis(100));
    let period = guest.stop().unwrap();
    assert!(period.errors == 0 && period.writes.len() > 50, "{:?}", period.first_error);
    let [mut source, mut target] = paths.map(|path| DirectFile::open(&path).unwrap());
    let proof = ledger.verify(&mut target, Untouched::SameAs(&mut source)).unwrap();
    assert!(proof.holds() && proof.written_bytes > 0, "{proof}");
    // After the switch-over the guest's writes no longer go there, so a proof that looks must miss them.
    assert!(!ledger.verify(&mut source, Untouched::Unchecked).unwrap().holds());
}

/// Writers that meet, with everything that a guest may ask for.
fn plan() -> Plan {
    Plan {
        pattern: Pattern::Zipf,
        areas: Areas::Shared,
        arrival: Arrival::Open { per_s: 2000 },
        zeroes_percent: 5,
        reads_percent: 10,
        flush_every: 200,
        fua_every: 50,
        ..Plan::default()
    }
}

/// The proof must hold for the library's own queues, over a pivot.
#[test]
fn writers_on_queues_find_every_write_on_the_target() {
    mirror_under(plan(), |drive, _, _| QueueDisk::open(drive, 64));
}

/// And for a host that only says what it does.
#[test]
fn writers_that_a_tracker_is_told_of_find_every_write_on_the_target() {
    mirror_under(plan(), TrackedDisk::open);
}
