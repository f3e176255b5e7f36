//! The logic of a queue, over any ring.
//!
//! ```text
//! accept -> entry --gate open--> admit -> parts -> ready --push--> ring --pop--> Part::ended -+-> ready, later
//!                                                                                             +-> Event -> phase::step
//!                                                                                                          settle, answer
//! ```
//!
//! `entry` holds what was accepted and is not inside the gate, in order; while the gate is closed it waits there. `ready` holds
//! parts whose next ring request can be pushed, `later` those that wait a moment after a passing error. All lists have
//! room for everything that the table can hold from the start (**Every buffer has a bound**).
//!
//! It reads no clock and starts no thread: time comes from the ring, so the simulation turns the same code.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::memory::HostBuffers;
use super::options::QueueOptions;
use super::part::{Judge, Next};
use super::phase::{Event, Phase, step};
use super::request::{PartId, Request, Table, Wish};
use super::seats::Seats;
use super::{GuestCompletion, Rejected};
use crate::buffer::{BufRange, GuestBuffer, Window};
use crate::drive::core::DriveCore;
use crate::drive::gate::Pass;
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{Mutation, Side};
use crate::ring::{Completion, Ring, Wait, Wake};
use crate::units::{ByteRange, GIB, KIB};

/// A piece of memory full of zeroes, for devices that cannot zero.
pub(super) const ZEROES_BYTES: u32 = 256 << 10;
/// The most data of one request.
const MAX_DATA_BYTES: u64 = GIB;
/// How soon to try again what finds neither a pass nor room in the ring, should nothing complete before.
const ROOM_NS: u64 = 100_000;
/// How long a sleep for several completions lets them gather once there is one. It ends in any case then, for what has completed may be
/// only a step of its request, and what follows must not wait for the others, which may hang.
const BATCH_NS: u64 = 1_000_000;
/// How often one turn goes back to the ring for what follows from its completions.
const ROUNDS: usize = 8;

/// A queue without its ring.
#[derive(Debug)]
pub(crate) struct QueueCore<D: Send + Sync + std::fmt::Debug + 'static> {
    /// The drive.
    pub(super) drive: Arc<DriveCore<D>>,
    /// What the host chose.
    pub(super) options: QueueOptions,
    /// All requests.
    pub(super) table: Table,
    /// Accepted, not inside the gate.
    pub(super) entry: VecDeque<u32>,
    /// Parts to push.
    pub(super) ready: VecDeque<PartId>,
    /// Parts to push at a time.
    pub(super) later: Vec<(u64, PartId)>,
    /// For the host.
    pub(super) answers: VecDeque<GuestCompletion>,
    /// Accepted and not popped.
    open: usize,
    /// Target parts that have not ended, late ones too.
    pub(super) targets: usize,
    /// What the address of the host's memory must be a multiple of.
    pub(super) memory_align_bytes: u64,
    /// Whether the drive's device takes writes.
    pub(super) writable: bool,
    /// Devices on the ring.
    pub(super) seats: Seats<D>,
    /// The drive's generation that the seats follow; `None` = look again.
    pub(super) seen: Option<u64>,
    /// The host's registered memory on the ring.
    pub(super) memory: HostBuffers,
    /// Memory for stable copies.
    pub(super) window: Window,
    /// Memory that is zero for ever.
    pub(super) zeroes: BufRange,
    /// When to look again although nothing completes.
    pub(super) retry_ns: Option<u64>,
    /// Pushed since the ring was entered.
    unsent: usize,
    /// When it was turned last.
    pub(super) now_ns: u64,
    /// The ring broke with this errno.
    broken: Option<i32>,
    /// Writes that may still land on the drive although their requests are over, because the ring broke: their passes stay
    /// inside until the kernel has let go.
    pub(super) hung: Vec<(ByteRange, Pass)>,
    /// Wakes the ring's thread; the drive holds it weakly.
    waker: Arc<dyn Wake>,
}

