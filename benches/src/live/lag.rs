//! How far a following job is behind the guest.
//!
//! On an otherwise idle disk a guest writes a block now and then. From the moment it is told that the block is written, the
//! target is read again and again at that place, past the page cache, until the block is there. That is an upper bound of
//! what is promised, which is the time until the write to the target is *sent*: it holds the write itself and up to one
//! read besides.
//!
//! A home that looks for dirty chunks every other millisecond goes to sleep when there was none for a tenth of a second, and
//! is woken by the write. That is another way, with a system call in the guest's path, so it has a row of its own.
//!
//! A write is left out if a processor stood still for a part of it that counts: what the host of a virtual machine takes away says
//! nothing of us (see [`standstill`](super::standstill)). How many were is told.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::engine::{Engine, EngineOptions};
use blkmirror_core::mirror::{CopyModeChoice, LatencyBudget, MirrorOptions};
use blkmirror_core::units::{ByteRange, bytes_u64};
use blkmirror_load::{GuestDisk, Histogram, QueueDisk, ReadAt, WriteId, stamp};
use blkmirror_testkit::MIB;

use super::options::Options;
use super::report::Part;
use super::stage::{self, Disks, micros};
use super::standstill::Standstill;
use crate::error::{Context, Failure, Result};
use crate::targets::Bound;

/// The disks.
const DISK_BYTES: u64 = 64 * MIB;
/// Bytes of a write.
const BLOCK_BYTES: usize = 4096;
/// The guest's pause between two writes to a home that is awake: so long, and up to as much longer.
const AWAKE: [Duration; 2] = [Duration::from_millis(4), Duration::from_millis(4)];
/// The same, so long that the home has gone to sleep.
const ASLEEP: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(50)];
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a row may take.
const TIME: Duration = Duration::from_secs(40);
/// A processor that stood still for longer than this during a write makes it worthless: a tenth of what is promised.
const STILL: Duration = Duration::from_micros(500);
/// So long after a write it is known whether one did: who watches sleeps for a millisecond at a time.
const KNOWN: Duration = Duration::from_micros(1500);
/// The seed of the stamps.
const SEED: u64 = 77;

/// Runs the part.
pub fn measure(options: &Options) -> Result<Part> {
    let disks = Disks::new(DISK_BYTES)?;
    let engine = Engine::start(EngineOptions::default()).context(|| "engine")?;
    let most = if options.quick { 100 } else { 1000 };
    let with = |latency_budget| MirrorOptions {
        copy_mode: CopyModeChoice::Background,
        latency_budget,
        ..MirrorOptions::default()
    };
    // Those that come seldom are few, so that they take less than half a minute.
    let seldom = if options.quick { 15 } else { 120 };
    let rows = [
        ("default latency budget", LatencyBudget::default(), AWAKE, most),
        ("no latency budget", LatencyBudget::Off, AWAKE, most),
        ("default latency budget, home asleep", LatencyBudget::default(), ASLEEP, seldom),
    ];
    let mut still = Standstill::watch();
    let measured = rows.map(|(name, latency_budget, pause, writes)| {
        lags(&disks, &engine, &mut still, with(latency_budget), pause, writes).map(|lags| (name, lags))
    });
    let measured = measured.into_iter().collect::<Result<Vec<_>>>()?;
    let still_us = STILL.as_micros();
    let note = still.blindness().unwrap_or_else(|| {
        format!("Writes were left out during which a processor stood still for more than {still_us} us.")
    });
    Ok(part(&measured, note))
}

/// What a row was made from.
struct Lags {
    /// Of the writes that count.
    kept: Histogram<u64>,
    /// Writes that a processor stood still in.
    left_out: u32,
}

