//! The scratch disks of the live benchmark, and a guest on them.
//!
//! Both disks are loop devices over files in memory, around the page cache. Every run gets a drive of its own, so that what an
//! earlier run did to the latencies is not in the baseline of a later one.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::engine::{Cancel, Job};
use blkmirror_core::error::ErrorKind;
use blkmirror_core::mirror::Progress;
use blkmirror_load::{DirectFile, Ledger, Load, Plan, QueueDisk};
use blkmirror_testkit::{LoopDevice, LoopOptions, MIB, fill};

use crate::error::{Context, Failure, Result};
use crate::machine;

/// How often a job is looked at.
pub const TICK: Duration = Duration::from_millis(5);
/// How long a cancelled job may take.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A source and a target.
#[derive(Debug)]
pub struct Disks {
    /// The guest's disk.
    source: LoopDevice,
    /// Where it is mirrored to.
    target: LoopDevice,
    /// The size of each.
    pub bytes: u64,
}

impl Disks {
    /// Two disks of `bytes`, or of what the free memory allows, full of random data.
    pub fn new(bytes: u64) -> Result<Self> {
        let free_bytes = machine::memory_bytes("MemAvailable")?;
        let mut size = bytes;
        while size * 2 > free_bytes / 4 * 3 {
            size /= 2;
        }
        if size < 64 * MIB {
            return Err(Failure::new("too little memory is free for the disks"));
        }
        let disk = || LoopDevice::in_memory(size, LoopOptions::default()).context(|| "loop device");
        let disks = Self { source: disk()?, target: disk()?, bytes: size };
        fill::random(disks.source.path(), 0, size, 1).context(|| "source")?;
        // Every page of the target is there, so that no run pays for it.
        fill::random(disks.target.path(), 0, size, 2).context(|| "target")?;
        Ok(disks)
    }

    /// A drive on the source.
    pub fn drive(&self) -> Result<Arc<Drive>> {
        let device = patiently(|| Device::open_disk(self.source.path())).context(|| "source")?;
        Drive::new(device).map(Arc::new).context(|| "drive")
    }

    /// The target.
    pub fn target(&self) -> Result<Device> {
        patiently(|| Device::open_target(self.target.path(), TargetOptions::default())).context(|| "target")
    }

    /// The source, for somebody who only reads.
    pub fn source_to_read(&self) -> Result<Device> {
        Device::open_source(self.source.path()).context(|| "source")
    }

    /// The bytes of source and target.
    pub fn readers(&self) -> Result<[DirectFile; 2]> {
        let reader = |disk: &LoopDevice| DirectFile::open(disk.path()).context(|| "read back");
        Ok([reader(&self.source)?, reader(&self.target)?])
    }

    /// What the block devices take at once.
    #[must_use]
    pub fn limits(&self) -> String {
        machine::queue_limits(self.source.path()).unwrap_or_default()
    }
}

/// Opens a disk that the last run may still have open: on a machine that stands still for long, requests of a cancelled job come
/// back after it.
fn patiently(
    open: impl Fn() -> blkmirror_core::error::Result<Device>,
) -> blkmirror_core::error::Result<Device> {
    let end = Instant::now() + END_PATIENCE;
    loop {
        match open() {
            Err(e) if e.kind() == ErrorKind::Busy && Instant::now() < end => std::thread::sleep(TICK),
            result => return result,
        }
    }
}

/// Writers on a drive.
pub fn guest(drive: &Arc<Drive>, plan: Plan, ledger: Option<&Arc<Ledger>>) -> Result<Load> {
    let drive = Arc::clone(drive);
    let open = move |_| QueueDisk::open(&drive, plan.depth);
    Load::start(plan, ledger, open).context(|| "guest")
}

/// Waits until `done` says so; an error after `patience` or when the job is over.
pub fn wait_until(job: &Job, patience: Duration, done: impl Fn(&Job) -> bool) -> Result<()> {
    let start = Instant::now();
    while !done(job) {
        if let Some(outcome) = job.wait_for(TICK) {
            return Err(Failure::new(format!("the job ended: {outcome:?}")));
        }
        if start.elapsed() > patience {
            return Err(Failure::new(format!("not there after {patience:?}: {:?}", job.query())));
        }
    }
    Ok(())
}

/// Ends a job that is not to complete.
pub fn end(job: &Job) -> Result<()> {
    job.cancel(Cancel::Force).context(|| "job")?;
    let over = job.wait_for(END_PATIENCE);
    over.map(drop).ok_or_else(|| Failure::new("a job that was cancelled by force does not end"))
}

/// Bytes of the disk that the first pass has dealt with.
#[must_use]
pub fn first_pass_bytes(progress: &Progress) -> u64 {
    progress.copied_bytes - progress.recopied_bytes + progress.zeroed_bytes + progress.skipped_bytes
}

/// Microseconds.
#[must_use]
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// GiB per second.
#[must_use]
pub fn gib_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 30) / time.as_secs_f64().max(1e-9)
}
