//! The worker loop in the simulation: whole jobs on made-up disks, from seeds, with everything going wrong.

mod bitmaps;
mod braking;
mod copies;
mod decisions;
mod endings;
mod follows;
mod guests;
mod many_errors;
mod order;
mod pauses;
mod query;
mod relief;
mod rounds;
mod slow_disks;
mod verbs;
mod windows;
mod zeroing;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::event::EventKind;
use super::home::Home;
use super::job::{Job, JobCore};
use super::outcome::{Outcome, TargetState};
use super::verbs::Cancel;
use super::worker::{Mail, Part, Worker};
use crate::drive::{DriveCore, Follower};

use crate::mirror::{
    Bitmaps, CopyModeChoice, DeviceShape, ErrorPolicy, Geometry, JobStatus, LatencyBudget, MirrorOptions,
    Mutation, OnCopied, Share, SyncMode,
};
use crate::ring::Ring;
use crate::ring::sim::{Faults, SimDisk, SimRing, World};
use crate::units::{ByteRange, Chunk, Granularity, KIB};

/// A job with its workers, disks and world.
struct Sim {
    world: Arc<World>,
    /// What it was made from.
    seed: u64,
    source: Arc<SimDisk>,
    target: Arc<SimDisk>,
    job: Job,
    workers: Vec<(Worker<SimDisk>, SimRing, bool)>,
    /// Open as long as the engine lives.
    _mailboxes: Vec<SyncSender<Mail<SimDisk>>>,
    /// Requests are lost, and what they may still write stays claimed.
    claims_may_stay: bool,
}

/// What a simulation is made of.
struct Recipe {
    seed: u64,
    bytes: u64,
    workers: usize,
    faults: Faults,
    options: MirrorOptions,
    mutation: Option<Mutation>,
}

/// The options of a job that completes by itself.
fn completing() -> MirrorOptions {
    MirrorOptions {
        on_copied: OnCopied::Complete,
        copy_mode: CopyModeChoice::Background,
        latency_budget: LatencyBudget::Off,
        ..MirrorOptions::default()
    }
}

impl Default for Recipe {
    fn default() -> Self {
        let options =
            MirrorOptions { granularity: Granularity::new(4 * KIB).ok(), max_pause: None, ..completing() };
        Self { seed: 1, bytes: 3 << 20, workers: 2, faults: Faults::default(), options, mutation: None }
    }
}

impl Sim {
    fn new(recipe: &Recipe) -> Self {
        let world = World::new(recipe.seed, recipe.faults);
        let (source, target) = (SimDisk::new(recipe.bytes), SimDisk::new(recipe.bytes));
        fill(&world, &source, recipe.bytes, 60);
        if !recipe.options.target_is_zero {
            fill(&world, &target, recipe.bytes, 100);
        }
        let shape = |name: &str| DeviceShape {
            name: name.into(),
            size_bytes: recipe.bytes,
            align_bytes: 512,
            max_request_bytes: 256 * KIB,
            queue_depth: Some(64),
            has_holes: true,
            reads_as_zeroes: false,
            writes_zeroes: false,
        };
        let geometry =
            Geometry::new(&recipe.options, &shape("source"), &shape("target"), recipe.workers).unwrap();
        let bitmaps = Bitmaps::new(&geometry, &recipe.options).unwrap();
        let zero = recipe.options.target_is_zero;
        let mut share = Share::new(geometry, &recipe.options, bitmaps, zero, recipe.workers);
        share.mutation = recipe.mutation;
        let share = Arc::new(share);
        let rings: Vec<_> = (0..recipe.workers).map(|_| SimRing::new(&world, 2 << 20)).collect();
        let wakers = rings.iter().map(Ring::waker).collect();
        let job = JobCore::start(
            share,
            &recipe.options,
            ["source".into(), "target".into()],
            wakers,
            Arc::new(1.into()),
            None,
            &Default::default(),
        )
        .unwrap();
        let drive = DriveCore::new(Arc::clone(&source), recipe.bytes, 512, false);
        let home = rings[0].waker();
        let follower = Follower { share: Arc::clone(&job.core().share), target: Arc::clone(&target), home };
        drive.attach(Arc::new(follower)).unwrap();
        let mut home = Some(Box::new(Home::new(&recipe.options, drive, Arc::clone(&target))));
        let mut mailboxes = Vec::new();
        let workers = rings.into_iter().enumerate().map(|(number, ring)| {
            let (inbox, mailbox) = sync_channel(4);
            let devices = [Arc::clone(&source), Arc::clone(&target)];
            let part = Part::new(Arc::clone(job.core()), number, devices, home.take());
            inbox.send(Box::new(part)).unwrap();
            mailboxes.push(inbox);
            (Worker::new(&ring, mailbox), ring, true)
        });
        let workers = workers.collect();
        let claims_may_stay = recipe.faults.stuck > 0;
        let seed = recipe.seed;
        Self { world, seed, source, target, job, workers, _mailboxes: mailboxes, claims_may_stay }
    }

