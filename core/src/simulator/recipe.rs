//! What a run is made of, chosen by its seed.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::recording::RecordingPlan;
use crate::mirror::{CopyModeChoice, ErrorPolicy, LatencyBudget, MirrorOptions, OnCopied, SyncMode};
use crate::ring::sim::{Faults, World};
use crate::units::{Granularity, KIB, bytes_usize};

/// One millisecond.
pub(super) const MS: u64 = 1_000_000;

/// What the first pass copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// Everything.
    Full,
    /// What is no hole.
    Top,
    /// Nothing: the sides are equal at the start.
    Nothing,
    /// What a bitmap of the host says.
    Bitmap,
}

/// How the host wants a job to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// With the drive on the target.
    Pivot,
    /// With the target as a copy.
    PointInTime,
    /// By a soft cancel.
    SoftCancel,
    /// By force.
    ForceCancel,
}

/// What happens to a disk as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Death {
    /// Nothing.
    None,
    /// It does not answer from this time on, for so long.
    For(u64, u64),
    /// It does not answer from this time on, until the job is over.
    Forever(u64),
}

/// What the guests do.
#[derive(Clone, Debug)]
pub(super) struct GuestPlan {
    /// Host threads with a queue.
    pub(super) queues: usize,
    /// Host threads that do their own I/O.
    pub(super) trackers: usize,
    /// Requests of all of them together.
    pub(super) requests: u64,
    /// The time between two of one guest, on average.
    pub(super) think_ns: u64,
    /// The largest request, in blocks of 512 bytes.
    pub(super) blocks: u64,
    /// How often, in percent, a request goes to a few chunks.
    pub(super) hot_percent: u64,
    /// Where those begin, in percent of the disk.
    pub(super) hot_at_percent: u64,
    /// How often, in percent, it is a write.
    pub(super) write_percent: u64,
    /// How many of those, in percent, write zeroes or discard.
    pub(super) zero_percent: u64,
    /// Requests of a queue that may be under way.
    pub(super) depth: usize,
    /// Memory for stable copies.
    pub(super) staging_bytes: u64,
    /// Data stands still.
    pub(super) stable_buffers: bool,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// What it was chosen by.
    pub(super) seed: u64,
    /// The size of the disk.
    pub(super) bytes: u64,
    /// The size of a chunk.
    pub(super) granularity: Granularity,
    /// Workers of the engine.
    pub(super) workers: usize,
    /// Copy memory of each.
    pub(super) window_bytes: usize,
    /// What the first pass copies.
    pub(super) first: First,
    /// The job's options, but for what depends on the disks.
    pub(super) options: MirrorOptions,
    /// The guests.
    pub(super) guests: GuestPlan,
    /// What goes wrong on the source and on the target.
    pub(super) faults: [Faults; 2],
    /// How long requests take there, at least and more.
    pub(super) latency_ns: [(u64, u64); 2],
    /// What goes through the target in a second.
    pub(super) rate_bytes_per_s: u64,
    /// Whether they stop answering.
    pub(super) deaths: [Death; 2],
    /// When the job begins.
    pub(super) start_ns: u64,
    /// When the host wants it to end, after that.
    pub(super) end_ns: u64,
    /// How it wants that.
    pub(super) wanted: Wanted,
    /// The time between two commands of the host, on average.
    pub(super) meddle_ns: u64,
    /// How long it waits for the end until it mends what is broken.
    pub(super) patience_ns: u64,
    /// When it drops a queue with whatever is under way on it, and makes another one.
    pub(super) drop_ns: Option<u64>,
    /// When the power fails.
    pub(super) crash_ns: Option<u64>,
    /// Another drive has a job on the same workers.
    pub(super) neighbour: bool,
    /// Jobs one after the other.
    pub(super) jobs: u32,
    /// Bitmaps of the drive; chosen by a chance of its own.
    pub(super) recording: RecordingPlan,
}

