//! What counts of requests over the limit prove about the share of such requests.
//!
//! The p99 is inside the budget when at most one request in a hundred takes longer. How many of `n` did is a number with
//! noise of its own; the question is whether it could be chance. Waiting times come in runs (one long queue delays many
//! requests), so a strong proof is asked for when it must be quick, and a plain count does after a second. A machine stalls
//! now and then for some milliseconds, copies or not: no single tick decides, and none counts for more than a part. Where it
//! does so all the time, there is a reckoning of its own (`finding_in_noise`).
#![forbid(unsafe_code)]

use crate::mirror::estimate::to_f64;

/// The share of requests that may take longer than the limit, if the guest alone has none.
pub(super) const SHARE: f64 = 0.01;
/// Sigmas that a quick decision to slow down asks for.
const QUICK_SIGMAS: f64 = 3.0;
/// The most of a tick's requests that count as over the limit, where a stall must not outweigh seconds of calm.
const TICK_SHARE: f64 = 0.05;
/// Sigmas that a decision to speed up asks for, 200 requests without one over the limit.
const ROOM_SIGMAS: f64 = 1.2;
/// To speed up, no more than this part of the allowed share may be used up.
const ROOM: f64 = 0.6;
/// No faster pace before this time, because the queue in front of the disk needs time to show.
const ROOM_NS: u64 = 60_000_000;
/// After this time, and so many requests, the plain count decides.
const PLAIN_NS: u64 = 1_000_000_000;
/// Requests for that.
const PLAIN_COUNT: f64 = 2000.0;
/// Next to none.
const FAR_SHARE: f64 = 0.001;
/// Requests needed to say so.
const FAR_COUNT: f64 = 1000.0;
/// In noise nothing is decided before this time,
const NOISE_NS: u64 = 150_000_000;
/// nor of fewer ticks than these.
const NOISE_TICKS: f64 = 5.0;
/// A tick with a larger share over the limit is in a burst.
const BURST_SHARE: f64 = 0.15;
/// What lasts longer than so many ticks is no stall.
const BURST_TICKS: u32 = 6;
/// Sigmas, of bursts, that slowing down asks for in noise.
const NOISE_SIGMAS: f64 = 2.0;
/// Sigmas that speeding up asks for in noise,
const NOISE_ROOM_SIGMAS: f64 = 0.7;
/// but after this time that nothing speaks against it: no pace that is tried in noise does harm to most guests.
const NOISE_PLAIN_NS: u64 = 500_000_000;
/// When more were counted than this, the old ones weigh half.
const FORGET_COUNT: f64 = 100_000.0;

/// What is proved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finding {
    /// Nothing yet.
    Unclear,
    /// The budget is exceeded; so large a share of the requests is over the limit.
    TooMuch(f64),
    /// A faster pace may be tried.
    Room,
}

/// Requests counted under one pace and one limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    /// When counting began.
    since_ns: u64,
    /// Requests.
    requests: f64,
    /// How many were over the limit, but of each tick no more than [`TICK_SHARE`].
    over: f64,
    /// How many were over the limit, all of them.
    all_over: f64,
    /// The tick with the most over the limit: its requests, and how many were over.
    worst: (f64, f64),
    /// Ticks with requests; those that one burst is in count as one.
    ticks: f64,
    /// The squares of what was over the limit in each.
    squares: f64,
    /// The burst that the last tick was in: ticks, and what was over the limit; no ticks = it was in none.
    burst: (u32, f64),
}

impl Evidence {
    /// Begins to count.
    pub(super) fn since(now_ns: u64) -> Self {
        Self { since_ns: now_ns, ..Self::default() }
    }

    /// Counts a tick's requests.
    pub(super) fn count(&mut self, requests: u64, over: f64) {
        if self.requests > FORGET_COUNT {
            for count in
                [&mut self.requests, &mut self.over, &mut self.all_over, &mut self.ticks, &mut self.squares]
            {
                *count /= 2.0;
            }
            self.worst = (0.0, 0.0);
            self.burst = (0, 0.0);
        }
        if requests == 0 {
            return;
        }
        let requests = to_f64(requests);
        self.requests += requests;
        self.count_burst(requests, over);
        // Of a few requests one is more than that part, and has to count all the same.
        self.over += over.min((TICK_SHARE * requests).max(1.0));
        self.all_over += over;
        if over >= self.worst.1 {
            self.worst = (requests, over);
        }
    }

