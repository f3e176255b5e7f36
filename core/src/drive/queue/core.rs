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
use super::phase::{Event, Phase, step};
use super::request::{PartId, Request, Table, Wish};
use super::seats::Seats;
use super::{GuestCompletion, Rejected};
use crate::buffer::{BufRange, GuestBuffer, Window};
use crate::drive::core::DriveCore;
use crate::drive::gate::Pass;
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{Mutation, Side};
use crate::ring::{Ring, Wait, Wake};
use crate::units::{ByteRange, GIB, KIB};

/// A piece of memory full of zeroes, for devices that cannot zero.
pub(super) const ZEROES_BYTES: u32 = 256 << 10;
/// The most data of one request.
const MAX_DATA_BYTES: u64 = GIB;
/// How long a sleep for several completions lets them gather once there is one. It ends in any case then, for what has completed
/// may be only a step of its request, and what follows must not wait for the others, which may hang.
const BATCH_NS: u64 = 1_000_000;

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
    pub(super) open: usize,
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
    pub(super) unsent: usize,
    /// When it was turned last.
    pub(super) now_ns: u64,
    /// The ring broke with this errno.
    pub(super) broken: Option<i32>,
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
        self.check_ring(wish.attempt())?;
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
        Error::new(ErrorKind::QueueFull, wish.attempt()).because(format!(
            "{depth} requests are under way, or their completions were not taken; take completions first"
        ))
    }

    /// Takes a completion.
    #[inline]
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

    /// What wakes this queue's own thread.
    pub(super) fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker)
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

    /// Why nothing can be done any more, if the ring broke.
    pub(super) fn check_ring(&self, attempt: &'static str) -> Result<()> {
        let why = "its ring broke; make a new queue";
        self.broken.map_or(Ok(()), |errno| Err(Error::from_errno(attempt, errno).because(why)))
    }

    /// Of the requests under way, those that wait because the gate is closed.
    pub(crate) fn held(&self) -> usize {
        if self.drive.gate().is_closed() { self.entry.len() } else { 0 }
    }

    /// Whether a ring request is under way, also one that nobody waits for.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight() > 0 || self.targets > 0
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

    /// The sides of a part, for loops over both.
    pub(super) const SIDES: [Side; 2] = [Side::Source, Side::Target];
}
