//! The pacer with a disk and a guest, closed loop, in virtual time. Every figure is set against the same model with the
//! pace held fixed: the guest alone, the copy alone, and the best rung that a guess could have chosen.

use super::guest::spread;
use super::ladder::Rung;
use super::model::{Control, Disk, MS, Model};
use super::{Budget, GuestLatency, Pace, Pacer, Tick};
use crate::mirror::estimate::to_f64;

/// Like loop devices on tmpfs with two cores: p99 190 us alone, 1.3 x under one request of 256 KiB, more than ten times
/// that at full speed.
const LOOP: Disk = Disk {
    name: "loop",
    overhead_ns: 8_000,
    bytes_per_s: 6_000_000_000,
    jitter_ns: 38_000,
    stalls_ns: (0, 0),
    shared: true,
    load: 30_000,
};
/// Disks with a queue of their own, each with a load that keeps it a third to half busy.
const NVME: Disk = Disk {
    name: "nvme",
    overhead_ns: 20_000,
    bytes_per_s: 5_000_000_000,
    jitter_ns: 10_000,
    stalls_ns: (0, 0),
    shared: false,
    load: 20_000,
};
const SSD: Disk = Disk {
    name: "ssd",
    overhead_ns: 100_000,
    bytes_per_s: 500_000_000,
    jitter_ns: 50_000,
    load: 3_000,
    ..NVME
};
const SAN: Disk = Disk {
    name: "san",
    overhead_ns: 500_000,
    bytes_per_s: 200_000_000,
    jitter_ns: 50_000,
    load: 500,
    ..NVME
};
const HDD: Disk = Disk {
    name: "hdd",
    overhead_ns: 5_000_000,
    bytes_per_s: 100_000_000,
    jitter_ns: 50_000,
    load: 60,
    ..NVME
};

/// A run under a pacer.
fn paced(disk: Disk, budget: Budget, seed: u64) -> Model {
    Model::new(disk, Control::Paced(Box::new(Pacer::new(budget))), seed, 10)
}

/// p99 and copy rate with the pace held fixed, over so many requests.
fn fixed(disk: Disk, load: u64, rung: Option<Rung>, requests: u64) -> (f64, f64) {
    let mut model = Model::new(disk, Control::Fixed(rung), 99, 10);
    let ms = requests * 1000 / load.max(1);
    model.run(ms, load);
    (to_f64(model.p99(ms / 10, ms)), to_f64(model.rate(ms / 10, ms)))
}

/// What the guest has alone.
fn alone(disk: Disk, load: u64) -> f64 {
    fixed(disk, load, None, 60_000).0
}

/// What the copy has alone.
fn full_rate(disk: Disk) -> f64 {
    let mut model = Model::new(disk, Control::Fixed(Some(Rung::TOP)), 99, 10);
    model.run(5000, 0);
    to_f64(model.rate(1000, 5000))
}

/// The most that is copied on a fixed rung while the guest's p99 stays within `times` of what it has alone.
fn best_fixed(disk: Disk, times: f64) -> f64 {
    let base = alone(disk, disk.load);
    let rungs = (0..20).map(|n| fixed(disk, disk.load, Some(Rung::BOTTOM.up(n)), 20_000));
    rungs.filter(|&(p99, _)| p99 <= times * base).map(|(_, rate)| rate).fold(0.0, f64::max)
}

#[test]
fn a_busy_guest_keeps_its_p99_and_the_copy_a_quarter_of_its_speed() {
    let (base, full, best) = (alone(LOOP, LOOP.load), full_rate(LOOP), best_fixed(LOOP, 1.5));
    for seed in 0..20 {
        let mut model = paced(LOOP, Budget::Baseline(1.5), seed);
        model.run(8000, LOOP.load);
        let (p99, rate) = (to_f64(model.p99(1000, 8000)) / base, to_f64(model.rate(1000, 8000)));
        assert!(p99 <= 1.5, "seed {seed}: {p99:.2}");
        assert!(rate >= 0.25 * full, "seed {seed}: {:.2} of full speed", rate / full);
        // Trying faster paces, going back and probing cost less than a fifth of what the best fixed pace gets.
        assert!(rate >= 0.8 * best, "seed {seed}: {:.2} of the best fixed pace", rate / best);
        let slices = (20..80).map(|n| to_f64(model.rate(n * 100, n * 100 + 100)));
        let slow = slices.filter(|&slice| slice < 0.8 * rate).count();
        assert!(slow <= 6, "seed {seed}: {slow} of 60 slices of 100 ms are slow");
    }
}

