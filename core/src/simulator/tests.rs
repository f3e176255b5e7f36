//! Seeds.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A number from the environment.
fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs seeds from `first` on, on all cores, until one fails or `count` are done; the first that fails.
fn run_many(first: u64, count: u64, mutation: Option<Mutation>) -> (Story, Option<(u64, String)>) {
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || {
        let mut sum = Story::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (sum, None);
            }
            match run(seed, mutation) {
                Ok(story) => sum.add(&story),
                Err(wrong) => {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                    return (sum, Some((seed, wrong)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = Story::default();
        let mut failed = Vec::new();
        for (story, wrong) in threads.into_iter().map(|thread| thread.join().unwrap()) {
            sum.add(&story);
            failed.extend(wrong);
        }
        (sum, failed.into_iter().min())
    })
}

#[test]
fn every_seed_keeps_every_promise() {
    let (first, count) =
        (from_env("BLKMIRROR_FIRST_SEED").unwrap_or(0), from_env("BLKMIRROR_SIM_SEEDS").unwrap_or(2000));
    let begun = std::time::Instant::now();
    let (sum, failed) = run_many(first, count, None);
    println!("{count} seeds in {:?}: {sum:#?}", begun.elapsed());
    if let Some((_, wrong)) = failed {
        panic!("{wrong}");
    }
    if count >= ENOUGH_SEEDS {
        assert_everything_happened(&sum);
    }
}

/// Both disks of the first are so slow that what is left would take twice the pause as one request, read and then written. The
/// second failed with an older forecast.
#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    for seed in [1_883_071_599_084_494, 3800] {
        if let Err(wrong) = run(seed, None) {
            panic!("{wrong}");
        }
    }
}

/// Of so many seeds each kind of event is a part.
const ENOUGH_SEEDS: u64 = 2000;

/// A promise about something that never happens is kept by everybody: a change that makes a part of the runs disappear would
/// leave all seeds green.
fn assert_everything_happened(sum: &Story) {
    let Story {
        pivots,
        copies,
        cancelled,
        failed,
        ready,
        calm,
        missed,
        escalated,
        active_bytes,
        errors,
        crashed,
        recorded,
        resumed,
        ..
    } = *sum;
    for (what, count) in [
        ("pivots", u64::from(pivots)),
        ("copies", u64::from(copies)),
        ("cancelled jobs", u64::from(cancelled)),
        ("failed jobs", u64::from(failed)),
        ("ready jobs", u64::from(ready)),
        ("calm switch-overs", u64::from(calm)),
        ("missed switch-overs", u64::from(missed)),
        ("escalations", u64::from(escalated)),
        ("bytes written to both sides", active_bytes),
        ("errors that hosts heard of", u64::from(errors)),
        ("power failures", u64::from(crashed)),
        ("writes that were recorded", recorded),
        ("jobs that went on with what was recorded", u64::from(resumed)),
    ] {
        assert!(count > 0, "no {what} in all these seeds: {sum:#?}");
    }
}

/// Without its seed, a panic of a queue, of the model or of a debug assertion could not be had again.
#[test]
fn a_panic_is_told_with_its_seed_and_how_to_have_it_again() {
    let told = guarded(77, Some(Mutation::MarkBefore), || panic!("a pass is given back {}", "twice"));
    let told = told.unwrap_err();
    let words = [
        "seed 77: a panic: a pass is given back twice",
        "BLKMIRROR_SEED=77",
        "BLKMIRROR_MUTATION=MarkBefore",
    ];
    assert!(words.iter().all(|words| told.contains(words)), "{told}");
}

/// New seeds for as long as the environment says, a minute by default.
#[test]
#[ignore = "takes as long as it is told; see make soak"]
fn soak() {
    let begun = std::time::Instant::now();
    let seconds = from_env("BLKMIRROR_SOAK_SECONDS").unwrap_or(60);
    let since_1970 =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut next = from_env("BLKMIRROR_FIRST_SEED").unwrap_or(since_1970 << 20);
    let (first, mut sum) = (next, Story::default());
    while begun.elapsed().as_secs() < seconds {
        let (story, failed) = run_many(next, 1000, None);
        sum.add(&story);
        next += 1000;
        if let Some((_, wrong)) = failed {
            panic!("{wrong}");
        }
    }
    println!("{} seeds from {first} on in {:?}: {sum:#?}", next - first, begun.elapsed());
}

#[test]
fn replay() {
    let Some(seed) = from_env("BLKMIRROR_SEED") else { return };
    let name = std::env::var("BLKMIRROR_MUTATION").unwrap_or_default();
    let mutation = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == name);
    assert!(
        name.is_empty() || mutation.is_some(),
        "no mutation is called {name}; there are {:?}",
        Mutation::ALL
    );
    match run(seed, mutation) {
        Ok(story) => println!("seed {seed}: {story:#?}"),
        Err(wrong) => panic!("{wrong}"),
    }
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in 0..10 {
        let here = run(seed, None);
        let there = std::thread::spawn(move || run(seed, None)).join().unwrap();
        assert_eq!(here, there, "seed {seed}");
    }
}

/// Who looks for the reason of a failure runs it again and again, with more and more output.
#[test]
fn a_seed_that_fails_fails_in_the_same_way_every_time() {
    for mutation in [Mutation::NoClaim, Mutation::ClearLate, Mutation::PivotBeforeFlush] {
        let (_, failed) = run_many(0, 100, Some(mutation));
        let (seed, wrong) = failed.unwrap();
        for _ in 0..2 {
            let again = std::thread::spawn(move || run(seed, Some(mutation))).join().unwrap();
            assert_eq!(again.unwrap_err(), wrong, "{mutation:?}");
        }
    }
}

/// How many seeds a broken protocol may take until it is noticed.
const MUTATION_SEEDS: u64 = 10_000;

#[test]
fn every_broken_protocol_is_noticed() {
    let mut unnoticed = Vec::new();
    println!("{:24} | seeds | what was noticed", "mutation");
    for mutation in Mutation::ALL {
        let (_, failed) = run_many(0, MUTATION_SEEDS, Some(mutation));
        let name = format!("{mutation:?}");
        match failed {
            Some((seed, wrong)) => {
                let what: String = wrong.lines().next().unwrap_or_default().chars().take(110).collect();
                println!("{name:24} | {:5} | {what}", seed + 1);
            }
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed: {unnoticed:?}");
}