impl<D: Send + Sync + std::fmt::Debug + 'static> QueueCore<D> {
    /// A queue of `drive` over `ring`, which must be the one that every later call is given.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the ring has too little memory for a piece of zeroes.
    pub(crate) fn new<R: Ring<Device = D>>(
        drive: Arc<DriveCore<D>>,
        options: QueueOptions,
        ring: &mut R,
    ) -> Result<Self> {
        options.check()?;
        let mut window = Window::new(ring.memory_bytes());
        let zeroes = window.take(ZEROES_BYTES).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "make a queue")
                .because(format!("its ring has less than {} KiB of memory", u64::from(ZEROES_BYTES) / KIB))
        })?;
        ring.fill_zero(zeroes);
        let waker = ring.waker();
        drive.add_waker(&waker);
        let memory = HostBuffers::new(&drive, options.regions);
        let (parts, align_bytes) = (options.depth * 4, drive.align_bytes());
        let mut queue = Self {
            drive,
            options,
            table: Table::new(options.depth * 2),
            entry: VecDeque::with_capacity(options.depth),
            ready: VecDeque::with_capacity(parts),
            later: Vec::with_capacity(parts),
            answers: VecDeque::with_capacity(options.depth),
            open: 0,
            targets: 0,
            memory_align_bytes: align_bytes,
            writable: false,
            seats: Seats::new(),
            seen: None,
            memory,
            window,
            zeroes,
            retry_ns: None,
            unsent: 0,
            now_ns: ring.now_ns(),
            broken: None,
            hung: Vec::with_capacity(options.depth * 2),
            waker,
        };
        queue.follow(ring);
        Ok(queue)
    }

    // ---- the host's side ----

    /// Takes a request, or says why not. It is sent by the next [`turn`](Self::turn) or [`send`](Self::send).
    pub(crate) fn accept(
        &mut self,
        wish: Wish,
        range: ByteRange,
        buffer: Option<GuestBuffer>,
        tag: u64,
        now_ns: u64,
    ) -> std::result::Result<(), Rejected> {
        if let Err(error) = self.check(wish, range, buffer.as_ref()) {
            return Err(Rejected { error, buffer });
        }
        let memory = buffer.as_ref().map(GuestBuffer::memory);
        match self.table.insert(Request::new(wish, range, buffer, tag, now_ns)) {
            Ok(index) => {
                self.memory.look(&self.drive);
                if let (Some(memory), Some(request)) = (memory, self.table.get(index)) {
                    request.uses = self.memory.begin(memory);
                }
                self.entry.push_back(index);
                self.open += 1;
                Ok(())
            }
            Err(request) => Err(Rejected { error: self.full(wish), buffer: request.buffer }),
        }
    }

    /// Why a request cannot be taken.
    fn check(&self, wish: Wish, range: ByteRange, buffer: Option<&GuestBuffer>) -> Result<()> {
        let refuse = |kind, why: String| Err(Error::new(kind, wish.attempt()).in_range(range).because(why));
        if let Some(errno) = self.broken {
            let why = "its ring broke; make a new queue";
            return Err(Error::from_errno(wish.attempt(), errno).because(why));
        }
        if self.open >= self.options.depth {
            return Err(self.full(wish));
        }
        if wish == Wish::Flush {
            return Ok(());
        }
        let (size, align) = (self.drive.size_bytes(), self.drive.align_bytes());
        if range.is_empty() {
            return refuse(ErrorKind::InvalidArgument, "it is empty".to_owned());
        }
        if range.end() > size {
            return refuse(ErrorKind::InvalidArgument, format!("the drive ends at {size} bytes"));
        }
        if !range.start().is_multiple_of(align) || !range.len().is_multiple_of(align) {
            let why = format!("offset and length must be multiples of {align} bytes, the drive's alignment");
            return refuse(ErrorKind::InvalidArgument, why);
        }
        if wish.changes() && !self.writable {
            let why = "the drive's device was opened read-only; open it as a disk";
            return refuse(ErrorKind::PermissionDenied, why.to_owned());
        }
        if wish.has_data() && buffer.map(GuestBuffer::len) != Some(range.len()) {
            return refuse(ErrorKind::InvalidArgument, "its buffer has another length".to_owned());
        }
        if range.len() > MAX_DATA_BYTES && wish.has_data() {
            return refuse(
                ErrorKind::InvalidArgument,
                format!("send at most {MAX_DATA_BYTES} bytes at once"),
            );
        }
        let memory_align = self.memory_align_bytes;
        if buffer.is_some_and(|buffer| !buffer.memory().is_aligned_to(memory_align, align)) {
            let why = format!(
                "every piece of its memory must start at a multiple of {memory_align} bytes and be a multiple of \
                 {align} bytes long"
            );
            return refuse(ErrorKind::InvalidArgument, why);
        }
        Ok(())
    }

    /// The error for one request too many.
    fn full(&self, wish: Wish) -> Error {
        let depth = self.options.depth;
        Error::new(ErrorKind::QueueFull, wish.attempt())
            .because(format!("{depth} requests are under way or wait to be popped; pop completions first"))
    }

    /// Takes a completion.
    pub(crate) fn pop(&mut self) -> Option<GuestCompletion> {
        let answer = self.answers.pop_front()?;
        self.open -= 1;
        Some(answer)
    }

    /// Requests that were accepted and have not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.open - self.answers.len()
    }

    /// Completions that wait to be popped.
    pub(crate) fn answers(&self) -> usize {
        self.answers.len()
    }

    /// When it wants to be turned although nothing completes and nobody wakes it.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        self.later.iter().map(|&(at_ns, _)| at_ns).chain(self.retry_ns).min()
    }

    /// How to sleep from `now_ns` on, until so many completions are there, something else happens, or the deadline.
    pub(crate) fn sleep(&self, completions: usize, deadline_ns: Option<u64>, now_ns: u64) -> Wait {
        let until_ns = self.due_ns().into_iter().chain(deadline_ns).min();
        let timeout_ns = until_ns.map(|at_ns| at_ns.saturating_sub(now_ns));
        Wait { completions, batch_ns: BATCH_NS, timeout_ns }
    }

    /// Wakes this queue's own thread, so that its eventfd is readable.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// A host that sleeps on the eventfd alone must come back when something is due: nothing else says that it is time.
    pub(super) fn call_back(&self) {
        if self.due_ns().is_some() {
            self.wake();
        }
    }

    /// Whether the ring broke.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Whether a ring request is under way, also one that nobody waits for.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight() > 0 || self.targets > 0
    }

    // ---- turning ----

    /// Sends what can be sent, sleeps as `wait` says, and takes in what has completed.
    ///
    /// # Errors
    /// The ring broke: every request has completed with an error, and no other is taken.
    pub(crate) fn turn<R: Ring<Device = D>>(&mut self, ring: &mut R, wait: Wait) -> Result<()> {
        self.send(ring);
        self.turn_sent(ring, wait)
    }

    /// The same; sleeps until there are `answers` completions for the host, nothing is under way, or the deadline. It may return before.
    /// One system call sends and sleeps.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub(super) fn turn_for<R: Ring<Device = D>>(
        &mut self,
        ring: &mut R,
        answers: usize,
        deadline_ns: Option<u64>,
    ) -> Result<()> {
        self.send(ring);
        let wait = match self.missing(answers) {
            0 => Wait::POLL,
            missing => self.sleep(missing, deadline_ns, self.now_ns),
        };
        self.turn_sent(ring, wait)
    }

    /// How many more completions there must be for `answers` of them, as far as requests are under way.
    pub(super) fn missing(&self, answers: usize) -> usize {
        answers.saturating_sub(self.answers.len()).min(self.in_flight())
    }

    /// A turn without the sending.
    fn turn_sent<R: Ring<Device = D>>(&mut self, ring: &mut R, wait: Wait) -> Result<()> {
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
        self.send(ring);
        self.enter(ring, Wait::POLL)
    }

    /// Everything up to the ring's door.
    fn send<R: Ring<Device = D>>(&mut self, ring: &mut R) {
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

    /// Whether the protocol is broken on purpose in this way.
    pub(super) fn is_mutated(&self, mutation: Mutation) -> bool {
        let seat = self.seats.target.and_then(|seat| self.seats.get(seat));
        seat.and_then(|seat| seat.follower.as_ref()).is_some_and(|f| f.share.is_mutated(mutation))
    }

    /// An event happened to a request: does what the table says.
    pub(super) fn happen(&mut self, index: u32, event: Event, now_ns: u64) {
        let Some(request) = self.table.get(index) else { return };
        let Some(step) = step(request.phase, event) else {
            debug_assert!(false, "{event:?} in {:?}", request.phase);
            return;
        };
        request.phase = step.phase;
        if step.settle {
            self.settle(index, now_ns);
        }
        if step.answer {
            self.answer(index, now_ns);
        }
        if step.phase == Phase::Over {
            self.forget(index);
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

    /// The sides of a part, for loops over both.
    pub(super) const SIDES: [Side; 2] = [Side::Source, Side::Target];
}

/// However a queue ends, what it had in hand is marked. Unless [`QueueCore::end`] said that nothing is left, what is in the ring
/// may still land: those passes are never given back, and memory that the kernel may still use is never freed.
impl<D: Send + Sync + std::fmt::Debug + 'static> Drop for QueueCore<D> {
    fn drop(&mut self) {
        self.lose_all(libc::ECANCELED, self.now_ns);
    }
}
