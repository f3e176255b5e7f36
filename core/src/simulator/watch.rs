//! What must hold at every moment of a run, and at its end.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::guests::changes;
use super::recipe::MS;
use super::simulation::{Live, Neighbour, Simulation, Wrong};
use crate::engine::EventKind;
use crate::engine::crew::Crew;
use crate::mirror::{End, JobStatus};
use crate::units::{ByteRange, Chunk, ChunkRange, bytes_u64, bytes_usize};

/// A pause may be so much longer than it was asked for.
const PAUSE_SLACK_NS: u64 = 500_000;
/// A job that is cancelled by force is over after this.
const FORCE_NS: u64 = 1_000 * MS;
/// When nothing is broken any more, a job that is to end is over after this.
const END_NS: u64 = 60_000 * MS;
/// A guest request is over after this, unless its disk does not answer.
const REQUEST_NS: u64 = 3_000 * MS;
/// One step in so many is followed by a look at all chunks.
const CHUNKS_EVERY: u64 = 150;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Since when the gate is closed.
    closed_since: Option<u64>,
    /// For how long it had been closed, in the step that has opened it.
    pub(super) held_ns: u64,
    /// The longest pause that was allowed at any time since then.
    allowed: Option<Option<Duration>>,
    /// It stays closed for as long as the host wants.
    host_decides: bool,
    /// The job was ready.
    pub(super) was_ready: bool,
    /// What guests had asked for when the host asked a quiet drive for the switch-over, which nothing can disturb.
    pub(super) must_fit: Option<u64>,
    /// All was seen to be copied behind the gate.
    was_sealed: bool,
    /// The host was told that the job is pending, and whether the drive moves.
    pub(super) pending: Option<bool>,
    /// Events of this job.
    pub(super) events: u64,
    /// Requests of this job that failed.
    errors: u64,
    /// The events of the run, and when they were seen.
    pub(super) last_events: Vec<(u64, EventKind)>,
    /// The last time at which a guest request had a reason to wait.
    excused_ns: u64,
}

impl Watch {
    /// A job is over; what was seen of it does not count for the next.
    pub(super) fn job_is_over(&mut self, now_ns: u64) {
        let last_events = std::mem::take(&mut self.last_events);
        *self = Self { excused_ns: now_ns, last_events, ..Self::default() };
    }
}

impl Simulation {
    /// Looks after a step.
    pub(super) fn look(&mut self) -> Result<(), Wrong> {
        let now_ns = self.world.now_ns();
        self.look_at_gate(now_ns)?;
        self.look_at_requests(now_ns)?;
        let Some(live) = &self.live else { return Ok(()) };
        let status = live.job.status();
        self.look_at_events()?;
        self.look_at_ready(status)?;
        if matches!(status, JobStatus::Waiting | JobStatus::Pending) && !self.watch.was_sealed {
            self.watch.was_sealed = true;
            self.check_sealed()?;
        }
        if self.host.forced_ns.is_some_and(|at_ns| now_ns > at_ns + FORCE_NS) {
            return Err(Wrong::new("a job that was cancelled by force was not over within a second"));
        }
        if status.is_over() {
            return self.job_is_over(now_ns);
        }
        if self.host.mended.is_some_and(|at_ns| now_ns > at_ns + END_NS) {
            return Err(Wrong::new(format!(
                "nothing is broken, and the job does not end: {:#?}",
                self.live.as_ref().map(|live| live.job.query())
            )));
        }
        // What failed must be dirty again before anybody else has a turn.
        let errors = self.live.as_ref().map_or(0, |live| live.share.progress().errors);
        let failed = std::mem::replace(&mut self.watch.errors, errors) != errors;
        if failed || self.world.pick(CHUNKS_EVERY) == 0 { self.check_clean(false) } else { Ok(()) }
    }

    /// The gate is closed for `max_pause` at most.
    fn look_at_gate(&mut self, now_ns: u64) -> Result<(), Wrong> {
        let closed = self.drive.gate().is_closed();
        self.watch.held_ns = 0;
        if !closed && self.watch.closed_since.is_none() {
            return Ok(());
        }
        let pending = self.live.as_ref().is_some_and(|live| {
            !live.options.auto_finalize
                && matches!(live.job.status(), JobStatus::Waiting | JobStatus::Pending)
        });
        self.watch.host_decides |= pending;
        let since = *self.watch.closed_since.get_or_insert(now_ns);
        let allowed =
            self.live.as_ref().map_or(self.recipe.options.max_pause, |live| live.share.max_pause.get());
        let before = self.watch.allowed.get_or_insert(allowed);
        *before = before.zip(allowed).map(|(before, now)| before.max(now));
        let most = before.filter(|_| !self.watch.host_decides);
        let held_ns = now_ns - since;
        if !closed {
            (self.watch.closed_since, self.watch.allowed) = (None, None);
            self.watch.held_ns = held_ns;
            self.watch.host_decides = false;
        }
        match most.and_then(|most| u64::try_from(most.as_nanos()).ok()) {
            Some(most_ns) if held_ns > most_ns + PAUSE_SLACK_NS => {
                Err(Wrong::new(format!("guest requests were held for {held_ns} ns, {most_ns} were allowed")))
            }
            _ => Ok(()),
        }
    }

