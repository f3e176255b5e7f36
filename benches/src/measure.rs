//! What one run cost: wall time, CPU time of the tool and of the whole machine, context switches, punts.
//!
//! The tool's CPU time comes from `getrusage(RUSAGE_CHILDREN)` before and after: exact, includes all its threads and
//! io_uring's workers, but only once the child was waited for, and only if nothing else is waited for in between
//! (so runs are strictly one after another). The machine's comes from `/proc/stat`, in ticks of 10 ms, less what the idle
//! machine spends in the same time: it sees the loop driver's and the file system's kernel threads too.
#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Failure, Result};
use crate::punts::PuntCounter;

/// What one run of one contender cost.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds of the copy itself, by the tool's own clock where it has one, else the process's life.
    pub seconds: f64,
    /// Seconds from the start of the process to its end.
    pub process_seconds: f64,
    /// CPU seconds of the process, user and system, all threads.
    pub cpu_seconds: f64,
    /// CPU seconds of the whole machine in that time, above idle.
    pub machine_cpu_seconds: f64,
    /// Requests that io_uring handed to a worker thread; `None` where they cannot be counted.
    pub punts: Option<u64>,
    /// Context switches of the process, voluntary or not.
    pub context_switches: u64,
}

/// Takes the readings.
#[derive(Debug)]
pub struct Meter {
    /// Counts punts, where the kernel lets us.
    punts: Option<PuntCounter>,
    /// Why punts are not counted.
    punts_missing: Option<String>,
    /// Busy CPU seconds per second of the idle machine.
    idle_busy_per_s: f64,
    /// Ticks per second in /proc/stat.
    ticks_per_s: f64,
}

/// The readings at one instant.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// When.
    at: Instant,
    /// Busy CPU seconds of the machine since boot.
    busy_s: f64,
    /// CPU seconds of all children waited for.
    children_cpu_s: f64,
    /// Context switches of all children waited for.
    children_switches: u64,
}

/// CPUs that the idle machine may use before a note is made of it.
const BUSY_LIMIT: f64 = 0.1;

impl Meter {
    /// A meter; what the idle machine spends it learns in [`Self::note_if_busy`].
    pub fn new() -> Result<Self> {
        let mut meter = Self::without_punts()?;
        match PuntCounter::new() {
            Ok(counter) => meter.punts = Some(counter),
            Err(cause) => meter.punts_missing = Some(cause.to_string()),
        }
        Ok(meter)
    }

    /// A meter that leaves the kernel's tracing alone: telling processes apart costs every context switch of the machine
    /// something, which a benchmark of latencies sees.
    pub fn without_punts() -> Result<Self> {
        let ticks =
            nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).context(|| "CLK_TCK")?.unwrap_or(100);
        Ok(Self { punts: None, punts_missing: None, idle_busy_per_s: 0.0, ticks_per_s: ticks as f64 })
    }

    /// Measures what the machine spends while we do nothing.
    fn watch_idle(&mut self) -> Result<()> {
        let (at, busy_s) = (Instant::now(), self.machine_busy_s()?);
        std::thread::sleep(Duration::from_secs(1));
        self.idle_busy_per_s = (self.machine_busy_s()? - busy_s) / at.elapsed().as_secs_f64();
        Ok(())
    }

    /// Watches the idle machine for a second before `what`; a note if it was not idle.
    pub fn note_if_busy(&mut self, what: &str) -> Result<Option<String>> {
        self.watch_idle()?;
        let busy = self.idle_busy_per_s;
        let note =
            format!("{what}: something else used {busy:.2} CPUs before it began; do not trust these numbers");
        Ok((busy > BUSY_LIMIT).then_some(note))
    }

    /// Busy CPU seconds per second of the idle machine.
    #[must_use]
    pub fn idle_busy_per_s(&self) -> f64 {
        self.idle_busy_per_s
    }

    /// Why punts are not counted, if they are not.
    #[must_use]
    pub fn punts_missing(&self) -> Option<&str> {
        self.punts_missing.as_deref()
    }

    /// Begins a run: punts count from zero.
    pub fn start(&self) -> Result<Start> {
        if let Some(counter) = &self.punts {
            counter.reset()?;
        }
        self.mark()
    }

    /// A second reading inside a run, for a tool whose copy begins after its process did.
    pub fn mark(&self) -> Result<Start> {
        let children = getrusage(UsageWho::RUSAGE_CHILDREN).context(|| "getrusage")?;
        let switches = children.voluntary_context_switches() + children.involuntary_context_switches();
        Ok(Start {
            busy_s: self.machine_busy_s()?,
            children_cpu_s: seconds(children.user_time()) + seconds(children.system_time()),
            children_switches: u64::try_from(switches).unwrap_or_default(),
            at: Instant::now(),
        })
    }

    /// Ends a run whose process was waited for. The copy is taken to be the whole life of the process; a contender
    /// that knows better overwrites the fields.
    pub fn finish(&self, start: &Start) -> Result<Sample> {
        let process_seconds = start.at.elapsed().as_secs_f64();
        let end = self.mark()?;
        let punts = self.punts.as_ref().map(PuntCounter::count).transpose()?;
        Ok(Sample {
            seconds: process_seconds,
            process_seconds,
            cpu_seconds: end.children_cpu_s - start.children_cpu_s,
            machine_cpu_seconds: self.machine_cpu_since(start)?,
            punts,
            context_switches: end.children_switches.saturating_sub(start.children_switches),
        })
    }

    /// CPU seconds of the whole machine since then, above idle. Never below zero: a tick is 10 ms.
    pub fn machine_cpu_since(&self, start: &Start) -> Result<f64> {
        let idle_s = self.idle_busy_per_s * start.at.elapsed().as_secs_f64();
        Ok((self.machine_busy_s()? - start.busy_s - idle_s).max(0.0))
    }

    /// Busy seconds of all CPUs since boot: user, nice, system, irq and softirq of /proc/stat's first line.
    fn machine_busy_s(&self) -> Result<f64> {
        let text = fs::read_to_string("/proc/stat").context(|| "/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else {
            return Err(Failure::new("/proc/stat: the first line is not the one this program knows"));
        };
        Ok((user + nice + system + irq + softirq) as f64 / self.ticks_per_s)
    }
}

impl Start {
    /// Seconds since this reading.
    #[must_use]
    pub fn elapsed_s(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }
}

/// The CPU clock of a running process, all its threads: for a tool of which only a part of its life is the copy.
#[derive(Debug, Clone, Copy)]
pub struct ProcessClock(ClockId);

impl ProcessClock {
    /// The clock of this process.
    pub fn of(process_id: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(process_id).context(|| "process id")?);
        Ok(Self(clock_getcpuclockid(pid).context(|| "clock_getcpuclockid")?))
    }

    /// CPU seconds the process has used so far.
    pub fn cpu_s(self) -> Result<f64> {
        Ok(Duration::from(self.0.now().context(|| "CPU clock of the process")?).as_secs_f64())
    }
}

/// A `timeval` in seconds.
fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_cpu_time_is_seen_once_it_was_waited_for() {
        let meter = Meter { punts: None, punts_missing: None, idle_busy_per_s: 0.0, ticks_per_s: 100.0 };
        let start = meter.start().unwrap();
        let loops = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        std::process::Command::new("sh").args(["-c", loops]).status().unwrap();
        let sample = meter.finish(&start).unwrap();
        assert!(sample.cpu_seconds > 0.0);
        assert!(sample.process_seconds >= 0.0);
        assert_eq!(sample.punts, None);
    }
}
