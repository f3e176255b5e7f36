//! Every interleaving of guests and copiers on a small map, walked by a model checker.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p blkmirror-core --release --test loom_bitmap`. A word then has 2 bits and
//! the top level 1 word, so 8 chunks make three levels. A search from chunk 0 goes over the top level to chunks 4 to 7, so
//! the models of the levels play there.
//!
//! The models share one picture. The source and the target hold one number for each chunk, accessed with the weakest
//! order, so that nothing but the bitmap orders them. A guest writes the source and then marks; a copier claims, clears, reads
//! and writes. When all are done: where no bit is set, the target must equal the source. Each model is also run with its
//! protocol broken, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::bitmap::{Claims, DirtyBitmap, Sabotage};
use blkmirror_core::units::{Chunk, ChunkRange, Granularity};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;

use crate::loom_kit::{check, chunks};

/// Source, target and what is known of them.
struct Mirror {
    dirty: DirtyBitmap,
    claims: Claims,
    source: Vec<AtomicU64>,
    target: Vec<AtomicU64>,
}

/// What a copier does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copier {
    Right,
    SkipsTheClaim,
    ReadsBeforeItClears,
}

impl Mirror {
    fn new(chunks: u64, sabotage: Sabotage) -> Arc<Self> {
        let granularity = Granularity::new(512).unwrap();
        let numbers = || (0..chunks).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            dirty: DirtyBitmap::new(chunks * 512, granularity).unwrap().sabotaged(sabotage),
            claims: Claims::new(chunks * 512, granularity).unwrap().sabotaged(sabotage),
            source: numbers(),
            target: numbers(),
        })
    }

    /// A guest writes one chunk; the mark comes after it.
    fn guest_writes(&self, chunk: u64, value: u64) {
        self.source[chunk as usize].store(value, Relaxed);
        self.dirty.set(chunks(chunk, chunk + 1));
    }

    /// One round of a copier over the chunks that it finds dirty, one chunk at a time.
    fn copier_round(&self, copier: Copier) {
        let mut from = 0;
        while let Some(run) = self.dirty.next_run(Chunk(from), 1) {
            self.copy(run, copier, true);
            from = run.end();
        }
    }

    /// Copies one chunk, or fails to.
    fn copy(&self, run: ChunkRange, copier: Copier, succeeds: bool) {
        let skips = copier == Copier::SkipsTheClaim;
        if !skips && self.claims.try_claim(run).is_empty() {
            return;
        }
        let chunk = run.start() as usize;
        let early = (copier == Copier::ReadsBeforeItClears).then(|| self.source[chunk].load(Relaxed));
        self.dirty.clear(run);
        let data = early.unwrap_or_else(|| self.source[chunk].load(Relaxed));
        if succeeds {
            self.target[chunk].store(data, Relaxed);
        } else {
            self.dirty.set(run);
        }
        if !skips {
            self.claims.release(run);
        }
    }

    /// At rest: what is not marked is equal, and every mark can be found.
    fn check(&self) {
        let mut left = 0;
        let mut from = 0;
        while let Some(run) = self.dirty.next_run(Chunk(from), 1) {
            (left, from) = (left + 1, run.end());
        }
        assert_eq!(left, self.marked(), "a bit is set that a search does not find");
        for chunk in 0..self.dirty.chunks() {
            let (source, target) = (&self.source[chunk as usize], &self.target[chunk as usize]);
            let equal = source.load(Relaxed) == target.load(Relaxed);
            assert!(equal || self.dirty.test(Chunk(chunk)), "chunk {chunk} is old and not marked");
        }
    }

    fn marked(&self) -> u64 {
        (0..self.dirty.chunks()).map(|chunk| u64::from(self.dirty.test(Chunk(chunk)))).sum()
    }
}

type Part = Box<dyn FnOnce(&Mirror) + Send>;

/// Runs each part on a thread of its own, `own` on this one, and waits for all.
fn together(mirror: &Arc<Mirror>, others: Vec<Part>, own: impl FnOnce(&Mirror)) {
    let threads: Vec<_> = others
        .into_iter()
        .map(|part| {
            let mirror = Arc::clone(mirror);
            thread::spawn(move || part(&mirror))
        })
        .collect();
    own(mirror);
    for thread in threads {
        thread.join().unwrap();
    }
}

// ---- set against clear: the data behind the bit ----

/// A guest writes a chunk that is dirty already while a copier clears it and reads.
fn set_against_clear(sabotage: Sabotage, copier: Copier) {
    check(None, move || {
        let mirror = Mirror::new(2, sabotage);
        mirror.guest_writes(0, 1);
        together(&mirror, vec![Box::new(|m| m.guest_writes(0, 2))], |m| m.copy(chunks(0, 1), copier, true));
        mirror.check();
    });
}

#[test]
fn no_guest_write_is_lost_between_its_mark_and_the_copy() {
    set_against_clear(Sabotage::None, Copier::Right);
}

#[test]
#[should_panic(expected = "is old and not marked")]
fn a_setter_without_its_fence_is_noticed() {
    set_against_clear(Sabotage::NoFenceInSet, Copier::Right);
}

