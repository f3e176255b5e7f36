//! Whether the remainder still shrinks: for copy mode auto, when background copying will not get there.
//!
//! Samples are averaged over windows of [`WINDOW_NS`]; a line is laid through the last [`WINDOWS`] of them. Its slope,
//! set against how far the windows lie from it, tells shrinking from noise. Every window in which the remainder did not
//! shrink adds to a score, every one in which it did takes from it, and so does a missed switch-over add; so a burst or
//! one odd window decides nothing, and a writer that is faster than the copy is found out within one to two seconds.
//!
//! Windows in which nothing at all was copied tell who hangs, not who is faster, and are left out.
//!
//! A remainder that goes up and down so much that no line fits decides nothing by that. So the lowest window is kept as well: if
//! none was lower for [`STALE_NS`], by as much as progress asks for, the remainder does not shrink, whatever it looks like.
//!
//! "Does not shrink" means: by less than 1/64 of what is copied. A remainder that shrinks more slowly than that would be
//! copied more than 64 times over before it is gone; a working set that a few hot chunks keep alive looks like this too.
//! A remainder that is small enough for the pause is fine whatever it does, until switch-overs are missed with it.
#![forbid(unsafe_code)]

use super::estimate::{to_f64, to_u64};

/// Samples are averaged over this time.
const WINDOW_NS: u64 = 125_000_000;
/// Windows that a decision looks at: 1 s.
const WINDOWS: usize = 8;
/// The newest windows, which tell that a burst is over: 0.5 s.
const NEWEST: usize = 4;
/// Score at which it escalates: windows without progress.
const ENOUGH: u32 = 10;
/// The first decision is about a whole second, so it counts for more than one window.
const FIRST: u32 = 6;
/// Without a window that was lower than all before for so long, it does not shrink.
const STALE_NS: u64 = 5_000_000_000;
/// Who copies nothing at all for so long is held up by a disk; what was before that says nothing about what comes after.
const HANGS_NS: u64 = 1_000_000_000;
/// What a missed switch-over adds to the score.
const MISS: u32 = 3;
/// After so many misses a remainder that looks small enough is no excuse: the prediction is not to be trusted.
const MISSES: u32 = 3;
/// After a gap as long as this the past tells nothing: the job was paused.
const GAP_NS: u64 = 500_000_000;
/// Shrinking by less than this share of what is copied is none.
const LEAST_SHARE: f64 = 1.0 / 64.0;

/// What the decision is made from, every few milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// Now.
    pub now_ns: u64,
    /// Bytes still to copy.
    pub left_bytes: u64,
    /// Bytes copied since the job began.
    pub copied_bytes: u64,
    /// Bytes copied per second.
    pub copy_rate_bytes_per_s: u64,
    /// Bytes made dirty per second.
    pub dirty_rate_bytes_per_s: u64,
    /// Whether every chunk was dealt with once; before that the remainder shrinks by itself.
    pub first_pass_over: bool,
    /// Whether a switch-over now would stay within the pause that the host chose.
    pub is_small_enough: bool,
    /// Switch-overs missed since the job began, and what is as bad; the latter may be forgiven.
    pub missed: u32,
}

/// Whether background copying gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does, or that is not known yet.
    Fine,
    /// It does not: the guest's writes should go to the target at once.
    Escalate(Reason),
}

/// Why it escalates; part of the event that the host hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The remainder no longer shrinks.
    NotShrinking {
        /// Bytes still to copy, on average over the last window.
        left_bytes: u64,
        /// Bytes by which the remainder grows per second; 0 when it stands still.
        growth_bytes_per_s: u64,
        /// Bytes copied per second.
        copy_rate_bytes_per_s: u64,
        /// Bytes made dirty per second.
        dirty_rate_bytes_per_s: u64,
    },
    /// Switch-overs with a remainder that looked small enough were missed, or what comes before one: a flush of the target, in
    /// whose time the guest wrote too much.
    Missed {
        /// How many; four such flushes in a row count as one, if they took 0.7 s.
        missed: u32,
    },
}

/// Watches one job's remainder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Convergence {
    /// Means of the remainder, oldest first; the first `full` count.
    means: [f64; WINDOWS],
    /// How many windows there are.
    full: usize,
    /// When the window began.
    begun_ns: u64,
    /// Sum of the remainder over the window's samples.
    sum: f64,
    /// Samples in the window.
    samples: u64,
    /// Whether the remainder was small enough at some time in the window.
    small: bool,
    /// The last sample; `None` = none yet.
    last_ns: Option<u64>,
    /// Windows without progress, less those with; `None` = not judged yet.
    score: Option<u32>,
    /// The lowest window, and when it was; `None` = not judged yet.
    lowest: Option<(f64, u64)>,
    /// Bytes copied when the last window was closed.
    copied_bytes: u64,
    /// Since when nothing has been copied.
    idle_since_ns: Option<u64>,
    /// Misses before the watch began anew.
    forgiven: u32,
    /// Misses at the last sample.
    missed: u32,
}

