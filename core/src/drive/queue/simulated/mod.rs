//! Queues in the simulation: random requests against a byte-exact model, under a gate that closes, jobs that come and go,
//! modes that change, drives that move, and disks on which everything goes wrong.
//!
//! The jobs are real [`Share`]s with a copier that takes one chunk at a time; so what is asked is whether the queue tells the
//! job everything that it must know.
#![forbid(unsafe_code)]

mod both;
mod broken;
mod counted;
mod odd;
mod regions;
mod runs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::odd::OddRing;
use super::core::QueueCore;
use super::request::Wish;
use super::{QueueOptions, WriteFlags, ZeroFlags};
use crate::buffer::{AlignedBuf, GuestBuffer};
use crate::drive::Bitmap;
use crate::drive::core::DriveCore;
use crate::drive::follower::Follower;
use crate::mirror::{
    Bitmaps, CopyMode, DeviceShape, ErrorPolicy, Geometry, MirrorOptions, Mutation, Share, SyncMode,
};
use crate::ring::sim::{Faults, SimDisk, SimRing, World};
use crate::ring::{Ring, Wake};
use crate::simulator::model::{BLOCK, Model, fill};
use crate::units::{ByteRange, Chunk, ChunkRange, Granularity, KIB, bytes_usize};

/// Bytes of the drive: a short last chunk.
const DISK: u64 = 256 * KIB + 8 * BLOCK;
/// Bytes of a chunk.
const CHUNK: u64 = 16 * KIB;

/// Counts how often a job's home was woken.
#[derive(Debug, Default)]
struct Home(AtomicU64);

impl Wake for Home {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A job: what the drive knows of it, and its copier's chunk in hand.
struct FakeJob {
    follower: Arc<Follower<SimDisk>>,
    /// Claimed and cleared; with the data once it was read.
    copying: Option<(ChunkRange, Option<Vec<u8>>)>,
}

/// A request that the host waits for.
struct Asked {
    wish: Wish,
    range: ByteRange,
    /// The model's time when it was sent.
    since: u64,
    /// Where its data lies.
    memory: Option<(usize, usize)>,
}

/// A queue with its ring and what it owes.
struct Line {
    core: QueueCore<SimDisk>,
    ring: OddRing,
    asked: BTreeMap<u64, Asked>,
}

/// A drive with everything around it.
struct Sim {
    world: Arc<World>,
    drive: Arc<DriveCore<SimDisk>>,
    disk: Arc<SimDisk>,
    lines: Vec<Line>,
    job: Option<FakeJob>,
    model: Model,
    /// Records from the beginning, when everything was zero.
    recorded: Bitmap,
    next_tag: u64,
    /// Requests that failed.
    failures: u64,
    /// Requests that went well.
    successes: u64,
    /// How often the drive moved.
    moves: u64,
    /// Writes that reached a target from a queue or a copier.
    target_writes: u64,
    mutation: Option<Mutation>,
    policy: ErrorPolicy,
    /// The first thing that was wrong.
    wrong: Option<String>,
}

/// What a simulation is made of.
#[derive(Clone, Copy)]
struct Recipe {
    seed: u64,
    faults: Faults,
    options: QueueOptions,
    queues: usize,
    mutation: Option<Mutation>,
    policy: ErrorPolicy,
}

impl Default for Recipe {
    fn default() -> Self {
        let options =
            QueueOptions { depth: 12, staging_bytes: 64 * KIB, eventfd: false, ..QueueOptions::default() };
        Self {
            seed: 1,
            faults: Faults::default(),
            options,
            queues: 2,
            mutation: None,
            policy: ErrorPolicy::Ignore,
        }
    }
}

/// The state of a job that starts with both sides equal.
fn share(policy: ErrorPolicy, mutation: Option<Mutation>) -> Share {
    let options = MirrorOptions {
        granularity: Granularity::new(CHUNK).ok(),
        sync: SyncMode::None,
        on_source_error: policy,
        on_target_error: policy,
        ..MirrorOptions::default()
    };
    let shape = |name: &str| DeviceShape {
        name: name.into(),
        size_bytes: DISK,
        align_bytes: BLOCK,
        max_request_bytes: 256 * KIB,
        queue_depth: Some(64),
        has_holes: true,
        reads_as_zeroes: false,
        writes_zeroes: false,
    };
    let geometry = Geometry::new(&options, &shape("source"), &shape("target"), 1).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let mut share = Share::new(geometry, &options, bitmaps, false, 1);
    share.mutation = mutation;
    share
}

impl Sim {
    fn new(recipe: &Recipe) -> Self {
        let world = World::new(recipe.seed, recipe.faults);
        let disk = SimDisk::new(DISK);
        let drive = DriveCore::new(Arc::clone(&disk), DISK, BLOCK, true);
        let lines = (0..recipe.queues).map(|_| {
            let mut ring = OddRing::new(SimRing::new(&world, 512 << 10));
            let core = QueueCore::new(Arc::clone(&drive), recipe.options, &mut ring).unwrap();
            Line { core, ring, asked: BTreeMap::new() }
        });
        let lines = lines.collect();
        let recorded = drive.add_bitmap("all", Granularity::new(BLOCK).ok(), true).unwrap();
        Self {
            world,
            drive,
            disk,
            lines,
            job: None,
            model: Model::new(&vec![0; bytes_usize(DISK)]),
            recorded,
            next_tag: 1,
            failures: 0,
            successes: 0,
            moves: 0,
            target_writes: 0,
            mutation: recipe.mutation,
            policy: recipe.policy,
            wrong: None,
        }
    }

