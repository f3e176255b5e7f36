//! Every interleaving of what the workers of a job share beside the bitmap: the sweep, the counters of who is at work,
//! and when all rest.
//!
//! Run with `make loom`. The models use the real `Activity`, `Sweep`, `DirtyBitmap` and `Claims`, and follow the order in
//! which a copier calls them. Each is also run with that order broken, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::mirror::{Activity, Command, Decision, Rest, Sweep};
use blkmirror_core::units::{ByteRange, Chunk, ChunkRange, Granularity};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;

use crate::loom_kit::{check, chunks};

/// A chunk.
const CHUNK: u64 = 512;

/// How a worker or the coordinator breaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// The worker counts itself in when it has a chunk, not before it looks for one.
    CountsInLate,
    /// The worker counts itself out, and then marks what failed.
    CountsOutEarly,
    /// The coordinator looks at the counter before the bitmap, and not after it.
    LooksOnce,
    /// The worker counts itself into the sweep after it took a part of it.
    SweepsInLate,
    /// The worker counts itself out of the sweep before it has claimed its part.
    SweepsOutEarly,
    /// Dirty chunks are taken up while the sweep goes on.
    DirtyBeforeSweep,
    /// A part of the sweep is taken by a look and a move.
    LooksAndMoves,
    /// Who cancels looks whether something is decided, and takes it that it still is not.
    CancelsByALook,
}

/// What the workers of a job share, and what the target got.
struct Job {
    activity: Activity,
    sweep: Sweep,
    dirty: DirtyBitmap,
    claims: Claims,
    target: Vec<AtomicU64>,
    broken: Broken,
}

impl Job {
    /// A job of `chunks` chunks; all dirty by position if `swept`, by their bits if not.
    fn new(count: u64, swept: bool, broken: Broken) -> Arc<Self> {
        let (granularity, bytes) = (Granularity::new(CHUNK).unwrap(), count * CHUNK);
        let job = Self {
            activity: Activity::default(),
            sweep: if swept { Sweep::new(bytes) } else { Sweep::done(bytes) },
            dirty: DirtyBitmap::new(bytes, granularity).unwrap(),
            claims: Claims::new(bytes, granularity).unwrap(),
            target: (0..count).map(|_| AtomicU64::new(0)).collect(),
            broken,
        };
        if !swept {
            job.dirty.set(chunks(0, count));
        }
        Arc::new(job)
    }

    /// Copies the claimed `run`, or fails to: *Claim, clear, read*, and dirty again before the claim is let go.
    fn copy(&self, run: ChunkRange, succeeds: bool) {
        self.dirty.clear(run);
        for chunk in run.start()..run.end() {
            if succeeds {
                self.target[chunk as usize].fetch_add(1, Relaxed);
            }
        }
        if !succeeds && self.broken != Broken::CountsOutEarly {
            self.dirty.set(run);
        }
        self.claims.release(run);
    }

    /// A worker takes up what it finds dirty; if `fails`, the copy of the first chunk fails and it leaves.
    fn dirty_round(&self, fails: bool) {
        let late = self.broken == Broken::CountsInLate;
        if !late && !self.activity.begin_work() {
            return;
        }
        let mut failed = None;
        let mut from = 0;
        while let Some(run) = self.dirty.next_run(Chunk(from), 1) {
            from = run.end();
            if self.claims.try_claim(run).is_empty() {
                continue;
            }
            if late {
                self.dirty.clear(run);
                assert!(self.activity.begin_work(), "nobody closes here");
            }
            self.copy(run, !fails);
            if late {
                self.activity.end_work();
            }
            if fails {
                failed = Some(run);
                break;
            }
        }
        if !late {
            self.activity.end_work();
        }
        if let (Some(run), Broken::CountsOutEarly) = (failed, self.broken) {
            self.dirty.set(run);
        }
    }

    /// A worker takes one chunk from the sweep.
    fn sweep_round(&self) {
        assert!(self.activity.begin_work(), "nobody closes here");
        if self.broken != Broken::SweepsInLate {
            self.activity.begin_sweep();
        }
        let part = self.sweep.take(CHUNK);
        if self.broken == Broken::SweepsInLate {
            self.activity.begin_sweep();
        }
        if self.broken == Broken::SweepsOutEarly {
            self.activity.end_sweep();
        }
        let run = part.map(|part| chunks(part.start() / CHUNK, part.end() / CHUNK));
        let claimed = run.filter(|&run| !self.claims.try_claim(run).is_empty());
        if let (Some(run), None) = (run, claimed) {
            self.dirty.set(run);
        }
        if self.broken != Broken::SweepsOutEarly {
            self.activity.end_sweep();
        }
        if let Some(run) = claimed {
            for chunk in run.start()..run.end() {
                let before = self.target[chunk as usize].load(Relaxed);
                assert_eq!(before, 0, "a chunk from the sweep was written before");
            }
            self.copy(run, true);
        }
        self.activity.end_work();
    }

