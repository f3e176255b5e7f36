//! One run: who is there, and who comes next.
//!
//! Everybody who can do something has a time at which he wants to do it. In each step one of those whose time has come is
//! chosen by chance; when there is none, the clock moves to the next such time. Then the watch looks at everything.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::guests::Line;
use super::host::Host;
use super::model::{self, Model};
use super::recipe::{Death, First, Recipe};
use super::recording::Recorder;
use super::tracked::Tracked;
use super::watch::Watch;
use crate::bitmap::DirtyBitmap;
use crate::drive::{self, DriveCore};
use crate::engine::Job;
use crate::engine::crew::Crew;
use crate::mirror::{JobStatus, LatencyBudget, MirrorOptions, Mutation, OnCopied, Share};
use crate::ring::sim::{SimDisk, World};
use crate::units::{ChunkRange, bytes_u64, bytes_usize};

/// A run that takes more steps than this hangs.
const MAX_STEPS: u64 = 3_000_000;
/// So is one that takes more virtual time.
const MAX_NS: u64 = 400_000_000_000;
/// The shards of host threads start here; the first is a guest's.
const HOST_SHARD: usize = 32;

/// What was wrong in a run.
#[derive(Debug)]
pub(super) struct Wrong(String);

impl Wrong {
    /// It, in words.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happened in a run, in figures; two runs of one seed have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Story {
    /// Steps.
    pub steps: u64,
    /// Virtual time at the end.
    pub time_ns: u64,
    /// Guest requests that were completed.
    pub requests: u64,
    /// Jobs that completed with the drive on the target.
    pub pivots: u32,
    /// Jobs that completed with the target as a copy.
    pub copies: u32,
    /// Jobs that were cancelled.
    pub cancelled: u32,
    /// Jobs that failed.
    pub failed: u32,
    /// Jobs that became ready.
    pub ready: u32,
    /// Switch-overs that were asked of a ready job with a quiet guest, which nothing could disturb.
    pub calm: u32,
    /// Switch-overs that did not fit into their time.
    pub missed: u32,
    /// Times that copy mode auto took a step.
    pub escalated: u32,
    /// Bytes that guest writes took to both sides.
    pub active_bytes: u64,
    /// Errors that hosts were told of.
    pub errors: u32,
    /// Runs that ended by a power failure.
    pub crashed: u32,
    /// Writes that ended while a bitmap of the drive recorded, by bitmap.
    pub recorded: u64,
    /// Jobs that copied what such a bitmap said to a disk of the job before.
    pub resumed: u32,
    /// A checksum of the disks.
    pub content: u64,
}

impl Story {
    /// Adds another run's figures; checksums are left alone.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.time_ns += other.time_ns;
        self.requests += other.requests;
        self.pivots += other.pivots;
        self.copies += other.copies;
        self.cancelled += other.cancelled;
        self.failed += other.failed;
        self.ready += other.ready;
        self.calm += other.calm;
        self.missed += other.missed;
        self.escalated += other.escalated;
        self.active_bytes += other.active_bytes;
        self.errors += other.errors;
        self.crashed += other.crashed;
        self.recorded += other.recorded;
        self.resumed += other.resumed;
    }
}

/// A job that runs.
#[derive(Debug)]
pub(super) struct Live {
    /// The host's handle.
    pub(super) job: Job,
    /// Its state.
    pub(super) share: Arc<Share>,
    /// Where it copies from.
    pub(super) source: Arc<SimDisk>,
    /// Where it copies to.
    pub(super) target: Arc<SimDisk>,
    /// Its options.
    pub(super) options: MirrorOptions,
}

/// A job of another drive on the same workers.
#[derive(Debug)]
pub(super) struct Neighbour {
    /// The host's handle.
    pub(super) job: Job,
    /// Where it copies from.
    pub(super) source: Arc<SimDisk>,
    /// Where it copies to.
    pub(super) target: Arc<SimDisk>,
}

