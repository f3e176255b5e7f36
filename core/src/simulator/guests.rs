//! The guests that ask on queues: host threads with a queue each.
//!
//! Every request is told to the model before it is sent and after its completion was taken, so the model's order is what a
//! guest can know.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model::{BLOCK, fill};
use super::simulation::{Simulation, Wrong};
use crate::buffer::{AlignedBuf, GuestBuffer};
use crate::drive::DriveCore;
use crate::drive::queue::{QueueCore, QueueOptions, Wish, WriteFlags, ZeroFlags};
use crate::error::ErrorKind;
use crate::ring::Ring;
use crate::ring::sim::{SimDisk, SimRing, World};
use crate::units::{ByteRange, bytes_usize};

/// Memory that a queue needs for itself.
const ZEROES_BYTES: usize = 256 << 10;

/// What was asked on a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// What.
    pub(super) wish: Wish,
    /// Where.
    pub(super) range: ByteRange,
    /// When, by the model's clock.
    pub(super) since: u64,
    /// When, in virtual time.
    pub(super) at_ns: u64,
    /// Which devices had errors then.
    pub(super) may_fail: bool,
}

/// A host thread with a queue.
#[derive(Debug)]
pub(super) struct Line {
    /// The queue.
    core: QueueCore<SimDisk>,
    /// Its ring.
    ring: SimRing,
    /// What is under way.
    pub(super) asked: BTreeMap<u64, Asked>,
    /// When the guest asks again.
    pub(super) next_ns: u64,
}

impl Line {
    /// A queue of a drive.
    pub(super) fn new(
        world: &Arc<World>,
        drive: &Arc<DriveCore<SimDisk>>,
        plan: &super::recipe::GuestPlan,
    ) -> Result<Self, Wrong> {
        let options = QueueOptions {
            depth: plan.depth,
            staging_bytes: plan.staging_bytes,
            eventfd: false,
            stable_buffers: plan.stable_buffers,
            ..QueueOptions::default()
        };
        let mut ring = SimRing::new(world, ZEROES_BYTES + bytes_usize(plan.staging_bytes));
        let core =
            QueueCore::new(Arc::clone(drive), options, &mut ring).map_err(|e| Wrong::new(e.to_string()))?;
        Ok(Self { core, ring, asked: BTreeMap::new(), next_ns: 0 })
    }

    /// When it has something to do beside what the guest asks.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.ring.due_ns().into_iter().chain(self.core.due_ns()).min()
    }

    /// Whether nothing is under way, also nothing that nobody waits for.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.core.in_flight() == 0
    }
}

impl Simulation {
    /// A range of blocks: often near the start, sometimes the tail.
    pub(super) fn range(&self) -> ByteRange {
        let plan = &self.recipe.guests;
        let len = (self.world.pick(plan.blocks) + 1) * BLOCK;
        let len = if self.chance(30) { len.next_multiple_of(4096) } else { len }.min(self.recipe.bytes);
        let last = self.recipe.bytes - len;
        let start = if self.chance(plan.hot_percent) {
            let first = self.recipe.bytes * plan.hot_at_percent / 100 / 4096 * 4096;
            first + self.world.pick((2 * self.recipe.granularity.bytes()).max(32 << 10) / BLOCK) * BLOCK
        } else {
            self.world.pick(self.recipe.bytes / BLOCK) * BLOCK
        };
        let start = if self.chance(40) { start - start % 4096 } else { start };
        ByteRange::at(if self.chance(8) { last } else { start.min(last) }, len)
    }

    /// What the guest wants.
    pub(super) fn wish(&self) -> Wish {
        let fua = self.chance(15);
        if !self.chance(self.recipe.guests.write_percent) {
            return if self.chance(30) { Wish::Flush } else { Wish::Read };
        }
        if !self.chance(self.recipe.guests.zero_percent) {
            return Wish::Write(WriteFlags { fua, ..WriteFlags::default() });
        }
        if self.chance(50) {
            Wish::Discard
        } else {
            Wish::WriteZeroes(ZeroFlags { punch: self.chance(50), fua, ..ZeroFlags::default() })
        }
    }

    /// When a guest that asked now asks again.
    pub(super) fn next_ask_ns(&self) -> u64 {
        let burst = self.chance(30);
        self.world.now_ns() + if burst { 0 } else { self.world.pick(2 * self.recipe.guests.think_ns) + 1 }
    }

