//! What a job's home does beside copying: it carries out what the coordinator decides, on the job's drive.
//!
//! However a home ends, by a decision, a broken ring or a panic, the gate that it closed is open and the job is detached
//! (**The guest is not our hostage**, see `Drop`).

use std::sync::Arc;

use super::job::JobCore;
use crate::drive::{DriveCore, LatencyCounts};
use crate::mirror::{Act, Coordinator, End, Follow, Guest, GuestLatency, MirrorOptions};

/// With more than this dirty, workers that found nothing to do are asked to look again.
const HELP_BYTES: u64 = 4 << 20;

/// The home's part of a job.
#[derive(Debug)]
pub(super) struct Home<D> {
    /// Decides.
    pub(super) coordinator: Coordinator,
    /// Knows what to expect.
    pub(super) follow: Follow,
    /// The disk that is mirrored.
    drive: Arc<DriveCore<D>>,
    /// Where the drive may move.
    target: Arc<D>,
    /// What the guest's requests took with a job, at the last time that stock was taken, and now; only if room is to be made
    /// for them.
    latencies: Option<[LatencyCounts; 2]>,
    /// The gate is closed by this job.
    holds_gate: bool,
    /// The job is detached from the drive.
    detached: bool,
    /// Queues know that the job is ending.
    told_queues: bool,
}

impl<D> Home<D> {
    /// The home's part of a job that is attached to `drive`.
    pub(super) fn new(options: &MirrorOptions, drive: Arc<DriveCore<D>>, target: Arc<D>) -> Self {
        let follow = Follow::new(options);
        let latencies = follow.makes_room().then(|| {
            let with_job = drive.latencies(true).snapshot();
            [with_job.clone(), with_job]
        });
        Self {
            coordinator: Coordinator::new(options),
            follow,
            drive,
            target,
            latencies,
            holds_gate: false,
            detached: false,
            told_queues: false,
        }
    }

    /// Whether nobody is inside the drive's gate; asked only while this job holds it closed.
    pub(super) fn gate_is_quiet(&mut self, core: &JobCore, now_ns: u64) -> bool {
        let quiet = self.holds_gate && core.share.sees_quiet(|missed| self.drive.is_quiet(missed));
        if quiet {
            self.follow.gate_is_quiet(now_ns);
        }
        quiet
    }

    /// Takes stock if it is time.
    pub(super) fn take_stock(&mut self, core: &JobCore, now_ns: u64) {
        if !self.follow.is_due(&core.share, now_ns) {
            return;
        }
        let guest = self.look_at_guest();
        let missed = self.coordinator.missed();
        let has_queues = || self.drive.has_queues();
        let faster = self.follow.tick(&core.share, missed, guest.as_ref(), &has_queues, now_ns);
        if faster || core.share.dirty.dirty_bytes() > HELP_BYTES {
            core.wake_all();
        }
    }

    /// What the guest's requests took since the last look, if anybody wants to know.
    fn look_at_guest(&mut self) -> Option<Guest> {
        let latencies = self.latencies.as_mut()?;
        let [last, now] = latencies;
        self.drive.latencies(true).snapshot_into(now);
        let guest = Guest { latency: latency_since(now, last), waits: !self.drive.is_quiet(false) };
        latencies.swap(0, 1);
        Some(guest)
    }

    /// Once the job is ending, guest requests do not wait for its target any more (**The guest is not our hostage**).
    pub(super) fn tell_queues(&mut self, core: &JobCore) {
        if core.share.is_ending() && !std::mem::replace(&mut self.told_queues, true) {
            self.drive.wake_queues();
        }
    }

    /// Carries out what needs no ring. `false` when the drive refused to move, which is a bug: the job fails.
    pub(super) fn carry_out(&mut self, act: Act, core: &JobCore, now_ns: u64) -> bool {
        match act {
            Act::Rest | Act::Flush => {}
            Act::Rouse => core.wake_all(),
            Act::CloseGate => {
                self.holds_gate = true;
                self.drive.close_gate();
                self.follow.gate_closed(&core.share, now_ns);
                core.wake_all();
            }
            Act::OpenGate => {
                self.follow.gate_opened(&core.share, now_ns);
                self.open_gate();
                core.wake_all();
            }
            Act::Pivot => {
                // A guest that may not write may not write to the target either.
                let writable = self.drive.place().writable;
                if self.drive.pivot(Arc::clone(&self.target), writable).is_err() {
                    return self.coordinator.not_moved(now_ns);
                }
            }
            Act::LetGo => {
                // Before another job may come.
                core.latencies.end();
                self.let_go();
            }
            Act::Conclude(end) => {
                core.set_pause_ns(self.coordinator.pause_ns());
                core.conclude(end, now_ns);
            }
        }
        true
    }

    /// Opens the gate if this job closed it.
    fn open_gate(&mut self) {
        if std::mem::take(&mut self.holds_gate) {
            self.drive.open_gate();
        }
    }

    /// Detaches the job from the drive.
    fn let_go(&mut self) {
        if !std::mem::replace(&mut self.detached, true) {
            self.drive.detach();
        }
    }

    /// The end of a job whose worker cannot go on. A switch-over that is decided is carried out all the same: it needs no ring, and
    /// the host was told that it happens.
    pub(super) fn give_up(&mut self, core: &JobCore, now_ns: u64) {
        if self.completes(core, now_ns) {
            return;
        }
        core.latencies.end();
        self.let_go();
        self.open_gate();
        core.conclude(if core.share.is_cancelled() { End::Cancelled } else { End::Failed }, now_ns);
    }

    /// Carries out what is left of a switch-over that is decided; whether that is the job's end.
    fn completes(&mut self, core: &JobCore, now_ns: u64) -> bool {
        loop {
            let moved = Arc::ptr_eq(&self.drive.place().device, &self.target);
            let act = self.coordinator.carry_on(&core.share, moved, now_ns);
            if act == Act::Rest {
                // Nothing is decided, or the drive refused to move again and again.
                return false;
            }
            self.carry_out(act, core, now_ns);
            if matches!(act, Act::Conclude(_)) {
                return true;
            }
            // Somebody who just looks at the gate keeps the drive from moving for as long as that takes.
            std::thread::yield_now();
        }
    }
}

/// Latencies counted after `earlier`, as the pacer takes them.
fn latency_since(now: &LatencyCounts, earlier: &LatencyCounts) -> GuestLatency {
    let mut latency = GuestLatency::new();
    now.for_each_since(earlier, |ns, count| latency.record(ns, u32::try_from(count).unwrap_or(u32::MAX)));
    latency
}

impl<D> Drop for Home<D> {
    fn drop(&mut self) {
        self.let_go();
        self.open_gate();
    }
}
