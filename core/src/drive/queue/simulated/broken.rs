//! The protocol broken on purpose, rings that break, queues that are dropped.
#![forbid(unsafe_code)]

use super::super::core::ZEROES_BYTES;
use super::super::phase::Phase;
use super::runs::life;
use super::*;
use crate::ring::Wait;

#[test]
fn every_broken_protocol_is_noticed() {
    let faults = Faults { write_error: 40, ..PASSING };
    for mutation in [
        Mutation::MarkBefore,
        Mutation::FailedWriteUnmarked,
        Mutation::ShortAsWhole,
        Mutation::ActiveClearsPartly,
    ] {
        let recipe = |seed| Recipe { seed, faults, mutation: Some(mutation), ..Recipe::default() };
        let noticed = (0..2000).find(|&seed| life(&recipe(seed), 600).is_err());
        println!("{mutation:?}: {noticed:?}");
        assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    }
}

/// A drive under a write-blocking job, with one queue.
pub(super) fn blocking(seed: u64, options: QueueOptions) -> Sim {
    let mut sim = Sim::new(&Recipe { seed, queues: 1, options, ..Recipe::default() });
    sim.attach(CopyMode::WriteBlocking);
    sim
}

/// A queue with requests in hand, some of them under way, and the job that follows its drive.
fn under_way(seed: u64) -> (Sim, Line, Arc<Follower<SimDisk>>) {
    let mut sim = blocking(seed, Recipe::default().options);
    (0..30).for_each(|_| sim.ask(0));
    sim.turn(0);
    (0..sim.world.pick(20)).for_each(|_| _ = sim.step());
    let line = sim.lines.remove(0);
    let follower = Arc::clone(&sim.job.as_ref().unwrap().follower);
    (sim, line, follower)
}

/// How many writes the ring may still carry out on the drive.
fn writes_in_ring(core: &mut QueueCore<SimDisk>) -> usize {
    let is_one = |core: &mut QueueCore<SimDisk>, index| {
        let request = core.table.get(index);
        request.is_some_and(|r| r.wish.changes() && r.source.is_some_and(|part| part.in_ring))
    };
    (0..core.table.places()).filter(|&index| is_one(core, index)).count()
}

#[test]
fn a_queue_whose_ring_has_ended_marks_what_it_had_in_hand_and_leaves_the_gate() {
    for seed in seeds() {
        let (mut sim, Line { core, ring, .. }, follower) = under_way(seed);
        drop(ring);
        core.end(true);
        assert!(!follower.share.is_ending(), "nothing lands any more, so the job can copy all of it");
        sim.check_all();
        assert_eq!(sim.wrong, None, "seed {seed}");
    }
}

#[test]
fn a_write_that_may_still_land_fails_its_job_and_never_leaves_the_gate() {
    let mut hung = 0;
    for seed in seeds() {
        let (mut sim, Line { mut core, ring, .. }, follower) = under_way(seed);
        let writes = writes_in_ring(&mut core);
        if seed % 2 == 0 {
            drop(core);
        } else {
            core.end(false);
        }
        assert!(writes == 0 || follower.share.failure().is_some());
        sim.detach();
        sim.drive.close_gate();
        assert_eq!(sim.drive.is_quiet(false), writes == 0, "seed {seed}: {writes} writes may still land");
        hung += writes;
        drop(ring);
    }
    assert!(hung > 0, "no write was under way");
}

#[test]
fn what_waits_for_a_closed_gate_goes_on_when_it_opens() {
    let mut sim = blocking(3, Recipe::default().options);
    sim.drive.close_gate();
    (0..8).for_each(|_| sim.ask(0));
    while sim.step() {}
    assert_eq!(sim.lines[0].core.in_flight(), 8);
    assert_eq!(sim.lines[0].ring.in_flight(), 0, "something was sent through a closed gate");
    sim.drive.open_gate();
    // Nothing but the drive's wake-up makes the queue look again.
    sim.settle();
    sim.check_all();
    assert_eq!((sim.wrong, sim.successes), (None, 8));
}

#[test]
fn a_full_queue_refuses_and_takes_again_what_was_popped() {
    let mut sim = blocking(4, QueueOptions { depth: 3, ..Recipe::default().options });
    let flush = |sim: &mut Sim, tag| {
        sim.lines[0]
            .core
            .accept(Wish::Flush, ByteRange::default(), None, tag, 1)
            .map_err(|r| r.error.to_string())
    };
    (0..3).for_each(|tag| flush(&mut sim, tag).unwrap());
    assert!(flush(&mut sim, 9).unwrap_err().contains("3 requests"));
    let Line { core, ring, .. } = &mut sim.lines[0];
    while core.answers() < 3 {
        core.turn(ring, core.sleep(1, None, 0)).unwrap();
        sim.world.advance_to(sim.world.now_ns() + 10_000);
    }
    assert!(flush(&mut sim, 9).is_err(), "a completion that was not popped takes room");
    assert!(sim.lines[0].core.pop().is_some());
    flush(&mut sim, 9).unwrap();
}

