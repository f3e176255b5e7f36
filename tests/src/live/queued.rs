//! A guest that writes through a queue of its drive, several requests at a time.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::buffer::AlignedBuf;
use crate::api::drive::Drive;
use crate::api::drive::queue::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use crate::api::units::ByteRange;

use super::guest::{Chance, GuestPlan, PATIENCE, Shared};
use super::history::{History, Kind, Write, stamp};

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
struct Flying {
    /// When it was accepted, by the history's clock.
    number: u64,
    /// Where.
    range: ByteRange,
    /// What.
    kind: Kind,
    /// When it was accepted.
    begun: Instant,
}

/// The guest.
#[derive(Debug)]
pub(super) struct Queued {
    /// Its queue.
    queue: Queue,
    /// Takes down what was written.
    history: Arc<History>,
    /// What it does.
    plan: GuestPlan,
    /// Requests under way, by tag.
    flying: Vec<Option<Flying>>,
    /// What it has done.
    log: Vec<Write>,
}

impl Queued {
    /// A guest with a queue of its own, for the thread that runs it.
    pub(super) fn new(drive: &Drive, history: &Arc<History>, plan: &GuestPlan) -> Self {
        let queue = drive.queue(QueueOptions::default()).unwrap();
        let flying = vec![None; plan.depth];
        Self { queue, history: Arc::clone(history), plan: plan.clone(), flying, log: Vec::new() }
    }

    /// Writes until it is told to stop, and waits for what is under way then.
    pub(super) fn run(mut self, shared: &Shared) {
        let mut chance = Chance::new(self.plan.seed);
        while !shared.is_stopped() {
            while let Some(tag) = self.flying.iter().position(Option::is_none) {
                self.send(tag, &mut chance);
            }
            self.queue.wait(1, Some(Duration::from_millis(20))).unwrap();
            self.collect(shared);
            if !self.plan.rest.is_zero() {
                thread::sleep(self.plan.rest);
            }
        }
        let end = Instant::now() + PATIENCE;
        while self.flying.iter().any(Option::is_some) {
            assert!(Instant::now() < end, "requests do not complete: {:?}", self.flying);
            self.queue.wait(1, Some(Duration::from_millis(20))).unwrap();
            self.collect(shared);
        }
        self.history.add(&self.log);
    }

    /// Queues a request.
    fn send(&mut self, tag: usize, chance: &mut Chance) {
        let range = self.plan.next(chance);
        let kind = if chance.below(100) < self.plan.zeroes_percent { Kind::Zeroes } else { Kind::Data };
        let number = self.history.tick();
        let label = u64::try_from(tag).unwrap();
        match kind {
            Kind::Zeroes => self.queue.write_zeroes(range, ZeroFlags::default(), label).unwrap(),
            Kind::Data => {
                let mut buffer = AlignedBuf::new(usize::try_from(range.len()).unwrap(), 4096).unwrap();
                assert_eq!(buffer.len(), usize::try_from(range.len()).unwrap(), "buffers are whole pages");
                stamp(number, range.start(), &mut buffer);
                self.queue.write(range.start(), buffer, WriteFlags::default(), label).unwrap();
            }
        }
        self.flying[tag] = Some(Flying { number, range, kind, begun: Instant::now() });
    }

    /// Takes down what has completed; one completion for each request.
    fn collect(&mut self, shared: &Shared) {
        while let Some(done) = self.queue.pop() {
            let flying = self.flying[usize::try_from(done.tag).unwrap()].take();
            let Flying { number, range, kind, begun } = flying.expect("it completed twice");
            let (ended, ok) = (self.history.tick(), done.result.is_ok());
            shared.count(begun, ok);
            self.log.push(Write { number, ended, inside: false, range, kind, ok });
        }
    }
}
