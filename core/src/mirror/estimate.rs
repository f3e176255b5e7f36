//! How fast it goes, how long it still takes, and how long a switch-over would stop the guest now.
//!
//! The job's home worker gives a sample every few milliseconds; nothing is measured in here. Samples are put together to
//! slices of at least [`SLICE_NS`], because copies end in lumps of a request.
//!
//! Three rates of copying are kept apart, because they answer different questions:
//!
//! | rate | over which time | answers |
//! |---|---|---|
//! | current | all of it | how fast is it now? Nothing to do is 0. |
//! | at work | while something was left and the copiers were not held | when is it done? |
//! | unpaced | while plenty was left and nothing slowed the copiers down | how long is the pause, in which nothing slows them down? |
//!
//! The last two stand still while there is nothing to measure: a drive that was idle for an hour can still be copied as
//! fast as before, and a pause is not endless because there was nothing to do.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Samples are put together to slices of this length.
const SLICE_NS: u64 = 20_000_000;
/// Memory of the average that notices a change.
const FAST_S: f64 = 0.1;
/// Memory of the average that is told.
const SLOW_S: f64 = 2.0;
/// When both differ by half for this long, the slow one starts anew from the fast one: a step, not noise.
const STEP_S: f64 = 0.3;
/// How fast the unpaced rate is forgotten, counted in time at work that gave a lower one.
const BEST_S: f64 = 10.0;
/// With less left than this the copiers' queues run dry, and the rate says little about what they can do.
const PLENTY_BYTES: u64 = 1 << 20;
/// What an attempt costs besides copying and the flush, until one was measured.
const FIRST_OVERHEAD_NS: u64 = 500_000;
/// How many flushes and attempts are remembered; the longest counts.
const REMEMBERED: usize = 4;

/// What slows the copiers down while a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Nothing: they take what the disks give.
    Full,
    /// The pacer or the speed limit.
    Paced,
    /// They are held still: a probe window of the pacer, a paused job.
    Held,
}

/// The job's counters at a time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Now.
    pub now_ns: u64,
    /// Bytes copied since the job began.
    pub copied_bytes: u64,
    /// Bytes made dirty since the job began.
    pub dirtied_bytes: u64,
    /// Bytes still to copy.
    pub left_bytes: u64,
    /// What slows the copiers down.
    pub effort: Effort,
}

/// What an attempt to switch over took, successful or not.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Bytes copied while the gate was closed.
    pub copied_bytes: u64,
    /// Time that this took.
    pub copy_ns: u64,
    /// All the rest but the flush: closing the gate, waiting for the guest's requests, and so on.
    pub overhead_ns: u64,
}

/// An average of a rate, as steady as it may be and as quick as it must be.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    /// Over the last [`FAST_S`].
    fast: f64,
    /// Over the last [`SLOW_S`], or since the last step if that is shorter.
    slow: f64,
    /// Time since the last step.
    age_s: f64,
    /// For how long both have differed.
    apart_s: f64,
}

impl Average {
    /// Adds `bytes` over `time_s`.
    fn add(&mut self, bytes: u64, time_s: f64) {
        let rate = to_f64(bytes) / time_s;
        self.age_s += time_s;
        // A young average is the plain mean, so a phase of 100 ms has one too.
        let share = |memory_s: f64| (1.0 - (-time_s / memory_s).exp()).max(time_s / self.age_s);
        let (fast, slow) = (share(FAST_S), share(SLOW_S));
        self.fast += (rate - self.fast) * fast;
        self.slow += (rate - self.slow) * slow;
        let differ = (self.fast - self.slow).abs() > 0.5 * self.slow.min(self.fast);
        self.apart_s = if differ { self.apart_s + time_s } else { 0.0 };
        if self.apart_s >= STEP_S {
            (self.slow, self.age_s, self.apart_s) = (self.fast, STEP_S, 0.0);
        }
    }
}

/// The longest of the last few.
#[derive(Clone, Copy, Debug)]
struct Longest {
    /// The last few, in a ring.
    times_ns: [u64; REMEMBERED],
    /// How many there were.
    seen: usize,
}

impl Longest {
    /// Starts with a guess that the first measurement replaces.
    fn guess(ns: u64) -> Self {
        Self { times_ns: [ns, 0, 0, 0], seen: 0 }
    }

    /// Takes one in.
    fn add(&mut self, ns: u64) {
        self.times_ns[self.seen % REMEMBERED] = ns;
        self.seen = self.seen.wrapping_add(1);
    }

