//! Follows a running job: progress bar, events, signals, and going on after a stop.
//!
//! An error policy `stop` leaves the job waiting for somebody who puts things right. On a command line that is the
//! person in front of it, who frees space and does not want to type anything: so the stop is said once, and the job is
//! resumed every second until it goes on.
#![forbid(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use blkmirror_core::engine::{Cancel, EventKind, Job, JobStatus, Outcome};
use blkmirror_core::mirror::{ErrorAction, Side};
use blkmirror_core::units::ByteRange;

use crate::args::CopyArgs;
use crate::progress::Bar;
use crate::signals::Interrupts;

/// How long to wait for the job before looking at everything else.
const TICK: Duration = Duration::from_millis(50);
/// How often a stopped job is resumed.
const RESUME_EVERY: Duration = Duration::from_secs(1);
/// A resumed job that has not stopped again for so long goes on.
const GOES_ON_AFTER: Duration = Duration::from_secs(2);
/// So many ignored errors are named; the rest is counted by the job.
const MAX_NAMED_ERRORS: usize = 10;

/// Waits for the end of `job`.
pub(crate) fn follow(job: &Job, bar: &Bar, args: &CopyArgs, interrupts: &Interrupts) -> Outcome {
    let mut listener = Listener::new(args);
    let mut cancelled = false;
    loop {
        let outcome = job.wait_for(TICK);
        while let Some(event) = job.next_event() {
            if let Some(text) = listener.hear(&event.what, Instant::now()) {
                bar.say(&text);
            }
        }
        if let Some(outcome) = outcome {
            return outcome;
        }
        if interrupts.hit() && !cancelled {
            // It may be over by now, which is as good.
            let _ = job.cancel(Cancel::Force);
            cancelled = true;
        }
        match listener.tick(Instant::now()) {
            Some(Action::Resume) if !cancelled => {
                // It fails when the job goes on already.
                let _ = job.resume();
            }
            Some(Action::Say(text)) => bar.say(&text),
            _ => {}
        }
        let progress = job.progress();
        bar.set(progress.done_bytes, progress.disk_bytes, progress.rate_bytes_per_s, progress.eta);
    }
}

/// What is to be done now.
#[derive(PartialEq, Eq, Debug)]
enum Action {
    /// Let the job try again.
    Resume,
    /// Tell the user.
    Say(String),
}

/// Turns events into words, each once, and decides when to resume.
struct Listener {
    /// Names of source and target.
    names: [String; 2],
    /// The last error, which is the reason of a stop.
    last_error: Option<String>,
    /// Ignored errors named so far.
    named: Vec<String>,
    /// When to resume; none while the job runs.
    resume_at: Option<Instant>,
    /// The user was told of the stop and not yet of its end.
    said: bool,
    /// When the job was last resumed.
    resumed_at: Option<Instant>,
}

impl Listener {
    /// A listener for a copy.
    fn new(args: &CopyArgs) -> Self {
        Self {
            names: [&args.source, &args.target].map(|path| path.display().to_string()),
            last_error: None,
            named: Vec::new(),
            resume_at: None,
            said: false,
            resumed_at: None,
        }
    }

    /// Hears an event; what it returns is for the user.
    fn hear(&mut self, event: &EventKind, now: Instant) -> Option<String> {
        match event {
            EventKind::Error { side, errno, range, action, .. } => {
                self.hear_error(self.describe(*side, *errno, *range), *action)
            }
            EventKind::Status { to: JobStatus::Paused, .. } => {
                self.resume_at = Some(now + RESUME_EVERY);
                if std::mem::replace(&mut self.said, true) {
                    return None;
                }
                let why = self.last_error.take().unwrap_or_else(|| "an error".into());
                Some(format!("stopped: {why}; trying again every second"))
            }
            EventKind::Status { from: JobStatus::Paused, .. } => {
                self.resume_at = None;
                self.resumed_at = Some(now);
                None
            }
            _ => None,
        }
    }

    /// Hears of an error in words; what it returns is for the user.
    fn hear_error(&mut self, text: String, action: ErrorAction) -> Option<String> {
        match action {
            ErrorAction::Ignore => return self.name_ignored(text),
            ErrorAction::Stop => self.last_error = Some(text),
            // The end of the job names it.
            _ => {}
        }
        None
    }