    /// Every guest request completes in bounded time.
    fn look_at_requests(&mut self, now_ns: u64) -> Result<(), Wrong> {
        let waits = self.watch.host_decides || !self.drive.place().device.answers();
        let hangs = |live: &Live| !live.target.answers() || self.recipe.faults[1].stuck > 0;
        let target_is_dead = self.live.as_ref().is_some_and(|live| !live.share.is_ending() && hangs(live));
        if waits || target_is_dead {
            self.watch.excused_ns = now_ns;
        }
        let asked = self.lines.iter().flat_map(|line| line.asked.values().map(|asked| asked.at_ns));
        let oldest = asked.chain(self.tracked.iter().filter_map(|tracked| tracked.oldest_ns())).min();
        match oldest.map(|at_ns| at_ns.max(self.watch.excused_ns)) {
            Some(since) if now_ns > since + REQUEST_NS => {
                Err(Wrong::new("a guest request does not complete"))
            }
            _ => Ok(()),
        }
    }

    /// All is copied and flushed behind the gate.
    pub(super) fn check_sealed(&mut self) -> Result<(), Wrong> {
        let Some(Live { source, target, .. }) = &self.live else { return Ok(()) };
        let differs = source.look(|source| target.look(|target| first_difference(source, target)));
        if let Some(at) = differs {
            return Err(Wrong::new(format!("complete, and yet different at {at}")));
        }
        match target.may_lose() {
            Some(at) => Err(Wrong::new(format!("complete, and a power failure would lose what is at {at}"))),
            None => Ok(()),
        }
    }

    /// Ranges that guests are writing to now.
    pub(super) fn being_written(&self) -> Vec<ByteRange> {
        let asked = self.lines.iter().flat_map(|line| line.asked.values());
        let queued = asked.filter(|asked| changes(asked.wish)).map(|asked| asked.range);
        queued.chain(self.tracked.iter().flat_map(|tracked| tracked.writes())).collect()
    }

    /// A chunk that differs is dirty, ahead of the first pass, or somebody's; with `over`, no worker owns anything.
    pub(super) fn check_clean(&self, over: bool) -> Result<(), Wrong> {
        let Some(Live { share, source, target, .. }) = &self.live else { return Ok(()) };
        if !over && !share.sweep_is_claimed() {
            return Ok(());
        }
        let written = self.being_written();
        let granularity = share.geometry.granularity;
        let excused = |chunk: u64, range: ByteRange| {
            let run = ChunkRange::new(chunk, chunk + 1);
            share.dirty.test(Chunk(chunk))
                || range.start() >= share.sweep.position()
                || (!over && share.writers.copier_in(run))
                || written.iter().any(|other| other.overlaps(range))
        };
        let bytes = self.recipe.bytes;
        let wrong = source.look(|source| {
            target.look(|target| {
                (0..share.dirty.chunks()).find(|&chunk| {
                    let range = granularity.bytes_of(ChunkRange::new(chunk, chunk + 1), bytes);
                    let part = bytes_usize(range.start())..bytes_usize(range.end());
                    source[part.clone()] != target[part] && !excused(chunk, range)
                })
            })
        });
        match wrong {
            Some(chunk) => {
                let run = ChunkRange::new(chunk, chunk + 1);
                let range = granularity.bytes_of(run, bytes);
                let part = bytes_usize(range.start())..bytes_usize(range.end());
                let differs = source.look(|source| {
                    target.look(|target| {
                        let blocks = source[part.clone()].chunks(512).zip(target[part].chunks(512));
                        blocks
                            .map(|(a, b)| format!("{:x} {:x}", word(a), word(b)))
                            .collect::<Vec<_>>()
                            .join(", ")
                    })
                });
                let (copier, guest) = (share.writers.copier_in(run), share.writers.guest_in(run));
                Err(Wrong::new(format!(
                    "chunk {chunk} differs and is said to be clean; a copier's: {copier}, a guest's: {guest}; its blocks on \
                     source and target: {differs}"
                )))
            }
            None => Ok(()),
        }
    }

    /// With nothing under way any more, everything that was promised holds.
    pub(super) fn check_end(&mut self) -> Result<(), Wrong> {
        if self.story.crashed > 0 {
            return Ok(());
        }
        if self.drive.gate().is_closed() || !self.drive.is_quiet(false) {
            return Err(Wrong::new("somebody never left the gate"));
        }
        self.check_recorded()?;
        if self.left.iter().any(|(disk, writes)| disk.writes() != *writes) {
            return Err(Wrong::new("a disk was written after the job that it was part of had completed"));
        }
        if let Some(Neighbour { job, source, target }) = &self.neighbour {
            let end = Crew::outcome(job).map(|outcome| outcome.end);
            if end != Some(End::Completed) || source.content() != target.content() {
                return Err(Wrong::new(format!("another drive's job, which nobody disturbed: {end:?}")));
            }
        }
        let content = self.drive.place().device.content();
        let whole = ByteRange::new(0, self.recipe.bytes);
        self.model
            .check(whole, &content, u64::MAX)
            .map_err(|e| Wrong::new(format!("a write was lost: {e}")))?;
        self.story.requests = self.completed;
        self.story.content =
            content.iter().fold(0, |sum: u64, &byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Ok(())
    }

    /// After a power failure: what was flushed is there.
    pub(super) fn check_crash(&mut self) -> Result<(), Wrong> {
        if self.recipe.faults.iter().any(|faults| faults.flush_error > 0) {
            // What a flush that failed should have covered is lost, and no later one covers it.
            return Ok(());
        }
        let device = Arc::clone(&self.drive.place().device);
        device.crash(&self.world);
        let checked = device.look(|content| self.model.check_after_crash(content));
        checked.map_err(|e| Wrong::new(format!("a power failure lost what was durable: {e}")))
    }
}

/// The first word of a block.
fn word(block: &[u8]) -> u64 {
    block.first_chunk::<8>().map_or(0, |&word| u64::from_le_bytes(word))
}

/// Where two disks begin to differ.
fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b).map(bytes_u64).or(Some(bytes_u64(a.len().min(b.len()))))
}
