//! Which parts of a run the machine stood still in.
//!
//! The host of a virtual machine takes its processors away at times, for milliseconds on end, and a guest's p99 is made of that
//! then, whatever runs beside it. So on each processor a thread that comes before all others (`SCHED_FIFO`) sleeps for a
//! millisecond at a time and looks how much later it wakes up: nothing in this machine keeps it waiting, so what does is
//! beneath it. A run is cut into slices of [`SLICE`]; one in which that adds up is left out, and so is the next, in which what has
//! piled up is worked off. That is done to every contender alike. A run of which less than half is left is done again, a few
//! times; how much was left out, and how often that was in vain, is told.
//!
//! Beside a copy at full speed nothing can be left out: a kernel that does not preempt itself keeps even these threads waiting for
//! what it copies, and that must count.
#![forbid(unsafe_code)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blkmirror_load::Period;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// How long a thread sleeps at a time.
const STEP: Duration = Duration::from_millis(1);
/// Timers are late by this without anybody's doing.
const TIMELY: Duration = Duration::from_micros(200);
/// How long a slice is.
pub const SLICE: Duration = Duration::from_millis(100);
/// The part of a slice that a processor may stand still for: a third of what could make a p99.
const MOST_SHARE: f64 = 1.0 / 300.0;
/// The part of a run's slices that must be left.
const LEAST_KEPT: f64 = 0.5;
/// A run is done so many times at most.
const TRIES: u32 = 3;
/// But so many where nothing at all was left.
const TRIES_AT_ALL: u32 = 10;

/// Watches every processor.
#[derive(Debug)]
pub struct Standstill {
    /// Ends the threads.
    stop: Arc<AtomicBool>,
    /// A processor cannot be watched.
    blind: Arc<AtomicBool>,
    /// How long each processor has stood still, in nanoseconds.
    lost_ns: Vec<Arc<AtomicU64>>,
    /// The threads.
    threads: Vec<JoinHandle<()>>,
    /// When counting began.
    since: Instant,
    /// Slices so far, and how many of them were kept.
    slices: [u32; 2],
    /// Runs that were done again.
    repeated: u32,
    /// Runs that were taken as they were.
    in_vain: u32,
}

/// What was seen in the slices of a run that were kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// What the guest saw; `None` = nothing was kept.
    pub seen: Option<Period>,
    /// Bytes copied then.
    pub copied_bytes: u64,
    /// How long that was.
    pub time: Duration,
    /// Slices of the run, and how many of them were kept.
    slices: [u32; 2],
    /// The machine stood still in the last one.
    was_disturbed: bool,
}

impl Kept {
    /// The part of the run that was kept.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(self.slices[1]) / f64::from(self.slices[0].max(1))
    }

    /// Takes in a slice.
    pub fn add(&mut self, seen: &Period, copied_bytes: u64, is_disturbed: bool) {
        let was_disturbed = std::mem::replace(&mut self.was_disturbed, is_disturbed);
        self.slices[0] += 1;
        if is_disturbed || was_disturbed {
            return;
        }
        self.slices[1] += 1;
        self.copied_bytes += copied_bytes;
        self.time += seen.time;
        let all = match self.seen.take() {
            None => seen.clone(),
            Some(mut all) => {
                all.add(seen);
                all
            }
        };
        self.seen = Some(Period { time: self.time, ..all });
    }
}