    /// How long it has been counting.
    pub(super) fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }

    /// Whether next to no request was over the limit, and that of many.
    pub(super) fn is_far_below(&self) -> bool {
        self.requests >= FAR_COUNT && self.over <= FAR_SHARE * self.requests
    }

    /// What it proves, if so large a share is allowed.
    pub(super) fn finding(&self, now_ns: u64, share: f64) -> Finding {
        let allowed = share * self.requests;
        let age_ns = self.age_ns(now_ns);
        let (others, others_over) = (self.requests - self.worst.0, self.all_over - self.worst.1);
        let plain = age_ns >= PLAIN_NS && self.requests >= PLAIN_COUNT && self.over > allowed;
        if plain || sigmas(others_over - 0.5, share * others) >= QUICK_SIGMAS {
            return Finding::TooMuch(others_over / others.max(1.0));
        }
        let little = self.over <= ROOM * allowed && sigmas(self.over + 0.5, allowed) <= -ROOM_SIGMAS;
        if little && age_ns >= ROOM_NS { Finding::Room } else { Finding::Unclear }
    }

    /// The same where stalls that are not ours put whole bursts of requests over the limit. No stall is left out, for none was
    /// left out of the share that is allowed; but a burst is one event, whatever it holds. That share is an estimate from
    /// `alone` requests, and no better than these. It goes on with the next pace, which is harmless in noise, where nothing speaks
    /// against it.
    pub(super) fn finding_in_noise(&self, now_ns: u64, share: f64, alone: u64) -> Finding {
        let age_ns = self.age_ns(now_ns);
        if age_ns < NOISE_NS || self.ticks < NOISE_TICKS {
            return Finding::Unclear;
        }
        let (burst, alone) = (self.burst_requests(), to_f64(alone.max(1)));
        // One burst more may have been missed by chance.
        let share = share + burst / alone;
        let sigmas =
            sigmas(self.all_over, share * self.requests) / (burst * (1.0 + self.requests / alone)).sqrt();
        if sigmas >= NOISE_SIGMAS {
            return Finding::TooMuch(SHARE + self.all_over / self.requests - share);
        }
        let nothing_against = age_ns >= NOISE_PLAIN_NS && sigmas <= 0.0;
        let room = sigmas <= -NOISE_ROOM_SIGMAS || nothing_against;
        if room { Finding::Room } else { Finding::Unclear }
    }

    /// Counts a tick as the next, or as a part of the burst that the one before was in.
    fn count_burst(&mut self, requests: f64, over: f64) {
        let (ticks, before) = self.burst;
        self.burst = match ticks {
            _ if over <= BURST_SHARE * requests => (0, 0.0),
            BURST_TICKS.. => (1, over),
            _ => (ticks + 1, before + over),
        };
        if self.burst.0 > 1 {
            self.squares += self.burst.1 * self.burst.1 - before * before;
        } else {
            self.ticks += 1.0;
            self.squares += over * over;
        }
    }

    /// How many requests go over the limit together: the variance of their number in a tick over its mean, which is one when
    /// each goes by itself.
    fn burst_requests(&self) -> f64 {
        let mean = self.all_over / self.ticks;
        let variance = self.squares / self.ticks - mean * mean;
        (variance / mean.max(f64::MIN_POSITIVE)).max(1.0)
    }
}

/// How far `seen` lies above what was expected on average, in sigmas of a Poisson distribution: the signed root of the
/// deviance, which is right for small counts too.
pub(super) fn sigmas(seen: f64, expected: f64) -> f64 {
    if expected <= 0.0 {
        return 0.0;
    }
    let seen = seen.max(0.0);
    let log = if seen > 0.0 { seen * (seen / expected).ln() } else { 0.0 };
    (2.0 * (log - (seen - expected)).max(0.0)).sqrt().copysign(seen - expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `over` of `requests`, in five ticks, prove after `ms`.
    fn finding(requests: u64, over: f64, ms: u64) -> Finding {
        let mut e = Evidence::since(0);
        (0..5).for_each(|_| e.count(requests / 5, over / 5.0));
        e.finding(ms * 1_000_000, SHARE)
    }

    #[test]
    fn few_requests_prove_little() {
        assert_eq!(finding(0, 0.0, 100), Finding::Unclear);
        assert_eq!(finding(50, 1.0, 100), Finding::Unclear, "2 % of 50 are chance");
        assert_eq!(finding(50, 0.0, 100), Finding::Unclear, "so is nothing of 50");
        assert_eq!(finding(200, 0.0, 100), Finding::Room);
        assert!(matches!(finding(5, 3.0, 10), Finding::TooMuch(_)), "three of five are not");
        assert!(matches!(finding(300, 12.0, 10), Finding::TooMuch(_)));
    }

    #[test]
    fn a_tick_in_which_the_machine_stalled_decides_nothing() {
        let mut e = Evidence::since(0);
        (0..20).for_each(|_| e.count(300, 1.0));
        e.count(300, 300.0);
        assert_eq!(e.finding(210_000_000, SHARE), Finding::Room);
        e.count(300, 300.0);
        assert!(matches!(e.finding(220_000_000, SHARE), Finding::TooMuch(_)), "two do");
    }

    #[test]
    fn many_requests_decide_near_the_limit() {
        assert_eq!(finding(30_000, 280.0, 1000), Finding::Unclear);
        assert!(matches!(finding(30_000, 310.0, 1000), Finding::TooMuch(_)));
        assert_eq!(finding(3000, 15.0, 100), Finding::Room);
        assert_eq!(finding(3000, 15.0, 40), Finding::Unclear, "too soon");
    }
    /// What a second of ticks proves in noise, every so many of which a stall puts 100 of 300 requests over the limit, if one in
    /// ten is allowed.
    fn in_noise(every: u32, alone: u64) -> Finding {
        let mut e = Evidence::since(0);
        (0..100).for_each(|tick| e.count(300, if tick % every == 0 { 100.0 } else { 0.0 }));
        e.finding_in_noise(1_000_000_000, 0.1, alone)
    }

    #[test]
    fn in_noise_a_burst_is_one_event() {
        assert_eq!(in_noise(4, 100_000), Finding::Room, "as allowed, or a little less");
        // A third more than allowed is 11 sigmas of single requests, but chance of bursts.
        assert_eq!(in_noise(3, 100_000), Finding::Unclear, "a little more");
        assert!(matches!(in_noise(1, 100_000), Finding::TooMuch(_)), "much more");
        assert_eq!(in_noise(2, 1000), Finding::Unclear, "more, but than what?");
    }
}
