//! How long a guest's requests take: a histogram that many threads fill without a lock.
//!
//! Buckets are a fixed share of the value wide (log-linear): 32 in each power of two, so that a value told by the
//! middle of its bucket is off by less than 2 % from 1 us up. Longer than 100 s counts as 100 s. Each thread adds to
//! the shard that is its own most of the time; who wants to know adds the shards up.
//!
//! A snapshot while others record is no instant: each count is one that was true during the call, and nothing is
//! counted twice or lost. Counts only grow, so two snapshots can be subtracted ([`LatencyCounts::since`]).
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::per_thread;
use crate::error::{Error, ErrorKind, Result};

/// Values are counted in units of 2 to this power of nanoseconds.
const UNIT_SHIFT: u32 = 5;
/// A power of two is cut into 2 to this power of buckets.
const PART_SHIFT: u32 = 5;
/// Buckets in a power of two.
const PARTS: u64 = 1 << PART_SHIFT;
/// The longest time that is told apart: 100 s.
pub const LONGEST_NS: u64 = 100_000_000_000;
/// How many buckets there are.
const BUCKETS: usize = bucket_of(LONGEST_NS) + 1;
/// Shards; a power of two.
const SHARDS: usize = 8;

/// The bucket that `ns` belongs to.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a bucket's number is below 1000, and this runs at compile time too"
)]
const fn bucket_of(ns: u64) -> usize {
    let units = (if ns < LONGEST_NS { ns } else { LONGEST_NS }) >> UNIT_SHIFT;
    if units < PARTS {
        return units as usize;
    }
    let shift = units.ilog2() - PART_SHIFT;
    // Counted from one power of two to the next, the buckets follow each other without a gap.
    (shift as u64 * PARTS + (units >> shift)) as usize
}

/// The middle of a bucket, in nanoseconds.
const fn middle_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return (bucket << UNIT_SHIFT) + (1 << (UNIT_SHIFT - 1));
    }
    let shift = bucket / PARTS - 1;
    let first = (bucket - shift * PARTS) << shift;
    ((first << 1) + (1 << shift)) << (UNIT_SHIFT - 1)
}

/// The counters of some threads, on cache lines of their own.
#[repr(align(128))]
struct Shard([AtomicU64; BUCKETS]);

/// A histogram of latencies that threads fill together; see the module. Clones are the same histogram.
#[derive(Clone)]
pub struct Latencies {
    /// The counters.
    shards: Arc<[Shard]>,
}

impl Default for Latencies {
    fn default() -> Self {
        let empty = |_| Shard([const { AtomicU64::new(0) }; BUCKETS]);
        Self { shards: (0..SHARDS).map(empty).collect() }
    }
}

impl std::fmt::Debug for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Latencies {
    /// Counts one request that took `ns`.
    #[inline]
    pub fn record(&self, ns: u64) {
        // Relaxed: a count on its own, nothing is published with it.
        self.shards[per_thread::shard(SHARDS)].0[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> LatencyCounts {
        let mut counts = LatencyCounts::default();
        self.snapshot_into(&mut counts);
        counts
    }

    /// The same without allocating.
    pub fn snapshot_into(&self, counts: &mut LatencyCounts) {
        for (bucket, count) in counts.buckets.iter_mut().enumerate() {
            *count = self.shards.iter().map(|shard| shard.0[bucket].load(Ordering::Relaxed)).sum();
        }
    }
}

/// Latencies that were counted, as plain numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct LatencyCounts {
    /// How many were in each bucket.
    buckets: Box<[u64]>,
}

impl Default for LatencyCounts {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS].into_boxed_slice() }
    }
}

impl std::fmt::Debug for LatencyCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LatencyCounts")
            .field("count", &self.count())
            .field("p50_ns", &self.quantile_ns(0.5))
            .field("p99_ns", &self.quantile_ns(0.99))
            .finish_non_exhaustive()
    }
}

/// What a share of the requests did not exceed, in nanoseconds, each within 3 % from 1 us to 100 s; 0 when nothing was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Percentiles {
    /// Half of them.
    pub p50_ns: u64,
    /// 90 of 100.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p99_9_ns: u64,
    /// 9999 of 10,000; with fewer requests than that it is the longest.
    pub p99_99_ns: u64,
}

