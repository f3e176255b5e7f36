//! The host's memory: where the data of a guest's request lies.
//!
//! [`HostMemory`] is plain data, a pointer with a length or a vector of them, that a request carries to the kernel.
//! [`GuestBuffer`] is what a host hands over with a request and gets back with its completion: a buffer of its own, or a
//! promise that the memory stays where it is until then.
//!
//! What it may assume: whoever made a [`HostMemory`] keeps the memory, and the vector that describes it, in place until
//! the request's completion; the `unsafe` constructors say so. What it assumes of nobody: that the content stands still.
//! A guest may write to its buffers at any time, so bytes are only ever copied through raw pointers, never looked at
//! through a reference, and each is read at most once.
#![allow(unsafe_code)]

use std::fmt;

use super::AlignedBuf;
use crate::units::{bytes_u64, bytes_usize};

/// Where a guest request's data lies in the host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostMemory(Layout);

/// One piece of memory or several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// `len` bytes at `ptr`.
    One {
        /// First byte.
        ptr: *mut u8,
        /// Bytes.
        len: usize,
        /// The registered buffer of the ring that it lies in.
        buffer: Option<u16>,
    },
    /// `count` segments, described by an array of the host's.
    Many {
        /// The array.
        iovecs: *const libc::iovec,
        /// Its entries.
        count: usize,
        /// Bytes of all segments.
        len: u64,
    },
}

// SAFETY: it is an address and a length; those who made it promised that the memory may be used from any thread until
// the completion of its request.
unsafe impl Send for HostMemory {}

