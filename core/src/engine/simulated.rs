//! The worker loop in the simulation: whole jobs on made-up disks, from seeds, with everything going wrong.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::event::Event;
use super::job::{Job, JobCore, Outcome, TargetState};
use super::worker::{Mail, Part, Worker};
use crate::bitmap::{Claims, DirtyBitmap};
use crate::mirror::{DeviceShape, ErrorPolicy, Geometry, MirrorOptions, Mutation, Share, SyncMode};
use crate::ring::Ring;
use crate::ring::sim::{Faults, SimDisk, SimRing, World};
use crate::units::{ByteRange, Chunk, Granularity, KIB};

/// A job with its workers, disks and world.
struct Sim {
    world: Arc<World>,
    source: Arc<SimDisk>,
    target: Arc<SimDisk>,
    job: Job,
    workers: Vec<(Worker<SimDisk>, SimRing, bool)>,
    mailboxes: Vec<SyncSender<Mail<SimDisk>>>,
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

impl Default for Recipe {
    fn default() -> Self {
        let options =
            MirrorOptions { granularity: Granularity::new(4 * KIB).ok(), ..MirrorOptions::default() };
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
        };
        let geometry =
            Geometry::new(&recipe.options, &shape("source"), &shape("target"), recipe.workers).unwrap();
        let bits = |g| DirtyBitmap::new(recipe.bytes, g).unwrap();
        let touched = geometry.cluster.map(bits);
        let claims = Claims::new(recipe.bytes, geometry.granularity).unwrap();
        let bitmaps = (bits(geometry.granularity), claims, touched);
        let zero = recipe.options.target_is_zero;
        let mut share = Share::new(geometry, &recipe.options, bitmaps, zero, recipe.workers);
        share.mutation = recipe.mutation;
        let share = Arc::new(share);
        let rings: Vec<_> = (0..recipe.workers).map(|_| SimRing::new(&world, 2 << 20)).collect();
        let wakers = rings.iter().map(Ring::waker).collect();
        let job = JobCore::start(
            share,
            recipe.options.extents.clone(),
            ["source".into(), "target".into()],
            wakers,
            Arc::new(1.into()),
        );
        let mut mailboxes = Vec::new();
        let workers = rings.into_iter().enumerate().map(|(number, ring)| {
            let (inbox, mailbox) = sync_channel(4);
            let part = Part::new(Arc::clone(job.core()), number, Arc::clone(&source), Arc::clone(&target));
            inbox.send(Box::new(part)).unwrap();
            mailboxes.push(inbox);
            (Worker::new(&ring, mailbox), ring, true)
        });
        let workers = workers.collect();
        Self { world, source, target, job, workers, mailboxes }
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
            assert!(self.step(), "the job hangs: nothing is due and it is not over");
        }
        panic!("the job does not end: {:?}", self.job.progress());
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
            if share.claims.is_claimed(Chunk(chunk)) {
                return Err(format!("chunk {chunk} is still claimed"));
            }
        }
        Ok(())
    }

    /// The same, as a test.
    fn check(&self, outcome: &Outcome) {
        self.verdict(outcome).unwrap();
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
    no_zeroing: false,
    panic_on_look: false,
};

#[test]
fn short_transfers_and_passing_errors_never_reach_the_result() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.zero_detect = seed % 2 == 0;
        options.granularity = Granularity::new(4096 << (seed % 5)).ok();
        let faults = Faults { no_zeroing: seed % 3 == 0, ..PASSING };
        let bytes = (3 << 20) + (seed % 7) * 512;
        let mut sim = Sim::new(&Recipe {
            seed,
            faults,
            options,
            bytes,
            workers: 1 + usize::try_from(seed % 3).unwrap(),
            ..Recipe::default()
        });
        let before = sim.source.content();
        let outcome = sim.run(|_, _| ());
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
        sim.check(&outcome);
        assert!(sim.source.content() == before && sim.source.writes() == 0, "our hands off the source");
    }
}