    /// The guest of a queue asks for something.
    pub(super) fn ask(&mut self, line: usize) -> Result<(), Wrong> {
        self.lines[line].next_ns = self.next_ask_ns();
        let (wish, range) = (self.wish(), self.range());
        let range = if wish == Wish::Flush { ByteRange::default() } else { range };
        let tag = self.next_tag();
        let data = matches!(wish, Wish::Read | Wish::Write(_));
        let buffer = data.then(|| AlignedBuf::new(bytes_usize(range.len()), bytes_usize(BLOCK))).transpose();
        let buffer = buffer.map_err(|e| Wrong::new(e.to_string()))?.map(|mut buffer| {
            fill(&mut buffer, tag);
            GuestBuffer::from(buffer)
        });
        let at_ns = self.world.now_ns();
        match self.lines[line].core.accept(wish, range, buffer, tag, at_ns) {
            Ok(()) => {}
            // The one thing that a guest which asks for nothing wrong can be told: it has asked for enough.
            Err(rejected) if rejected.error.kind() == ErrorKind::QueueFull => {
                let Line { asked, .. } = &self.lines[line];
                return match asked.len() >= self.recipe.guests.depth {
                    true => Ok(()),
                    false => Err(Wrong::new(format!("full with {} requests: {rejected}", asked.len()))),
                };
            }
            Err(rejected) => {
                return Err(Wrong::new(format!("{wish:?} of {range:?} was refused: {rejected}")));
            }
        }
        self.asked += 1;
        let since = self.model.tick();
        if changes(wish) {
            self.model.sent(range, tag, if matches!(wish, Wish::Write(_)) { tag } else { 0 });
        }
        let may_fail = self.errors_possible;
        let Line { asked, ring, .. } = &mut self.lines[line];
        asked.insert(tag, Asked { wish, range, since, at_ns, may_fail });
        ring.waker().wake();
        Ok(())
    }

    /// Turns a queue and takes what it has completed.
    pub(super) fn turn_line(&mut self, line: usize) -> Result<(), Wrong> {
        let Line { core, ring, .. } = &mut self.lines[line];
        let wait = core.sleep(1, None, ring.now_ns());
        core.turn(ring, wait).map_err(|e| Wrong::new(e.to_string()))?;
        while let Some(done) = self.lines[line].core.pop() {
            let Some(asked) = self.lines[line].asked.remove(&done.tag) else {
                return Err(Wrong::new(format!("request {} was completed a second time", done.tag)));
            };
            if matches!(asked.wish, Wish::Read | Wish::Write(_)) != done.buffer.is_some() {
                return Err(Wrong::new(format!("request {} lost its buffer", done.tag)));
            }
            let whole = done.result.is_ok();
            if let (Err(e), false) = (&done.result, asked.may_fail || self.errors_possible) {
                return Err(Wrong::new(format!("{:?} failed on a disk without errors: {e}", asked.wish)));
            }
            self.completed += 1;
            self.asked_write_ended(asked.wish, asked.range, asked.since)?;
            match asked.wish {
                Wish::Read if whole => {
                    let data = done.buffer.and_then(GuestBuffer::into_aligned);
                    let data = data.ok_or_else(|| Wrong::new("a buffer came back as another"))?;
                    let seen = self.model.check(asked.range, &data, asked.since);
                    seen.map_err(|e| Wrong::new(format!("request {} read wrongly: {e}", done.tag)))?;
                }
                Wish::Flush if whole => self.model.flushed(asked.since),
                // A discard may have no effect, so it leaves what was there possible.
                Wish::Discard => self.model.ended(asked.range, done.tag, false, false),
                Wish::Write(WriteFlags { fua, .. }) | Wish::WriteZeroes(ZeroFlags { fua, .. }) => {
                    self.model.ended(asked.range, done.tag, whole, whole && fua);
                }
                Wish::Read | Wish::Flush => {}
            }
        }
        Ok(())
    }

    /// The host drops a queue with whatever is under way on it, and makes another one.
    pub(super) fn drop_queue(&mut self) -> Result<(), Wrong> {
        let Some(first) = self.lines.first_mut() else { return Ok(()) };
        let new = Line::new(&self.world, &self.drive, &self.recipe.guests)?;
        let old = std::mem::replace(first, new);
        let Line { core, ring, asked, next_ns } = old;
        first.next_ns = next_ns;
        // What was under way ends as it is now: nothing of it lands after this.
        drop(ring);
        core.end(true);
        for (tag, asked) in asked.into_iter().filter(|(_, asked)| changes(asked.wish)) {
            // Nobody will hear of it, and it may have done anything.
            self.model.ended(asked.range, tag, false, false);
        }
        self.check_recorded()
    }
}

/// Whether a request may change the drive.
pub(super) fn changes(wish: Wish) -> bool {
    matches!(wish, Wish::Write(_) | Wish::WriteZeroes(_) | Wish::Discard)
}
