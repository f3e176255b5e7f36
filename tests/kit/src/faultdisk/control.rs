//! The state of a fault disk, and the handle that changes it while it is in use.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::ReplyWrite;

use super::pending::{self, Pending, Work};
use super::rules::{Effect, Operation, Rule, Rules};
use super::timer::Timer;

/// Changes a fault disk while it is in use. Clones are the same disk; every method may be called from any thread.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

/// What the FUSE threads, the timer thread and the handles share.
#[derive(Debug)]
struct Shared {
    /// The content.
    file: File,
    /// How long reads, writes and flushes take.
    latency_ns: [AtomicU64; 3],
    /// The faults.
    rules: Mutex<Rules>,
    /// Whether there are any: the usual request need not take the lock.
    has_rules: AtomicBool,
    /// Bytes that may be allocated.
    capacity_bytes: AtomicU64,
    /// Whether fallocate works at all.
    fallocate: AtomicBool,
    /// Whether SEEK_DATA and SEEK_HOLE work.
    seek: AtomicBool,
    /// No more latency, faults or stuck requests: it is being unmounted.
    closed: AtomicBool,
    /// Requests that wait for [`Control::release_stuck`].
    stuck: Mutex<Vec<Pending>>,
    /// Requests that wait for their time.
    timer: Timer,
    /// What has been done so far.
    tally: Tally,
}

/// The counters as they are kept.
#[derive(Debug, Default)]
struct Tally {
    /// Requests by [`Operation`].
    requests: [AtomicU64; 5],
    /// Requests not answered, by [`Operation`].
    in_flight: [AtomicU64; 5],
    /// The most at one time, by [`Operation`].
    max_in_flight: [AtomicU64; 5],
    /// Bytes asked for by reads.
    read_bytes: AtomicU64,
    /// Bytes given to writes.
    written_bytes: AtomicU64,
    /// Requests that met a rule.
    faults: AtomicU64,
}

/// What a fault disk has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Read requests that arrived.
    pub reads: u64,
    /// Write requests that arrived.
    pub writes: u64,
    /// Flushes that arrived (fsync or fdatasync).
    pub flushes: u64,
    /// Allocation, punch and zero requests that arrived.
    pub fallocates: u64,
    /// Questions for data and holes that arrived.
    pub seeks: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Bytes given to writes.
    pub written_bytes: u64,
    /// Requests that met a rule.
    pub faults: u64,
    /// Requests that are not answered.
    pub in_flight: u64,
    /// The most reads that were unanswered at one time.
    pub max_reads_in_flight: u64,
    /// The most writes that were unanswered at one time.
    pub max_writes_in_flight: u64,
    /// Requests that are stuck.
    pub stuck: u64,
}

