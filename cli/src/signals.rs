//! SIGINT and SIGTERM: the command stops cleanly, and within a second whatever happens.
//!
//! The first signal raises a flag that every loop of the command looks at ten times a second or more. If the command has
//! not said its last word [`GRACE`] later, because a device does not answer, the watchdog here says it instead, cleans up, and
//! leaves the process. A second signal does so at once. *The last word* is a token: whoever claims it reports the end, so
//! there is exactly one report, and exactly one JSON object.
//!
//! Things that must not outlive the process (scratch files, loop devices, a target that was created and never
//! written) are registered as [`Interrupts::on_exit`] and undone on both ways out, always after the last word: removing
//! gigabytes takes longer than a user waits for an answer. The watchdog gives it [`CLEAN_UP`].
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::exit::{Exit, Failure, Outcome};

/// How long the command has to stop by itself.
const GRACE: Duration = Duration::from_millis(700);
/// How long whoever claimed the last word has to say it, when it stalls on a pipe that nobody reads.
const LAST_WORD: Duration = Duration::from_millis(150);
/// How long cleaning up may take once the last word is said.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Something to undo before the process ends.
type Undo = Box<dyn FnOnce() + Send>;
/// What the watchdog says when it has to end the process.
type LastWord = Box<dyn Fn() + Send>;

/// The shared state of the signal handling; clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Interrupts {
    /// What the handles share.
    shared: Arc<Shared>,
}

/// See [`Interrupts`].
struct Shared {
    /// Whether a signal came.
    hit: Mutex<bool>,
    /// Wakes [`Interrupts::sleep`] when one comes.
    wake: Condvar,
    /// Whether somebody reports the end already.
    spoken: AtomicBool,
    /// What the watchdog says.
    last_word: Mutex<Option<LastWord>>,
    /// What to undo, by ticket.
    undo: Mutex<Vec<(u64, Undo)>>,
    /// Held by whoever cleans up: one at a time, so that the order is kept, and whoever comes second waits for the end.
    turn: Mutex<()>,
}

/// Names a registered [`Undo`], to take it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts").field("hit", &self.hit()).finish_non_exhaustive()
    }
}