    /// Notes the first thing that is wrong.
    fn blame(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    fn chance(&self, percent: u64) -> bool {
        self.world.pick(100) < percent
    }

    /// A range of whole blocks, often near the start, sometimes the tail; whole pages for data.
    fn range(&self, data: bool) -> ByteRange {
        let unit = if data { 4096 } else { BLOCK };
        let len = (self.world.pick(if data { 9 } else { 60 }) + 1) * unit;
        let reach = if self.chance(50) { 40 * BLOCK } else { DISK };
        let start = self.world.pick(reach / BLOCK) * BLOCK;
        let start = if self.chance(5) { DISK - len } else { start.min(DISK - len) };
        ByteRange::at(start, len)
    }

    /// The guest sends something on a queue.
    fn ask(&mut self, line: usize) {
        let fua = self.chance(20);
        let wish = match self.world.pick(20) {
            0..5 => Wish::Read,
            5..15 => Wish::Write(WriteFlags { fua, ..WriteFlags::default() }),
            15..17 => Wish::WriteZeroes(ZeroFlags { punch: self.chance(50), fua, ..ZeroFlags::default() }),
            17 => Wish::Discard,
            _ => Wish::Flush,
        };
        let range = if wish == Wish::Flush { ByteRange::default() } else { self.range(wish.has_data()) };
        let tag = self.next_tag;
        self.next_tag += 1;
        let buffer = wish.has_data().then(|| {
            let mut buffer = AlignedBuf::new(bytes_usize(range.len()), 512).unwrap();
            fill(&mut buffer, if wish.changes() { tag } else { u64::MAX });
            GuestBuffer::from(buffer)
        });
        let memory = buffer.as_ref().and_then(|buffer| buffer.memory().extents().next());
        let now_ns = self.world.now_ns();
        if self.lines[line].core.accept(wish, range, buffer, tag, now_ns).is_err() {
            return;
        }
        let since = self.model.tick();
        if wish.changes() {
            self.model.sent(range, tag, if matches!(wish, Wish::Write(_)) { tag } else { 0 });
        }
        self.lines[line].asked.insert(tag, Asked { wish, range, since, memory });
    }

    /// Turns a queue and takes what it completed.
    fn turn(&mut self, line: usize) {
        let Line { core, ring, .. } = &mut self.lines[line];
        let wait = core.sleep(1, None, ring.now_ns());
        core.turn(ring, wait).unwrap();
        while let Some(done) = self.lines[line].core.pop() {
            let Some(asked) = self.lines[line].asked.remove(&done.tag) else {
                self.blame(format!("a second completion of request {}", done.tag));
                continue;
            };
            let whole = done.result.is_ok();
            self.failures += u64::from(!whole);
            self.successes += u64::from(whole);
            if asked.wish.has_data() != done.buffer.is_some() {
                self.blame(format!("request {} lost its buffer", done.tag));
            }
            if asked.wish.changes() {
                // A discard may have no effect, so it leaves what was there possible.
                let happened = whole && asked.wish != Wish::Discard;
                // No power fails here, so what happened stays.
                self.model.ended(asked.range, done.tag, happened, happened);
            } else if let (Wish::Read, true) = (asked.wish, whole) {
                let data = done.buffer.and_then(GuestBuffer::into_aligned).unwrap();
                if let Err(e) = self.model.check(asked.range, &data, asked.since) {
                    self.blame(format!("request {} read wrongly: {e}", done.tag));
                }
            }
        }
    }

    /// When a queue has something to do.
    fn due_ns(&self, line: usize) -> Option<u64> {
        let Line { core, ring, .. } = &self.lines[line];
        ring.due_ns().into_iter().chain(core.due_ns()).min()
    }

    /// Turns a queue that has something to do, or moves the clock; `false` when nothing is due.
    fn step(&mut self) -> bool {
        let now = self.world.now_ns();
        let all = 0..self.lines.len();
        let due: Vec<_> = all.clone().filter(|&l| self.due_ns(l).is_some_and(|at| at <= now)).collect();
        if due.is_empty() {
            let next = all.filter_map(|l| self.due_ns(l)).min();
            next.into_iter().for_each(|at| self.world.advance_to(at.max(now + 1)));
            return next.is_some();
        }
        self.turn(due[bytes_usize(self.world.pick(due.len() as u64))]);
        true
    }

    /// A job begins: from the moment it is attached on, the target is a copy but for what is marked.
    fn attach(&mut self, mode: CopyMode) {
        let target = SimDisk::new(DISK);
        let share = Arc::new(share(self.policy, self.mutation));
        share.choose_copy_mode(mode);
        let home: Arc<dyn Wake> = Arc::new(Home::default());
        let follower = Arc::new(Follower { share, target: Arc::clone(&target), home });
        self.drive.attach(Arc::clone(&follower)).unwrap();
        target.poke(0, &self.disk.content());
        self.job = Some(FakeJob { follower, copying: None });
    }

    /// A job ends without a switch-over.
    fn detach(&mut self) {
        let Some(job) = self.job.take() else { return };
        job.follower.share.cancel();
        if self.chance(50) {
            (0..self.world.pick(8)).for_each(|_| _ = self.step());
        }
        self.drive.detach();
        self.target_writes += job.follower.target.writes();
    }

    /// The copier does one thing: claims a chunk and makes it clean, reads it, or writes it.
    fn copy(&mut self) {
        let Some(FakeJob { follower, copying }) = &mut self.job else { return };
        let share = &follower.share;
        match copying.take() {
            // A job that is ending takes up no work.
            None if share.is_ending() => {}
            None => {
                let first = self.world.pick(share.dirty.chunks());
                let run = share.dirty.next_run(Chunk(first), 1).or_else(|| share.dirty.next_run(Chunk(0), 1));
                let Some(run) = run else { return };
                let run = share.writers.claim_for_copier(run);
                if !run.is_empty() {
                    share.dirty.clean(run);
                    *copying = Some((run, None));
                }
            }
            Some((run, None)) => {
                let range = share.geometry.granularity.bytes_of(run, DISK);
                let content = self.disk.content();
                *copying =
                    Some((run, Some(content[bytes_usize(range.start())..bytes_usize(range.end())].to_vec())));
            }
            Some((run, Some(data))) => {
                let range = share.geometry.granularity.bytes_of(run, DISK);
                follower.target.poke(range.start(), &data);
                share.writers.release_by_copier(run);
            }
        }
    }

    /// "Never wrong about what is clean": a chunk that differs is dirty, or the copier's.
    fn check_target(&mut self) {
        let Some(FakeJob { follower, copying }) = &self.job else { return };
        let (source, target) = (self.disk.content(), follower.target.content());
        let share = &follower.share;
        let mut wrong = None;
        for chunk in 0..share.dirty.chunks() {
            let run = ChunkRange::new(chunk, chunk + 1);
            let range = share.geometry.granularity.bytes_of(run, DISK);
            let part = bytes_usize(range.start())..bytes_usize(range.end());
            let known = share.dirty.test(Chunk(chunk)) || copying.as_ref().is_some_and(|(c, _)| *c == run);
            if !known && source[part.clone()] != target[part] {
                wrong = Some(format!("chunk {chunk} is said to be clean and differs"));
            }
            if share.writers.guest_in(run) {
                wrong = Some(format!("chunk {chunk} is still claimed by a guest"));
            }
        }
        wrong.into_iter().for_each(|wrong| self.blame(wrong));
    }

    /// Lets everything that is under way come to its end.
    fn settle(&mut self) {
        for _ in 0..200_000 {
            if self.lines.iter().all(|l| l.core.in_flight() == 0 && l.ring.in_flight() == 0) {
                return;
            }
            if !self.step() {
                let left: Vec<_> =
                    self.lines.iter().map(|l| (l.core.in_flight(), l.ring.in_flight())).collect();
                return self.blame(format!("it hangs: {left:?}"));
            }
        }
        self.blame("it does not come to an end".into());
    }

    /// With nothing under way: everything that was promised holds.
    fn check_all(&mut self) {
        for line in 0..self.lines.len() {
            if let Some((tag, asked)) = self.lines[line].asked.first_key_value() {
                let text = format!("request {tag}, {:?}, was never completed", asked.wish);
                self.blame(text);
            }
        }
        self.drive.close_gate();
        if !self.drive.is_quiet(false) {
            self.blame("somebody never left the gate".into());
        }
        self.drive.open_gate();
        let content = self.disk.content();
        if let Err(e) = self.model.check(ByteRange::new(0, DISK), &content, u64::MAX) {
            self.blame(format!("the drive is wrong: {e}"));
        }
        self.check_target();
        let recorded = self.recorded.working();
        let mut written = content
            .chunks(bytes_usize(BLOCK))
            .zip(0..)
            .filter(|(data, _)| data.iter().any(|&byte| byte != 0));
        if let Some((_, block)) = written.find(|&(_, block)| !recorded.test(Chunk(block))) {
            self.blame(format!("block {block} was written and is not recorded"));
        }
    }
}

/// How many seeds each property is tried with.
fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("BLKMIRROR_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// Things that go wrong and pass.
const PASSING: Faults = Faults {
    short: 200,
    read_error: 0,
    write_error: 0,
    no_space: 0,
    again: 60,
    flush_error: 0,
    stuck: 0,
    late_status: 0,
    no_zeroing: false,
    no_write_through: false,
    panic_on_look: false,
};
