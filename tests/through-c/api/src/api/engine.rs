//! Engines of C.

use std::num::NonZeroUsize;
use std::sync::Arc;

use blkmirror::{
    BLKM_ENGINE_F_PIN, blkm_copy_start, blkm_engine_create, blkm_engine_destroy, blkm_engine_opts_init,
    blkm_mirror_start,
};
use blkmirror_core::engine;

pub use super::events::{EscalationReason, Event, EventKind};
pub use super::facts::{JobInfo, LastError, Outcome};
pub use super::job::Job;
pub use super::options::{ExtentMap, MirrorOptions};
pub use blkmirror_core::engine::{
    BudgetLevel, Cancel, Completion, CopyMode, CopyModeChoice, End, EngineOptions, ErrorAction, ErrorPolicy,
    Escalation, IoStatus, JobStatus, LatencyBudget, OnCopied, Progress, Side, SyncMode, TargetState, Verb,
};

use super::device::Device;
use super::drive::Drive;
use super::error::Result;
use super::events::Hub;
use super::handle::{Handle, options};

/// Worker threads that carry jobs.
#[derive(Debug)]
pub struct Engine(Arc<Hub>);

impl Engine {
    /// Jobs that an engine carries at a time.
    pub const MAX_JOBS: usize = engine::Engine::MAX_JOBS;

    /// Starts the workers.
    ///
    /// # Errors
    /// As C says.
    pub fn start(chosen: EngineOptions) -> Result<Self> {
        let mut opts = options(blkm_engine_opts_init);
        opts.workers = u32::try_from(chosen.workers.map_or(0, NonZeroUsize::get)).unwrap();
        opts.window_bytes = chosen.window_bytes;
        opts.flags = if chosen.pin { BLKM_ENGINE_F_PIN } else { 0 };
        // SAFETY: a structure and a variable that live to the end of the call.
        let make = |out| unsafe { blkm_engine_create(&raw const opts, out) };
        Ok(Self(Arc::new(Hub::new(Handle::make(blkm_engine_destroy, make)?))))
    }

    /// Starts a job that mirrors `drive` to `target`.
    ///
    /// # Errors
    /// As C says.
    #[allow(clippy::needless_pass_by_value, reason = "as in core; the job keeps the target")]
    pub fn mirror(&self, drive: &Drive, target: Device, chosen: MirrorOptions) -> Result<Job> {
        let bitmap = chosen.bitmap.as_deref().map(|bitmap| bitmap.on(drive)).transpose()?;
        chosen.with_c(bitmap, |opts| {
            Job::start(&self.0, opts, |engine, opts, out| {
                // SAFETY: handles that are open, a structure and a variable that live to the end of the call.
                unsafe { blkm_mirror_start(engine, drive.raw(), target.raw(), opts, out) }
            })
        })
    }

    /// Starts a job that copies `source` to `target`.
    ///
    /// # Errors
    /// As C says.
    #[allow(clippy::needless_pass_by_value, reason = "as in core; the job keeps the devices")]
    pub fn copy(&self, source: Device, target: Device, chosen: MirrorOptions) -> Result<Job> {
        assert!(chosen.bitmap.is_none(), "a bitmap needs a drive");
        chosen.with_c(None, |opts| {
            Job::start(&self.0, opts, |engine, opts, out| {
                // SAFETY: handles that are open, a structure and a variable that live to the end of the call.
                unsafe { blkm_copy_start(engine, source.raw(), target.raw(), opts, out) }
            })
        })
    }

    /// Ends the workers.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.0.end();
    }
}
