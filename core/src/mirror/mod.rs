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
//! | `states` | where a job stands and what may be asked of it: one table |
//! | `marks` | the dirty bits, counted |
//! | `writers` | who may write to the target: one copier per chunk, or guest writes that do not overlap |
//! | `active` | guest writes as a job sees them: marked, or carried to both sides |
//! | `activity` | who is at work: when a job is finished |
//! | `sweep` | the cursor of the first pass, taken in order by all workers |
//! | `copier` | one worker's part of a job as a state machine |
//! | `coordinator` | the job's course: ready, switch-over, end |
//! | `follow` | when the home looks, what it expects |
//! | `escalate`, `relief` | what is done when the remainder does not shrink; how much of the latency budget is in force |
//! | `bound` | how long guest requests may be held |
//! | `figures` | what a host may read of it |
//! | `doorbell` | how a guest write wakes a home that sleeps |
//! | `limiter` | the speed limit, smooth |
//! | `pace` | how much copiers may have in flight |
//! | `policy` | what an error leads to |
//! | `mutation` | ways to break the protocol, for tests |
//! | `extents` | a list of extents in place of block status |
//! | `progress` | counters, rate, time left |
//! | `estimate` | rates, time left, how long a switch-over would stop the guest |
//! | `pacer` | keeps the guest's p99 latency inside a budget |
//! | `convergence` | whether the remainder still shrinks |
#![forbid(unsafe_code)]

mod active;
mod activity;
mod bound;
mod convergence;
mod coordinator;
mod copier;
mod doorbell;
mod escalate;
mod estimate;
mod extents;
mod figures;
mod follow;
mod geometry;
mod limiter;
mod marks;
mod mutation;
mod options;
mod pace;
mod pacer;
mod policy;
mod progress;
mod relief;
mod share;
mod states;
mod sweep;
mod tail;
mod writers;

pub use active::{ActiveWrite, CopyMode};
pub use activity::Activity;
pub use bound::MaxPause;
pub use convergence::{Convergence, Observation, Reason, Verdict as ConvergenceVerdict};
pub use coordinator::{Act, Coordinator, End, Sight};
pub use copier::{Copier, SEAT_BYTES, Step, spare_bytes};
pub use doorbell::Doorbell;
pub use estimate::{Attempt, Effort, Estimate, Sample};
pub use extents::ExtentMap;
pub use figures::Figures;
pub use follow::{Follow, Guest};
pub use geometry::{DeviceShape, Geometry};
pub use limiter::Limiter;
pub use marks::Marks;
pub use mutation::Mutation;
pub use options::{CopyModeChoice, LatencyBudget, MirrorOptions, OnCopied, SyncMode};
pub use pace::Pace;
pub use pacer::{Budget, GuestLatency, Pacer, Tick};
pub(crate) use policy::transient_backoff_ns;
pub use policy::{ErrorAction, ErrorPolicy, Side};
pub use progress::{Progress, RateMeter, Tally};
pub use relief::BudgetLevel;
pub use share::{Bitmaps, Command, Decision, Escalation, Failure, FailureCause, Notice, Rest, Share};
pub use states::{JobStatus, Turn, Verb};
pub use sweep::Sweep;
pub use writers::Writers;
