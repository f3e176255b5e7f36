//! Memory that is mapped and unmapped while requests come and go. The ring fails a request whose buffer does not hold its memory,
//! and stops a test that empties a buffer under one.
#![forbid(unsafe_code)]

use super::*;
use crate::buffer::HostRegion;
use crate::error::ErrorKind;

/// Pages of this many bytes.
const PAGE: usize = 4096;

/// Regions that the host has mapped: first address and length, and the first request after that.
type Mapped = Vec<((usize, usize), u64)>;

/// Maps some pages around memory that a request had or has; whether it overlaps is the drive's to say.
fn map(sim: &Sim, mapped: &mut Mapped, around: usize) {
    let first = around / PAGE - bytes_usize(sim.world.pick(100));
    let region = (first * PAGE, (bytes_usize(sim.world.pick(200)) + 1) * PAGE);
    let overlaps = mapped.iter().any(|(other, _)| meet(*other, region));
    match sim.drive.map_memory(HostRegion::simulated(region.0, region.1)) {
        Ok(()) => {
            assert!(!overlaps, "{region:x?} overlaps one of {mapped:x?}");
            mapped.push((region, sim.next_tag));
        }
        Err(e) => assert_eq!(e.kind() == ErrorKind::AlreadyExists, overlaps, "{e}"),
    }
}

/// Unmaps one; it is busy exactly while a request has memory in it that came after it was mapped.
fn unmap(sim: &Sim, mapped: &mut Mapped) -> bool {
    let number = bytes_usize(sim.world.pick(mapped.len() as u64));
    let (region, since) = mapped[number];
    let asked = sim.lines.iter().flat_map(|line| line.asked.range(since..));
    let used = asked.filter_map(|(_, asked)| asked.memory).any(|memory| meet(memory, region));
    let result = sim.drive.unmap_memory(std::ptr::without_provenance(region.0), region.1);
    match result {
        Ok(()) => _ = mapped.swap_remove(number),
        Err(ref e) => assert_eq!(e.kind(), ErrorKind::Busy),
    }
    assert_eq!(result.is_err(), used, "{region:x?}");
    used
}

/// Whether two ranges of addresses have a byte in common.
fn meet(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

#[test]
fn no_request_names_a_buffer_that_does_not_hold_its_memory_whatever_is_mapped_when() {
    let (mut through, mut busy, mut unmapped) = (0, 0, 0);
    for seed in seeds() {
        let mut recipe =
            Recipe { seed, faults: Faults { short: 200, ..Faults::default() }, ..Recipe::default() };
        recipe.options.stable_buffers = seed % 2 == 0;
        recipe.options.regions = seed % 7 != 3;
        let mut sim = Sim::new(&recipe);
        if seed % 3 > 0 {
            sim.attach(CopyMode::WriteBlocking);
        }
        let (mut mapped, mut around) = (Mapped::new(), None);
        for _ in 0..600 {
            let line = bytes_usize(sim.world.pick(sim.lines.len() as u64));
            match sim.world.pick(12) {
                0..4 => {
                    sim.ask(line);
                    let last = sim.lines[line].asked.last_key_value();
                    around = last.and_then(|(_, asked)| asked.memory).or(around);
                    if sim.chance(50) {
                        sim.turn(line);
                    }
                }
                4 => around.into_iter().for_each(|(start, _)| map(&sim, &mut mapped, start)),
                5 if !mapped.is_empty() => {
                    let used = unmap(&sim, &mut mapped);
                    busy += u64::from(used);
                    unmapped += u64::from(!used);
                }
                6 if sim.chance(20) => sim.drive.close_gate(),
                6 | 7 => sim.drive.open_gate(),
                _ => _ = sim.step(),
            }
        }
        sim.drive.open_gate();
        sim.settle();
        sim.check_all();
        assert_eq!((sim.wrong.take(), sim.failures), (None, 0), "seed {seed}");
        while !mapped.is_empty() {
            assert!(!unmap(&sim, &mut mapped), "seed {seed}: nothing is under way");
        }
        let through_here = sim.lines.iter().map(|line| line.ring.through_buffers()).sum::<u64>();
        assert!(recipe.options.regions || through_here == 0, "seed {seed}: {through_here}");
        through += through_here;
    }
    println!("{through} requests through buffers, {unmapped} unmapped, {busy} busy");
    let seeds = seeds().end;
    assert!(through > 5 * seeds && busy > seeds && unmapped > seeds, "{through} {unmapped} {busy}");
}

/// What a broken ring may still do to the host's memory is not over when the host is told that the request is.
#[test]
fn memory_of_requests_that_a_broken_ring_has_lost_is_busy_until_the_ring_is_over() {
    for over in [true, false] {
        let mut sim = Sim::new(&Recipe { seed: 5, queues: 1, ..Recipe::default() });
        let buffer = GuestBuffer::from(AlignedBuf::new(PAGE, PAGE).unwrap());
        let (start, len) = buffer.memory().extents().next().unwrap();
        sim.drive.map_memory(HostRegion::simulated(start, len)).unwrap();
        let unmap = |sim: &Sim| sim.drive.unmap_memory(std::ptr::without_provenance(start), len);
        let Line { core, ring, .. } = &mut sim.lines[0];
        core.accept(Wish::Read, ByteRange::at(0, PAGE as u64), Some(buffer), 1, ring.now_ns()).unwrap();
        core.submit(ring).unwrap();
        ring.is_broken = true;
        assert!(core.submit(ring).is_err());
        assert_eq!((core.in_flight(), unmap(&sim).unwrap_err().kind()), (0, ErrorKind::Busy));
        let Line { core, ring, .. } = sim.lines.pop().unwrap();
        drop(ring);
        core.end(over);
        assert_eq!(unmap(&sim).is_ok(), over);
    }
}
