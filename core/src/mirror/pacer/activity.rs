//! Whether the guest is at work, and whether its load is another than before.
#![forbid(unsafe_code)]

use crate::mirror::estimate::{to_f64, to_u64};

/// A busy guest is idle when it sent nothing for so long.
const IDLE_NS: u64 = 20_000_000;
/// A guest with few requests is idle after so many times its mean gap: one gap in 20 000 is longer by chance.
const IDLE_GAPS: f64 = 10.0;
/// But not later than this; what comes after a longer gap says nothing about how often requests come.
const IDLE_MAX_NS: u64 = 500_000_000;
/// Requests that the mean gap is taken over.
const GAP_REQUESTS: f64 = 32.0;

/// Follows when requests came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Activity {
    /// When a request was last seen, or the first tick.
    seen_ns: Option<u64>,
    /// When the guest was last seen waiting for a request.
    waited_ns: Option<u64>,
    /// Mean time between requests, over the last few.
    gap_ns: f64,
    /// Requests that `gap_ns` is made of.
    known: f64,
}

impl Activity {
    /// Takes in the requests that ended in a tick, and whether the guest waits for others now.
    pub(super) fn note(&mut self, now_ns: u64, requests: u64, waits: bool) {
        let seen_ns = *self.seen_ns.get_or_insert(now_ns);
        if requests == 0 {
            // A guest that waits for us is anything but idle. (The time counts for the next gap, or there is none.)
            self.waited_ns = if waits { Some(now_ns) } else { self.waited_ns };
            return;
        }
        let passed_ns = now_ns.saturating_sub(seen_ns);
        self.seen_ns = Some(now_ns);
        if passed_ns < IDLE_MAX_NS {
            let n = to_f64(requests);
            self.known = (self.known + n).min(GAP_REQUESTS);
            self.gap_ns += (to_f64(passed_ns) / n - self.gap_ns) * (n / self.known).min(1.0);
        }
    }

    /// Whether the guest is idle.
    pub(super) fn is_idle(&self, now_ns: u64) -> bool {
        let hold_ns = to_u64(self.gap_ns * IDLE_GAPS).clamp(IDLE_NS, IDLE_MAX_NS);
        self.seen_ns.max(self.waited_ns).is_some_and(|seen| now_ns.saturating_sub(seen) >= hold_ns)
    }
}

/// A rate is taken over at least this time,
const WINDOW_NS: u64 = 200_000_000;
/// and so many requests,
const WINDOW_REQUESTS: u64 = 300;
/// but not over more time than this.
const WINDOW_MAX_NS: u64 = 5_000_000_000;
/// A load that differs by this factor is another one.
const OTHER: f64 = 1.4;

/// Compares the guest's request rate with that at the last probe.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// When the window began; `None` = with the next tick.
    since_ns: Option<u64>,
    /// Requests in the window.
    requests: u64,
    /// Requests per second that the baseline belongs to; `None` = the next window tells.
    known: Option<f64>,
}

impl Load {
    /// The window begins anew: what was counted is not of one piece.
    pub(super) fn interrupt(&mut self) {
        self.since_ns = None;
    }

    /// So much time was not counted in the window.
    pub(super) fn skip(&mut self, ns: u64) {
        self.since_ns = self.since_ns.map(|since_ns| since_ns.saturating_add(ns));
    }

    /// The baseline was measured: the load of the next window is the one it belongs to.
    pub(super) fn measured(&mut self) {
        *self = Self::default();
    }

    /// Counts a tick's requests; whether the load is another than when the baseline was measured.
    pub(super) fn changed(&mut self, now_ns: u64, requests: u64) -> bool {
        let Some(since_ns) = self.since_ns else {
            (self.since_ns, self.requests) = (Some(now_ns), 0);
            return false;
        };
        self.requests += requests;
        let age_ns = now_ns.saturating_sub(since_ns);
        if age_ns < WINDOW_NS || (self.requests < WINDOW_REQUESTS && age_ns < WINDOW_MAX_NS) {
            return false;
        }
        let rate = to_f64(self.requests.max(1)) / to_f64(age_ns) * 1e9;
        self.since_ns = None;
        let known = *self.known.get_or_insert(rate);
        rate > known * OTHER || rate < known / OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks of 10 ms with these requests; how many ticks after the last request it counts as idle.
    fn idle_after(ticks: impl Iterator<Item = u64>) -> u64 {
        let (mut activity, mut now_ns) = (Activity::default(), 0);
        for requests in ticks {
            now_ns += 10_000_000;
            activity.note(now_ns, requests, false);
        }
        (1..100).find(|n| activity.is_idle(now_ns + n * 10_000_000)).unwrap()
    }

    #[test]
    fn a_busy_guest_is_idle_after_20_ms_and_a_sparse_one_after_ten_gaps() {
        assert_eq!(idle_after([0, 0, 300, 300, 300].into_iter()), 2);
        assert_eq!(idle_after((0..100).map(|n| u64::from(n % 2 == 1))), 20);
        assert_eq!(idle_after((0..1000).map(|n| u64::from(n % 40 == 39))), 50, "at most half a second");
        // Bursts are busy, whatever lies between them.
        assert_eq!(idle_after((0..1000).map(|n| if n % 20 < 10 { 0 } else { 300 })), 2);
        assert_eq!(idle_after([0].into_iter()), 2, "without any request");
    }

    #[test]
    fn another_load_is_noticed_and_noise_is_not() {
        let mut load = Load::default();
        let mut run = |ms: u64, n: u64, from: u64| {
            (0..ms / 10).filter(|t| load.changed((from + t * 10) * 1_000_000, n + t % 3)).count()
        };
        assert_eq!(run(3000, 10, 0), 0);
        assert!(run(500, 20, 3000) > 0);
        load.measured();
        let mut run = |ms: u64, n: u64, from: u64| {
            (0..ms / 10).filter(|t| load.changed((from + t * 10) * 1_000_000, n)).count()
        };
        assert_eq!(run(3000, 20, 4000), 0);
        assert!(run(5200, 0, 7000) > 0);
    }
}
