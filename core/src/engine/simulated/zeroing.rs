//! Zeroing in virtual time: what it owes to the guest and to the speed limit.

use super::rounds::turn_until;
use super::*;
use crate::engine::crew::Crew;

/// The disks: the source is one hole, the target is full.
const BYTES: u64 = 8 << 20;
/// One millisecond.
const MS: u64 = 1_000_000;

/// What a test looks at.
struct Holes {
    world: Arc<World>,
    target: Arc<SimDisk>,
    drive: Arc<DriveCore<SimDisk>>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
}

impl Holes {
    /// A job that follows, with `workers`.
    fn new(workers: usize, options: MirrorOptions) -> Self {
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        target.poke(0, &vec![7; usize::try_from(BYTES).unwrap()]);
        let drive = DriveCore::new(source, BYTES, 512, true);
        let crew = Crew::new(&world, workers, 2 << 20);
        let options = MirrorOptions { copy_mode: CopyModeChoice::Background, ..options };
        // A guest that is at work from the beginning.
        drive.record_latency(100_000);
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        (0..100).for_each(|_| drive.record_latency(100_000));
        Self { world, target, drive, crew, job, share }
    }

    /// Bytes of the target that are not zero yet.
    fn left_bytes(&self) -> usize {
        self.target.look(|bytes| bytes.iter().filter(|&&byte| byte != 0).count())
    }

    /// Lets the guest have requests that take so long, until the time has come; gives the most bytes that were in flight.
    fn run_until(&mut self, until_ns: u64, latency_ns: u64) -> u64 {
        let mut most = 0;
        while self.world.now_ns() < until_ns {
            (0..20).for_each(|_| self.drive.record_latency(latency_ns));
            turn_until(&mut self.crew, &self.world, self.world.now_ns() + MS / 4);
            most = most.max(self.share.progress().in_flight_bytes);
        }
        most
    }
}

/// A baseline that is measured while gigabytes are zeroed beside it is none, and a guest feels zeroing as it feels writing.
#[test]
fn zeroing_holds_still_for_a_probe_and_keeps_to_the_pace_after_it() {
    for workers in [1, 2] {
        let options =
            MirrorOptions { latency_budget: LatencyBudget::Baseline(2.0), ..MirrorOptions::default() };
        let mut holes = Holes::new(workers, options);
        // The first worker may have begun one before the guest was looked at for the first time.
        holes.run_until(20 * MS, 100_000);
        let left = holes.left_bytes();
        assert!(
            left >= usize::try_from(BYTES).unwrap() - (2 << 20),
            "{left} bytes are left when the probe begins"
        );
        holes.run_until(200 * MS, 100_000);
        assert_eq!(holes.left_bytes(), left, "zeroed beside a probe");
        let most = holes.run_until(3000 * MS, 120_000);
        assert!(most <= u64::try_from(workers).unwrap() << 20, "{most} bytes at once");
        assert_eq!((holes.left_bytes(), holes.job.status()), (0, JobStatus::Ready));
    }
}

/// Where zeroes are written, a limit that does not count them would let them take all of the target's throughput.
#[test]
fn zeroes_that_are_written_count_under_the_speed_limit_and_holes_do_not() {
    for (keep_allocated, took_ms) in [(true, 780..830), (false, 0..50)] {
        let options = MirrorOptions {
            latency_budget: LatencyBudget::Off,
            speed_bytes_per_s: 10 << 20,
            keep_allocated,
            ..MirrorOptions::default()
        };
        let mut holes = Holes::new(2, options);
        while holes.left_bytes() > 0 && holes.world.now_ns() < 2000 * MS {
            turn_until(&mut holes.crew, &holes.world, holes.world.now_ns() + MS);
        }
        let took = holes.world.now_ns() / MS;
        assert!(took_ms.contains(&took), "keep_allocated {keep_allocated}: 8 MiB at 10 MiB/s took {took} ms");
    }
}
