//! Rests between two pieces, for the guest's sake.
//!
//! Below one small request at a time nothing is gained by smaller ones: on a disk that takes milliseconds for any
//! request they cost the guest as much and copy less. There a copier rests after each piece, in proportion to what the
//! piece took. So its share of the disk's time is the same on fast and slow disks, and evenly spread: a guest's p99 does not
//! care how seldom the copiers work if all that they do comes at once.
#![forbid(unsafe_code)]

/// What a rest is counted in: quarters of the time that the piece took.
const QUARTERS: u64 = 4;
/// A rest is no longer than this: after a disk hung for a second, the copy need not stand still for seven.
const LONGEST_NS: u64 = 200_000_000;

/// When a copier works and when it rests.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::mirror) struct Rest {
    /// Since when there is something on its way.
    busy_since_ns: Option<u64>,
    /// What the last piece took, and when it ended.
    last: Option<(u64, u64)>,
}

impl Rest {
    /// A piece is on its way.
    pub(in crate::mirror) fn work(&mut self, now_ns: u64) {
        self.busy_since_ns.get_or_insert(now_ns);
    }

    /// Nothing is on its way any more.
    pub(in crate::mirror) fn pause(&mut self, now_ns: u64) {
        if let Some(since_ns) = self.busy_since_ns.take() {
            self.last = Some((now_ns.saturating_sub(since_ns), now_ns));
        }
    }

    /// Until when to rest from now on, with so many quarters of rest for each piece.
    pub(in crate::mirror) fn until_ns(&self, quarters: u8, now_ns: u64) -> Option<u64> {
        let (took_ns, ended_ns) = self.last.filter(|_| quarters > 0 && self.busy_since_ns.is_none())?;
        let rest_ns = (took_ns.saturating_mul(quarters.into()) / QUARTERS).min(LONGEST_NS);
        Some(ended_ns.saturating_add(rest_ns)).filter(|&until_ns| until_ns > now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_in_proportion_to_the_work_and_bounded() {
        let mut rest = Rest::default();
        assert_eq!(rest.until_ns(28, 0), None, "nothing was done yet");
        rest.work(1000);
        rest.work(1100);
        assert_eq!(rest.until_ns(28, 1200), None, "at work");
        rest.pause(1400);
        assert_eq!(rest.until_ns(4, 1500), Some(1800));
        assert_eq!(rest.until_ns(28, 1500), Some(1400 + 7 * 400));
        assert_eq!((rest.until_ns(4, 1800), rest.until_ns(0, 1500)), (None, None));
        rest.work(2000);
        rest.pause(1_000_002_000);
        assert_eq!(rest.until_ns(28, 1_000_002_000), Some(1_000_002_000 + LONGEST_NS));
    }
}
