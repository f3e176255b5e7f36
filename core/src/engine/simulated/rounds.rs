//! Policy `ignore` in virtual time: what failed is left alone for a while, and nothing else waits longer than that.

use super::*;
use crate::engine::crew::Crew;

/// The disks.
const BYTES: u64 = 2 << 20;
/// One millisecond.
const MS: u64 = 1_000_000;
/// Between two guest writes to the bad place: less than the shortest time between rounds.
const EVERY_NS: u64 = MS;

/// Turns whoever is due until the time has come.
pub(super) fn turn_until(crew: &mut Crew, world: &Arc<World>, until_ns: u64) {
    loop {
        let now = world.now_ns();
        let due = |crew: &Crew, n| crew.due_ns(n).filter(|&at| at <= now.max(1));
        let turned = (0..crew.len()).filter(|&n| due(crew, n).is_some()).collect::<Vec<_>>();
        turned.iter().for_each(|&n| crew.turn(n));
        if !turned.is_empty() {
            continue;
        }
        if now >= until_ns {
            return;
        }
        let next = (0..crew.len()).filter_map(|n| crew.due_ns(n)).min().unwrap_or(until_ns);
        world.advance_to(next.clamp(now + 1, until_ns));
    }
}

/// If each error put the next round off, a guest that writes to a bad place would keep every other chunk from the target for
/// ever; and if its writes went on to the failing target, each would be one more error for the host to hear of.
#[test]
fn a_guest_that_writes_to_a_bad_place_all_the_time_starves_no_other_chunk() {
    let world = World::new(1, Faults::default());
    let (source, target) = (SimDisk::new(BYTES), SimDisk::new(BYTES));
    let drive = DriveCore::new(Arc::clone(&source), BYTES, 512, true);
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let options = MirrorOptions {
        granularity: Granularity::new(4 * KIB).ok(),
        latency_budget: LatencyBudget::Off,
        copy_mode: CopyModeChoice::WriteBlocking,
        sync: SyncMode::None,
        on_target_error: ErrorPolicy::Ignore,
        ..MirrorOptions::default()
    };
    let (_job, share) = crew.start(&drive, &target, &options, None).unwrap();
    turn_until(&mut crew, &world, 20 * MS);
    let bad = ByteRange::at(64 * KIB, 4096);
    let (mut failed, mut marked_ns, mut longest_ns) = (0, None, 0);
    for n in 0..5000u64 {
        let rung = match share.begin_active(bad) {
            Some(active) => {
                failed += 1;
                share.end_active(active, Ok(()), Err(libc::EIO), world.now_ns())
            }
            None => share.guest_wrote(bad),
        };
        // Another guest, which its host does the requests of, dirties a chunk far away, again when that is copied.
        let far = ByteRange::at(BYTES - 8 * KIB, 4096);
        if !share.dirty.test(Chunk(far.start() / 4096)) {
            let since = marked_ns.replace(world.now_ns()).unwrap_or(world.now_ns());
            longest_ns = longest_ns.max(world.now_ns() - since);
            source.poke(far.start(), &[u8::try_from(n % 251).unwrap(); 4096]);
            let _ = share.guest_wrote(far);
        }
        if rung {
            crew.wake(0);
        }
        turn_until(&mut crew, &world, (20 + n) * MS + EVERY_NS);
    }
    longest_ns = longest_ns.max(world.now_ns() - marked_ns.unwrap());
    // The longest time between two rounds, and one to copy.
    assert!(longest_ns < 1100 * MS, "a chunk waited for {} ms", longest_ns / MS);
    // One for each round: copiers make up for it each time, so that rounds stay as close together as they may be, 10 ms.
    assert!((3..=500).contains(&failed), "{failed} errors in five seconds");
}