#[test]
fn a_ring_that_breaks_ends_every_request_once_and_marks_it() {
    let mut errors = 0;
    for seed in seeds() {
        let mut sim = blocking(seed, Recipe::default().options);
        (0..30).for_each(|_| sim.ask(0));
        (0..sim.world.pick(20)).for_each(|_| _ = sim.step());
        let Line { core, ring, asked } = &mut sim.lines[0];
        ring.is_broken = true;
        assert!(core.turn(ring, Wait::POLL).is_err());
        assert_eq!((core.in_flight(), core.answers()), (0, asked.len()));
        while let Some(done) = core.pop() {
            let request = asked.remove(&done.tag).unwrap();
            // What the drive had done already has succeeded.
            errors += u64::from(done.result.is_err());
            if request.wish.changes() {
                let happened = done.result.is_ok() && request.wish != Wish::Discard;
                sim.model.ended(request.range, done.tag, happened, happened);
            }
        }
        let refused = core.accept(Wish::Flush, ByteRange::default(), None, 1, 1).unwrap_err();
        assert!(refused.error.to_string().contains("make a new queue"), "{}", refused.error);
        // What may still land holds the gate until the ring has ended, and is marked once more then, for a later job.
        let Line { core, ring, .. } = sim.lines.remove(0);
        let hung = core.hung.len();
        sim.detach();
        sim.attach(CopyMode::Background);
        sim.drive.close_gate();
        assert_eq!(sim.drive.is_quiet(false), hung == 0, "seed {seed}");
        sim.drive.open_gate();
        drop(ring);
        core.end(true);
        assert!(hung == 0 || !sim.job.as_ref().unwrap().follower.share.dirty.is_clean());
        sim.check_all();
        assert_eq!(sim.wrong, None, "seed {seed}");
    }
    assert!(errors > seeds().end, "{errors} requests were under way");
}

/// Otherwise what is queued there would be sent after all, when its author has heard that it has failed and uses its memory anew.
#[test]
fn a_ring_that_broke_is_not_entered_again_and_the_reason_stays() {
    let mut sim = blocking(2, Recipe::default().options);
    (0..8).for_each(|_| sim.ask(0));
    let Line { core, ring, .. } = &mut sim.lines[0];
    ring.is_broken = true;
    assert_eq!(core.submit(ring).unwrap_err().errno(), libc::EBADF);
    let entered = ring.waits.len();
    // It would work again.
    ring.is_broken = false;
    for _ in 0..2 {
        let ends = [core.submit(ring), core.turn(ring, Wait::POLL), core.turn_for(ring, 1, None)];
        for error in ends.map(|end| end.unwrap_err()) {
            assert_eq!(error.errno(), libc::EBADF);
            assert!(error.to_string().contains("make a new queue"), "{error}");
        }
    }
    assert_eq!(ring.waits.len(), entered);
}

/// Otherwise a host would hear of a failure, and of memory that is in use, where all went well, and its job would fail with it.
#[test]
fn what_a_ring_has_completed_before_it_broke_is_not_lost_with_it() {
    let mut sim = blocking(5, Recipe::default().options);
    let Line { core, ring, .. } = &mut sim.lines[0];
    (0..4).for_each(|tag| core.accept(Wish::Flush, ByteRange::default(), None, tag, 1).unwrap());
    core.submit(ring).unwrap();
    sim.world.advance_to(sim.world.now_ns() + 10_000_000_000);
    // The host sends and does not look, so the completions stay in the ring.
    core.submit(ring).unwrap();
    assert_eq!((core.answers(), core.in_flight()), (0, 4));
    ring.is_broken = true;
    assert!(core.turn(ring, Wait::POLL).is_err());
    let ends: Vec<_> = std::iter::from_fn(|| core.pop()).map(|done| done.result.is_ok()).collect();
    assert_eq!(ends, [true; 4]);
}

/// Otherwise a host would give memory to somebody else that a late request still reads from or writes to.
#[test]
fn a_completion_says_whether_a_broken_ring_may_still_use_its_memory() {
    let mut in_use = 0;
    for seed in seeds() {
        let (_sim, Line { mut core, mut ring, .. }, _) = under_way(seed);
        while core.pop().is_some() {}
        let places = core.table.places();
        let tag = |index| core.table.get(index).filter(|r| r.lends_host_memory()).map(|r| r.tag);
        let lent: Vec<u64> = (0..places).filter_map(tag).collect();
        ring.is_broken = true;
        let _ = core.turn(&mut ring, Wait::POLL).unwrap_err();
        while let Some(done) = core.pop() {
            // What was not sent before the turn is in the ring, too, by then.
            assert!(done.memory_in_use || !lent.contains(&done.tag), "seed {seed}: {done:?}");
            assert!(!done.memory_in_use || (done.buffer.is_none() && done.result.is_err()), "{done:?}");
            in_use += u64::from(done.memory_in_use);
        }
    }
    assert!(in_use > seeds().end, "{in_use}");
}