impl Control {
    /// Starts the timer thread for the disk that `file` holds.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let control = Self(Arc::new(Shared {
            file,
            latency_ns: Default::default(),
            rules: Mutex::default(),
            has_rules: AtomicBool::new(false),
            capacity_bytes: AtomicU64::new(u64::MAX),
            fallocate: AtomicBool::new(true),
            seek: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            stuck: Mutex::default(),
            timer: Timer::default(),
            tally: Tally::default(),
        }));
        let server = control.clone();
        thread::Builder::new().name("faultdisk-timer".into()).spawn(move || {
            let mut due = Vec::new();
            while server.0.timer.wait(&mut due) {
                due.drain(..).for_each(|pending| server.carry_out(pending));
            }
        })?;
        Ok(control)
    }

    /// How long every read takes from now on.
    pub fn set_read_latency(&self, latency: Duration) {
        self.0.latency_ns[0].store(nanoseconds(latency), Relaxed);
    }

    /// How long every write takes from now on.
    pub fn set_write_latency(&self, latency: Duration) {
        self.0.latency_ns[1].store(nanoseconds(latency), Relaxed);
    }

    /// How long every flush takes from now on.
    pub fn set_flush_latency(&self, latency: Duration) {
        self.0.latency_ns[2].store(nanoseconds(latency), Relaxed);
    }

    /// Adds a fault after the others.
    pub fn add_rule(&self, rule: Rule) {
        lock(&self.0.rules).add(rule);
        self.0.has_rules.store(true, Relaxed);
    }

    /// Heals the disk: no more faults. Stuck requests stay stuck.
    pub fn clear_rules(&self) {
        lock(&self.0.rules).clear();
        self.0.has_rules.store(false, Relaxed);
    }

    /// Limits the bytes that may be allocated; a write into a hole beyond that fails with ENOSPC.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.capacity_bytes.store(bytes, Relaxed);
    }

    /// Whether allocating, punching and zeroing work, or fail with EOPNOTSUPP.
    pub fn set_fallocate_supported(&self, supported: bool) {
        self.0.fallocate.store(supported, Relaxed);
    }

    /// Whether SEEK_DATA and SEEK_HOLE work, or fail with EINVAL.
    pub fn set_seek_supported(&self, supported: bool) {
        self.0.seek.store(supported, Relaxed);
    }

    /// Changes the size of the disk behind the back of whoever uses it.
    ///
    /// # Errors
    /// When the backing file cannot be changed.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.0.file.set_len(bytes)
    }

    /// Carries out every stuck request, or fails it with `errno`; returns how many there were.
    pub fn release_stuck(&self, errno: Option<i32>) -> usize {
        // Not under the lock: answering may take a while, and others may want to get stuck.
        let released = std::mem::take(&mut *lock(&self.0.stuck));
        let count = released.len();
        for Pending { work, .. } in released {
            self.carry_out(Pending { work, effect: errno.map(Effect::Error) });
        }
        count
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let tally = &self.0.tally;
        let [reads, writes, flushes, fallocates, seeks] =
            tally.requests.each_ref().map(|count| count.load(Relaxed));
        Counters {
            reads,
            writes,
            flushes,
            fallocates,
            seeks,
            read_bytes: tally.read_bytes.load(Relaxed),
            written_bytes: tally.written_bytes.load(Relaxed),
            faults: tally.faults.load(Relaxed),
            in_flight: tally.in_flight.iter().map(|count| count.load(Relaxed)).sum(),
            max_reads_in_flight: tally.max_in_flight[0].load(Relaxed),
            max_writes_in_flight: tally.max_in_flight[1].load(Relaxed),
            stuck: lock(&self.0.stuck).len() as u64,
        }
    }

    /// Starts counting anew; what is in flight stays counted.
    pub fn reset_counters(&self) {
        let tally = &self.0.tally;
        let single = [&tally.read_bytes, &tally.written_bytes, &tally.faults];
        for count in tally.requests.iter().chain(&tally.max_in_flight).chain(single) {
            count.store(0, Relaxed);
        }
    }

    /// Waits until `condition` holds for the counters; `false` if it does not within `patience`.
    #[must_use]
    pub fn wait_until(&self, patience: Duration, condition: impl Fn(&Counters) -> bool) -> bool {
        let end = Instant::now() + patience;
        while !condition(&self.counters()) {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// No more latency, faults or stuck requests; what waits is answered now.
    pub(super) fn close(&self) {
        self.0.closed.store(true, Relaxed);
        self.release_stuck(Some(libc::EIO));
        self.0.timer.close();
    }

    /// The content.
    pub(super) fn file(&self) -> &File {
        &self.0.file
    }

    /// Bytes that may be allocated.
    pub(super) fn capacity(&self) -> u64 {
        self.0.capacity_bytes.load(Relaxed)
    }

    /// Whether fallocate works.
    pub(super) fn fallocate_supported(&self) -> bool {
        self.0.fallocate.load(Relaxed)
    }

    /// Whether SEEK_DATA and SEEK_HOLE work.
    pub(super) fn seek_supported(&self) -> bool {
        self.0.seek.load(Relaxed)
    }

    /// A write arrives. It is carried out from the caller's memory if it need not wait.
    pub(super) fn arrive_with_data(&self, offset: u64, data: &[u8], reply: ReplyWrite) {
        let len = data.len() as u64;
        let effect = self.admit(Operation::Write, &(offset..offset + len));
        if effect == Some(Effect::Stuck) || self.latency(Operation::Write).is_some() {
            self.keep(Pending { work: Work::Write(offset, data.to_vec(), reply), effect });
            return;
        }
        self.leave(Operation::Write);
        pending::write(self.file(), self.capacity(), offset, data, effect, reply);
    }

    /// A request that carries no data arrives.
    pub(super) fn arrive(&self, work: Work, bytes: &Range<u64>) {
        let effect = self.admit(work.operation(), bytes);
        self.keep(Pending { work, effect });
    }

    /// Counts a request in and asks the rules about it.
    fn admit(&self, operation: Operation, bytes: &Range<u64>) -> Option<Effect> {
        let (tally, kind) = (&self.0.tally, operation as usize);
        tally.requests[kind].fetch_add(1, Relaxed);
        let now_in_flight = tally.in_flight[kind].fetch_add(1, Relaxed) + 1;
        tally.max_in_flight[kind].fetch_max(now_in_flight, Relaxed);
        match operation {
            Operation::Read => tally.read_bytes.fetch_add(bytes.end - bytes.start, Relaxed),
            Operation::Write => tally.written_bytes.fetch_add(bytes.end - bytes.start, Relaxed),
            Operation::Flush | Operation::Fallocate | Operation::Seek => 0,
        };
        if self.0.closed.load(Relaxed) || !self.0.has_rules.load(Relaxed) {
            return None;
        }
        let effect = lock(&self.0.rules).decide(operation, bytes);
        if effect.is_some() {
            tally.faults.fetch_add(1, Relaxed);
        }
        effect
    }

    /// Counts a request out. Before it is answered, or the next one might come in first and the maximum be one too high.
    fn leave(&self, operation: Operation) {
        self.0.tally.in_flight[operation as usize].fetch_sub(1, Relaxed);
    }

    /// The latency of a request, if it has any.
    fn latency(&self, operation: Operation) -> Option<Duration> {
        let slot = match operation {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 2,
            Operation::Fallocate | Operation::Seek => return None,
        };
        let latency_ns = self.0.latency_ns[slot].load(Relaxed);
        (latency_ns > 0 && !self.0.closed.load(Relaxed)).then(|| Duration::from_nanos(latency_ns))
    }

    /// Puts a request where it belongs: to the stuck ones, to the waiting ones, or through.
    fn keep(&self, pending: Pending) {
        if pending.effect == Some(Effect::Stuck) {
            lock(&self.0.stuck).push(pending);
            // Closing may have released the stuck ones just before.
            if self.0.closed.load(Relaxed) {
                self.release_stuck(Some(libc::EIO));
            }
            return;
        }
        match self.latency(pending.work.operation()) {
            Some(latency) => self.0.timer.add(Instant::now() + latency, pending),
            None => self.carry_out(pending),
        }
    }

    /// Carries a request out and answers it.
    fn carry_out(&self, Pending { work, effect }: Pending) {
        self.leave(work.operation());
        let (file, capacity) = (self.file(), self.capacity());
        match work {
            Work::Read(bytes, reply) => pending::read(file, &bytes, effect, reply),
            Work::Write(offset, data, reply) => pending::write(file, capacity, offset, &data, effect, reply),
            Work::Flush(reply) => pending::flush(effect, reply),
            Work::Fallocate(bytes, mode, reply) => {
                let unsupported = (!self.fallocate_supported()).then_some(Effect::Error(libc::EOPNOTSUPP));
                pending::allocate(file, capacity, &bytes, mode, effect.or(unsupported), reply);
            }
            Work::Seek(offset, whence, reply) => {
                let unsupported = (!self.seek_supported()).then_some(Effect::Error(libc::EINVAL));
                pending::seek(file, offset, whence, effect.or(unsupported), reply);
            }
        }
    }
}

/// A latency as it is kept.
fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

/// Locks; nobody panics while holding one of these.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