impl LatencyCounts {
    /// The usual percentiles; [`Self::quantile_ns`] has any other.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            p50_ns: self.quantile_ns(0.5),
            p90_ns: self.quantile_ns(0.9),
            p99_ns: self.quantile_ns(0.99),
            p99_9_ns: self.quantile_ns(0.999),
            p99_99_ns: self.quantile_ns(0.9999),
        }
    }

    /// What was counted after `earlier`, an older snapshot of the same latencies.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(now, then): (&u64, &u64)| now.saturating_sub(*then);
        Self { buckets: self.buckets.iter().zip(&earlier.buckets).map(difference).collect() }
    }

    /// Gives `f` each latency and how often it was counted after `earlier`, without allocating.
    pub(crate) fn for_each_since(&self, earlier: &Self, mut f: impl FnMut(u64, u64)) {
        for (bucket, (now, then)) in self.buckets.iter().zip(&earlier.buckets).enumerate() {
            if now > then {
                f(middle_ns(bucket).min(LONGEST_NS), now - then);
            }
        }
    }

    /// How many requests were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The time that a share `q` (0 to 1) of the requests did not exceed, within 3 % from 1 us to 100 s; 0 when
    /// nothing was counted.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count; the cast of a float saturates, and the clamp keeps it among the requests"
    )]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let count = self.count();
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0;
        for (bucket, &here) in self.buckets.iter().enumerate() {
            below += here;
            if below >= rank {
                return middle_ns(bucket).min(LONGEST_NS);
            }
        }
        0
    }

    /// The same as a histogram of the crate `hdrhistogram`, in nanoseconds.
    ///
    /// # Errors
    /// None is known; a refusal of that crate is passed on as [`ErrorKind::Internal`].
    pub fn to_histogram(&self) -> Result<Histogram<u64>> {
        let refused = |why: String| Error::new(ErrorKind::Internal, "make a histogram").because(why);
        let mut histogram =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(|e| refused(e.to_string()))?;
        for (bucket, &count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let ns = middle_ns(bucket).min(LONGEST_NS);
            histogram.record_n(ns, count).map_err(|e| refused(e.to_string()))?;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares of small counts")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of the same rank in a list.
    fn exact(sorted: &[u64], q: f64) -> u64 {
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    /// Within 3 %.
    fn is_close(told: u64, exact: u64) -> bool {
        told.abs_diff(exact) as f64 <= exact as f64 * 0.03
    }

    #[test]
    fn buckets_follow_each_other_and_hold_their_middle() {
        for ns in (0..200_000).chain((0..2_000_000).map(|i| i * 50_000)) {
            let bucket = bucket_of(ns);
            assert!([bucket, bucket + 1].contains(&bucket_of(ns + 1)), "{ns}");
            assert!(ns < 1000 || is_close(middle_ns(bucket), ns), "{ns}: {}", middle_ns(bucket));
        }
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(middle_ns(bucket)), bucket);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_three_percent(
            values in prop::collection::vec((0..27_u32, 0.0..1.0_f64), 1..400),
            q in 0.0..=1.0_f64,
        ) {
            let latencies = Latencies::default();
            let ns = |&(power, part): &(u32, f64)| {
                let octave = (1000_u64 << power) as f64;
                ((octave * (1.0 + part)) as u64).min(LONGEST_NS)
            };
            let mut values: Vec<u64> = values.iter().map(ns).collect();
            values.iter().for_each(|&ns| latencies.record(ns));
            values.sort_unstable();
            let counts = latencies.snapshot();
            let histogram = counts.to_histogram().unwrap();
            for q in [q, 0.0, 0.5, 0.99, 0.9999, 1.0] {
                let told = counts.quantile_ns(q);
                prop_assert!(is_close(told, exact(&values, q)), "{q}: {told} for {}", exact(&values, q));
                prop_assert!(is_close(histogram.value_at_quantile(q), told));
            }
            let p = counts.percentiles();
            let told = [p.p50_ns, p.p90_ns, p.p99_ns, p.p99_9_ns, p.p99_99_ns];
            for (told, q) in told.into_iter().zip([0.5, 0.9, 0.99, 0.999, 0.9999]) {
                prop_assert!(is_close(told, exact(&values, q)), "{q}: {told}");
            }
            prop_assert_eq!(counts.count(), values.len() as u64);
            prop_assert_eq!(histogram.len(), values.len() as u64);
        }

        #[test]
        fn snapshots_subtract(
            first in prop::collection::vec(any::<u64>(), 0..100),
            second in prop::collection::vec(any::<u64>(), 0..100),
        ) {
            let (all, only_second) = (Latencies::default(), Latencies::default());
            first.iter().for_each(|&ns| all.record(ns));
            let before = all.snapshot();
            second.iter().for_each(|&ns| { all.record(ns); only_second.record(ns); });
            let mut after = before.clone();
            all.snapshot_into(&mut after);
            prop_assert_eq!(after.since(&before), only_second.snapshot());
        }
    }

    #[test]
    fn nothing_counted_has_no_quantile() {
        let counts = LatencyCounts::default();
        assert_eq!((counts.count(), counts.quantile_ns(0.99)), (0, 0));
        assert!(counts.to_histogram().unwrap().is_empty());
    }
}
