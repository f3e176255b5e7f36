//! The log: what the library tells besides answers, events and completions.
//!
//! The library speaks through `tracing`. The first handler that a host sets puts a subscriber of ours in place, which stays and is
//! silent while there is none.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Once, PoisonError, RwLock, TryLockError};
use std::time::Duration;

use blkmirror_core::{Error, ErrorKind, Result};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

use crate::border::process::Process;
use crate::border::{guard, invalid};

/// How much is told; each level brings those above.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_log_level = u32;
/// Nothing.
pub const BLKM_LOG_OFF: blkm_log_level = 0;
/// Something failed.
pub const BLKM_LOG_ERROR: blkm_log_level = 1;
/// Something works less well than it could.
pub const BLKM_LOG_WARN: blkm_log_level = 2;
/// What a job does, in some lines.
pub const BLKM_LOG_INFO: blkm_log_level = 3;
/// Every change of state.
pub const BLKM_LOG_DEBUG: blkm_log_level = 4;

/// Takes a line of the log: `target` says which part of the library speaks, such as "blkmirror_core::engine"; `msg` is one line of
/// UTF-8. Both are good for the length of the call. It is called on any thread, the library's own too, also while guest requests
/// are held. It must return soon, must not call the library, and must not wait for a thread that may be in the library or wait for
/// guest I/O.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_log_fn = Option<
    unsafe extern "C" fn(
        opaque: *mut c_void,
        level: blkm_log_level,
        target: *const c_char,
        msg: *const c_char,
    ),
>;

/// The host's function and its pointer.
#[derive(Clone, Copy, Debug)]
struct Handler {
    /// The function.
    function: unsafe extern "C" fn(*mut c_void, blkm_log_level, *const c_char, *const c_char),
    /// Handed to it.
    opaque: *mut c_void,
    /// Whose it is: a child must not wait for locks of its parent's threads.
    process: Process,
}

// SAFETY: the header says that it is called on any thread.
unsafe impl Send for Handler {}
// SAFETY: the same.
unsafe impl Sync for Handler {}

/// Who takes the log.
static HANDLER: RwLock<Option<Handler>> = RwLock::new(None);
/// How much he wants.
static LEVEL: AtomicU32 = AtomicU32::new(BLKM_LOG_OFF);

/// The number of the process whose handler it is.
static IN_PROCESS: AtomicU64 = AtomicU64::new(0);

/// How long a change of the handler waits for lines that are being told.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(1);

/// Sets who takes the log of the whole process, up to level `max`; NULL: nobody, as at the beginning. When this returns, the
/// handler that was there before is not called any more, and no call of it is under way.
///
/// Returns 0, or -errno: `-EINVAL` for an unknown level, `-EBUSY` when a call of the old handler does not return, or the program is
/// a Rust program that has a subscriber of its own. Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_log_set_handler(
    max: blkm_log_level,
    handler: blkm_log_fn,
    opaque: *mut c_void,
) -> c_int {
    let attempt = "set the handler of the log";
    guard(attempt, || {
        if max > BLKM_LOG_DEBUG {
            return Err(invalid(attempt, format!("{max} is no level; use BLKM_LOG_*")));
        }
        if handler.is_some() {
            install(attempt)?;
        }
        let level = if handler.is_some() { max } else { BLKM_LOG_OFF };
        replace(
            handler.map(|function| Handler { function, opaque, process: Process::this() }),
            level,
            attempt,
        )?;
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    })
}

/// Puts another handler in place of the one there is. Tried for a while and not waited for: after `fork(2)`, and from inside a
/// handler, the lock would never be free.
fn replace(handler: Option<Handler>, level: blkm_log_level, attempt: &'static str) -> Result<()> {
    let set = |there: &mut Option<Handler>| {
        *there = handler;
        // Under the lock, so that nobody hears what he has not asked for.
        LEVEL.store(level, Ordering::Relaxed);
        IN_PROCESS.store(handler.map_or(0, |handler| handler.process.number()), Ordering::Relaxed);
    };
    let tries = PATIENCE.as_millis() / LOOK.as_millis();
    for _ in 0..tries {
        match HANDLER.try_write() {
            Ok(mut there) => {
                set(&mut there);
                return Ok(());
            }
            Err(TryLockError::Poisoned(there)) => {
                set(&mut there.into_inner());
                return Ok(());
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
        }
    }
    Err(Error::new(ErrorKind::Busy, attempt).because("a call of the handler that is set does not return"))
}

/// Puts our subscriber in place, once.
fn install(attempt: &'static str) -> Result<()> {
    static INSTALLED: Once = Once::new();
    static FAILED: AtomicU32 = AtomicU32::new(0);
    INSTALLED.call_once(|| {
        if tracing::subscriber::set_global_default(Forward).is_err() {
            FAILED.store(1, Ordering::Relaxed);
        }
    });
    if FAILED.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, attempt)
        .because("this program has a tracing subscriber of its own; use that"))
}

/// Hands lines on to the handler.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(*metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            BLKM_LOG_OFF => LevelFilter::OFF,
            BLKM_LOG_ERROR => LevelFilter::ERROR,
            BLKM_LOG_WARN => LevelFilter::WARN,
            BLKM_LOG_INFO => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        })
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if !Process::is_now(IN_PROCESS.load(Ordering::Relaxed)) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        let text = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
        let (target, message) = (text(metadata.target()), text(&line.finish()));
        let handler = HANDLER.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = number(*metadata.level()) <= LEVEL.load(Ordering::Relaxed);
        if let Some(Handler { function, opaque, .. }) = handler.filter(|_| wanted) {
            // SAFETY: the host's function, which he promised to be one for this; it cannot be replaced while the lock is held.
            unsafe { function(opaque, number(*metadata.level()), target.as_ptr(), message.as_ptr()) };
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A level's number.
fn number(level: Level) -> blkm_log_level {
    match level {
        Level::ERROR => BLKM_LOG_ERROR,
        Level::WARN => BLKM_LOG_WARN,
        Level::INFO => BLKM_LOG_INFO,
        _ => BLKM_LOG_DEBUG,
    }
}

/// One line: the message, and then what belongs to it as `name=value`.
#[derive(Debug, Default)]
struct Line {
    /// The message.
    message: String,
    /// All else.
    fields: String,
}

impl Line {
    /// The line.
    fn finish(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let done = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        // A string takes everything.
        debug_assert!(done.is_ok());
    }
}
