//! The dirty bitmap: the target may differ from the source where a bit is set.
//!
//! It may assume that whoever calls [`DirtyBitmap::set`] does so after the guest's write has completed and before the guest hears
//! of it (*Mark after, before the ack*), and that whoever calls [`DirtyBitmap::clear`] holds the claims of those chunks and submits
//! the read of the data afterwards (*Claim, clear, read*). The fences that both need are inside the calls.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Mutex;

use super::changes::Changes;
use super::drain::drain;
use super::hold::Usage;
use super::pieces::{first_bit_of, mask_in, word_of};
use super::sync::WORD_BITS;
use super::tree::Tree;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{
    ByteRange, Chunk, ChunkRange, Granularity, MAX_DISK_BYTES, bytes_u64, bytes_usize, format_size,
};

/// Lock-free dirty bits of a disk, one for each chunk.
///
/// All methods take `&self` and may run on any number of threads at once; only [`DirtyBitmap::drain`] is meant for one at a
/// time. None takes a lock or waits. Chunks past the end of the disk do not exist: they are never set, and
/// clear for who asks.
///
/// *What a scan can miss.* [`next_run`](Self::next_run), [`count`](Self::count), [`is_clean`](Self::is_clean), `clear`, `drain`,
/// `merge_from` and `to_bytes` may miss a bit while another thread is inside a call that sets or clears bits of the same 64
/// words, even if the bit was set before the scan began. Nothing is lost by it: the next scan finds the bit. But "nothing is
/// dirty" is final only when nobody is inside such a call (*Zero is decided behind the gate*).
#[derive(Debug)]
pub struct DirtyBitmap {
    /// The bits.
    tree: Tree,
    /// Bytes of the disk.
    disk_bytes: u64,
    /// Bytes of a chunk.
    granularity: Granularity,
    /// How many of the bits are set.
    changes: Changes,
    /// Who uses it, see `hold`.
    pub(super) usage: Mutex<Usage>,
}

/// The number of chunks of a disk, if a map may be made for it.
pub(super) fn chunks_for(disk_bytes: u64, granularity: Granularity) -> Result<u64> {
    if disk_bytes > MAX_DISK_BYTES {
        let (size, limit) = (format_size(disk_bytes), format_size(MAX_DISK_BYTES));
        return Err(Error::new(ErrorKind::InvalidArgument, "make a bitmap")
            .because(format!("the disk has {size}, at most {limit} can be tracked")));
    }
    Ok(granularity.chunks_in(disk_bytes))
}

/// A chunk range as bits.
#[inline(always)]
pub(super) fn bits_of(chunks: ChunkRange) -> Range<u64> {
    chunks.start()..chunks.end()
}

impl DirtyBitmap {
    /// A clean bitmap for a disk of `disk_bytes`.
    ///
    /// It reserves addresses, not memory: a page of bits costs memory once one of them was set.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a disk over 64 TiB, [`ErrorKind::NoMemory`] when there are not enough addresses.
    pub fn new(disk_bytes: u64, granularity: Granularity) -> Result<Self> {
        let tree = Tree::new(chunks_for(disk_bytes, granularity)?)?;
        Ok(Self { tree, disk_bytes, granularity, changes: Changes::default(), usage: Mutex::default() })
    }

