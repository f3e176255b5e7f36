//! A worker: the loop that runs the copiers of all its jobs over its ring.
//!
//! The loop knows neither io_uring nor threads: it is written against [`Ring`], so the simulation turns the same loop.
//!
//! ```text
//! turn:  mailbox -> parts        every part: Copier::next until it waits      -> requests to the ring
//!        home parts: Coordinator::look                                        -> flush, verdict
//!        Ring::enter (sleeps)    completions -> the part and piece of their tag
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::courtesy::Courtesy;
use super::home::Home;
use super::job::JobCore;
use crate::buffer::Window;
use crate::device::{Extent, ExtentKind};
use crate::error::Result;
use crate::mirror::{Act, Copier, Failure, FailureCause, SEAT_BYTES, Side, Step};
use crate::ring::{Completion, DeviceSlot, Op, Request, Ring, Tag, Wait, monotonic_ns};
use crate::units::ByteRange;

/// Jobs that a worker carries at most; each takes two device slots of the ring.
pub(super) const MAX_PARTS: u32 = 64;
/// The key of a flush; pieces have small keys.
const FLUSH_KEY: u32 = u32::MAX;
/// The key of a question for block status; there is one at a time.
const STATUS_KEY: u32 = u32::MAX - 1;
/// Completions that are waited for at once at most.
const BATCH: usize = 32;
/// How long a batch may take to gather once there is one completion.
const BATCH_NS: u64 = 1_000_000;

/// Requests of the ring that are kept for jobs with nothing in flight, so that those whose requests do not come back leave the
/// others a way to go on: a piece and a flush for each. A quarter of the ring where that is less.
const KEPT: usize = 2 * MAX_PARTS as usize;

/// When the ring has no room, the wait until it is tried again, should nothing complete before.
const ROOM_NS: u64 = 1_000_000;
/// When the engine ends, how long a job that is over may keep its worker for requests that do not come back. Short: a cancelled
/// job has waited half a second for them already, and the end of the ring waits once more; together that stays below a second.
const ORPHAN_NS: u64 = 100_000_000;

/// What comes to a worker: its part of a job. The engine ends it by closing the mailbox.
pub(super) type Mail<D> = Box<Part<D>>;

/// One worker's part of a job.
#[derive(Debug)]
pub(super) struct Part<D> {
    /// What the workers of the job share.
    core: Arc<JobCore>,
    /// Which part; 0 is the home's.
    number: usize,
    /// Source and target; closed before the job is said to be over.
    devices: Option<[Arc<D>; 2]>,
    /// Where they are on the ring, once attached.
    slots: [DeviceSlot; 2],
    /// The logic; `None` until the part is taken up, and after a panic.
    copier: Option<Copier>,
    /// The job's course, at home.
    home: Option<Box<Home<D>>>,
    /// Requests of this part in the ring.
    in_flight: usize,
    /// When to look at it again if nothing happens.
    due_ns: Option<u64>,
    /// A panic was caught; memory that the copier held is not known any more.
    broken: bool,
}

impl<D> Part<D> {
    /// A part that was not taken up yet.
    pub(super) fn new(
        core: Arc<JobCore>,
        number: usize,
        devices: [Arc<D>; 2],
        home: Option<Box<Home<D>>>,
    ) -> Self {
        Self {
            core,
            number,
            devices: Some(devices),
            slots: [DeviceSlot(0); 2],
            copier: None,
            home,
            in_flight: 0,
            due_ns: None,
            broken: false,
        }
    }

    /// Fails the job from outside the logic.
    fn fail(&self, cause: FailureCause, errno: i32) {
        self.core.share.fail(Failure { side: Side::Source, errno, range: ByteRange::default(), cause });
        self.core.wake_all();
    }

    /// A panic was caught: the job fails. If even its end panics, it ends without a look.
    fn panicked(&mut self, now_ns: u64) {
        self.fail(FailureCause::Panic, libc::ENOTRECOVERABLE);
        if let (true, Some(home)) = (std::mem::replace(&mut self.broken, true), &mut self.home) {
            home.give_up(&self.core, now_ns);
        }
        self.due_ns = Some(now_ns);
    }