#[test]
#[should_panic(expected = "is old and not marked")]
fn a_clearer_without_its_fence_is_noticed() {
    set_against_clear(Sabotage::NoFenceInClear, Copier::Right);
}

#[test]
#[should_panic(expected = "is old and not marked")]
fn a_copier_that_reads_before_it_clears_is_noticed() {
    set_against_clear(Sabotage::None, Copier::ReadsBeforeItClears);
}

// ---- set against clear: the levels ----

/// Three levels. A setter and a clearer of the two bits of one word.
fn levels(sabotage: Sabotage) {
    check(None, move || {
        let mirror = Mirror::new(8, sabotage);
        mirror.dirty.set(chunks(4, 5));
        together(
            &mirror,
            vec![Box::new(|m| {
                m.dirty.set(chunks(5, 6));
            })],
            |m| {
                m.dirty.clear(chunks(4, 5));
            },
        );
        assert!(mirror.dirty.test(Chunk(5)));
        assert_eq!(mirror.dirty.count(), 1, "a bit is set that a search does not find");
    });
}

#[test]
fn a_mark_can_be_found_whatever_is_cleared_beside_it() {
    levels(Sabotage::None);
}

#[test]
#[should_panic(expected = "that a search does not find")]
fn clearing_a_summary_without_a_second_look_is_noticed() {
    levels(Sabotage::NoSecondLook);
}

#[test]
#[should_panic(expected = "that a search does not find")]
fn testing_a_summary_before_setting_it_is_noticed() {
    levels(Sabotage::TestSummary);
}

/// Two clearers whose ranges overlap and a setter beside them, over three levels.
#[test]
fn two_clearers_and_a_setter_leave_every_mark_findable_and_count_each_bit_once() {
    check(Some(3), || {
        let mirror = Mirror::new(8, Sabotage::None);
        mirror.dirty.set(chunks(4, 7));
        let cleared = Arc::new(AtomicU64::new(0));
        let other = Arc::clone(&cleared);
        together(
            &mirror,
            vec![
                Box::new(move |m| {
                    other.fetch_add(m.dirty.clear(chunks(4, 6)), Relaxed);
                }),
                Box::new(|m| {
                    m.dirty.set(chunks(7, 8));
                }),
            ],
            |m| {
                cleared.fetch_add(m.dirty.clear(chunks(5, 7)), Relaxed);
            },
        );
        assert_eq!(cleared.load(Relaxed), 3, "a bit was counted twice, or by nobody");
        assert_eq!(mirror.marked(), 1);
        let found = mirror.dirty.next_run(Chunk(0), 9);
        assert_eq!(found, Some(chunks(7, 8)), "a bit is set that a search does not find");
    });
}

/// Two guests in one word, one copier.
#[test]
fn two_guests_in_one_word_and_a_copier_lose_neither_write() {
    check(None, || {
        let mirror = Mirror::new(4, Sabotage::None);
        together(
            &mirror,
            vec![Box::new(|m| m.guest_writes(0, 1)), Box::new(|m| m.copier_round(Copier::Right))],
            |m| m.guest_writes(1, 2),
        );
        mirror.check();
    });
}

/// Two setters of one bit: it is counted once.
#[test]
fn two_setters_of_one_bit_count_it_once() {
    check(None, || {
        let mirror = Mirror::new(8, Sabotage::None);
        let turned = Arc::new(AtomicU64::new(0));
        let other = Arc::clone(&turned);
        together(
            &mirror,
            vec![Box::new(move |m| {
                other.fetch_add(m.dirty.set(chunks(2, 5)), Relaxed);
            })],
            |m| {
                turned.fetch_add(m.dirty.set(chunks(3, 6)), Relaxed);
            },
        );
        assert_eq!(turned.load(Relaxed), 4);
        assert_eq!(mirror.dirty.next_run(Chunk(0), 9), Some(chunks(2, 6)));
    });
}

// ---- set against drain ----

/// A guest writes two chunks while everything is drained.
fn set_against_drain(sabotage: Sabotage) {
    check(None, move || {
        let mirror = Mirror::new(8, sabotage);
        mirror.guest_writes(4, 1);
        together(
            &mirror,
            vec![Box::new(|m| {
                m.guest_writes(4, 2);
                m.guest_writes(7, 2);
            })],
            |m| {
                m.dirty.drain(|run| {
                    for chunk in run.start() as usize..run.end() as usize {
                        m.target[chunk].store(m.source[chunk].load(Relaxed), Relaxed);
                    }
                });
            },
        );
        mirror.check();
    });
}

#[test]
fn a_drain_takes_each_mark_or_leaves_it_findable() {
    set_against_drain(Sabotage::None);
}

#[test]
#[should_panic(expected = "that a search does not find")]
fn a_drain_without_a_second_look_is_noticed() {
    set_against_drain(Sabotage::NoSecondLook);
}

#[test]
#[should_panic(expected = "is old and not marked")]
fn a_drain_without_its_fence_is_noticed() {
    set_against_drain(Sabotage::NoFenceInClear);
}

