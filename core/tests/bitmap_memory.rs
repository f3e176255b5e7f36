//! What a map costs in memory. One test in a process of its own, for it measures the process.
#![cfg(not(loom))]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "this is a test")]

use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::units::{Chunk, ChunkRange, Granularity, KIB, MIB, TIB};

/// Resident bytes of this process, its page tables included.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:") + field("VmPTE:")) * KIB
}

#[test]
fn a_clean_map_of_the_largest_disk_costs_nearly_no_memory() {
    let before = resident_bytes();
    let grown = |what: &str, at_most: u64| {
        let grown = resident_bytes().saturating_sub(before);
        println!("{what}: {} KiB", grown / KIB);
        assert!(grown <= at_most, "{what}: {grown} bytes");
    };
    let granularity = Granularity::new(4 * KIB).unwrap();
    let map = DirtyBitmap::new(64 * TIB, granularity).unwrap();
    let claims = Claims::new(64 * TIB, granularity).unwrap();
    grown("made", MIB / 2);

    // 2 GiB of leaves would be read here if the summaries were not trusted.
    assert!(map.is_clean());
    assert_eq!(map.count(), 0);
    assert_eq!(map.next_run(Chunk(77), u64::MAX), None);
    assert_eq!(map.clear(ChunkRange::new(0, u64::MAX)), 0);
    map.drain(|run| panic!("{run:?} is dirty"));
    grown("searched", MIB);

    // A bit costs its page and those of the summaries above it, not a huge page.
    for part in 0..64 {
        map.set(ChunkRange::new(part * (map.chunks() / 64), part * (map.chunks() / 64) + 1));
    }
    assert_eq!(map.count(), 64);
    let claimed = claims.try_claim(ChunkRange::new(1_000_000, 1_000_016));
    assert_eq!(claimed.len(), 16);
    claims.release(claimed);
    grown("with 64 bits far apart", 3 * MIB);
}