/// A line through the windows.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// Change per second.
    slope: f64,
    /// How uncertain that is, one sigma.
    error: f64,
}

impl Convergence {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins anew, with the misses so far forgiven: the copy mode was changed, the job was resumed.
    pub fn restart(&mut self) {
        *self = Self { forgiven: self.missed, missed: self.missed, ..Self::default() };
    }

    /// Takes an observation and judges.
    pub fn observe(&mut self, o: &Observation) -> Verdict {
        let paused = self.last_ns.is_some_and(|last| o.now_ns.saturating_sub(last) > GAP_NS);
        if paused || !o.first_pass_over {
            // Misses still count: a pause of the job makes them no better.
            *self = Self { forgiven: self.forgiven, ..Self::default() };
        }
        self.missed = o.missed;
        // Those that are not counted any more need not be forgiven.
        self.forgiven = self.forgiven.min(o.missed);
        if !o.first_pass_over {
            return Verdict::Fine;
        }
        let missed = o.missed.saturating_sub(self.forgiven);
        if missed >= MISSES && o.left_bytes > 0 {
            return Verdict::Escalate(Reason::Missed { missed });
        }
        if self.samples == 0 {
            self.begun_ns = o.now_ns;
        }
        self.last_ns = Some(o.now_ns);
        self.sum += to_f64(o.left_bytes);
        self.samples += 1;
        self.small |= o.is_small_enough || o.left_bytes == 0;
        if o.now_ns.saturating_sub(self.begun_ns) < WINDOW_NS { Verdict::Fine } else { self.judge(o, missed) }
    }

    /// Closes a window and judges.
    fn judge(&mut self, o: &Observation, missed: u32) -> Verdict {
        let mean = self.sum / to_f64(self.samples);
        let small = self.small;
        (self.sum, self.samples, self.small) = (0.0, 0, false);
        if small {
            // A chance to switch over.
            self.forget_windows();
            return Verdict::Fine;
        }
        let last_bytes = std::mem::replace(&mut self.copied_bytes, o.copied_bytes);
        if o.copied_bytes == last_bytes {
            // A disk that hangs, for which nothing that could be done would help; or the copiers hold still for a moment.
            let idle_since_ns = *self.idle_since_ns.get_or_insert(self.begun_ns);
            if o.now_ns.saturating_sub(idle_since_ns) >= HANGS_NS {
                self.forget_windows();
            }
            return Verdict::Fine;
        }
        self.idle_since_ns = None;
        let is_stale = self.is_stale(o, mean);
        if self.full == WINDOWS {
            self.means.rotate_left(1);
            self.full -= 1;
        }
        self.means[self.full] = mean;
        self.full += 1;
        if self.full < WINDOWS {
            return Verdict::Fine;
        }
        let (line, newest) = (line(&self.means), line(&self.means[WINDOWS - NEWEST..]));
        let least = LEAST_SHARE * to_f64(o.copy_rate_bytes_per_s);
        let shrinks = |line: Line| line.slope + 2.0 * line.error < -least;
        let step = if self.score.is_none() { FIRST } else { 1 };
        let before = self.score.unwrap_or(0);
        let score = if shrinks(line) {
            before.saturating_sub(2)
        } else if line.slope > -least && !shrinks(newest) {
            (before + step).min(ENOUGH)
        } else {
            // It seems to shrink, or does so again, but noise might explain that as well: wait for more.
            before
        };
        self.score = Some(score);
        if (is_stale && !shrinks(line)) || (score > 0 && score + MISS * missed >= ENOUGH) {
            return Verdict::Escalate(Reason::NotShrinking {
                left_bytes: to_u64(mean),
                growth_bytes_per_s: to_u64(line.slope),
                copy_rate_bytes_per_s: o.copy_rate_bytes_per_s,
                dirty_rate_bytes_per_s: o.dirty_rate_bytes_per_s,
            });
        }
        Verdict::Fine
    }

    /// What comes next is to be judged by itself.
    fn forget_windows(&mut self) {
        (self.full, self.score, self.lowest) = (0, None, None);
    }

