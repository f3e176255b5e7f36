//! Whole lives of a drive's queues, from seeds.
#![forbid(unsafe_code)]

use super::*;

/// Something from outside happens now and then.
fn disturb(sim: &mut Sim) {
    let mode = if sim.chance(70) { CopyMode::WriteBlocking } else { CopyMode::Background };
    match sim.world.pick(12) {
        0 => sim.drive.close_gate(),
        1..4 => sim.drive.open_gate(),
        4 if sim.job.is_none() => sim.attach(mode),
        5 if sim.chance(15) => sim.detach(),
        6 => sim.job.iter().for_each(|job| job.follower.share.choose_copy_mode(mode)),
        7 if sim.chance(10) => switch_over(sim),
        8 if sim.world.pick(40) == 0 => sim.job.iter().for_each(|job| job.follower.share.cancel()),
        _ => sim.copy(),
    }
}

/// The drive moves to the target, behind the gate.
fn switch_over(sim: &mut Sim) {
    sim.drive.close_gate();
    for _ in 0..20_000 {
        if sim.drive.is_quiet(false) {
            break;
        }
        assert!(sim.step(), "requests hang behind a closed gate");
    }
    assert!(sim.drive.is_quiet(false), "the gate does not become quiet");
    let ready = sim.job.as_ref().is_some_and(|job| !job.follower.share.is_ending());
    if ready {
        while sim
            .job
            .as_ref()
            .is_some_and(|job| job.copying.is_some() || !job.follower.share.dirty.is_clean())
        {
            sim.copy();
        }
        sim.check_target();
        if let Some(job) = sim.job.take() {
            sim.drive.detach();
            sim.target_writes += job.follower.target.writes();
            sim.moves += 1;
            sim.drive.pivot(Arc::clone(&job.follower.target), true).unwrap();
            sim.disk = Arc::clone(&job.follower.target);
        }
    }
    sim.drive.open_gate();
}

/// One life; `Err` says what was wrong.
pub(super) fn life(recipe: &Recipe, steps: u64) -> Result<Sim, String> {
    let mut sim = Sim::new(recipe);
    if sim.chance(60) {
        sim.attach(CopyMode::WriteBlocking);
    }
    for _ in 0..steps {
        match sim.world.pick(10) {
            0..3 => {
                let line = bytes_usize(sim.world.pick(sim.lines.len() as u64));
                sim.ask(line);
                if sim.chance(60) {
                    sim.turn(line);
                }
            }
            3..5 => disturb(&mut sim),
            _ => _ = sim.step(),
        }
        if sim.wrong.is_some() {
            break;
        }
    }
    sim.drive.open_gate();
    sim.settle();
    sim.check_all();
    match sim.wrong.take() {
        None => Ok(sim),
        Some(wrong) => Err(format!("seed {}: {wrong}", recipe.seed)),
    }
}

#[test]
fn requests_end_once_and_targets_are_equal_where_clean() {
    let (mut successes, mut failures, mut moves, mut target_writes) = (0, 0, 0, 0);
    for seed in seeds() {
        let sim = life(&Recipe { seed, faults: PASSING, ..Recipe::default() }, 700).unwrap();
        successes += sim.successes;
        failures += sim.failures;
        moves += sim.moves;
        target_writes += sim.target_writes;
    }
    assert!(moves > seeds().end / 2, "the drive moved {moves} times");
    assert!(target_writes > 5 * seeds().end, "{target_writes} writes went to both sides");
    assert!(successes > 50 * seeds().end, "{successes} requests went well");
    assert!(failures * 100 < successes, "{failures} requests failed on disks with passing errors only");
}

#[test]
fn requests_that_fail_are_marked_like_any_other() {
    let mut failures = 0;
    for seed in seeds() {
        let faults = Faults { read_error: 20, write_error: 60, no_space: 20, flush_error: 20, ..PASSING };
        let policy = if seed % 2 == 0 { ErrorPolicy::Ignore } else { ErrorPolicy::Report };
        let sim = life(&Recipe { seed, faults, policy, ..Recipe::default() }, 700).unwrap();
        failures += sim.failures;
    }
    assert!(failures > 5 * seeds().end, "{failures} requests failed");
}

#[test]
fn devices_that_cannot_zero_are_written_zeroes() {
    for seed in seeds() {
        let faults = Faults { no_zeroing: true, ..PASSING };
        life(&Recipe { seed, faults, ..Recipe::default() }, 500).unwrap();
    }
}

#[test]
fn stable_buffers_and_little_staging_memory_change_nothing_but_the_way() {
    for seed in seeds() {
        let mut recipe = Recipe { seed, faults: PASSING, ..Recipe::default() };
        recipe.options.stable_buffers = seed % 2 == 0;
        recipe.options.depth = if seed % 3 == 0 { 1 } else { 64 };
        recipe.queues = 1;
        life(&recipe, 500).unwrap();
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let sim = life(&Recipe { seed, faults: PASSING, ..Recipe::default() }, 500).unwrap();
        (sim.world.now_ns(), sim.successes, sim.disk.content())
    };
    assert!(run(5) == run(5) && run(5) != run(6));
}