impl HostMemory {
    /// `len` bytes at `ptr`.
    ///
    /// # Safety
    /// Until the request that it is given to has completed (a queue that is dropped gives no completion: then for ever, see
    /// [`GuestBuffer`]): the bytes stay mapped, for writing too if the request reads
    /// from a device; they may be used from any thread; no Rust reference to them is used (a guest or another process may
    /// write to them at any time). They are not memory of a ring.
    #[must_use]
    pub const unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        Self(Layout::One { ptr, len, buffer: None })
    }

    /// The segments in `count` entries at `iovecs`.
    ///
    /// # Safety
    /// Each segment as for [`from_raw`](Self::from_raw); the array itself stays readable and unchanged as long.
    #[must_use]
    pub unsafe fn from_iovecs(iovecs: *const libc::iovec, count: usize) -> Self {
        if count == 1 {
            // SAFETY: the caller vouches for one entry at `iovecs`.
            let segment = unsafe { *iovecs };
            return Self(Layout::One { ptr: segment.iov_base.cast(), len: segment.iov_len, buffer: None });
        }
        let mut len: u64 = 0;
        for index in 0..count {
            // SAFETY: the caller vouches for `count` entries at `iovecs`.
            let segment = unsafe { *iovecs.wrapping_add(index) };
            len = len.saturating_add(bytes_u64(segment.iov_len));
        }
        Self(Layout::Many { iovecs, count, len })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        match self.0 {
            Layout::One { len, .. } => len as u64,
            Layout::Many { len, .. } => len,
        }
    }

    /// Whether there is not a byte in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// What follows the first `bytes`, for the rest of a short transfer. Where these end between two segments, that is
    /// everything that is left; where they end inside a segment, only the rest of that segment, because the host's vector
    /// cannot be changed. So the rest may be shorter than what is missing, and is asked for again from the whole.
    #[must_use]
    pub fn skip(self, bytes: u64) -> Self {
        match self.0 {
            Layout::One { ptr, len, buffer } => {
                let skipped = len.min(bytes_usize(bytes));
                Self(Layout::One { ptr: ptr.wrapping_add(skipped), len: len - skipped, buffer })
            }
            Layout::Many { iovecs, count, len } => {
                let (mut index, mut left) = (0, bytes);
                while index < count {
                    let segment = self.segment(index);
                    let segment_len = bytes_u64(segment.len);
                    if left < segment_len {
                        break;
                    }
                    left -= segment_len;
                    index += 1;
                }
                if left > 0 && index < count {
                    return self.segment(index).rest(left);
                }
                Self(Layout::Many {
                    iovecs: iovecs.wrapping_add(index),
                    count: count - index,
                    len: len.saturating_sub(bytes),
                })
            }
        }
    }

    /// Whether a device can take it as it is: every segment's address is a multiple of `memory_align`, and every length
    /// one of `length_align`. Both are powers of two, from the device's limits.
    #[must_use]
    pub fn is_aligned_to(self, memory_align: u64, length_align: u64) -> bool {
        (0..self.segments()).all(|index| {
            let Segment { ptr, len } = self.segment(index);
            len == 0
                || (bytes_u64(ptr.addr()) & memory_align.saturating_sub(1) == 0
                    && bytes_u64(len) & length_align.saturating_sub(1) == 0)
        })
    }

    /// The same memory, used through a registered buffer of the ring that it is given to; several segments stay as they are.
    ///
    /// The index must be that of a buffer that covers all of it. A ring refuses it otherwise.
    #[must_use]
    pub(crate) const fn in_buffer(self, index: Option<u16>) -> Self {
        match self.0 {
            Layout::One { ptr, len, .. } => Self(Layout::One { ptr, len, buffer: index }),
            Layout::Many { .. } => self,
        }
    }

    /// The registered buffer that it is used through.
    pub(crate) const fn buffer_index(self) -> Option<u16> {
        match self.0 {
            Layout::One { buffer, .. } => buffer,
            Layout::Many { .. } => None,
        }
    }

    /// Where its segments lie: the first address and the length of each.
    pub(crate) fn extents(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.segments()).map(move |index| {
            let Segment { ptr, len } = self.segment(index);
            (ptr.addr(), len)
        })
    }

    /// A range of addresses, for tests that only compare them.
    #[cfg(test)]
    pub(crate) fn simulated(start: usize, len: usize) -> Self {
        Self(Layout::One { ptr: std::ptr::without_provenance_mut(start), len, buffer: None })
    }

    /// Copies its first bytes out, as many as fit; returns how many.
    pub(crate) fn copy_out(self, into: &mut [u8]) -> usize {
        self.copy_out_at(0, into)
    }

    /// Copies bytes from `offset` on out, as many as fit; returns how many.
    pub(crate) fn copy_out_at(self, offset: u64, into: &mut [u8]) -> usize {
        let base = into.as_mut_ptr();
        self.each_part(offset, into.len(), |from, at, len| {
            // SAFETY: `each_part` hands out bytes of the host's that stay mapped until the completion, by the promise of
            // whoever made this; `at + len` is within the exclusive slice, which is no memory of the host's request.
            unsafe { std::ptr::copy_nonoverlapping(from, base.wrapping_add(at), len) };
        })
    }

    /// Copies bytes in, to `offset` and what follows, as many as fit; returns how many.
    pub(crate) fn copy_in_at(self, offset: u64, from: &[u8]) -> usize {
        self.each_part(offset, from.len(), |to, at, len| {
            // SAFETY: as in `copy_out_at`, with the roles changed; nobody uses a reference to the host's bytes.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().wrapping_add(at), to, len) };
        })
    }

    /// Walks `len` bytes from `offset` on in contiguous parts: where a part lies, how many bytes came before it, and its
    /// length. Returns the bytes walked, fewer than `len` where the memory ends.
    fn each_part(self, offset: u64, len: usize, mut part: impl FnMut(*mut u8, usize, usize)) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for index in 0..self.segments() {
            let segment = self.segment(index);
            let segment_len = bytes_u64(segment.len);
            if skip >= segment_len {
                skip -= segment_len;
                continue;
            }
            let start = bytes_usize(skip);
            skip = 0;
            let now = (segment.len - start).min(len - done);
            part(segment.ptr.wrapping_add(start), done, now);
            done += now;
            if done == len {
                break;
            }
        }
        done
    }

    /// How many segments there are.
    pub(crate) const fn segments(self) -> usize {
        match self.0 {
            Layout::One { .. } => 1,
            Layout::Many { count, .. } => count,
        }
    }

    /// One segment; `index` is below [`segments`](Self::segments).
    pub(crate) fn segment(self, index: usize) -> Segment {
        match self.0 {
            Layout::One { ptr, len, .. } => Segment { ptr, len },
            Layout::Many { iovecs, count, .. } => {
                debug_assert!(index < count, "a segment of the vector");
                // SAFETY: the index is below the count, for which the maker of this vouched until the completion.
                let segment = unsafe { *iovecs.wrapping_add(index) };
                Segment { ptr: segment.iov_base.cast(), len: segment.iov_len }
            }
        }
    }

    /// The host's array with its entries, if this is several segments.
    pub(crate) const fn iovecs(self) -> Option<(*const libc::iovec, usize)> {
        match self.0 {
            Layout::One { .. } => None,
            Layout::Many { iovecs, count, .. } => Some((iovecs, count)),
        }
    }
}

/// A contiguous piece of the host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// First byte.
    pub(crate) ptr: *mut u8,
    /// Bytes.
    pub(crate) len: usize,
}

