//! How soon something is over, by time that the machine gave us.
//!
//! Our promises in milliseconds count from a call to its effect. A machine that stands still for a while, because others have its
//! processors or its host took them away, keeps no promise of ours, and a test must not fail for that. So a thread that only sleeps
//! looks how much later than it asked it wakes up, and that time is not counted.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::engine::{Cancel, End, Job};

/// How long the thread that watches sleeps at a time.
const STEP: Duration = Duration::from_millis(5);

/// A forced cancel is over after this, whatever the disks do.
pub const CANCELLED_WITHIN: Duration = Duration::from_secs(1);

/// Carries something out and returns how long it took, less the time in which the machine stood still.
pub fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut still = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                thread::sleep(STEP);
                let late = begun.elapsed().saturating_sub(STEP);
                // A timer is never quite on time.
                still += if late > STEP { late } else { Duration::ZERO };
            }
            still
        });
        let begun = Instant::now();
        let result = act();
        let taken = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        let still = watch.join().unwrap();
        (result, taken.saturating_sub(still))
    })
}

/// Cancels a job by force; it is over in time, and says that it was cancelled.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn cancel_soon(job: &Job) {
    let (outcome, taken) = timed(|| {
        job.cancel(Cancel::Force).unwrap();
        job.wait_for(10 * CANCELLED_WITHIN)
    });
    assert!(taken <= CANCELLED_WITHIN, "over after {taken:?}: {:?}", job.query());
    let Some(outcome) = outcome else { panic!("never over: {:?}", job.query()) };
    assert_eq!(outcome.end, End::Cancelled);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If our own waiting were taken for the machine's, no promise could be broken.
    #[test]
    fn time_that_we_wait_counts() {
        let ((), taken) = timed(|| thread::sleep(Duration::from_millis(200)));
        assert!(taken >= Duration::from_millis(100), "{taken:?}");
    }
}