#[test]
fn every_disk_from_slow_to_fast_keeps_the_budget_and_goes_on_copying() {
    for (disk, seconds, fraction, slack) in [
        (LOOP, 20, 0.8, 1.0),
        (NVME, 20, 0.5, 1.03),
        (SSD, 60, 0.3, 1.08),
        (SAN, 200, 0.3, 1.12),
        (HDD, 600, 0.1, 1.12),
    ] {
        // Each disk's own ladder within the budget is what it is measured by.
        let (base, best) = (alone(disk, disk.load), best_fixed(disk, 1.45));
        for seed in 0..8 {
            let mut model = paced(disk, Budget::Baseline(1.5), seed);
            model.run(seconds * 1000, disk.load);
            let from_ms = seconds * 250;
            let p99 = to_f64(model.p99(from_ms, seconds * 1000)) / base;
            let rate = to_f64(model.rate(from_ms, seconds * 1000));
            assert!(p99 <= 1.5 * slack, "{}, seed {seed}: {p99:.2}", disk.name);
            assert!(rate >= fraction * best, "{}, seed {seed}: {:.2} of the best", disk.name, rate / best);
        }
    }
}

/// The time from `from_ms` until the pace is full, in ms.
fn until_full(model: &Model, from_ms: u64) -> u64 {
    let full = model.paces.iter().find(|(at, pace)| *at >= from_ms * MS && *pace == Pace::FULL);
    full.map_or(u64::MAX, |(at, _)| at / MS - from_ms)
}

#[test]
fn the_copy_is_at_full_speed_within_50_ms_of_the_guest_going_idle() {
    for (disk, tick_ms) in [(LOOP, 10), (LOOP, 20), (NVME, 10), (NVME, 15), (SSD, 10), (SSD, 20)] {
        for seed in 0..10 {
            let pacer = Pacer::new(Budget::Baseline(1.5));
            let mut model = Model::new(disk, Control::Paced(Box::new(pacer)), seed, tick_ms);
            // In the middle of a tick, of a probe, anywhere.
            let busy_ms = 1000 + seed * 37;
            model.run(busy_ms, disk.load);
            model.run(1000, 0);
            let waited = until_full(&model, busy_ms);
            assert!(waited <= 50, "{}, ticks of {tick_ms} ms, seed {seed}: {waited} ms", disk.name);
            let rate = to_f64(model.rate(busy_ms + 100, busy_ms + 1000));
            assert!(rate >= 0.95 * full_rate(disk));
        }
    }
}

#[test]
fn a_guest_that_comes_back_is_inside_its_budget_after_250_ms() {
    let base = alone(LOOP, LOOP.load);
    let third = alone(LOOP, LOOP.load / 3);
    for seed in 0..20 {
        let mut model = paced(LOOP, Budget::Baseline(1.5), seed);
        model.run(500, 0);
        model.run(2000, LOOP.load);
        model.run(1000, 0);
        model.run(2000, LOOP.load);
        model.run(1000, 0);
        model.run(2000, LOOP.load / 3);
        for (from, base) in [(500, base), (3500, base), (6500, third)] {
            let p99 = to_f64(model.p99(from + 250, from + 2000)) / base;
            assert!(p99 <= 1.55, "seed {seed}, back at {from} ms: {p99:.2}");
        }
    }
}

#[test]
fn a_change_of_load_is_followed() {
    for (disk, slack) in [(LOOP, 1.0), (NVME, 1.2), (SSD, 1.25)] {
        let loads = [disk.load, disk.load / 3, disk.load * 5 / 4, disk.load / 2];
        let bases = loads.map(|load| alone(disk, load));
        for seed in 0..6 {
            let mut model = paced(disk, Budget::Baseline(1.5), seed);
            for (n, (load, base)) in (0..).zip(loads.into_iter().zip(bases)) {
                model.run(6000, load);
                let p99 = to_f64(model.p99(n * 6000 + 1500, n * 6000 + 6000)) / base;
                assert!(p99 <= 1.5 * slack, "{}, seed {seed}, {load}/s: {p99:.2}", disk.name);
            }
        }
    }
}

