//! Copies with everything going wrong on the way: the result is right, or the job says that it is not.

use super::*;

#[test]
fn short_transfers_and_passing_errors_never_reach_the_result() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.zero_detect = seed % 2 == 0;
        options.granularity = Granularity::new(4096 << (seed % 5)).ok();
        let faults = Faults { no_zeroing: seed % 3 == 0, ..PASSING };
        let bytes = (3 << 20) + (seed % 7) * 512;
        let mut sim = Sim::new(&Recipe {
            seed,
            faults,
            options,
            bytes,
            workers: 1 + usize::try_from(seed % 3).unwrap(),
            ..Recipe::default()
        });
        let before = sim.source.content();
        let outcome = sim.run(|_, _| ());
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
        sim.check(&outcome);
        assert!(sim.source.content() == before && sim.source.writes() == 0, "our hands off the source");
    }
}

#[test]
fn reported_errors_fail_the_job_and_what_is_clean_is_equal() {
    let mut failed = 0;
    for seed in seeds() {
        let faults = Faults { read_error: 10, write_error: 10, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, ..Recipe::default() });
        let outcome = sim.run(|_, _| ());
        sim.check(&outcome);
        assert_eq!(outcome.error.is_some(), outcome.target == TargetState::Incomplete);
        failed += u64::from(outcome.error.is_some());
    }
    assert!(failed > seeds().end / 4, "the errors did not happen");
}

#[test]
fn ignored_errors_are_tried_again_until_the_target_is_equal() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        (options.on_source_error, options.on_target_error) = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
        let faults = Faults { read_error: 30, write_error: 30, no_space: 10, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, options, ..Recipe::default() });
        let outcome = sim.run(|_, _| ());
        sim.check(&outcome);
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
    }
}

#[test]
fn an_ignored_error_that_stays_ends_the_job_after_a_bounded_number_of_rounds() {
    let mut options = Recipe::default().options;
    options.on_target_error = ErrorPolicy::Ignore;
    let faults = Faults { write_error: 1000, ..Faults::default() };
    let mut sim = Sim::new(&Recipe { faults, options, bytes: 1 << 20, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert!(outcome.error.unwrap().to_string().contains("given up"));
    assert!(sim.world.now_ns() < 20_000_000_000, "it took {} ns", sim.world.now_ns());
}

#[test]
fn a_job_stopped_for_lack_of_space_goes_on_when_it_is_resumed() {
    let mut stops = 0;
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.on_target_error = ErrorPolicy::Enospc;
        let faults = Faults { no_space: 20, ..PASSING };
        let mut sim = Sim::new(&Recipe { seed, faults, options, ..Recipe::default() });
        let mut held_since = None;
        let outcome = sim.run(|sim, n| {
            while let Some(event) = sim.job.next_event() {
                let stopped = EventKind::Status { from: JobStatus::Running, to: JobStatus::Paused };
                stops += u32::from(event.what == stopped);
            }
            if sim.job.core().share.is_held() {
                if *held_since.get_or_insert(n) + 50 < n {
                    let _ = sim.job.resume();
                    held_since = None;
                }
                sim.world.advance_to(sim.world.now_ns() + 1000);
                sim.workers.iter().for_each(|w| w.1.waker().wake());
            }
        });
        sim.check(&outcome);
        assert_eq!(outcome.target, TargetState::Complete, "seed {seed}: {:?}", outcome.error);
    }
    assert!(stops > 0, "the target was never full");
}

#[test]
fn a_source_that_shrinks_fails_the_job_whatever_the_policy() {
    for policy in [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Stop] {
        let mut options = Recipe::default().options;
        options.on_source_error = policy;
        let mut sim = Sim::new(&Recipe { options, workers: 1, ..Recipe::default() });
        fill(&sim.world, &sim.source, 3 << 20, 100);
        let outcome = sim.run(|sim, n| {
            if n == 2 {
                sim.source.shrink_to(1 << 20);
            }
        });
        assert_eq!(outcome.error.unwrap().kind(), crate::ErrorKind::SourceShrank);
    }
}

#[test]
fn a_failed_flush_is_never_a_success() {
    let faults = Faults { flush_error: 1000, ..Faults::default() };
    let outcome = Sim::new(&Recipe { faults, ..Recipe::default() }).run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Incomplete);
    assert!(outcome.error.unwrap().to_string().contains("flush"));
    let mut options = Recipe::default().options;
    options.on_target_error = ErrorPolicy::Ignore;
    let faults = Faults { flush_error: 500, ..Faults::default() };
    let mut complete = 0;
    for seed in seeds() {
        let outcome =
            Sim::new(&Recipe { seed, faults, options: options.clone(), ..Recipe::default() }).run(|_, _| ());
        // A flush that failed once is not made good by one that succeeds: the kernel has forgotten what it lost.
        assert_eq!(outcome.error.is_some(), outcome.target == TargetState::Incomplete);
        complete += u64::from(outcome.target == TargetState::Complete);
    }
    assert!(complete > 0 && complete < seeds().end);
}