    /// The longest.
    fn get(&self) -> u64 {
        self.times_ns.iter().copied().max().unwrap_or(0)
    }
}

/// Rates and predictions of one job.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// The sample that began the slice.
    begun: Option<Sample>,
    /// The last sample.
    last: Option<Sample>,
    /// The least that was left during the slice.
    least_left_bytes: u64,
    /// Rate of copying over all time.
    current: Average,
    /// Rate of copying while there was work.
    at_work: Average,
    /// Rate of copying with plenty of work and nothing in the way.
    unpaced: Average,
    /// The best that `unpaced` has been.
    best: f64,
    /// Rate of becoming dirty.
    dirty: Average,
    /// Flushes of the target.
    flush: Longest,
    /// What attempts cost besides.
    overhead: Longest,
}

impl Default for Estimate {
    fn default() -> Self {
        Self::new()
    }
}

impl Estimate {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            begun: None,
            last: None,
            least_left_bytes: 0,
            current: Average::default(),
            at_work: Average::default(),
            unpaced: Average::default(),
            best: 0.0,
            dirty: Average::default(),
            flush: Longest::guess(0),
            overhead: Longest::guess(FIRST_OVERHEAD_NS),
        }
    }

    /// Takes a sample.
    pub fn sample(&mut self, sample: Sample) {
        let Some(begun) = self.begun else {
            self.begin(sample);
            return;
        };
        self.last = Some(sample);
        self.least_left_bytes = self.least_left_bytes.min(sample.left_bytes);
        let passed_ns = sample.now_ns.saturating_sub(begun.now_ns);
        // A slice ends where the effort changes, so that hardly any time counts for the wrong one.
        if passed_ns > 0 && (passed_ns >= SLICE_NS || sample.effort != begun.effort) {
            self.slice(begun, sample, Duration::from_nanos(passed_ns).as_secs_f64());
            self.begin(sample);
        }
    }

    /// Begins a slice.
    fn begin(&mut self, sample: Sample) {
        self.begun = Some(sample);
        self.last = Some(sample);
        self.least_left_bytes = sample.left_bytes;
    }

    /// Takes in what happened during a slice.
    fn slice(&mut self, from: Sample, to: Sample, time_s: f64) {
        let copied = to.copied_bytes.saturating_sub(from.copied_bytes);
        self.dirty.add(to.dirtied_bytes.saturating_sub(from.dirtied_bytes), time_s);
        self.current.add(copied, time_s);
        if from.effort == Effort::Held || to.effort == Effort::Held {
            return;
        }
        if copied > 0 || self.least_left_bytes > 0 {
            self.at_work.add(copied, time_s);
        }
        let full = from.effort == Effort::Full && to.effort == Effort::Full;
        if full && self.least_left_bytes >= copied.max(PLENTY_BYTES) {
            self.unpaced.add(copied, time_s);
            let now = self.unpaced.slow;
            let forget = 1.0 - (-time_s / BEST_S).exp();
            self.best = if now > self.best { now } else { self.best + (now - self.best) * forget };
        }
    }

    /// A flush of the target ended.
    pub fn flushed(&mut self, took_ns: u64) {
        self.flush.add(took_ns);
    }

    /// The slowest of the flushes that are remembered: the part of [`Self::predicted_pause`] that no copying changes.
    #[must_use]
    pub fn slow_flush_ns(&self) -> u64 {
        self.flush.get()
    }

    /// An attempt to switch over ended.
    pub fn attempted(&mut self, attempt: Attempt) {
        self.overhead.add(attempt.overhead_ns);
        if attempt.copied_bytes >= PLENTY_BYTES && attempt.copy_ns > 0 {
            // This is the very thing that is to be predicted, so it beats whatever was seen before.
            self.best = to_f64(attempt.copied_bytes) / Duration::from_nanos(attempt.copy_ns).as_secs_f64();
            self.unpaced = Average::default();
        }
    }

    /// The next attempt is expected to cost this besides copying and the flush, because it is long since the last.
    pub fn overhead_fades(&mut self, to_ns: u64) {
        self.overhead.add(to_ns);
    }

    /// Bytes copied per second now; 0 when there is nothing to do.
    #[must_use]
    pub fn copy_rate_bytes_per_s(&self) -> u64 {
        to_u64(self.current.slow)
    }

    /// Bytes copied per second while there was something to do and the copiers were not held still.
    #[must_use]
    pub fn at_work_rate_bytes_per_s(&self) -> u64 {
        to_u64(self.at_work.slow)
    }

    /// Bytes made dirty per second now.
    #[must_use]
    pub fn dirty_rate_bytes_per_s(&self) -> u64 {
        to_u64(self.dirty.slow)
    }

    /// Bytes per second that the copiers can do when nothing slows them down, as far as was seen; 0 = nothing was seen.
    #[must_use]
    pub fn able_rate_bytes_per_s(&self) -> u64 {
        to_u64(self.able())
    }

    /// Time until nothing is left; `None` while that is not in sight.
    #[must_use]
    pub fn eta(&self) -> Option<Duration> {
        let left_bytes = self.last?.left_bytes;
        if left_bytes == 0 {
            return Some(Duration::ZERO);
        }
        let net = self.at_work.slow - self.dirty.slow;
        // Below a hundredth of the rate the difference is noise.
        (net > 0.01 * self.at_work.slow).then(|| seconds(to_f64(left_bytes) / net))
    }

    /// How long a switch-over would stop the guest if it began now; `None` while nothing was copied yet.
    #[must_use]
    pub fn predicted_pause(&self) -> Option<Duration> {
        self.predicted_pause_with(self.last?.left_bytes)
    }

    /// The same with so many bytes left, which may be more by now than in the last sample.
    #[must_use]
    pub fn predicted_pause_with(&self, left_bytes: u64) -> Option<Duration> {
        let fixed = Duration::from_nanos(self.flush.get().saturating_add(self.overhead.get()));
        if left_bytes == 0 {
            return Some(fixed);
        }
        let able = self.able();
        (able > 0.0).then(|| fixed.saturating_add(seconds(to_f64(left_bytes) / able)))
    }

    /// Bytes per second that the copiers can do when nothing slows them down.
    fn able(&self) -> f64 {
        self.best.max(self.at_work.slow)
    }
}

