//! The cursor of the first pass: the disk is taken in order, piece by piece, by all workers.
//!
//! "Everything is dirty" is not stored as set bits, for that would touch every page of the bitmap. What lies above the
//! cursor is dirty by definition; what lies below is somebody's, or dirty by its bit, or done. Both operations are one
//! atomic read-modify-write on the same word, so every byte is handed out exactly once: the returned ranges are the gaps
//! between consecutive values of a counter that only grows.

use crate::bitmap::sync::{AtomicU64, Ordering};
use crate::units::ByteRange;

/// The shared cursor.
#[derive(Debug)]
pub struct Sweep {
    /// First byte that nobody has taken; may run past the end.
    next: AtomicU64,
    /// Bytes of the disk.
    end: u64,
}

impl Sweep {
    /// A sweep over a disk of `end` bytes; nothing is taken yet.
    #[must_use]
    pub fn new(end: u64) -> Self {
        Self { next: AtomicU64::new(0), end }
    }

    /// A sweep that is over: nothing is dirty by position.
    #[must_use]
    pub fn done(end: u64) -> Self {
        Self { next: AtomicU64::new(end), end }
    }

    /// Takes the next `len` bytes, cut at the end; `None` when all is taken.
    #[must_use]
    pub fn take(&self, len: u64) -> Option<ByteRange> {
        // The load keeps the counter from growing without end when idle workers ask again and again.
        if self.is_over() {
            return None;
        }
        // AcqRel: nothing else is published through the cursor; the bits it stands for are ordered by the bitmap itself.
        let start = self.next.fetch_add(len, Ordering::AcqRel);
        (start < self.end).then(|| ByteRange::new(start, start.saturating_add(len).min(self.end)))
    }

    /// Takes everything up to `position` that nobody has taken; empty when the cursor is there already.
    #[must_use]
    pub fn skip_to(&self, position: u64) -> ByteRange {
        let position = position.min(self.end);
        let start = self.next.fetch_max(position, Ordering::AcqRel).min(self.end);
        ByteRange::new(start, position)
    }

    /// First byte that nobody has taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next.load(Ordering::Acquire).min(self.end)
    }

    /// Whether everything is taken.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.position() == self.end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn threads_get_every_byte_exactly_once() {
        let sweep = Sweep::new(10_000_001);
        let mut got: Vec<ByteRange> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4u64)
                .map(|t| {
                    let sweep = &sweep;
                    s.spawn(move || {
                        let mut mine = Vec::new();
                        while let Some(r) = sweep.take(977) {
                            mine.push(r);
                            if r.start() % 7 == t {
                                mine.push(sweep.skip_to(r.end() + 5000));
                            }
                        }
                        mine
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        got.retain(|r| !r.is_empty());
        got.sort();
        let mut at = 0;
        for r in got {
            assert_eq!(r.start(), at);
            at = r.end();
        }
        assert_eq!(at, 10_000_001);
        assert!(sweep.is_over());
    }

    proptest! {
        #[test]
        fn taken_ranges_tile_the_disk(end in 0u64..100_000, ops in prop::collection::vec((any::<bool>(), 1u64..9_000), 0..100)) {
            let sweep = Sweep::new(end);
            let mut at = 0;
            for (take, n) in ops {
                let got = if take { sweep.take(n) } else { Some(sweep.skip_to(n * 11)) };
                if let Some(r) = got.filter(|r| !r.is_empty()) {
                    prop_assert_eq!(r.start(), at);
                    prop_assert!(r.end() <= end);
                    at = r.end();
                }
            }
            prop_assert_eq!(sweep.position(), at);
        }
    }
}
