//! One writer: a thread, a disk handle, and a fixed set of buffers.
//!
//! Its loop sends what is due, sleeps until something is done or due, and takes down what is done. The ledger hears of a
//! write before the disk does, and of its end before the writer counts it.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blkmirror_core::buffer::AlignedBuf;
use blkmirror_core::ring::monotonic_ns;
use blkmirror_core::units::{ByteRange, bytes_u64, bytes_usize};
use blkmirror_core::{Error, ErrorKind, Result};

use crate::disk::{Done, GuestDisk, Refused};
use crate::latency::Period;
use crate::ledger::Ledger;
use crate::pace::{self, Pace};
use crate::pattern::Blocks;
use crate::plan::{Areas, Arrival, Plan};
use crate::stamp::{self, WriteId};

/// A writer looks at least this often whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(20);
/// How long a writer that is to end waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a writer waits when the disk takes nothing although nothing is under way.
const FULL: Duration = Duration::from_millis(1);

/// What a writer shares with whoever started it.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Set to end all writers.
    pub(crate) stop: Arc<AtomicBool>,
    /// What this writer has seen since it was last asked.
    seen: Mutex<Period>,
    /// Writes acknowledged since the start.
    pub(crate) acknowledged: AtomicU64,
}

impl Shared {
    /// Nothing seen.
    pub(crate) fn new(stop: Arc<AtomicBool>) -> Result<Self> {
        Ok(Self { stop, seen: Mutex::new(Period::new()?), acknowledged: AtomicU64::new(0) })
    }

    /// What was seen.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Period> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// A write, with or without data.
    Write(WriteId),
    /// A read.
    Read,
    /// A flush.
    Flush,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// What it is.
    what: What,
    /// Where.
    range: ByteRange,
    /// When it was to be sent.
    due_ns: u64,
}

/// The writer.
pub(crate) struct Writer<D> {
    /// Where it writes.
    disk: D,
    /// What it does.
    plan: Plan,
    /// Which of the writers it is.
    number: u16,
    /// Who must know.
    ledger: Option<Arc<Ledger>>,
    /// To whoever started it.
    shared: Arc<Shared>,
    /// Which block is next.
    blocks: Blocks,
    /// Requests under way, by tag.
    slots: Vec<Option<Sent>>,
    /// Slots without a request.
    free: Vec<usize>,
    /// Buffers without a request; there are as many as slots.
    buffers: Vec<AlignedBuf>,
    /// Writes so far.
    sequence: u64,
    /// Requests so far.
    requests: u64,
    /// A flush is due.
    flush_due: bool,
}

impl<D: GuestDisk> Writer<D> {
    /// Writer `number` of the plan.
    pub(crate) fn new(
        disk: D,
        plan: Plan,
        number: u16,
        ledger: Option<Arc<Ledger>>,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let (size_bytes, align_bytes) = (disk.size_bytes(), disk.align_bytes());
        plan.check(size_bytes, align_bytes)?;
        let count = size_bytes / plan.block_bytes;
        let part = |n: u16| count * u64::from(n) / u64::from(plan.writers);
        let (first, end) = (part(number), part(number + 1));
        let area = match plan.areas {
            Areas::Disjoint => first..end,
            Areas::Shared => 0..count,
        };
        let seed = plan.seed.wrapping_add(u64::from(number) << 32);
        let buffer = || AlignedBuf::new(bytes_usize(plan.block_bytes), bytes_usize(align_bytes));
        let buffers: Vec<AlignedBuf> = (0..plan.depth).map(|_| buffer()).collect::<Result<_>>()?;
        Ok(Self {
            disk,
            plan,
            number,
            ledger,
            shared,
            blocks: Blocks::new(plan.pattern, area, first, seed),
            slots: vec![None; plan.depth],
            free: (0..plan.depth).rev().collect(),
            buffers,
            sequence: 0,
            requests: 0,
            flush_due: false,
        })
    }

    /// Writes until it is told to stop.
    pub(crate) fn run(mut self, start_ns: u64) -> Result<()> {
        pace::sharpen_timers();
        match self.plan.arrival {
            Arrival::Open { per_s } => {
                let pace = Pace::new(start_ns, per_s, self.number, self.plan.writers);
                self.run_open(pace)?;
            }
            Arrival::Closed => self.run_closed()?,
        }
        self.finish()
    }

