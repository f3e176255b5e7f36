//! Ways to break the protocol on purpose, one at a time.
//!
//! A simulator that never finds anything proves nothing. So every rule that the code keeps can be switched off here, and the
//! tests show that the simulator notices within a bounded number of seeds. A job can be told to break one in tests and with
//! the feature `sim` only; elsewhere "is it broken?" is the constant `false` and costs nothing.

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Mutation {
    /// A guest write sets its dirty bits when it is submitted, not when it has completed.
    MarkBefore,
    /// A copier clears the dirty bits when the copy is done, not before it reads.
    ClearLate,
    /// A failed copy releases its chunks before it marks them dirty again.
    ReleaseBeforeRedirty,
    /// Chunks are copied without being claimed.
    NoClaim,
    /// "Nothing is dirty" is taken as final without closing the gate.
    ReadyWithoutGate,
    /// Guest writes are recorded only once the first pass is over.
    AttachLate,
    /// The chunk that a guest write ends in is not marked unless it is written to its end.
    TailRoundedDown,
    /// A transfer that did a part is taken as whole.
    ShortAsWhole,
    /// A write-blocking write clears every chunk that it touches, not only those that it covers.
    ActiveClearsPartly,
    /// A guest write that failed is not marked.
    FailedWriteUnmarked,
    /// The drive moves to the target before the target was flushed.
    PivotBeforeFlush,
    /// The gate counts as quiet although one of its shards was not looked at.
    DrainMissesQueue,
    /// A failed copy does not set its dirty bits again.
    ForgetFailure,
    /// A chunk that is copied again is skipped where the target was zero at first.
    TrustZeroTarget,
    /// Chunks are copied again before the sweep has claimed them all.
    DirtyBeforeSweep,
    /// A hole that was asked for before the dirty bits of its chunks were cleared is still taken for one.
    StaleStatus,
    /// A write that is to be durable at its end is not followed by a flush where the device does not make it so.
    TrustWriteThrough,
    /// A guest write that went to both sides is not recorded in the drive's bitmaps.
    ActiveUnrecorded,
    /// The drive's bitmaps record nothing while a job runs.
    RecordingSuspended,
    /// A bitmap that a job worked with is not recorded any more after it.
    RecordingNotResumed,
    /// A job whose switch-over is being carried out says that it is cancelled.
    CancelAfterFinalize,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::MarkBefore,
        Self::ClearLate,
        Self::ReleaseBeforeRedirty,
        Self::NoClaim,
        Self::ReadyWithoutGate,
        Self::AttachLate,
        Self::TailRoundedDown,
        Self::ShortAsWhole,
        Self::ActiveClearsPartly,
        Self::FailedWriteUnmarked,
        Self::PivotBeforeFlush,
        Self::DrainMissesQueue,
        Self::ForgetFailure,
        Self::TrustZeroTarget,
        Self::DirtyBeforeSweep,
        Self::StaleStatus,
        Self::TrustWriteThrough,
        Self::ActiveUnrecorded,
        Self::RecordingSuspended,
        Self::RecordingNotResumed,
        Self::CancelAfterFinalize,
    ];
}
