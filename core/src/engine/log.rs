//! What an engine tells a log: its start, what its rings go without, and what its jobs tell their hosts.
//!
//! Said through `tracing`, where nobody who listens costs a look at one atomic. Nothing is said per request: this is the control path.
#![forbid(unsafe_code)]

use tracing::{debug, error, info, warn};

use super::event::EventKind;
use crate::mirror::{ErrorAction, JobStatus};
use crate::ring::uring::Setup;

/// A worker has its ring and its memory.
pub(super) fn worker_started(index: usize, setup: &Setup, contiguous: bool) {
    info!(worker = index, ring = setup.flags, "a worker has started");
    if let Some(why) = &setup.buffer_refused {
        warn!(worker = index, "its copy memory is not registered, which costs CPU time: {why}");
    }
    if !contiguous {
        warn!(worker = index, "its copy memory is not on huge pages, so requests may be smaller");
    }
}

/// A job of this name, source and target, has an event.
pub(super) fn event(job: &str, what: &EventKind) {
    match what {
        EventKind::Status { from, to: JobStatus::Created | JobStatus::Running } => {
            debug!(job, "the job was {from}, and runs");
        }
        EventKind::Status { from, to } => debug!(job, "the job was {from} and is {to}"),
        EventKind::Ready => info!(job, "a switch-over is possible"),
        EventKind::Error { side, errno, range, action, .. } => {
            let why = std::io::Error::from_raw_os_error(*errno);
            let text = format_args!("{side:?} failed at {range} ({action:?}): {why}");
            if *action == ErrorAction::Ignore { warn!(job, "{text}") } else { error!(job, "{text}") }
        }
        EventKind::CopyMode(mode) => info!(job, "guest writes are followed in mode {mode:?}"),
        EventKind::Escalated { step, left_bytes, .. } => {
            warn!(job, "{left_bytes} bytes are left and do not become fewer: {step:?}");
        }
        EventKind::BudgetTightened(level) => info!(job, "the latency budget is tighter again: {level:?}"),
        EventKind::BrakingEnded => info!(job, "the guest is not braked any more"),
        EventKind::SwitchOverMissed { held_ns, left_bytes } => {
            warn!(job, "a switch-over was missed after {held_ns} ns, {left_bytes} bytes were left");
        }
        EventKind::Pending => info!(job, "guest requests are held until the job is finalized"),
        EventKind::Concluded => info!(job, "the job is over"),
        EventKind::Overflow(lost) => warn!(job, "{lost} events were lost"),
    }
}
