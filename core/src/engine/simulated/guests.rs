//! A guest that writes while its disk is copied: nothing that it wrote is lost, whatever else goes wrong.

use super::*;

/// A job under a guest that writes all the time: small ranges, often to the same places, often zeroes.
fn under_guest_writes(seed: u64, faults: Faults, mutation: Option<Mutation>) -> Result<(), String> {
    let mut options = Recipe::default().options;
    options.zero_detect = seed % 2 == 1;
    options.target_is_zero = seed.is_multiple_of(3);
    (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
    let mut sim = Sim::new(&Recipe { seed, faults, options, mutation, ..Recipe::default() });
    let mut unmarked: Option<ByteRange> = None;
    let mut writes = 0;
    let outcome = sim.run(|sim, _| {
        // Mark after, before the ack: the data is there first, its bits are set some steps later.
        if let Some(range) = unmarked {
            if sim.world.pick(4) == 0 {
                sim.job.core().share.dirty.mark(range);
                sim.workers.iter().for_each(|w| w.1.waker().wake());
                unmarked = None;
            }
        } else if writes < 200 && sim.world.pick(2) == 0 {
            let reach = if sim.world.pick(2) == 0 { 64 } else { (3 << 20) / 512 - 8 };
            let at = sim.world.pick(reach) * 512;
            let data = vec![u8::try_from(sim.world.pick(3)).unwrap(); 512 * 8];
            sim.source.poke(at, &data);
            unmarked = Some(ByteRange::at(at, 4096));
            writes += 1;
        }
    });
    if let Some(range) = unmarked {
        sim.job.core().share.dirty.mark(range);
    }
    assert!(writes > 20, "seed {seed}: the guest wrote {writes} times only");
    // A guest that is not stopped may write after the verdict's last look; such a chunk must be dirty.
    let clean = sim.job.core().share.dirty.is_clean();
    let target = if clean { outcome.target } else { TargetState::Incomplete };
    sim.verdict(&Outcome { target, ..outcome })
}

#[test]
fn guest_writes_during_the_copy_are_never_lost() {
    for seed in seeds() {
        let faults = Faults { read_error: 5, write_error: 5, ..PASSING };
        under_guest_writes(seed, faults, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A guest that writes data far ahead of the sweep and zeroes it again, on a target that is known to be zero.
fn under_a_guest_ahead_of_the_sweep(seed: u64, mutation: Option<Mutation>) -> Result<(), String> {
    let mut options = Recipe::default().options;
    (options.zero_detect, options.target_is_zero) = (true, true);
    // Little memory makes the sweep slow, so that the guest can stay ahead of it.
    options.buf_size_bytes = 128 * KIB;
    let bytes = 12 << 20;
    let mut sim = Sim::new(&Recipe { seed, options, mutation, bytes, ..Recipe::default() });
    let mut values = [0u8; 24];
    let outcome = sim.run(|sim, _| {
        if !sim.job.core().share.sweep_is_claimed() && sim.world.pick(2) == 0 {
            let place = 12 + sim.world.pick(12);
            let value = &mut values[usize::try_from(place).unwrap()];
            *value = 7 - *value;
            sim.source.poke(place * (512 << 10), &[*value; 65536]);
            sim.job.core().share.dirty.mark(ByteRange::at(place * (512 << 10), 65536));
            sim.workers.iter().for_each(|w| w.1.waker().wake());
        }
    });
    sim.verdict(&outcome)
}

#[test]
fn what_was_written_ahead_of_the_sweep_is_not_taken_for_zero() {
    for seed in 0..seeds().end / 3 {
        under_a_guest_ahead_of_the_sweep(seed, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let noticed = seeds()
        .find(|&seed| under_a_guest_ahead_of_the_sweep(seed, Some(Mutation::DirtyBeforeSweep)).is_err());
    assert!(noticed.is_some(), "taking dirty chunks before the sweep goes unnoticed");
}

#[test]
fn every_broken_protocol_is_noticed() {
    let faults = Faults { read_error: 5, write_error: 5, ..PASSING };
    for mutation in
        [Mutation::ClearLate, Mutation::ForgetFailure, Mutation::NoClaim, Mutation::TrustZeroTarget]
    {
        let noticed = (0..300).find(|&seed| under_guest_writes(seed, faults, Some(mutation)).is_err());
        assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    }
}

#[test]
fn a_complete_target_was_flushed_after_its_last_write() {
    let mut bad = Vec::new();
    for seed in 0..60 {
        let mut sim = Sim::new(&Recipe { seed, bytes: 1 << 20, ..Recipe::default() });
        let mut poked = false;
        let outcome = sim.run(|sim, _| {
            if !poked && sim.job.core().share.is_finished() {
                poked = true;
                sim.source.poke(8192, &[7; 4096]);
                sim.job.core().share.dirty.mark(ByteRange::at(8192, 4096));
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        sim.check(&outcome);
        if outcome.target == TargetState::Complete && sim.target.flushed() != sim.target.writes() {
            bad.push((seed, sim.target.flushed(), sim.target.writes()));
        }
    }
    assert!(bad.is_empty(), "complete, and not flushed (seed, flushed, writes): {bad:?}");
}

#[test]
fn clusters_stay_whole_when_dirty_runs_begin_and_end_inside_them() {
    let mut bad = Vec::new();
    for seed in 0..40 {
        let mut options = Recipe::default().options;
        options.sync = SyncMode::Top;
        options.target_cluster_bytes = Some(64 * KIB);
        (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
        let mut sim = Sim::new(&Recipe { seed, options, bytes: 3 << 20, ..Recipe::default() });
        // A hole over the end of one cluster and the start of the next, data behind it, written by the guest later.
        let before = sim.target.content();
        let mut poked = false;
        let outcome = sim.run(|sim, _| {
            if !poked && sim.job.core().share.sweep_is_claimed() {
                poked = true;
                for cluster in (0..47u64).step_by(2) {
                    // The guest dirties the last chunk of a cluster and the first of the next without changing them
                    // (a write of the same data), and writes the last block of the next cluster.
                    let edge = (cluster + 1) * 65536;
                    sim.source.poke(edge + 65536 - 4096, &[5; 4096]);
                    sim.job.core().share.dirty.mark(ByteRange::at(edge - 4096, 65536 + 4096));
                }
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        if outcome.target != TargetState::Complete {
            continue;
        }
        let (source, target) = (sim.source.content(), sim.target.content());
        for cluster in (0..source.len()).step_by(64 << 10) {
            let part = cluster..(cluster + (64 << 10)).min(source.len());
            let has_data = source[part.clone()].iter().any(|&b| b != 0);
            let expected = if has_data { &source } else { &before };
            if target[part.clone()] != expected[part] {
                bad.push((seed, cluster >> 16, has_data));
            }
        }
    }
    assert!(bad.is_empty(), "(seed, cluster, has data): {} {:?}", bad.len(), &bad[..bad.len().min(5)]);
}
