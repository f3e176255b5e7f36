//! `cargo bench --bench queue`: what a guest's request costs in a queue, against fio with registered buffers.
//!
//! The benchmark is in the library next door (`src/queued.rs`); here is the reader that takes part: one thread, one queue, random
//! reads of 4 KiB into memory that is mapped with the drive. docs/BENCHMARKING.md tells how to run and read it.
#![allow(unsafe_code, reason = "memory of the host's cannot be had without")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blkmirror_benches::error::{Context, Failure, Result};
use blkmirror_benches::queued::{BLOCK_BYTES, DEPTH, Options, Reading, run};
use blkmirror_core::buffer::{AlignedBuf, GuestBuffer, HostRegion};
use blkmirror_core::device::Device;
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, QueueOptions};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};

/// How long it reads before it counts.
const WARM_UP: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.read {
        Some(disk) => read(disk, &options).map(|reading| {
            println!("{}", serde_json::to_string(&reading).unwrap_or_default());
        }),
        // `cargo test --benches` starts this too; that must not take minutes.
        None if !options.bench => {
            println!("skipped: run it with `cargo bench --bench queue`");
            Ok(())
        }
        None => run(&options),
    };
    result.map_or_else(
        |failure| {
            eprintln!("queue: {failure}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

/// CPU time of this process so far, with that of the kernel's threads for its rings.
fn cpu_s() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context(|| "getrusage")?;
    let times = [usage.user_time(), usage.system_time()];
    Ok(times.into_iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum())
}

/// Places to read, the same on every run.
struct Places {
    /// The last number.
    last: u64,
    /// How many places there are.
    blocks: u64,
}

impl Places {
    /// The next one.
    fn next(&mut self) -> u64 {
        self.last ^= self.last << 13;
        self.last ^= self.last >> 7;
        self.last ^= self.last << 17;
        self.last % self.blocks * BLOCK_BYTES
    }
}

/// A guest that reads.
struct Reader {
    /// Its queue.
    queue: Queue,
    /// A slot for each read.
    memory: AlignedBuf,
    /// Where it reads.
    places: Places,
    /// How many completions it waits for.
    lot: usize,
}

impl Reader {
    /// Sends a read into the slot of that number.
    fn send(&mut self, slot: u64) -> Result<()> {
        let block = usize::try_from(BLOCK_BYTES).context(|| "a block")?;
        let at = usize::try_from(slot).context(|| "a slot")? * block;
        // SAFETY: the slot lies in the memory, which outlives the queue, has one request at a time, and is looked at by nobody.
        let buffer = unsafe { GuestBuffer::from_raw(self.memory.as_mut_ptr().wrapping_add(at), block) };
        self.queue.read(self.places.next(), buffer, slot).map_err(|e| Failure::new(e.to_string()))
    }

    /// Reads until then; how many.
    fn read_until(&mut self, end: Instant) -> Result<u64> {
        let mut done = 0;
        while Instant::now() < end {
            self.queue.wait(self.lot, None).context(|| "wait")?;
            while let Some(completion) = self.queue.pop() {
                completion.result.context(|| "read")?;
                done += 1;
                self.send(completion.tag)?;
            }
        }
        Ok(done)
    }
}

/// The contender: reads for some seconds.
fn read(disk: &Path, options: &Options) -> Result<Reading> {
    let drive = Drive::new(Device::open_source(disk).context(|| "open")?).context(|| "drive")?;
    let bytes = usize::try_from(DEPTH * BLOCK_BYTES).context(|| "memory")?;
    let mut memory = AlignedBuf::new(bytes, 4096).context(|| "memory")?;
    if !options.unmapped {
        // SAFETY: the memory lives to the end of this function, where the queue and the drive are gone before it.
        let region = unsafe { HostRegion::from_raw(memory.as_mut_ptr(), bytes) };
        drive.map_memory(region).context(|| "map")?;
    }
    let queue = drive.queue(QueueOptions { eventfd: options.eventfd, ..QueueOptions::default() });
    let queue = queue.context(|| "queue")?;
    let places = Places { last: 0x1234_5678_9abc_def1, blocks: drive.size_bytes() / BLOCK_BYTES };
    let mut reader = Reader { queue, memory, places, lot: options.lot };
    (0..DEPTH).try_for_each(|slot| reader.send(slot))?;
    reader.read_until(Instant::now() + WARM_UP)?;
    let (begin, cpu_before_s) = (Instant::now(), cpu_s()?);
    let reads = reader.read_until(begin + Duration::from_secs(options.seconds.into()))?;
    let reading = Reading { reads, seconds: begin.elapsed().as_secs_f64(), cpu_s: cpu_s()? - cpu_before_s };
    let report = reader.queue.registered_memory();
    if (report.requests > 0) == options.unmapped {
        return Err(Failure::new(format!("registered memory: {report:?}")));
    }
    // What is under way ends before its memory goes.
    let Reader { queue, memory, .. } = reader;
    queue.close(Duration::from_secs(5)).map_err(|_| Failure::new("reads that do not end"))?;
    drop(memory);
    Ok(reading)
}
