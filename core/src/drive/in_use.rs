//! Which of a drive's memory regions the requests of one queue use: what an unmapper asks, and a queue answers without a lock.
//!
//! One counter for each region. Only the queue's thread writes them, so a request costs a plain load and store; an unmapper on
//! another thread only reads.
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
//! Of the two fences one is first. If it is the queue's, R sees N, and the unmapping is refused. If it is the unmapper's, G sees L:
//! the queue reads the regions again, finds the region leaving, and sends the request without the buffer. So a request that names
//! the buffer and an unmapping that succeeds exclude each other. Once it has succeeded the region is in no list that a later G
//! leads to; another region in the same place of the list is told from it by the number of the list that it came with (`memory`),
//! and a queue empties the kernel's slots before it fills them anew, and both before it sends.
//!
//! The fence is one for all requests of a turn. A request that was accepted *before* the host asks to unmap, on whatever thread, is
//! always seen by R: what orders the two calls orders N before R.
#![forbid(unsafe_code)]

use crate::bitmap::sync::{AtomicU64, Ordering, full_fence};

/// Regions that a drive has at a time, at most.
pub const MAX_REGIONS: usize = if cfg!(loom) { 1 } else { 256 };

/// Regions that a set names one by one.
const NAMED: u64 = 7;

/// The regions that one request uses, by their places in the drive's list: up to seven, or all of them, which stands for more. In
/// one word, for it is made, kept and taken apart with every request: the number of places in the lowest byte, above it the places,
/// a byte each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionSet(u64);

impl RegionSet {
    /// All regions.
    const ALL: Self = Self(u64::MAX);

    /// With the region at this place.
    #[must_use]
    #[inline]
    pub fn with(self, place: u8) -> Self {
        if self == Self::ALL || self.named().any(|named| named == place) {
            return self;
        }
        match self.len() {
            NAMED => Self::ALL,
            len => Self((self.0 + 1) | u64::from(place) << (8 * len + 8)),
        }
    }

    /// Whether there is none.
    #[must_use]
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many places are named.
    #[inline]
    fn len(self) -> u64 {
        self.0 & 0xff
    }

    /// The places that are named.
    #[inline]
    fn named(self) -> impl Iterator<Item = u8> {
        // Each step shifts the next place down; what is taken is its lowest byte.
        (0..self.len().min(NAMED)).scan(self.0, |left, _| {
            *left >>= 8;
            Some(left.to_le_bytes()[0])
        })
    }

    /// Calls `count` with the counter of each region, or with that of all.
    #[inline]
    fn each(self, mut count: impl FnMut(usize)) {
        if self == Self::ALL {
            return count(MAX_REGIONS);
        }
        self.named().for_each(|place| count(usize::from(place)));
    }
}

/// The counters of one queue; see the module. Away from the cache lines of others.
///
/// The last one is for requests that use more regions than a set names, which stand in the way of every unmapping.
#[derive(Debug)]
#[repr(align(128))]
pub struct InUse([AtomicU64; MAX_REGIONS + 1]);

impl Default for InUse {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl InUse {
    /// A request that uses these regions was accepted. The queue's thread only.
    #[inline]
    pub fn begin(&self, regions: RegionSet) {
        regions.each(|at| {
            // The fence of `settle` orders it before the look.
            let count = &self.0[at];
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        });
    }

    /// Stands between [`begin`](Self::begin) of one or more requests and the look whether their regions are still mapped.
    #[inline]
    pub fn settle(&self) {
        full_fence();
    }

    /// It has ended. The queue's thread only.
    #[inline]
    pub fn end(&self, regions: RegionSet) {
        regions.each(|at| {
            let count = &self.0[at];
            debug_assert_ne!(count.load(Ordering::Relaxed), 0, "ended twice");
            // Release: who unmaps after this sees what the request did.
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        });
    }

    /// Nothing of the queue is left that could use any memory. The queue's thread, or who ends it.
    pub fn clear(&self) {
        self.0.iter().for_each(|count| count.store(0, Ordering::Release));
    }

    /// Whether a request uses the region at this place; for an unmapper, after it has published and fenced.
    #[must_use]
    pub fn uses(&self, place: u8) -> bool {
        let is_counted = |at: usize| self.0.get(at).is_some_and(|count| count.load(Ordering::Acquire) > 0);
        is_counted(usize::from(place)) || is_counted(MAX_REGIONS)
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
        let (one, both) = (RegionSet::default().with(3), RegionSet::default().with(3).with(255));
        [one, both, RegionSet::default()].into_iter().for_each(|set| in_use.begin(set));
        assert!(in_use.uses(3) && in_use.uses(255) && !in_use.uses(0) && !in_use.is_idle());
        in_use.end(both);
        assert!(in_use.uses(3) && !in_use.uses(255));
        in_use.end(one);
        assert!(in_use.is_idle() && RegionSet::default().is_empty() && !both.is_empty());
        in_use.begin(both);
        in_use.clear();
        assert!(in_use.is_idle());
    }

    #[test]
    fn a_set_names_up_to_seven_places_once_each_and_stands_for_all_with_more() {
        let places = |set: RegionSet| {
            let mut places = Vec::new();
            set.each(|at| places.push(at));
            places
        };
        let mut set = RegionSet::default();
        for (number, place) in [255, 0, 7, 64, 128, 1, 254].into_iter().enumerate() {
            set = set.with(place).with(place).with(255);
            assert_eq!((places(set).len(), places(set)[number]), (number + 1, usize::from(place)));
        }
        assert_eq!(places(set), [255, 0, 7, 64, 128, 1, 254]);
        assert_eq!(set.with(128), set);
        assert_eq!(places(set.with(9)), [MAX_REGIONS]);
        assert_eq!(set.with(9).with(10), set.with(9));
    }

    /// One that was not counted for every region could be carried out in memory that was unmapped.
    #[test]
    fn a_request_in_more_regions_than_a_set_names_uses_each_of_them() {
        let in_use = InUse::default();
        let many = (0..9).fold(RegionSet::default(), |set, n| set.with(n * 20));
        in_use.begin(many);
        assert!((0..9).all(|n| in_use.uses(n * 20)) && in_use.uses(255) && !in_use.is_idle());
        in_use.end(many);
        assert!(in_use.is_idle() && !in_use.uses(0));
    }
}
