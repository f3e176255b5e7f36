//! Workers of the simulation: the engine without threads.
//!
//! It starts a job in the steps of `start`: the parts are made, the job is held, attached, sent, and let go. Whoever drives
//! the simulation turns the workers one by one.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::home::Home;
use super::job::{Job, JobCore};
use super::outcome::Outcome;
use super::worker::{Mail, Part, Worker};
use crate::drive::{DriveCore, Follower};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Mutation, Share};
use crate::ring::Ring;
use crate::ring::sim::{SimDisk, SimRing, World};
use crate::units::KIB;

/// Parts that a worker's mailbox holds.
const MAILBOX_DEPTH: usize = 8;

/// One worker.
#[derive(Debug)]
struct Mate {
    /// Its logic.
    worker: Worker<SimDisk>,
    /// Its ring.
    ring: SimRing,
    /// To its mailbox; open as long as the crew lives.
    inbox: SyncSender<Mail<SimDisk>>,
    /// Whether it goes on.
    alive: bool,
}

/// The workers of a simulation.
#[derive(Debug)]
pub(crate) struct Crew {
    /// All of them.
    mates: Vec<Mate>,
    /// Requests that its disks say they take at once.
    queue_depth: usize,
}

impl Crew {
    /// So many workers with so much copy memory each.
    pub(crate) fn new(world: &Arc<World>, count: usize, memory_bytes: usize) -> Self {
        let mate = |_| {
            let ring = SimRing::new(world, memory_bytes);
            let (inbox, mailbox) = sync_channel(MAILBOX_DEPTH);
            Mate { worker: Worker::new(&ring, mailbox), ring, inbox, alive: true }
        };
        Self { mates: (0..count).map(mate).collect(), queue_depth: 64 }
    }

    /// The same with disks that say they take so many requests at once.
    #[cfg(test)]
    pub(crate) fn with_queue_depth(self, queue_depth: usize) -> Self {
        Self { queue_depth, ..self }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.mates.len()
    }

    /// When a worker has something to do; `None` = not before somebody wakes it.
    pub(crate) fn due_ns(&self, number: usize) -> Option<u64> {
        self.mates.get(number).filter(|mate| mate.alive).and_then(|mate| mate.ring.due_ns())
    }

    /// Turns a worker.
    pub(crate) fn turn(&mut self, number: usize) {
        if let Some(Mate { worker, ring, alive, .. }) = self.mates.get_mut(number) {
            *alive = *alive && worker.turn(ring);
        }
    }

    /// Wakes a worker, as whoever rings a job's bell does.
    #[cfg(test)]
    pub(crate) fn wake(&self, number: usize) {
        if let Some(mate) = self.mates.get(number) {
            mate.ring.waker().wake();
        }
    }

    /// Starts a job on a drive, with the protocol broken in the way that is asked for.
    ///
    /// # Errors
    /// As [`Engine::mirror`](super::Engine::mirror).
    pub(crate) fn start(
        &self,
        drive: &Arc<DriveCore<SimDisk>>,
        target: &Arc<SimDisk>,
        options: &MirrorOptions,
        mutation: Option<Mutation>,
    ) -> Result<(Job, Arc<Share>)> {
        options.validate()?;
        let source = Arc::clone(&drive.place().device);
        let shapes =
            [("source", &source), ("target", target)].map(|(name, disk)| shape(name, disk, self.queue_depth));
        let geometry = Geometry::new(options, &shapes[0], &shapes[1], self.len())?;
        let bitmaps = Bitmaps::new(&geometry, options)?;
        let mut share = Share::new(geometry, options, bitmaps, options.target_is_zero, self.len());
        share.mutation = mutation;
        let share = Arc::new(share);
        let wakers: Vec<_> = self.mates.iter().map(|mate| mate.ring.waker()).collect();
        let Some(home) = wakers.first().map(Arc::clone) else {
            return Err(Error::new(ErrorKind::InvalidArgument, "start a job without workers"));
        };
        let (names, jobs) = (["source".into(), "target".into()], Arc::new(AtomicUsize::new(1)));
        let job =
            JobCore::start(Arc::clone(&share), options, names, wakers, jobs, None, drive.both_latencies())?;
        share.hold();
        let follower = Follower { share: Arc::clone(&share), target: Arc::clone(target), home };
        drive.attach(Arc::new(follower))?;
        let mut home = Some(Box::new(Home::new(options, Arc::clone(drive), Arc::clone(target))));
        for (number, mate) in self.mates.iter().enumerate() {
            let devices = [Arc::clone(&source), Arc::clone(target)];
            let part = Part::new(Arc::clone(job.core()), number, devices, home.take());
            mate.inbox.try_send(Box::new(part)).map_err(|e| {
                Error::new(ErrorKind::QueueFull, "start a simulated job").because(e.to_string())
            })?;
        }
        share.let_start();
        job.core().wake_all();
        Ok((job, share))
    }

    /// How a job ended, once it is over; unlike [`Job::wait`] it looks at no clock.
    pub(crate) fn outcome(job: &Job) -> Option<Outcome> {
        job.core().outcome()
    }
}

/// What the logic is told of a simulated disk.
fn shape(name: &str, disk: &SimDisk, queue_depth: usize) -> DeviceShape {
    DeviceShape {
        name: name.into(),
        size_bytes: disk.size_bytes(),
        align_bytes: 512,
        max_request_bytes: 256 * KIB,
        queue_depth: Some(queue_depth),
        has_holes: true,
        reads_as_zeroes: false,
        writes_zeroes: false,
    }
}
