//! `blkmirror copy`: from the command line to a finished, perhaps verified, target.
//!
//! The order of the steps is what keeps a target untouched when the job cannot run: everything that may be refused is
//! looked at before the target is created, and a created target that no job has written to is removed again.
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkmirror_core::ErrorKind;
use blkmirror_core::device::{Device, Extent, ExtentKind};
use blkmirror_core::engine::{Engine, EngineOptions, Job, Outcome as JobOutcome, TargetState};
use blkmirror_core::mirror::{ExtentMap, MirrorOptions};
use blkmirror_core::units::{ByteRange, MIB, bytes_u64, format_size};

use crate::args::{CopyArgs, Sync};
use crate::cpu::Stopwatch;
use crate::diff::{self, Scope};
use crate::exit::{Exit, Failure, Outcome};
use crate::follow::follow;
use crate::output::{exit_after, print, print_json, say, say_note};
use crate::progress::Bar;
use crate::report::{CopyReport, count};
use crate::signals::Interrupts;
use crate::target;

/// The unit in which a window is worth having.
const HUGE_PAGE_BYTES: u64 = 2 * MIB;

/// Runs the command.
pub(crate) fn run(args: &CopyArgs, interrupts: &Interrupts) -> Exit {
    let notes = if args.quiet { Notes::Kept } else { Notes::Said };
    let (mut report, result) = perform(args, interrupts, notes);
    // First the answer; `main` cleans up after it, which may take a while.
    interrupts.take_last_word();
    let exit = result.as_ref().map_or_else(|failure| failure.exit, |()| Exit::Done);
    if let Err(failure) = &result {
        report.error = Some(failure.text.clone());
        say(failure);
    }
    let printed = match (args.json, &result) {
        (true, _) => print_json(&report),
        (false, Ok(())) if !args.quiet => print(&report.summary()),
        _ => Ok(()),
    };
    exit_after(printed, exit)
}

/// What becomes of notes, besides that the report has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notes {
    /// Said on standard error.
    Said,
    /// Nothing.
    Kept,
}

/// Copies, verifies if asked to, and reports; prints nothing but progress, warnings and notes.
pub(crate) fn perform(args: &CopyArgs, interrupts: &Interrupts, notes: Notes) -> (CopyReport, Outcome<()>) {
    let watched = Watched::new(args, interrupts, notes);
    let result = check_usage(args).and_then(|()| copy_and_verify(args, interrupts, &watched));
    let report = watched.lock().report.clone();
    (report, result)
}

/// Options that do not go together.
fn check_usage(args: &CopyArgs) -> Outcome<()> {
    if args.map.is_some() && args.sync != Sync::Top {
        return Err(Failure::usage("--map says what the topmost layer holds: it needs --sync top"));
    }
    if args.verify && args.sync == Sync::None {
        return Err(Failure::usage("--verify has nothing to compare after --sync none"));
    }
    let workers = args.threads.map_or(1, NonZeroUsize::get);
    let machine = rustix::system::sysinfo();
    let memory_bytes = u64::from(machine.mem_unit.max(1)).saturating_mul(machine.totalram);
    check_memory(workers, engine_options(args).worker_memory_bytes(), memory_bytes)
}

/// Refuses copy memory that would bring the machine to its knees; it is faulted in at the start.
fn check_memory(workers: usize, each_bytes: u64, memory_bytes: u64) -> Outcome<()> {
    let wanted_bytes = bytes_u64(workers).saturating_mul(each_bytes);
    if wanted_bytes <= memory_bytes / 4 {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--threads {workers} with {} each (--buf-size) would take {} of memory, of {} that this machine has; use less",
        format_size(each_bytes),
        format_size(wanted_bytes),
        format_size(memory_bytes)
    )))
}

/// What the watchdog reads when the command hangs.
struct State {
    /// The report so far.
    report: CopyReport,
    /// Since when the copy runs.
    stopwatch: Stopwatch,
    /// The job while it runs.
    job: Option<Arc<Job>>,
}

/// A handle to the state that the command and the watchdog share.
#[derive(Clone)]
struct Watched {
    /// What they share.
    state: Arc<Mutex<State>>,
    /// What becomes of notes.
    notes: Notes,
}

impl Watched {
    /// A fresh state, which the watchdog knows of.
    fn new(args: &CopyArgs, interrupts: &Interrupts, notes: Notes) -> Self {
        let name = |path: &Path| Some(path.display().to_string());
        let report =
            CopyReport { source: name(&args.source), target: name(&args.target), ..CopyReport::default() };
        let state = State { report, stopwatch: Stopwatch::start(), job: None };
        let this = Self { state: Arc::new(Mutex::new(state)), notes };
        let (watched, json) = (this.clone(), args.json);
        interrupts.set_last_word(move || watched.last_word(json));
        this
    }

