//! How long the machine stood still while something was measured.
//!
//! The host of a virtual machine takes its processors away at times, for milliseconds on end, and a guest's p99 is made of that
//! then, whatever runs beside it. So on each processor a thread that comes before all others (`SCHED_FIFO`) sleeps for a
//! millisecond at a time and looks how much later it wakes up: nothing in this machine keeps it waiting, so what does is
//! beneath it. A run in which that adds up is done again, with every contender alike; how often that was in vain is told.
#![forbid(unsafe_code)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// How long a thread sleeps at a time.
const STEP: Duration = Duration::from_millis(1);
/// Timers are late by this without anybody's doing.
const TIMELY: Duration = Duration::from_micros(200);
/// The part of a run that a processor may stand still for: a third of what could make a p99.
const MOST_SHARE: f64 = 1.0 / 300.0;
/// A run is done so many times at most.
const TRIES: u32 = 4;

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
    /// Runs that were done again.
    repeated: u32,
    /// Runs that were taken as they were.
    in_vain: u32,
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
        Self { stop, blind, lost_ns, threads, since: Instant::now(), repeated: 0, in_vain: 0 }
    }

    /// Begins to count: what is measured begins now.
    pub fn begin(&mut self) {
        self.lost_ns.iter().for_each(|lost_ns| lost_ns.store(0, Ordering::Relaxed));
        self.since = Instant::now();
    }

    /// The largest share of the time since [`Self::begin`] that a processor stood still for.
    #[must_use]
    pub fn share(&self) -> f64 {
        let most_ns = self.lost_ns.iter().map(|lost_ns| lost_ns.load(Ordering::Relaxed)).max().unwrap_or(0);
        Duration::from_nanos(most_ns).as_secs_f64() / self.since.elapsed().as_secs_f64().max(1e-9)
    }

    /// Does `run` until the machine stood still for next to nothing of it, or for as long as there is patience. It calls
    /// [`Self::begin`] where measuring begins, and returns the share where it ends.
    pub fn without<T, E>(&mut self, mut run: impl FnMut(&mut Self) -> Result<(T, f64), E>) -> Result<T, E> {
        for _ in 1..TRIES {
            let (result, share) = run(self)?;
            if share <= MOST_SHARE {
                return Ok(result);
            }
            self.repeated += 1;
        }
        let (result, share) = run(self)?;
        self.in_vain += u32::from(share > MOST_SHARE);
        Ok(result)
    }

    /// What to say of it, if anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        if self.blind.load(Ordering::Relaxed) {
            return Some("Whether the machine stood still could not be seen: that takes `chrt` and real-time priority.".to_owned());
        }
        let Self { repeated, in_vain, .. } = self;
        (*repeated > 0).then(|| {
            format!(
                "{repeated} times a run was done again because a processor stood still for more than {:.1} % of it; {in_vain} runs \
                 were taken all the same in the end.",
                MOST_SHARE * 100.0
            )
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
            repeated: 0,
            in_vain: 0,
        }
    }

    /// What these runs come to: the one that is taken, and what is said.
    fn taken(shares: &[f64]) -> (usize, Option<String>) {
        let (mut still, mut runs) = (unwatched(), 0);
        let run = |_: &mut Standstill| {
            runs += 1;
            Ok::<_, ()>((runs, shares[runs - 1]))
        };
        let taken = still.without(run).unwrap();
        (taken, still.note())
    }

    #[test]
    fn a_run_in_which_the_machine_stood_still_is_done_again() {
        assert_eq!(taken(&[0.0]), (1, None));
        let (run, note) = taken(&[0.5, 0.01, 0.001]);
        assert!(run == 3 && note.unwrap().starts_with("2 times a run was done again"));
        let (run, note) = taken(&[0.5; 4]);
        assert!(run == 4 && note.unwrap().contains("1 runs were taken all the same"), "patience ends");
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