/// A drain against a clearer and a setter.
#[test]
fn a_drain_and_a_clearer_count_each_bit_once_beside_a_setter() {
    check(Some(3), || {
        let mirror = Mirror::new(8, Sabotage::None);
        mirror.dirty.set(chunks(4, 7));
        let taken = Arc::new(AtomicU64::new(0));
        let other = Arc::clone(&taken);
        together(
            &mirror,
            vec![
                Box::new(move |m| {
                    other.fetch_add(m.dirty.clear(chunks(4, 7)), Relaxed);
                }),
                Box::new(|m| {
                    m.dirty.set(chunks(7, 8));
                }),
            ],
            |m| {
                m.dirty.drain(|run| {
                    taken.fetch_add(run.len(), Relaxed);
                });
            },
        );
        let left = mirror.marked();
        assert_eq!(taken.load(Relaxed) + left, 4, "a bit was counted twice, or by nobody");
        assert_eq!(mirror.dirty.count(), left, "a bit is set that a search does not find");
    });
}

// ---- claims ----

/// Two workers claim overlapping runs over three words.
fn claim_against_claim(sabotage: Sabotage) {
    check(None, move || {
        let mirror = Mirror::new(6, sabotage);
        let owners: Arc<Vec<_>> = Arc::new((0..6).map(|_| AtomicU64::new(0)).collect());
        let claim = |mirror: &Mirror, owners: &[AtomicU64], run: ChunkRange| {
            let got = mirror.claims.try_claim(run);
            assert_eq!(got.start(), run.start());
            for chunk in got.start()..got.end() {
                assert_eq!(owners[chunk as usize].swap(1, Relaxed), 0, "two owners");
            }
            for chunk in got.start()..got.end() {
                owners[chunk as usize].store(0, Relaxed);
            }
            mirror.claims.release(got);
        };
        let theirs = Arc::clone(&owners);
        together(&mirror, vec![Box::new(move |m| claim(m, &theirs, chunks(0, 3)))], |m| {
            claim(m, &owners, chunks(1, 5));
        });
        for chunk in 0..6 {
            assert!(!mirror.claims.is_claimed(Chunk(chunk)), "a claim was left behind");
        }
    });
}

#[test]
fn a_chunk_has_one_owner_and_no_claim_is_left_behind() {
    claim_against_claim(Sabotage::None);
}

#[test]
#[should_panic(expected = "two owners")]
fn claiming_without_comparing_is_noticed() {
    claim_against_claim(Sabotage::ClaimWithoutCompare);
}

/// A claim is refused only where somebody holds it.
#[test]
fn a_free_chunk_is_never_refused() {
    check(None, || {
        let mirror = Mirror::new(2, Sabotage::None);
        assert!(!mirror.claims.try_claim(chunks(0, 1)).is_empty());
        together(
            &mirror,
            // Wants both and gets none: it must not refuse the second one to others in passing.
            vec![Box::new(|m| assert!(m.claims.try_claim(chunks(0, 2)).is_empty()))],
            |m| assert_eq!(m.claims.try_claim(chunks(1, 2)), chunks(1, 2)),
        );
    });
}

// ---- claims against guests ----

/// Two copiers and a guest on one dirty chunk.
fn claim_against_guest(sabotage: Sabotage, copier: Copier) {
    check(Some(3), move || {
        let mirror = Mirror::new(2, sabotage);
        mirror.guest_writes(0, 1);
        together(
            &mirror,
            vec![Box::new(|m| m.guest_writes(0, 2)), Box::new(move |m| m.copier_round(copier))],
            |m| m.copier_round(copier),
        );
        mirror.check();
    });
}

#[test]
fn an_old_copy_never_lands_after_a_newer_one() {
    claim_against_guest(Sabotage::None, Copier::Right);
}

#[test]
#[should_panic(expected = "is old and not marked")]
fn copiers_that_skip_the_claim_are_noticed() {
    claim_against_guest(Sabotage::None, Copier::SkipsTheClaim);
}

/// A copier fails; another one who then gets the claim and finds the chunk clean takes the target for equal.
fn failure(marks_first: bool) {
    check(None, move || {
        let mirror = Mirror::new(2, Sabotage::None);
        mirror.guest_writes(0, 1);
        together(
            &mirror,
            vec![Box::new(move |m| {
                let run = chunks(0, 1);
                if marks_first {
                    m.copy(run, Copier::Right, false);
                } else if !m.claims.try_claim(run).is_empty() {
                    m.dirty.clear(run);
                    m.claims.release(run);
                    m.dirty.set(run);
                }
            })],
            |m| {
                if !m.claims.try_claim(chunks(0, 1)).is_empty() && !m.dirty.test(Chunk(0)) {
                    assert_eq!(m.target[0].load(Relaxed), m.source[0].load(Relaxed), "clean by mistake");
                }
            },
        );
    });
}

#[test]
fn who_holds_a_claim_and_finds_the_chunk_clean_may_trust_it() {
    failure(true);
}

#[test]
#[should_panic(expected = "clean by mistake")]
fn releasing_before_marking_again_is_noticed() {
    failure(false);
}