    /// Access to the state; never held across anything that may block.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the watchdog says: the command did not come to its end by itself.
    fn last_word(&self, json: bool) {
        let mut state = self.lock();
        if let Some(job) = state.job.take() {
            state.report.take_progress(&job.progress());
            state.report.take_state(TargetState::Incomplete);
            let stopwatch = state.stopwatch;
            state.report.take_times(&stopwatch);
        }
        let where_it_hangs = match state.report.target_state {
            Some("complete") => " while verifying; a device does not answer",
            Some(_) => "; a device does not answer",
            None => " before the copy began",
        };
        let text = format!("interrupted{where_it_hangs}; {}", state.report.target_in_words());
        state.report.error = Some(text.clone());
        say(text);
        if json {
            // There is nobody left to hear of a failure.
            let _ = print_json(&state.report);
        }
    }

    /// Takes down what is worth knowing and is no failure.
    fn note(&self, note: String) {
        if self.notes == Notes::Said {
            say_note(&note);
        }
        self.lock().report.notes.push(note);
    }

    /// Takes down what a device has to say.
    fn note_device(&self, device: &Device) {
        for note in device.notes() {
            self.note(format!("{}: {note}", device.name()));
        }
    }

    /// Lets the watchdog see the job.
    fn running(&self, job: &Arc<Job>, workers: usize) {
        let mut state = self.lock();
        state.report.workers = workers;
        state.job = Some(Arc::clone(job));
    }

    /// Takes over the end of the job.
    fn concluded(&self, outcome: &JobOutcome) {
        let mut state = self.lock();
        state.job = None;
        state.report.take_progress(&outcome.progress);
        state.report.take_state(outcome.target);
        let stopwatch = state.stopwatch;
        state.report.take_times(&stopwatch);
    }
}

/// The two sides again, opened for the comparison that follows the copy.
struct Verification {
    /// Source and target.
    sides: [Device; 2],
    /// What of them is compared.
    scope: Scope,
}

/// The whole of it, in order.
fn copy_and_verify(args: &CopyArgs, interrupts: &Interrupts, watched: &Watched) -> Outcome<()> {
    let source = Device::open_source(&args.source)?;
    let bytes = source.size_bytes();
    watched.lock().report.bytes_total = bytes;
    let extents = args.map.as_deref().map(|path| crate::map::read(path, bytes)).transpose()?;
    let scope = scope(args, extents.as_deref());
    let options = mirror_options(args, extents)?;
    interrupts.check()?;

    let engine = Engine::start(engine_options(args))?;
    let target = target::open(args, &source, interrupts)?;
    watched.note_device(&source);
    watched.note_device(&target.device);
    target.note.into_iter().for_each(|note| watched.note(note));
    let verification = if args.verify {
        Some(Verification { sides: [source.reopen()?, target.device.reopen()?], scope })
    } else {
        None
    };
    interrupts.check()?;

    let options = MirrorOptions { target_is_zero: args.target_is_zero || target.is_zero, ..options };
    // From here on the target may have been written to.
    watched.lock().stopwatch = Stopwatch::start();
    let job = Arc::new(engine.copy(source, target.device, options)?);
    watched.running(&job, engine.workers());
    if let Some(ticket) = target.created {
        interrupts.keep(ticket);
    }
    let bar = bar(args, "copy", bytes);
    let outcome = follow(&job, &bar, args, interrupts);
    bar.finish();
    watched.concluded(&outcome);
    judge(&outcome, interrupts, &watched.lock().report)?;
    if args.sync == Sync::None {
        watched.lock().report.target_state = Some("not_copied");
        watched.note("--sync none copies nothing: the target is as it was".into());
    }
    match verification {
        Some(verification) => verify(args, &verification, bytes, interrupts, watched),
        None => Ok(()),
    }
}

/// The progress bar of a phase.
fn bar(args: &CopyArgs, what: &'static str, bytes: u64) -> Bar {
    Bar::new(!(args.json || args.quiet || args.no_progress), what, bytes)
}

/// The options of the engine. Its window holds what `--buf-size` allows to be on its way; the engine adds 4 MiB to each.
fn engine_options(args: &CopyArgs) -> EngineOptions {
    let default = EngineOptions::default();
    let window_bytes = match args.buf_size {
        None | Some(0) => default.window_bytes,
        Some(bytes) => bytes.next_multiple_of(HUGE_PAGE_BYTES),
    };
    EngineOptions { workers: args.threads, window_bytes, ..default }
}