impl Segment {
    /// What follows the first `bytes` of it.
    fn rest(self, bytes: u64) -> HostMemory {
        HostMemory(Layout::One { ptr: self.ptr, len: self.len, buffer: None }).skip(bytes)
    }
}

/// What a guest request is given and what comes back with its completion.
///
/// # When memory of the host's is its own again
///
/// With the completion of its request, if that gives the buffer back. Not before, and by nothing else:
///
/// - A completion without the buffer (the queue's ring broke) leaves the memory with the kernel.
/// - A [`Queue`](crate::drive::queue::Queue) that is dropped with requests under way gives no completions. The kernel has
///   nearly always let go of them when the drop returns, but the drop cannot wait for a device that hangs, and does not say
///   whether it had to. So a host that wants the memory back pops every completion first, or ends the queue with
///   [`Queue::close`](crate::drive::queue::Queue::close): when that succeeds, all of it is the host's.
/// - A read that is under way writes to the memory until then; memory that is unmapped and used otherwise is overwritten.
pub struct GuestBuffer(Kept);

/// Who keeps the memory of a [`GuestBuffer`].
enum Kept {
    /// We do.
    Here(AlignedBuf),
    /// The host promised to.
    ByHost(HostMemory),
}

impl GuestBuffer {
    /// `len` bytes of the host's at `ptr`.
    ///
    /// # Safety
    /// As for [`HostMemory::from_raw`], until the completion of the request that this is given to.
    #[must_use]
    pub const unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        // SAFETY: the caller keeps the same promise.
        Self(Kept::ByHost(unsafe { HostMemory::from_raw(ptr, len) }))
    }

    /// The host's segments in `count` entries at `iovecs`.
    ///
    /// # Safety
    /// As for [`HostMemory::from_iovecs`], until the completion of the request that this is given to.
    #[must_use]
    pub unsafe fn from_iovecs(iovecs: *const libc::iovec, count: usize) -> Self {
        // SAFETY: the caller keeps the same promise.
        Self(Kept::ByHost(unsafe { HostMemory::from_iovecs(iovecs, count) }))
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.memory().len()
    }

    /// Whether there is not a byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer that it was made from, unless it is memory of the host's.
    #[must_use]
    pub fn into_aligned(self) -> Option<AlignedBuf> {
        match self.0 {
            Kept::Here(buf) => Some(buf),
            Kept::ByHost(_) => None,
        }
    }

    /// Where the bytes lie. They stay there as long as this lives, wherever it is moved; whoever sends a request with
    /// them keeps this until the completion.
    pub(crate) fn memory(&self) -> HostMemory {
        match &self.0 {
            // SAFETY: the buffer is ours alone, on the heap, and nobody can reach its bytes while it is in here; the queue
            // keeps it to the completion.
            Kept::Here(buf) => unsafe { HostMemory::from_raw(buf.as_raw(), buf.len()) },
            Kept::ByHost(memory) => *memory,
        }
    }
}

impl From<AlignedBuf> for GuestBuffer {
    fn from(buf: AlignedBuf) -> Self {
        Self(Kept::Here(buf))
    }
}

