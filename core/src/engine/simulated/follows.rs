//! How soon a job that follows sees a write, in virtual time.

use super::rounds::turn_until;
use super::*;
use crate::engine::crew::Crew;

/// The disks: more than what counts as little.
const BYTES: u64 = 16 << 20;
/// One millisecond.
const MS: u64 = 1_000_000;
/// The promise.
const LAG_NS: u64 = 5 * MS;
/// What the test looks at the target by.
const LOOK_NS: u64 = MS / 10;

/// A job, and a guest that is disturbed by every copy.
struct Following {
    world: Arc<World>,
    source: Arc<SimDisk>,
    target: Arc<SimDisk>,
    drive: Arc<DriveCore<SimDisk>>,
    crew: Crew,
    _job: Job,
    share: Arc<Share>,
    busy: bool,
}

impl Following {
    fn new(seed: u64, workers: usize, latency_budget: LatencyBudget) -> Self {
        let world = World::new(seed, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        // So slow that a rest, which is in proportion to what a piece takes, is many times the promise.
        [&source, &target].into_iter().for_each(|disk| disk.set_rate(40 << 20));
        let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
        let crew = Crew::new(&world, workers, 2 << 20);
        let options = MirrorOptions {
            granularity: Granularity::new(64 * KIB).ok(),
            copy_mode: CopyModeChoice::Background,
            latency_budget,
            ..MirrorOptions::default()
        };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        Self { world, source, target, drive, crew, _job: job, share, busy: true }
    }

    /// Lets some time pass. The guest reads all the while, far slower whenever anything is being copied.
    fn pass(&mut self, ns: u64) {
        let end_ns = self.world.now_ns() + ns;
        while self.world.now_ns() < end_ns {
            let copying = self.busy && self.share.progress().in_flight_bytes > 0;
            (0..4).for_each(|_| self.drive.record_latency(if copying { 10 * MS } else { 100_000 }));
            turn_until(&mut self.crew, &self.world, (self.world.now_ns() + LOOK_NS).min(end_ns));
        }
    }

    /// Copies everything, at the pace that such a guest leaves, until it is over.
    fn catch_up(&mut self) {
        for _ in 0..200_000 {
            if self.share.is_finished() {
                [&self.source, &self.target].into_iter().for_each(|disk| {
                    disk.set_rate(0);
                    disk.set_latency(1_000, 0);
                });
                return;
            }
            self.pass(LOOK_NS);
        }
        panic!("the first pass does not end");
    }

    /// A guest write, and how long it takes until it is on the target.
    fn lag_ns(&mut self, number: u64) -> u64 {
        let at = self.world.pick(BYTES / 4096) * 4096;
        let data: Vec<u8> = (0..512).flat_map(|_| (number | 1 << 40).to_le_bytes()).collect();
        self.source.poke(at, &data);
        if self.share.guest_wrote(ByteRange::at(at, 4096)) {
            self.crew.wake(0);
        }
        let begun_ns = self.world.now_ns();
        let at = usize::try_from(at).unwrap();
        while !self.target.look(|bytes| bytes[at..at + 4096] == data[..]) {
            assert!(self.world.now_ns() < begun_ns + 1000 * MS, "a write does not reach the target");
            self.pass(LOOK_NS);
        }
        self.world.now_ns() - begun_ns
    }
}

/// What a guest wrote just now would otherwise wait for a turn that belongs to a worker that sleeps, for a rest that is due for
/// a piece of the first pass, or for the end of a probe; and a switch-over that is foreseen to be short would not be.
#[test]
fn a_write_to_a_job_that_follows_is_copied_within_5_ms_whatever_the_pace() {
    for workers in [1, 3] {
        for (name, budget) in [("off", LatencyBudget::Off), ("twice", LatencyBudget::Baseline(2.0))] {
            for pause_ms in [3, 150] {
                for seed in 0..6 {
                    let mut following = Following::new(seed, workers, budget);
                    following.catch_up();
                    for number in 0..12 {
                        let lag_ns = following.lag_ns(number);
                        assert!(
                            lag_ns <= LAG_NS + 2 * LOOK_NS,
                            "{workers} workers, budget {name}, {pause_ms} ms apart, seed {seed}, write {number}: {lag_ns} ns"
                        );
                        let more_ns = following.world.pick(MS);
                        following.pass(pause_ms * MS + more_ns);
                    }
                }
            }
        }
    }
}
