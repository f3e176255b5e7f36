//! The writers of a disk, as whoever started them sees them.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkmirror_core::ring::monotonic_ns;
use blkmirror_core::{Error, ErrorKind, Result};

use crate::disk::GuestDisk;
use crate::latency::Period;
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::writer::{Shared, Writer};

/// From when all writers are ready until the first request is due.
const RUN_UP_NS: u64 = 1_000_000;

/// Running writers. Dropping them ends them.
pub struct Load {
    /// What each writer shares with us.
    shared: Vec<Arc<Shared>>,
    /// Tells them to end.
    stop: Arc<AtomicBool>,
    /// The writers.
    threads: Vec<JoinHandle<Result<()>>>,
    /// When the current period began.
    since: Mutex<Instant>,
    /// Nothing, to begin a sum with.
    empty: Period,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("writers", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Load {
    /// Starts the writers, each on a thread of its own, where `open` gives it its disk; returns when all of them are ready.
    /// With a ledger its seed is in the stamps, and its unit must divide the plan's blocks.
    ///
    /// # Errors
    /// When the plan does not fit the disk, `open` fails, or a thread cannot be started.
    pub fn start<D, F>(plan: Plan, ledger: Option<&Arc<Ledger>>, open: F) -> Result<Self>
    where
        D: GuestDisk,
        F: Fn(u16) -> Result<D> + Send + Sync + 'static,
    {
        if ledger.is_some_and(|ledger| !plan.block_bytes.is_multiple_of(ledger.unit_bytes())) {
            return Err(Error::new(ErrorKind::InvalidArgument, "start a guest's writers")
                .because("a request covers whole units of the ledger, or the proof would not hold"));
        }
        let open = Arc::new(open);
        let (ready, readiness) = channel();
        let mut load = Self {
            shared: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
            since: Mutex::new(Instant::now()),
            empty: Period::new()?,
        };
        let mut starts = Vec::new();
        for number in 0..plan.writers {
            let shared = Arc::new(Shared::new(Arc::clone(&load.stop))?);
            let (go, start) = channel();
            let mine = (Arc::clone(&open), ledger.cloned(), Arc::clone(&shared), ready.clone());
            let body = move || {
                let (open, ledger, shared, ready) = mine;
                let writer = open(number).and_then(|disk| Writer::new(disk, plan, number, ledger, shared));
                run_when_told(writer, &ready, &start)
            };
            let thread = std::thread::Builder::new()
                .name(format!("guest-{number}"))
                .spawn(body)
                .map_err(|e| Error::from_io("start a guest's writer", e))?;
            load.threads.push(thread);
            load.shared.push(shared);
            starts.push(go);
        }
        for _ in 0..plan.writers {
            let gone = |_| Error::new(ErrorKind::Internal, "start a guest's writer").because("it is gone");
            readiness.recv().map_err(gone)??;
        }
        let start_ns = monotonic_ns() + RUN_UP_NS;
        for go in &starts {
            // A writer that is gone by now says why when it is joined.
            let _ = go.send(start_ns);
        }
        load.cut();
        Ok(load)
    }

    /// What all writers saw since the start or the last cut; a new period begins. A request belongs to the period in
    /// which it is done.
    pub fn cut(&self) -> Period {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut *since, now));
        let mut all = Period { time, ..self.empty.clone() };
        for shared in &self.shared {
            // Made before the lock is taken: a writer that waits for it sends late.
            let empty = self.empty.clone();
            let seen = std::mem::replace(&mut *shared.seen(), empty);
            all.add(&seen);
        }
        all
    }

    /// What the writers see in the next `time`, from now on.
    pub fn watch(&self, time: Duration) -> Period {
        self.cut();
        std::thread::sleep(time);
        self.cut()
    }

    /// Writes acknowledged since the start.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.iter().map(|shared| shared.acknowledged.load(Ordering::Relaxed)).sum()
    }

    /// Whether every writer still runs; one that cannot go on ends, and [`Load::stop`] tells why.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Ends the writers, waits for what is under way, and returns what they saw since the last cut.
    ///
    /// # Errors
    /// When a writer could not go on, or requests did not come back.
    pub fn stop(mut self) -> Result<Period> {
        self.end()?;
        Ok(self.cut())
    }

    /// Ends the writers.
    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            let panicked =
                |_| Err(Error::new(ErrorKind::Internal, "end a guest's writer").because("it panicked"));
            result = result.and(thread.join().unwrap_or_else(panicked));
        }
        result
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `stop`.
        let _ = self.end();
    }
}

/// Says whether the writer is ready, and runs it from when it is told.
fn run_when_told<D: GuestDisk>(
    writer: Result<Writer<D>>,
    ready: &Sender<Result<()>>,
    start: &Receiver<u64>,
) -> Result<()> {
    let writer = match writer {
        Ok(writer) => writer,
        Err(error) => {
            // The starter hears of it here; it is not told twice.
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    let _ = ready.send(Ok(()));
    // Nobody says "go" when another writer could not start.
    start.recv().map_or(Ok(()), |start_ns| writer.run(start_ns))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