impl Standstill {
    /// Begins to watch the processors that this process may use.
    #[must_use]
    pub fn watch() -> Self {
        let (stop, blind) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let processors = (0..CpuSet::count()).filter(|&at| allowed.is_set(at).unwrap_or(false));
        let (mut lost_ns, mut threads) = (Vec::new(), Vec::new());
        for processor in processors {
            let (lost, over) = (Arc::new(AtomicU64::new(0)), Arc::clone(&stop));
            lost_ns.push(Arc::clone(&lost));
            let blind = Arc::clone(&blind);
            threads.push(thread::spawn(move || {
                if come_first(processor) {
                    look(&lost, &over);
                } else {
                    blind.store(true, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, blind, lost_ns, threads, since: Instant::now(), slices: [0; 2], repeated: 0, in_vain: 0 }
    }

    /// Begins to count: what is measured begins now.
    pub fn begin(&mut self) {
        self.lost_ns.iter().for_each(|lost_ns| lost_ns.store(0, Ordering::Relaxed));
        self.since = Instant::now();
    }

    /// The longest that a processor stood still for since [`Self::begin`].
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(
            self.lost_ns.iter().map(|lost_ns| lost_ns.load(Ordering::Relaxed)).max().unwrap_or(0),
        )
    }

    /// The share that this is of the time since then.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.longest().as_secs_f64() / self.since.elapsed().as_secs_f64().max(1e-9)
    }

    /// What to say where a processor cannot be watched.
    #[must_use]
    pub fn blindness(&self) -> Option<String> {
        let said =
            "Whether the machine stood still could not be seen: that takes `chrt` and real-time priority.";
        self.blind.load(Ordering::Relaxed).then(|| said.to_owned())
    }

    /// Ends a slice in which the guest saw this and so much was copied, and begins the next.
    pub fn slice(&mut self, kept: &mut Kept, seen: &Period, copied_bytes: u64) {
        kept.add(seen, copied_bytes, self.share() > MOST_SHARE);
        self.begin();
    }

    /// Does `run` until enough of it was kept, or for as long as there is patience. It calls [`Self::begin`] where measuring
    /// begins.
    pub fn without<E>(&mut self, mut run: impl FnMut(&mut Self) -> Result<Kept, E>) -> Result<Kept, E> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let kept = run(self)?;
            let is_enough = kept.share() >= LEAST_KEPT;
            if is_enough || (attempt >= TRIES && kept.seen.is_some()) || attempt >= TRIES_AT_ALL {
                (0..2).for_each(|n| self.slices[n] += kept.slices[n]);
                self.in_vain += u32::from(!is_enough);
                return Ok(kept);
            }
            self.repeated += 1;
        }
    }

    /// What to say of it, if anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        if let Some(blindness) = self.blindness() {
            return Some(blindness);
        }
        let Self { slices: [all, kept], repeated, in_vain, .. } = self;
        (kept < all || *repeated > 0).then(|| {
            let (percent, ms) = (MOST_SHARE * 100.0, SLICE.as_millis());
            let left_out = all - kept;
            let mut note = format!(
                "{left_out} of {all} slices of {ms} ms were left out: a processor stood still for more than {percent:.1} % of them, or \
                 of the one before."
            );
            if *repeated > 0 {
                note += &format!(
                    " {repeated} times a run was done again because less than half of it was left, {in_vain} times in vain."
                );
            }
            note
        })
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Puts the calling thread on this processor, before all others; whether that worked. Otherwise its lateness says nothing.
fn come_first(processor: usize) -> bool {
    let mut only = CpuSet::new();
    let pinned = only.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    let first = Command::new("chrt").args(["--fifo", "--pid", "50", &gettid().to_string()]).status();
    pinned.is_ok() && first.is_ok_and(|status| status.success())
}

/// A thread: looks until it is told to end.
fn look(lost_ns: &AtomicU64, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        thread::sleep(STEP);
        let late = begun.elapsed().saturating_sub(STEP);
        if late > TIMELY {
            let late_ns = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
            lost_ns.fetch_add(late_ns, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch that nobody keeps, for its arithmetic.
    fn unwatched() -> Standstill {
        let (stop, since) = (Arc::default(), Instant::now());
        Standstill {
            stop,
            blind: Arc::default(),
            lost_ns: Vec::new(),
            threads: Vec::new(),
            since,
            slices: [0; 2],
            repeated: 0,
            in_vain: 0,
        }
    }

    /// What the guest saw in a slice.
    fn seen() -> Period {
        let mut seen = Period::new().unwrap();
        seen.time = SLICE;
        seen.writes.saturating_record(1000);
        seen
    }

    /// A run with a slice for each of these; `true` = the machine stood still in it.
    fn run(slices: &[bool]) -> Kept {
        let mut kept = Kept::default();
        slices.iter().for_each(|&disturbed| kept.add(&seen(), 7, disturbed));
        kept
    }

    #[test]
    fn a_slice_in_which_the_machine_stood_still_is_left_out_with_the_next() {
        let kept = run(&[false, true, false, false, true, true, false, false]);
        assert_eq!((kept.slices, kept.copied_bytes, kept.time), ([8, 3], 21, 3 * SLICE));
        let seen = kept.seen.unwrap();
        assert_eq!((seen.writes.len(), seen.time), (3, 3 * SLICE));
        assert!(run(&[true]).seen.is_none());
    }

    #[test]
    fn a_run_of_which_too_little_is_left_is_done_again() {
        let taken = |runs: &[&[bool]]| {
            let (mut still, mut at) = (unwatched(), 0);
            let kept = still.without(|_| {
                at += 1;
                Ok::<_, ()>(run(runs[at.min(runs.len()) - 1]))
            });
            (at, kept.unwrap().slices, still.note())
        };
        assert_eq!(taken(&[&[false; 4]]), (1, [4, 4], None));
        let (runs, kept, note) = taken(&[&[true, false, false], &[false, false, true]]);
        assert_eq!((runs, kept), (2, [3, 2]));
        assert!(note.is_some_and(|note| note.contains("1 of 3 slices") && note.contains("1 times a run")));
        let (runs, _, note) = taken(&[&[true, false, false]]);
        assert!(runs == 3 && note.is_some_and(|note| note.contains("1 times in vain")), "patience ends");
        assert_eq!(taken(&[&[true; 3]]).0, 10, "nothing at all is no result");
    }

    #[test]
    fn the_worst_processor_counts() {
        let mut still = unwatched();
        still.lost_ns = [3_000_000, 9_000_000].map(|ns| Arc::new(AtomicU64::new(ns))).to_vec();
        still.since = Instant::now().checked_sub(Duration::from_millis(900)).unwrap();
        assert!((0.005..=0.01).contains(&still.share()), "{}", still.share());
        still.begin();
        assert!(still.share() < 1e-9);
    }

    /// Silence would be taken for a machine that never stood still.
    #[test]
    fn a_machine_that_cannot_be_watched_is_told_of() {
        let still = unwatched();
        still.blind.store(true, Ordering::Relaxed);
        assert!(still.note().unwrap().contains("could not be seen"));
    }
}