    /// `cannot write the target /dev/x at offset 4096 (length 512): No space left on device`.
    fn describe(&self, side: Side, errno: i32, range: ByteRange) -> String {
        let (attempt, name) = match side {
            Side::Source => ("read the source", &self.names[0]),
            Side::Target => ("write the target", &self.names[1]),
        };
        let why = io::Error::from_raw_os_error(errno);
        if range.is_empty() {
            return format!("cannot flush the target {name}: {why}");
        }
        format!("cannot {attempt} {name} at offset {} (length {}): {why}", range.start(), range.len())
    }

    /// Names the first ignored errors, each once although the job comes back to them.
    fn name_ignored(&mut self, text: String) -> Option<String> {
        if self.named.contains(&text) || self.named.len() > MAX_NAMED_ERRORS {
            return None;
        }
        let last = self.named.len() == MAX_NAMED_ERRORS;
        let more = if last { "; more errors are not named" } else { "" };
        let said = format!("{text}; going on with the rest{more}");
        self.named.push(text);
        Some(said)
    }

    /// What is due at `now`.
    fn tick(&mut self, now: Instant) -> Option<Action> {
        if let Some(at) = self.resume_at {
            if now < at {
                return None;
            }
            self.resume_at = Some(now + RESUME_EVERY);
            return Some(Action::Resume);
        }
        let quiet = self.resumed_at.is_some_and(|at| now >= at + GOES_ON_AFTER);
        (self.said && quiet).then(|| {
            self.said = false;
            Action::Say("going on".into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    /// A listener for a copy from `a` to `b`.
    fn listener() -> Listener {
        match Cli::parse_from(["blkmirror", "copy", "a", "b"]).command {
            Command::Copy(args) => Listener::new(&args),
            other => panic!("{other:?}"),
        }
    }

    /// The listener hears of the error that fills a target.
    fn hear_enospc(listener: &mut Listener) -> Option<String> {
        let text = listener.describe(Side::Target, 28, ByteRange::at(4096, 512));
        listener.hear_error(text, ErrorAction::Stop)
    }

    /// The job stops.
    const STOPPED: EventKind = EventKind::Status { from: JobStatus::Running, to: JobStatus::Paused };
    /// It goes on.
    const RESUMED: EventKind = EventKind::Status { from: JobStatus::Paused, to: JobStatus::Running };

    /// A full disk must not scroll the screen, and the job must go on by itself.
    #[test]
    fn a_stop_is_said_once_and_resumed_every_second_until_it_goes_on() {
        let mut listener = listener();
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(hear_enospc(&mut listener), None);
        let text = listener.hear(&STOPPED, start).unwrap();
        assert!(text.starts_with("stopped: cannot write the target b at offset 4096"), "{text}");
        assert!(text.contains("No space left"), "{text}");
        for round in 1..4 {
            assert_eq!(listener.tick(after(round * 1000 - 100)), None);
            assert_eq!(listener.tick(after(round * 1000)), Some(Action::Resume));
            listener.hear(&RESUMED, after(round * 1000));
            assert_eq!(listener.tick(after(round * 1000 + 10)), None);
            assert_eq!(listener.hear(&STOPPED, after(round * 1000)), None);
        }
        assert_eq!(listener.tick(after(4000)), Some(Action::Resume));
        listener.hear(&RESUMED, after(4000));
        assert_eq!(listener.tick(after(5000)), None);
        assert_eq!(listener.tick(after(6000)), Some(Action::Say("going on".into())));
        assert_eq!(listener.tick(after(9000)), None);
    }

    /// A bad disk has a million bad blocks, and the job comes back to each.
    #[test]
    fn ignored_errors_are_named_once_each_and_up_to_a_bound() {
        let mut listener = listener();
        let mut said = Vec::new();
        for block in (0..1000).chain(0..1000) {
            let range = ByteRange::at(block * 512, 512);
            let text = listener.describe(Side::Source, 5, range);
            said.extend(listener.hear_error(text, ErrorAction::Ignore));
        }
        assert_eq!(said.len(), MAX_NAMED_ERRORS + 1);
        assert!(said[0].ends_with("; going on with the rest"), "{}", said[0]);
        assert!(said[MAX_NAMED_ERRORS].ends_with("more errors are not named"));
    }
}
