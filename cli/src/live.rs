//! A live run: writers on a disk, a job that mirrors it, a switch-over under load, and the proof of the target.
//!
//! The demo runs it on scratch disks, `bench live` on devices of the user's. The writers write through the library as a
//! guest would, and do not stop for anything: what they see while the job copies, follows and switches over is what the
//! table shows. At the end every sector of the target is held against what the writers were told is written, and what
//! they never wrote against the source.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::engine::{
    Cancel, Completion, Engine, EngineOptions, Escalation, EventKind, Job, Outcome as JobOutcome,
};
use blkmirror_core::mirror::{CopyMode, CopyModeChoice, MirrorOptions};
use blkmirror_load::{Arrival, DirectFile, Ledger, Load, Period, Plan, QueueDisk, Untouched};

use crate::cpu::as_f64;
use crate::exit::{Failure, Outcome};
use crate::live_report::{LiveReport, PhaseReport, step_note};
use crate::signals::Interrupts;

/// How often the job and the user are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Writes of the first moments find cold caches and are not counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long a job that is to be over may take for it.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    /// The guest's disk.
    pub(crate) source: PathBuf,
    /// Where it is mirrored to; exists and is large enough.
    pub(crate) target: PathBuf,
    /// What the writers do.
    pub(crate) plan: Plan,
    /// How the job is run.
    pub(crate) options: MirrorOptions,
    /// Show write-blocking, too, before the switch-over.
    pub(crate) show_blocking: bool,
    /// How long each phase is watched.
    pub(crate) time: Duration,
    /// How long the job may take to be ready.
    pub(crate) patience: Duration,
}

/// Runs it; `tell` hears of each phase when it is over. What was found out by then is in `report` also on failure.
pub(crate) fn run(
    course: &Course,
    interrupts: &Interrupts,
    report: &mut LiveReport,
    tell: &mut dyn FnMut(&PhaseReport) -> Outcome<()>,
) -> Outcome<()> {
    report.source = Some(course.source.display().to_string());
    report.target = Some(course.target.display().to_string());
    let source = Device::open_disk(&course.source)?;
    let target = Device::open_target(&course.target, TargetOptions::default())?;
    for device in [&source, &target] {
        report.notes.extend(device.notes().iter().map(|note| format!("{}: {note}", device.name())));
    }
    report.bytes_total = source.size_bytes();
    interrupts.check()?;
    let engine = Engine::start(EngineOptions::default())?;
    let drive = Arc::new(Drive::new(source)?);
    // The writers overwrite the source, so all that could be refused is refused before they begin.
    engine.check(&drive, &target, &course.options, true)?;
    let ledger = Arc::new(Ledger::new(drive.size_bytes(), course.plan.block_bytes, course.plan.seed));
    let open = {
        let (drive, depth) = (Arc::clone(&drive), course.plan.depth);
        move |_| QueueDisk::open(&drive, depth)
    };
    let load = Load::start(course.plan, Some(&ledger), open)?;
    let mut run = Run { course, interrupts, report, tell, load, missed: Vec::new() };
    run.phases(&engine, &drive, target)?;
    let Run { load, .. } = run;
    load.stop()?;
    verify(course, &ledger, report)
}

/// A run under way.
struct Run<'r> {
    /// What is to be run.
    course: &'r Course,
    /// The user.
    interrupts: &'r Interrupts,
    /// What was found out.
    report: &'r mut LiveReport,
    /// Hears of phases.
    tell: &'r mut dyn FnMut(&PhaseReport) -> Outcome<()>,
    /// The writers.
    load: Load,
    /// For how long each switch-over that did not fit held the writers.
    missed: Vec<Duration>,
}

