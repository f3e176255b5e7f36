//! A turn of a queue: what is ready goes to the ring, what has completed comes back, and what follows from that goes to the ring
//! again.
#![forbid(unsafe_code)]

use super::core::QueueCore;
use super::part::{Judge, Next};
use super::phase::Phase;
use super::request::PartId;
use crate::error::Result;
use crate::mirror::{Mutation, Side};
use crate::ring::{Completion, Ring, Wait};

/// How soon to try again what finds neither a pass nor room in the ring, should nothing complete before.
const ROOM_NS: u64 = 100_000;
/// How often one turn goes back to the ring for what follows from its completions.
const ROUNDS: usize = 8;
/// What a turn attempts, for errors.
const ATTEMPT: &str = "run a queue";

impl<D: Send + Sync + std::fmt::Debug + 'static> QueueCore<D> {
    /// Sends what can be sent, sleeps as `wait` says, and takes in what has completed.
    ///
    /// # Errors
    /// The ring broke, now or before: every request has completed with an error, and no other is taken. A ring that broke is never
    /// entered again, or it would be given what was queued there before, of requests that are over by now.
    pub(crate) fn turn<R: Ring<Device = D>>(&mut self, ring: &mut R, wait: Wait) -> Result<()> {
        self.turn_by(ring, |_| wait)
    }

    /// The same; sleeps until there are `answers` completions for the host, nothing is under way, or the deadline. It may return
    /// before. One system call sends and sleeps.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub(super) fn turn_for<R: Ring<Device = D>>(
        &mut self,
        ring: &mut R,
        answers: usize,
        deadline_ns: Option<u64>,
    ) -> Result<()> {
        self.turn_by(ring, |queue| match queue.missing(answers) {
            0 => Wait::POLL,
            missing => queue.sleep(missing, deadline_ns, queue.now_ns),
        })
    }

    /// The same; sleeps until something completes, as long as anything is under way.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub(super) fn turn_while_busy<R: Ring<Device = D>>(
        &mut self,
        ring: &mut R,
        deadline_ns: Option<u64>,
    ) -> Result<()> {
        self.turn_by(ring, |queue| match queue.is_busy() {
            false => Wait::POLL,
            true => queue.sleep(1, deadline_ns, queue.now_ns),
        })
    }

    /// How many more completions there must be for `answers` of them, as far as requests are under way.
    pub(super) fn missing(&self, answers: usize) -> usize {
        answers.saturating_sub(self.answers.len()).min(self.in_flight())
    }

    /// A turn. How to sleep is asked after what is sent was sent: that may answer requests without the ring, and then there may be
    /// nothing to sleep for.
    fn turn_by<R: Ring<Device = D>>(&mut self, ring: &mut R, wait: impl FnOnce(&Self) -> Wait) -> Result<()> {
        self.check_ring(ATTEMPT)?;
        self.send(ring);
        let wait = wait(self);
        self.enter(ring, wait)?;
        self.collect(ring);
        // What follows from completions must be in the kernel's hands before a host sleeps on the eventfd alone.
        for _ in 0..ROUNDS {
            self.send(ring);
            if self.unsent == 0 {
                return Ok(());
            }
            self.enter(ring, Wait::POLL)?;
            self.collect(ring);
        }
        self.send(ring);
        self.enter(ring, Wait::POLL)
    }

    /// Sends what can be sent, without sleeping and without looking at completions.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub(crate) fn submit<R: Ring<Device = D>>(&mut self, ring: &mut R) -> Result<()> {
        self.check_ring(ATTEMPT)?;
        self.send(ring);
        self.enter(ring, Wait::POLL)
    }

    /// Everything up to the ring's door.
    pub(super) fn send<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        let now_ns = ring.now_ns();
        self.now_ns = now_ns;
        self.retry_ns = None;
        if !self.entry.is_empty() {
            // Before the look that decides how these are sent; see `drive/in_use.rs`.
            self.memory.settle();
        }
        self.follow(ring);
        self.give_up_targets(now_ns);
        self.take_up_later(now_ns);
        self.admit_all(ring);
        self.push_ready(ring);
        self.seats.tidy(ring);
    }

    /// Passes through the ring's door.
    fn enter<R: Ring<Device = D>>(&mut self, ring: &mut R, wait: Wait) -> Result<()> {
        self.unsent = 0;
        let Err(error) = ring.enter(wait) else { return Ok(()) };
        // What has completed before the ring broke is not lost with it.
        self.collect(ring);
        self.lose_all(error.errno(), ring.now_ns());
        Err(error)
    }

    /// Parts whose time has come are ready.
    fn take_up_later(&mut self, now_ns: u64) {
        let ready = &mut self.ready;
        self.later.retain(|&(at_ns, part)| {
            let wait = at_ns > now_ns;
            if !wait {
                ready.push_back(part);
            }
            wait
        });
    }

    /// Pushes what is ready, each part once: one that finds no room in its device's lane does not hold up the others.
    fn push_ready<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { return };
            let zeroes = self.zeroes;
            if id.side == Side::Target && self.target_is_given_up(id.index) {
                self.part_ended(id, Err(libc::ECANCELED), ring.now_ns());
                continue;
            }
            let Some(part) = self.table.get(id.index).and_then(|request| request.part(id.side)) else {
                continue;
            };
            let Some(seat) = part.seat.and_then(|seat| self.seats.get(seat)) else { continue };
            if ring.push(part.request(seat.slot, zeroes), id.tag()).is_ok() {
                part.in_ring = true;
                self.unsent += 1;
            } else {
                self.ready.push_back(id);
            }
        }
        if !self.ready.is_empty() {
            self.retry_in(ring.now_ns());
        }
    }

    /// Looks again soon, for nothing may come to say that there is room.
    pub(super) fn retry_in(&mut self, now_ns: u64) {
        self.retry_ns = Some(now_ns + ROOM_NS);
    }

    /// Takes in what has completed.
    fn collect<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        let mut now_ns = None;
        while let Some(completion) = ring.pop() {
            let now_ns = *now_ns.get_or_insert_with(|| ring.now_ns());
            self.route(completion, now_ns);
        }
    }

    /// One ring request has ended.
    fn route(&mut self, completion: Completion, now_ns: u64) {
        let id = PartId::of(completion.tag);
        let short_as_whole = self.is_mutated(Mutation::ShortAsWhole);
        let align_bytes = self.drive.align_bytes();
        let Some(request) = self.table.get(id.index) else { return };
        let short_as_whole = short_as_whole && request.wish.changes();
        let Some(part) = request.part(id.side) else { return };
        part.in_ring = false;
        let judge = Judge { align_bytes, now_ns, zeroes: self.zeroes, short_as_whole };
        let next = part.ended(completion.result, &judge);
        // Nobody waits for a late target's rest any more.
        let late = matches!(request.phase, Phase::Late | Phase::Lent);
        match next {
            Next::Again | Next::At(_) if late => self.part_ended(id, Err(libc::ECANCELED), now_ns),
            Next::Again => self.ready.push_back(id),
            Next::At(at_ns) => self.later.push((at_ns, id)),
            Next::Ended(result) => self.part_ended(id, result, now_ns),
        }
    }
}
