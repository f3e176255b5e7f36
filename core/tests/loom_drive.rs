//! Every interleaving of requests with a gate that is closed, and with a job that attaches.
//!
//! Run with `make loom`. The models use the real `Gate`, `Attached` and `DirtyBitmap`; the gate then has two slots.
//! Data is accessed with the weakest order, so that nothing but the gate and the marks orders it. Each is also run
//! with its protocol broken, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::bitmap::DirtyBitmap;
use blkmirror_core::drive::{Attached, Enter, Gate};
use blkmirror_core::units::{Chunk, Granularity};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;

use crate::loom_kit::{check, chunks};

/// How a request or the closing side breaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// The request gives its pass back before it marks.
    LeavesBeforeItMarks,
    /// The request looks at the gate without taking a pass.
    OnlyLooks,
    /// The drain does not look who is inside.
    DrainMissesTheGuests,
    /// The job reads before it is attached.
    AttachesLate,
    /// The request looks for a follower before it writes.
    LooksForTheFollowerFirst,
}

/// A drive of one chunk.
struct Drive {
    gate: Gate,
    attached: Attached<DirtyBitmap>,
    data: AtomicU64,
    broken: Broken,
}

impl Drive {
    fn new(broken: Broken) -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(), attached: Attached::default(), data: AtomicU64::new(0), broken })
    }

    /// A map for a follower.
    fn map() -> std::sync::Arc<DirtyBitmap> {
        std::sync::Arc::new(DirtyBitmap::new(1024, Granularity::new(512).unwrap()).unwrap())
    }

    fn mark(&self) {
        self.attached.after_write(|map| {
            map.set(chunks(0, 1));
        });
    }

    /// A guest writes, if it is let in.
    fn guest_writes(&self, value: u64) {
        if self.broken == Broken::OnlyLooks {
            if !self.gate.is_closed() {
                self.data.store(value, Relaxed);
                self.mark();
            }
            return;
        }
        let Enter::In(pass) = self.gate.enter() else { return };
        if self.broken == Broken::LooksForTheFollowerFirst {
            self.mark();
        }
        self.data.store(value, Relaxed);
        if self.broken == Broken::LeavesBeforeItMarks {
            assert!(self.gate.leave(pass));
            self.mark();
            return;
        }
        if self.broken != Broken::LooksForTheFollowerFirst {
            self.mark();
        }
        assert!(self.gate.leave(pass));
    }
}

