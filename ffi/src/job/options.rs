//! What a host chooses for a job.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::time::Duration;

use blkmirror_core::Result;
use blkmirror_core::device::{Extent, ExtentKind};
use blkmirror_core::engine::{CopyModeChoice, ExtentMap, LatencyBudget, MirrorOptions, OnCopied, SyncMode};
use blkmirror_core::units::{ByteRange, Granularity};

use super::names::{
    self, BLKM_COPY_AUTO, BLKM_COPY_BACKGROUND, BLKM_COPY_WRITE_BLOCKING, BLKM_SYNC_BITMAP, BLKM_SYNC_FULL,
    BLKM_SYNC_NONE, BLKM_SYNC_TOP, blkm_copy_mode, blkm_on_error, blkm_sync_mode,
};
use crate::border::sized::{self, structure};
use crate::border::{invalid, sum};
use crate::device::{BLKM_EXTENT_DATA, BLKM_EXTENT_ZERO, blkm_extent_kind};

/// Look for zeroes in the data and carry them over as holes.
pub const BLKM_MIRROR_F_DETECT_ZEROES: u64 = 1;
/// The target is known to read as zeroes, so holes need no request.
pub const BLKM_MIRROR_F_TARGET_IS_ZERO: u64 = 2;
/// Zeroes leave the target's space allocated; by default they give it back (QEMU's unmap).
pub const BLKM_MIRROR_F_KEEP_ALLOCATED: u64 = 4;
/// Ready only when nothing at all is dirty or in flight (QEMU's meaning), not as soon as a switch-over would fit.
pub const BLKM_MIRROR_F_STRICT_READY: u64 = 8;
/// At the end, whichever it is (a pivot, a point in time, a soft cancel, the end of a copy), the job stays pending, with guest
/// requests held for as long, until `blkm_job_finalize` or `blkm_job_cancel`; `BLKM_EVENT_PENDING` says whether the drive is about
/// to move. If it is, this is the moment to write down, durably, that the target is the disk from now on (how, is said there): a
/// host that may crash and start again sets it. Do not wait for guest requests on the thread that is to finalize.
pub const BLKM_MIRROR_F_MANUAL_FINALIZE: u64 = 16;
/// The job completes by itself when everything is copied, without a pivot: the target is a copy as of then. It is never ready.
pub const BLKM_MIRROR_F_COMPLETE: u64 = 32;

/// All flags of a job.
const FLAGS: u64 = BLKM_MIRROR_F_DETECT_ZEROES
    | BLKM_MIRROR_F_TARGET_IS_ZERO
    | BLKM_MIRROR_F_KEEP_ALLOCATED
    | BLKM_MIRROR_F_STRICT_READY
    | BLKM_MIRROR_F_MANUAL_FINALIZE
    | BLKM_MIRROR_F_COMPLETE;

/// How a latency budget is meant.
#[allow(non_camel_case_types, reason = "as in C")]
pub type blkm_latency_budget = u32;
/// Twice what the guest's p99 is without the job.
pub const BLKM_LATENCY_BUDGET_DEFAULT: blkm_latency_budget = 0;
/// No bound: the job copies at full speed.
pub const BLKM_LATENCY_BUDGET_OFF: blkm_latency_budget = 1;
/// The guest's p99 is to stay below `latency_budget_value` nanoseconds.
pub const BLKM_LATENCY_BUDGET_ABSOLUTE: blkm_latency_budget = 2;
/// The guest's p99 is to stay below `latency_budget_value` percent of what it is without the job; more than 100.
pub const BLKM_LATENCY_BUDGET_BASELINE: blkm_latency_budget = 3;

/// No bound, where a structure has a number of nanoseconds; "not known", in one that is filled in.
pub const BLKM_NEVER_NS: u64 = 0xffff_ffff_ffff_ffff;

/// A range of a disk and what it is.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_extent {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// `BLKM_EXTENT_DATA` or `BLKM_EXTENT_ZERO`. What no extent covers is not in the topmost layer.
    pub kind: blkm_extent_kind,
    /// Zero.
    pub reserved0: u32,
}