    /// Takes in a window; whether none was lower for long.
    fn is_stale(&mut self, o: &Observation, mean: f64) -> bool {
        let Some((lowest, since_ns)) = self.lowest else {
            self.lowest = Some((mean, o.now_ns));
            return false;
        };
        let passed_ns = o.now_ns.saturating_sub(since_ns);
        let least = LEAST_SHARE * to_f64(o.copy_rate_bytes_per_s) * to_f64(passed_ns) / 1e9;
        if mean < lowest - least {
            self.lowest = Some((mean, o.now_ns));
            return false;
        }
        passed_ns >= STALE_NS
    }
}

/// The line of least squares through windows.
fn line(means: &[f64]) -> Line {
    let n = to_f64(means.len() as u64);
    let x_mean = (n - 1.0) / 2.0;
    let y_mean = means.iter().sum::<f64>() / n;
    let points = || (0u32..).zip(means).map(|(x, y)| (f64::from(x) - x_mean, y - y_mean));
    let xx: f64 = points().map(|(x, _)| x * x).sum();
    let slope = points().map(|(x, y)| x * y).sum::<f64>() / xx;
    let off: f64 = points().map(|(x, y)| (y - slope * x).powi(2)).sum();
    let per_second = 1e9 / to_f64(WINDOW_NS);
    Line { slope: slope * per_second, error: (off / (n - 2.0) / xx).sqrt() * per_second }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A megabyte.
    const MB: u64 = 1_000_000;

    /// xorshift: noise that every run has alike.
    struct Noise(u64);

    impl Noise {
        /// Between 0 and `below`.
        fn next(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            if below == 0 { 0 } else { self.0 % below }
        }
    }

    /// A remainder under a copier and writers.
    struct Scene {
        /// Remainder at the beginning.
        left: u64,
        /// Bytes per second.
        copy: u64,
        /// Bytes per second as a function of the time in ms.
        dirty: fn(u64) -> u64,
        /// Rates vary by as much as this, in percent.
        noise: u64,
        /// Remainder that is small enough.
        small: u64,
        /// From this time in ms on nothing is copied.
        hangs_from_ms: u64,
        /// One miss for each time in ms.
        misses: &'static [u64],
    }

    impl Scene {
        /// Runs until it escalates or `ms` passed; the time of the escalation and its reason.
        fn run(&self, seed: u64, ms: u64) -> Option<(u64, Reason)> {
            let (mut noise, mut c, mut left) = (Noise(seed * 77 + 1), Convergence::new(), self.left);
            let mut copied_bytes = 0;
            let mut vary =
                |rate: u64| rate * (100 - self.noise) / 100 + noise.next(rate * 2 * self.noise / 100 + 1);
            for at in (0..ms).step_by(5) {
                let copied = if at < self.hangs_from_ms { vary(self.copy) / 200 } else { 0 };
                (left, copied_bytes) =
                    ((left + vary((self.dirty)(at)) / 200).saturating_sub(copied), copied_bytes + copied);
                let verdict = c.observe(&Observation {
                    now_ns: at * 1_000_000,
                    left_bytes: left,
                    copied_bytes,
                    copy_rate_bytes_per_s: self.copy,
                    dirty_rate_bytes_per_s: (self.dirty)(at),
                    first_pass_over: true,
                    is_small_enough: left <= self.small,
                    missed: u32::try_from(self.misses.iter().filter(|&&m| m <= at).count()).unwrap(),
                });
                if let Verdict::Escalate(reason) = verdict {
                    return Some((at, reason));
                }
            }
            None
        }
    }

    /// What is seen after so many ms beside a copier of 1000 MB/s that a guest keeps up with.
    fn seen(ms: u64, left_bytes: u64) -> Observation {
        Observation {
            now_ns: ms * 1_000_000,
            left_bytes,
            copied_bytes: ms * MB,
            copy_rate_bytes_per_s: 1000 * MB,
            dirty_rate_bytes_per_s: 1000 * MB,
            first_pass_over: true,
            is_small_enough: false,
            missed: 0,
        }
    }

    /// What most scenes have in common.
    const SCENE: Scene = Scene {
        left: 2000 * MB,
        copy: 1000 * MB,
        dirty: |_| 0,
        noise: 0,
        small: 20 * MB,
        hangs_from_ms: u64::MAX,
        misses: &[],
    };

    #[test]
    fn writers_faster_than_the_copy_are_found_out_in_one_to_two_seconds() {
        for (seed, noise) in (0..200).map(|s| (s, [0, 30, 90][usize::try_from(s % 3).unwrap()])) {
            let (at, reason) = Scene { dirty: |_| 1100 * MB, noise, ..SCENE }.run(seed, 9000).unwrap();
            assert!(
                (1000..=if noise == 90 { 4500 } else { 2000 }).contains(&at),
                "seed {seed}, noise {noise} %: {at} ms"
            );
            assert!(
                noise > 0
                    || matches!(reason, Reason::NotShrinking { growth_bytes_per_s: g, .. } if g > 90 * MB)
            );
            // As fast as the copy: the remainder stands still. (With the strongest noise it wanders far down and up.)
            let still = Scene { dirty: |_| 1000 * MB, noise: noise.min(30), ..SCENE }.run(seed, 9000);
            assert!(still.is_some_and(|(at, _)| (1000..=8500).contains(&at)), "seed {seed}: {still:?}");
        }
    }

    #[test]
    fn a_remainder_that_shrinks_steadily_is_left_alone() {
        for seed in 0..200 {
            let noise = [0, 30, 90][usize::try_from(seed % 3).unwrap()];
            let slow = Scene { left: 20_000 * MB, dirty: |_| 800 * MB, noise, ..SCENE };
            assert_eq!(slow.run(seed, 90_000), None, "seed {seed}, noise {noise} %");
            let huge = Scene { left: 1_000_000 * MB, noise, ..SCENE };
            assert_eq!(huge.run(seed, 9000), None, "seed {seed}, noise {noise} %");
        }
        let slower = Scene { left: 20_000 * MB, dirty: |_| 970 * MB, ..SCENE };
        assert_eq!(slower.run(1, 600_000), None);
    }

    /// As beside a pacer that stops the copy now and then to look at the guest: the remainder falls and rises again.
    #[test]
    fn a_remainder_that_goes_up_and_down_without_end_is_found_out_too() {
        for (period, up) in [(1000, 500), (2000, 700), (3000, 1000), (4000, 1500)] {
            let mut c = Convergence::new();
            let mut escalated = None;
            for at in (0..20_000).step_by(5) {
                let phase = at % period;
                let swing =
                    if phase < up { phase * 1000 / up } else { (period - phase) * 1000 / (period - up) };
                if c.observe(&seen(at, 2000 * MB + swing * MB)) != Verdict::Fine {
                    escalated = escalated.or(Some(at));
                }
            }
            assert!(escalated.is_some_and(|at| at <= 9000), "period {period} ms: {escalated:?}");
        }
    }

    #[test]
    fn a_burst_of_half_a_second_is_no_reason() {
        let dirty: fn(u64) -> u64 = |ms| if ms % 5000 < 500 { 4000 * MB } else { 300 * MB };
        for seed in 0..50 {
            assert_eq!(Scene { dirty, noise: 30, ..SCENE }.run(seed, 60_000), None, "seed {seed}");
        }
    }

    #[test]
    fn a_remainder_that_is_small_enough_is_fine_until_switch_overs_are_missed() {
        let scene = Scene { left: 10 * MB, dirty: |_| 1000 * MB, noise: 5, ..SCENE };
        assert_eq!(Scene { small: u64::MAX, ..scene }.run(3, 60_000), None);
        let missing = Scene { small: u64::MAX, misses: &[1000, 2000, 3000], ..scene };
        assert_eq!(missing.run(3, 60_000), Some((3000, Reason::Missed { missed: 3 })));
    }

    /// Nothing that could be done helps a disk that hangs, and a guest that waits for both sides would hang with it.
    #[test]
    fn a_copy_that_hangs_is_no_reason() {
        for hangs_from_ms in [0, 2000] {
            let scene = Scene { dirty: |_| 300 * MB, hangs_from_ms, ..SCENE };
            assert_eq!(scene.run(7, 30_000), None, "from {hangs_from_ms} ms on");
        }
    }

    #[test]
    fn each_miss_brings_the_escalation_closer() {
        let scene = |misses| Scene { dirty: |_| 1050 * MB, misses, ..SCENE }.run(5, 9000).unwrap().0;
        let (none, one, two) = (scene(&[]), scene(&[100]), scene(&[100, 200]));
        assert!(two < one && one < none, "{two} {one} {none}");
    }

    #[test]
    fn the_first_pass_and_a_pause_of_the_job_decide_nothing() {
        let mut c = Convergence::new();
        let mut observe = |ms: u64, first_pass_over| {
            let dirty_rate_bytes_per_s = 2000 * MB;
            let seen = seen(ms, 1000 * MB + ms * MB);
            c.observe(&Observation { dirty_rate_bytes_per_s, first_pass_over, ..seen })
        };
        assert!((0..9000).step_by(5).all(|ms| observe(ms, false) == Verdict::Fine));
        assert!((9000..10_000).step_by(5).all(|ms| observe(ms, true) == Verdict::Fine));
        assert!((20_000..21_000).step_by(5).all(|ms| observe(ms, true) == Verdict::Fine));
        assert!(!(21_000..22_000).step_by(5).all(|ms| observe(ms, true) == Verdict::Fine));
    }
}
