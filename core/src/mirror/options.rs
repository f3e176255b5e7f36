//! What a host may choose for a job; names follow QEMU's where QEMU has the thing.

use std::sync::Arc;
use std::time::Duration;

use super::extents::ExtentMap;
use super::policy::ErrorPolicy;
use crate::bitmap::DirtyBitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{Granularity, MIB};

/// What the first pass copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncMode {
    /// Everything.
    #[default]
    Full,
    /// What the topmost layer holds: what SEEK_DATA finds, or what a list of extents says.
    Top,
    /// Nothing; only later writes are followed.
    None,
}

/// How guest writes are followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CopyModeChoice {
    /// They go to the source and mark their chunks; copiers come round. A guest that makes chunks dirty faster than they are copied
    /// at full speed keeps such a job from ready, or from its switch-over, for as long as it does so.
    Background,
    /// They go to the source and the target at once, and the guest is told when both are done. For queues; what a tracker
    /// tells of is followed in background.
    ///
    /// A write takes as long as the slower side. A target that fails never fails a write; one that hangs without an error holds
    /// writes until the job fails or is cancelled by force (with `QueueOptions::stable_buffers`, until the target answers): there
    /// is no time limit and no event, so a host that wants a limit watches its own requests and cancels (`Cancel::Force`), or uses
    /// `Background`.
    WriteBlocking,
    /// Background, and write-blocking when the remainder stops shrinking. If that does not help (it never does with trackers), the
    /// latency budget is loosened, and if that does not either, *braking*: guest requests are held for up to `max_pause` at a time,
    /// with 5 to 100 ms in between, also before `complete` is asked, until the job is ready or can switch over. Braking ends, and
    /// the budget comes back, when the guest has calmed down; write-blocking stays, and with it what is said there of a target that
    /// hangs. `EventKind::Escalated` tells of each step; once a mode was chosen with `Job::set_copy_mode` it stays, and braking and
    /// copy mode auto are over for good.
    #[default]
    Auto,
}

/// How long guest requests may take while the job runs; the copiers make room for them.
///
/// It is a goal that the copiers keep by their pace, and they never stop for it for long: a guest that misses it without the job
/// gets a quarter more than its own p99 instead, and less than 1.1 times counts as 1.1. All kinds of requests count. It does not
/// hold for requests that a switch-over or braking holds, nor for what write-blocking adds to a write.
///
/// Nor may it keep a job from ready or from its switch-over. If the remainder does not shrink once the first pass is over, which is
/// judged for a second or two, for five where it goes up and down, the budget is loosened (`EventKind::Escalated`,
/// `JobInfo::budget_level`): to four times what was chosen, then altogether. So it is whichever copy mode was chosen, also for a
/// job that was ready already, and cannot be switched off; a host that would rather wait pauses the job, in which writes are
/// recorded all the same. The first pass itself is not hurried. The budget comes back a level at a time
/// (`EventKind::BudgetTightened`), each when a switch-over has fitted into `max_pause` (with `strict_ready`, before the job is
/// ready: nothing was dirty) for 10 s, but for gaps of a quarter of a second; twice as late each time that this was too early, up
/// to 5 minutes; not once the end is wanted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum LatencyBudget {
    /// No bound: the job copies at full speed.
    Off,
    /// The copiers aim at a p99 of the guest below this; 0 = off.
    Absolute(Duration),
    /// They aim at one below so many times what it is without the job; more than 1, or 0 = off. It is measured while the copiers
    /// hold still: for a quarter of a second before the first copy (half a second with few requests), and for a tenth every ten
    /// seconds (half a second every three with few); shorter looks in between become rare when they find nothing new. A guest that
    /// is idle is not waited for. On a machine that stalls its guest with or without the job they come about once a second, and
    /// stalls are not held against the copiers: no pace could help.
    Baseline(f64),
}

impl LatencyBudget {
    /// The same with every way to say "full speed" as [`Self::Off`].
    #[must_use]
    pub fn in_force(self) -> Self {
        match self {
            Self::Absolute(time) if time.is_zero() => Self::Off,
            Self::Baseline(0.0) => Self::Off,
            other => other,
        }
    }
}

impl Default for LatencyBudget {
    fn default() -> Self {
        Self::Baseline(2.0)
    }
}

/// What a job does when everything is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnCopied {
    /// It follows the guest's writes until the host completes or cancels it.
    #[default]
    Follow,
    /// It completes by itself, as with `Completion::PointInTime`: the drive stays on its source. Such a job is never ready, so
    /// `Job::complete` is always refused; for a pivot use `Follow`, and complete at `EventKind::Ready`.
    Complete,
}

