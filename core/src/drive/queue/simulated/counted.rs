//! Which requests count when it is asked how long they took.
#![forbid(unsafe_code)]

use super::*;
use crate::drive::{Admission, IoKind};
use crate::ring::Wait;

/// What the drive has counted, without a job and with one.
fn counted(sim: &Sim) -> [u64; 2] {
    [false, true].map(|with_job| sim.drive.latencies(with_job).snapshot().count())
}

/// Otherwise a disk that fails at once would look fast, and one that is lost slow, and the pacer would follow either.
#[test]
fn latencies_are_kept_apart_on_queues_too_and_only_what_went_well_counts() {
    let faults = Faults { read_error: 300, write_error: 300, flush_error: 300, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { queues: 1, faults, ..Recipe::default() });
    for with_job in [false, true] {
        if with_job {
            sim.attach(CopyMode::Background);
        }
        let before = sim.successes;
        for _ in 0..40 {
            (0..8).for_each(|_| sim.ask(0));
            sim.settle();
        }
        let well = sim.successes - before;
        assert!(well > 50 && sim.failures > 50, "{well} {}", sim.failures);
        assert_eq!(counted(&sim)[usize::from(with_job)], well, "with a job: {with_job}");
    }
    // A ring that breaks takes requests away that never ended.
    let before = counted(&sim);
    (0..8).for_each(|_| sim.ask(0));
    let Line { core, ring, .. } = &mut sim.lines[0];
    ring.is_broken = true;
    assert!(core.turn(ring, Wait::POLL).is_err());
    let well = std::iter::from_fn(|| core.pop()).filter(|done| done.result.is_ok()).count();
    assert_eq!(counted(&sim)[1], before[1] + well as u64);
}

/// What documentation says of the two ways to learn of a request: a queue's guest has to wait for the gate, and that counts; a
/// tracker hears of a request when it is let in.
#[test]
fn time_before_a_closed_gate_counts_for_queues_and_not_for_trackers() {
    const HELD_NS: u64 = 300_000_000;
    let mut sim = Sim::new(&Recipe { queues: 1, ..Recipe::default() });
    sim.drive.close_gate();
    sim.ask(0);
    let held = sim.drive.begin(ByteRange::at(0, BLOCK), IoKind::Read, || 1).unwrap();
    assert_eq!(held, Admission::Held);
    sim.turn(0);
    sim.world.advance_to(sim.world.now_ns() + HELD_NS);
    sim.drive.open_gate();
    sim.settle();
    assert_eq!(counted(&sim), [1, 0]);
    assert!(sim.drive.latencies(false).snapshot().quantile_ns(1.0) > HELD_NS / 100 * 97);
    for _ in 0..1000 {
        let range = ByteRange::at(0, BLOCK);
        let Ok(Admission::Go(token)) = sim.drive.begin(range, IoKind::Read, || 5) else { panic!("held") };
        sim.drive.end(token, Ok(()), || 1005).unwrap();
    }
    let counts = sim.drive.latencies(false).snapshot();
    assert!(counts.count() > 10 && counts.quantile_ns(0.5) < 2000, "{counts:?}");
}

/// Each lot of requests would cost two system calls, and a sleep that is asked too much of would not end.
#[test]
fn one_call_sends_what_was_accepted_and_sleeps_for_as_many_as_can_come() {
    let mut sim = Sim::new(&Recipe { queues: 1, ..Recipe::default() });
    for (asked, wanted, slept_for) in [(8, 5, 5), (8, 100, 8), (0, 3, 0), (1, 0, 0)] {
        (0..asked).for_each(|_| sim.ask(0));
        let Line { core, ring, asked, .. } = &mut sim.lines[0];
        let accepted = asked.len();
        ring.waits.clear();
        core.turn_for(ring, wanted, None).unwrap();
        let completions = ring.waits.first().map(|wait| wait.completions);
        assert_eq!(completions, Some(slept_for.min(accepted)), "{wanted} wanted of {accepted}");
        assert!(ring.waits.iter().skip(1).all(|wait| wait.completions == 0), "{:?}", ring.waits);
        sim.settle();
    }
    // What nobody has popped counts.
    (0..4).for_each(|_| sim.ask(0));
    let Line { core, ring, asked, .. } = &mut sim.lines[0];
    while core.in_flight() > 0 {
        core.turn(ring, core.sleep(1, None, ring.now_ns())).unwrap();
        ring.due_ns().into_iter().for_each(|at_ns| sim.world.advance_to(at_ns));
    }
    ring.waits.clear();
    assert_eq!((core.missing(3), core.missing(9), asked.len()), (0, 0, 4));
    core.turn_for(ring, 3, None).unwrap();
    assert_eq!(ring.waits, [Wait::POLL]);
}