    /// Sends what the copier has to send.
    fn pump<R: Ring<Device = D>>(&mut self, ring: &mut R, window: &mut Window, id: usize) {
        let Some(copier) = &mut self.copier else { return };
        let most = ring.capacity() - KEPT.min(ring.capacity() / 4);
        self.due_ns = loop {
            match copier.next(ring.now_ns(), window) {
                Step::Request(request, key) => {
                    let crowded = self.in_flight > 0 && ring.in_flight() >= most;
                    if crowded || ring.push(request, tag(id, key)).is_err() {
                        copier.push_back(&request, key);
                        break Some(ring.now_ns() + ROOM_NS);
                    }
                    self.in_flight += 1;
                }
                Step::Status { offset, live } => {
                    let known = match &self.core.extents {
                        Some(map) if !live => Some(Ok(map.status(offset))),
                        Some(_) => {
                            let range = ByteRange::new(offset, u64::MAX);
                            Some(Ok(Extent { range, kind: ExtentKind::Data }))
                        }
                        None => ring.status_at_once(self.slots[0], offset),
                    };
                    let (range, op) = (ByteRange::at(offset, 0), Op::Status);
                    let question = Request { device: self.slots[0], range, op };
                    match known {
                        Some(status) => copier.learn(status.ok()),
                        None if ring.push(question, tag(id, STATUS_KEY)).is_ok() => self.in_flight += 1,
                        None => {
                            copier.not_asked();
                            break Some(ring.now_ns() + ROOM_NS);
                        }
                    }
                }
                Step::Wait(at) => break at,
            }
        };
        if self.number != 0 && (copier.take_counted_out() || self.core.share.has_notices()) {
            self.core.wake_home();
        }
    }

    /// At home: takes stock, and does what the coordinator decides.
    fn coordinate<R: Ring<Device = D>>(&mut self, ring: &mut R, id: usize) {
        let Some(home) = &mut self.home else { return };
        let core = &self.core;
        home.take_stock(core, ring.now_ns());
        home.tell_queues(core);
        // What has failed comes before what it leads to, and makes room for it.
        core.tell_notices();
        loop {
            let now_ns = ring.now_ns();
            let quiet = home.gate_is_quiet(core, now_ns);
            let sight = home.follow.sight(core.share.unfinished_bytes(), now_ns, quiet);
            let act = home.coordinator.look(&core.share, &sight);
            if act == Act::Flush {
                let request = Request { device: self.slots[1], range: ByteRange::default(), op: Op::Flush };
                if ring.push(request, tag(id, FLUSH_KEY)).is_ok() {
                    self.in_flight += 1;
                    home.follow.flush_sent(now_ns);
                } else {
                    home.coordinator.not_sent(now_ns);
                }
            } else if act == Act::Rest {
                break;
            } else if !home.carry_out(act, core, now_ns) {
                let (side, range) = (Side::Target, ByteRange::default());
                core.share.fail(Failure { side, errno: libc::EPERM, range, cause: FailureCause::Panic });
            }
        }
        core.tell_notices();
        let now_ns = ring.now_ns();
        let rest = home.follow.rest_until_ns(&core.share, now_ns);
        let deadline = home.coordinator.deadline_ns(now_ns);
        self.due_ns = rest.into_iter().chain(deadline).chain(self.due_ns).min();
    }

    /// A request of this part has ended.
    fn complete<R: Ring<Device = D>>(
        &mut self,
        ring: &R,
        window: &mut Window,
        key: u32,
        completion: Completion,
    ) {
        self.in_flight -= 1;
        let now_ns = ring.now_ns();
        if key == FLUSH_KEY {
            if let Some(home) = &mut self.home {
                home.follow.flush_ended(&self.core.share, now_ns);
                let sight = home.follow.sight(self.core.share.unfinished_bytes(), now_ns, false);
                home.coordinator.flushed(completion.result.map(drop), &self.core.share, &sight);
            }
            return;
        }
        let (Some(copier), false) = (&mut self.copier, self.broken) else { return };
        if key == STATUS_KEY {
            copier.learn(completion.extent);
        } else {
            copier.complete(key, completion.result, now_ns, window, &|buf| ring.is_zero(buf));
        }
    }

    /// Whether it waits for block status. Once the job is over nobody does.
    fn is_asking(&self) -> bool {
        self.copier.as_ref().is_some_and(Copier::is_asking) && !self.core.is_over()
    }

    /// Whether nothing of it is left to do here.
    fn is_done(&self) -> bool {
        self.core.is_over()
            && self.in_flight == 0
            && self.copier.as_ref().is_none_or(|c| self.broken || c.is_idle())
    }
}

