//! What a job's guest requests took, beside what they took without it.

use std::sync::OnceLock;

use crate::drive::{Latencies, LatencyCounts};

/// How long the guest's requests took, as histograms; [`LatencyCounts::percentiles`] has the usual figures.
///
/// Requests that failed count for nothing. Of a queue every request counts, from when it was accepted to its completion, the time
/// before a closed gate included. Of a tracker one request in eight counts (fewer above half a million a
/// second on a thread), all kinds of them, from when it was let in: the host knows how long it was
/// held before. So a switch-over shows in the longest times of queues only.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GuestLatencies {
    /// What requests took before the job began, since the drive was made, at times at which no job ran. This is not the baseline of
    /// the latency budget, which is measured while the job holds still.
    pub without_job: LatencyCounts,
    /// What they have taken since the job began, until it left the drive.
    pub with_job: LatencyCounts,
}

/// The drive's histograms, which count over all jobs, and what they were when this one began and ended.
#[derive(Debug)]
pub(super) struct Watched {
    /// With a job; still counting.
    now: Latencies,
    /// With a job, when this one began.
    begun: LatencyCounts,
    /// With a job, when this one left the drive.
    ended: OnceLock<LatencyCounts>,
    /// Without a job, when this one began.
    without_job: LatencyCounts,
}

impl Watched {
    /// A job begins on a drive with these histograms, without and with a job.
    pub(super) fn new([without_job, with_job]: &[Latencies; 2]) -> Self {
        Self {
            now: with_job.clone(),
            begun: with_job.snapshot(),
            ended: OnceLock::new(),
            without_job: without_job.snapshot(),
        }
    }

    /// The job leaves the drive, and another may come; only the first time counts.
    pub(super) fn end(&self) {
        let _ = self.ended.get_or_init(|| self.now.snapshot());
    }

    /// What was counted.
    pub(super) fn read(&self) -> GuestLatencies {
        let until = self.ended.get().cloned().unwrap_or_else(|| self.now.snapshot());
        GuestLatencies { without_job: self.without_job.clone(), with_job: until.since(&self.begun) }
    }
}
