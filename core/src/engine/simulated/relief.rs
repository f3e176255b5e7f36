//! A latency budget that holds the copiers back to what the guest writes: the job becomes ready all the same.

use std::time::Duration;

use super::windows::{options, turn_all};
use super::*;
use crate::drive::{Admission, IoKind};
use crate::engine::crew::Crew;
use crate::mirror::{BudgetLevel, Escalation, Pace};

/// The disks.
const BYTES: u64 = 16 << 20;
/// What the guest writes in each millisecond, somewhere.
const WRITE_BYTES: u64 = 64 << 10;
/// What a request takes on either disk.
const DISK_NS: u64 = 1_000_000;

/// Too short for what is left beside the slowest pace: half the disk.
const MAX_PAUSE: Duration = Duration::from_millis(8);

/// A guest that does its own I/O without rest, and whose requests take a hundred times as long beside any pace that is too fast.
struct Scene {
    target: Arc<SimDisk>,
    /// Too fast is more than so much in flight.
    bears_bytes: u64,
    world: Arc<World>,
    drive: Arc<DriveCore<SimDisk>>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
    random: u64,
    events: Vec<EventKind>,
}

impl Scene {
    fn new(copy_mode: CopyModeChoice, latency_budget: LatencyBudget) -> Self {
        Self::with(&MirrorOptions { copy_mode, latency_budget, max_pause: Some(MAX_PAUSE), ..options() })
    }

    fn with(options: &MirrorOptions) -> Self {
        // Another world, another clock.
        crate::drive::start_anew();
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        [&source, &target].into_iter().for_each(|disk| disk.set_latency(DISK_NS, 0));
        let drive = DriveCore::new(source, BYTES, 512, true);
        let crew = Crew::new(&world, 1, 2 << 20);
        let (job, share) = crew.start(&drive, &target, options, None).unwrap();
        let bears_bytes = 64 * KIB;
        Self { world, drive, crew, job, share, target, bears_bytes, random: 1, events: Vec::new() }
    }

    /// One write.
    fn write(&mut self) {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let at = (self.random >> 33) % (BYTES / WRITE_BYTES) * WRITE_BYTES;
        let now_ns = self.world.now_ns();
        let took_ns =
            if self.share.pace().in_flight_bytes <= self.bears_bytes { 100_000 } else { 10_000_000 };
        let range = ByteRange::at(at, WRITE_BYTES);
        if let Admission::Go(token) = self.drive.begin(range, IoKind::Write, || now_ns).unwrap() {
            self.drive.end(token, Ok(()), || now_ns + took_ns).unwrap();
        }
    }

    /// Runs for so many ms at most, with a write in each of which `every` is a divisor, until `done`; how long it took.
    fn run(&mut self, ms: u64, every: u64, mut done: impl FnMut(&Job) -> bool) -> Option<u64> {
        let from_ns = self.world.now_ns();
        while self.world.now_ns() < from_ns + ms * 1_000_000 {
            let ms = self.world.now_ns() / 1_000_000;
            if ms.is_multiple_of(every) {
                self.write();
            }
            while self.world.now_ns() / 1_000_000 == ms {
                turn_all(&mut self.crew, &self.world, 1);
            }
            self.events.extend(std::iter::from_fn(|| self.job.next_event()).map(|event| event.what));
            if done(&self.job) {
                return Some((self.world.now_ns() - from_ns) / 1_000_000);
            }
        }
        None
    }

    /// The steps that were told of.
    fn steps(&self) -> Vec<Escalation> {
        let step = |what: &EventKind| match *what {
            EventKind::Escalated { step, .. } => Some(step),
            _ => None,
        };
        self.events.iter().filter_map(step).collect()
    }
}

/// Runs until it is ready, and returns the steps that it took.
fn steps_until_ready(copy_mode: CopyModeChoice, budget: LatencyBudget) -> Vec<Escalation> {
    let mut scene = Scene::new(copy_mode, budget);
    assert!(scene.run(30_000, 1, |job| job.core().share.sweep_is_claimed()).is_some(), "the first pass");
    assert_eq!(scene.job.query().budget_level, BudgetLevel::Chosen);
    let ready_ms = scene.run(40_000, 1, |job| job.status() == JobStatus::Ready);
    assert!(ready_ms.is_some(), "{copy_mode:?}, {budget:?}: {:?} {:?}", scene.steps(), scene.job.query());
    scene.steps()
}