/// However a part ends, well, by an error of the ring, in a mailbox that nobody reads any more, or in a panic: what it had
/// in hand is dirty, its devices are closed, and whoever waits for the job hears of it.
impl<D> Drop for Part<D> {
    fn drop(&mut self) {
        let over = self.core.is_over();
        if !over {
            // The first failure is kept, so this one only speaks when nothing else did.
            self.fail(FailureCause::Ring, libc::ECANCELED);
        }
        if let Some(copier) = &mut self.copier {
            // Logic that broke once may break again; the host must hear of the end all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| copier.lose()));
        }
        self.devices = None;
        if let Some(mut home) = self.home.take()
            && !over
        {
            home.give_up(&self.core, monotonic_ns());
        }
        // The home had the target open, too. Whoever hears that the last part has left may open it at once.
        self.core.part_left();
    }
}

/// Which part and piece a completion belongs to.
fn tag(id: usize, key: u32) -> Tag {
    Tag((id as u64) << 32 | u64::from(key))
}

/// A worker.
#[derive(Debug)]
pub(super) struct Worker<D> {
    /// From the engine.
    mailbox: Receiver<Mail<D>>,
    /// The copy memory.
    window: Window,
    /// Parts of jobs, by the upper half of their tags.
    parts: Vec<Option<Box<Part<D>>>>,
    /// Which part is turned first.
    first: usize,
    /// Whether the engine is ending.
    ending: bool,
    /// How it makes room for a guest on the processor, where it may.
    courtesy: Option<Courtesy>,
}

