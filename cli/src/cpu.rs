//! The CPU time of this process, and clock arithmetic that reports share.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// Measures wall and CPU time from when it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    /// Wall clock at the start.
    started: Instant,
    /// CPU seconds at the start.
    cpu_seconds: f64,
}

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), cpu_seconds: cpu_seconds() }
    }

    /// Wall time since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Bytes per second so far, and the time that the rest takes at this rate.
    pub(crate) fn extrapolate(&self, done: u64, total: u64) -> (u64, Option<Duration>) {
        let rate = rate(done, self.seconds());
        let left = as_f64(total.saturating_sub(done));
        (whole(rate), Duration::try_from_secs_f64(left / rate).ok())
    }

    /// CPU time of all threads of this process since the start, user and system.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        (cpu_seconds() - self.cpu_seconds).max(0.0)
    }
}

/// CPU seconds of this process so far; 0 if the kernel does not say.
fn cpu_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let micros = |t: nix::sys::time::TimeVal| {
            let micros = t.tv_usec().unsigned_abs() + 1_000_000 * t.tv_sec().unsigned_abs();
            Duration::from_micros(micros).as_secs_f64()
        };
        micros(usage.user_time()) + micros(usage.system_time())
    })
}

/// Bytes per second, 0 for no time at all.
pub(crate) fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { as_f64(bytes) / seconds } else { 0.0 }
}

/// A count of bytes as a float, for ratios; exact up to 8 PiB.
#[allow(clippy::cast_precision_loss)]
pub(crate) const fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// A rate for people: `1.9 GiB/s`.
pub(crate) fn format_rate(bytes_per_second: f64) -> String {
    let text = blkmirror_core::units::format_size(whole(bytes_per_second));
    format!("{text}/s")
}

/// A positive float as whole bytes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    // `as` saturates and turns NaN into 0, which is what is wanted here.
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy of nothing in no time has no infinite rate.
    #[test]
    fn a_rate_is_always_a_number() {
        assert!(rate(5, 0.0).abs() < f64::EPSILON);
        assert!((rate(4096, 2.0) - 2048.0).abs() < f64::EPSILON);
        assert_eq!(format_rate(f64::NAN), "0 B/s");
        assert_eq!(format_rate(1536.0), "1.5 KiB/s");
    }
}
