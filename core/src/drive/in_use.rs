//! Which of a drive's memory regions the requests of one queue use: what an unmapper asks, and a queue answers without a lock.
//!
//! One counter for each region. Only the queue's thread writes them, so a request costs a plain load and store; an unmapper on another
//! thread only reads.
//!
//! # A request against an unmapping
//!
//! A request may be sent through a registered buffer only if no unmapping of its region can succeed before it has ended. Queue and
//! unmapper meet like two that each raise a flag and then look at the other's (Dekker):
//!
//! ```text
//! queue:     N  count the request       unmapper:  L  publish the region as leaving (the drive's generation changes)
//!            F  full fence                         F  full fence
//!            G  read the generation                R  read the counters
//! ```
//!
//! Of the two fences one is first. If it is the queue's, R sees N, and the unmapping is refused. If it is the unmapper's, G sees L: the
//! queue reads the regions again, finds the region leaving, and sends the request without the buffer. So a request that names the
//! buffer and an unmapping that succeeds exclude each other. Once it has succeeded the region is in no list that a later G leads to;
//! another region in the same place of the list is told from it by the number of the list that it came with (`memory`), and a queue
//! empties the kernel's slots before it fills them anew, and both before it sends.
//!
//! The fence is one for all requests of a turn. A request that was accepted *before* the host asks to unmap, on whatever thread, is
//! always seen by R: what orders the two calls orders N before R.
#![forbid(unsafe_code)]

use crate::bitmap::sync::{AtomicU64, Ordering, full_fence};

/// Regions that a drive has at a time, at most.
pub const MAX_REGIONS: usize = if cfg!(loom) { 1 } else { 32 };

/// Some of a drive's regions, by their places in its list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionSet(u32);

impl RegionSet {
    /// With the region at this place.
    #[must_use]
    pub const fn with(self, place: u8) -> Self {
        Self(self.0 | 1 << (place as u32 % u32::BITS))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their places.
    fn places(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let place = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (place < u32::BITS).then_some(place as usize)
        })
    }
}

/// The counters of one queue; see the module. Away from the cache lines of others.
#[derive(Debug)]
#[repr(align(128))]
pub struct InUse([AtomicU64; MAX_REGIONS]);

impl Default for InUse {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl InUse {
    /// A request that uses these regions was accepted. The queue's thread only.
    #[inline]
    pub fn begin(&self, regions: RegionSet) {
        for place in regions.places() {
            // The fence of `settle` orders it before the look.
            let count = &self.0[place];
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Stands between [`begin`](Self::begin) of one or more requests and the look whether their regions are still mapped.
    #[inline]
    pub fn settle(&self) {
        full_fence();
    }

    /// It has ended. The queue's thread only.
    #[inline]
    pub fn end(&self, regions: RegionSet) {
        for place in regions.places() {
            let count = &self.0[place];
            debug_assert_ne!(count.load(Ordering::Relaxed), 0, "ended twice");
            // Release: who unmaps after this sees what the request did.
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        }
    }

    /// Nothing of the queue is left that could use any memory. The queue's thread, or who ends it.
    pub fn clear(&self) {
        self.0.iter().for_each(|count| count.store(0, Ordering::Release));
    }

    /// Whether a request uses the region at this place; for an unmapper, after it has published and fenced.
    #[must_use]
    pub fn uses(&self, place: u8) -> bool {
        self.0.get(usize::from(place)).is_some_and(|count| count.load(Ordering::Acquire) > 0)
    }

    /// Whether a request uses any region.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.iter().all(|count| count.load(Ordering::Acquire) == 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_in_use_until_the_last_request_on_it_has_ended() {
        let in_use = InUse::default();
        let (one, both) = (RegionSet::default().with(3), RegionSet::default().with(3).with(31));
        [one, both, RegionSet::default()].into_iter().for_each(|set| in_use.begin(set));
        assert!(in_use.uses(3) && in_use.uses(31) && !in_use.uses(0) && !in_use.is_idle());
        in_use.end(both);
        assert!(in_use.uses(3) && !in_use.uses(31));
        in_use.end(one);
        assert!(in_use.is_idle() && RegionSet::default().is_empty() && !both.is_empty());
        in_use.begin(both);
        in_use.clear();
        assert!(in_use.is_idle());
    }
}
