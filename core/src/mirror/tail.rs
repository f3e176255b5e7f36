//! How large requests may be once the end is wanted and near.
//!
//! A switch-over reads what is left and writes it, and only with several requests do both go on at once: a remainder that
//! is one request is read first and then written, which on a slow disk takes twice as long as its bytes do and as the forecast
//! says. So from when the host asks for the end, and little is left, a request may take a small part of the pause only, and what a
//! first read and a last write take alone fits into what every forecast keeps in reserve, down to requests of 16 KiB. Fast disks
//! hardly notice: on them that is more than the largest request. Before the end is wanted nothing is cut, for a disk that takes a
//! hundred requests a second, whatever their size, would copy less. Zeroing is not cut either; it reads nothing.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::estimate::{to_f64, to_u64};
use crate::units::{KIB, MIB};

/// The part of the pause that a request may take.
const PART: f64 = 16.0;
/// No request is made smaller than this.
const LEAST_BYTES: u64 = 16 * KIB;
/// None is larger than this anyway.
const MOST_BYTES: u64 = MIB;
/// The end is near when what is left takes so many pauses, and [`SOON`]: stock is taken only every 10 ms.
const PAUSES: u32 = 4;
/// See [`PAUSES`].
const SOON: Duration = Duration::from_millis(20);

/// The largest request with which a switch-over within `max_pause` may be met, where copiers manage so many bytes per second.
fn longest_bytes(rate_bytes_per_s: u64, max_pause: Duration) -> u64 {
    let part =
        to_u64(to_f64(rate_bytes_per_s) * max_pause.as_secs_f64() / PART).clamp(LEAST_BYTES, MOST_BYTES);
    // A power of two, so that no request ends inside a block, whatever its size, and chunks are cut evenly.
    1 << part.ilog2()
}

/// Whether so little is left that a switch-over is near.
fn is_near(left_bytes: u64, rate_bytes_per_s: u64, max_pause: Duration) -> bool {
    let near = max_pause.saturating_mul(PAUSES).saturating_add(SOON);
    to_f64(left_bytes) <= to_f64(rate_bytes_per_s) * near.as_secs_f64()
}

/// The bound in force, which the home sets and all workers read.
#[derive(Debug)]
pub(super) struct Tail {
    /// The largest request now.
    request_bytes: AtomicU64,
}

impl Tail {
    /// The largest request now.
    pub(super) fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }

    /// Sets it by what is left and what the copiers manage, for a switch-over that may take `max_pause`.
    pub(super) fn look(&self, left_bytes: u64, rate_bytes_per_s: u64, max_pause: Option<Duration>) {
        let near = max_pause.filter(|&max_pause| is_near(left_bytes, rate_bytes_per_s, max_pause));
        let bound = near.map_or(u64::MAX, |max_pause| longest_bytes(rate_bytes_per_s, max_pause));
        self.request_bytes.store(bound, Ordering::Relaxed);
    }
}

impl Default for Tail {
    /// Without a bound, until the end is near.
    fn default() -> Self {
        Self { request_bytes: AtomicU64::new(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_a_small_part_of_the_pause_on_slow_disks_and_is_whole_on_fast_ones() {
        let pause = Duration::from_millis(50);
        assert_eq!(longest_bytes(1_000_000_000, pause), MIB);
        assert_eq!(longest_bytes(128_000_000, pause), 256 * KIB);
        assert_eq!(longest_bytes(1_000_000, pause), 16 * KIB);
        assert_eq!(longest_bytes(1_000_000, Duration::MAX), MIB);
    }

    #[test]
    fn requests_are_bounded_only_where_the_end_is_near() {
        let (tail, pause) = (Tail::default(), Some(Duration::from_millis(50)));
        assert_eq!(tail.request_bytes(), u64::MAX);
        tail.look(30 * MIB, 128_000_000, pause);
        assert_eq!(tail.request_bytes(), u64::MAX, "a quarter of a second is left");
        tail.look(20 * MIB, 128_000_000, pause);
        assert_eq!(tail.request_bytes(), 256 * KIB);
        tail.look(20 * MIB, 128_000_000, None);
        assert_eq!(tail.request_bytes(), u64::MAX, "any pause will do");
    }
}
