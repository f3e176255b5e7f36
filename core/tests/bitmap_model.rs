//! The bitmap and the claims against a slow and obvious model, `bitvec`, over random operations.
#![cfg(not(loom))]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "this is a test")]

use bitvec::prelude::{BitVec, Lsb0};
use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::units::{ByteRange, Chunk, ChunkRange, Granularity};
use proptest::prelude::*;

/// One operation; positions may lie past the end.
#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    SetBytes(u64, u64),
    Clear(u64, u64),
    NextRun(u64, u64),
    Count,
    Drain,
    Merge(Vec<(u64, u64)>),
    ToBytes(u64, u64),
    FromBytes(u64, Vec<u8>),
    Claim(u64, u64),
    /// Releases the claim with this number, counted round.
    Release(usize),
}

/// A range that is short mostly, long at times, near a border of words or groups often.
fn range(chunks: u64) -> impl Strategy<Value = (u64, u64)> {
    let start =
        prop_oneof![0..chunks + 9, (0..chunks / 64 + 1, 0..3_u64).prop_map(|(word, off)| word * 64 + off)];
    let len = prop_oneof![4 => 0..70_u64, 2 => 0..300_u64, 1 => 0..chunks + 100];
    (start, len).prop_map(|(start, len)| (start, start + len))
}

fn op(chunks: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => range(chunks).prop_map(|(a, b)| Op::Set(a, b)),
        1 => range(chunks).prop_map(|(a, b)| Op::SetBytes(a * 512 + 7, b * 512 + 9)),
        5 => range(chunks).prop_map(|(a, b)| Op::Clear(a, b)),
        4 => (0..chunks + 9, prop_oneof![Just(u64::MAX), 0..200_u64]).prop_map(|(a, m)| Op::NextRun(a, m)),
        2 => Just(Op::Count),
        1 => Just(Op::Drain),
        1 => prop::collection::vec(range(chunks), 0..4).prop_map(Op::Merge),
        1 => range(chunks).prop_map(|(a, b)| Op::ToBytes(a, b)),
        1 => (0..chunks + 9, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(a, b)| Op::FromBytes(a, b)),
        4 => range(chunks).prop_map(|(a, b)| Op::Claim(a, b)),
        3 => any::<usize>().prop_map(Op::Release),
    ]
}

/// The obvious twin.
struct Model {
    dirty: BitVec<u8, Lsb0>,
    claimed: BitVec<u8, Lsb0>,
    held: Vec<(u64, u64)>,
}

impl Model {
    fn cut(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let len = self.dirty.len() as u64;
        start.min(len) as usize..end.min(len).max(start.min(len)) as usize
    }

    fn fill(&mut self, start: u64, end: u64, value: bool) -> u64 {
        let cut = self.cut(start, end);
        let part = &mut self.dirty[cut];
        let changed = if value { part.count_zeros() } else { part.count_ones() };
        part.fill(value);
        changed as u64
    }

    fn next_run(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let from = (from as usize).min(self.dirty.len());
        let start = from + self.dirty[from..].first_one()?;
        let len = self.dirty[start..].leading_ones() as u64;
        (max > 0).then(|| (start as u64, start as u64 + len.min(max)))
    }

    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        while let Some(run) = self.next_run(runs.last().map_or(0, |(_, end)| *end), u64::MAX) {
            runs.push(run);
        }
        runs
    }
}

fn pair(range: ChunkRange) -> (u64, u64) {
    (range.start(), range.end())
}