/// The lags of writes to a job with these options: so many, or as many as there is time for.
fn lags(
    disks: &Disks,
    engine: &Engine,
    still: &mut Standstill,
    options: MirrorOptions,
    [least, more]: [Duration; 2],
    most: u64,
) -> Result<Lags> {
    let drive = disks.drive()?;
    let job = engine.mirror(&drive, disks.target()?, options).context(|| "job")?;
    stage::wait_until(&job, PATIENCE, |job| job.status().is_ready())?;
    let mut guest = QueueDisk::open(&drive, 1).context(|| "guest")?;
    let [_, mut target] = disks.readers()?;
    let mut lags = Lags { kept: Histogram::new(3).context(|| "histogram")?, left_out: 0 };
    let mut buffer = AlignedBuf::new(BLOCK_BYTES, 4096).context(|| "buffer")?;
    let start = Instant::now();
    let mut number = 0_u64;
    while lags.kept.len() < most && start.elapsed() < TIME {
        // Another chunk each time, and not in step with anything.
        let chaos = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let block = bytes_u64(BLOCK_BYTES);
        let range = ByteRange::at(chaos % (DISK_BYTES / block) * block, block);
        std::thread::sleep(least + more.mul_f64((chaos % 1000) as f64 / 1000.0));
        number += 1;
        let id = WriteId::new(0, number);
        stamp::write(&mut buffer, SEED, id, range.start());
        still.begin();
        buffer = write(&mut guest, range.start(), buffer)?;
        let told = Instant::now();
        let took_ns = lag(&mut target, range, id, told)?;
        std::thread::sleep(KNOWN);
        if still.longest() > STILL {
            lags.left_out += 1;
        } else {
            lags.kept.record(took_ns).context(|| "histogram")?;
        }
    }
    stage::end(&job)?;
    Ok(lags)
}

/// One guest write, from its sending to its end; the buffer comes back.
fn write(guest: &mut QueueDisk, offset: u64, buffer: AlignedBuf) -> Result<AlignedBuf> {
    guest.write(offset, buffer, false, 0).map_err(|refused| refused.error).context(|| "guest write")?;
    loop {
        guest.wait(1, PATIENCE).context(|| "guest")?;
        if let Some(done) = guest.pop() {
            done.result.context(|| "guest write")?;
            return done.buffer.ok_or_else(|| Failure::new("a guest write lost its buffer"));
        }
    }
}

/// Nanoseconds until the block is on the target.
fn lag(target: &mut dyn ReadAt, range: ByteRange, id: WriteId, told: Instant) -> Result<u64> {
    loop {
        let bytes = target.read_at(range).context(|| "target")?;
        let lag = told.elapsed();
        let there = bytes
            .as_chunks::<{ stamp::SECTOR_BYTES }>()
            .0
            .iter()
            .zip((range.start()..).step_by(stamp::SECTOR_BYTES))
            .all(|(sector, at)| stamp::read(sector, SEED, at) == Some(id));
        if there {
            return Ok(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
        }
        if lag > PATIENCE {
            return Err(Failure::new(format!("{range} did not reach the target within {PATIENCE:?}")));
        }
        // A core that only looks would be missing to those who write.
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Table and promise.
fn part(rows: &[(&str, Lags)], note: String) -> Part {
    let title = "Single writes to a ready job in background mode on an otherwise idle disk, 4 to 8 ms apart, or 150 to 200 ms \
                 where the home is to be asleep: from the guest's acknowledgement until a read of the target finds the block. \
                 An upper bound of the time until the target's write is sent: it holds that write, and up to one look (about \
                 100 us).";
    let mut part = Part::new("lag", title, &["", "writes", "left out", "p50", "p99", "max"]);
    let ms = |ns: u64| micros(Duration::from_nanos(ns)) / 1000.0;
    for (name, Lags { kept, left_out }) in rows {
        let cell = |ns: u64| format!("{:.2} ms", ms(ns));
        let [p50, p99] = [0.5, 0.99].map(|quantile| cell(kept.value_at_quantile(quantile)));
        let (writes, left_out) = (kept.len().to_string(), left_out.to_string());
        part.rows.push(vec![(*name).to_owned(), writes, left_out, p50, p99, cell(kept.max())]);
    }
    part.notes.push(note);
    let worst = rows.iter().map(|(_, lags)| lags.kept.value_at_quantile(0.99)).max();
    let promise = "follow lag on an idle disk, p99 in ms, the worst of the rows";
    part.promise(promise, Bound::AtMost(5.0), worst.map(ms));
    part
}
