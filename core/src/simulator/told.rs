//! What the host is told while a job runs: its events.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::simulation::{Live, Simulation, Wrong};
use crate::engine::{EventKind, IoStatus};
use crate::mirror::{ErrorAction, ErrorPolicy, MirrorOptions, OnCopied, Side};
use crate::ring::sim::SimDisk;
use crate::units::ByteRange;

impl Simulation {
    /// Events come in order, none is missing, and what they say was so.
    pub(super) fn look_at_events(&mut self) -> Result<(), Wrong> {
        let Some(live) = &self.live else { return Ok(()) };
        while let Some(event) = live.job.next_event() {
            if event.seq != self.watch.events {
                return Err(Wrong::new(format!("event {} came after {}", event.seq, self.watch.events)));
            }
            self.watch.events += match event.what {
                EventKind::Overflow(lost) => lost,
                _ => 1,
            };
            self.watch.last_events.push((self.world.now_ns(), event.what));
            match event.what {
                EventKind::Ready => self.story.ready += 1,
                EventKind::Pending { pivots } => self.watch.pending = Some(pivots),
                EventKind::SwitchOverMissed { .. } => {
                    self.story.missed += 1;
                    self.check_miss()?;
                }
                EventKind::Escalated { .. } => self.story.escalated += 1,
                EventKind::Error { .. } => {
                    self.story.errors += 1;
                    check_error(live, event.what, self.recipe.bytes)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// An error that the host is told of was there, what it says is done about it is what the policy says, and so is what the
/// job's I/O status becomes.
fn check_error(live: &Live, event: EventKind, disk_bytes: u64) -> Result<(), Wrong> {
    let EventKind::Error { side, errno, range, action, io_status } = event else { return Ok(()) };
    let wrong = |why: &str| Err(Wrong::new(format!("{why}: {event:?}")));
    if range.end() > disk_bytes {
        return wrong("an error past the end of the disk");
    }
    if !was_there([&live.source, &live.target], side, range, errno) {
        return wrong("an error that its disk did not have");
    }
    if !actions(&live.options, side, range, errno).contains(&action) {
        return wrong("not what the policy does about an error");
    }
    let status = match (action, errno) {
        (ErrorAction::Ignore, _) => IoStatus::Ok,
        (_, libc::ENOSPC) => IoStatus::NoSpace,
        _ => IoStatus::Failed,
    };
    if io_status != status { wrong("not the I/O status that this leads to") } else { Ok(()) }
}

/// Whether a request of one of the two disks failed like this. Errors that pass are not told of: they are tried again, and
/// nobody is as unlucky as to meet one each time.
pub(super) fn was_there(disks: [&Arc<SimDisk>; 2], side: Side, range: ByteRange, errno: i32) -> bool {
    let [source, target] = disks;
    let failed = match side {
        Side::Source => source.has_failed(true, range, errno),
        Side::Target => target.has_failed(false, range, errno),
    };
    failed && errno != libc::EAGAIN
}

/// What may be done about an error with these options.
fn actions(options: &MirrorOptions, side: Side, range: ByteRange, errno: i32) -> &'static [ErrorAction] {
    let policy = match side {
        Side::Source => options.on_source_error,
        Side::Target => options.on_target_error,
    };
    // An empty range: a flush, and what that has lost no policy brings back.
    match policy {
        _ if range.is_empty() => &[ErrorAction::Report],
        ErrorPolicy::Report => &[ErrorAction::Report],
        // A job that completes by itself gives up some time.
        ErrorPolicy::Ignore if options.on_copied == OnCopied::Complete => {
            &[ErrorAction::Ignore, ErrorAction::Report]
        }
        ErrorPolicy::Ignore => &[ErrorAction::Ignore],
        ErrorPolicy::Enospc if errno != libc::ENOSPC => &[ErrorAction::Report],
        ErrorPolicy::Enospc | ErrorPolicy::Stop => &[ErrorAction::Stop],
    }
}
