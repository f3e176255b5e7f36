//! The guest's latencies as a small histogram that can be copied and added up.
//!
//! A p99 says nothing when it comes from 50 requests, so the pacer is given counts. Sixteen buckets to the octave are
//! 6 % each; inside a bucket requests count as evenly spread, which makes both limits and quantiles finer than that.
#![forbid(unsafe_code)]

use crate::mirror::estimate::{to_f64, to_u64};

/// log2 of the shortest latency told apart: 1 us.
const FIRST_SHIFT: u32 = 10;
/// log2 of the buckets in an octave.
const SUB_SHIFT: u32 = 4;
/// Buckets in an octave.
const SUBS: u64 = 1 << SUB_SHIFT;
/// 1 us to 17 s.
const OCTAVES: u64 = 24;
/// All buckets.
const BUCKETS: usize = 384;
const _: () = assert!(BUCKETS as u64 == OCTAVES * SUBS);

/// How long guest requests took that ended within some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLatency {
    /// Requests in each bucket.
    buckets: [u32; BUCKETS],
    /// Requests in all buckets.
    count: u64,
}

impl Default for GuestLatency {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestLatency {
    /// No request.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }

    /// Adds `requests` that took `latency_ns` each.
    pub fn record(&mut self, latency_ns: u64, requests: u32) {
        let bucket = &mut self.buckets[bucket_of(latency_ns)];
        *bucket = bucket.saturating_add(requests);
        self.count += u64::from(requests);
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.saturating_add(more);
        }
        self.count += other.count;
    }

    /// Makes what was counted weigh half.
    pub(super) fn halve(&mut self) {
        // What is left over goes to the next bucket: the tail is made of buckets with a single request.
        let mut over = 0;
        for bucket in &mut self.buckets {
            let n = *bucket;
            *bucket = n / 2 + (n % 2 + over) / 2;
            over = (n % 2 + over) % 2;
        }
        self.count = self.buckets.iter().map(|&n| u64::from(n)).sum();
    }

    /// How many requests.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// About how many took longer than `limit_ns`.
    #[must_use]
    pub fn over(&self, limit_ns: u64) -> f64 {
        let at = bucket_of(limit_ns);
        let (low, high) = (edge(at), edge(at + 1));
        let share = (high - to_f64(limit_ns)).clamp(0.0, high - low) / (high - low);
        let above: u64 = self.buckets[at + 1..].iter().map(|&n| u64::from(n)).sum();
        to_f64(above) + share * f64::from(self.buckets[at])
    }

    /// The latency that a share of `q` of the requests did not exceed; 0 if there was no request.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let mut before = 0.0;
        let rank = q * to_f64(self.count);
        for (at, &n) in self.buckets.iter().enumerate().filter(|&(_, &n)| n > 0) {
            let n = f64::from(n);
            if before + n >= rank {
                return to_u64(edge(at) + (edge(at + 1) - edge(at)) * ((rank - before) / n).clamp(0.0, 1.0));
            }
            before += n;
        }
        0
    }
}

/// The bucket that a latency falls into.
fn bucket_of(ns: u64) -> usize {
    let ns = ns.max(1 << FIRST_SHIFT);
    let octave = ns.ilog2();
    let sub = (ns >> (octave - SUB_SHIFT)) & (SUBS - 1);
    let at = u64::from(octave - FIRST_SHIFT) * SUBS + sub;
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Where a bucket begins, in nanoseconds.
fn edge(bucket: usize) -> f64 {
    let (octave, sub) = (bucket as u64 / SUBS, bucket as u64 % SUBS);
    to_f64(((SUBS + sub) << octave) << (FIRST_SHIFT - SUB_SHIFT))
}

/// So many requests between `from_us` and twice that.
#[cfg(test)]
pub(super) fn spread(from_us: u64, requests: u64) -> GuestLatency {
    let mut latency = GuestLatency::new();
    (0..requests).for_each(|n| latency.record(from_us * (1000 + 1000 * n / requests), 1));
    latency
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_between_the_edges_of_its_bucket() {
        let mut ns = 1 << FIRST_SHIFT;
        while ns < 1 << (FIRST_SHIFT + 24) {
            for ns in [ns - 1, ns, ns + 1].map(|ns: u64| ns.max(1 << FIRST_SHIFT)) {
                let at = bucket_of(ns);
                assert!(edge(at) <= to_f64(ns) && to_f64(ns) < edge(at + 1), "{ns}");
                assert!(edge(at + 1) / edge(at) < 1.07);
            }
            ns += ns / 50;
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn quantiles_and_overruns_agree() {
        let mut l = GuestLatency::new();
        (0..10_000).for_each(|n| l.record(50_000 + n * 100, 1));
        for q in [0.1, 0.5, 0.9, 0.99, 0.999] {
            let (ns, want) = (l.quantile_ns(q), 50_000.0 + q * 1_000_000.0);
            assert!((to_f64(ns) - want).abs() < want * 0.02, "{q}: {ns}");
            assert!((l.over(ns) - 10_000.0 * (1.0 - q)).abs() < 2.0);
        }
        let mut twice = l;
        twice.add(&l);
        assert_eq!((twice.count(), twice.quantile_ns(0.5)), (20_000, l.quantile_ns(0.5)));
        twice.halve();
        assert_eq!(twice, l);
        assert_eq!(GuestLatency::new().quantile_ns(0.99), 0);
    }
}