    /// Turns one worker that has something to do, or moves the clock; `false` when nothing can happen any more.
    fn step(&mut self) -> bool {
        let now = self.world.now_ns();
        let due: Vec<usize> = (0..self.workers.len())
            .filter(|&i| self.workers[i].2 && self.workers[i].1.due_ns().is_some_and(|at| at <= now))
            .collect();
        if due.is_empty() {
            let next = self.workers.iter().filter(|w| w.2).filter_map(|w| w.1.due_ns()).min();
            if let Some(at) = next {
                self.world.advance_to(at.max(now + 1));
            }
            return next.is_some();
        }
        let pick = usize::try_from(self.world.pick(due.len() as u64)).unwrap();
        let (worker, ring, alive) = &mut self.workers[due[pick]];
        *alive = worker.turn(ring);
        true
    }

    /// Runs until the job is over; `each` is called between steps.
    fn run(&mut self, mut each: impl FnMut(&mut Self, u64)) -> Outcome {
        for n in 0..3_000_000 {
            if let Some(outcome) = self.job.wait_for(std::time::Duration::ZERO) {
                return outcome;
            }
            each(self, n);
            if !self.step() {
                // Requests that never come back keep their workers; the host is told all the same.
                assert!(
                    self.job.core().is_over(),
                    "seed {}: the job hangs: nothing is due and it is not over",
                    self.seed
                );
                return self.job.wait();
            }
        }
        panic!("seed {}: the job does not end: {:?}", self.seed, self.job.progress());
    }

    /// "Never wrong about what is clean": a chunk that differs is dirty or was not reached. `Err` says what is wrong.
    fn verdict(&self, outcome: &Outcome) -> Result<(), String> {
        let (source, target) = (self.source.content(), self.target.content());
        if outcome.target == TargetState::Complete && source != target {
            return Err("complete, and yet different".into());
        }
        let share = &self.job.core().share;
        let g = share.geometry.granularity;
        for chunk in 0..share.dirty.chunks() {
            let range = g.bytes_of(crate::units::ChunkRange::new(chunk, chunk + 1), source.len() as u64);
            let part = usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap();
            let known = share.dirty.test(Chunk(chunk)) || range.start() >= share.sweep.position();
            if !known && source[part.clone()] != target[part] {
                return Err(format!("chunk {chunk} is said to be clean and differs"));
            }
            if !self.claims_may_stay
                && share.writers.copier_in(crate::units::ChunkRange::new(chunk, chunk + 1))
            {
                return Err(format!("chunk {chunk} is still claimed"));
            }
        }
        Ok(())
    }

    /// The same, as a test.
    fn check(&self, outcome: &Outcome) {
        if let Err(wrong) = self.verdict(outcome) {
            panic!("seed {}: {wrong}", self.seed);
        }
    }
}

/// Fills about `percent` of the 4 KiB blocks with noise, in stretches.
fn fill(world: &World, disk: &SimDisk, bytes: u64, percent: u64) {
    let mut at = 0;
    while at < bytes {
        let len = ((world.pick(24) + 1) * 4096).min(bytes - at);
        if world.pick(100) < percent {
            let start = world.pick(u64::MAX) | 1;
            let words = (0..len / 8).scan(start, |x, _| {
                *x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                Some((*x | 1).to_le_bytes())
            });
            disk.poke(at, &words.flatten().collect::<Vec<u8>>());
        }
        at += len;
    }
}

/// How many seeds each property is tried with.
fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("BLKMIRROR_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

const PASSING: Faults = Faults {
    short: 150,
    read_error: 0,
    write_error: 0,
    no_space: 0,
    again: 100,
    flush_error: 0,
    stuck: 0,
    late_status: 200,
    no_zeroing: false,
    no_write_through: false,
    panic_on_look: false,
};