#[test]
fn a_guest_with_few_requests_is_not_taken_for_an_idle_one() {
    // Ten a second: a full queue of copies would cost each of them 2.5 ms on this disk.
    for seed in 0..10 {
        let mut model = paced(LOOP, Budget::AbsoluteNs(400_000), seed);
        model.run(60_000, 10);
        let late = model.log.iter().filter(|l| l.0 > 10_000 * MS && l.1 > 1_000_000).count();
        assert!(late <= 12, "seed {seed}: {late} of 500");
    }
}

#[test]
fn an_absolute_budget_is_kept_and_a_loose_one_costs_no_speed() {
    let (full, base) = (full_rate(LOOP), alone(LOOP, LOOP.load));
    for seed in 0..5 {
        let mut model = paced(LOOP, Budget::AbsoluteNs(600_000), seed);
        model.run(8000, LOOP.load);
        let p99 = model.p99(1000, 8000);
        assert!((300_000..=600_000).contains(&p99), "seed {seed}: {p99}");
        let mut model = paced(LOOP, Budget::AbsoluteNs(1_000_000_000), seed);
        model.run(8000, LOOP.load / 3);
        assert!(to_f64(model.rate(4000, 8000)) > 0.7 * full);
        // One that the guest misses by itself: a quarter more than it has alone.
        let mut model = paced(LOOP, Budget::AbsoluteNs(50_000), seed);
        model.run(8000, LOOP.load);
        let p99 = to_f64(model.p99(4000, 8000)) / base;
        assert!(p99 <= 1.3 && to_f64(model.rate(4000, 8000)) > 0.2 * full, "seed {seed}: {p99:.2}");
    }
}

#[test]
fn the_job_goes_on_whatever_the_guest_does() {
    for disk in [LOOP, NVME, SSD, SAN, HDD] {
        for (seed, load) in (0..4).flat_map(|seed| [(seed, disk.load), (seed, disk.load * 17 / 10)]) {
            let mut model = paced(disk, Budget::Baseline(1.0), seed);
            model.run(60_000.min(60_000_000 / load + 10_000), load);
            // One tick in eight at least, but for probes: no second without a copy.
            let seconds = model.now_ms() / 1000;
            let still = (1..seconds).filter(|s| model.rate(s * 1000, s * 1000 + 1000) == 0).count();
            assert!(
                still <= 1,
                "{}, seed {seed}, {load}/s: {still} of {seconds} seconds stood still",
                disk.name
            );
        }
    }
}

#[test]
fn without_a_budget_or_without_a_guest_it_is_full_speed() {
    let mut guest = GuestLatency::new();
    guest.record(1_000_000_000, 1000);
    let mut off = Pacer::new(Budget::Off);
    let mut quiet = Pacer::new(Budget::Baseline(2.0));
    for ms in (0..5000).step_by(10) {
        let busy = Tick { now_ns: ms * MS, guest: &guest, guest_waits: true, copying_bytes: 1 << 24 };
        assert_eq!(off.tick(&busy), Pace::FULL);
        let pace = quiet.tick(&Tick { guest: &GuestLatency::new(), guest_waits: false, ..busy });
        assert!(pace == Pace::FULL || ms < 30);
        assert!(!off.is_holding_back() && (!quiet.is_holding_back() || ms < 30));
    }
}

#[test]
fn a_guest_whose_requests_all_hang_is_not_idle() {
    let mut pacer = Pacer::new(Budget::AbsoluteNs(1_000_000));
    let (none, mut some) = (GuestLatency::new(), GuestLatency::new());
    some.record(100_000, 100);
    for ms in (0..3000).step_by(10) {
        let guest = if ms < 500 { &some } else { &none };
        let pace = pacer.tick(&Tick { now_ns: ms * MS, guest, guest_waits: true, copying_bytes: 0 });
        assert!(pace != Pace::FULL || ms < 1000, "{ms}");
        if ms == 490 {
            assert!(pacer.limit_ns().is_some());
        }
    }
}