/// A run; see the module.
#[derive(Debug)]
pub(super) struct Simulation {
    /// What it is made of.
    pub(super) recipe: Recipe,
    /// How the protocol is broken.
    pub(super) mutation: Option<Mutation>,
    /// Time and chance.
    pub(super) world: Arc<World>,
    /// The guest's disk.
    pub(super) drive: Arc<DriveCore<SimDisk>>,
    /// The engine.
    pub(super) crew: Crew,
    /// Guests with a queue.
    pub(super) lines: Vec<Line>,
    /// Guests with a tracker.
    pub(super) tracked: Vec<Tracked>,
    /// What the drive may hold.
    pub(super) model: Model,
    /// The job, until its end was looked at.
    pub(super) live: Option<Live>,
    /// Another job on the same workers.
    pub(super) neighbour: Option<Neighbour>,
    /// Disks that nobody may write any more, and how often they were written.
    pub(super) left: Vec<(Arc<SimDisk>, u64)>,
    /// Jobs that were started.
    pub(super) jobs: u32,
    /// The host.
    pub(super) host: Host,
    /// Has bitmaps of the drive.
    pub(super) recorder: Recorder,
    /// Looks at everything.
    pub(super) watch: Watch,
    /// Requests that guests asked for.
    pub(super) asked: u64,
    /// Requests that were completed.
    pub(super) completed: u64,
    /// Whether the disks that the drive stands on had errors at any time.
    pub(super) errors_possible: bool,
    /// What happened.
    pub(super) story: Story,
    /// The last tag.
    tag: u64,
}

/// Who can do something.
#[derive(Clone, Copy, Debug)]
enum Actor {
    /// A worker of the engine.
    Worker(usize),
    /// A queue that has something to send or to take.
    Line(usize),
    /// Who asks on that queue.
    Guest(usize),
    /// A host with requests of its own under way.
    Tracked(usize),
    /// Who asks that host.
    TrackedGuest(usize),
    /// The host that gives commands to the job.
    Host,
}

impl Simulation {
    /// The run of a recipe, before its first step.
    pub(super) fn new(recipe: Recipe, mutation: Option<Mutation>) -> Result<Self, Wrong> {
        drive::start_anew();
        let world = recipe.world();
        let disk = Self::disk(&world, &recipe, 60);
        disk.set_faults(recipe.faults[0]);
        disk.set_latency(recipe.latency_ns[0].0, recipe.latency_ns[0].1);
        let drive = DriveCore::new(Arc::clone(&disk), recipe.bytes, model::BLOCK, true);
        let crew = Crew::new(&world, recipe.workers, recipe.window_bytes);
        let mut lines = Vec::new();
        for _ in 0..recipe.guests.queues {
            lines.push(Line::new(&world, &drive, &recipe.guests)?);
        }
        Ok(Self {
            tracked: (0..recipe.guests.trackers).map(|_| Tracked::default()).collect(),
            model: disk.look(Model::new),
            host: Host::new(&recipe),
            recorder: Recorder::new(&recipe, &drive)?,
            watch: Watch::default(),
            errors_possible: recipe.has_errors(0),
            recipe,
            mutation,
            world,
            drive,
            crew,
            lines,
            live: None,
            neighbour: None,
            left: Vec::new(),
            jobs: 0,
            asked: 0,
            completed: 0,
            story: Story::default(),
            tag: 0,
        })
    }

    /// A disk with a value of its own in every block, and about so many blocks in a hundred that are holes.
    fn disk(world: &World, recipe: &Recipe, data_percent: u64) -> Arc<SimDisk> {
        let disk = SimDisk::new(recipe.bytes);
        let mut at = 0;
        while at < recipe.bytes {
            let len = ((world.pick(24) + 1) * 4096).min(recipe.bytes - at);
            if world.pick(100) < data_percent {
                let mut data = vec![0; bytes_usize(len)];
                for (number, block) in data.chunks_mut(bytes_usize(model::BLOCK)).enumerate() {
                    model::fill(block, (1 << 40) + at + bytes_u64(number));
                }
                disk.poke(at, &data);
            }
            at += len;
        }
        disk
    }

    /// Whether a case of so many in a hundred happens.
    pub(super) fn chance(&self, percent: u64) -> bool {
        self.world.pick(100) < percent
    }

    /// A number that no other request has.
    pub(super) fn next_tag(&mut self) -> u64 {
        self.tag += 1;
        self.tag
    }