    /// Requests at their times.
    fn run_open(&mut self, mut pace: Pace) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = monotonic_ns();
            let mut held_back = false;
            while pace.next_due_ns() <= now && !held_back {
                held_back = !self.send(pace.next_due_ns())?;
                if !held_back {
                    pace.sent();
                }
            }
            // What could not be sent can be once something is done, not earlier.
            let left = if held_back { LOOK_UP } else { until(pace.next_due_ns()).min(LOOK_UP) };
            self.await_and_collect(1, left)?;
        }
        Ok(())
    }

    /// As many requests as the depth allows.
    fn run_closed(&mut self) -> Result<()> {
        let batch = (self.plan.depth / 4).max(1);
        while !self.shared.stop.load(Ordering::Relaxed) {
            while !self.free.is_empty() {
                if !self.send(monotonic_ns())? {
                    break;
                }
            }
            self.await_and_collect(batch, LOOK_UP)?;
        }
        Ok(())
    }

    /// Sleeps until `min_done` requests are done or the time is over, and takes down what is done.
    fn await_and_collect(&mut self, min_done: usize, timeout: Duration) -> Result<()> {
        if self.free.len() == self.slots.len() {
            // Nothing is under way. If the disk was full all the same, it is somebody else's doing and will pass.
            pace::sleep(timeout.min(if timeout == LOOK_UP { FULL } else { timeout }));
            return Ok(());
        }
        self.disk.wait(min_done, timeout)?;
        let now = monotonic_ns();
        while let Some(done) = self.disk.pop() {
            self.take_down(done, now);
        }
        Ok(())
    }

    /// Sends the next request, due at `due_ns`; `false` if there is no room for it now.
    fn send(&mut self, due_ns: u64) -> Result<bool> {
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let what = self.choose();
        let Some(buffer) = self.buffers.pop() else { return Ok(false) };
        let block = if what == What::Flush { 0 } else { self.blocks.next() };
        let range = ByteRange::at(block * self.plan.block_bytes, self.plan.block_bytes);
        self.slots[slot] = Some(Sent { what, range, due_ns });
        match self.submit(what, range, buffer, bytes_u64(slot)) {
            Ok(()) => {
                self.requests += 1;
                let every = self.plan.flush_every;
                self.flush_due = what != What::Flush && every > 0 && self.requests.is_multiple_of(every);
                let late = monotonic_ns().saturating_sub(due_ns);
                self.shared.seen().lateness.saturating_record(late);
                Ok(true)
            }
            Err(Refused { error, buffer }) => {
                // The write never was: its number is used up, its bytes are nowhere.
                self.slots[slot] = None;
                self.free.push(slot);
                self.buffers.extend(buffer);
                if error.kind() == ErrorKind::QueueFull { Ok(false) } else { Err(error) }
            }
        }
    }

    /// What the next request is.
    fn choose(&mut self) -> What {
        if self.flush_due {
            return What::Flush;
        }
        if self.blocks.happens(self.plan.reads_percent) {
            return What::Read;
        }
        self.sequence += 1;
        if self.blocks.happens(self.plan.zeroes_percent) {
            What::Write(WriteId::of_zeroes(self.number, self.sequence))
        } else {
            What::Write(WriteId::new(self.number, self.sequence))
        }
    }

    /// Tells the ledger, then the disk. A buffer that the request does not need goes back at once.
    fn submit(
        &mut self,
        what: What,
        range: ByteRange,
        mut buffer: AlignedBuf,
        tag: u64,
    ) -> std::result::Result<(), Refused> {
        match what {
            What::Read => self.disk.read(range.start(), buffer, tag),
            What::Flush => {
                self.buffers.push(buffer);
                self.disk.flush(tag)
            }
            What::Write(id) => {
                if let Some(ledger) = &self.ledger {
                    ledger.begin(id, range);
                }
                let result = if id.is_zeroes() {
                    self.buffers.push(buffer);
                    self.disk.write_zeroes(range, tag)
                } else {
                    let seed = self.ledger.as_ref().map_or(self.plan.seed, |ledger| ledger.seed());
                    stamp::write(&mut buffer, seed, id, range.start());
                    let every = self.plan.fua_every;
                    let fua = every > 0 && self.sequence.is_multiple_of(every);
                    self.disk.write(range.start(), buffer, fua, tag)
                };
                if let (Err(_), Some(ledger)) = (&result, &self.ledger) {
                    ledger.withdraw(id, range);
                }
                result
            }
        }
    }

    /// Takes down a completion.
    fn take_down(&mut self, done: Done, now_ns: u64) {
        self.buffers.extend(done.buffer);
        let slot = bytes_usize(done.tag);
        let Some(Sent { what, range, due_ns }) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        self.free.push(slot);
        if let (What::Write(id), Some(ledger)) = (what, &self.ledger) {
            ledger.end(id, range, done.result.is_ok());
        }
        let latency_ns = now_ns.saturating_sub(due_ns);
        let mut seen = self.shared.seen();
        if let Err(error) = done.result {
            seen.errors += 1;
            seen.first_error.get_or_insert_with(|| error.to_string());
            return;
        }
        match what {
            What::Write(_) => {
                seen.writes.saturating_record(latency_ns);
                seen.written_bytes += range.len();
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            What::Read => seen.reads.saturating_record(latency_ns),
            What::Flush => {}
        }
    }

    /// Waits for what is under way.
    fn finish(&mut self) -> Result<()> {
        let deadline = monotonic_ns() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        while self.free.len() < self.slots.len() {
            if monotonic_ns() > deadline {
                let left = self.slots.len() - self.free.len();
                return Err(Error::new(ErrorKind::TimedOut, "end a guest's writer")
                    .because(format!("{left} requests did not come back within {} s", PATIENCE.as_secs())));
            }
            self.await_and_collect(1, LOOK_UP)?;
        }
        Ok(())
    }
}

/// The time from now until then.
fn until(then_ns: u64) -> Duration {
    Duration::from_nanos(then_ns.saturating_sub(monotonic_ns()))
}