/// What a host chooses for a job. All zero (or NULL) is the default: everything is copied, guest writes are followed in copy mode
/// auto, the guest's p99 is to stay below twice what it was, the switch-over takes 50 ms at most, the first error ends the job.
#[allow(non_camel_case_types, reason = "as in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct blkm_mirror_opts {
    /// sizeof(blkm_mirror_opts).
    pub struct_size: usize,
    /// `BLKM_MIRROR_F_*`.
    pub flags: u64,
    /// Comes back in the job's events.
    pub user_data: *mut c_void,
    /// With `BLKM_SYNC_BITMAP`: the working bitmap, a `blkm_bitmap *`. The job owns it while it runs; at its end it says what is
    /// not copied.
    pub bitmap: *mut crate::bitmap::blkm_bitmap,
    /// With `BLKM_SYNC_TOP`: what the topmost layer holds, in rising order without overlap, instead of SEEK_DATA; NULL: none.
    /// Copied.
    pub extents: *const blkm_extent,
    /// How many extents.
    pub extents_len: usize,
    /// Bytes per second at most; 0: no limit. It is smooth: no burst is longer than 2 ms of it.
    pub speed_bytes_per_s: u64,
    /// Bytes in flight per worker, at most 2 GiB; 0: 16 MiB.
    pub buf_size_bytes: u64,
    /// Bytes that a dirty bit stands for: a power of two from 512 bytes on; 0: the target's cluster size within 4 KiB..64 KiB, else
    /// 64 KiB.
    pub granularity_bytes: u64,
    /// The cluster size of a target that has a backing file: the first touch of a cluster copies all of it. 0: it has none.
    pub target_cluster_bytes: u64,
    /// How long guest requests may be held at a switch-over, at least 1 ms; 0: 50 ms; `BLKM_NEVER_NS`: as long as it takes. It must
    /// have room for a flush of the target: while one takes longer than three quarters of this, the job of a guest that writes
    /// becomes neither ready nor over, in any copy mode, and no event tells of it: see `flush_ns` of `blkm_job_query`.
    /// `blkm_job_set_max_pause` changes it. The time in which a job is pending comes on top.
    pub max_pause_ns: u64,
    /// Nanoseconds or percent, see `latency_budget`.
    pub latency_budget_value: u64,
    /// How `latency_budget_value` is meant: `BLKM_LATENCY_BUDGET_*`.
    pub latency_budget: blkm_latency_budget,
    /// What the first pass copies.
    pub sync: blkm_sync_mode,
    /// How guest writes are followed.
    pub copy_mode: blkm_copy_mode,
    /// What a failed read leads to. A source that became shorter ends the job whatever is chosen.
    pub on_source_error: blkm_on_error,
    /// What a failed write or zeroing leads to. A failed flush ends the job whatever is chosen.
    pub on_target_error: blkm_on_error,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 6],
}
structure!(blkm_mirror_opts, first 168, reserved reserved0, reserved);

/// Sets options to the defaults for the size that the caller's header has.
///
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blkm_mirror_opts_init(opts: *mut blkm_mirror_opts, struct_size: usize) {
    // SAFETY: the caller's structure, as the header says.
    unsafe { sized::init(opts, struct_size) }
}

/// The options for core.
///
/// # Safety
/// The pointers in them are what the header says.
pub(super) unsafe fn options_of(opts: &blkm_mirror_opts, attempt: &'static str) -> Result<MirrorOptions> {
    sum::known_flags(opts.flags, FLAGS, attempt)?;
    let has = |flag: u64| opts.flags & flag != 0;
    let granularity = match opts.granularity_bytes {
        0 => None,
        bytes => Some(Granularity::new(bytes)?),
    };
    Ok(MirrorOptions {
        sync: sync_of(opts, attempt)?,
        granularity,
        buf_size_bytes: opts.buf_size_bytes,
        speed_bytes_per_s: opts.speed_bytes_per_s,
        zero_detect: has(BLKM_MIRROR_F_DETECT_ZEROES),
        target_is_zero: has(BLKM_MIRROR_F_TARGET_IS_ZERO),
        keep_allocated: has(BLKM_MIRROR_F_KEEP_ALLOCATED),
        target_cluster_bytes: Some(opts.target_cluster_bytes).filter(|&bytes| bytes > 0),
        on_source_error: names::policy(opts.on_source_error, attempt)?,
        on_target_error: names::policy(opts.on_target_error, attempt)?,
        // SAFETY: the caller's promise.
        extents: unsafe { extents_of(opts, attempt)? },
        copy_mode: copy_mode_of(opts.copy_mode, attempt)?,
        latency_budget: budget_of(opts, attempt)?,
        max_pause: max_pause_of(opts.max_pause_ns),
        strict_ready: has(BLKM_MIRROR_F_STRICT_READY),
        auto_finalize: !has(BLKM_MIRROR_F_MANUAL_FINALIZE),
        on_copied: if has(BLKM_MIRROR_F_COMPLETE) { OnCopied::Complete } else { OnCopied::Follow },
        // SAFETY: the caller's promise.
        bitmap: unsafe { crate::bitmap::working(opts.bitmap, attempt)? },
    })
}