    /// A worker that is done with the sweep takes up dirty chunks, if it may.
    fn dirty_round_after_the_sweep(&self) {
        let may = self.activity.sweep_is_claimed(|| self.sweep.is_over());
        if may || self.broken == Broken::DirtyBeforeSweep {
            self.dirty_round(false);
        }
    }

    /// The coordinator's question. A yes must be true.
    fn ask(&self) {
        let nothing_left = || self.sweep.is_over() && self.dirty.is_clean();
        let finished = match self.broken {
            Broken::LooksOnce => self.activity.is_idle() && nothing_left(),
            _ => self.activity.is_finished(nothing_left),
        };
        if finished {
            for (chunk, copies) in self.target.iter().enumerate() {
                assert_ne!(copies.load(Relaxed), 0, "finished without chunk {chunk}");
            }
        }
    }
}

type Part = Box<dyn FnOnce(&Job) + Send>;

/// Runs each part on a thread of its own, `own` on this one, and waits for all.
fn together(job: &Arc<Job>, others: Vec<Part>, own: impl FnOnce(&Job)) {
    let threads: Vec<_> = others
        .into_iter()
        .map(|part| {
            let job = Arc::clone(job);
            thread::spawn(move || part(&job))
        })
        .collect();
    own(job);
    for thread in threads {
        thread.join().unwrap();
    }
}

// ---- finished ----

/// Two workers on one dirty chunk, one of which fails and marks it again, and the coordinator's question.
fn finished(broken: Broken) {
    check(Some(3), move || {
        let job = Job::new(1, false, broken);
        together(
            &job,
            vec![Box::new(|job| job.dirty_round(true)), Box::new(|job| job.dirty_round(false))],
            Job::ask,
        );
        job.ask();
    });
}

#[test]
fn a_job_is_not_finished_while_a_chunk_is_dirty_or_in_hand() {
    finished(Broken::No);
}

#[test]
#[should_panic(expected = "finished without chunk")]
fn a_worker_that_counts_itself_in_late_is_noticed() {
    finished(Broken::CountsInLate);
}

#[test]
#[should_panic(expected = "finished without chunk")]
fn a_worker_that_counts_itself_out_before_it_marks_what_failed_is_noticed() {
    finished(Broken::CountsOutEarly);
}

#[test]
#[should_panic(expected = "finished without chunk")]
fn a_coordinator_that_looks_at_the_counter_once_is_noticed() {
    finished(Broken::LooksOnce);
}

/// The same while chunks come from the sweep.
#[test]
fn a_job_is_not_finished_while_a_part_of_the_sweep_is_in_hand() {
    check(Some(3), || {
        let job = Job::new(2, true, Broken::No);
        together(&job, vec![Box::new(Job::sweep_round), Box::new(Job::sweep_round)], Job::ask);
        assert!(job.activity.is_finished(|| job.sweep.is_over() && job.dirty.is_clean()));
        job.ask();
    });
}

// ---- the first to write ----

/// A guest writes the chunk that a worker is taking from the sweep; then, on the guest's thread, another worker looks for
/// dirty chunks.
fn first_to_write(broken: Broken) {
    check(None, move || {
        let job = Job::new(1, true, broken);
        together(&job, vec![Box::new(Job::sweep_round)], |job| {
            job.dirty.set(chunks(0, 1));
            job.dirty_round_after_the_sweep();
        });
    });
}

#[test]
fn a_run_from_the_sweep_is_the_first_to_write_its_chunks() {
    first_to_write(Broken::No);
}

#[test]
#[should_panic(expected = "was written before")]
fn dirty_chunks_before_the_end_of_the_sweep_are_noticed() {
    first_to_write(Broken::DirtyBeforeSweep);
}

#[test]
#[should_panic(expected = "was written before")]
fn a_worker_that_counts_itself_into_the_sweep_late_is_noticed() {
    first_to_write(Broken::SweepsInLate);
}

#[test]
#[should_panic(expected = "was written before")]
fn a_worker_that_counts_itself_out_of_the_sweep_early_is_noticed() {
    first_to_write(Broken::SweepsOutEarly);
}

// ---- the sweep alone ----

/// Takes `len` bytes.
fn take(sweep: &Sweep, len: u64, broken: Broken) -> ByteRange {
    if broken == Broken::LooksAndMoves {
        let start = sweep.position();
        let _ = sweep.skip_to(start + len);
        return ByteRange::new(start, sweep.position().min(start + len));
    }
    sweep.take(len).unwrap_or_default()
}

/// Two workers take pieces and skip holes, in turn and against each other.
fn sweeping(broken: Broken) {
    check(None, move || {
        let sweep = Arc::new(Sweep::new(10));
        let theirs = Arc::clone(&sweep);
        let other =
            thread::spawn(move || [take(&theirs, 3, broken), theirs.skip_to(7), take(&theirs, 2, broken)]);
        let mut all = vec![take(&sweep, 2, broken), sweep.skip_to(6), take(&sweep, 5, broken)];
        all.extend(other.join().unwrap());
        while let Some(part) = sweep.take(4) {
            all.push(part);
        }
        all.retain(|part| !part.is_empty());
        all.sort();
        let mut at = 0;
        for part in all {
            assert_eq!(part.start(), at, "a byte with two owners, or with none");
            at = part.end();
        }
        assert_eq!(at, 10);
        assert!(sweep.is_over());
    });
}

