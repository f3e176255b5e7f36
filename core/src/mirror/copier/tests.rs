//! Several workers' copiers of one job in virtual time.

use std::sync::Arc;

use super::*;
use crate::mirror::{Bitmaps, DeviceShape, Geometry, LatencyBudget, MirrorOptions, Pace};
use crate::units::{Granularity, KIB, MIB, bytes_u64};

/// A millisecond.
const MS: u64 = 1_000_000;
/// How often the home takes stock, and gives the turn to the next worker.
const TICK_MS: u64 = 10;

/// One worker of the scene.
struct Worker {
    copier: Copier,
    window: Window,
    /// When to look at it again; `None` = when it is woken.
    due_ns: Option<u64>,
    /// Its requests: when they end, which they are, and their bytes.
    sent: Vec<(u64, u32, u64)>,
    /// Bytes of all of them.
    copied_bytes: u64,
    /// The largest.
    largest_bytes: u64,
    /// The reads among them: when they began, and their bytes.
    reads: Vec<(u64, u64)>,
}

impl Worker {
    /// Does what there is to do at this time, on disks whose requests take so long.
    fn turn(&mut self, now_ns: u64, takes_ns: u64) {
        let ended: Vec<_> = self.sent.extract_if(.., |sent| sent.0 <= now_ns).collect();
        for &(_, key, bytes) in &ended {
            self.copier.complete(key, Ok(bytes), now_ns, &mut self.window, &|_| false);
        }
        if ended.is_empty() && self.due_ns.is_none_or(|due| due > now_ns) {
            return;
        }
        self.due_ns = loop {
            match self.copier.next(now_ns, &mut self.window) {
                Step::Request(request, key) => {
                    self.copied_bytes += request.range.len();
                    self.largest_bytes = self.largest_bytes.max(request.range.len());
                    if matches!(request.op, Op::Read(_)) {
                        self.reads.push((now_ns, request.range.len()));
                    }
                    // Those that are on their way together do not end together.
                    let ends_ns = now_ns + takes_ns * (1 + u64::from(key) % 3);
                    self.sent.push((ends_ns, key, request.range.len()));
                }
                Step::Status { .. } => unreachable!("the source has no holes"),
                Step::Wait(at) => break at,
            }
        };
    }
}

/// A job's state and its workers, with so many bytes of window each; the first pass, or every other block when that is over.
fn crew(workers: usize, window_bytes: usize, scattered: bool) -> (Arc<Share>, Vec<Worker>) {
    let shape = || DeviceShape {
        size_bytes: 256 * MIB,
        align_bytes: 512,
        max_request_bytes: MIB,
        ..DeviceShape::default()
    };
    let options = MirrorOptions {
        latency_budget: LatencyBudget::Off,
        granularity: Granularity::new(if scattered { 4 * KIB } else { 64 * KIB }).ok(),
        ..MirrorOptions::default()
    };
    let geometry = Geometry::new(&options, &shape(), &shape(), workers).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let share = Arc::new(Share::new(geometry, &options, bitmaps, false, workers));
    if scattered {
        let _ = share.sweep.take(256 * MIB);
        for at in (0..256 * MIB).step_by(8192) {
            share.dirty.mark(ByteRange::at(at, 4096));
        }
    }
    let worker = |number| Worker {
        copier: Copier::new(Arc::clone(&share), number, 0, [DeviceSlot(0), DeviceSlot(1)]),
        window: Window::new(window_bytes),
        due_ns: Some(0),
        sent: Vec::new(),
        copied_bytes: 0,
        largest_bytes: 0,
        reads: Vec::new(),
    };
    let all = (0..workers).map(worker).collect();
    (share, all)
}

/// A millisecond of theirs: the turn passes on when it is time for that, and each does what there is to do.
fn pass_ms(share: &Share, all: &mut [Worker], now_ms: u64, takes_ns: u64) {
    let now_ns = now_ms * MS;
    if now_ms.is_multiple_of(TICK_MS) && share.pass_turn(now_ns) {
        all.iter_mut().for_each(|worker| worker.due_ns = Some(now_ns));
    }
    all.iter_mut().for_each(|worker| worker.turn(now_ns, takes_ns));
}