impl Run<'_> {
    /// All phases, in order.
    fn phases(&mut self, engine: &Engine, drive: &Drive, target: Device) -> Outcome<()> {
        self.idle(WARM_UP)?;
        self.load.cut();
        self.idle(self.course.time)?;
        self.phase("without a job", None)?;
        self.note_a_slow_disk();

        let job = engine.mirror(drive, target, self.course.options.clone())?;
        let result = self.with_job(&job);
        if result.is_err() && job.cancel(Cancel::Force).is_ok() {
            // The devices are let go before the report; a device that hangs is given up soon.
            let _ = job.wait_for(LAST_PATIENCE);
        }
        result
    }

    /// The phases with a job.
    fn with_job(&mut self, job: &Job) -> Outcome<()> {
        let mut copied_bytes = 0;
        let mut copied_since = |job: &Job| {
            let now_bytes = job.query().progress.copied_bytes;
            Some(now_bytes - std::mem::replace(&mut copied_bytes, now_bytes))
        };
        let begun_in = name(job.query().copy_mode);
        self.until_ready(job)?;
        let copied = copied_since(job);
        let mode = name(job.query().copy_mode);
        // A job that turned from one to the other by itself has both in this row.
        let turned = if begun_in == mode { "" } else { "then " };
        self.phase(&format!("copying, {turned}{mode}"), copied)?;
        self.watch(job, self.course.time)?;
        let copied = copied_since(job);
        let mode = name(job.query().copy_mode);
        self.phase(&format!("ready, {mode}"), copied)?;
        if self.course.show_blocking && mode != name(CopyMode::WriteBlocking) {
            job.set_copy_mode(CopyMode::WriteBlocking)?;
            self.watch(job, WARM_UP)?;
            self.load.cut();
            copied_since(job);
            self.watch(job, self.course.time)?;
            let copied = copied_since(job);
            self.phase("ready, write-blocking", copied)?;
        }
        job.complete(Completion::Pivot)?;
        let outcome = self.until_over(job, LAST_PATIENCE)?;
        self.take_outcome(outcome)?;
        self.phase("switching over", None)?;
        self.idle(self.course.time)?;
        self.phase("on the target", None)
    }

    /// Ends a phase: what the writers saw in it goes into the report.
    fn phase(&mut self, name: &str, copied_bytes: Option<u64>) -> Outcome<()> {
        let seen: Period = self.load.cut();
        let phase = PhaseReport::new(name, &seen, copied_bytes);
        (self.tell)(&phase)?;
        self.report.phases.push(phase);
        if !self.load.is_running() {
            return Err(Failure::failed("a writer could not go on"));
        }
        match seen.first_error {
            Some(error) => Err(Failure::failed(format!("a guest's write failed: {error}"))),
            None => Ok(()),
        }
    }

    /// Latencies of a disk that is slower than its writers only say how long it was watched.
    fn note_a_slow_disk(&mut self) {
        let (Arrival::Open { per_s }, Some(phase)) = (self.course.plan.arrival, self.report.phases.last())
        else {
            return;
        };
        if phase.writes_per_second < 0.95 * as_f64(per_s) {
            self.report.notes.push(format!(
                "without a job the disk took {:.0} of {per_s} writes/s: they pile up, and so do the latencies; lower --rate",
                phase.writes_per_second
            ));
        }
    }

    /// Lets time pass.
    fn idle(&self, time: Duration) -> Outcome<()> {
        self.interrupts.sleep(time);
        self.interrupts.check()
    }

    /// Lets time pass beside a job that is not to end meanwhile.
    fn watch(&mut self, job: &Job, time: Duration) -> Outcome<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.tick(job)?;
        }
        Ok(())
    }

    /// Waits until a switch-over is possible.
    fn until_ready(&mut self, job: &Job) -> Outcome<()> {
        let start = Instant::now();
        while !job.status().is_ready() {
            self.tick(job)?;
            if start.elapsed() > self.course.patience {
                return Err(Failure::failed(not_ready(job, self.course)));
            }
        }
        self.report.ready_after_seconds = Some(start.elapsed().as_secs_f64());
        Ok(())
    }

    /// A moment beside a job that is not to end in it.
    fn tick(&mut self, job: &Job) -> Outcome<()> {
        self.interrupts.check()?;
        self.hear(job);
        match job.wait_for(TICK) {
            None => Ok(()),
            Some(outcome) => Err(ended_early(outcome)),
        }
    }

    /// Waits for the end of the job.
    fn until_over(&mut self, job: &Job, patience: Duration) -> Outcome<JobOutcome> {
        let start = Instant::now();
        loop {
            if let Some(outcome) = job.wait_for(TICK) {
                self.hear(job);
                return Ok(outcome);
            }
            self.interrupts.check()?;
            self.hear(job);
            if start.elapsed() > patience {
                return Err(Failure::failed(format!(
                    "the switch-over was not done after {} s; a longer --max-pause or --copy-mode write-blocking helps",
                    patience.as_secs()
                )));
            }
        }
    }

    /// Takes down what the job has to tell.
    fn hear(&mut self, job: &Job) {
        while let Some(event) = job.next_event() {
            match event.what {
                EventKind::Escalated { step: Escalation::WriteBlocking, .. } => self.report.escalated = true,
                EventKind::Escalated { step, .. } => {
                    self.report.notes.extend(step_note(step).map(str::to_owned));
                }
                EventKind::SwitchOverMissed { held_ns, .. } => {
                    self.missed.push(Duration::from_nanos(held_ns));
                }
                _ => {}
            }
        }
    }

    /// Takes down how the job ended.
    fn take_outcome(&mut self, outcome: JobOutcome) -> Outcome<()> {
        if let (Some(longest), Some(most)) = (self.missed.iter().max(), self.course.options.max_pause) {
            self.report.notes.push(format!(
                "switch-overs given up and tried again: {}, after {longest:.1?} at most, since a pause may last {most:.1?}",
                self.missed.len()
            ));
        }
        self.report.bytes_copied = outcome.progress.copied_bytes;
        self.report.bytes_active = outcome.progress.active_bytes;
        self.report.pause_ms = outcome.pause.map(|pause| pause.as_secs_f64() * 1e3);
        self.report.pivoted = outcome.pivoted;
        if outcome.pivoted { Ok(()) } else { Err(ended_early(outcome)) }
    }
}

