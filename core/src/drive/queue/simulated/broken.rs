//! The protocol broken on purpose, rings that break, queues that are dropped.
#![forbid(unsafe_code)]

use super::runs::life;
use super::*;

#[test]
fn every_broken_protocol_is_noticed() {
    let faults = Faults { write_error: 40, ..PASSING };
    for mutation in [
        Mutation::MarkBefore,
        Mutation::FailedWriteUnmarked,
        Mutation::ShortAsWhole,
        Mutation::ReleaseBeforeRedirty,
        Mutation::ActiveClearsPartly,
    ] {
        let recipe = |seed| Recipe { seed, faults, mutation: Some(mutation), ..Recipe::default() };
        let noticed = (0..2000).find(|&seed| life(&recipe(seed), 600).is_err());
        println!("{mutation:?}: {noticed:?}");
        assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    }
}

/// A drive under a write-blocking job, with one queue.
fn blocking(seed: u64, options: QueueOptions) -> Sim {
    let mut sim = Sim::new(&Recipe { seed, queues: 1, options, ..Recipe::default() });
    sim.attach(CopyMode::WriteBlocking);
    sim
}

#[test]
fn a_queue_that_is_dropped_marks_what_it_had_in_hand_and_leaves_the_gate() {
    for seed in seeds() {
        let mut sim = blocking(seed, Recipe::default().options);
        (0..30).for_each(|_| sim.ask(0));
        sim.turn(0);
        (0..sim.world.pick(20)).for_each(|_| _ = sim.step());
        let Line { core, ring, .. } = sim.lines.remove(0);
        let busy = core.in_flight() > 0;
        drop(core);
        let job = sim.job.as_ref().unwrap();
        // A write that may still land makes any later copy of that place doubtful, so its job must have failed.
        assert!(!busy || job.follower.share.is_ending() || !job.follower.share.dirty.is_clean());
        drop(ring);
        sim.check_all();
        assert_eq!(sim.wrong, None, "seed {seed}");
    }
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
        sim.lines[0].core.accept(Wish::Flush, ByteRange::default(), None, tag, 1).map_err(|r| r.error.to_string())
    };
    (0..3).for_each(|tag| flush(&mut sim, tag).unwrap());
    assert!(flush(&mut sim, 9).unwrap_err().contains("3 requests"));
    let Line { core, ring, .. } = &mut sim.lines[0];
    while core.answers() < 3 {
        core.turn(ring, core.sleep(0)).unwrap();
        sim.world.advance_to(sim.world.now_ns() + 10_000);
    }
    assert!(flush(&mut sim, 9).is_err(), "a completion that was not popped takes room");
    assert!(sim.lines[0].core.pop().is_some());
    flush(&mut sim, 9).unwrap();
}
