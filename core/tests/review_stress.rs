//! Many tiny jobs: a lost wake-up of the home shows as a job that never ends.
#![allow(clippy::unwrap_used, missing_docs)]
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::engine::{Engine, EngineOptions, MirrorOptions};
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

#[test]
fn review_no_job_hangs() {
    let dir = tempfile::Builder::new().prefix("review").tempdir_in("/dev/shm").unwrap();
    let (s, t) = (dir.path().join("s"), dir.path().join("t"));
    fs::write(&s, vec![1u8; 65536]).unwrap();
    File::options().write(true).open(&s).unwrap().set_len(256 << 20).unwrap();
    File::create(&t).unwrap().set_len(256 << 20).unwrap();
    let options = EngineOptions { workers: NonZeroUsize::new(3), ..EngineOptions::default() };
    let engine = Engine::start(options).unwrap();
    let start = Instant::now();
    let mut n = 0;
    while start.elapsed() < Duration::from_secs(40) {
        let source = Device::open_source(&s).unwrap();
        let target = Device::open_target(&t, TargetOptions::default()).unwrap();
        let job = engine.mirror(source, target, MirrorOptions::default()).unwrap();
        let over = job.wait_for(Duration::from_secs(3));
        n += 1;
        if over.is_none() {
            let p = job.progress();
            job.cancel();
            panic!("job {n} hangs: {p:?}");
        }
        drop(job);
    }
    println!("{n} jobs");
}