/// The choices for one job.
///
/// The default copies everything, follows writes in copy mode auto, tries to keep the guest's p99 below twice what it was, switches
/// over within 50 ms, and fails at the first error.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// What the first pass copies.
    pub sync: SyncMode,
    /// Bytes a dirty bit stands for; by default the target's cluster size clamped to 4 KiB..64 KiB, else 64 KiB.
    pub granularity: Option<Granularity>,
    /// Bytes in flight per worker, rounded up to the granularity; 0 = 16 MiB.
    pub buf_size_bytes: u64,
    /// Bytes per second at most, over all workers; 0 = no limit. It is smooth: in no time is more begun than the limit allows
    /// for 2 ms longer, but for one request of 4 KiB where the limit is that slow.
    ///
    /// Counted is what the job copies, and zeroes where they are really written: with `keep_allocated`, or to a target that has
    /// no other way. Not counted are holes that are punched or unmapped, or need no request; what guest writes take to both
    /// sides themselves (write-blocking), which goes as fast as the guest does; and what is copied while guest requests are
    /// held for a switch-over.
    pub speed_bytes_per_s: u64,
    /// Look for zeroes in the data and carry them over as holes.
    pub zero_detect: bool,
    /// The target is known to read as zeroes, so holes need no request. Of no effect with [`SyncMode::Top`]: there the
    /// target's backing file, which may come later, decides what shows where nothing was written.
    pub target_is_zero: bool,
    /// Zeroes leave the target's space allocated; by default they give it back (QEMU's `unmap`).
    pub keep_allocated: bool,
    /// The cluster size of a target that has a backing file: the first touch of a cluster copies all of it.
    pub target_cluster_bytes: Option<u64>,
    /// What to do when a read fails. A source that became shorter ends the job whatever is chosen.
    pub on_source_error: ErrorPolicy,
    /// What to do when a write or a zeroing fails. A flush that fails ends the job whatever is chosen.
    pub on_target_error: ErrorPolicy,
    /// What the topmost layer holds, instead of SEEK_DATA; with [`SyncMode::Top`] only. It describes the disk as it was when
    /// the job started; what a guest writes later is copied whatever the list says.
    pub extents: Option<ExtentMap>,
    /// How guest writes are followed.
    pub copy_mode: CopyModeChoice,
    /// How long guest requests may take while the job runs.
    pub latency_budget: LatencyBudget,
    /// How long guest requests may be held at a switch-over, at each attempt, and each time that copy mode auto brakes; `None` = as
    /// long as it takes. A sixteenth of it is kept in reserve for a worker that gets a core late; who needs more sets less. It must
    /// have room for a flush of the target: an attempt of which more than three quarters are forecast is not begun. So while a
    /// flush alone takes longer than these three quarters, the job becomes ready, or switches over, only in moments in which the
    /// guest writes nothing, in every copy mode. No step is taken against that and no event tells of it; `JobInfo::predicted_pause`
    /// stays above them however little is dirty, and `JobInfo::flush` is what a flush is expected to take. It can be changed at any
    /// time by [`Job::set_max_pause`](crate::engine::Job::set_max_pause). The time in which a job waits to be finalized (see
    /// `auto_finalize`) comes on top.
    pub max_pause: Option<Duration>,
    /// Ready only when nothing at all is dirty or in flight (QEMU's meaning), not as soon as a switch-over would fit into
    /// `max_pause`.
    pub strict_ready: bool,
    /// At the switch-over: go on at once; otherwise the job stays pending, with guest requests held, until it is finalized or
    /// cancelled, however long that takes. It is the moment to write down, durably, that the target is the disk from now on: a
    /// host that crashes after the pivot must not start its guest on the source. Do not wait for guest requests on the thread
    /// that is to finalize.
    pub auto_finalize: bool,
    /// What happens when everything is copied.
    pub on_copied: OnCopied,
    /// The working bitmap: what is dirty in it is copied, instead of what `sync` says. The job owns it while it runs: nobody
    /// else may set or clear bits, and another job that is given it is refused as busy, until every worker has let go of this
    /// one and every guest write that it had sent to both sides has ended ([`Job::wait_for`](crate::engine::Job::wait_for) waits
    /// for the workers for 250 ms; while requests hang it stays in use). At the job's end it says what is not copied. Its
    /// granularity is the job's.
    ///
    /// A bitmap of the drive that records ([`Bitmap::working`](crate::drive::Bitmap::working)) goes on after the job without a gap:
    /// it then holds what is not copied and everything that changed since the moment that the target is a copy of, and the next
    /// job may be given it. In any other, guest writes that end after the job are missing: use it for the next job only if no
    /// guest request was under way from before the end of one to the start of the other, or mark yourself what they wrote.
    pub bitmap: Option<Arc<DirtyBitmap>>,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self {
            sync: SyncMode::default(),
            granularity: None,
            buf_size_bytes: 0,
            speed_bytes_per_s: 0,
            zero_detect: false,
            target_is_zero: false,
            keep_allocated: false,
            target_cluster_bytes: None,
            on_source_error: ErrorPolicy::default(),
            on_target_error: ErrorPolicy::default(),
            extents: None,
            copy_mode: CopyModeChoice::default(),
            latency_budget: LatencyBudget::default(),
            max_pause: Some(Self::DEFAULT_MAX_PAUSE),
            strict_ready: false,
            auto_finalize: true,
            on_copied: OnCopied::default(),
            bitmap: None,
        }
    }
}