/// Otherwise the end of a queue in which a bug was caught would be the host's end: a second panic cannot be caught.
#[test]
fn a_queue_whose_lists_make_no_sense_is_dropped_without_a_panic() {
    let (_sim, Line { mut core, ring, .. }, _) = under_way(3);
    let index = (0..core.table.places()).find(|&index| core.table.get(index).is_some()).unwrap();
    core.table.get(index).unwrap().phase = Phase::Over;
    drop(core);
    drop(ring);
}

/// A write under way whose target does not answer any more; the drive has answered.
fn half_done(options: QueueOptions) -> (Sim, Arc<SimDisk>) {
    let mut sim = blocking(1, options);
    let target = Arc::clone(&sim.job.as_ref().unwrap().follower.target);
    sim.lines[0].ring.kill(&target);
    while sim.lines[0].ring.swallowed() == 0 {
        sim.ask(0);
        sim.turn(0);
    }
    while sim.lines[0].ring.in_flight() > sim.lines[0].ring.swallowed() {
        assert!(sim.step());
    }
    (0..50).for_each(|_| _ = sim.step());
    assert_eq!(sim.lines[0].core.in_flight(), sim.lines[0].ring.swallowed(), "only the target is missing");
    (sim, target)
}

#[test]
fn a_dead_target_holds_up_nobody_once_its_job_is_ending() {
    let (mut sim, target) = half_done(Recipe::default().options);
    let late = sim.lines[0].ring.swallowed();
    sim.job.as_ref().unwrap().follower.share.cancel();
    sim.lines[0].ring.waker().wake();
    assert!(sim.step());
    let Line { core, ring, asked } = &sim.lines[0];
    assert_eq!((core.in_flight(), asked.len(), core.targets), (0, 0, late), "answered, and not forgotten");
    assert!(core.window.used_bytes() > ZEROES_BYTES, "the target may still read our memory");
    assert!(ring.has(&target), "a device with a request in flight stays open");
    assert_eq!(sim.failures, 0, "the guest hears of the drive alone");
    sim.detach();
    sim.check_all();
    // The drive goes on, a next job too, and the late writes come back to nobody.
    sim.attach(CopyMode::WriteBlocking);
    (0..40).for_each(|_| {
        sim.ask(0);
        sim.turn(0);
    });
    sim.lines[0].ring.revive();
    sim.settle();
    sim.check_all();
    assert_eq!(sim.wrong, None);
    while sim.step() {}
    let Line { core, ring, .. } = &sim.lines[0];
    assert_eq!((core.targets, core.window.used_bytes()), (0, ZEROES_BYTES));
    assert!(!ring.has(&target), "a job that is over leaves nothing attached");
}

#[test]
fn memory_of_the_host_is_given_back_only_when_a_dead_target_has_answered() {
    let (mut sim, _) = half_done(QueueOptions { stable_buffers: true, ..Recipe::default().options });
    let lent = sim.lines[0].core.in_flight();
    sim.job.as_ref().unwrap().follower.share.cancel();
    sim.lines[0].ring.waker().wake();
    assert!(sim.step());
    let zeroes = lent - sim.lines[0].core.in_flight();
    assert!(zeroes < lent, "there is a write with data among them");
    // All are marked, and nobody is inside the gate: no later switch-over waits for them.
    sim.detach();
    sim.drive.close_gate();
    assert!(sim.drive.is_quiet(false));
    sim.drive.open_gate();
    sim.lines[0].ring.revive();
    sim.settle();
    sim.check_all();
    assert_eq!((sim.wrong, sim.failures), (None, 0));
}

#[test]
fn no_write_is_sent_to_a_target_whose_job_is_ending() {
    for seed in seeds() {
        let mut sim = blocking(seed, Recipe::default().options);
        let target = Arc::clone(&sim.job.as_ref().unwrap().follower.target);
        (0..6).for_each(|_| sim.ask(0));
        (0..sim.world.pick(6)).for_each(|_| _ = sim.step());
        sim.job.as_ref().unwrap().follower.share.cancel();
        sim.lines[0].ring.kill(&target);
        (0..6).for_each(|_| sim.ask(0));
        sim.settle();
        assert_eq!(sim.lines[0].ring.swallowed(), 0, "seed {seed}");
        sim.check_all();
        assert_eq!(sim.wrong, None, "seed {seed}");
    }
}
