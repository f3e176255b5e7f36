//! The mirror logic: what to copy next, what to do with what came back, when it is over.
//!
//! Nothing in here makes a system call, starts a thread, reads a clock or takes a lock. Time and completions are
//! arguments, requests are return values; what workers share is atomics. So the same code runs on the real ring, in the
//! simulator, and against models.
//!
//! | file | idea |
//! |---|---|
//! | `options` | what a host may choose |
//! | `geometry` | sizes that follow from the options and the limits of both devices |
//! | `share` | what the workers of a job share: bitmaps, sweep, command word, counters |
//! | `activity` | who is at work: when a job is finished |
//! | `sweep` | the cursor of the first pass, taken in order by all workers |
//! | `copier` | one worker's part of a job as a state machine |
//! | `coordinator` | the job's end: all copied, flush, verdict |
//! | `limiter` | the speed limit, smooth |
//! | `policy` | what an error leads to |
//! | `extents` | a list of extents in place of block status |
//! | `progress` | counters, rate, time left |
//! | `estimate` | rates, time left, how long a switch-over would stop the guest |
//! | `pacer` | keeps the guest's p99 latency inside a budget |
//! | `convergence` | whether the remainder still shrinks |
#![forbid(unsafe_code)]

mod activity;
mod convergence;
mod coordinator;
mod copier;
mod estimate;
mod extents;
mod geometry;
mod limiter;
mod options;
mod pacer;
mod policy;
mod progress;
mod share;
mod sweep;

pub use activity::Activity;
pub use convergence::{Convergence, Observation, Reason, Verdict as ConvergenceVerdict};
pub use coordinator::{Coordinator, Verdict};
pub use copier::{Copier, Step};
pub use estimate::{Attempt, Effort, Estimate, Sample};
pub use extents::ExtentMap;
pub use geometry::{DeviceShape, Geometry};
pub use limiter::Limiter;
pub use options::{MirrorOptions, SyncMode};
pub use pacer::{Budget, GuestLatency, Pace, Pacer, Tick};
pub use policy::{ErrorAction, ErrorPolicy, Side};
pub use progress::{Progress, RateMeter, Tally};
#[cfg(test)]
pub(crate) use share::Mutation;
pub use share::{Failure, FailureCause, JobStatus, Notice, Share};
pub use sweep::Sweep;
