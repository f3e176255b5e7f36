//! How a request gets inside: through the gate, to one side or to both.
//!
//! With a pass in hand the drive cannot move to another device, so what is looked up now holds until the request is settled.
//! The job may come, go or change its mode at any moment; what was decided here is only which way the data takes, and
//! what must be marked is decided at the end (`end.rs`).
#![forbid(unsafe_code)]

use super::core::QueueCore;
use super::part::{Data, Part, Work};
use super::phase::{Event, Phase};
use super::request::PartId;
use crate::buffer::BufRange;
use crate::drive::gate::Enter;
use crate::mirror::{ActiveWrite, CopyMode, Mutation, Side};
use crate::ring::Ring;

/// Memory that is aligned to this is aligned enough for every device.
const SAFE_ALIGN_BYTES: u64 = 4096;

/// What a write to both sides is done with.
struct Both {
    /// The right to write to the target.
    active: ActiveWrite,
    /// The stable copy.
    staging: Option<BufRange>,
    /// What the target part does.
    work: Work,
    /// The target's seat.
    seat: usize,
}

impl<D: Send + Sync + std::fmt::Debug + 'static> QueueCore<D> {
    /// Takes the seats that the drive and its job have now, if something changed.
    pub(super) fn follow<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        self.memory.look(&self.drive);
        if self.memory.is_behind() {
            self.memory.follow(ring);
        }
        let generation = self.drive.generation();
        if self.seen == Some(generation) {
            return;
        }
        let (place, follower) = (self.drive.place(), self.drive.follower());
        let followed = self.seats.follow(ring, &place.device, follower);
        // Without a seat for the drive its requests fail, and the next one looks again.
        self.seen = followed.is_ok().then_some(generation);
        self.writable = place.writable;
    }

    /// Lets in what waits for the gate, in order, as far as it is open.
    pub(super) fn admit_all<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        while let Some(&index) = self.entry.front() {
            let pass = match self.drive.gate().enter() {
                Enter::In(pass) => pass,
                // The drive wakes us when it opens.
                Enter::Closed => return,
                // Nobody tells when a pass is given back.
                Enter::Full => return self.retry_in(ring.now_ns()),
            };
            self.entry.pop_front();
            if let Some(request) = self.table.get(index) {
                request.pass = Some(pass);
            }
            // Inside the gate, for a pivot happens only while nobody is.
            self.follow(ring);
            self.admit(ring, index);
        }
    }

    /// Sends a request that is inside on its way.
    fn admit<R: Ring<Device = D>>(&mut self, ring: &mut R, index: u32) {
        if self.is_mutated(Mutation::MarkBefore) {
            self.mark_early(index);
        }
        if let Some(request) = self.table.get(index) {
            request.find_buffer(&self.memory);
        }
        let home = self.seats.home;
        let slot = home.and_then(|seat| Some(self.seats.get(seat)?.slot));
        let only_if_quick = self.table.get(index).is_some_and(|request| request.wish.only_if_quick());
        let refused = only_if_quick && slot.is_some_and(|slot| !ring.zeroes_quickly(slot));
        let both = if refused { None } else { self.begin_active(ring, index) };
        let through =
            slot.is_none_or(|slot| ring.writes_through(slot)) || self.is_mutated(Mutation::TrustWriteThrough);
        let Some(request) = self.table.get(index) else { return };
        debug_assert_eq!(request.phase, Phase::Queued);
        let data = match both.as_ref().and_then(|both| both.staging) {
            Some(copy) => Data::Own(copy),
            None => request.host_data(),
        };
        let source = Part::new(request.wish.on_source(), request.range, data, home);
        request.source = Some(if through { source } else { source.without_write_through() });
        let event = if let Some(Both { active, staging, work, seat }) = both {
            request.active = Some(active);
            request.staging = staging;
            request.target = Some(Part::new(work, request.range, data, Some(seat)));
            request.job_seat = Some(seat);
            self.targets += 1;
            // Once for the part, once for the request, which ends the active write later.
            self.seats.enter(seat);
            self.seats.enter(seat);
            self.ready.push_back(PartId { index, side: Side::Target });
            Event::SentToBoth
        } else {
            Event::SentAlone
        };
        let now_ns = self.now_ns;
        self.happen(index, event, now_ns);
        let id = PartId { index, side: Side::Source };
        let Some(seat) = home else { return self.part_ended(id, Err(libc::EIO), now_ns) };
        self.seats.enter(seat);
        if refused {
            self.part_ended(id, Err(libc::EOPNOTSUPP), now_ns);
        } else {
            self.ready.push_back(id);
        }
    }

    /// In write-blocking mode, claims the range and makes the stable copy; `None`: to the drive alone.
    fn begin_active<R: Ring<Device = D>>(&mut self, ring: &mut R, index: u32) -> Option<Both> {
        let seat = self.seats.target?;
        let follower = self.seats.get(seat)?.follower.as_ref()?;
        let share = &*follower.share;
        if self.targets >= self.options.depth || share.copy_mode() != CopyMode::WriteBlocking {
            return None;
        }
        let request = self.table.get(index)?;
        let work = request.wish.on_target(share.may_punch())?;
        let memory = match request.host_data() {
            Data::Host(memory) => Some(memory),
            Data::Own(_) | Data::None => None,
        };
        let active = share.begin_active(request.range, self.now_ns)?;
        // Zeroes need no memory, and data that stands still no copy, if the target can take it from where it is.
        let align_bytes = share.geometry.align_bytes;
        let stable = self.options.stable_buffers || request.wish.is_stable();
        let Some(memory) = memory.filter(|m| !(stable && m.is_aligned_to(SAFE_ALIGN_BYTES, align_bytes)))
        else {
            return Some(Both { active, staging: None, work, seat });
        };
        let len = u32::try_from(memory.len()).unwrap_or(u32::MAX);
        let Some(staging) = self.window.take(len) else {
            if share.cancel_active(active) {
                follower.home.wake();
            }
            return None;
        };
        ring.stage(memory, staging);
        Some(Both { active, staging: Some(staging), work, seat })
    }

    /// Breaks **Mark after, before the ack**, for the test that shows that it would be noticed.
    fn mark_early(&mut self, index: u32) {
        if let Some(request) = self.table.get(index).filter(|request| request.wish.changes()) {
            request.marked = true;
            let range = request.range;
            self.drive.written(range);
        }
    }
}