/// How long some worker, and how long more than one, had something on its way in `ms` at a pace, in ms; and the
/// bytes of the one that copied least. The first pass, or every other block when that is over.
fn work(workers: usize, pace: Pace, takes_ms: u64, ms: u64, scattered: bool) -> (u64, u64, u64) {
    let (share, mut all) = crew(workers, 4 << 20, scattered);
    share.set_pace(pace);
    let (mut busy, mut crowded) = (0, 0);
    for now_ms in 0..ms {
        pass_ms(&share, &mut all, now_ms, takes_ms * MS);
        let at_work = all.iter().filter(|worker| !worker.sent.is_empty()).count();
        busy += u64::from(at_work > 0);
        crowded += u64::from(at_work > 1);
    }
    (busy, crowded, all.iter().map(|worker| worker.copied_bytes).min().unwrap())
}

/// A guest does not care which worker copies. If each rested by itself, four workers on a slow disk would be at work half of
/// the time where the pacer asked for an eighth, and a guest that misses its budget there would go on missing it.
#[test]
fn a_rest_is_the_jobs_however_many_workers_it_has() {
    let pace = |rest_quarters| Pace { rest_quarters, ..Pace::SLOWEST };
    for workers in [1, 2, 4, 8] {
        for takes_ms in [1, 3, 7, 12] {
            let (busy, crowded, least) = work(workers, pace(28), takes_ms, 40_000, false);
            assert_eq!(crowded, 0, "{workers} workers, {takes_ms} ms: one piece at a time");
            assert!(busy <= 5050, "{workers} workers, {takes_ms} ms: at work {busy} of 40000 ms");
            assert!(busy >= 3500, "{workers} workers, {takes_ms} ms: only {busy} of 40000 ms");
            // Each has a part of the disk in hand.
            assert!(least >= 4 * 64 * KIB, "{workers} workers, {takes_ms} ms: one copied {least} bytes");
        }
        let (busy, _, _) = work(workers, pace(4), 3, 10_000, false);
        assert!((4000..=5050).contains(&busy), "half of the time: {busy} of 10000 ms");
    }
}

/// Small pieces are several at a time. If a new one could take the place of each that is done, the copiers would come to rest
/// late or not at all among scattered chunks.
#[test]
fn there_is_a_rest_between_small_pieces_too() {
    for workers in [1, 4] {
        let pace = Pace { rest_quarters: 28, ..Pace::SLOWEST };
        let (busy, crowded, least) = work(workers, pace, 3, 40_000, true);
        assert!(crowded == 0 && busy <= 5050, "{workers} workers: at work {busy} of 40000 ms");
        assert!(least >= 16 * 4096, "{workers} workers: one copied {least} bytes");
    }
}

/// A gate that is closed every few milliseconds, as braking does, would otherwise cost each worker its place under the limit each
/// time, and nothing would be copied under it until the time of all those places has passed.
#[test]
fn a_job_keeps_its_speed_limit_after_any_number_of_gate_closings() {
    for workers in [1, 3] {
        for (closings, open_ms, speed) in
            [(1, 5, 400_000), (60, 5, 400_000), (60, 17, 2_000_000), (60, 1, 100_000)]
        {
            let (share, mut all) = crew(workers, 1 << 20, false);
            share.limiter.set_speed(speed, 0);
            let mut copied = [0; 2];
            let closed_ms = closings * (open_ms + 1);
            for now_ms in 1..closed_ms + 1000 {
                let now_ns = now_ms * MS;
                let urgent = now_ms < closed_ms && now_ms % (open_ms + 1) == 0;
                if urgent != share.is_urgent() {
                    share.set_urgent(urgent);
                    all.iter_mut().for_each(|worker| worker.due_ns = Some(now_ns));
                }
                let before: u64 = all.iter().map(|worker| worker.copied_bytes).sum();
                all.iter_mut().for_each(|worker| worker.turn(now_ns, MS / 4));
                let after: u64 = all.iter().map(|worker| worker.copied_bytes).sum();
                copied[usize::from(now_ms >= closed_ms)] += after - before;
            }
            // Each byte is read and written.
            let in_a_second = copied[1] / 2;
            let what =
                format!("{workers} workers, {closings} closings: {in_a_second} of {speed} bytes in a second");
            assert!(in_a_second >= speed / 10 * 8, "{what}");
            assert!(in_a_second <= speed / 10 * 11 + (1 << 20), "{what}");
            assert!(copied[0] > 0);
        }
    }
}