/// A copy mode in the table.
fn name(mode: CopyMode) -> &'static str {
    match mode {
        CopyMode::Background => "background",
        CopyMode::WriteBlocking => "write-blocking",
    }
}

/// A job that ended and should not have.
fn ended_early(outcome: JobOutcome) -> Failure {
    match outcome.error {
        Some(error) => error.into(),
        None => Failure::failed(format!("the job ended too early: {:?}", outcome.end)),
    }
}

/// A job that does not get ready.
fn not_ready(job: &Job, course: &Course) -> String {
    let info = job.query();
    let advice = match course.options.copy_mode {
        CopyModeChoice::Background => "; --copy-mode auto would get there",
        _ => "",
    };
    format!(
        "the job is not ready after {} s: {} left, {} per second turn dirty and {} per second are copied{advice}",
        course.patience.as_secs(),
        blkmirror_core::units::format_size(info.dirty_bytes),
        blkmirror_core::units::format_size(info.dirty_rate_bytes_per_s),
        blkmirror_core::units::format_size(info.copy_rate_bytes_per_s),
    )
}

/// Holds every sector of the target against the ledger, or against the source where nobody wrote.
fn verify(course: &Course, ledger: &Ledger, report: &mut LiveReport) -> Outcome<()> {
    let mut source = DirectFile::open(&course.source)?;
    let mut target = DirectFile::open(&course.target)?;
    let proof = ledger.verify(&mut target, Untouched::SameAs(&mut source))?;
    report.verified = Some(proof.holds());
    report.written_bytes = proof.written_bytes;
    if proof.holds() {
        return Ok(());
    }
    Err(Failure::failed(format!("verification failed on {}: {proof}", course.target.display())))
}