impl MirrorOptions {
    /// The largest buffer a job may ask for: offsets in a window are 32 bits.
    pub const MAX_BUF_SIZE_BYTES: u64 = 2048 * MIB;
    /// How long guest requests may be held at a switch-over unless the host says otherwise.
    pub const DEFAULT_MAX_PAUSE: Duration = Duration::from_millis(50);
    /// The shortest pause that can be asked for.
    pub const MIN_MAX_PAUSE: Duration = Duration::from_millis(1);
    /// The largest cluster: what QEMU's qcow2 allows.
    pub const MAX_CLUSTER_BYTES: u64 = 2 * MIB;

    /// Checks what can be checked without the devices.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] with the option and its bounds.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |what: &'static str, why: String| Err(Error::new(ErrorKind::InvalidArgument, what).because(why));
        if self.buf_size_bytes > Self::MAX_BUF_SIZE_BYTES {
            return bad(
                "set buf-size",
                format!("{} bytes is more than 2 GiB per worker", self.buf_size_bytes),
            );
        }
        if let Some(cluster) = self.target_cluster_bytes
            && (!cluster.is_power_of_two() || !(512..=Self::MAX_CLUSTER_BYTES).contains(&cluster))
        {
            let why = format!("{cluster} bytes is not a power of two from 512 bytes to 2 MiB");
            return bad("set target-cluster-size", why);
        }
        if self.extents.is_some() && self.sync != SyncMode::Top {
            return bad(
                "use an extent list",
                "it says what the topmost layer holds, so it needs sync mode top".into(),
            );
        }
        self.validate_live()
    }

    /// Whether a switch-over may be asked to hold guest requests for so long.
    pub(crate) fn validate_max_pause(max_pause: Option<Duration>) -> Result<()> {
        match max_pause {
            Some(pause) if pause < Self::MIN_MAX_PAUSE => {
                Err(Error::new(ErrorKind::InvalidArgument, "set the longest pause").because(format!(
                    "{pause:?} is less than 1 ms, and a switch-over has to flush the target in that time; use 1 ms or more, or \
                     none for as long as it takes"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The part that is about following a guest.
    fn validate_live(&self) -> Result<()> {
        let bad =
            |what: &'static str, why: String| Err(Error::new(ErrorKind::InvalidArgument, what).because(why));
        if let LatencyBudget::Baseline(times) = self.latency_budget.in_force()
            && !(times > 1.0 && times.is_finite())
        {
            let why = format!(
                "{times} times the latency without a job leaves no room; use more than 1, or 0 for full speed"
            );
            return bad("set the latency budget", why);
        }
        Self::validate_max_pause(self.max_pause)?;
        match &self.bitmap {
            Some(bitmap) if self.granularity.is_some_and(|g| g != bitmap.granularity()) => {
                bad("set the granularity", "a working bitmap brings its own; leave it out".into())
            }
            Some(_) if self.extents.is_some() => bad(
                "use an extent list",
                "a working bitmap says what is copied; leave one of them out".into(),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_choices_are_refused_by_name() {
        let with = |f: fn(&mut MirrorOptions)| {
            let mut o = MirrorOptions::default();
            f(&mut o);
            o.validate().map_err(|e| e.to_string())
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|o| o.buf_size_bytes = u64::MAX).unwrap_err().contains("buf-size"));
        assert!(with(|o| o.target_cluster_bytes = Some(3000)).unwrap_err().contains("target-cluster-size"));
        assert!(with(|o| o.target_cluster_bytes = Some(4 * MIB)).is_err());
        assert!(with(|o| o.extents = Some(ExtentMap::default())).unwrap_err().contains("top"));
        assert!(
            with(|o| o.latency_budget = LatencyBudget::Baseline(0.5)).unwrap_err().contains("more than 1")
        );
        assert!(with(|o| o.latency_budget = LatencyBudget::Baseline(f64::NAN)).is_err());
        assert!(with(|o| o.latency_budget = LatencyBudget::Baseline(-1.0)).is_err());
        assert!(with(|o| o.max_pause = Some(Duration::ZERO)).unwrap_err().contains("1 ms"));
    }

    /// Otherwise a host that passes its users' `0` on, which means full speed, would be refused.
    #[test]
    fn a_latency_budget_of_nothing_is_none() {
        for latency_budget in [LatencyBudget::Absolute(Duration::ZERO), LatencyBudget::Baseline(0.0)] {
            assert!(MirrorOptions { latency_budget, ..MirrorOptions::default() }.validate().is_ok());
            assert_eq!(latency_budget.in_force(), LatencyBudget::Off);
        }
    }
}
