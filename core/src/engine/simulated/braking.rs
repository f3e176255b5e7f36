//! Copy mode auto against a host that does its own I/O and writes more than the copiers copy.

use super::windows::{options, turn_all};
use super::*;
use crate::drive::{Admission, IoKind};
use crate::engine::crew::Crew;
use crate::engine::{Completion, EscalationReason};
use crate::mirror::{End, Escalation};

/// The disks.
const BYTES: u64 = 8 << 20;

/// The guest writes all over the disk, unless it is held; whether it was let in.
fn write(drive: &DriveCore<SimDisk>) -> bool {
    write_to(drive, BYTES)
}

/// The same, but so many bytes only.
fn write_to(drive: &DriveCore<SimDisk>, bytes: u64) -> bool {
    let range = ByteRange::new(0, bytes);
    match drive.begin(range, IoKind::Write, || 1).unwrap() {
        Admission::Go(token) => drive.end(token, Ok(()), || 1).is_ok(),
        Admission::Held => false,
    }
}

/// How often this was told, of what was not heard yet.
fn count(job: &Job, what: EventKind) -> usize {
    std::iter::from_fn(|| job.next_event()).filter(|event| event.what == what).count()
}

/// A job in copy mode auto that its guest outruns: under the speed limit, for while the guest is held there is none.
struct Outrun {
    world: Arc<World>,
    target: Arc<SimDisk>,
    drive: Arc<DriveCore<SimDisk>>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
}

impl Outrun {
    /// It may hold the guest so many ms at a time.
    fn with_pause_of(ms: u64) -> Self {
        Self::new(MirrorOptions { max_pause: Some(std::time::Duration::from_millis(ms)), ..options() })
    }

    /// With these options.
    fn new(options: MirrorOptions) -> Self {
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        let drive = DriveCore::new(source, BYTES, 512, true);
        let crew = Crew::new(&world, 1, 2 << 20);
        let options =
            MirrorOptions { copy_mode: CopyModeChoice::Auto, speed_bytes_per_s: 2 << 20, ..options };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        Self { world, target, drive, crew, job, share }
    }

    /// The guest writes without rest, once the first pass is over, until `done`; it is given up after a minute.
    fn write_until(&mut self, done: impl Fn(&Job) -> bool) {
        for _ in 0..60_000 {
            if self.share.sweep_is_claimed() {
                write(&self.drive);
            }
            turn_all(&mut self.crew, &self.world, 1);
            if done(&self.job) {
                break;
            }
        }
    }
}

/// Without braking such a job would never come to its end, and without the reason its host would not know why its guest is held.
#[test]
fn a_tracked_guest_that_outruns_the_copy_is_braked_in_the_open_and_the_job_completes() {
    // A pause has room for the disk.
    let Outrun { world, drive, mut crew, job, share, .. } = Outrun::with_pause_of(10);
    let (mut steps, mut held) = (Vec::new(), 0);
    for _ in 0..60_000 {
        // Until the first pass is over only the copiers are at work.
        if share.sweep_is_claimed() {
            held += u64::from(!write(&drive));
        }
        turn_all(&mut crew, &world, 1);
        while let Some(event) = job.next_event() {
            if let EventKind::Escalated { step, reason, left_bytes } = event.what {
                assert!(left_bytes > 0);
                match reason {
                    EscalationReason::NotShrinking { left_bytes, .. } => {
                        assert!(left_bytes > 0, "{reason:?}");
                    }
                    EscalationReason::Missed { missed } => assert!(missed > 0, "{reason:?}"),
                }
                steps.push(step);
            }
        }
        if steps.len() == 2 && job.status() == JobStatus::Ready && !job.query().completing {
            job.complete(Completion::PointInTime).unwrap();
        }
        if Crew::outcome(&job).is_some() {
            break;
        }
    }
    assert_eq!(steps, [Escalation::WriteBlocking, Escalation::Braking], "{:?}", job.query());
    assert!(held > 0, "nobody was held");
    let outcome = Crew::outcome(&job);
    assert!(outcome.as_ref().is_some_and(|o| o.end == End::Completed), "{outcome:?} {:?}", job.query());
}

