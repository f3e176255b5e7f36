//! Many errors at once, and a host that takes its events late.

use super::windows::{options, turn_all};
use super::*;
use crate::bitmap::DirtyBitmap;
use crate::engine::crew::Crew;
use crate::engine::event::Event;
use crate::units::ChunkRange;

/// The disks.
const BYTES: u64 = 64 << 20;
/// Chunks and so requests, for nothing beside a dirty chunk is dirty.
const CHUNK: u64 = 4 * KIB;

/// What a host took: whether the numbers of events have no gap that is not explained, and what each was.
fn take(job: &Job, next: &mut u64) -> Vec<Event> {
    let taken: Vec<_> = std::iter::from_fn(|| job.next_event()).collect();
    for event in &taken {
        assert_eq!(event.seq, *next, "{event:?}");
        *next += match event.what {
            EventKind::Overflow(lost) => lost,
            _ => 1,
        };
    }
    taken
}

/// How many errors a host heard of, and how many events it did not hear of.
fn count(events: &[Event]) -> (u64, u64) {
    events.iter().fold((0, 0), |(errors, lost), event| match event.what {
        EventKind::Error { .. } => (errors + 1, lost),
        EventKind::Overflow(n) => (errors, lost + n),
        _ => (errors, lost),
    })
}

/// Where the job came to `status` among `events`.
fn place(events: &[Event], status: JobStatus) -> Option<usize> {
    events.iter().position(|event| matches!(event.what, EventKind::Status { to, .. } if to == status))
}

/// Asserts that the host hears of the end as the last thing, and that nothing but errors was lost before, all of them counted.
#[track_caller]
fn assert_ended(job: &Job, events: &[Event]) {
    let aborting = place(events, JobStatus::Aborting);
    assert!(aborting.is_some(), "{:?}", events.last());
    assert!(aborting < place(events, JobStatus::Concluded), "{:?}", events.last());
    assert_eq!(events.last().map(|event| event.what), Some(EventKind::Concluded));
    let (errors, lost) = count(events);
    assert_eq!(errors + lost, job.progress().errors, "only errors are lost");
}

/// A job with hundreds of small requests on their way to a target that does not answer, and lets them all fail when it does.
fn start(crew: &mut Crew, world: &Arc<World>, on_target_error: ErrorPolicy) -> (Job, Arc<SimDisk>) {
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let bitmap = Arc::new(DirtyBitmap::new(BYTES, Granularity::new(CHUNK).unwrap()).unwrap());
    (0..BYTES / CHUNK / 2).for_each(|n| _ = bitmap.set(ChunkRange::new(2 * n, 2 * n + 1)));
    let options = MirrorOptions { bitmap: Some(bitmap), granularity: None, on_target_error, ..options() };
    fill(world, &source, BYTES, 100);
    target.set_faults(Faults { write_error: 1000, ..Faults::default() });
    target.set_dead(true);
    let (job, _) = crew.start(&drive, &target, &options, None).unwrap();
    turn_all(crew, world, 2000);
    (job, target)
}

/// Otherwise a host that waits for the end by events waits for ever when a device goes away with many requests under way.
#[test]
fn a_burst_of_errors_does_not_push_out_the_end_of_the_job() {
    for workers in [1, 3] {
        let world = World::new(1, Faults::default());
        let mut crew = Crew::new(&world, workers, 16 << 20).with_queue_depth(2048);
        let (job, target) = start(&mut crew, &world, ErrorPolicy::Report);
        let mut next = 0;
        assert_eq!(count(&take(&job, &mut next)), (0, 0));
        target.set_dead(false);
        turn_all(&mut crew, &world, 20_000);
        assert!(Crew::outcome(&job).is_some(), "{:?}", job.query());
        let events = take(&job, &mut next);
        let (errors, lost) = count(&events);
        assert!(errors >= 128 && lost > 0, "no burst: {errors} errors and {lost} lost");
        assert_ended(&job, &events);
    }
}

/// The same for a host that does not look at its events at all while errors come again and again.
#[test]
fn errors_that_nobody_takes_do_not_push_out_the_end_of_the_job() {
    for workers in [1, 3] {
        let world = World::new(1, Faults::default());
        let mut crew = Crew::new(&world, workers, 16 << 20).with_queue_depth(64);
        let (job, target) = start(&mut crew, &world, ErrorPolicy::Ignore);
        target.set_dead(false);
        turn_all(&mut crew, &world, 20_000);
        assert!(job.progress().errors > 300, "{:?}", job.query());
        job.cancel(Cancel::Force).unwrap();
        turn_all(&mut crew, &world, 2000);
        assert!(Crew::outcome(&job).is_some(), "{:?}", job.query());
        assert_ended(&job, &take(&job, &mut 0));
    }
}
