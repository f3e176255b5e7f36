//! The order in which a host hears of things, while several threads have something to tell.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::engine::event::{Event, Events};
use crate::mirror::{CopyMode, End, Notice};

/// A job without workers.
fn lone_job() -> Job {
    let shape = DeviceShape {
        size_bytes: 64 * KIB,
        align_bytes: 512,
        max_request_bytes: 64 * KIB,
        ..DeviceShape::default()
    };
    let options = MirrorOptions::default();
    let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let share = Arc::new(Share::new(geometry, &options, bitmaps, false, 1));
    let names = ["source".into(), "target".into()];
    JobCore::start(share, &options, names, Vec::new(), Arc::new(1.into()), None, &Default::default()).unwrap()
}

/// All that was told.
fn told(job: &Job) -> Vec<Event> {
    std::iter::from_fn(|| job.next_event()).collect()
}

/// Otherwise a host that polls the status and dismisses at once would hear that the job is null before it hears that it is over.
#[test]
fn a_dismissal_is_told_after_the_end_that_it_followed() {
    for round in 0..200 {
        let job = lone_job();
        let go = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                go.store(true, Ordering::Release);
                while job.status() != JobStatus::Concluded {
                    std::hint::spin_loop();
                }
                job.dismiss().unwrap();
            });
            while !go.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            job.core().conclude(End::Cancelled, 1);
        });
        let events = told(&job);
        let statuses: Vec<_> = events
            .iter()
            .filter_map(|event| match event.what {
                EventKind::Status { to, .. } => Some(to),
                _ => None,
            })
            .collect();
        assert_eq!(
            statuses,
            [JobStatus::Aborting, JobStatus::Concluded, JobStatus::Null],
            "round {round}: {events:?}"
        );
        assert!(events.iter().zip(0..).all(|(event, seq)| event.seq == seq), "round {round}: {events:?}");
        assert_eq!(events.last().map(|event| event.seq), Some(3), "round {round}: {events:?}");
    }
}

/// Otherwise numbers come out of order, and a host takes a swap for a loss.
#[test]
fn numbers_rise_whoever_tells_and_while_somebody_takes() {
    for round in 0..200 {
        let (events, job) = (Events::new(String::new(), false).unwrap(), lone_job());
        let share = &job.core().share;
        let mut next = 0;
        let mut take = |events: &Events| {
            while let Some(event) = events.next() {
                assert_eq!(event.seq, next, "round {round}: {event:?}");
                next += match event.what {
                    EventKind::Overflow(lost) => lost,
                    _ => 1,
                };
            }
        };
        std::thread::scope(|s| {
            let tellers = [(), ()].map(|()| {
                let tell = || events.tell_after(share, || share.post(Notice::CopyMode(CopyMode::Background)));
                s.spawn(move || (0..500).for_each(|_| tell()))
            });
            while tellers.iter().any(|teller| !teller.is_finished()) {
                take(&events);
                if round % 2 == 1 {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            }
        });
        take(&events);
        assert_eq!(next, 1000, "round {round}");
    }
}