    /// Bytes that a bit stands for.
    #[must_use]
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// How many chunks the disk has; the last may be short.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.tree.len()
    }

    /// Marks `chunks` as dirty; returns how many were clean.
    ///
    /// Call it after the write has completed, whatever its result, and before the guest hears of it. A write done by
    /// this thread without a system call (plain stores into mapped memory) needs a
    /// `std::sync::atomic::fence(Ordering::SeqCst)` before this call, see the module [`super::sync`]; every other kind of write
    /// does not.
    #[inline]
    pub fn set(&self, chunks: ChunkRange) -> u64 {
        self.changes.set(chunks.start(), self.tree.set(bits_of(chunks)))
    }

    /// Marks every chunk that `bytes` touches as dirty, see [`Self::set`]; returns how many were clean.
    #[inline]
    pub fn set_bytes(&self, bytes: ByteRange) -> u64 {
        self.set(self.granularity.chunks_touched(bytes))
    }

    /// Marks `chunks` as clean; returns how many were dirty.
    ///
    /// Call it after the chunks were claimed and before the read of their data is submitted: the read then sees every
    /// write whose [`Self::set`] found its bit still set. Many threads may clear, also the same chunks; each bit is
    /// counted by exactly one.
    pub fn clear(&self, chunks: ChunkRange) -> u64 {
        self.changes.cleared(chunks.start(), self.tree.clear(bits_of(chunks)))
    }

    /// Whether `chunk` is dirty.
    #[must_use]
    pub fn test(&self, chunk: Chunk) -> bool {
        self.tree.test(chunk.0)
    }

    /// The first run of dirty chunks at or after `from`, with at most `max_chunks`.
    ///
    /// Each chunk of it was dirty when it was looked at. Clean space is skipped through the summaries.
    #[must_use]
    pub fn next_run(&self, from: Chunk, max_chunks: u64) -> Option<ChunkRange> {
        self.tree.next_run(from.0, max_chunks).map(|bits| ChunkRange::new(bits.start, bits.end))
    }

    /// How many chunks are dirty; exact when nobody changes the map.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.tree.count()
    }

    /// The same as those who change the map have counted it, without a look at the bits: exact when nobody changes any, and off
    /// by what is just being changed otherwise.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.changes.dirty()
    }

    /// How often a chunk turned dirty so far.
    #[must_use]
    pub(crate) fn dirtied(&self) -> u64 {
        self.changes.dirtied()
    }

    /// Whether no chunk is dirty; exact when nobody changes the map.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.tree.next_run(0, 1).is_none()
    }

    /// Takes all dirty bits out and gives them to `f` as runs, in rising order.
    ///
    /// For one consumer at a time; setters may run. A bit that is set meanwhile is given out or stays. Each run was cleared before
    /// `f` gets it, with the fence of [`Self::clear`]. Should `f` panic, the runs that it was not given yet are dirty again.
    pub fn drain(&self, mut f: impl FnMut(ChunkRange)) {
        drain(&self.tree, |bits| {
            // Before `f`, which may panic: it has this run then.
            self.changes.cleared(bits.start, bits.end - bits.start);
            f(ChunkRange::new(bits.start, bits.end));
        });
    }

    /// Marks as dirty what is dirty in `other`; returns how many were clean.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless both have the same disk size and granularity.
    pub fn merge_from(&self, other: &Self) -> Result<u64> {
        if self.disk_bytes != other.disk_bytes || self.granularity != other.granularity {
            return Err(Error::new(ErrorKind::InvalidArgument, "merge bitmaps").because(format!(
                "one is for {} bytes in chunks of {}, the other for {} in chunks of {}; make them alike",
                self.disk_bytes,
                self.granularity.bytes(),
                other.disk_bytes,
                other.granularity.bytes()
            )));
        }
        if std::ptr::eq(self, other) {
            return Ok(0);
        }
        let changed = self.tree.set_from(|sink| other.tree.for_each_word(other.tree.words(), sink));
        Ok(self.changes.set(0, changed))
    }

    /// The bits of `chunks`, cut at the end of the disk: the first chunk is the lowest bit of the first byte.
    ///
    /// Bits that fill up the last byte are 0.
    #[must_use]
    pub fn to_bytes(&self, chunks: ChunkRange) -> Vec<u8> {
        let bits = chunks.start().min(self.chunks())..chunks.end().min(self.chunks());
        let mut bytes = vec![0; bytes_usize((bits.end - bits.start).div_ceil(8))];
        if !bits.is_empty() {
            self.tree.for_each_word(word_of(bits.start)..word_of(bits.end - 1) + 1, |word, found| {
                put(&mut bytes, first_bit_of(word), found & mask_in(&bits, word), bits.start);
            });
        }
        bytes
    }

    /// Marks as dirty the chunks whose bit is 1 in `bytes`, the lowest bit of the first byte being `first`; returns
    /// how many were clean. Chunks whose bit is 0 are left as they are; bits past the end of the disk are ignored.
    pub fn from_bytes(&self, first: Chunk, bytes: &[u8]) -> u64 {
        let end = first.0.saturating_add(bytes_u64(bytes.len()).saturating_mul(8)).min(self.chunks());
        let changed = self.tree.set_from(|sink| {
            for (word, mask) in super::pieces::pieces(first.0..end) {
                let found = get(bytes, first_bit_of(word), first.0) & mask;
                if found != 0 {
                    sink(word, found);
                }
            }
        });
        self.changes.set(first.0, changed)
    }

    /// Breaks the protocol on purpose, to see that the models notice.
    #[cfg(loom)]
    #[must_use]
    pub fn sabotaged(mut self, sabotage: super::Sabotage) -> Self {
        self.tree.sabotage = sabotage;
        self
    }
}