impl<D: Send + Sync + std::fmt::Debug + 'static> Worker<D> {
    /// A worker for `ring`.
    pub(super) fn new<R: Ring<Device = D>>(ring: &R, mailbox: Receiver<Mail<D>>) -> Self {
        let parts = (0..MAX_PARTS).map(|_| None).collect();
        Self {
            mailbox,
            window: Window::with_seats(ring.memory_bytes(), MAX_PARTS, SEAT_BYTES),
            parts,
            first: 0,
            ending: false,
            courtesy: None,
        }
    }

    /// The same worker, which stands back from its core when it is to make room for a guest.
    pub(super) fn with_courtesy(self, courtesy: Option<Courtesy>) -> Self {
        Self { courtesy, ..self }
    }

    /// Bytes of the window in use.
    #[cfg(test)]
    pub(super) fn window_used_bytes(&self) -> u32 {
        self.window.used_bytes()
    }

    /// Turns until the engine ends and every job is over.
    pub(super) fn run<R: Ring<Device = D>>(mut self, ring: &mut R) {
        while self.turn(ring) {}
    }

    /// One turn; `false` when there will be no more.
    pub(super) fn turn<R: Ring<Device = D>>(&mut self, ring: &mut R) -> bool {
        self.read_mail(ring);
        // The first comes another time: what one job gives back of the window, another may take.
        self.first = (self.first + 1) % self.parts.len();
        for id in (self.first..self.parts.len()).chain(0..self.first) {
            self.turn_part(ring, id);
        }
        if self.ending && self.parts.iter().all(Option::is_none) {
            return false;
        }
        if let Err(e) = self.sleep(ring) {
            self.ring_broke(e.errno());
            return false;
        }
        while let Some(completion) = ring.pop() {
            self.route(ring, completion);
        }
        true
    }

    /// Takes what is in the mailbox.
    fn read_mail<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        loop {
            match self.mailbox.try_recv() {
                Ok(part) => self.take_up(ring, part),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    self.ending = true;
                    self.parts.iter().flatten().for_each(|part| part.core.share.cancel());
                    return;
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => return,
            }
        }
    }

    /// Attaches a part's devices and starts its logic.
    fn take_up<R: Ring<Device = D>>(&mut self, ring: &mut R, mut part: Box<Part<D>>) {
        let Some([source, target]) = &part.devices else { return };
        let free = (0..).zip(&self.parts).find(|(_, part)| part.is_none()).map(|(seat, _)| seat);
        let source = ring.attach(source);
        let target = ring.attach(target);
        match (free, source, target) {
            (Some(seat), Ok(source), Ok(target)) => {
                part.slots = [source, target];
                // A part that was let go gave back its seat, unless its logic broke twice: then this one has none.
                let share = Arc::clone(&part.core.share);
                part.copier = Some(Copier::new(share, part.number, seat, part.slots));
                self.parts[seat as usize] = Some(part);
            }
            (_, source, target) => {
                source.into_iter().chain(target).for_each(|slot| ring.detach(slot));
                part.fail(FailureCause::Ring, libc::EAGAIN);
            }
        }
    }

    /// Runs one part's logic; a panic in it fails its job and nothing else.
    fn turn_part<R: Ring<Device = D>>(&mut self, ring: &mut R, id: usize) {
        let window = &mut self.window;
        let Some(part) = &mut self.parts[id] else { return };
        let pumped = catch_unwind(AssertUnwindSafe(|| {
            part.due_ns = None;
            if !part.broken {
                part.pump(ring, window, id);
            }
            part.coordinate(ring, id);
        }));
        if pumped.is_err() {
            part.panicked(ring.now_ns());
        }
        let orphaned = self.ending.then(|| part.core.over_since_ns()).flatten().map(|at| at + ORPHAN_NS);
        if part.is_done() || orphaned.is_some_and(|at| at <= ring.now_ns()) {
            self.let_go(ring, id);
        } else {
            part.due_ns = part.due_ns.into_iter().chain(orphaned).min();
        }
    }

    /// A part is over: its devices are detached and closed.
    fn let_go<R: Ring<Device = D>>(&mut self, ring: &mut R, id: usize) {
        let Some(mut part) = self.parts[id].take() else { return };
        if part.in_flight == 0 {
            part.slots.iter().for_each(|&slot| ring.detach(slot));
        }
        if let (true, 0, Some(copier)) = (part.broken, part.in_flight, &mut part.copier) {
            // Other jobs live in the same window. If this breaks too, some of it stays taken, and nothing is wrong.
            let window = &mut self.window;
            let _ = catch_unwind(AssertUnwindSafe(|| copier.give_up_memory(window)));
        }
    }

    /// Gives a completion to its part.
    fn route<R: Ring<Device = D>>(&mut self, ring: &R, completion: Completion) {
        let id = usize::try_from(completion.tag.0 >> 32).unwrap_or(usize::MAX);
        let key = u32::try_from(completion.tag.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let window = &mut self.window;
        let Some(Some(part)) = self.parts.get_mut(id) else { return };
        if catch_unwind(AssertUnwindSafe(|| part.complete(ring, window, key, completion))).is_err() {
            part.panicked(ring.now_ns());
        }
    }

    /// Sends what is to be sent, and sleeps until there is something to do.
    fn sleep<R: Ring<Device = D>>(&mut self, ring: &mut R) -> Result<()> {
        let due_ns = self.parts.iter().flatten().filter_map(|part| part.due_ns).min();
        let asking = self.parts.iter().flatten().any(|part| part.is_asking());
        let Some(courtesy) = &mut self.courtesy else {
            return ring.enter(Self::wait(ring, due_ns, asking));
        };
        let mut shares = self.parts.iter().flatten().map(|part| &part.core.share).peekable();
        let gives_way = shares.peek().is_some() && shares.all(|share| share.gives_way());
        let look_up_ns = courtesy.before_sleep(gives_way, ring.now_ns());
        let due_ns = due_ns.into_iter().chain(look_up_ns).min();
        let done = ring.enter(Self::wait(ring, due_ns, asking));
        if let (Some(courtesy), Some(due_ns)) = (&mut self.courtesy, due_ns) {
            courtesy.after_sleep(due_ns, ring.now_ns());
        }
        done
    }

    /// How to sleep until then; `asking`: somebody cannot go on without an answer, which must not wait for a batch.
    fn wait<R: Ring<Device = D>>(ring: &R, due_ns: Option<u64>, asking: bool) -> Wait {
        let timeout_ns = due_ns.map(|at| at.saturating_sub(ring.now_ns()));
        // Half of what is in flight keeps the device busy while the other half is gathered; one system call serves both.
        let completions = if asking { 1 } else { (ring.in_flight() / 2).clamp(1, BATCH) };
        Wait { completions, batch_ns: BATCH_NS, timeout_ns }
    }

    /// The ring cannot go on: every job of this worker fails.
    fn ring_broke(&mut self, errno: i32) {
        for part in self.parts.iter_mut().filter_map(Option::take) {
            part.fail(FailureCause::Ring, errno);
        }
    }
}