#[test]
fn reported_errors_fail_the_job_and_what_is_clean_is_equal() {
    let mut failed = 0;
    for seed in seeds() {
        let faults = Faults { read_error: 10, write_error: 10, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, ..Recipe::default() });
        let outcome = sim.run(|_, _| ());
        sim.check(&outcome);
        assert_eq!(outcome.error.is_some(), outcome.target == TargetState::Incomplete);
        failed += u64::from(outcome.error.is_some());
    }
    assert!(failed > seeds().end / 4, "the errors did not happen");
}

#[test]
fn ignored_errors_are_tried_again_until_the_target_is_equal() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
        let faults = Faults { read_error: 30, write_error: 30, no_space: 10, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, options, ..Recipe::default() });
        let outcome = sim.run(|_, _| ());
        sim.check(&outcome);
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
    }
}

#[test]
fn an_ignored_error_that_stays_ends_the_job_after_a_bounded_number_of_rounds() {
    let mut options = Recipe::default().options;
    options.on_target_error = ErrorPolicy::Ignore;
    let faults = Faults { write_error: 1000, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, bytes: 1 << 20, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert!(outcome.error.unwrap().to_string().contains("given up"));
    assert!(sim.world.now_ns() < 20_000_000_000, "it took {} ns", sim.world.now_ns());
}

#[test]
fn a_job_stopped_for_lack_of_space_goes_on_when_it_is_resumed() {
    let mut stops = 0;
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.on_target_error = ErrorPolicy::Enospc;
        let faults = Faults { no_space: 20, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, options, ..Recipe::default() });
        let mut held_since = None;
        let outcome = sim.run(|sim, n| {
            while let Some(event) = sim.job.next_event() {
                stops += u32::from(event == Event::Stopped { no_space: true });
            }
            if sim.job.core().share.is_held() {
                if *held_since.get_or_insert(n) + 50 < n {
                    sim.job.resume();
                    held_since = None;
                }
                sim.world.advance_to(sim.world.now_ns() + 1000);
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        sim.check(&outcome);
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
    }
    assert!(stops > 0, "the target was never full");
}

#[test]
fn a_cancelled_job_ends_and_says_what_is_missing() {
    for seed in seeds() {
        let faults = Faults { stuck: if seed % 2 == 0 { 2 } else { 0 }, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, ..Recipe::default() });
        let mut asked = None;
        let outcome = sim.run(|sim, n| {
            if n == 10 + seed * 3 {
                sim.job.cancel();
                asked = Some(sim.world.now_ns());
            }
        });
        assert!(outcome.cancelled || outcome.target == TargetState::Complete);
        let since = asked.map_or(0, |at| sim.world.now_ns() - at);
        assert!(since < 1_000_000_000, "seed {seed}: it took {since} ns to end");
        if seed % 2 == 1 {
            sim.check(&outcome);
        }
        drop(sim.mailboxes);
    }
}

/// A job under a guest that writes all the time: small ranges, often to the same places, often zeroes.
fn under_guest_writes(seed: u64, faults: Faults, mutation: Option<Mutation>) -> Result<(), String> {
    let mut options = Recipe::default().options;
    options.zero_detect = seed % 2 == 1;
    options.target_is_zero = seed.is_multiple_of(3);
    (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
    let mut sim = Sim::new(&Recipe { seed, faults, options, mutation, ..Recipe::default() });
    let mut unmarked: Option<ByteRange> = None;
    let mut writes = 0;
    let outcome = sim.run(|sim, _| {
        // Mark after, before the ack: the data is there first, its bits are set some steps later.
        if let Some(range) = unmarked {
            if sim.world.pick(4) == 0 {
                sim.job.core().share.dirty.set_bytes(range);
                sim.workers.iter().for_each(|w| w.1.waker().wake());
                unmarked = None;
            }
        } else if writes < 200 && sim.world.pick(2) == 0 {
            let reach = if sim.world.pick(2) == 0 { 64 } else { (3 << 20) / 512 - 8 };
            let at = sim.world.pick(reach) * 512;
            let data = vec![u8::try_from(sim.world.pick(3)).unwrap(); 512 * 8];
            sim.source.poke(at, &data);
            unmarked = Some(ByteRange::at(at, 4096));
            writes += 1;
        }
    });
    if let Some(range) = unmarked {
        sim.job.core().share.dirty.set_bytes(range);
    }
    assert!(writes > 20, "seed {seed}: the guest wrote {writes} times only");
    // A guest that is not stopped may write after the verdict's last look; such a chunk must be dirty.
    let clean = sim.job.core().share.dirty.is_clean();
    let target = if clean { outcome.target } else { TargetState::Incomplete };
    sim.verdict(&Outcome { target, ..outcome })
}

#[test]
fn guest_writes_during_the_copy_are_never_lost() {
    for seed in seeds() {
        let faults = Faults { read_error: 5, write_error: 5, ..PASSING };
        under_guest_writes(seed, faults, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A guest that writes data far ahead of the sweep and zeroes it again, on a target that is known to be zero.
fn under_a_guest_ahead_of_the_sweep(seed: u64, mutation: Option<Mutation>) -> Result<(), String> {
    let mut options = Recipe::default().options;
    (options.zero_detect, options.target_is_zero) = (true, true);
    // Little memory makes the sweep slow, so that the guest can stay ahead of it.
    options.buf_size_bytes = 128 * KIB;
    let bytes = 12 << 20;
    let mut sim = Sim::new(&Recipe { seed, options, mutation, bytes, ..Recipe::default() });
    let mut values = [0u8; 24];
    let outcome = sim.run(|sim, _| {
        if !sim.job.core().share.sweep_is_claimed() && sim.world.pick(2) == 0 {
            let place = 12 + sim.world.pick(12);
            let value = &mut values[usize::try_from(place).unwrap()];
            *value = 7 - *value;
            sim.source.poke(place * (512 << 10), &[*value; 65536]);
            sim.job.core().share.dirty.set_bytes(ByteRange::at(place * (512 << 10), 65536));
            sim.workers.iter().for_each(|w| w.1.waker().wake());
        }
    });
    sim.verdict(&outcome)
}

#[test]
fn what_was_written_ahead_of_the_sweep_is_not_taken_for_zero() {
    for seed in 0..seeds().end / 3 {
        under_a_guest_ahead_of_the_sweep(seed, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let noticed = seeds()
        .find(|&seed| under_a_guest_ahead_of_the_sweep(seed, Some(Mutation::DirtyBeforeSweep)).is_err());
    assert!(noticed.is_some(), "taking dirty chunks before the sweep goes unnoticed");
}

#[test]
fn every_broken_protocol_is_noticed() {
    let faults = Faults { read_error: 5, write_error: 5, ..PASSING };
    for mutation in
        [Mutation::ClearLate, Mutation::ForgetFailure, Mutation::NoClaim, Mutation::TrustZeroTarget]
    {
        let noticed = (0..300).find(|&seed| under_guest_writes(seed, faults, Some(mutation)).is_err());
        assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    }
}

#[test]
fn a_panic_in_the_logic_fails_the_job_and_the_worker_lives() {
    let mut options = Recipe::default().options;
    options.zero_detect = true;
    let faults = Faults { panic_on_look: true, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert_eq!(outcome.error.unwrap().kind(), crate::ErrorKind::Internal);
    assert!(sim.workers.iter().all(|w| w.2), "the workers go on");
    while sim.step() {}
    assert!(sim.workers.iter().all(|w| w.0.window_used_bytes() == 0), "other jobs have the whole window");
}

#[test]
fn a_source_that_shrinks_fails_the_job_whatever_the_policy() {
    for policy in [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Stop] {
        let mut options = Recipe::default().options;
        options.on_source_error = policy;
        let mut sim = Sim::new(&Recipe { options, workers: 1, ..Recipe::default() });
        fill(&sim.world, &sim.source, 3 << 20, 100);
        let outcome = sim.run(|sim, n| {
            if n == 2 {
                sim.source.shrink_to(1 << 20);
            }
        });
        assert_eq!(outcome.error.unwrap().kind(), crate::ErrorKind::SourceShrank);
    }
}

#[test]
fn a_failed_flush_is_never_a_success() {
    let faults = Faults { flush_error: 1000, ..Faults::default() };
    let outcome = Sim::new(&Recipe { faults, ..Recipe::default() }).run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert!(outcome.error.unwrap().to_string().contains("flush"));
    let mut options = Recipe::default().options;
    options.on_target_error = ErrorPolicy::Ignore;
    let faults = Faults { flush_error: 500, ..Faults::default() };
    let outcome = Sim::new(&Recipe { faults, options, ..Recipe::default() }).run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Complete);
}

#[test]
fn a_cluster_that_is_touched_is_copied_whole() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.sync = SyncMode::Top;
        options.target_cluster_bytes = Some(64 * KIB);
        let mut sim = Sim::new(&Recipe {
            seed,
            faults: PASSING,
            options,
            bytes: (3 << 20) + 1024,
            ..Recipe::default()
        });
        let before = sim.target.content();
        let outcome = sim.run(|_, _| ());
        assert_eq!(outcome.target, TargetState::Complete, "{:?}", outcome.error);
        let (source, target) = (sim.source.content(), sim.target.content());
        for cluster in (0..source.len()).step_by(64 << 10) {
            let part = cluster..(cluster + (64 << 10)).min(source.len());
            let has_data = source[part.clone()].iter().any(|&b| b != 0);
            let expected = if has_data { &source } else { &before };
            assert!(
                target[part.clone()] == expected[part],
                "seed {seed}: cluster at {cluster}, data {has_data}"
            );
        }
    }
}

#[test]
fn sync_none_copies_nothing_and_succeeds() {
    let mut options = Recipe::default().options;
    options.sync = SyncMode::None;
    let mut sim = Sim::new(&Recipe { options, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!((outcome.target, sim.target.writes()), (TargetState::Complete, 0));
}

#[test]
fn the_speed_limit_is_kept_by_all_workers_together() {
    let mut options = Recipe::default().options;
    options.speed_bytes_per_s = 10 << 20;
    let mut sim = Sim::new(&Recipe { options, workers: 3, ..Recipe::default() });
    fill(&sim.world, &sim.source, 3 << 20, 100);
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Complete);
    let took = sim.world.now_ns();
    assert!((280_000_000..400_000_000).contains(&took), "3 MiB at 10 MiB/s took {took} ns");
}

// ---- review: failing tests ----

/// Complete although the last write to the target came after the flush had begun.
#[test]
fn review_flush_covers_every_write() {
    let mut bad = Vec::new();
    for seed in 0..60 {
        let mut sim = Sim::new(&Recipe { seed, bytes: 1 << 20, ..Recipe::default() });
        let mut poked = false;
        let outcome = sim.run(|sim, _| {
            if !poked && sim.job.core().share.is_finished() {
                poked = true;
                sim.source.poke(8192, &[7; 4096]);
                sim.job.core().share.dirty.set_bytes(ByteRange::at(8192, 4096));
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        sim.check(&outcome);
        if outcome.target == TargetState::Complete && sim.target.flushed() != sim.target.writes() {
            bad.push((seed, sim.target.flushed(), sim.target.writes()));
        }
    }
    assert!(bad.is_empty(), "complete, and not flushed (seed, flushed, writes): {bad:?}");
}

/// A guest write where the extent list says "absent".
#[test]
fn review_guest_writes_outside_the_extent_list() {
    use crate::device::{Extent, ExtentKind};
    use crate::mirror::ExtentMap;
    let mut options = Recipe::default().options;
    options.sync = SyncMode::Top;
    options.extents = ExtentMap::from_extents(vec![
        Extent { range: ByteRange::new(0, 1 << 20), kind: ExtentKind::Data },
        Extent { range: ByteRange::new(2 << 20, 3 << 20), kind: ExtentKind::Zero },
    ])
    .ok();
    let mut sim = Sim::new(&Recipe { options, ..Recipe::default() });
    let outcome = sim.run(|sim, n| {
        if n == 5 {
            for at in [3 << 19, 5 << 19] {
                sim.source.poke(at, &[9; 4096]);
                sim.job.core().share.dirty.set_bytes(ByteRange::at(at, 4096));
            }
        }
    });
    assert_eq!(outcome.target, TargetState::Complete);
    let t = sim.target.content();
    assert!(t[5 << 19] == 9, "a guest write in a listed zero extent is lost");
    assert!(t[3 << 19] == 9, "a guest write in an absent extent is lost");
}

/// Clusters touched for the first time by a dirty run that begins inside one and ends in the next.
#[test]
fn review_clusters_whole_in_dirty_runs() {
    let mut bad = Vec::new();
    for seed in 0..40 {
        let mut options = Recipe::default().options;
        options.sync = SyncMode::Top;
        options.target_cluster_bytes = Some(64 * KIB);
        (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
        let mut sim = Sim::new(&Recipe { seed, options, bytes: 3 << 20, ..Recipe::default() });
        // A hole over the end of one cluster and the start of the next, data behind it, written by the guest later.
        let before = sim.target.content();
        let mut poked = false;
        let outcome = sim.run(|sim, _| {
            if !poked && sim.job.core().share.sweep_is_claimed() {
                poked = true;
                for cluster in (0..47u64).step_by(2) {
                    // The guest dirties the last chunk of a cluster and the first of the next without changing them
                    // (a write of the same data), and writes the last block of the next cluster.
                    let edge = (cluster + 1) * 65536;
                    sim.source.poke(edge + 65536 - 4096, &[5; 4096]);
                    sim.job.core().share.dirty.set_bytes(ByteRange::at(edge - 4096, 65536 + 4096));
                }
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        if outcome.target != TargetState::Complete {
            continue;
        }
        let (source, target) = (sim.source.content(), sim.target.content());
        for cluster in (0..source.len()).step_by(64 << 10) {
            let part = cluster..(cluster + (64 << 10)).min(source.len());
            let has_data = source[part.clone()].iter().any(|&b| b != 0);
            let expected = if has_data { &source } else { &before };
            if target[part.clone()] != expected[part] {
                bad.push((seed, cluster >> 16, has_data));
            }
        }
    }
    assert!(bad.is_empty(), "(seed, cluster, has data): {} {:?}", bad.len(), &bad[..bad.len().min(5)]);
}

/// After the verdict nobody writes to the target any more.
#[test]
fn review_no_write_after_the_verdict() {
    let mut sim = Sim::new(&Recipe::default());
    let mut outcome = None;
    for _ in 0..3_000_000 {
        if sim.job.core().is_over() {
            outcome = sim.job.core().share.is_finished().then_some(());
            break;
        }
        assert!(sim.step());
    }
    assert!(outcome.is_some());
    let writes = sim.target.writes();
    sim.job.core().share.dirty.set_bytes(ByteRange::at(0, 65536));
    for _ in 0..1000 {
        if !sim.step() {
            break;
        }
    }
    assert_eq!(sim.target.writes(), writes, "the target was written after the job had concluded");
}

/// What was in hand when a panic was caught is dirty.
#[test]
fn review_a_panic_loses_no_dirty_bit() {
    let mut options = Recipe::default().options;
    options.zero_detect = true;
    let faults = Faults { panic_on_look: true, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, bytes: 40 << 20, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    sim.check(&outcome);
}

/// What was in flight when a cancelled job stopped waiting is dirty.
#[test]
fn review_a_stuck_request_loses_no_dirty_bit() {
    let faults = Faults { stuck: 20, ..PASSING };
    let mut sim = Sim::new(&Recipe { faults, ..Recipe::default() });
    let outcome = sim.run(|sim, n| {
        if n == 40 {
            sim.job.cancel()
        }
    });
    sim.check(&outcome);
}

/// A part that waits in the mailbox of a worker whose ring breaks.
mod broken_ring {
    use super::*;
    use crate::buffer::BufRange;
    use crate::device::Extent;
    use crate::error::Result;
    use crate::ring::{Completion, DeviceSlot, Full, Request, Tag, Wait, Wake};

    struct Breaking {
        inner: SimRing,
        turns: u32,
        late: Option<(SyncSender<Mail<SimDisk>>, Box<Part<SimDisk>>)>,
    }

    impl Ring for Breaking {
        type Device = SimDisk;
        fn attach(&mut self, d: &Arc<SimDisk>) -> Result<DeviceSlot> {
            self.inner.attach(d)
        }
        fn detach(&mut self, s: DeviceSlot) {
            self.inner.detach(s);
        }
        fn push(&mut self, r: Request, t: Tag) -> std::result::Result<(), Full> {
            self.inner.push(r, t)
        }
        fn enter(&mut self, w: Wait) -> Result<()> {
            self.turns += 1;
            if self.turns == 3 {
                if let Some((inbox, part)) = self.late.take() {
                    inbox.send(part).unwrap();
                }
                return Err(crate::Error::from_errno("run the io_uring", libc::ENOMEM));
            }
            self.inner.enter(w)
        }
        fn pop(&mut self) -> Option<Completion> {
            self.inner.pop()
        }
        fn in_flight(&self) -> usize {
            self.inner.in_flight()
        }
        fn now_ns(&self) -> u64 {
            self.inner.now_ns()
        }
        fn status(&mut self, s: DeviceSlot, o: u64) -> Result<Extent> {
            self.inner.status(s, o)
        }
        fn is_zero(&self, b: BufRange) -> bool {
            self.inner.is_zero(b)
        }
        fn memory_bytes(&self) -> usize {
            self.inner.memory_bytes()
        }
        fn waker(&self) -> Arc<dyn Wake> {
            self.inner.waker()
        }
    }

    #[test]
    fn review_mail_of_a_broken_worker() {
        let a = Sim::new(&Recipe { workers: 1, ..Recipe::default() });
        let b = Sim::new(&Recipe { workers: 1, ..Recipe::default() });
        let part = |s: &Sim| {
            Box::new(Part::new(Arc::clone(s.job.core()), 0, Arc::clone(&s.source), Arc::clone(&s.target)))
        };
        let (inbox, mailbox) = sync_channel(4);
        inbox.send(part(&a)).unwrap();
        let mut ring = Breaking {
            inner: SimRing::new(&a.world, 2 << 20),
            turns: 0,
            late: Some((inbox.clone(), part(&b))),
        };
        Worker::new(&ring, mailbox).run(&mut ring);
        let outcome = a.job.wait_for(std::time::Duration::from_secs(1)).unwrap();
        let lost = a.verdict(&outcome);
        b.job.cancel();
        let hangs = b.job.wait_for(std::time::Duration::from_secs(2)).is_none();
        assert!(
            !hangs && lost.is_ok(),
            "job in the mailbox hangs: {hangs}; dirty bits of the running job: {lost:?}"
        );
    }
}

/// Dropping an engine when the mailbox of a worker is full.
#[test]
fn review_engine_drop_with_a_full_mailbox() {
    use super::{Engine, WorkerHandle};
    // Room for nothing stands for a full mailbox.
    let (inbox, mailbox) = sync_channel::<Mail<crate::device::Device>>(0);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        while mailbox.recv().is_ok() {}
    });
    let ring = SimRing::new(&World::new(1, Faults::default()), 4096);
    let worker =
        WorkerHandle { inbox: Some(inbox), waker: ring.waker(), contiguous: true, thread: Some(thread) };
    let engine = Engine { workers: vec![worker], next_home: 0.into(), jobs: Arc::default() };
    let (done, ended) = sync_channel(1);
    std::thread::spawn(move || {
        drop(engine);
        let _ = done.send(());
    });
    assert!(ended.recv_timeout(std::time::Duration::from_secs(2)).is_ok(), "dropping the engine hangs");
}