/// Bytes that a word of bits can touch when it does not begin on a byte border.
const SPREAD: u64 = WORD_BITS.div_ceil(8) + 1;

/// Puts the bits of a word, whose lowest is bit `at` of the map, into `bytes`, whose lowest is bit `origin`.
fn put(bytes: &mut [u8], at: u64, bits: u64, origin: u64) {
    // Widened so that no bit falls off; bits below the origin are not set in `bits`.
    let shifted = if at >= origin {
        u128::from(bits) << ((at - origin) % 8)
    } else {
        u128::from(bits >> (origin - at))
    };
    let first = bytes_usize(at.saturating_sub(origin) / 8);
    for (byte, part) in bytes.iter_mut().skip(first).zip(shifted.to_le_bytes()) {
        *byte |= part;
    }
}

/// The word whose lowest bit is bit `at` of the map, out of `bytes`, whose lowest is bit `origin`; bits that `bytes` does not
/// have are 0.
fn get(bytes: &[u8], at: u64, origin: u64) -> u64 {
    let first = bytes_usize(at.saturating_sub(origin) / 8);
    let mut window = [0_u8; 16];
    for (part, byte) in window.iter_mut().zip(bytes.iter().skip(first)).take(bytes_usize(SPREAD)) {
        *part = *byte;
    }
    let window = u128::from_le_bytes(window);
    let aligned = if at >= origin { window >> ((at - origin) % 8) } else { window << (origin - at) };
    u64::try_from(aligned & u128::from(u64::MAX)).unwrap_or(0)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::units::{KIB, TIB};

    fn map(chunks: u64) -> DirtyBitmap {
        DirtyBitmap::new(chunks * 64 * KIB, Granularity::DEFAULT).unwrap()
    }

    fn runs(map: &DirtyBitmap) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        map.drain(|run| found.push((run.start(), run.end())));
        found
    }

    #[test]
    fn set_and_clear_return_the_bits_that_changed() {
        let map = map(1000);
        assert_eq!(map.set(ChunkRange::new(60, 70)), 10);
        assert_eq!(map.set(ChunkRange::new(0, 200)), 190);
        assert_eq!(map.set(ChunkRange::new(0, 200)), 0);
        assert_eq!(map.clear(ChunkRange::new(100, 1000)), 100);
        assert_eq!(map.clear(ChunkRange::new(100, 1000)), 0);
        assert_eq!(map.count(), 100);
        assert_eq!(map.clear(ChunkRange::new(0, u64::MAX)), 100);
        assert!(map.is_clean());
    }

    #[test]
    fn chunks_past_the_end_do_not_exist() {
        let map = map(65);
        assert_eq!(map.set(ChunkRange::new(64, 1000)), 1);
        assert_eq!(map.set(ChunkRange::new(65, u64::MAX)), 0);
        assert!(!map.test(Chunk(65)) && !map.test(Chunk(u64::MAX)));
        assert_eq!(map.next_run(Chunk(0), u64::MAX), Some(ChunkRange::new(64, 65)));
        assert_eq!(map.next_run(Chunk(u64::MAX), 1), None);
        assert_eq!(map.to_bytes(ChunkRange::new(60, u64::MAX)), [0b1_0000]);
    }

    #[test]
    fn a_disk_without_bytes_has_a_map_without_bits() {
        let map = map(0);
        assert_eq!((map.chunks(), map.set(ChunkRange::new(0, 9)), map.count()), (0, 0, 0));
        assert!(map.is_clean() && runs(&map).is_empty());
    }

    #[test]
    fn runs_are_longest_in_order_and_cut_at_the_wish() {
        let map = map(100_000);
        for (start, end) in [(0, 1), (63, 65), (128, 64_000), (99_999, 100_000)] {
            map.set(ChunkRange::new(start, end));
        }
        assert_eq!(map.next_run(Chunk(1), u64::MAX), Some(ChunkRange::new(63, 65)));
        assert_eq!(map.next_run(Chunk(64), u64::MAX), Some(ChunkRange::new(64, 65)));
        assert_eq!(map.next_run(Chunk(65), 16), Some(ChunkRange::new(128, 144)));
        assert_eq!(map.next_run(Chunk(65), 100), Some(ChunkRange::new(128, 228)));
        assert_eq!(map.next_run(Chunk(65), 0), None);
        assert_eq!(map.next_run(Chunk(64_000), 9), Some(ChunkRange::new(99_999, 100_000)));
        assert_eq!(runs(&map), [(0, 1), (63, 65), (128, 64_000), (99_999, 100_000)]);
        assert!(map.is_clean() && runs(&map).is_empty());
    }

    #[test]
    fn the_last_bit_of_the_largest_disk_can_be_found() {
        let map = DirtyBitmap::new(64 * TIB, Granularity::new(4 * KIB).unwrap()).unwrap();
        let last = map.chunks() - 1;
        assert_eq!(map.set_bytes(ByteRange::new(64 * TIB - 1, 64 * TIB)), 1);
        assert_eq!(map.next_run(Chunk(0), 9), Some(ChunkRange::new(last, last + 1)));
        assert_eq!(map.count(), 1);
        assert_eq!(runs(&map), [(last, last + 1)]);
        assert!(map.is_clean());
        let error = DirtyBitmap::new(64 * TIB + 1, Granularity::DEFAULT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn bytes_hold_the_bits_from_any_chunk_to_any_chunk() {
        let from = map(300);
        for bit in [0, 1, 7, 8, 63, 64, 65, 127, 128, 250, 299] {
            from.set(ChunkRange::new(bit, bit + 1));
        }
        for start in 0..130 {
            let to = map(300);
            to.from_bytes(Chunk(start), &from.to_bytes(ChunkRange::new(start, 300)));
            for bit in 0..300 {
                assert_eq!(to.test(Chunk(bit)), bit >= start && from.test(Chunk(bit)), "{bit} from {start}");
            }
        }
    }

    #[test]
    fn merging_takes_over_bits_and_refuses_strangers() {
        let (a, b) = (map(500), map(500));
        a.set(ChunkRange::new(0, 100));
        b.set(ChunkRange::new(90, 300));
        assert_eq!(a.merge_from(&b).unwrap(), 200);
        assert_eq!((a.count(), b.count()), (300, 210));
        assert_eq!(a.merge_from(&a).unwrap(), 0);
        assert!(a.merge_from(&map(501)).unwrap_err().to_string().contains("make them alike"));
    }

    #[test]
    fn what_a_panicking_drain_was_not_given_is_dirty_again() {
        let map = map(64 * 64 * 3);
        let all = [(1, 2), (3, 4), (60, 70), (80, 81), (1000, 1001), (9000, 9005)];
        for (start, end) in all {
            map.set(ChunkRange::new(start, end));
        }
        for given in 1..all.len() {
            let mut count = 0;
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                map.drain(|_| {
                    count += 1;
                    assert!(count < given, "stop here");
                });
            }));
            assert!(outcome.is_err());
            let left: Vec<_> = all[given..].to_vec();
            assert_eq!(map.count(), left.iter().map(|(s, e)| e - s).sum::<u64>());
            assert_eq!(runs(&map), left);
            for (start, end) in all {
                map.set(ChunkRange::new(start, end));
            }
        }
    }
}