/// A budget is a goal; a job that keeps it and is never ready is of no use to anybody.
#[test]
fn a_budget_that_would_keep_the_job_from_ready_for_ever_is_loosened_in_the_open() {
    use Escalation::{BudgetLoosened as Loosened, WriteBlocking};
    let loosened = [Loosened(BudgetLevel::FourTimes), Loosened(BudgetLevel::Lifted)];
    for budget in [LatencyBudget::Baseline(2.0), LatencyBudget::Absolute(Duration::from_micros(200))] {
        assert_eq!(steps_until_ready(CopyModeChoice::Background, budget), loosened);
        // There is no queue, so write-blocking cannot help, and is not waited for.
        let auto = steps_until_ready(CopyModeChoice::Auto, budget);
        assert_eq!(auto, [&[WriteBlocking], &loosened[..]].concat());
    }
    // Without a budget there is nothing to be loosened, nor is there any need.
    assert_eq!(steps_until_ready(CopyModeChoice::Background, LatencyBudget::Off), []);
}

/// Otherwise one burst would cost the guest its latencies for as long as the job follows it, which may be months.
#[test]
fn a_loosened_budget_comes_back_once_the_job_keeps_up() {
    let mut scene = Scene::new(CopyModeChoice::Background, LatencyBudget::Baseline(2.0));
    assert!(scene.run(60_000, 1, |job| job.status() == JobStatus::Ready).is_some());
    let calm_ms = scene.run(60_000, 100, |job| job.query().budget_level == BudgetLevel::Chosen);
    assert!(calm_ms.is_some_and(|ms| ms >= 20_000), "{calm_ms:?} {:?}", scene.job.query());
    let restored = |what: &&EventKind| matches!(what, EventKind::BudgetTightened(_));
    let restored: Vec<EventKind> = scene.events.iter().filter(restored).copied().collect();
    let back = [BudgetLevel::FourTimes, BudgetLevel::Chosen].map(EventKind::BudgetTightened);
    assert_eq!(restored, back);
}

/// The steps of so many ms beside a guest without rest, in which nothing ever fits.
fn steps_in_vain(scene: &mut Scene, ms: u64) -> Vec<Escalation> {
    assert!(scene.run(ms, 1, |job| job.query().fits_now).is_none(), "{:?}", scene.job.query());
    scene.steps()
}

/// The copiers would go on at the limit all the same, and the guest's latencies be given up for nothing.
#[test]
fn a_budget_is_not_loosened_where_the_speed_limit_is_what_holds_the_copiers_back() {
    let mut scene = Scene::with(&MirrorOptions {
        copy_mode: CopyModeChoice::Background,
        latency_budget: LatencyBudget::Baseline(2.0),
        max_pause: Some(MAX_PAUSE),
        speed_bytes_per_s: 2 << 20,
        ..options()
    });
    assert!(scene.run(60_000, 1, |job| job.core().share.sweep_is_claimed()).is_some(), "the first pass");
    assert_eq!(steps_in_vain(&mut scene, 20_000), []);
}

/// Nor where the guest bears any pace, and the disks are what is slow.
#[test]
fn a_budget_is_not_loosened_where_it_holds_nobody_back() {
    let mut scene = Scene::new(CopyModeChoice::Background, LatencyBudget::Baseline(2.0));
    scene.bears_bytes = u64::MAX;
    // Until the budget knows.
    let known = scene.run(120_000, 1, |job| job.core().share.pace() == Pace::FULL);
    assert!(known.is_some(), "{:?} {:?}", scene.share.pace(), scene.job.query());
    scene.target.set_rate(WRITE_BYTES * 500);
    scene.run(2000, 1, |_| false);
    assert_eq!(steps_in_vain(&mut scene, 20_000), []);
}

/// Nor is anybody held where the target's flush alone takes longer than guests may be.
#[test]
fn no_step_is_taken_against_a_flush_that_takes_too_long_by_itself() {
    let mut scene = Scene::new(CopyModeChoice::Auto, LatencyBudget::Baseline(2.0));
    scene.target.set_flush_latency(1_000_000_000);
    // Beside a guest that does nothing it is flushed, and then that is known.
    scene.run(3000, 10_000, |_| false);
    assert!(scene.target.flushed() > 0);
    // For as long as that is believed.
    assert_eq!(steps_in_vain(&mut scene, 4000), [Escalation::WriteBlocking]);
    assert!(!scene.job.query().braking);
}

/// A flush of half the pause leaves room for the other half, and the steps lead there.
#[test]
fn a_job_beside_a_flush_of_half_the_pause_is_ready_all_the_same() {
    let (latency_budget, max_pause) = (LatencyBudget::Baseline(2.0), Some(Duration::from_millis(20)));
    for copy_mode in [CopyModeChoice::Background, CopyModeChoice::Auto] {
        let mut scene = Scene::with(&MirrorOptions { copy_mode, latency_budget, max_pause, ..options() });
        scene.target.set_flush_latency(10_000_000);
        let ready_ms = scene.run(60_000, 1, |job| job.status() == JobStatus::Ready);
        assert!(ready_ms.is_some(), "{copy_mode:?}: {:?} {:?}", scene.steps(), scene.job.query());
        assert!(!scene.steps().is_empty());
    }
}
