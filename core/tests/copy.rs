//! The engine on real files: what went in comes out, and nothing else is touched.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on; the exemption misses its helpers"
)]

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::engine::{Cancel, Engine, EngineOptions, MirrorOptions, Outcome, TargetState};
use blkmirror_core::units::{Granularity, KIB, MIB};

/// A directory on a file system with O_DIRECT.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("blkmirror-copy").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Bytes that differ everywhere and are the same in every run.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(len)
        .collect()
}

/// A file with `content`, and a target of the same size full of other bytes.
fn pair(dir: &Path, content: &[u8]) -> (PathBuf, PathBuf) {
    let (source, target) = (dir.join("source"), dir.join("target"));
    fs::write(&source, content).unwrap();
    fs::write(&target, noise(content.len(), 99)).unwrap();
    (source, target)
}

fn copy(source: &Path, target: &Path, workers: usize, options: MirrorOptions) -> Outcome {
    let engine =
        Engine::start(EngineOptions { workers: NonZeroUsize::new(workers), ..EngineOptions::default() })
            .unwrap();
    let source = Device::open_source(source).unwrap();
    let target = Device::open_target(target, TargetOptions::default()).unwrap();
    engine.copy(source, target, options).unwrap().wait()
}

#[test]
fn what_went_in_comes_out_for_every_size_and_number_of_workers() {
    let dir = scratch();
    for size in [0, 512, 4096, 4608, 65536, 65536 + 512, MIB, MIB + 4096, 17 * MIB + 512, 40 * MIB] {
        let content = noise(usize::try_from(size).unwrap(), size);
        for workers in [1, 2] {
            let (source, target) = pair(dir.path(), &content);
            let outcome = copy(&source, &target, workers, MirrorOptions::default());
            assert_eq!(outcome.target, TargetState::Complete, "{size}: {:?}", outcome.error);
            assert_eq!(outcome.progress.copied_bytes, size);
            assert_eq!(outcome.left_dirty_bytes, 0);
            assert!(fs::read(&target).unwrap() == content, "{size} bytes with {workers} workers");
        }
    }
}

#[test]
fn holes_come_out_as_zeroes_and_as_holes() {
    let dir = scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    let file = File::create(&source).unwrap();
    file.set_len(64 * MIB).unwrap();
    for at in (0..64 * MIB).step_by(512 * 1024 * 3) {
        file.write_all_at(&noise(65536, at), at).unwrap();
    }
    file.sync_all().unwrap();
    let content = fs::read(&source).unwrap();
    for detect in [false, true] {
        for granularity in [4 * KIB, 64 * KIB, 4 * MIB] {
            fs::write(&target, noise(64 << 20, 5)).unwrap();
            let options = MirrorOptions {
                granularity: Granularity::new(granularity).ok(),
                zero_detect: detect,
                ..MirrorOptions::default()
            };
            let outcome = copy(&source, &target, 2, options);
            assert_eq!(outcome.target, TargetState::Complete, "{:?}", outcome.error);
            assert!(
                fs::read(&target).unwrap() == content,
                "granularity {granularity}, zero detection {detect}"
            );
            assert!(outcome.progress.zeroed_bytes > 50 * MIB, "{:?}", outcome.progress);
        }
    }
}

/// A worker that comes and goes while the home looks must not leave the home asleep: the job would never end.
#[test]
fn many_short_jobs_with_several_workers_all_end() {
    let dir = tempfile::Builder::new().prefix("blkmirror-copy").tempdir_in("/dev/shm").unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, noise(65536, 1)).unwrap();
    File::options().write(true).open(&source).unwrap().set_len(256 * MIB).unwrap();
    File::create(&target).unwrap().set_len(256 * MIB).unwrap();
    let options = EngineOptions { workers: NonZeroUsize::new(3), ..EngineOptions::default() };
    let engine = Engine::start(options).unwrap();
    for n in 0..3000 {
        let source = Device::open_source(&source).unwrap();
        // The target of the last job is free again when that job is over.
        let target = Device::open_target(&target, TargetOptions::default()).unwrap();
        let job = engine.copy(source, target, MirrorOptions::default()).unwrap();
        let outcome = job.wait_for(Duration::from_secs(20)).unwrap_or_else(|| {
            panic!("job {n} does not end: {:?}", job.progress());
        });
        assert_eq!(outcome.target, TargetState::Complete, "job {n}: {:?}", outcome.error);
    }
}

#[test]
fn an_engine_refuses_more_jobs_than_it_can_carry_and_targets_that_are_sources() {
    let dir = scratch();
    let (source, target) = pair(dir.path(), &noise(65536, 3));
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let slow = MirrorOptions { speed_bytes_per_s: 1, ..MirrorOptions::default() };
    let jobs: Vec<_> = (0..Engine::MAX_JOBS)
        .map(|n| {
            let target = Device::create_target(&dir.path().join(format!("t{n}")), 65536).unwrap();
            engine.copy(Device::open_source(&source).unwrap(), target, slow.clone()).unwrap()
        })
        .collect();
    let open = |path: &Path| Device::open_target(path, TargetOptions::default()).unwrap();
    let e = engine.copy(Device::open_source(&source).unwrap(), open(&target), slow.clone()).unwrap_err();
    assert_eq!(e.kind(), blkmirror_core::ErrorKind::QueueFull, "{e}");
    jobs[0].cancel(Cancel::Force).unwrap();
    assert!(jobs[0].wait().cancelled);
    let twice = engine.copy(
        Device::open_source(&source).unwrap(),
        Device::open_source(&target).unwrap(),
        slow.clone(),
    );
    assert!(twice.unwrap_err().to_string().contains("opened as a source"));
    // A job that could not be started does not count.
    drop(engine.copy(Device::open_source(&source).unwrap(), open(&target), slow).unwrap());
}
