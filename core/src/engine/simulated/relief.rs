//! A latency budget that holds the copiers back to what the guest writes: the job becomes ready all the same.

use std::time::Duration;

use super::windows::{options, turn_all};
use super::*;
use crate::drive::{Admission, IoKind};
use crate::engine::crew::Crew;
use crate::mirror::{BudgetLevel, Escalation};

/// The disks.
const BYTES: u64 = 16 << 20;
/// What the guest writes in each millisecond, somewhere.
const WRITE_BYTES: u64 = 64 << 10;
/// What a request takes on either disk.
const DISK_NS: u64 = 1_000_000;

/// Too short for what is left beside the slowest pace: half the disk.
const MAX_PAUSE: Duration = Duration::from_millis(8);

/// A guest that does its own I/O without rest, and whose requests take a hundred times as long beside any pace but the slowest.
struct Scene {
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
        // Another world, another clock.
        crate::drive::start_anew();
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        [&source, &target].into_iter().for_each(|disk| disk.set_latency(DISK_NS, 0));
        let drive = DriveCore::new(source, BYTES, 512, true);
        let crew = Crew::new(&world, 1, 2 << 20);
        let max_pause = Some(MAX_PAUSE);
        let options = MirrorOptions { copy_mode, latency_budget, max_pause, ..options() };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        Self { world, drive, crew, job, share, random: 1, events: Vec::new() }
    }

    /// One write.
    fn write(&mut self) {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let at = (self.random >> 33) % (BYTES / WRITE_BYTES) * WRITE_BYTES;
        let now_ns = self.world.now_ns();
        let took_ns = if self.share.pace().in_flight_bytes <= 64 * KIB { 100_000 } else { 10_000_000 };
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
