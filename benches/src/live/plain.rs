//! The copy loop that anybody would write: 16 requests of 1 MiB, read then write, with io_uring and nothing else.
//!
//! It is what a full-speed job is held against: same ring, same registered memory on huge pages, same devices, and no guest in
//! sight. It copies round and round until it is stopped.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use blkmirror_core::buffer::BufRange;
use blkmirror_core::device::Device;
use blkmirror_core::ring::uring::{UringOptions, UringRing, with_ring};
use blkmirror_core::ring::{DeviceSlot, Op, Request, Ring, Tag, Wait};
use blkmirror_core::units::{ByteRange, MIB};

use crate::error::{Context, Failure, Result};

/// Requests under way.
const DEPTH: u32 = 16;
/// Bytes of each.
const REQUEST_BYTES: u32 = 1 << 20;
/// The loop looks at least so often whether it is to end.
const LOOK_UP_NS: u64 = 20_000_000;

/// A plain copy loop that runs.
#[derive(Debug)]
pub struct PlainCopy {
    /// Ends it.
    stop: Arc<AtomicBool>,
    /// Bytes written so far.
    bytes: Arc<AtomicU64>,
    /// The loop.
    thread: JoinHandle<Result<()>>,
}

impl PlainCopy {
    /// Starts to copy `source` to `target`, whose size is a multiple of 1 MiB.
    pub fn start(source: Device, target: Device) -> Result<Self> {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (watched, counted) = (Arc::clone(&stop), Arc::clone(&bytes));
        let body = move || {
            let copy = |ring: &mut UringRing| {
                let source = Arc::new(source);
                let size_bytes = source.size_bytes() / MIB * MIB;
                let slots = [&source, &Arc::new(target)].map(|device| ring.attach(device));
                let [from, to] = slots;
                let (from, to) = (from.context(|| "source")?, to.context(|| "target")?);
                Copy { from, to, size_bytes, cursor: 0, offsets: [0; DEPTH as usize] }
                    .run(ring, &watched, &counted)
            };
            let options = UringOptions::new(u64::from(DEPTH * REQUEST_BYTES));
            with_ring(options, copy).context(|| "plain copy loop")?
        };
        let thread = std::thread::Builder::new().name("plain-copy".to_owned()).spawn(body);
        let thread = thread.context(|| "plain copy loop")?;
        Ok(Self { stop, bytes, thread })
    }

    /// Bytes that it wrote so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let gone = |_| Failure::new("the plain copy loop panicked");
        self.thread.join().map_err(gone)?
    }
}

/// The loop's state.
struct Copy {
    /// Where it reads.
    from: DeviceSlot,
    /// Where it writes.
    to: DeviceSlot,
    /// Bytes of both.
    size_bytes: u64,
    /// Where the next read begins.
    cursor: u64,
    /// What each buffer holds.
    offsets: [u64; DEPTH as usize],
}

impl Copy {
    /// Copies until it is told to stop.
    fn run(mut self, ring: &mut UringRing, stop: &AtomicBool, bytes: &AtomicU64) -> Result<()> {
        (0..DEPTH).try_for_each(|slot| self.read(ring, slot))?;
        while !stop.load(Ordering::Relaxed) {
            let wait = Wait { completions: 1, batch_ns: 0, timeout_ns: Some(LOOK_UP_NS) };
            ring.enter(wait).context(|| "plain copy loop")?;
            while let Some(done) = ring.pop() {
                if done.result != Ok(u64::from(REQUEST_BYTES)) {
                    return Err(Failure::new(format!(
                        "plain copy loop: a request ended with {:?}",
                        done.result
                    )));
                }
                let slot = u32::try_from(done.tag.0 / 2).unwrap_or(0);
                if done.tag.0 % 2 == 0 {
                    self.push(ring, slot, true)?;
                } else {
                    bytes.fetch_add(u64::from(REQUEST_BYTES), Ordering::Relaxed);
                    self.read(ring, slot)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the next piece into buffer `slot`.
    fn read(&mut self, ring: &mut UringRing, slot: u32) -> Result<()> {
        self.offsets[slot as usize] = self.cursor;
        self.cursor = (self.cursor + u64::from(REQUEST_BYTES)) % self.size_bytes;
        self.push(ring, slot, false)
    }

    /// Sends a request of buffer `slot`.
    fn push(&mut self, ring: &mut UringRing, slot: u32, write: bool) -> Result<()> {
        let buf = BufRange { start: slot * REQUEST_BYTES, len: REQUEST_BYTES };
        let range = ByteRange::at(self.offsets[slot as usize], u64::from(REQUEST_BYTES));
        let (device, op) = if write { (self.to, Op::Write(buf)) } else { (self.from, Op::Read(buf)) };
        let tag = Tag(u64::from(slot) * 2 + u64::from(write));
        ring.push(Request { device, range, op }, tag).map_err(|_| Failure::new("plain copy loop: ring full"))
    }
}
