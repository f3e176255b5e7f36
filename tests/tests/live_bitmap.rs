//! A caller's bitmap over several jobs: at the end of one it says what the next must copy.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::sync::Arc;
use std::time::Duration;

use blkmirror_testkit::{KIB, MIB};
use blkmirror_tests::api::bitmap::DirtyBitmap;
use blkmirror_tests::api::engine::{Cancel, Completion, End, JobStatus, MirrorOptions};
use blkmirror_tests::api::units::{ByteRange, Granularity};
use blkmirror_tests::live::{GuestPlan, Guests, Medium, Scene, until, until_status};

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;
/// Bytes of a chunk.
const CHUNK: u64 = 64 * KIB;

/// Options of a job that works with this bitmap.
fn with(bitmap: &Arc<DirtyBitmap>, speed_bytes_per_s: u64) -> MirrorOptions {
    MirrorOptions { bitmap: Some(Arc::clone(bitmap)), speed_bytes_per_s, ..Scene::options() }
}

/// A bitmap that lost what was in flight, or what the guest wrote, when its job was cancelled would leave old data on the target,
/// and one that lost nothing because it lost all progress would be of no use.
#[test]
fn what_a_cancelled_job_leaves_in_its_bitmap_is_what_the_next_one_must_copy() {
    for (round, goes_on) in [(0, false), (1, true), (2, false), (3, true)] {
        let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
        let bitmap = Arc::new(DirtyBitmap::new(SIZE, Granularity::new(CHUNK).unwrap()).unwrap());
        bitmap.set_bytes(ByteRange::new(0, SIZE));
        // The copiers begin at the other end.
        let plan = GuestPlan { start_bytes: SIZE - MIB, ..GuestPlan::over(SIZE, 3) };
        let guests = scene.guests_with(std::slice::from_ref(&plan));
        let job = scene.mirror(with(&bitmap, 8 * MIB));
        until("some of it is copied", || job.query().progress.copied_bytes >= (2 + round) * MIB);
        // No guest request may be under way when the job ends, unless the host remembers where it went.
        let instant = scene.history.tick();
        let mut guests = Some(guests);
        if !goes_on {
            let _ = guests.take().map(Guests::stop);
        }
        assert_ne!(job.status(), JobStatus::Concluded);
        job.cancel(Cancel::Force).unwrap();
        assert_eq!(job.wait_for(Duration::from_secs(5)).unwrap().end, End::Cancelled);
        if let Some(guests) = guests {
            guests.go_on(20);
            let _ = guests.stop();
            for range in scene.history.ranges_since(instant) {
                bitmap.set_bytes(range);
            }
        }
        let left_bytes = bitmap.count() * CHUNK;
        assert!(left_bytes > 0 && left_bytes < SIZE, "{left_bytes}: it was cancelled midway");
        let guests = goes_on.then(|| scene.guests_with(&[GuestPlan { seed: 4, ..plan }]));
        let job = scene.mirror(with(&bitmap, 0));
        until_status(&job, JobStatus::Ready);
        let outcome = scene.complete(&job, Completion::PointInTime);
        assert_eq!(outcome.left_dirty_bytes, 0);
        match guests {
            Some(guests) => {
                let _ = guests.stop();
                let _ = scene.history.check_moment(&scene.target.content);
            }
            None => {
                assert_eq!(outcome.progress.copied_bytes, left_bytes, "round {round}: no more and no less");
                scene.check_target();
                let [source, target] =
                    [&scene.source, &scene.target].map(|place| std::fs::read(&place.content).unwrap());
                assert!(source == target, "round {round}: the disks differ");
            }
        }
    }
}