/// The options of the job.
fn mirror_options(args: &CopyArgs, extents: Option<Vec<Extent>>) -> Outcome<MirrorOptions> {
    Ok(MirrorOptions {
        sync: args.sync.into(),
        granularity: args.granularity,
        buf_size_bytes: args.buf_size.unwrap_or(0),
        speed_bytes_per_s: args.speed,
        zero_detect: args.zero_detect,
        target_cluster_bytes: args.target_cluster_size,
        on_source_error: args.on_source_error.into(),
        on_target_error: args.on_target_error.into(),
        extents: extents.map(ExtentMap::from_extents).transpose()?,
        ..MirrorOptions::default()
    })
}

/// What a verification compares: what was to be copied, no more.
fn scope(args: &CopyArgs, extents: Option<&[Extent]>) -> Scope {
    match (args.sync, extents) {
        (Sync::Full | Sync::None, _) => Scope::All,
        (Sync::Top, None) => Scope::DataOfFirst,
        (Sync::Top, Some(extents)) => {
            let copied = extents.iter().filter(|extent| extent.kind != ExtentKind::Absent);
            Scope::Ranges(copied.map(|extent| extent.range).collect())
        }
    }
}

/// Whether the job ended well, and if not, how.
fn judge(outcome: &JobOutcome, interrupts: &Interrupts, report: &CopyReport) -> Outcome<()> {
    let target = report.target_in_words();
    if interrupts.hit() || outcome.cancelled {
        return Err(Failure::interrupted(format!("interrupted; {target}")));
    }
    if let Some(error) = &outcome.error {
        let advice = match error.kind() {
            ErrorKind::NoSpace => " (--on-target-error enospc waits for space)",
            _ => "",
        };
        return Err(Failure::failed(format!("{error}{advice}; {target}")));
    }
    if outcome.target == TargetState::Incomplete {
        return Err(Failure::failed(format!(
            "{} ignored, {} not copied; {target}",
            count(report.errors, "error"),
            format_size(outcome.left_dirty_bytes)
        )));
    }
    Ok(())
}

/// Reads both sides again and compares.
fn verify(
    args: &CopyArgs,
    verification: &Verification,
    bytes: u64,
    interrupts: &Interrupts,
    watched: &Watched,
) -> Outcome<()> {
    let bar = bar(args, "verify", bytes);
    let stopwatch = Stopwatch::start();
    let [source, target] = &verification.sides;
    let found = diff::compare([source, target], bytes, verification.scope.clone(), 1, interrupts, |done| {
        crate::compare::tick(&bar, done, bytes, &stopwatch);
    })?;
    bar.finish();
    if found.interrupted {
        let words = watched.lock().report.target_in_words();
        return Err(Failure::interrupted(format!("interrupted while verifying; {words}, but not verified")));
    }
    watched.lock().report.verified = Some(found.ranges == 0);
    match found.first.first() {
        None => Ok(()),
        Some(first) => Err(Failure::failed(differs(first, &found, source, target))),
    }
}

/// What a failed verification says.
fn differs(first: &ByteRange, found: &diff::Differences, source: &Device, target: &Device) -> String {
    format!(
        "verification failed: {} and {} differ in {} ({}), the first at offset {}; was one of them written to \
         meanwhile?",
        source.name(),
        target.name(),
        count(found.ranges, "range"),
        format_size(found.bytes),
        first.start()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// Each number is in its bounds and their product takes the machine down.
    #[test]
    fn more_memory_than_the_machine_can_spare_is_refused() {
        assert!(check_memory(4, 16 * MIB, 1024 * MIB).is_ok());
        let failure = check_memory(256, 64 * MIB, 24 * 1024 * MIB).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.text.contains("--threads 256") && failure.text.contains("16 GiB"), "{failure}");
    }

    /// Whoever asks for less on its way has little memory to give.
    #[test]
    fn copy_memory_is_what_buf_size_says() {
        let window_bytes = |options: &[&str]| {
            let line = ["blkmirror", "copy", "a", "b"].iter().chain(options);
            match crate::args::Cli::parse_from(line).command {
                crate::args::Command::Copy(args) => engine_options(&args).window_bytes,
                other => panic!("{other:?}"),
            }
        };
        let default = EngineOptions::default().window_bytes;
        assert_eq!((window_bytes(&[]), window_bytes(&["--buf-size=0"])), (default, default));
        assert_eq!(window_bytes(&["--buf-size=4K"]), 2 * MIB);
        assert_eq!(window_bytes(&["--buf-size=33M"]), 34 * MIB);
    }
}