impl fmt::Debug for GuestBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if matches!(self.0, Kept::Here(_)) { "own" } else { "the host's" };
        write!(f, "GuestBuffer({} bytes, {whose})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory in segments of these lengths, with the vector that describes it.
    struct Scattered {
        segments: Vec<Vec<u8>>,
        iovecs: Vec<libc::iovec>,
    }

    impl Scattered {
        fn new(lens: &[usize]) -> Self {
            let mut segments: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
            let iovecs = segments
                .iter_mut()
                .map(|s| libc::iovec { iov_base: s.as_mut_ptr().cast(), iov_len: s.len() })
                .collect();
            Self { segments, iovecs }
        }

        fn memory(&self) -> HostMemory {
            // SAFETY: both live as long as self, and the tests keep no reference to a segment's bytes meanwhile.
            unsafe { HostMemory::from_iovecs(self.iovecs.as_ptr(), self.iovecs.len()) }
        }

        fn flat(&self) -> Vec<u8> {
            let mut flat = vec![0; bytes_usize(self.memory().len())];
            assert_eq!(self.memory().copy_out(&mut flat), flat.len());
            flat
        }
    }

    proptest! {
        /// Whatever comes back short, going on with `skip` from the whole reaches every byte once and in order.
        #[test]
        fn resumed_short_transfers_are_the_flat_buffer(
            lens in prop::collection::vec(0usize..40, 0..9),
            shorts in prop::collection::vec(1u64..50, 1..20),
        ) {
            let host = Scattered::new(&lens);
            let total = lens.iter().sum::<usize>();
            let data: Vec<u8> = (0..total).map(|i| u8::try_from(i % 251 + 1).unwrap()).collect();
            prop_assert_eq!(host.memory().len(), bytes_u64(total));
            let mut done = 0;
            let mut shorts = shorts.iter().cycle();
            while done < total {
                let rest = host.memory().skip(bytes_u64(done));
                prop_assert!(!rest.is_empty() && rest.len() <= bytes_u64(total - done));
                let now = bytes_usize(rest.len().min(*shorts.next().unwrap()));
                prop_assert_eq!(rest.copy_in_at(0, &data[done..done + now]), now);
                done += now;
            }
            prop_assert!(host.memory().skip(bytes_u64(total)).is_empty());
            prop_assert!(host.memory().skip(u64::MAX).is_empty());
            prop_assert_eq!(&host.flat(), &data);
            prop_assert_eq!(host.segments.concat(), data);
        }

        /// A part in the middle is the same part of the flat buffer, in both directions.
        #[test]
        fn parts_are_those_of_the_flat_buffer(
            lens in prop::collection::vec(0usize..40, 1..9),
            offset in 0usize..200,
            len in 0usize..100,
        ) {
            let host = Scattered::new(&lens);
            let mut flat = host.flat();
            let part: Vec<u8> = (0..len).map(|i| u8::try_from(i + 1).unwrap()).collect();
            let fits = flat.len().saturating_sub(offset).min(len);
            prop_assert_eq!(host.memory().copy_in_at(bytes_u64(offset), &part), fits);
            if fits > 0 {
                flat[offset..offset + fits].copy_from_slice(&part[..fits]);
            }
            prop_assert_eq!(host.flat(), flat);
            let mut back = vec![0; len];
            prop_assert_eq!(host.memory().copy_out_at(bytes_u64(offset), &mut back), fits);
            prop_assert_eq!(&back[..fits], &part[..fits]);
        }
    }

    #[test]
    fn inside_a_segment_only_its_rest_is_left() {
        let host = Scattered::new(&[10, 0, 20, 30]);
        assert_eq!(host.memory().skip(0).len(), 60);
        assert_eq!(host.memory().skip(10).len(), 50, "at a border, the rest of the vector");
        assert_eq!(host.memory().skip(15).len(), 15, "inside, the rest of the segment");
        assert_eq!(host.memory().skip(15).skip(10).len(), 5);
    }

    /// Otherwise the most common request of all would go the long way.
    #[test]
    fn a_vector_of_one_entry_is_a_single_segment_and_keeps_its_buffer_when_it_is_cut() {
        let host = Scattered::new(&[10]);
        let one = host.memory();
        assert!(one.iovecs().is_none() && one.segments() == 1 && one.len() == 10);
        let rest = one.in_buffer(Some(7)).skip(4);
        assert_eq!((rest.len(), rest.buffer_index()), (6, Some(7)));
        assert_eq!(rest.in_buffer(None).buffer_index(), None);
        let many = Scattered::new(&[10, 10]);
        assert_eq!(many.memory().in_buffer(Some(7)).buffer_index(), None);
        assert_eq!(many.memory().extents().map(|(_, len)| len).collect::<Vec<_>>(), [10, 10]);
    }

    #[test]
    fn one_bad_segment_makes_it_unaligned() {
        let mut buf = AlignedBuf::new(8192, 4096).unwrap();
        let base = buf.as_mut_ptr();
        let at = |offset: usize, len: usize| libc::iovec {
            iov_base: base.wrapping_add(offset).cast(),
            iov_len: len,
        };
        let aligned = |vector: &[libc::iovec], memory, length| {
            // SAFETY: the vector and the buffer live through this test, and only addresses are looked at.
            unsafe { HostMemory::from_iovecs(vector.as_ptr(), vector.len()) }.is_aligned_to(memory, length)
        };
        assert!(aligned(&[at(0, 512), at(512, 4096)], 512, 512));
        assert!(!aligned(&[at(0, 512), at(512, 4096)], 4096, 512));
        assert!(!aligned(&[at(0, 512), at(512, 100)], 4, 512));
        assert!(aligned(&[at(0, 512), at(3, 0)], 512, 512), "an empty segment has no address");
        let owned = GuestBuffer::from(buf);
        assert!(owned.memory().is_aligned_to(4096, 4096));
        assert_eq!(owned.into_aligned().unwrap().len(), 8192);
    }
}
