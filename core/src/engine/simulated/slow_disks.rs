//! A switch-over between disks so slow that the pause holds a few hundred kilobytes.

use std::time::Duration;

use super::rounds::turn_until;
use super::*;
use crate::engine::Completion;
use crate::engine::crew::Crew;

/// The disks.
const BYTES: u64 = 8 << 20;
/// What each of them transfers in a second.
const RATE: u64 = 20 << 20;
/// How long the guest may be held.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// A remainder that goes as one request is read before any of it is written, and takes twice as long as its bytes do.
#[test]
fn what_is_left_is_read_and_written_at_the_same_time_and_fits_as_foreseen() {
    for left_kib in [64, 128, 192, 256] {
        let world = World::new(left_kib, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        [&source, &target].into_iter().for_each(|disk| disk.set_rate(RATE));
        let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, false);
        let mut crew = Crew::new(&world, 1, 2 << 20);
        let options = MirrorOptions {
            granularity: Granularity::new(64 * KIB).ok(),
            max_pause: Some(MAX_PAUSE),
            copy_mode: CopyModeChoice::Background,
            latency_budget: LatencyBudget::Off,
            ..MirrorOptions::default()
        };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        while job.status() != JobStatus::Ready {
            turn_until(&mut crew, &world, world.now_ns() + 1_000_000);
        }
        // The flush after so long a copy was slow, and that is believed for some seconds.
        turn_until(&mut crew, &world, world.now_ns() + 10_000_000_000);
        fill(&world, &source, left_kib * KIB, 100);
        assert!(job.query().fits_now, "{left_kib} KiB");
        if share.guest_wrote(ByteRange::new(0, left_kib * KIB)) {
            crew.wake(0);
        }
        job.complete(Completion::Pivot).unwrap();
        turn_until(&mut crew, &world, world.now_ns() + 500_000_000);
        assert_eq!((job.query().missed, job.status()), (0, JobStatus::Concluded), "{left_kib} KiB");
        assert_eq!(source.content(), target.content());
    }
}