#[test]
fn a_sweep_gives_every_byte_to_one_worker() {
    sweeping(Broken::No);
}

#[test]
#[should_panic(expected = "a byte with two owners")]
fn taking_by_a_look_and_a_move_is_noticed() {
    sweeping(Broken::LooksAndMoves);
}

// ---- the rest ----

/// How a worker breaks the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Restless {
    No,
    /// It asks, and then begins whatever has changed.
    AsksAndBegins,
}

/// A piece of 1 ms that a worker begins at a time, unless it is to rest; counted while it is under way, and once it was.
fn piece(rest: &Rest, under_way: &AtomicU64, done: &AtomicU64, at_ns: u64, how: Restless) {
    if rest.begin(4, at_ns).is_err() {
        return;
    }
    if how == Restless::AsksAndBegins {
        // As if the question had been one of its own: what was begun is taken back, and begun again without a look.
        rest.end(at_ns);
        thread::yield_now();
        let _ = rest.begin(0, at_ns);
    }
    assert_eq!(under_way.fetch_add(1, Relaxed), 0, "two pieces at once");
    under_way.fetch_sub(1, Relaxed);
    done.fetch_add(1, Relaxed);
    rest.end(at_ns + (1 << 20));
}

/// Two workers that find nobody at work within the same millisecond: one piece, and the rest after it.
fn resting(how: Restless) {
    check(None, move || {
        let all = Arc::new((Rest::default(), AtomicU64::new(0), AtomicU64::new(0)));
        let theirs = Arc::clone(&all);
        let other = thread::spawn(move || piece(&theirs.0, &theirs.1, &theirs.2, 10 << 20, how));
        piece(&all.0, &all.1, &all.2, (10 << 20) + 4096, how);
        other.join().unwrap();
        assert_eq!(all.2.load(Relaxed), 1, "a piece in the rest after another");
        let until_ns = all.0.begin(4, (11 << 20) + 4096).unwrap_err();
        assert!(until_ns >= 12 << 20, "the rest is as long as the work");
    });
}

#[test]
fn one_worker_at_a_time_begins_and_the_others_rest_after_it() {
    resting(Restless::No);
}

#[test]
#[should_panic(expected = "piece")]
fn a_worker_that_asks_and_then_begins_is_noticed() {
    resting(Restless::AsksAndBegins);
}

/// A host's two threads, one that finalizes and one that cancels, beside a home that looks, and a failure: exactly one of the two
/// hears yes, and the home does what that one was told.
fn decides(broken: Broken) {
    let command = Arc::new(Command::default());
    let finalizer = {
        let command = Arc::clone(&command);
        thread::spawn(move || command.decide())
    };
    let canceller = {
        let command = Arc::clone(&command);
        thread::spawn(move || {
            if broken == Broken::CancelsByALook {
                let free = command.decision().is_none();
                command.cancel();
                return free;
            }
            command.cancel()
        })
    };
    // The home looks once while they are at it: what it sees stays so.
    let seen = match (command.gives_up(), command.decision()) {
        (true, _) => Some(false),
        (false, Some(Decision::Pivot | Decision::PointInTime)) => Some(true),
        // It was cancelled between the two looks, which the next turn sees.
        (false, _) => None,
    };
    let (completes, cancelled) = (finalizer.join().unwrap(), canceller.join().unwrap());
    assert!(completes != cancelled, "both or none were told yes");
    assert!(seen.is_none_or(|seen| seen == completes), "the home does something else");
    // What fails now changes nothing that was decided.
    command.fail();
    assert_eq!(
        (command.gives_up(), command.decision() == Some(Decision::PointInTime)),
        (cancelled, completes)
    );
    assert!(!command.decide() && command.cancel() == cancelled);
}

/// A failure beside a home that finds all copied and flushed, and a host that is asked then.
#[test]
fn a_failure_beside_the_seal_ends_the_job_or_changes_nothing() {
    check(None, || {
        let command = Arc::new(Command::default());
        let failing = {
            let command = Arc::clone(&command);
            thread::spawn(move || command.fail())
        };
        let sealed = command.seal();
        let decided = command.decide();
        assert!(sealed == decided || command.decision() == Some(Decision::Failed));
        failing.join().unwrap();
        assert_eq!((command.gives_up(), command.decide()), (!decided, false));
        assert!(!sealed || decided, "the host was asked, and was refused for a failure");
    });
}

#[test]
fn of_a_finalize_and_a_cancel_exactly_one_is_told_yes() {
    check(None, || decides(Broken::No));
}

#[test]
#[should_panic(expected = "both or none were told yes")]
fn a_cancel_by_a_look_is_noticed() {
    check(None, || decides(Broken::CancelsByALook));
}
