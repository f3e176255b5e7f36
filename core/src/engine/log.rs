//! What an engine tells a log: its start, what its rings go without, and what its jobs tell their hosts.
//!
//! Said through `tracing`, where nobody who listens costs a look at one atomic. Nothing is said per request: this is the control
//! path.
#![forbid(unsafe_code)]

use tracing::{debug, error, info, warn};

use super::event::EventKind;
use crate::mirror::ErrorAction;
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
        EventKind::Error { action: ErrorAction::Ignore, .. } => warn!(job, "{what} (ignored)"),
        EventKind::Error { action, .. } => error!(job, %action, "{what}"),
        EventKind::Status { .. } => debug!(job, "{what}"),
        EventKind::Escalated { .. } | EventKind::SwitchOverMissed { .. } | EventKind::Overflow(_) => {
            warn!(job, "{what}");
        }
        EventKind::Ready
        | EventKind::CopyMode(_)
        | EventKind::BudgetTightened(_)
        | EventKind::BrakingEnded
        | EventKind::Pending { .. }
        | EventKind::Concluded => info!(job, "{what}"),
    }
}
