//! What a host may read of a job's rates and forecasts at any time, as its home saw them last.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::estimate::Estimate;
use super::relief::BudgetLevel;

/// A figure that is not known.
const UNKNOWN: u64 = u64::MAX;

/// Atomics, for any thread reads them.
#[derive(Debug)]
pub struct Figures {
    /// Bytes copied per second.
    copy_rate_bytes_per_s: AtomicU64,
    /// Bytes made dirty per second.
    dirty_rate_bytes_per_s: AtomicU64,
    /// The forecast of a switch-over.
    predicted_pause_ns: AtomicU64,
    /// The part of it that is a flush of the target.
    flush_ns: AtomicU64,
    /// Time until nothing is left.
    eta_ns: AtomicU64,
    /// Switch-overs that were missed.
    missed: AtomicU32,
    /// How much of the latency budget is in force, a [`BudgetLevel`].
    budget_level: AtomicU8,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            copy_rate_bytes_per_s: AtomicU64::new(0),
            dirty_rate_bytes_per_s: AtomicU64::new(0),
            predicted_pause_ns: AtomicU64::new(UNKNOWN),
            flush_ns: AtomicU64::new(UNKNOWN),
            eta_ns: AtomicU64::new(UNKNOWN),
            missed: AtomicU32::new(0),
            budget_level: AtomicU8::new(BudgetLevel::Chosen as u8),
        }
    }
}

/// A time as a word.
pub(super) fn to_ns(time: Option<Duration>) -> u64 {
    time.map_or(UNKNOWN, |t| u64::try_from(t.as_nanos()).unwrap_or(UNKNOWN - 1))
}

/// A word as a time.
pub(super) fn from_ns(word: &AtomicU64) -> Option<Duration> {
    Some(word.load(Ordering::Relaxed)).filter(|&ns| ns != UNKNOWN).map(Duration::from_nanos)
}

impl Figures {
    /// Bytes copied per second now.
    #[must_use]
    pub fn copy_rate_bytes_per_s(&self) -> u64 {
        self.copy_rate_bytes_per_s.load(Ordering::Relaxed)
    }

    /// Bytes that the guest makes dirty per second now.
    #[must_use]
    pub fn dirty_rate_bytes_per_s(&self) -> u64 {
        self.dirty_rate_bytes_per_s.load(Ordering::Relaxed)
    }

    /// How long a switch-over begun now would hold guest requests; `None` = not known.
    #[must_use]
    pub fn predicted_pause(&self) -> Option<Duration> {
        from_ns(&self.predicted_pause_ns)
    }

    /// The part of it that is a flush of the target; `None` = none has ended yet.
    #[must_use]
    pub fn flush(&self) -> Option<Duration> {
        from_ns(&self.flush_ns)
    }

    /// Flushes take so long. Comes before what follows from one: who hears of that and asks must find it known.
    pub(super) fn set_flush(&self, flush_ns: u64) {
        self.flush_ns.store(flush_ns, Ordering::Relaxed);
    }

    /// Time until nothing is left; `None` = not in sight.
    #[must_use]
    pub fn eta(&self) -> Option<Duration> {
        from_ns(&self.eta_ns)
    }

    /// Switch-overs that were missed so far.
    #[must_use]
    pub fn missed(&self) -> u32 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Another was. Comes before the notice of it: who hears of that and asks must find it counted.
    pub(super) fn set_missed(&self, missed: u32) {
        self.missed.store(missed, Ordering::Relaxed);
    }

    /// How much of the latency budget is in force.
    #[must_use]
    pub fn budget_level(&self) -> BudgetLevel {
        BudgetLevel::from_number(self.budget_level.load(Ordering::Relaxed))
    }

    /// It is another one now. Comes before the notice of it, as above.
    pub(super) fn set_budget_level(&self, level: BudgetLevel) {
        self.budget_level.store(level as u8, Ordering::Relaxed);
    }

    /// A job is about to be called ready by this forecast. Who hears of it and asks must not be told an older one that
    /// contradicts it.
    pub(super) fn foresee(&self, predicted_pause_ns: Option<u64>) {
        self.predicted_pause_ns.store(predicted_pause_ns.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// Takes over what the home has worked out.
    pub(super) fn publish(&self, estimate: &Estimate) {
        self.copy_rate_bytes_per_s.store(estimate.copy_rate_bytes_per_s(), Ordering::Relaxed);
        self.dirty_rate_bytes_per_s.store(estimate.dirty_rate_bytes_per_s(), Ordering::Relaxed);
        self.predicted_pause_ns.store(to_ns(estimate.predicted_pause()), Ordering::Relaxed);
        self.eta_ns.store(to_ns(estimate.eta()), Ordering::Relaxed);
        // Until one has ended it is not known.
        if self.flush().is_some() {
            self.set_flush(estimate.slow_flush_ns());
        }
    }
}
