//! Every interleaving of who may write to the target, and of the bell that wakes a home.
//!
//! Run with `make loom`. The models use the real `Writers`, `Doorbell` and `DirtyBitmap`; each is also run with the order
//! broken, and must notice.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs, reason = "this is a test")]

mod loom_kit;

use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::mirror::{Doorbell, Writers};
use blkmirror_core::units::{ByteRange, Granularity};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::thread;

use crate::loom_kit::{check, chunks};

/// A chunk: two blocks.
const CHUNK: u64 = 8192;
/// A block.
const BLOCK: u64 = 4096;

/// Rights that can be broken: who looks before he claims.
enum Rights {
    Real(Writers),
    /// Chunk and block claims, each looked at before the other is taken.
    LooksFirst(Claims, Claims),
}

impl Rights {
    fn new(broken: bool) -> Self {
        let g = |bytes| Granularity::new(bytes).unwrap();
        if broken {
            Self::LooksFirst(Claims::new(CHUNK, g(CHUNK)).unwrap(), Claims::new(CHUNK, g(BLOCK)).unwrap())
        } else {
            Self::Real(Writers::new(CHUNK, g(CHUNK)).unwrap())
        }
    }

    fn copier(&self) -> bool {
        match self {
            Self::Real(w) => !w.claim_for_copier(chunks(0, 1)).is_empty(),
            Self::LooksFirst(c, g) => {
                g.first_claimed(chunks(0, 2)).is_none() && !c.try_claim(chunks(0, 1)).is_empty()
            }
        }
    }

    fn copier_done(&self) {
        match self {
            Self::Real(w) => w.release_by_copier(chunks(0, 1)),
            Self::LooksFirst(c, _) => c.release(chunks(0, 1)),
        }
    }

    fn guest(&self, block: u64) -> bool {
        match self {
            Self::Real(w) => w.claim_for_guest(ByteRange::at(block * BLOCK, BLOCK)),
            Self::LooksFirst(c, g) => {
                c.first_claimed(chunks(0, 1)).is_none() && !g.try_claim(chunks(block, block + 1)).is_empty()
            }
        }
    }

    fn guest_done(&self, block: u64) {
        match self {
            Self::Real(w) => w.release_by_guest(ByteRange::at(block * BLOCK, BLOCK)),
            Self::LooksFirst(_, g) => g.release(chunks(block, block + 1)),
        }
    }
}

/// A copier and one or two guest writes on one chunk; `inside` counts who writes which block of the target.
fn meet(broken: bool, blocks: &'static [u64]) {
    let rights = Arc::new(Rights::new(broken));
    let inside: Arc<[AtomicU64; 2]> = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let guests: Vec<_> = blocks
        .iter()
        .map(|&block| {
            let (rights, inside) = (Arc::clone(&rights), Arc::clone(&inside));
            thread::spawn(move || {
                if rights.guest(block) {
                    let at = &inside[usize::try_from(block).unwrap()];
                    assert_eq!(at.fetch_add(1, SeqCst), 0, "two write block {block}");
                    at.fetch_sub(1, SeqCst);
                    rights.guest_done(block);
                }
            })
        })
        .collect();
    if rights.copier() {
        for at in inside.iter() {
            assert_eq!(at.fetch_add(1, SeqCst), 0, "a guest writes where a copier does");
        }
        inside.iter().for_each(|at| {
            at.fetch_sub(1, SeqCst);
        });
        rights.copier_done();
    }
    guests.into_iter().for_each(|guest| guest.join().unwrap());
    assert!(rights.copier(), "a claim was left behind");
}

#[test]
fn a_copier_and_a_guest_write_never_own_a_chunk_together() {
    check(None, || meet(false, &[0]));
}

#[test]
fn two_guest_writes_of_one_block_never_own_it_together() {
    check(Some(3), || meet(false, &[1, 1]));
}

#[test]
fn guest_writes_of_two_blocks_keep_a_copier_out() {
    check(Some(3), || meet(false, &[0, 1]));
}

#[test]
#[should_panic(expected = "write")]
fn looking_before_claiming_is_noticed() {
    check(None, || meet(true, &[0]));
}

/// A guest write that dirties a chunk, and a home that goes to sleep.
fn fall_asleep(looks_before_arming: bool) {
    let bell = Arc::new(Doorbell::default());
    let dirty = Arc::new(DirtyBitmap::new(CHUNK, Granularity::new(CHUNK).unwrap()).unwrap());
    let guest = {
        let (bell, dirty) = (Arc::clone(&bell), Arc::clone(&dirty));
        thread::spawn(move || dirty.set(chunks(0, 1)) > 0 && bell.is_mine_to_ring())
    };
    let sleeps = if looks_before_arming {
        let clean = dirty.is_clean();
        bell.arm();
        clean
    } else {
        bell.arm();
        dirty.is_clean()
    };
    let rang = guest.join().unwrap();
    assert!(!sleeps || rang, "a dirty chunk is slept over");
}

#[test]
fn no_dirty_chunk_is_slept_over() {
    check(None, || fall_asleep(false));
}

#[test]
#[should_panic(expected = "slept over")]
fn arming_after_the_look_is_noticed() {
    check(None, || fall_asleep(true));
}

#[test]
fn of_two_writers_at_most_one_rings() {
    check(Some(3), || {
        let bell = Arc::new(Doorbell::default());
        bell.arm();
        let other = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.is_mine_to_ring())
        };
        let mine = bell.is_mine_to_ring();
        let theirs = other.join().unwrap();
        assert!(mine != theirs, "{mine} {theirs}");
    });
}
