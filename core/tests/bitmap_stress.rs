//! Real threads on a real map: no mark may get lost, and no write behind a mark.
//!
//! The models in `loom_bitmap` prove it for small maps and the portable fences. This looks for what a model cannot show: the
//! fences as this machine has them, and the words at their real size.
#![cfg(not(loom))]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "this is a test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_core::bitmap::{Claims, DirtyBitmap};
use blkmirror_core::units::{Chunk, ChunkRange, Granularity};

/// Long enough to go wrong often when a step of the protocol is left out, short enough for every run of the tests.
const ROUND: Duration = Duration::from_millis(800);

/// A small random number generator (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// A disk with a version for each chunk in place of data.
struct Disk {
    dirty: DirtyBitmap,
    claims: Claims,
    source: Vec<AtomicU64>,
    target: Vec<AtomicU64>,
    /// Set once the guests are done.
    closed: AtomicBool,
    copies: AtomicU64,
}

impl Disk {
    fn new(chunks: u64) -> Self {
        let granularity = Granularity::new(512).unwrap();
        let versions = || (0..chunks).map(|_| AtomicU64::new(0)).collect();
        Self {
            dirty: DirtyBitmap::new(chunks * 512, granularity).unwrap(),
            claims: Claims::new(chunks * 512, granularity).unwrap(),
            source: versions(),
            target: versions(),
            closed: AtomicBool::new(false),
            copies: AtomicU64::new(0),
        }
    }

    /// A guest that writes until the time is up; most writes go to a few hot chunks.
    fn guest(&self, seed: u64, until: Instant) -> u64 {
        let mut dice = Dice(seed);
        let chunks = self.dirty.chunks();
        let mut writes = 0;
        while writes % 256 != 0 || Instant::now() < until {
            let start = if dice.roll(4) == 0 { dice.roll(chunks) } else { dice.roll(8) * (chunks / 8) };
            let end = (start + 1 + dice.roll(3)).min(chunks);
            for chunk in start..end {
                // A read-modify-write, as a kernel has one between the copying of the data and the completion.
                self.source[chunk as usize].fetch_add(1, Ordering::Relaxed);
            }
            self.dirty.set(ChunkRange::new(start, end));
            writes += 1;
        }
        writes
    }

    /// A copier that goes on until the guests are done and nothing is dirty any more.
    fn copier(&self, seed: u64) {
        let mut dice = Dice(seed);
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            let mut from = 0;
            let mut found = false;
            while let Some(run) = self.dirty.next_run(Chunk(from), 1 + dice.roll(100)) {
                found = true;
                from = run.end();
                self.copy(run, &mut dice);
            }
            if closed && !found {
                return;
            }
        }
    }

    fn copy(&self, run: ChunkRange, dice: &mut Dice) {
        let claimed = self.claims.try_claim(run);
        self.dirty.clear(claimed);
        let fails = dice.roll(8) == 0;
        for chunk in claimed.start() as usize..claimed.end() as usize {
            let data = self.source[chunk].load(Ordering::Relaxed);
            if !fails {
                self.target[chunk].store(data, Ordering::Relaxed);
            }
        }
        if fails {
            self.dirty.set(claimed);
        }
        self.claims.release(claimed);
        self.copies.fetch_add(claimed.len(), Ordering::Relaxed);
    }
}

/// Runs so many guests and copiers against each other, then counts the chunks that are old and not marked.
fn lost_writes(chunks: u64, guests: u64, copiers: u64) -> usize {
    let disk = &Disk::new(chunks);
    let until = Instant::now() + ROUND;
    thread::scope(|scope| {
        for seed in 1..=copiers {
            scope.spawn(move || disk.copier(seed));
        }
        let guests: Vec<_> =
            (11..11 + guests).map(|seed| scope.spawn(move || disk.guest(seed, until))).collect();
        let writes: u64 = guests.into_iter().map(|guest| guest.join().unwrap()).sum();
        println!("{chunks} chunks: {writes} writes, {} copies", disk.copies.load(Ordering::Relaxed));
        disk.closed.store(true, Ordering::Release);
    });
    assert!(disk.dirty.is_clean(), "a copier left with a bit set");
    assert!(
        (0..chunks).all(|chunk| !disk.dirty.test(Chunk(chunk))),
        "a bit is set that a search does not find"
    );
    assert!((0..chunks).all(|chunk| !disk.claims.is_claimed(Chunk(chunk))), "a claim was left behind");
    let old = |(source, target): &(&AtomicU64, &AtomicU64)| {
        source.load(Ordering::Relaxed) != target.load(Ordering::Relaxed)
    };
    disk.source.iter().zip(&disk.target).filter(old).count()
}