    /// A target for the next job: what it holds is what the job may rely on, and garbage elsewhere.
    fn target(&mut self, source: &SimDisk, options: &mut MirrorOptions) -> Result<Arc<SimDisk>, Wrong> {
        let recorded = if self.recipe.first == First::Bitmap { self.working_bitmap()? } else { None };
        let recipe = &self.recipe;
        let target = SimDisk::new(recipe.bytes);
        let mut image = source.content();
        let garbage = |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        match recipe.first {
            First::Full if options.target_is_zero => image.fill(0),
            First::Full => garbage(&mut image),
            First::Top => {
                let blocks = image.chunks_mut(4096).enumerate();
                blocks
                    .filter(|(block, _)| !source.is_hole(bytes_u64(*block) * 4096))
                    .for_each(|(_, b)| garbage(b));
            }
            First::Nothing => {}
            First::Bitmap => {
                let bits = || DirtyBitmap::new(recipe.bytes, recipe.granularity).map(Arc::new);
                let (bitmap, left) = match recorded {
                    Some((bitmap, left)) => (bitmap, left),
                    None => (bits().map_err(|e| Wrong::new(e.to_string()))?, None),
                };
                for (chunk, part) in image.chunks_mut(bytes_usize(recipe.granularity.bytes())).enumerate() {
                    if self.chance(40) && left.is_none() {
                        garbage(part);
                        bitmap.set(ChunkRange::new(bytes_u64(chunk), bytes_u64(chunk) + 1));
                    }
                }
                // What was left behind by the job before, as it is: the bitmap says what differs.
                image = left.unwrap_or(image);
                options.bitmap = Some(bitmap);
            }
        }
        target.poke(0, &image);
        target.set_faults(recipe.faults[1]);
        target.set_latency(recipe.latency_ns[1].0, recipe.latency_ns[1].1);
        target.set_rate(recipe.rate_bytes_per_s);
        Ok(target)
    }

    /// Starts a job.
    pub(super) fn start(&mut self) -> Result<(), Wrong> {
        let source = Arc::clone(&self.drive.place().device);
        let mut options = self.recipe.options.clone();
        let target = self.target(&source, &mut options)?;
        let started = self.crew.start(&self.drive, &target, &options, self.mutation);
        let (job, share) = started.map_err(|e| Wrong::new(format!("a job cannot be started: {e}")))?;
        self.jobs += 1;
        self.live = Some(Live { job, share, source, target, options });
        if self.recipe.neighbour && self.jobs == 1 { self.start_neighbour() } else { Ok(()) }
    }

    /// The disks die, and live again.
    pub(super) fn live_or_die(&mut self) {
        let now_ns = self.world.now_ns();
        let Some(live) = &self.live else { return };
        for (disk, death) in [&live.source, &live.target].into_iter().zip(self.recipe.deaths) {
            let dead = match death {
                Death::None => continue,
                Death::For(at_ns, for_ns) => (at_ns..at_ns + for_ns).contains(&now_ns) && self.jobs == 1,
                Death::Forever(at_ns) => now_ns >= at_ns,
            };
            disk.set_dead(dead);
        }
    }

    /// When an actor wants to do something.
    fn actors(&self) -> Vec<(u64, Actor)> {
        let mut all = Vec::with_capacity(16);
        let mut add = |at_ns: Option<u64>, actor| all.extend(at_ns.map(|at_ns| (at_ns, actor)));
        (0..self.crew.len()).for_each(|number| add(self.crew.due_ns(number), Actor::Worker(number)));
        let asks = self.may_ask();
        for (number, line) in self.lines.iter().enumerate() {
            add(line.due_ns(), Actor::Line(number));
            add(asks.then_some(line.next_ns), Actor::Guest(number));
        }
        for (number, tracked) in self.tracked.iter().enumerate() {
            add((!tracked.is_idle()).then_some(tracked.step_ns), Actor::Tracked(number));
            add(asks.then_some(tracked.next_ns), Actor::TrackedGuest(number));
        }
        add(self.host.due_ns(), Actor::Host);
        all
    }

    /// Whether guests ask for more: some requests are kept for the time after the jobs.
    fn may_ask(&self) -> bool {
        let all = self.recipe.guests.requests;
        let jobs_left = self.jobs < self.recipe.jobs || self.live.is_some();
        self.asked < if jobs_left { all * 4 / 5 } else { all }
    }