fn step(op: &Op, map: &DirtyBitmap, claims: &Claims, model: &mut Model) -> Result<(), TestCaseError> {
    match op {
        Op::Set(a, b) => prop_assert_eq!(map.set(ChunkRange::new(*a, *b)), model.fill(*a, *b, true)),
        Op::SetBytes(a, b) => {
            let (first, end) = if a < b { (a / 512, b.div_ceil(512)) } else { (0, 0) };
            prop_assert_eq!(map.set_bytes(ByteRange::new(*a, *b)), model.fill(first, end, true));
        }
        Op::Clear(a, b) => prop_assert_eq!(map.clear(ChunkRange::new(*a, *b)), model.fill(*a, *b, false)),
        Op::NextRun(from, max) => {
            prop_assert_eq!(map.next_run(Chunk(*from), *max).map(pair), model.next_run(*from, *max));
        }
        Op::Count => {
            prop_assert_eq!(map.count(), model.dirty.count_ones() as u64);
            prop_assert_eq!(map.is_clean(), model.dirty.not_any());
        }
        Op::Drain => {
            let mut runs = Vec::new();
            map.drain(|run| runs.push(pair(run)));
            prop_assert_eq!(runs, model.runs());
            prop_assert!(map.is_clean());
            model.dirty.fill(false);
        }
        Op::Merge(ranges) => {
            let other = DirtyBitmap::new(map.disk_bytes(), map.granularity()).unwrap();
            let mut changed = 0;
            for (a, b) in ranges {
                other.set(ChunkRange::new(*a, *b));
                changed += model.fill(*a, *b, true);
            }
            prop_assert_eq!(map.merge_from(&other).unwrap(), changed);
        }
        Op::ToBytes(a, b) => {
            let mut expected = model.dirty[model.cut(*a, *b)].to_bitvec();
            expected.force_align();
            expected.set_uninitialized(false);
            prop_assert_eq!(map.to_bytes(ChunkRange::new(*a, *b)), expected.into_vec());
        }
        Op::FromBytes(first, bytes) => {
            let mut changed = 0;
            for at in BitVec::<u8, Lsb0>::from_slice(bytes).iter_ones() {
                changed += model.fill(first + at as u64, first + at as u64 + 1, true);
            }
            prop_assert_eq!(map.from_bytes(Chunk(*first), bytes), changed);
        }
        Op::Claim(a, b) => {
            let cut = model.cut(*a, *b);
            let free = model.claimed[cut.clone()].leading_zeros();
            let got = claims.try_claim(ChunkRange::new(*a, *b));
            prop_assert_eq!(pair(got), (*a, *a + free as u64));
            model.claimed[cut.start..cut.start + free].fill(true);
            model.held.push(pair(got));
        }
        Op::Release(which) => {
            if !model.held.is_empty() {
                let (a, b) = model.held.swap_remove(which % model.held.len());
                claims.release(ChunkRange::new(a, b));
                let cut = model.cut(a, b);
                model.claimed[cut].fill(false);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bitmap_does_what_a_plain_bit_vector_does(
        (chunks, ops) in prop_oneof![1..200_u64, 3000..6000_u64, 300_000..600_000_u64]
            .prop_flat_map(|chunks| (Just(chunks), prop::collection::vec(op(chunks), 1..60)))
    ) {
        let granularity = Granularity::new(512).unwrap();
        // The last chunk is short.
        let disk_bytes = chunks * 512 - 5;
        let map = DirtyBitmap::new(disk_bytes, granularity).unwrap();
        let claims = Claims::new(disk_bytes, granularity).unwrap();
        prop_assert_eq!(map.chunks(), chunks);
        let mut model = Model {
            dirty: BitVec::repeat(false, chunks as usize),
            claimed: BitVec::repeat(false, chunks as usize),
            held: Vec::new(),
        };
        for op in &ops {
            step(op, &map, &claims, &mut model)?;
            prop_assert_eq!(map.counted(), map.count());
        }
        for chunk in (0..chunks).step_by(1 + chunks as usize / 500) {
            prop_assert_eq!(map.test(Chunk(chunk)), model.dirty[chunk as usize]);
            prop_assert_eq!(claims.is_claimed(Chunk(chunk)), model.claimed[chunk as usize]);
        }
        let mut expected = model.runs();
        map.drain(|run| assert_eq!(expected.remove(0), pair(run)));
        prop_assert!(expected.is_empty());
        prop_assert_eq!(map.counted(), 0);
    }
}