/// A host that takes the choice of mode into its own hands must get its guest back; held again and again it could only give up the
/// job.
#[test]
fn a_host_that_chooses_a_mode_ends_the_braking() {
    // No pause has room for what the guest makes dirty, so it is braked for ever.
    let Outrun { world, drive, mut crew, job, share, .. } = Outrun::with_pause_of(1);
    let held_in = |crew: &mut Crew, turns| {
        let mut held = 0;
        for _ in 0..turns {
            held += u64::from(share.sweep_is_claimed() && !write(&drive));
            turn_all(crew, &world, 1);
        }
        held
    };
    assert!(held_in(&mut crew, 40_000) > 0 && job.query().braking, "{:?}", job.query());
    job.set_copy_mode(crate::mirror::CopyMode::Background).unwrap();
    let _ = held_in(&mut crew, 1000);
    assert!(!job.query().braking);
    assert_eq!(held_in(&mut crew, 20_000), 0, "{:?}", job.query());
    assert_eq!(count(&job, EventKind::BrakingEnded), 1);
}

/// One hour with many writes must not leave a guest with a job that holds it again at the next, for months.
#[test]
fn a_guest_that_calms_down_is_braked_no_more() {
    let mut outrun = Outrun::with_pause_of(10);
    outrun.write_until(|job| job.query().braking && job.status() == JobStatus::Ready);
    let Outrun { world, mut crew, job, .. } = outrun;
    assert!(job.query().braking && job.status() == JobStatus::Ready, "{:?}", job.query());
    let calm_ns = world.now_ns();
    while job.query().braking && world.now_ns() < calm_ns + 60_000_000_000 {
        turn_all(&mut crew, &world, 1);
    }
    let calm_s = (world.now_ns() - calm_ns) / 1_000_000_000;
    // What was left is copied under the speed limit first.
    assert!((10..30).contains(&calm_s), "{calm_s} s");
    assert_eq!(count(&job, EventKind::BrakingEnded), 1);
}

/// Nothing is ever all clean beside such a guest while the gate is open.
#[test]
fn a_strict_job_beside_a_guest_without_rest_is_ready_by_being_clean_behind_the_gate() {
    let mut outrun = Outrun::new(MirrorOptions { strict_ready: true, ..options() });
    outrun.write_until(|job| job.status() == JobStatus::Ready);
    assert_eq!(outrun.job.status(), JobStatus::Ready, "{:?}", outrun.job.query());
    outrun.job.complete(Completion::PointInTime).unwrap();
    outrun.write_until(|job| Crew::outcome(job).is_some());
    let outcome = Crew::outcome(&outrun.job);
    let completed = outcome.as_ref().is_some_and(|o| o.end == End::Completed);
    assert!(completed, "{outcome:?} {:?}", outrun.job.query());
}

/// Such a guest leaves little again and again, and never for as long as a flush takes; with that alone the job would follow it for
/// ever.
#[test]
fn a_guest_that_writes_before_each_flush_of_the_target_ends_does_not_keep_a_job_from_ready() {
    let mut outrun = Outrun::with_pause_of(30);
    outrun.target.set_flush_latency(12_000_000);
    let (mut bursts, mut quiet_until_ns) = (0, 0);
    for _ in 0..600_000 {
        let now_ns = outrun.world.now_ns();
        if !outrun.target.is_flushing() {
            quiet_until_ns = now_ns + 8_000_000;
        } else if now_ns >= quiet_until_ns {
            bursts += u32::from(write_to(&outrun.drive, 256 << 10));
        }
        turn_all(&mut outrun.crew, &outrun.world, 1);
        if outrun.job.status() == JobStatus::Ready {
            break;
        }
    }
    assert_eq!(outrun.job.status(), JobStatus::Ready, "{bursts} bursts, {:?}", outrun.job.query());
    assert!(outrun.job.query().braking, "{bursts} bursts");
}