#[test]
fn a_machine_that_stalls_now_and_then_neither_stops_the_copy_nor_lets_it_loose() {
    // A millisecond every 200: half a percent of the requests meet one, so a probe's p99 may be theirs.
    let disk = Disk { stalls_ns: (200 * MS, MS), ..LOOP };
    let (base, full) = (alone(disk, disk.load), full_rate(disk));
    for seed in 0..10 {
        let mut model = paced(disk, Budget::Baseline(1.5), seed);
        model.run(20_000, disk.load);
        let (p99, rate) = (to_f64(model.p99(8000, 20_000)) / base, to_f64(model.rate(1000, 20_000)) / full);
        assert!(p99 <= 2.0 && rate >= 0.25, "seed {seed}: {p99:.2}, {rate:.2}");
    }
}

/// A host with other work stalls its guests all the time. Held against the copiers, that would take them to the slowest pace,
/// where the guest gains nothing and the job does not end.
#[test]
fn a_machine_that_stalls_all_the_time_has_its_stalls_told_from_the_copiers() {
    for stalls_ms in [(60, 3), (30, 1), (25, 2)] {
        let disk = Disk { stalls_ns: (stalls_ms.0 * MS, stalls_ms.1 * MS), ..LOOP };
        let (base, full) = (fixed(disk, disk.load, None, 600_000).0, full_rate(LOOP));
        let mut p99s = Vec::new();
        for seed in 0..10 {
            let mut model = paced(disk, Budget::Baseline(1.5), seed);
            model.run(20_000, disk.load);
            let p99 = to_f64(model.p99(5000, 20_000)) / base;
            let rate = to_f64(model.rate(5000, 20_000)) / full;
            assert!(p99 <= 1.5 && rate >= 0.25, "{stalls_ms:?}, seed {seed}: {p99:.2}, {rate:.2}");
            p99s.push(p99);
            // A look that took the load for another, or came too often, would hold the copiers for much of the time.
            let held = model.paces.iter().filter(|(_, pace)| *pace == Pace::HOLD).count();
            assert!(
                held * 5 <= model.paces.len(),
                "{stalls_ms:?}, seed {seed}: {held} of {}",
                model.paces.len()
            );
        }
        // How many stalls a run of some seconds meets is chance, with copies or without.
        p99s.sort_by(f64::total_cmp);
        assert!(p99s[7] <= 1.3, "{stalls_ms:?}: {p99s:.2?}");
    }
}

/// Ticks of 10 ms in which such a guest's requests end, until `n` are over; the paces.
fn ticks(pacer: &mut Pacer, from: u64, n: u64, guest: &GuestLatency) -> Vec<Pace> {
    let tick = |n| Tick { now_ns: n * 10 * MS, guest, guest_waits: true, copying_bytes: 0 };
    (from..from + n).map(|n| pacer.tick(&tick(n))).collect()
}

/// The job would stand still for as long as the guest's disk does, and with it forget what it knows.
#[test]
fn a_guest_whose_requests_all_hang_does_not_hold_a_relative_budget_for_ever() {
    for known in [0, 300] {
        let mut pacer = Pacer::new(Budget::Baseline(2.0));
        ticks(&mut pacer, 0, known, &spread(100, 300));
        let limit_ns = pacer.limit_ns();
        let paces = ticks(&mut pacer, known, 3000, &GuestLatency::new());
        let held = paces.iter().filter(|&&pace| pace == Pace::HOLD).count();
        assert!(held < 900, "{held} of 3000");
        assert_eq!(pacer.limit_ns(), limit_ns);
    }
}

/// What one pace did, counted under the next, would take the copiers down twice.
#[test]
fn a_look_after_a_pace_that_failed_does_not_fail_the_next_one() {
    let mut pacer = Pacer::new(Budget::Baseline(2.0));
    ticks(&mut pacer, 0, 60, &spread(100, 300));
    let mut slow = spread(100, 260);
    slow.add(&spread(5000, 40));
    let mut pace = Pace::FULL;
    let fell = (60..200).find(|&n| {
        let guest = if pace == Pace::HOLD { spread(100, 300) } else { slow };
        pace = ticks(&mut pacer, n, 1, &guest)[0];
        pacer.doubted.is_some()
    });
    let (rung, fell) = (pacer.rung, fell.unwrap());
    // A look is due, while it has not shown yet what the new pace does.
    (pacer.looked_ns, pacer.glance_soon_ns) = (0, 0);
    ticks(&mut pacer, fell + 1, 15, &spread(100, 300));
    assert!(pacer.rung >= rung && pacer.doubted.is_none(), "{:?} after {rung:?}", pacer.rung);
}

