//! What a host chooses for a job, and what C makes of it.

use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use blkmirror::{
    BLKM_EXTENT_DATA, BLKM_EXTENT_ZERO, BLKM_LATENCY_BUDGET_ABSOLUTE, BLKM_LATENCY_BUDGET_BASELINE,
    BLKM_LATENCY_BUDGET_DEFAULT, BLKM_LATENCY_BUDGET_OFF, BLKM_MIRROR_F_COMPLETE,
    BLKM_MIRROR_F_DETECT_ZEROES, BLKM_MIRROR_F_KEEP_ALLOCATED, BLKM_MIRROR_F_MANUAL_FINALIZE,
    BLKM_MIRROR_F_STRICT_READY, BLKM_MIRROR_F_TARGET_IS_ZERO, BLKM_NEVER_NS, BLKM_SYNC_BITMAP,
    BLKM_SYNC_FULL, BLKM_SYNC_NONE, BLKM_SYNC_TOP, blkm_bitmap, blkm_extent, blkm_latency_budget,
    blkm_mirror_opts, blkm_mirror_opts_init,
};
use blkmirror_core::device::{Extent, ExtentKind};
use blkmirror_core::mirror::{self, CopyModeChoice, ErrorPolicy, LatencyBudget, OnCopied, SyncMode};
use blkmirror_core::units::Granularity;

use super::bitmap::DirtyBitmap;
use super::error::Result;
use super::handle::{ns, options};
use super::names;

/// What the topmost layer holds.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap(Vec<Extent>);

impl ExtentMap {
    /// A list in the order of its offsets.
    ///
    /// # Errors
    /// None: C looks at it when a job starts.
    pub fn from_extents(extents: Vec<Extent>) -> Result<Self> {
        Ok(Self(extents))
    }

    /// The list for C.
    fn for_c(&self) -> Vec<blkm_extent> {
        let present = |extent: &Extent| {
            let kind = match extent.kind {
                ExtentKind::Data => BLKM_EXTENT_DATA,
                ExtentKind::Zero => BLKM_EXTENT_ZERO,
                ExtentKind::Absent => return None,
            };
            let (offset_bytes, len_bytes) = (extent.range.start(), extent.range.len());
            Some(blkm_extent { offset_bytes, len_bytes, kind, reserved0: 0 })
        };
        self.0.iter().filter_map(present).collect()
    }
}

/// The choices for one job; see core's of that name.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is what core says")]
pub struct MirrorOptions {
    pub sync: SyncMode,
    pub granularity: Option<Granularity>,
    pub buf_size_bytes: u64,
    pub speed_bytes_per_s: u64,
    pub zero_detect: bool,
    pub target_is_zero: bool,
    pub keep_allocated: bool,
    pub target_cluster_bytes: Option<u64>,
    pub on_source_error: ErrorPolicy,
    pub on_target_error: ErrorPolicy,
    pub extents: Option<ExtentMap>,
    pub copy_mode: CopyModeChoice,
    pub latency_budget: LatencyBudget,
    pub max_pause: Option<Duration>,
    pub strict_ready: bool,
    pub auto_finalize: bool,
    pub on_copied: OnCopied,
    pub bitmap: Option<Arc<DirtyBitmap>>,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        let core = mirror::MirrorOptions::default();
        Self {
            sync: core.sync,
            granularity: core.granularity,
            buf_size_bytes: core.buf_size_bytes,
            speed_bytes_per_s: core.speed_bytes_per_s,
            zero_detect: core.zero_detect,
            target_is_zero: core.target_is_zero,
            keep_allocated: core.keep_allocated,
            target_cluster_bytes: core.target_cluster_bytes,
            on_source_error: core.on_source_error,
            on_target_error: core.on_target_error,
            extents: None,
            copy_mode: core.copy_mode,
            latency_budget: core.latency_budget,
            max_pause: core.max_pause,
            strict_ready: core.strict_ready,
            auto_finalize: core.auto_finalize,
            on_copied: core.on_copied,
            bitmap: None,
        }
    }
}

/// The longest pause as C has it.
pub(super) fn max_pause_ns(max_pause: Option<Duration>) -> u64 {
    match max_pause {
        Some(mirror::MirrorOptions::DEFAULT_MAX_PAUSE) => 0,
        Some(pause) => ns(pause),
        None => BLKM_NEVER_NS,
    }
}

impl MirrorOptions {
    /// Hands them to `start`, for C. Where a choice is the default, C's default is left as it is.
    pub(super) fn with_c<T>(
        &self,
        bitmap: Option<*mut blkm_bitmap>,
        start: impl FnOnce(blkm_mirror_opts) -> T,
    ) -> T {
        let mut opts = options(blkm_mirror_opts_init);
        opts.flags = self.flags();
        let extents = self.extents.as_ref().map(ExtentMap::for_c);
        if let Some(extents) = &extents {
            (opts.extents, opts.extents_len) = (extents.as_ptr(), extents.len());
        }
        opts.bitmap = bitmap.unwrap_or(ptr::null_mut());
        opts.sync = match (self.sync, bitmap) {
            (_, Some(_)) => BLKM_SYNC_BITMAP,
            (SyncMode::Full, None) => BLKM_SYNC_FULL,
            (SyncMode::Top, None) => BLKM_SYNC_TOP,
            (SyncMode::None, None) => BLKM_SYNC_NONE,
        };
        opts.speed_bytes_per_s = self.speed_bytes_per_s;
        opts.buf_size_bytes = self.buf_size_bytes;
        opts.granularity_bytes = self.granularity.map_or(0, Granularity::bytes);
        opts.target_cluster_bytes = self.target_cluster_bytes.unwrap_or(0);
        opts.max_pause_ns = max_pause_ns(self.max_pause);
        (opts.latency_budget, opts.latency_budget_value) = budget(self.latency_budget);
        opts.copy_mode = names::number_of_choice(self.copy_mode);
        opts.on_source_error = names::number_of_policy(self.on_source_error);
        opts.on_target_error = names::number_of_policy(self.on_target_error);
        start(opts)
    }

    /// Those that are flags in C.
    fn flags(&self) -> u64 {
        [
            (self.zero_detect, BLKM_MIRROR_F_DETECT_ZEROES),
            (self.target_is_zero, BLKM_MIRROR_F_TARGET_IS_ZERO),
            (self.keep_allocated, BLKM_MIRROR_F_KEEP_ALLOCATED),
            (self.strict_ready, BLKM_MIRROR_F_STRICT_READY),
            (!self.auto_finalize, BLKM_MIRROR_F_MANUAL_FINALIZE),
            (self.on_copied == OnCopied::Complete, BLKM_MIRROR_F_COMPLETE),
        ]
        .into_iter()
        .filter_map(|(chosen, flag)| chosen.then_some(flag))
        .sum()
    }
}

/// A latency budget for C.
fn budget(budget: LatencyBudget) -> (blkm_latency_budget, u64) {
    match budget {
        budget if budget == LatencyBudget::default() => (BLKM_LATENCY_BUDGET_DEFAULT, 0),
        LatencyBudget::Off => (BLKM_LATENCY_BUDGET_OFF, 0),
        LatencyBudget::Absolute(time) => (BLKM_LATENCY_BUDGET_ABSOLUTE, ns(time)),
        LatencyBudget::Baseline(times) => {
            (BLKM_LATENCY_BUDGET_BASELINE, Duration::from_secs_f64(times * 100.0).as_secs())
        }
    }
}
