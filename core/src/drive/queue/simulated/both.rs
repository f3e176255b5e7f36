//! Writes to both sides: from one stable copy, and at the same time.
//!
//! The guest of these tests does not keep still: it writes to the memory of a request that is under way, as a process may whose
//! pages are on their way to the disk. The ring takes a part of each transfer when it is pushed and a part when it
//! completes, and of the two sides not the same parts, so without a copy the sides would differ.
#![forbid(unsafe_code)]

use super::super::core::ZEROES_BYTES;
use super::broken::blocking;
use super::*;
use crate::buffer::HostMemory;
use crate::ring::Wait;

/// Bytes of a write: a chunk, so that it leaves nothing dirty.
const WRITE: u64 = CHUNK;
/// Writes at a time; there is staging memory for all of them.
const WRITES: u64 = 8;

/// A write of the guest, one chunk full of a word; its memory, which is ours until the completion is popped.
fn write(sim: &mut Sim, chunk: u64, word: u64) -> HostMemory {
    write_as(sim, chunk, word, WriteFlags::default())
}

/// The same with flags.
fn write_as(sim: &mut Sim, chunk: u64, word: u64, flags: WriteFlags) -> HostMemory {
    let mut buffer = AlignedBuf::new(bytes_usize(WRITE), 4096).unwrap();
    fill(&mut buffer, word);
    let buffer = GuestBuffer::from(buffer);
    let memory = buffer.memory();
    let (wish, now_ns) = (Wish::Write(flags), sim.world.now_ns());
    let range = ByteRange::at(chunk * CHUNK, WRITE);
    let accepted = sim.lines[0].core.accept(wish, range, Some(buffer), chunk, now_ns);
    accepted.map_err(|rejected| rejected.to_string()).unwrap();
    memory
}

/// Turns the queue until everything has ended, with `meanwhile` after each turn, and pops the completions.
fn finish(sim: &mut Sim, mut meanwhile: impl FnMut(u64)) {
    for turn in 1.. {
        let Line { core, ring, .. } = &mut sim.lines[0];
        core.turn(ring, core.sleep(1, None, ring.now_ns())).unwrap();
        meanwhile(turn);
        if core.in_flight() == 0 {
            break;
        }
        let due_ns = ring.due_ns().into_iter().chain(core.due_ns()).min();
        sim.world.advance_to(due_ns.expect("it hangs"));
    }
    while let Some(done) = sim.lines[0].core.pop() {
        done.result.unwrap();
    }
}

/// Writes to both sides whose memory the guest scribbles on until they have ended.
fn scribbled(seed: u64, options: QueueOptions) -> Sim {
    let mut sim = blocking(seed, options);
    let memories: Vec<_> = (0..WRITES).map(|chunk| write(&mut sim, chunk, chunk + 1)).collect();
    let mut scribble = vec![0; bytes_usize(WRITE)];
    finish(&mut sim, |turn| {
        fill(&mut scribble, 1000 + turn);
        memories.iter().for_each(|memory| _ = memory.copy_in_at(0, &scribble));
    });
    sim
}

/// The state of the job.
fn share(sim: &Sim) -> &Share {
    &sim.job.as_ref().unwrap().follower.share
}

/// Without the copy, source and target would get what the memory held at two different times, and be called equal.
#[test]
fn what_the_guest_does_to_its_memory_meanwhile_reaches_neither_side() {
    for seed in seeds() {
        let mut sim = scribbled(seed, Recipe::default().options);
        sim.check_target();
        assert_eq!(sim.wrong, None, "seed {seed}");
        // Not because they are dirty: all of them went to both sides.
        assert_eq!(share(&sim).progress().active_bytes, WRITES * WRITE, "seed {seed}");
        assert!(share(&sim).dirty.is_clean(), "seed {seed}");
        let mut sent = vec![0; bytes_usize(WRITES * WRITE)];
        let writes = sent.chunks_mut(bytes_usize(WRITE)).zip(1..);
        writes.for_each(|(data, word)| fill(data, word));
        assert!(sim.disk.content().starts_with(&sent), "seed {seed}: the drive has what was sent");
    }
}

/// If this were not so, the test above could not fail: a host that breaks its promise to keep still is found out.
#[test]
fn without_a_copy_the_same_guest_makes_the_sides_differ() {
    let options = QueueOptions { stable_buffers: true, ..Recipe::default().options };
    let differs = |seed| {
        let mut sim = scribbled(seed, options);
        sim.check_target();
        sim.wrong.is_some()
    };
    assert!(seeds().any(differs), "nobody notices memory that changes under a write");
}

