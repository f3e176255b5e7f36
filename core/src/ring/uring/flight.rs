//! The table of requests in flight: which tag and which bytes of the copy memory belong to the key in the kernel.
//!
//! A fixed slab, so nothing is allocated per request, and a completion with a key that is not in flight is recognised
//! instead of being taken for another request's.
#![forbid(unsafe_code)]

use crate::buffer::BufRange;
use crate::ring::Tag;

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
enum Flight {
    /// Not in use; the next free entry, or `u32::MAX`.
    Free(u32),
    /// In flight, with what of our memory it holds.
    Busy(Tag, Held),
}

/// What memory a request uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// None; such a request is with a lane and not in the kernel's hands.
    Nothing,
    /// A range of the copy memory.
    Copy(BufRange),
    /// The host's.
    Host,
}

/// The table.
#[derive(Debug)]
pub(super) struct Flights {
    /// Entries by key.
    table: Box<[Flight]>,
    /// First free entry, or `u32::MAX`.
    free: u32,
    /// Entries in use.
    len: usize,
    /// Entries in use that hold memory.
    with_memory: usize,
    /// One past the highest key ever used; the free list is a stack, so this stays near the deepest queue.
    high: u32,
}

impl Flights {
    /// A table for `capacity` requests.
    pub(super) fn new(capacity: u32) -> Self {
        let table =
            (1..=capacity).map(|next| Flight::Free(if next == capacity { u32::MAX } else { next })).collect();
        Self { table, free: if capacity == 0 { u32::MAX } else { 0 }, len: 0, with_memory: 0, high: 0 }
    }

    /// Enters a request; `None` when the table is full.
    pub(super) fn start(&mut self, tag: Tag, held: Held) -> Option<u32> {
        let key = self.free;
        let entry = self.table.get_mut(key as usize)?;
        let Flight::Free(next) = *entry else { return None };
        *entry = Flight::Busy(tag, held);
        self.free = next;
        self.high = self.high.max(key + 1);
        self.len += 1;
        self.with_memory += usize::from(held != Held::Nothing);
        Some(key)
    }

    /// Takes a request out; `None` when that key is not in flight.
    pub(super) fn finish(&mut self, key: u32) -> Option<Tag> {
        let entry = self.table.get_mut(key as usize)?;
        let Flight::Busy(tag, held) = *entry else { return None };
        *entry = Flight::Free(self.free);
        self.free = key;
        self.len -= 1;
        self.with_memory -= usize::from(held != Held::Nothing);
        Some(tag)
    }

    /// How many there may be.
    pub(super) fn capacity(&self) -> usize {
        self.table.len()
    }

    /// Requests in flight.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Requests whose memory the kernel may touch.
    pub(super) fn in_kernel(&self) -> usize {
        self.with_memory
    }

    /// Whether a request in flight uses a byte of `range` of the copy memory.
    pub(super) fn uses(&self, range: BufRange) -> bool {
        self.with_memory > 0
            && self
                .table
                .iter()
                .take(self.high as usize)
                .any(|f| matches!(f, Flight::Busy(_, Held::Copy(buf)) if buf.overlaps(range)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_once_and_only_with_its_tag() {
        let mut f = Flights::new(2);
        let a = f.start(Tag(10), Held::Nothing).unwrap();
        let b = f.start(Tag(11), Held::Copy(BufRange { start: 0, len: 4096 })).unwrap();
        assert_eq!(f.start(Tag(12), Held::Host), None);
        assert!(f.uses(BufRange { start: 4095, len: 1 }));
        assert_eq!(f.finish(b), Some(Tag(11)));
        assert_eq!(f.finish(b), None, "a second completion of one request is no request's");
        assert!(!f.uses(BufRange { start: 0, len: 1 }));
        assert_eq!(f.finish(77), None);
        assert_eq!(f.finish(a), Some(Tag(10)));
        assert_eq!(f.len(), 0);
    }
}