/// A guest that missed an absolute budget by itself for a while would have none from then on.
#[test]
fn an_absolute_budget_that_was_lifted_comes_back() {
    let mut pacer = Pacer::new(Budget::AbsoluteNs(300_000));
    ticks(&mut pacer, 0, 3000, &spread(5000, 300));
    assert!(pacer.limit_ns() > Some(5_000_000));
    ticks(&mut pacer, 3000, 3000, &spread(100, 300));
    assert_eq!(pacer.limit_ns(), Some(300_000));
}

/// A guest's p99 is over seconds: a pace that was too fast uses up what is allowed for more than a moment.
#[test]
fn after_a_pace_that_was_too_fast_the_next_try_waits_until_the_guests_p99_has_recovered() {
    let mut pacer = Pacer::new(Budget::Baseline(1.5));
    let fine = spread(100, 300);
    let mut late = spread(100, 270);
    late.add(&spread(1000, 30));
    let is_fast = |pace: Pace| pace.in_flight_bytes > Rung::FIRST.pace().in_flight_bytes;
    let (mut pace, mut fell_ms, mut waits_ms) = (Pace::HOLD, None, Vec::new());
    for ms in (0..20_000).step_by(10) {
        let guest = if is_fast(pace) { &late } else { &fine };
        let copying_bytes = pace.in_flight_bytes.min(16 << 20);
        let next = pacer.tick(&Tick { now_ns: ms * MS, guest, guest_waits: true, copying_bytes });
        match (is_fast(pace), is_fast(next)) {
            (true, false) => fell_ms = Some(ms),
            (false, true) => waits_ms.extend(fell_ms.map(|fell_ms| ms - fell_ms)),
            _ => {}
        }
        pace = next;
    }
    assert!(waits_ms.len() >= 2, "it tries again: {waits_ms:?}");
    assert!(waits_ms.iter().all(|&ms| ms >= 300), "{waits_ms:?}");
}

/// Below it a guest gains little and a job loses most: what a burst of the guest's own does must not take a job there.
#[test]
fn one_burst_does_not_take_the_copiers_below_a_pace_that_hardly_any_guest_feels() {
    let (fine, stalled) = (spread(100, 300), spread(5000, 300));
    let mut late = spread(100, 270);
    late.add(&spread(1000, 30));
    for burst_ticks in 2..8 {
        // A job that is at its first pace, as the guest feels every faster one.
        let mut pacer = Pacer::new(Budget::Baseline(1.5));
        let mut n = 0;
        let mut go_on = |burst: u64, too_fast: Rung| {
            let end = n + 100;
            let mut lowest = Rung::TOP;
            while n < end {
                let guest = match pacer.rung >= too_fast && pacer.probe.is_none() {
                    _ if n + burst >= end => &stalled,
                    true => &late,
                    false => &fine,
                };
                ticks(&mut pacer, n, 1, guest);
                (n, lowest) = (n + 1, lowest.min(pacer.rung));
            }
            lowest
        };
        go_on(0, Rung::FIRST.up(1));
        let lowest = go_on(burst_ticks, Rung::FIRST.up(1));
        assert!(lowest >= Rung::HARMLESS, "{burst_ticks} ticks: {lowest:?}");
        let lowest = go_on(0, Rung::BOTTOM);
        assert!(lowest < Rung::HARMLESS, "what goes on does: {lowest:?}");
    }
}

/// With an absolute budget nothing else calls for a look; noise that is never looked at again would slow a job down for ever.
#[test]
fn noise_that_has_ended_is_forgotten_under_an_absolute_budget_too() {
    let mut pacer = Pacer::new(Budget::AbsoluteNs(1_000_000));
    let mut stalled = spread(100, 294);
    stalled.add(&spread(5000, 6));
    ticks(&mut pacer, 0, 6000, &stalled);
    assert!(pacer.noise.is_loud() && pacer.rung <= Rung::IN_NOISE, "{:?}", pacer.rung);
    ticks(&mut pacer, 6000, 6000, &spread(100, 300));
    assert!(!pacer.noise.is_loud() && pacer.rung == Rung::TOP, "{:?}", pacer.rung);
}