/// A copy that a host has no use for costs memory and time; one that is not made costs the data.
#[test]
fn a_copy_is_made_exactly_where_the_host_does_not_promise_to_keep_still() {
    for stable_buffers in [false, true] {
        let mut sim = blocking(7, QueueOptions { stable_buffers, ..Recipe::default().options });
        (0..WRITES).for_each(|chunk| _ = write(&mut sim, chunk, chunk + 1));
        let Line { core, ring, .. } = &mut sim.lines[0];
        core.turn(ring, Wait::POLL).unwrap();
        assert_eq!(bytes_usize(WRITES), core.targets, "all are on their way to both sides");
        let copies = u64::from(core.window.used_bytes() - ZEROES_BYTES);
        assert_eq!(copies, if stable_buffers { 0 } else { WRITES * WRITE });
        finish(&mut sim, |_| {});
        assert_eq!(sim.lines[0].core.window.used_bytes(), ZEROES_BYTES, "given back");
        sim.check_target();
        assert_eq!(sim.wrong, None);
        assert!(share(&sim).dirty.is_clean());
    }
}

/// Otherwise who waits for a queue to be idle sleeps for ever beside a request that was answered on its way to the ring.
#[test]
fn who_waits_for_a_queue_to_be_idle_does_not_sleep_for_what_is_answered_without_the_ring() {
    let mut sim = blocking(7, Recipe::default().options);
    let Line { core, ring, .. } = &mut sim.lines[0];
    ring.slow_zeroes = true;
    let wish = Wish::WriteZeroes(ZeroFlags { no_fallback: true, ..ZeroFlags::default() });
    core.accept(wish, ByteRange::at(0, CHUNK), None, 1, ring.now_ns()).unwrap();
    let entered = ring.waits.len();
    core.turn_while_busy(ring, None).unwrap();
    assert_eq!((core.answers(), core.is_busy()), (1, false));
    assert!(ring.waits[entered..].iter().all(|wait| wait.completions == 0), "{:?}", ring.waits);
}

/// A block device without a command for zeroes succeeds, by having the kernel write pages of them; so it must not be asked.
#[test]
fn zeroes_without_a_fallback_are_not_sent_to_a_disk_that_would_write_them() {
    let mut sim = blocking(7, Recipe::default().options);
    sim.lines[0].ring.slow_zeroes = true;
    let before = (sim.disk.writes(), share(&sim).progress().active_bytes);
    for (no_fallback, errno) in [(true, Some(libc::EOPNOTSUPP)), (false, None)] {
        let Line { core, ring, .. } = &mut sim.lines[0];
        let wish = Wish::WriteZeroes(ZeroFlags { no_fallback, ..ZeroFlags::default() });
        core.accept(wish, ByteRange::at(0, CHUNK), None, 1, ring.now_ns()).unwrap();
        while core.answers() == 0 {
            core.turn(ring, core.sleep(1, None, ring.now_ns())).unwrap();
            ring.due_ns().into_iter().for_each(|at_ns| sim.world.advance_to(at_ns));
        }
        assert_eq!(core.pop().unwrap().result.err().map(|e| e.errno()), errno);
        let untouched = (sim.disk.writes(), share(&sim).progress().active_bytes) == before;
        assert_eq!(untouched, no_fallback);
    }
    sim.check_target();
    assert_eq!(sim.wrong, None);
}

/// Promised for one write, it holds for that one alone.
#[test]
fn a_promise_for_one_write_spares_that_ones_copy() {
    let mut sim = blocking(7, Recipe::default().options);
    let stable = |chunk: u64| WriteFlags { stable: chunk < 3, ..WriteFlags::default() };
    (0..WRITES).for_each(|chunk| _ = write_as(&mut sim, chunk, chunk + 1, stable(chunk)));
    let Line { core, ring, .. } = &mut sim.lines[0];
    core.turn(ring, Wait::POLL).unwrap();
    assert_eq!(bytes_usize(WRITES), core.targets, "all are on their way to both sides");
    assert_eq!(u64::from(core.window.used_bytes() - ZEROES_BYTES), (WRITES - 3) * WRITE);
    finish(&mut sim, |_| {});
    sim.check_target();
    assert_eq!(sim.wrong, None);
}

/// One side after the other would cost the guest the sum of both.
#[test]
fn a_write_to_both_sides_takes_as_long_as_one_of_them() {
    const MS: u64 = 1_000_000;
    for stable_buffers in [false, true] {
        let mut sim = blocking(7, QueueOptions { stable_buffers, ..Recipe::default().options });
        sim.disk.set_latency(20 * MS, 0);
        sim.job.as_ref().unwrap().follower.target.set_latency(20 * MS, 0);
        let begun_ns = sim.world.now_ns();
        write(&mut sim, 0, 1);
        finish(&mut sim, |_| {});
        let took_ns = sim.world.now_ns() - begun_ns;
        assert_eq!(share(&sim).progress().active_bytes, WRITE, "it went to both");
        assert!((20 * MS..30 * MS).contains(&took_ns), "{took_ns} ns");
    }
}