/// A duration of so many seconds, the longest one if there is none as long.
fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

/// For averages and ratios; what is lost is less than they are exact.
#[allow(clippy::cast_precision_loss, reason = "sizes and times of real disks stay below 2^53")]
pub(super) fn to_f64(n: u64) -> f64 {
    n as f64
}

/// The whole part; 0 for what is below it or no number, the largest for what is above.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` does what the text says")]
pub(super) fn to_u64(x: f64) -> u64 {
    x as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A megabyte.
    const MB: u64 = 1_000_000;

    /// Feeds an estimate in steps of 3 ms.
    struct Feeder {
        /// What is fed.
        estimate: Estimate,
        /// The last sample.
        at: Sample,
        /// Bytes of a lump that has not ended yet.
        begun: u64,
    }

    impl Feeder {
        fn new(left_bytes: u64) -> Self {
            let at =
                Sample { now_ns: 7, copied_bytes: 0, dirtied_bytes: 0, left_bytes, effort: Effort::Full };
            let mut estimate = Estimate::new();
            estimate.sample(at);
            Self { estimate, at, begun: 0 }
        }

        /// Runs for `ms` with these rates, copies ending in lumps of `lump` bytes.
        fn run(&mut self, ms: u64, effort: Effort, copy: u64, dirty: u64, lump: u64) {
            let begun = self.at.now_ns;
            while self.at.now_ns < begun + ms * 1_000_000 {
                self.at.now_ns += 3_000_000;
                self.at.dirtied_bytes += dirty / 1000 * 3;
                self.at.left_bytes += dirty / 1000 * 3;
                self.begun += copy / 1000 * 3;
                let n = (self.begun / lump * lump).min(self.at.left_bytes);
                self.begun %= lump;
                self.at.copied_bytes += n;
                self.at.left_bytes -= n;
                self.at.effort = effort;
                self.estimate.sample(self.at);
            }
        }
    }

    /// Whether `got` is within `percent` of `want`.
    fn near(got: u64, want: u64, percent: u64) -> bool {
        got.abs_diff(want) * 100 <= want * percent
    }

    #[test]
    fn the_rates_of_a_short_phase_and_of_a_long_one_are_right() {
        for (ms, percent) in [(100, 12), (1000, 5), (60_000, 5)] {
            let mut f = Feeder::new(u64::MAX / 4);
            f.run(ms, Effort::Full, 1000 * MB, 300 * MB, 1 << 20);
            let (copy, dirty) = (f.estimate.copy_rate_bytes_per_s(), f.estimate.dirty_rate_bytes_per_s());
            assert!(near(copy, 1000 * MB, percent) && near(dirty, 300 * MB, percent), "{ms}: {copy} {dirty}");
        }
    }

    #[test]
    fn a_step_is_followed_within_half_a_second_and_lumps_are_not_taken_for_one() {
        let mut f = Feeder::new(u64::MAX / 4);
        for _ in 0..40 {
            f.run(500, Effort::Full, 100 * MB, 0, 16 << 20);
            let rate = f.estimate.copy_rate_bytes_per_s();
            assert!(f.at.now_ns < 2_000_000_000 || near(rate, 100 * MB, 30), "{rate}");
        }
        f.run(500, Effort::Full, 500 * MB, 50 * MB, 1 << 20);
        assert!(near(f.estimate.copy_rate_bytes_per_s(), 500 * MB, 20));
        assert!(near(f.estimate.dirty_rate_bytes_per_s(), 50 * MB, 20));
    }

    #[test]
    fn an_hour_without_work_leaves_the_prediction_as_it_was() {
        let mut f = Feeder::new(1000 * MB);
        f.run(3_600_000, Effort::Full, 1000 * MB, 0, 1 << 20);
        assert_eq!(f.estimate.copy_rate_bytes_per_s(), 0);
        assert_eq!(f.estimate.eta(), Some(Duration::ZERO));
        f.at.left_bytes = 100 * MB;
        f.at.now_ns += 1000;
        f.estimate.sample(f.at);
        let pause = f.estimate.predicted_pause().unwrap();
        assert!((Duration::from_millis(95)..Duration::from_millis(110)).contains(&pause), "{pause:?}");
        f.run(600_000, Effort::Held, 0, 0, 1 << 20);
        assert_eq!(
            f.estimate.predicted_pause().unwrap(),
            pause,
            "time in which copiers are held counts for nothing"
        );
    }

    #[test]
    fn a_paced_rate_tells_when_it_ends_and_the_unpaced_one_how_long_the_pause_is() {
        let mut f = Feeder::new(100_000 * MB);
        f.run(1000, Effort::Full, 2000 * MB, 0, 1 << 20);
        f.run(30_000, Effort::Paced, 500 * MB, 100 * MB, 64 << 10);
        let left = Duration::from_millis(f.at.left_bytes / (400 * MB / 1000));
        let eta = f.estimate.eta().unwrap();
        assert!(eta.abs_diff(left) < left / 10, "{eta:?} {left:?}");
        let pause = f.estimate.predicted_pause().unwrap();
        let least = Duration::from_millis(f.at.left_bytes / (2000 * MB / 1000));
        assert!(pause.abs_diff(least) < least / 10, "{pause:?} {least:?}");
        // A disk that became slower is noticed as soon as the copiers run unpaced again.
        f.run(30_000, Effort::Full, 200 * MB, 100 * MB, 64 << 10);
        assert!(f.estimate.able_rate_bytes_per_s() < 350 * MB);
    }

    #[test]
    fn the_pause_holds_the_longest_recent_flush_and_what_attempts_cost() {
        let mut f = Feeder::new(0);
        f.run(100, Effort::Full, 0, 0, 1);
        assert_eq!(f.estimate.predicted_pause(), Some(Duration::from_nanos(FIRST_OVERHEAD_NS)));
        f.estimate.flushed(9 * MB);
        f.estimate.flushed(MB);
        f.estimate.attempted(Attempt { copied_bytes: 10 * MB, copy_ns: 10 * MB, overhead_ns: 2 * MB });
        assert_eq!(f.estimate.predicted_pause(), Some(Duration::from_millis(11)));
        assert_eq!(f.estimate.able_rate_bytes_per_s(), 1000 * MB);
        (0..4).for_each(|_| f.estimate.flushed(MB));
        assert_eq!(f.estimate.predicted_pause(), Some(Duration::from_millis(3)));
    }

    #[test]
    fn nothing_is_predicted_from_nothing() {
        let mut f = Feeder::new(MB);
        assert_eq!(f.estimate.eta(), None);
        assert_eq!(f.estimate.predicted_pause(), None);
        f.run(1000, Effort::Full, 100 * MB, 0, 1 << 30);
        assert_eq!(f.estimate.predicted_pause(), None, "a stalled disk");
        // A writer as fast as the copy: no end in sight.
        let mut f = Feeder::new(1000 * MB);
        f.run(5000, Effort::Full, 100 * MB, 100 * MB, 64 << 10);
        assert_eq!(f.estimate.eta(), None);
    }
}