    /// One step; `false` when nobody wants to do anything any more.
    fn step(&mut self) -> Result<bool, Wrong> {
        let now_ns = self.world.now_ns();
        let all = self.actors();
        let due: Vec<_> = all.iter().filter(|(at_ns, _)| *at_ns <= now_ns).collect();
        let Some(&&(_, actor)) = due.get(bytes_usize(self.world.pick(bytes_u64(due.len()).max(1)))) else {
            let next = all.iter().map(|(at_ns, _)| *at_ns).min();
            next.into_iter().for_each(|at_ns| self.world.advance_to(at_ns.max(now_ns + 1)));
            self.live_or_die();
            return Ok(next.is_some());
        };
        match actor {
            Actor::Worker(number) => {
                drive::act_as(HOST_SHARD + number);
                self.turn_worker(number)?;
            }
            Actor::Line(number) => {
                drive::act_as(number);
                self.turn_line(number)?;
            }
            Actor::Guest(number) => {
                drive::act_as(number);
                self.ask(number)?;
            }
            Actor::Tracked(number) => {
                drive::act_as(self.lines.len() + number);
                self.step_tracked(number)?;
            }
            Actor::TrackedGuest(number) => {
                drive::act_as(self.lines.len() + number);
                self.track(number)?;
            }
            Actor::Host => {
                drive::act_as(HOST_SHARD - 1);
                self.act_as_host()?;
            }
        }
        self.record()?;
        self.look()?;
        Ok(true)
    }

    /// A worker's turn. *Our hands off the source*; and a job that says that it is paused writes nothing.
    fn turn_worker(&mut self, number: usize) -> Result<(), Wrong> {
        let Some(live) = &self.live else {
            self.crew.turn(number);
            return Ok(());
        };
        let paused = matches!(live.job.status(), JobStatus::Paused | JobStatus::Standby);
        let writes = [live.source.writes(), live.target.writes()];
        self.crew.turn(number);
        let more = [live.source.writes() - writes[0], live.target.writes() - writes[1]];
        if more[0] > 0 {
            return Err(Wrong::new("a worker wrote to the source"));
        }
        let still_paused = matches!(live.job.status(), JobStatus::Paused | JobStatus::Standby);
        if more[1] > 0 && paused && still_paused {
            return Err(Wrong::new("a worker wrote to the target while the job was paused"));
        }
        Ok(())
    }

    /// A job of another drive on the same workers, without a guest.
    fn start_neighbour(&mut self) -> Result<(), Wrong> {
        let [source, target] =
            [60, 0].map(|data_percent| Self::disk(&self.world, &self.recipe, data_percent));
        let drive = DriveCore::new(Arc::clone(&source), self.recipe.bytes, model::BLOCK, true);
        let options = MirrorOptions {
            on_copied: OnCopied::Complete,
            latency_budget: LatencyBudget::Off,
            max_pause: None,
            ..MirrorOptions::default()
        };
        let started = self.crew.start(&drive, &target, &options, None);
        let (job, _) = started.map_err(|e| Wrong::new(format!("a neighbour cannot be started: {e}")))?;
        self.neighbour = Some(Neighbour { job, source, target });
        Ok(())
    }

    /// Whether nothing is left to be done.
    fn is_over(&self) -> bool {
        self.live.is_none()
            && self.neighbour.as_ref().is_none_or(|neighbour| neighbour.job.status().is_over())
            && self.jobs >= self.recipe.jobs
            && !self.may_ask()
            && self.lines.iter().all(Line::is_idle)
            && self.tracked.iter().all(Tracked::is_idle)
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<Story, (Box<Self>, Wrong)> {
        match self.steps().and_then(|()| self.check_end()) {
            Ok(()) => Ok(self.story),
            Err(wrong) => Err((Box::new(self), wrong)),
        }
    }

    /// Who has not come to an end.
    fn who_waits(&self) -> String {
        let lines: Vec<_> = self.lines.iter().map(|line| &line.asked).collect();
        let job = self.live.as_ref().map(|live| live.job.status());
        let tracked = self.tracked.iter().filter(|tracked| !tracked.is_idle()).count();
        let gate = if self.drive.gate().is_closed() { "closed" } else { "open" };
        format!(
            "job {job:?}, gate {gate}, {tracked} trackers busy, guests asked {}, queues: {lines:?}",
            self.asked
        )
    }

    /// All steps.
    fn steps(&mut self) -> Result<(), Wrong> {
        for step in 0..MAX_STEPS {
            self.story.steps = step;
            self.story.time_ns = self.world.now_ns();
            if self.recipe.crash_ns.is_some_and(|at_ns| at_ns <= self.world.now_ns()) {
                self.story.crashed = 1;
                return self.check_crash();
            }
            if self.is_over() {
                return Ok(());
            }
            if !self.step()? || self.world.now_ns() > MAX_NS {
                return Err(Wrong::new(format!("it hangs: {}", self.who_waits())));
            }
        }
        Err(Wrong::new("it does not come to an end"))
    }
}