#[test]
fn a_cluster_that_is_touched_is_copied_whole() {
    for seed in seeds() {
        let mut options = Recipe::default().options;
        options.sync = SyncMode::Top;
        options.target_cluster_bytes = Some(64 * KIB);
        let mut sim = Sim::new(&Recipe {
            seed,
            faults: PASSING,
            options,
            bytes: (3 << 20) + 1024,
            ..Recipe::default()
        });
        let before = sim.target.content();
        let outcome = sim.run(|_, _| ());
        assert_eq!(outcome.target, TargetState::Complete, "{:?}", outcome.error);
        let (source, target) = (sim.source.content(), sim.target.content());
        for cluster in (0..source.len()).step_by(64 << 10) {
            let part = cluster..(cluster + (64 << 10)).min(source.len());
            let has_data = source[part.clone()].iter().any(|&b| b != 0);
            let expected = if has_data { &source } else { &before };
            assert!(
                target[part.clone()] == expected[part],
                "seed {seed}: cluster at {cluster}, data {has_data}"
            );
        }
    }
}

#[test]
fn sync_none_copies_nothing_and_succeeds() {
    let mut options = Recipe::default().options;
    options.sync = SyncMode::None;
    let mut sim = Sim::new(&Recipe { options, ..Recipe::default() });
    let outcome = sim.run(|_, _| ());
    assert_eq!((outcome.target, sim.target.writes()), (TargetState::Complete, 0));
}

#[test]
fn the_speed_limit_is_kept_by_all_workers_together() {
    let mut options = Recipe::default().options;
    options.speed_bytes_per_s = 10 << 20;
    let mut sim = Sim::new(&Recipe { options, workers: 3, ..Recipe::default() });
    fill(&sim.world, &sim.source, 3 << 20, 100);
    let outcome = sim.run(|_, _| ());
    assert_eq!(outcome.target, TargetState::Complete);
    let took = sim.world.now_ns();
    assert!((280_000_000..400_000_000).contains(&took), "3 MiB at 10 MiB/s took {took} ns");
}

/// A host plans by these figures; and a hole that is zeroed where nothing need be done costs a target its space.
#[test]
fn what_needs_no_request_is_counted_as_skipped_and_what_is_zeroed_as_zeroed() {
    for target_is_zero in [true, false] {
        let mut options = Recipe::default().options;
        options.target_is_zero = target_is_zero;
        let mut sim = Sim::new(&Recipe { options, ..Recipe::default() });
        let hole_bytes =
            (0..3 << 20).step_by(4096).filter(|&at| sim.source.is_hole(at)).count() as u64 * 4096;
        let progress = sim.run(|_, _| ()).progress;
        assert!(hole_bytes > 0 && progress.copied_bytes == (3 << 20) - hole_bytes, "{progress:?}");
        let expected = if target_is_zero { (hole_bytes, 0) } else { (0, hole_bytes) };
        assert_eq!((progress.skipped_bytes, progress.zeroed_bytes), expected);
    }
}
