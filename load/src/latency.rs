//! What a load saw in a span of time.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use blkmirror_core::{Error, ErrorKind, Result};
use hdrhistogram::Histogram;

/// The longest latency that is told from longer ones: 100 s.
const MAX_NS: u64 = 100_000_000_000;

/// An empty histogram of nanoseconds, exact to three digits.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MAX_NS, 3)
        .map_err(|e| Error::new(ErrorKind::Internal, "make a histogram").because(e.to_string()))
}

/// What a load saw in a span of time.
#[derive(Clone, Debug)]
pub struct Period {
    /// How long it was.
    pub time: Duration,
    /// Latencies of writes (and of writes of zeroes), in nanoseconds: from the intended time to when the writer learnt of
    /// the completion.
    pub writes: Histogram<u64>,
    /// Latencies of reads, in nanoseconds.
    pub reads: Histogram<u64>,
    /// How long after its intended time each request was sent, in nanoseconds: because the thread woke up late, or because
    /// the depth was used up.
    pub lateness: Histogram<u64>,
    /// Bytes of acknowledged writes.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
}

impl Period {
    /// Nothing seen.
    ///
    /// # Errors
    /// Never, with the bounds that the histograms have.
    pub fn new() -> Result<Self> {
        Ok(Self {
            time: Duration::ZERO,
            writes: histogram()?,
            reads: histogram()?,
            lateness: histogram()?,
            written_bytes: 0,
            errors: 0,
            first_error: None,
        })
    }

    /// Adds what somebody else saw in the same time.
    pub fn add(&mut self, other: &Self) {
        self.time = self.time.max(other.time);
        for (mine, theirs) in [
            (&mut self.writes, &other.writes),
            (&mut self.reads, &other.reads),
            (&mut self.lateness, &other.lateness),
        ] {
            // It fails only for histograms with other bounds, and all of ours have the same.
            let _ = mine.add(theirs);
        }
        self.written_bytes += other.written_bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }

    /// Writes that were acknowledged, per second.
    #[must_use]
    pub fn writes_per_s(&self) -> f64 {
        per_second(self.writes.len(), self.time)
    }

    /// Bytes of acknowledged writes per second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        per_second(self.written_bytes, self.time)
    }

    /// The latencies of writes in short.
    #[must_use]
    pub fn latency(&self) -> Latency {
        Latency::of(&self.writes)
    }
}

/// A count per second; 0 for no time at all.
#[allow(clippy::cast_precision_loss)]
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// Latencies in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Latency {
    /// How many there are.
    pub count: u64,
    /// Half of them are at most this.
    pub p50: Duration,
    /// 99 of 100 are at most this.
    pub p99: Duration,
    /// 999 of 1000 are at most this.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latency {
    /// The short form of a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(histogram.max()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}", self.p50, self.p99, self.p999, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A period that kept what another one counted would count it twice.
    #[test]
    fn what_was_taken_is_counted_once() {
        let mut period = Period::new().unwrap();
        for latency_us in 1..=1000u64 {
            period.writes.saturating_record(latency_us * 1000);
            period.written_bytes += 4096;
        }
        let mut taken = std::mem::replace(&mut period, Period::new().unwrap());
        assert_eq!((taken.writes.len(), period.writes.len(), period.written_bytes), (1000, 0, 0));
        taken.add(&std::mem::replace(&mut period, Period::new().unwrap()));
        taken.time = Duration::from_secs(2);
        let latency = taken.latency();
        assert!(latency.p99.as_micros().abs_diff(990) <= 1, "{latency}");
        assert!((taken.writes_per_s() - 500.0).abs() < 1e-9);
        // A disk that hung for an hour is not forgotten.
        taken.writes.saturating_record(u64::MAX);
        assert!(taken.latency().max >= Duration::from_secs(99));
    }
}