/// Locks, also when another thread panicked while it held the lock: all that is guarded here stays valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    /// A state that no signal reaches; for tests and before [`Self::install`].
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                hit: Mutex::new(false),
                wake: Condvar::new(),
                spoken: AtomicBool::new(false),
                last_word: Mutex::new(None),
                undo: Mutex::new(Vec::new()),
                turn: Mutex::new(()),
            }),
        }
    }

    /// Starts to listen for SIGINT and SIGTERM.
    pub(crate) fn install() -> Outcome<Self> {
        let this = Self::new();
        // Its default would end the process where a file becomes too large. With a handler that does nothing, the call
        // that made it so fails with EFBIG, and is dealt with like every other error. Nobody reads the flag.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
            .map_err(|e| Failure::failed(format!("cannot handle SIGXFSZ: {e}")))?;
        let mut signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|e| Failure::failed(format!("cannot listen for SIGINT and SIGTERM: {e}")))?;
        let listener = this.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for (count, _) in signals.forever().enumerate() {
                    listener.raise();
                    if count == 0 {
                        listener.start_watchdog();
                    } else {
                        // Somebody does not want to wait; what is quick is still undone.
                        listener.abandon(LAST_WORD);
                    }
                }
            })
            .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
        Ok(this)
    }

    /// Whether a signal came.
    pub(crate) fn hit(&self) -> bool {
        *lock(&self.shared.hit)
    }

    /// Fails if a signal came; for the steps before a job starts.
    pub(crate) fn check(&self) -> Outcome<()> {
        if self.hit() { Err(Failure::interrupted("interrupted")) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until a signal comes; says whether one came.
    pub(crate) fn sleep(&self, duration: Duration) -> bool {
        let guard = lock(&self.shared.hit);
        match self.shared.wake.wait_timeout_while(guard, duration, |hit| !*hit) {
            Ok((guard, _)) => *guard,
            Err(poisoned) => *poisoned.into_inner().0,
        }
    }

    /// Raises the flag, as a signal does.
    pub(crate) fn raise(&self) {
        *lock(&self.shared.hit) = true;
        self.shared.wake.notify_all();
    }

    /// Claims the right to report the end. True for exactly one caller.
    pub(crate) fn claim_last_word(&self) -> bool {
        !self.shared.spoken.swap(true, Ordering::SeqCst)
    }

    /// Claims the last word for the command itself; does not return if the watchdog has it, which ends the process.
    pub(crate) fn take_last_word(&self) {
        while !self.claim_last_word() {
            thread::park();
        }
    }

    /// What the watchdog is to say if it has to end the process; replaces what was set before.
    pub(crate) fn set_last_word(&self, word: impl Fn() + Send + 'static) {
        *lock(&self.shared.last_word) = Some(Box::new(word));
    }

    /// Registers something to undo before the process ends; the latest is undone first.
    pub(crate) fn on_exit(&self, undo: impl FnOnce() + Send + 'static) -> Ticket {
        let mut list = lock(&self.shared.undo);
        let ticket = list.last().map_or(0, |(last, _)| last + 1);
        list.push((ticket, Box::new(undo)));
        Ticket(ticket)
    }

    /// Takes back what was registered: it is to stay.
    pub(crate) fn keep(&self, ticket: Ticket) {
        lock(&self.shared.undo).retain(|(number, _)| *number != ticket.0);
    }

    /// Undoes everything that is registered; returns when it is done, also if another thread does it.
    pub(crate) fn clean_up(&self) {
        let _turn = lock(&self.shared.turn);
        loop {
            // The list is not locked while undoing, which may take a while.
            let Some((_, undo)) = lock(&self.shared.undo).pop() else { return };
            undo();
        }
    }

    /// Gives the command its time, then ends the process.
    fn start_watchdog(&self) {
        let this = self.clone();
        let started = thread::Builder::new().name("watchdog".into()).spawn(move || {
            thread::sleep(GRACE);
            this.abandon(CLEAN_UP);
        });
        if started.is_err() {
            self.abandon(CLEAN_UP);
        }
    }

    /// Ends the process: see [`Self::wind_up`].
    fn abandon(&self, patience: Duration) {
        if !self.wind_up(patience) {
            within(LAST_WORD, || {
                crate::output::say("left before all was cleaned up; scratch files may remain");
            });
        }
        // Not `process::exit`: its handlers might wait for what is stuck.
        signal_hook::low_level::exit(i32::from(Exit::Interrupted.code()));
    }

    /// Says the last word if nobody has, then cleans up for no longer than `patience`; whether all is undone.
    fn wind_up(&self, patience: Duration) -> bool {
        let this = self.clone();
        if self.claim_last_word() {
            within(LAST_WORD, move || match &*lock(&this.shared.last_word) {
                Some(word) => word(),
                None => crate::output::say("interrupted"),
            });
        } else {
            thread::sleep(LAST_WORD);
        }
        // Not left to whoever has the last word: that thread may be stuck while it says it.
        let this = self.clone();
        within(patience, move || this.clean_up())
    }
}

/// Does `work` on a thread of its own, because a terminal or a pipe may be stuck as well as a device, and waits for it no
/// longer than `limit`; whether it was done by then.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let Ok(worker) = thread::Builder::new().name("last word".into()).spawn(work) else { return false };
    let end = Instant::now() + limit;
    while !worker.is_finished() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    worker.is_finished()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two reports would be two JSON objects.
    #[test]
    fn the_last_word_is_given_once() {
        let interrupts = Interrupts::new();
        assert!(interrupts.claim_last_word());
        assert!(!interrupts.clone().claim_last_word());
    }

    /// A target that a job wrote to must not be removed.
    #[test]
    fn what_is_kept_is_not_undone_and_the_rest_is_undone_backwards() {
        let interrupts = Interrupts::new();
        let done = Arc::new(Mutex::new(Vec::new()));
        let note = |name: &'static str| {
            let done = Arc::clone(&done);
            move || done.lock().unwrap().push(name)
        };
        interrupts.on_exit(note("first"));
        let kept = interrupts.on_exit(note("kept"));
        interrupts.on_exit(note("last"));
        interrupts.keep(kept);
        interrupts.clean_up();
        interrupts.clean_up();
        assert_eq!(*done.lock().unwrap(), ["last", "first"]);
    }

    /// An undo as slow as the removal of gigabytes, and what was heard of it and of the last word, in order.
    fn slow() -> (Interrupts, Arc<Mutex<Vec<&'static str>>>) {
        let interrupts = Interrupts::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (word, undone) = (Arc::clone(&heard), Arc::clone(&heard));
        interrupts.set_last_word(move || word.lock().unwrap().push("word"));
        interrupts.on_exit(move || {
            thread::sleep(Duration::from_secs(1));
            undone.lock().unwrap().push("undone");
        });
        (interrupts, heard)
    }

    /// The user hears first; gigabytes of scratch files are not left behind for want of a second.
    #[test]
    fn the_watchdog_speaks_first_and_waits_for_the_cleaning() {
        let (interrupts, heard) = slow();
        assert!(interrupts.wind_up(CLEAN_UP));
        assert_eq!(*heard.lock().unwrap(), ["word", "undone"]);
    }

    /// The command cleans up by itself after its last word; the watchdog must not cut it short.
    #[test]
    fn the_watchdog_waits_for_cleaning_that_the_command_has_begun() {
        let (interrupts, heard) = slow();
        interrupts.take_last_word();
        let command = interrupts.clone();
        let command = thread::spawn(move || command.clean_up());
        assert!(interrupts.wind_up(CLEAN_UP));
        assert_eq!(*heard.lock().unwrap(), ["undone"]);
        command.join().unwrap();
    }

    /// Whoever presses Ctrl-C twice does not want to wait for anything.
    #[test]
    fn a_second_signal_does_not_wait_for_the_cleaning() {
        let (interrupts, heard) = slow();
        let watchdog = interrupts.clone();
        let watchdog = thread::spawn(move || watchdog.wind_up(CLEAN_UP));
        thread::sleep(LAST_WORD / 3);
        let started = Instant::now();
        assert!(!interrupts.wind_up(LAST_WORD));
        assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());
        assert_eq!(*heard.lock().unwrap(), ["word"]);
        assert!(watchdog.join().unwrap());
    }

    /// Steps before the job must notice a signal too.
    #[test]
    fn a_raised_flag_fails_the_next_step() {
        let interrupts = Interrupts::new();
        assert!(interrupts.check().is_ok());
        interrupts.raise();
        assert_eq!(interrupts.check().unwrap_err().exit, Exit::Interrupted);
    }
}
