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

/// The largest request with which a switch-over within `max_pause` may be met, where copiers manage `rate` bytes per second.
fn longest_bytes(rate: f64, max_pause: Option<Duration>) -> u64 {
    let Some(max_pause) = max_pause else { return MOST_BYTES };
    let part = to_u64(rate * max_pause.as_secs_f64() / PART).clamp(LEAST_BYTES, MOST_BYTES);
    // A power of two, so that no request ends inside a block, whatever its size, and chunks are cut evenly.
    1 << part.ilog2()
}

/// Whether so little is left that a switch-over is near.
fn is_near(left_bytes: u64, rate: f64, max_pause: Duration) -> bool {
    to_f64(left_bytes) <= rate * (max_pause.saturating_mul(PAUSES).saturating_add(SOON)).as_secs_f64()
}

/// The bound in force, which the home sets and all workers read.
#[derive(Debug)]
pub(super) struct Tail(AtomicU64);

impl Default for Tail {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Tail {
    /// The largest request now.
    pub(super) fn request_bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it by what is left.
    pub(super) fn look(&self, left_bytes: u64, rate: f64, max_pause: Option<Duration>) {
        let near = max_pause.is_some_and(|max_pause| is_near(left_bytes, rate, max_pause));
        self.0.store(if near { longest_bytes(rate, max_pause) } else { u64::MAX }, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_a_small_part_of_the_pause_on_slow_disks_and_is_whole_on_fast_ones() {
        let pause = Some(Duration::from_millis(50));
        assert_eq!(longest_bytes(1e9, pause), MIB);
        assert_eq!(longest_bytes(128e6, pause), 256 * KIB);
        assert_eq!(longest_bytes(1e6, pause), 16 * KIB);
        assert_eq!(longest_bytes(1e6, None), MIB);
    }

    #[test]
    fn requests_are_bounded_only_where_the_end_is_near() {
        let (tail, pause) = (Tail::default(), Some(Duration::from_millis(50)));
        assert_eq!(tail.request_bytes(), u64::MAX);
        tail.look(30 * MIB, 128e6, pause);
        assert_eq!(tail.request_bytes(), u64::MAX, "a quarter of a second is left");
        tail.look(20 * MIB, 128e6, pause);
        assert_eq!(tail.request_bytes(), 256 * KIB);
        tail.look(20 * MIB, 128e6, None);
        assert_eq!(tail.request_bytes(), u64::MAX, "any pause will do");
    }
}