/// Picks one of several.
fn one<T: Copy>(chance: &World, of: &[T]) -> T {
    of[bytes_usize(chance.pick(of.len() as u64))]
}

/// Whether a case of so many in a hundred happens.
fn percent(chance: &World, percent: u64) -> bool {
    chance.pick(100) < percent
}

impl Recipe {
    /// The run of a seed.
    pub(super) fn new(seed: u64) -> Self {
        // A source of chance of its own: what is chosen here does not depend on what the run does.
        let chance = World::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d), Faults::default());
        let c = &*chance;
        let granularity = one(c, &[512, 4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB]);
        let bytes = one(c, &[256 * KIB, 512 * KIB, 1024 * KIB, 2048 * KIB]);
        let bytes = bytes
            - if percent(c, 60) { (c.pick(granularity.min(32 * KIB) / 512) * 512).min(32 * KIB) } else { 0 };
        let first =
            one(c, &[First::Full, First::Full, First::Full, First::Top, First::Nothing, First::Bitmap]);
        let faults = Self::faults(c);
        let deaths = Self::deaths(c);
        let mut options = Self::options(c, first);
        options.granularity = Granularity::new(granularity).ok().filter(|_| first != First::Bitmap);
        let latency =
            |c: &World| one(c, &[(1_000, 400_000), (20_000, 80_000), (1_000, 20_000), (300_000, 500_000)]);
        let mut recipe = Self {
            seed,
            bytes,
            granularity: Granularity::new(granularity).unwrap_or(Granularity::DEFAULT),
            workers: bytes_usize(1 + c.pick(3)),
            window_bytes: one(c, &[1 << 20, 2 << 20]),
            first,
            options,
            guests: Self::guests(c),
            faults,
            latency_ns: [latency(c), latency(c)],
            rate_bytes_per_s: one(c, &[0, 0, 0, 40 << 20, 200 << 20]),
            deaths,
            start_ns: if percent(c, 30) { 0 } else { c.pick(5 * MS) },
            end_ns: one(c, &[0, 2 * MS, 10 * MS, 30 * MS, 60 * MS]) + c.pick(2 * MS),
            wanted: one(
                c,
                &[
                    Wanted::Pivot,
                    Wanted::Pivot,
                    Wanted::Pivot,
                    Wanted::PointInTime,
                    Wanted::SoftCancel,
                    Wanted::ForceCancel,
                ],
            ),
            meddle_ns: one(c, &[0, 0, MS, 5 * MS]),
            patience_ns: 150 * MS,
            drop_ns: percent(c, 5).then(|| c.pick(20 * MS)),
            crash_ns: percent(c, 12).then(|| c.pick(60 * MS)),
            neighbour: percent(c, 15),
            jobs: if percent(c, 20) { 2 } else { 1 },
            recording: RecordingPlan::new(seed),
        };
        if recipe.guests.stable_buffers {
            // Its price: a write waits for the target, which has the host's memory, for as long as that hangs.
            recipe.faults[1].stuck = 0;
        }
        // Requests that hang keep their memory, and a neighbour may wait for it.
        recipe.neighbour &= !recipe.target_may_hang();
        let mut recipe = match c.pick(100) {
            0..3 => recipe.into_marathon(c),
            3..8 => recipe.into_race_with_the_sweep(c),
            _ => recipe,
        };
        // Both sides: a drive that moved has the target for its next job's source.
        let late_status = one(c, &[0, 0, 300, 1000]);
        recipe.faults.iter_mut().for_each(|faults| faults.late_status = late_status);
        recipe
    }

    /// A guest that writes and zeroes a few chunks at the end of the disk while a slow first pass has not reached them, on a
    /// target that is known to be zero. Without a budget: at a slow pace the workers take turns, and hardly meet.
    fn into_race_with_the_sweep(self, c: &World) -> Self {
        let options = MirrorOptions {
            sync: SyncMode::Full,
            granularity: Granularity::new(4 * KIB).ok(),
            buf_size_bytes: 64 * KIB,
            // A tenth of a second, to the end of which the guest writes, and zeroes what it wrote: who breaks the rule does
            // so when all segments are taken, and only then.
            speed_bytes_per_s: 20 << 20,
            target_is_zero: true,
            zero_detect: true,
            target_cluster_bytes: None,
            copy_mode: one(c, &[CopyModeChoice::Background, CopyModeChoice::WriteBlocking]),
            latency_budget: LatencyBudget::Off,
            ..self.options
        };
        let guests = GuestPlan {
            queues: bytes_usize(1 + c.pick(2)),
            requests: 600,
            think_ns: 300_000,
            blocks: 16,
            hot_percent: 90,
            hot_at_percent: 90,
            write_percent: 90,
            zero_percent: 60,
            ..self.guests
        };
        Self {
            bytes: 2048 * KIB,
            granularity: Granularity::new(4 * KIB).unwrap_or(Granularity::DEFAULT),
            workers: bytes_usize(2 + c.pick(2)),
            first: First::Full,
            options,
            guests,
            faults: [Faults::default(); 2],
            latency_ns: [(300_000, 500_000), (20_000, 80_000)],
            deaths: [Death::None; 2],
            start_ns: 0,
            crash_ns: None,
            ..self
        }
    }

    /// A guest that dirties chunks faster than they can be copied, for seconds, so that copy mode auto has to act.
    fn into_marathon(self, c: &World) -> Self {
        let bytes = 2048 * KIB;
        let mut options = MirrorOptions {
            sync: SyncMode::Full,
            copy_mode: CopyModeChoice::Auto,
            max_pause: Some(Duration::from_millis(one(c, &[8, 20]))),
            granularity: Granularity::new(64 * KIB).ok(),
            ..self.options
        };
        options.target_is_zero &= self.first == First::Full;
        let guests = GuestPlan {
            requests: 2500,
            think_ns: 2 * MS,
            hot_percent: 0,
            write_percent: 90,
            queues: bytes_usize(c.pick(3)),
            trackers: bytes_usize(1 + c.pick(2)),
            ..self.guests
        };
        Self {
            bytes,
            granularity: Granularity::DEFAULT,
            first: First::Full,
            options,
            guests,
            faults: [Faults::default(); 2],
            deaths: [Death::None; 2],
            rate_bytes_per_s: 20 << 20,
            end_ns: 0,
            patience_ns: 20_000 * MS,
            meddle_ns: 0,
            wanted: one(c, &[Wanted::Pivot, Wanted::PointInTime]),
            crash_ns: None,
            ..self
        }
    }

    /// What the host asks of the job.
    fn options(c: &World, first: First) -> MirrorOptions {
        let policy = |c: &World| {
            one(c, &[ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Enospc, ErrorPolicy::Stop])
        };
        let pause = one(c, &[None, Some(50), Some(20), Some(8)]);
        MirrorOptions {
            sync: match first {
                First::Full => SyncMode::Full,
                First::Top => SyncMode::Top,
                First::Nothing | First::Bitmap => SyncMode::None,
            },
            buf_size_bytes: one(c, &[0, 64 * KIB, 256 * KIB]),
            speed_bytes_per_s: one(c, &[0, 0, 0, 20 << 20]),
            zero_detect: percent(c, 40),
            target_is_zero: first == First::Full && percent(c, 40),
            keep_allocated: percent(c, 30),
            on_source_error: policy(c),
            on_target_error: policy(c),
            copy_mode: one(
                c,
                &[CopyModeChoice::Background, CopyModeChoice::WriteBlocking, CopyModeChoice::Auto],
            ),
            latency_budget: one(
                c,
                &[
                    LatencyBudget::Off,
                    LatencyBudget::Off,
                    LatencyBudget::Baseline(2.0),
                    LatencyBudget::Absolute(Duration::from_micros(600)),
                ],
            ),
            max_pause: pause.map(Duration::from_millis),
            strict_ready: percent(c, 30),
            auto_finalize: percent(c, 80),
            on_copied: if percent(c, 10) { OnCopied::Complete } else { OnCopied::Follow },
            target_cluster_bytes: percent(c, 10).then_some(64 * KIB),
            ..MirrorOptions::default()
        }
    }

    /// What the guests do.
    fn guests(c: &World) -> GuestPlan {
        let (queues, trackers) = (one(c, &[0, 1, 1, 2, 2, 3]), one(c, &[0, 0, 1, 1, 2]));
        let requests = one(c, &[20, 60, 150, 300, 300, 500]);
        GuestPlan {
            queues: bytes_usize(queues),
            trackers: bytes_usize(trackers),
            requests: if queues + trackers > 0 { requests } else { 0 },
            think_ns: one(c, &[10_000, 50_000, 200_000, 500_000]),
            blocks: one(c, &[8, 16, 64, 200]),
            hot_percent: one(c, &[0, 50, 90]),
            hot_at_percent: one(c, &[0, 50, 90]),
            write_percent: one(c, &[40, 60, 90]),
            zero_percent: one(c, &[0, 20, 20, 60]),
            depth: bytes_usize(one(c, &[1, 4, 16, 64])),
            staging_bytes: one(c, &[0, 64 * KIB, 256 * KIB]),
            stable_buffers: percent(c, 20),
        }
    }

    /// What goes wrong with requests: nothing in one run of three, what passes in the second, errors in the third.
    fn faults(c: &World) -> [Faults; 2] {
        let kind = c.pick(3);
        let side = |c: &World, errors: bool| {
            simple(Faults {
                short: one(c, &[0, 50, 200]),
                again: one(c, &[0, 20, 60]),
                read_error: if errors { one(c, &[0, 10, 40]) } else { 0 },
                write_error: if errors { one(c, &[0, 10, 40]) } else { 0 },
                no_space: if errors { one(c, &[0, 0, 20]) } else { 0 },
                flush_error: if errors { one(c, &[0, 0, 0, 100]) } else { 0 },
                no_zeroing: percent(c, 25),
                ..Faults::default()
            })
        };
        match kind {
            0 => [Faults::default(); 2],
            1 => [side(c, false), side(c, false)],
            _ => {
                let which = c.pick(3);
                let [source, mut target] = [side(c, which != 0), side(c, which != 1)];
                target.stuck = one(c, &[0, 0, 0, 0, 0, 0, 3, 10]);
                [source, target]
            }
        }
    }

    /// Whether a disk stops answering.
    fn deaths(c: &World) -> [Death; 2] {
        let at = c.pick(20 * MS);
        match c.pick(24) {
            0 => [Death::For(at, 1 + c.pick(100 * MS)), Death::None],
            1 => [Death::None, Death::For(at, 1 + c.pick(100 * MS))],
            2 => [Death::None, Death::Forever(at)],
            _ => [Death::None; 2],
        }
    }

    /// Whether requests on the source (0) or the target (1) may fail for good.
    pub(super) fn has_errors(&self, side: usize) -> bool {
        let faults = &self.faults[side];
        faults.read_error + faults.write_error + faults.no_space + faults.flush_error > 0
    }

    /// Whether requests on the target may never come back: the job can be ended by force only.
    pub(super) fn target_may_hang(&self) -> bool {
        self.faults[1].stuck > 0 || self.deaths.iter().any(|death| matches!(death, Death::Forever(_)))
    }

    /// The world that it happens in.
    pub(super) fn world(&self) -> Arc<World> {
        World::new(self.seed, Faults::default())
    }
}

/// A disk that cannot zero takes no durable writes either.
fn simple(faults: Faults) -> Faults {
    Faults { no_write_through: faults.no_zeroing, ..faults }
}