/// How long guest requests may be held.
pub(super) fn max_pause_of(ns: u64) -> Option<Duration> {
    match ns {
        0 => Some(MirrorOptions::DEFAULT_MAX_PAUSE),
        sum::NEVER_NS => None,
        ns => Some(Duration::from_nanos(ns)),
    }
}

/// What the first pass copies; a bitmap and its mode come together.
fn sync_of(opts: &blkm_mirror_opts, attempt: &'static str) -> Result<SyncMode> {
    match (opts.sync, opts.bitmap.is_null()) {
        (BLKM_SYNC_BITMAP, true) => Err(invalid(attempt, "BLKM_SYNC_BITMAP needs a bitmap")),
        (BLKM_SYNC_BITMAP, false) => Ok(SyncMode::Full),
        (_, false) => Err(invalid(attempt, "it is given a bitmap, so set sync to BLKM_SYNC_BITMAP")),
        (BLKM_SYNC_FULL, true) => Ok(SyncMode::Full),
        (BLKM_SYNC_TOP, true) => Ok(SyncMode::Top),
        (BLKM_SYNC_NONE, true) => Ok(SyncMode::None),
        (sync, true) => Err(invalid(attempt, format!("{sync} is no sync mode; use BLKM_SYNC_*"))),
    }
}

/// How guest writes are followed.
fn copy_mode_of(mode: blkm_copy_mode, attempt: &'static str) -> Result<CopyModeChoice> {
    match mode {
        BLKM_COPY_AUTO => Ok(CopyModeChoice::Auto),
        BLKM_COPY_BACKGROUND => Ok(CopyModeChoice::Background),
        BLKM_COPY_WRITE_BLOCKING => Ok(CopyModeChoice::WriteBlocking),
        _ => Err(invalid(attempt, format!("{mode} is no copy mode; use BLKM_COPY_*"))),
    }
}

/// The latency budget.
fn budget_of(opts: &blkm_mirror_opts, attempt: &'static str) -> Result<LatencyBudget> {
    let value = opts.latency_budget_value;
    match (opts.latency_budget, value) {
        (BLKM_LATENCY_BUDGET_DEFAULT, 0) => Ok(LatencyBudget::default()),
        (BLKM_LATENCY_BUDGET_DEFAULT, _) => {
            Err(invalid(attempt, "latency_budget_value is set; say in latency_budget how it is meant"))
        }
        (BLKM_LATENCY_BUDGET_OFF, _) => Ok(LatencyBudget::Off),
        (BLKM_LATENCY_BUDGET_ABSOLUTE, ns) => Ok(LatencyBudget::Absolute(Duration::from_nanos(ns))),
        (BLKM_LATENCY_BUDGET_BASELINE, percent) => match u32::try_from(percent) {
            Ok(percent) => Ok(LatencyBudget::Baseline(f64::from(percent) / 100.0)),
            Err(_) => Err(invalid(attempt, format!("a latency budget of {percent} percent is not possible"))),
        },
        (other, _) => Err(invalid(attempt, format!("{other} is no kind of latency budget"))),
    }
}

/// The list of extents, if there is one.
///
/// # Safety
/// `extents` is NULL or has `extents_len` entries.
unsafe fn extents_of(opts: &blkm_mirror_opts, attempt: &'static str) -> Result<Option<ExtentMap>> {
    if opts.extents.is_null() {
        return match opts.extents_len {
            0 => Ok(None),
            len => Err(invalid(attempt, format!("extents is NULL, extents_len is {len}"))),
        };
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(opts.extents, opts.extents_len) };
    let extent = |e: &blkm_extent| {
        let kind = match e.kind {
            BLKM_EXTENT_DATA => ExtentKind::Data,
            BLKM_EXTENT_ZERO => ExtentKind::Zero,
            other => {
                return Err(invalid(attempt, format!("{other} is no kind of extent; use BLKM_EXTENT_*")));
            }
        };
        Ok(Extent { range: ByteRange::at(e.offset_bytes, e.len_bytes), kind })
    };
    ExtentMap::from_extents(list.iter().map(extent).collect::<Result<_>>()?).map(Some)
}
