//! A guest's disk is mirrored while the guest writes to it, and the guest moves over to the target.
//!
//! ```text
//! cargo run --release -p blkmirror-core --example live_mirror -- SOURCE TARGET
//! ```
//!
//! SOURCE and TARGET are existing files or block devices, TARGET at least as large (`truncate -s 64M target`); the guest in here
//! overwrites blocks of SOURCE, and TARGET is overwritten as a whole. This is all that a host has to do: open the disk, make a
//! drive, send guest I/O through a queue per thread, start a job, wait until it is ready, complete it, and write down that the
//! guest's disk is another one before the guest writes to it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blkmirror_core::Result;
use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{QueueOptions, WriteFlags};
use blkmirror_core::engine::{Completion, Engine, EngineOptions, EventKind, MirrorOptions, Outcome};

/// Bytes of a guest write.
const BLOCK_BYTES: usize = 4096;

/// A thread of the host that carries out a guest's writes, one at a time. It never hears of the mirror: when the drive moves, its
/// requests go to the other disk.
fn guest(drive: &Drive, stop: &AtomicBool) -> Result<u64> {
    let mut queue = drive.queue(QueueOptions::default())?;
    let mut buffer = Some(AlignedBuf::new(BLOCK_BYTES, 4096)?);
    // A disk smaller than a block refuses the first write, and says why.
    let blocks = (drive.size_bytes() / BLOCK_BYTES as u64).max(1);
    let mut done = 0;
    while let (Some(data), false) = (buffer.take(), stop.load(Ordering::Relaxed)) {
        let offset = done * 7919 % blocks * BLOCK_BYTES as u64;
        queue.write(offset, data, WriteFlags::default(), done)?;
        // A host with an event loop waits for `queue.eventfd()` instead, and calls `poll`.
        queue.wait(1, None)?;
        if let Some(completion) = queue.pop() {
            completion.result?;
            buffer = completion.buffer.and_then(|buffer| buffer.into_aligned());
            done += 1;
        }
    }
    Ok(done)
}

/// The host's main thread.
fn mirror(source: &Path, target: &Path) -> Result<()> {
    let drive = Drive::new(Device::open_disk(source)?)?;
    let engine = Engine::start(EngineOptions::default())?;
    let target = Device::open_target(target, TargetOptions::default())?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let guest = threads.spawn(|| guest(&drive, &stop));
        let outcome = run_job(&engine, &drive, target);
        stop.store(true, Ordering::Relaxed);
        let written = match guest.join() {
            Ok(written) => written?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let outcome = outcome?;
        println!("{:?}: held for {:?}; {written} guest writes", outcome.end, outcome.pause);
        outcome.error.map_or(Ok(()), Err)
    })
}

/// Starts the job, and completes it when it is ready.
fn run_job(engine: &Engine, drive: &Drive, target: Device) -> Result<Outcome> {
    let options = MirrorOptions { auto_finalize: false, ..MirrorOptions::default() };
    // Here it costs nothing; the job itself would find out at its end that the drive cannot move.
    engine.check(drive, &target, &options, true)?;
    let job = engine.mirror(drive, target, options)?;
    loop {
        while let Some(event) = job.next_event() {
            println!("{:?}", event.what);
            // The job may have moved on since the event. Then it refuses, and its outcome says why.
            let asked = match event.what {
                EventKind::Ready => job.complete(Completion::Pivot),
                // Guest requests are held. If `pivots`, as here, a host now writes down, durably, which disk is the guest's from
                // here on: if it crashes after this, the guest must not be started on the old one.
                EventKind::Pending { .. } => job.finalize(),
                _ => Ok(()),
            };
            if let Err(error) = asked {
                println!("{error}");
            }
        }
        // A host with an event loop waits for `job.event_fd()`.
        if let Some(outcome) = job.wait_for(Duration::from_millis(10)) {
            return Ok(outcome);
        }
    }
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [source, target] = arguments.as_slice() else {
        eprintln!("usage: live_mirror SOURCE TARGET");
        return std::process::ExitCode::from(2);
    };
    match mirror(Path::new(source), Path::new(target)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live_mirror: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