/// Runs each guest on a thread of its own, `own` on this one, and waits for all.
fn beside(drive: &Arc<Drive>, guests: u64, own: impl FnOnce(&Drive)) {
    let threads: Vec<_> = (1..=guests)
        .map(|value| {
            let drive = Arc::clone(drive);
            thread::spawn(move || drive.guest_writes(value))
        })
        .collect();
    own(drive);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A gate is closed beside guests; when it is quiet, a clean chunk has its last data, and keeps it until the gate
/// opens.
fn closed_and_quiet(guests: u64, preemptions: Option<usize>, broken: Broken) {
    check(preemptions, move || {
        let drive = Drive::new(broken);
        let map = Drive::map();
        drive.attached.attach(std::sync::Arc::clone(&map));
        let copied = drive.data.load(Relaxed);
        let verdict = Arc::new(AtomicU64::new(0));
        let said = Arc::clone(&verdict);
        beside(&drive, guests, move |drive| {
            drive.gate.close();
            if drive.broken == Broken::DrainMissesTheGuests || drive.gate.is_quiet() {
                let clean = !map.test(Chunk(0));
                assert!(!clean || drive.data.load(Relaxed) == copied, "a write was not marked");
                said.store(1 + drive.data.load(Relaxed), Relaxed);
            }
        });
        let said = verdict.load(Relaxed);
        assert!(said == 0 || said == 1 + drive.data.load(Relaxed), "somebody wrote behind the gate");
        assert!(drive.gate.is_quiet(), "a pass was left behind");
    });
}

#[test]
fn closed_and_quiet_means_that_nobody_is_inside_nor_will_be() {
    closed_and_quiet(1, None, Broken::No);
    closed_and_quiet(2, Some(3), Broken::No);
}

#[test]
#[should_panic(expected = "a write was not marked")]
fn a_pass_given_back_before_the_mark_is_noticed() {
    closed_and_quiet(1, None, Broken::LeavesBeforeItMarks);
}

#[test]
#[should_panic(expected = "somebody wrote behind the gate")]
fn a_look_at_the_gate_without_a_pass_is_noticed() {
    closed_and_quiet(1, None, Broken::OnlyLooks);
}

#[test]
#[should_panic(expected = "a write was not marked")]
fn a_drain_that_misses_somebody_is_noticed() {
    closed_and_quiet(1, None, Broken::DrainMissesTheGuests);
}

/// Two requests use one slot in turn, and only the first writes: who sees the gate quiet sees its data, though it is
/// the second's return of the slot that he sees.
#[test]
fn who_returns_a_slot_passes_on_what_its_user_before_did() {
    check(Some(3), || {
        let drive = Drive::new(Broken::No);
        let (first, second) = (Arc::clone(&drive), Arc::clone(&drive));
        let writing = thread::spawn(move || {
            let Enter::In(pass) = first.gate.enter() else { return };
            first.data.store(1, Relaxed);
            assert!(first.gate.leave(pass));
        });
        let reading = thread::spawn(move || {
            let Enter::In(pass) = second.gate.enter() else { return };
            assert!(second.gate.leave(pass));
        });
        drive.gate.close();
        let seen = drive.gate.is_quiet().then(|| drive.data.load(Relaxed));
        writing.join().unwrap();
        reading.join().unwrap();
        assert!(seen.is_none_or(|seen| seen == drive.data.load(Relaxed)), "a write was not seen");
    });
}

/// What is done behind the closed gate is seen by who comes in after it was opened.
#[test]
fn who_comes_in_after_a_pivot_sees_it() {
    check(None, || {
        let drive = Drive::new(Broken::No);
        let place = Arc::new(AtomicU64::new(0));
        let (guest, seen) = (Arc::clone(&drive), Arc::clone(&place));
        let thread = thread::spawn(move || {
            let Enter::In(pass) = guest.gate.enter() else { return };
            let first = seen.load(Relaxed);
            let second = seen.load(Relaxed);
            assert_eq!(first, second, "the drive moved under a request");
            // The pivot is over exactly if the gate has been opened again, which the data tell.
            assert_eq!(first, guest.data.load(Relaxed), "the drive moved under a request");
            assert!(guest.gate.leave(pass));
        });
        drive.gate.close();
        if drive.gate.is_quiet() {
            place.store(1, Relaxed);
            drive.data.store(1, Relaxed);
        }
        drive.gate.open();
        thread.join().unwrap();
    });
}

/// A job attaches while guests write: what it copies at first is what the chunk holds, or the chunk is marked.
fn attach_beside_writes(broken: Broken) {
    check(Some(4), move || {
        let drive = Drive::new(broken);
        let map = Drive::map();
        let copy = Arc::new(AtomicU64::new(0));
        let (target, follower) = (Arc::clone(&copy), std::sync::Arc::clone(&map));
        beside(&drive, 2, move |drive| {
            let early = drive.data.load(Relaxed);
            drive.attached.attach(follower);
            let late = if drive.broken == Broken::AttachesLate { early } else { drive.data.load(Relaxed) };
            target.store(late, Relaxed);
        });
        let equal = copy.load(Relaxed) == drive.data.load(Relaxed);
        assert!(equal || map.test(Chunk(0)), "a write was recorded by nobody");
    });
}

#[test]
fn every_write_that_ends_after_a_job_attached_is_recorded() {
    attach_beside_writes(Broken::No);
}

#[test]
#[should_panic(expected = "a write was recorded by nobody")]
fn a_job_that_reads_before_it_attaches_is_noticed() {
    attach_beside_writes(Broken::AttachesLate);
}

#[test]
#[should_panic(expected = "a write was recorded by nobody")]
fn a_request_that_looks_for_a_job_before_it_writes_is_noticed() {
    attach_beside_writes(Broken::LooksForTheFollowerFirst);
}

/// Two threads end one pass while a third enters and leaves: somebody is believed, and the gate never looks quiet
/// with somebody inside.
#[test]
fn a_pass_that_two_threads_end_never_makes_the_gate_quiet_too_soon() {
    check(Some(3), || {
        let gate = Arc::new(Gate::new());
        let Enter::In(pass) = gate.enter() else { panic!("an open gate") };
        let (other, guest) = (Arc::clone(&gate), Arc::clone(&gate));
        let ending = thread::spawn(move || other.leave(pass));
        let entering = thread::spawn(move || {
            // Twice, so that both slots are used and the one of `pass` again.
            let _ = guest.enter();
            guest.enter()
        });
        let first = gate.leave(pass);
        let second = ending.join().unwrap();
        assert!(first || second, "a good pass was refused");
        if let Enter::In(inside) = entering.join().unwrap() {
            gate.close();
            assert!(!gate.is_quiet(), "somebody is inside");
            assert!(gate.leave(inside));
            assert!(!gate.leave(inside) && !gate.leave(pass), "ended twice");
        }
    });
}
