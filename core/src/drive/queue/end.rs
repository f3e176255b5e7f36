//! How a request ends: its parts, its mark, its answer.
//!
//! **Mark after, before the ack.** A request that may have changed the drive is marked when its source part has ended, well or
//! not, with its pass still in hand, and before the host can pop its completion. Which job is told does not depend on which
//! job there was when it began: one that attached meanwhile reads the drive as it was before, so it is told too.
//!
//! **The guest is not our hostage.** The completion has the drive's result alone. A target whose job is ending is not waited
//! for; its memory stays taken until its request comes back.
//!
//! A ring that breaks, or a queue that is dropped, takes requests away while the kernel still has them. A write that lands
//! after its mark is a write that no job knows of. So what may still land on the drive is marked, fails the job, and **keeps
//! its pass**: the gate is never quiet, and no job can decide behind it that nothing is dirty, until the kernel has let go;
//! then it is marked once more, for whoever copied meanwhile, and leaves. If that is not seen, it stays for ever.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::GuestCompletion;
use super::core::QueueCore;
use super::part::Part;
use super::phase::{Event, Phase};
use super::request::{PartId, Request, Table};
use crate::drive::follower::Follower;
use crate::error::Error;
use crate::mirror::{Failure, FailureCause, Mutation, Side};
use crate::units::ByteRange;

impl<D: Send + Sync + std::fmt::Debug + 'static> QueueCore<D> {
    /// A part has ended.
    pub(super) fn part_ended(&mut self, id: PartId, result: Result<(), i32>, now_ns: u64) {
        self.close_part(id, result);
        let event = match id.side {
            Side::Source => Event::SourceEnded,
            Side::Target => Event::TargetEnded,
        };
        self.happen(id.index, event, now_ns);
        let left = self.table.get(id.index).is_some_and(|request| request.phase == Phase::TargetLeft);
        if id.side == Side::Source && left && self.target_is_given_up(id.index) {
            self.give_up(id.index, now_ns);
        }
    }

    /// Notes how a part ended and leaves its seat.
    fn close_part(&mut self, id: PartId, result: Result<(), i32>) {
        let Some(part) = self.table.get(id.index).and_then(|request| request.part(id.side)) else { return };
        part.result = part.result.or(Some(result));
        if let Some(seat) = part.seat.take() {
            self.seats.leave(seat);
            self.targets -= usize::from(id.side == Side::Target);
        }
    }

    /// Whether the job of a request's target is ending.
    pub(super) fn target_is_given_up(&mut self, index: u32) -> bool {
        let seat = self.table.get(index).and_then(|request| request.target.as_ref()?.seat);
        let follower = seat.and_then(|seat| self.seats.get(seat)).and_then(|seat| seat.follower.as_ref());
        follower.is_some_and(|follower| follower.share.is_ending())
    }

    /// When a job begins to end, whoever waits for its target alone is let go.
    pub(super) fn give_up_targets(&mut self, now_ns: u64) {
        if self.targets == 0 {
            return;
        }
        let mut some = false;
        for (_, seat) in self.seats.iter_mut() {
            let ending = seat.follower.as_ref().is_some_and(|follower| follower.share.is_ending());
            some |= ending && !seat.given_up;
            seat.given_up |= ending;
        }
        if !some {
            return;
        }
        for index in 0..self.table.places() {
            let left = self.table.get(index).is_some_and(|request| request.phase == Phase::TargetLeft);
            if left && self.target_is_given_up(index) {
                self.give_up(index, now_ns);
            }
        }
    }

    /// Nobody waits for this target part any more.
    fn give_up(&mut self, index: u32, now_ns: u64) {
        let id = PartId { index, side: Side::Target };
        let Some(part) = self.table.get(index).and_then(|request| request.target.as_mut()) else { return };
        if part.in_ring {
            let event = if part.uses_host_memory() { Event::GivenUpLent } else { Event::GivenUp };
            self.happen(index, event, now_ns);
            return;
        }
        self.ready.retain(|&part| part != id);
        self.later.retain(|&(_, part)| part != id);
        self.part_ended(id, Err(libc::ECANCELED), now_ns);
    }

    /// Marks what a request may have changed, and leaves the gate.
    pub(super) fn settle(&mut self, index: u32, now_ns: u64) {
        let unmarked = self.is_mutated(Mutation::FailedWriteUnmarked);
        let Some(request) = self.table.get(index) else { return };
        let (range, source) = (request.range, request.result(Side::Source));
        let (active, pass, seat) = (request.active.take(), request.pass.take(), request.job_seat.take());
        let target = request.result(Side::Target);
        let skip = request.marked || (unmarked && source.is_err());
        let mark = request.wish.changes() && !skip;
        let follower = seat.and_then(|seat| self.seats.get(seat)?.follower.as_ref());
        match (active, follower) {
            (Some(active), Some(follower)) => {
                if follower.share.end_active(active, source, target, now_ns) {
                    follower.home.wake();
                }
                if mark {
                    self.drive.written_beside(range, follower);
                }
            }
            _ if mark => self.drive.written(range),
            _ => {}
        }
        if let Some(seat) = seat {
            self.seats.leave(seat);
        }
        if let Some(pass) = pass {
            let ours = self.drive.leave(pass);
            debug_assert!(ours, "a pass is given back once");
        }
    }

    /// Puts the completion where the host finds it.
    pub(super) fn answer(&mut self, index: u32, now_ns: u64) {
        let Some(request) = self.table.get(index) else { return };
        let result = request.result(Side::Source).map_err(|errno| error(request, errno));
        let lent = request.lends_host_memory();
        let mut buffer = request.buffer.take();
        if lent {
            // Only when the ring broke: the kernel may still use it, so it is never freed, and its region stays in use.
            std::mem::forget(buffer.take());
        } else {
            self.memory.end(&mut request.uses);
        }
        // A failure, and a request that was lost, says nothing about how fast the disk is.
        if result.is_ok() {
            self.drive.record_latency(now_ns.saturating_sub(request.accepted_ns));
        }
        self.answers.push_back(GuestCompletion { tag: request.tag, result, buffer, memory_in_use: lent });
    }

    /// Nothing of a request is left.
    pub(super) fn forget(&mut self, index: u32) {
        let staging = self.table.get(index).and_then(|request| request.staging.take());
        if self.table.remove(index)
            && let Some(staging) = staging
        {
            self.window.give_back(staging);
        }
    }

    /// What was not sent yet completes with an error; it needs no mark.
    pub(super) fn lose_unsent(&mut self) {
        while let Some(index) = self.entry.pop_front() {
            self.lose(index, libc::ECANCELED, self.now_ns);
        }
    }

    /// The ring broke, or the queue ends: every request completes with this error, marked if it may have changed anything. A
    /// write that is in the ring may still land; what follows from that, `lose` does.
    pub(crate) fn lose_all(&mut self, errno: i32, now_ns: u64) {
        self.broken = Some(errno);
        self.entry.clear();
        self.ready.clear();
        self.later.clear();
        self.retry_ns = None;
        for index in 0..self.table.places() {
            self.lose(index, errno, now_ns);
        }
    }

    /// A request will not be completed by its ring any more.
    pub(super) fn lose(&mut self, index: u32, errno: i32, now_ns: u64) {
        let Some(request) = self.table.get(index) else { return };
        let in_ring = |part: &Option<Part>| part.as_ref().is_some_and(|part| part.in_ring);
        let on_source = request.wish.changes() && in_ring(&request.source);
        let on_target = in_ring(&request.target);
        let (range, seat) = (request.range, request.job_seat);
        // The target's write has ended, nobody knows how. That is no error of the target's: its job copies the range again.
        let unknown = request.active.is_some() && !on_target;
        for side in Self::SIDES {
            if let Some(part) = request.part(side) {
                let result = if unknown && side == Side::Target { Ok(()) } else { Err(errno) };
                part.result = part.result.or(Some(result));
            }
        }
        let kept = if on_source { request.pass.take() } else { None };
        let follower = seat.and_then(|seat| self.seats.get(seat)?.follower.as_ref());
        match follower {
            // It may still land on the target, after whatever is copied there next: its job cannot be right any more.
            Some(follower) if on_target => fail(follower, Side::Target, errno, range),
            Some(follower) if unknown && follower.share.guest_wrote(range) => follower.home.wake(),
            _ => {}
        }
        if let (true, Some(follower)) = (on_source, self.drive.follower()) {
            fail(&follower, Side::Source, errno, range);
        }
        self.hung.extend(kept.map(|pass| (range, pass)));
        self.happen(index, Event::Lost, now_ns);
    }

    /// The ring has ended. `over`: the kernel has let go of every request, so nothing lands any more; what nobody knows the
    /// end of is marked, and all leave the gate. Otherwise what was in the ring is treated as if it lands some day.
    pub(crate) fn end(mut self, over: bool) {
        if !over {
            // What the kernel may still use of the host's memory is in use for ever.
            return;
        }
        for (range, pass) in std::mem::take(&mut self.hung) {
            self.drive.written(range);
            let ours = self.drive.leave(pass);
            debug_assert!(ours, "a pass is given back once");
        }
        for index in 0..self.table.places() {
            let Some(request) = self.table.get(index) else { continue };
            for side in Self::SIDES {
                if let Some(part) = request.part(side) {
                    part.in_ring = false;
                }
            }
        }
        self.lose_all(libc::ECANCELED, self.now_ns);
        // Also for those that were lost when the ring broke.
        self.memory.over();
    }
}

