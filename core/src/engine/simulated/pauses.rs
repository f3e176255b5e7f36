//! The longest pause, changed while a job runs.

use std::time::Duration;

use super::rounds::turn_until;
use super::windows::options;
use super::*;
use crate::engine::Completion;
use crate::engine::crew::Crew;
use crate::error::ErrorKind;

/// The disks.
const BYTES: u64 = 4 << 20;
/// A millisecond.
const MS: u64 = 1_000_000;

/// A job on a target whose every request, and so its flush, takes so long.
struct Stand {
    world: Arc<World>,
    crew: Crew,
    job: Job,
    share: Arc<Share>,
    drive: Arc<DriveCore<SimDisk>>,
}

impl Stand {
    fn new(max_pause_ms: u64, target_ms: u64) -> Self {
        let world = World::new(1, Faults::default());
        let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
        fill(&world, &source, BYTES, 100);
        target.set_latency(target_ms * MS, target_ms * MS);
        let drive = DriveCore::new(source, BYTES, 512, true);
        let crew = Crew::new(&world, 1, 2 << 20);
        let options = MirrorOptions { max_pause: Some(Duration::from_millis(max_pause_ms)), ..options() };
        let (job, share) = crew.start(&drive, &target, &options, None).unwrap();
        Self { world, crew, job, share, drive }
    }

    /// Goes on for so long, with a guest that writes all the time, until something is so; whether it is.
    fn turn_ms(&mut self, ms: u64, until: impl Fn(&Self) -> bool) -> bool {
        for n in 0..ms {
            if until(self) {
                return true;
            }
            if !self.drive.gate().is_closed() && self.share.guest_wrote(ByteRange::at(n % 8 * 64 * KIB, 4096))
            {
                self.crew.wake(0);
            }
            turn_until(&mut self.crew, &self.world, self.world.now_ns() + MS);
        }
        until(self)
    }

    fn is(status: JobStatus) -> impl Fn(&Self) -> bool {
        move |stand| stand.job.status() == status
    }

    fn set_ms(&self, ms: Option<u64>) {
        self.job.set_max_pause(ms.map(Duration::from_millis)).unwrap();
    }
}

/// Otherwise a host whose target flushes more slowly than it was thought to can only cancel, and copy everything again.
#[test]
fn a_job_that_does_not_fit_fits_as_soon_as_it_may_take_longer() {
    let mut stand = Stand::new(10, 30);
    assert_eq!(stand.job.query().flush, None, "none has ended yet");
    assert!(!stand.turn_ms(3000, Stand::is(JobStatus::Ready)), "a flush alone takes too long");
    let info = stand.job.query();
    assert!(info.flush.is_some_and(|flush| flush >= Duration::from_millis(15)), "{info:?}");
    assert!(
        info.flush <= info.predicted_pause && info.max_pause == Some(Duration::from_millis(10)),
        "{info:?}"
    );
    stand.set_ms(Some(400));
    assert!(stand.turn_ms(300, Stand::is(JobStatus::Ready)), "{:?}", stand.job.query());
    assert_eq!(stand.job.query().max_pause, Some(Duration::from_millis(400)));
    stand.job.complete(Completion::Pivot).unwrap();
    assert!(stand.turn_ms(1000, Stand::is(JobStatus::Concluded)), "{:?}", stand.job.query());
    let pause = Crew::outcome(&stand.job).unwrap().pause.unwrap();
    assert!((Duration::from_millis(10)..Duration::from_millis(400)).contains(&pause), "{pause:?}");
}

/// Otherwise a guest would be held for as long as it was allowed when the attempt began.
#[test]
fn a_bound_that_is_made_shorter_opens_a_gate_that_is_closed() {
    let mut stand = Stand::new(2000, 60);
    assert!(stand.turn_ms(3000, Stand::is(JobStatus::Ready)));
    stand.job.complete(Completion::PointInTime).unwrap();
    let closed = |stand: &Stand| stand.drive.gate().is_closed();
    assert!(stand.turn_ms(3000, closed));
    stand.set_ms(Some(16));
    assert!(stand.turn_ms(17, |stand| !closed(stand)), "{:?}", stand.job.query());
    let missed = std::iter::from_fn(|| stand.job.next_event()).find_map(|event| match event.what {
        EventKind::SwitchOverMissed { held_ns, .. } => Some(held_ns),
        _ => None,
    });
    assert!(missed.is_some_and(|held_ns| held_ns <= 17 * MS), "{missed:?}");
    assert!(!stand.turn_ms(1000, Stand::is(JobStatus::Concluded)), "it does not fit any more");
    stand.set_ms(None);
    assert!(stand.turn_ms(1000, Stand::is(JobStatus::Concluded)), "any pause will do");
}

/// Otherwise a switch-over would never fit, or a host would think that it had bounded what nobody can bound any more.
#[test]
fn a_bound_that_makes_no_sense_or_comes_too_late_is_refused_and_changes_nothing() {
    let mut stand = Stand::new(2000, 1);
    let error = stand.job.set_max_pause(Some(Duration::from_micros(999))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    stand.job.cancel(Cancel::Force).unwrap();
    assert!(stand.turn_ms(1000, Stand::is(JobStatus::Concluded)));
    let error = stand.job.set_max_pause(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongState, "{error}");
    assert_eq!(stand.job.query().max_pause, Some(Duration::from_secs(2)));
}