#[test]
fn no_write_is_lost_between_guests_and_copiers() {
    // One of each runs truly side by side even on two cores; two of each also meet among themselves.
    for (guests, copiers) in [(1, 1), (2, 2)] {
        for chunks in [3, 70, 64 * 64 * 64 * 2] {
            assert_eq!(lost_writes(chunks, guests, copiers), 0, "lost writes, of {chunks} chunks");
        }
    }
}

/// A guest and a copier on one chunk; `write` puts a version where the source's data would be. Returns the version whose
/// loss the guest noticed, if it did.
///
/// A lost write is covered up by the next one to the same chunk, so the guest looks after every few writes: the first
/// marks the chunk, the others race with the copier that the mark has woken.
fn noticed_loss(write: impl Fn(&AtomicU64, u64)) -> Option<u64> {
    let disk = &Disk::new(2);
    let until = Instant::now() + ROUND;
    let only = ChunkRange::new(0, 1);
    thread::scope(|scope| {
        scope.spawn(move || disk.copier(3));
        let mut dice = Dice(17);
        let (mut lost, mut version) = (None, 0);
        while lost.is_none() && (version % 64 != 0 || Instant::now() < until) {
            for _ in 0..=dice.roll(4) {
                (0..dice.roll(60)).for_each(|_| std::hint::spin_loop());
                version += 1;
                write(&disk.source[0], version);
                disk.dirty.set(only);
            }
            while disk.claims.try_claim(only).is_empty() {
                std::hint::spin_loop();
            }
            // Who holds a claim and finds the chunk clean may trust it.
            if !disk.dirty.test(Chunk(0)) && disk.target[0].load(Ordering::Relaxed) != version {
                lost = Some(version);
            }
            disk.claims.release(only);
        }
        disk.closed.store(true, Ordering::Release);
        println!("{version} writes");
        lost
    })
}

#[test]
fn a_guest_that_finds_its_chunk_clean_finds_its_last_write_copied() {
    // As a kernel does it: a locked instruction comes between the copying of the data and the completion.
    let locked = |data: &AtomicU64, version| {
        data.swap(version, Ordering::Relaxed);
    };
    assert_eq!(noticed_loss(locked), None, "lost a write");
}

#[test]
fn plain_stores_of_the_same_thread_are_safe_with_a_fence_of_its_own() {
    // Without the fence this fails on x86-64 in about every third run, after some 100 000 writes.
    let stored = |data: &AtomicU64, version| {
        data.store(version, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
    };
    assert_eq!(noticed_loss(stored), None, "lost a write");
}

#[test]
fn every_bit_that_turned_is_taken_exactly_once() {
    // Setters count the bits that they turned, two clearers and a drain those that they took: the sums must agree.
    for chunks in [2, 65, 64 * 64 * 64 * 2] {
        let granularity = Granularity::new(512).unwrap();
        let map = DirtyBitmap::new(chunks * 512, granularity).unwrap();
        let (turned, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let until = Instant::now() + ROUND;
        let repeat = |seed: u64, act: &dyn Fn(ChunkRange)| {
            let mut dice = Dice(seed);
            while Instant::now() < until {
                for _ in 0..64 {
                    let start = dice.roll(chunks);
                    act(ChunkRange::new(start, start + dice.roll(150)));
                }
            }
        };
        let set = |range| {
            turned.fetch_add(map.set(range), Ordering::Relaxed);
        };
        let clear = |range| {
            taken.fetch_add(map.clear(range), Ordering::Relaxed);
        };
        let drain = |_| {
            map.drain(|run| {
                taken.fetch_add(run.len(), Ordering::Relaxed);
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| repeat(1, &set));
            scope.spawn(|| repeat(2, &set));
            scope.spawn(|| repeat(3, &clear));
            scope.spawn(|| repeat(4, &clear));
            repeat(5, &drain);
        });
        // What is left must be there to find, each bit of it.
        let (left, mut found) = (map.count(), 0);
        map.drain(|run| found += run.len());
        assert_eq!(left, found);
        let (turned, taken) = (turned.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
        assert_eq!(turned, taken + found, "bits lost or taken twice, of {chunks}");
        assert!((0..chunks).all(|chunk| !map.test(Chunk(chunk))), "a bit is set that a search does not find");
        println!("{chunks} chunks: {turned} bits turned");
    }
}