/// However a queue ends, what it had in hand is marked. Unless [`QueueCore::end`] said that nothing is left, what is in the ring
/// may still land: those passes are never given back, and memory that the kernel may still use is never freed.
///
/// A queue in which a bug was caught may have anything in its lists. A panic here would be the second one, and the host's end; so
/// it is caught, too, and what was not marked by then keeps its pass and its memory for ever.
impl<D: Send + Sync + std::fmt::Debug + 'static> Drop for QueueCore<D> {
    fn drop(&mut self) {
        let lost = catch_unwind(AssertUnwindSafe(|| self.lose_all(libc::ECANCELED, self.now_ns)));
        if lost.is_err() || !self.table.is_empty() {
            std::mem::forget(std::mem::replace(&mut self.table, Table::new(0)));
        }
    }
}

/// Fails a job that cannot be right any more.
fn fail<D>(follower: &Follower<D>, side: Side, errno: i32, range: ByteRange) {
    if !follower.share.is_ending() {
        follower.share.fail(Failure { side, errno, range, cause: FailureCause::QueueLost });
        follower.home.wake();
    }
}

/// The error that the host is told.
fn error(request: &Request, errno: i32) -> Error {
    let error = Error::from_errno(request.wish.attempt(), errno);
    if request.range.is_empty() { error } else { error.in_range(request.range) }
}