/// The pacer only says how much may be on its way; who copies more than that makes the guest wait, whatever was worked out.
#[test]
fn no_more_is_on_its_way_than_the_pace_allows_and_no_request_is_larger() {
    for workers in [1, 2, 4] {
        for (in_flight_kib, request_kib) in [(64, 64), (128, 128), (256, 64), (1024, 256), (8192, 1024)] {
            let pace = Pace {
                in_flight_bytes: in_flight_kib * KIB,
                request_bytes: request_kib * KIB,
                rest_quarters: 0,
            };
            let (share, mut all) = crew(workers, 16 << 20, false);
            share.set_pace(pace);
            // Where they take turns, the one before still has its last pieces on their way when the next one begins.
            let in_turns = u64::from(pace.of_each(bytes_u64(workers), share.geometry.run_bytes).is_none());
            let (mut most, mut over_ms) = (0, 0);
            for now_ms in 0..300 {
                pass_ms(&share, &mut all, now_ms, MS);
                let now: u64 = all.iter().flat_map(|worker| &worker.sent).map(|sent| sent.2).sum();
                (most, over_ms) = (most.max(now), over_ms + u64::from(now > pace.in_flight_bytes));
            }
            let largest = all.iter().map(|worker| worker.largest_bytes).max().unwrap();
            let what = format!("{workers} workers, {pace:?}: {most} bytes at once, {largest} in a request");
            let allowed = pace.in_flight_bytes * (1 + in_turns);
            assert!(most <= allowed && most >= pace.in_flight_bytes / 4 * 3, "{what}");
            assert!(over_ms <= 300 / TICK_MS * 3, "{what}: for {over_ms} ms");
            assert_eq!(largest, pace.request_bytes, "{what}");
        }
    }
}

/// QEMU's limit lets a tenth of a second's bytes go at once, which is what a guest waits for; the limiter's word is worth nothing
/// if copiers ask it for more than they were told to.
#[test]
fn what_a_job_begins_under_a_speed_limit_is_no_burst_longer_than_two_milliseconds() {
    for workers in [1, 3] {
        for speed in [1_000_000, 20_000_000, 400_000_000] {
            let (share, mut all) = crew(workers, 4 << 20, false);
            share.limiter.set_speed(speed, 0);
            for step in 0..5_000 {
                let now_ns = step * MS / 10;
                all.iter_mut().for_each(|worker| worker.turn(now_ns, MS / 4));
            }
            let reads: Vec<_> = all.iter().flat_map(|worker| &worker.reads).copied().collect();
            for window_ms in [1, 2, 10, 100] {
                let most = |from: u64| {
                    let inside = from..from + window_ms * MS;
                    reads.iter().filter(|(at, _)| inside.contains(at)).map(|(_, bytes)| bytes).sum::<u64>()
                };
                let most = reads.iter().map(|&(at, _)| most(at)).max().unwrap();
                let bound = speed / 1000 * (window_ms + 2) + 4096;
                assert!(
                    most <= bound,
                    "{workers} workers, {speed}: {most} in {window_ms} ms, {bound} allowed"
                );
            }
            let total: u64 = reads.iter().map(|(_, bytes)| bytes).sum();
            assert!(total >= speed / 10 * 4, "{workers} workers, {speed}: {total} bytes in half a second");
        }
    }
}

/// What a worker waits for may come about without anybody telling it: a probe ends, the turn is its own again, little is left. One
/// that has claimed chunks, has nothing on its way and sleeps until it is woken could keep them for ever.
#[test]
fn a_worker_that_has_something_in_hand_and_nothing_on_its_way_looks_again_by_itself() {
    for pace in [Pace::HOLD, Pace::SLOWEST] {
        let (share, mut all) = crew(2, 4 << 20, false);
        share.set_pace(pace);
        // It is the other one's turn.
        let second = &mut all[1];
        second.turn(0, MS);
        assert!(second.sent.is_empty(), "{pace:?}");
        assert!(second.due_ns.is_some_and(|due| due <= 20 * MS), "{pace:?}: {:?}", second.due_ns);
    }
}
