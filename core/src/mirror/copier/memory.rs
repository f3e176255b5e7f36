//! How much of a worker's memory a job takes.
//!
//! All jobs of a worker live in one window, and memory comes back only with the request that holds it. A target may die, and
//! what its job holds then stays held for as long as the job, or longer. Three rules keep any number of such jobs from
//! starving the others, and one job from being slow for others that are not there:
//!
//! - **A seat for everybody.** Each job has a few bytes that nobody else may take ([`SEAT_BYTES`]), from the day the worker
//!   starts and for as many jobs as there may ever be; one that comes late finds its own. It works there when it
//!   gets nothing else: one small request at a time, but it goes on.
//! - **All but a reserve while nobody else holds any** of the common memory ([`RESERVE_BYTES`]). Jobs that only wait for their
//!   guest to write do not count.
//! - **Two thirds of what the others leave**, once somebody does. Of jobs that are at work together each has its share,
//!   `2 / (2n + 1)` of the memory: two have four fifths of it, and what they leave is where a third begins. One that had more
//!   before gets there as its requests come back. Jobs that die one after the other leave less and less, but in large pieces:
//!   2 MiB, 1 MiB, 512 KiB and so on.
//!
//! A request is as long as the devices and the pace like it. It is cut smaller only where a job that holds none of the common
//! memory would get nothing otherwise; one that holds some waits instead, for what it has comes back. Else jobs in a
//! narrow place would cut the window into ever smaller pieces.
//!
//! A job that ends gives back what came back to it. The rest stays with its seat, which nobody else gets before that:
//! a worker keeps its part of a job until its last request is done.

use super::Copier;
use crate::buffer::{BufRange, Window};

/// Of the common memory, what a job leaves to others that may come, where there is enough of it.
const RESERVE_BYTES: u64 = 2 << 20;
/// What each job has for itself. A device whose blocks are larger, which is rare, has no use for it.
pub const SEAT_BYTES: u32 = 32 << 10;

/// What a worker needs beyond the memory that one job may fill, if it carries up to so many `jobs`.
#[must_use]
pub fn spare_bytes(jobs: u32) -> u64 {
    RESERVE_BYTES + u64::from(jobs) * u64::from(SEAT_BYTES)
}

/// How much of the common memory a job may hold that holds `mine` bytes of it now.
fn most_of_common(window: &Window, mine: u64) -> u64 {
    let all = u64::from(window.common_bytes());
    let left = mine + u64::from(window.free_common_bytes());
    if left >= all { all - RESERVE_BYTES.min(all / 4) } else { left / 3 * 2 }
}

/// Where `want` bytes more may be for a job that holds `mine` bytes of the common memory.
fn more_room(window: &Window, mine: u64, want: u64) -> Option<BufRange> {
    let len = u32::try_from(want).ok().filter(|_| mine + want <= most_of_common(window, mine))?;
    window.room(len)
}

/// Room for the longest request of at most `want` bytes, for a job that holds none of the common memory.
fn first_room(window: &Window, seat: u32, want: u64, align: u64) -> Option<BufRange> {
    let aligned = |len: u64| len - len % align;
    let own = aligned(u64::from(window.seat_bytes()));
    let mut len = want;
    while len > 0 {
        if let Some(room) = more_room(window, 0, len) {
            return Some(room);
        }
        // What fits on the seat need not be smaller.
        len = if len <= own { 0 } else { aligned(len / 2) };
    }
    let len = u32::try_from(want.min(own)).ok().filter(|&len| len > 0)?;
    window.seat_room(seat, len)
}

impl Copier {
    /// Room for a piece of at most `want` bytes; `None` when it must wait.
    pub(super) fn room(&self, window: &Window, want: u64) -> Option<BufRange> {
        let paced = self.share.paced_bytes(self.worker);
        let most = self.share.geometry.buf_bytes.min(paced);
        // Beside a zeroing, which needs no memory, a small pace leaves as much less.
        let held = if self.share.is_paced() { self.flying.out_bytes() } else { self.flying.bytes };
        if paced == 0 || (held > 0 && held + want > most) {
            return None;
        }
        match self.flying.common_bytes {
            0 => first_room(window, self.seat, want, self.share.geometry.align_bytes),
            mine => more_room(window, mine, want),
        }
    }

    /// Takes the memory of a piece, as found by [`Self::room`].
    pub(super) fn take_window(&mut self, window: &mut Window, room: BufRange) {
        window.occupy(room);
        self.flying.bytes += u64::from(room.len);
        if window.is_common(room) {
            self.flying.common_bytes += u64::from(room.len);
        }
        self.tell_in_flight();
    }

    /// Gives the memory of a piece back.
    pub(super) fn give_window(&mut self, window: &mut Window, buf: BufRange) {
        if buf.len == 0 {
            return;
        }
        window.give_back(buf);
        self.flying.bytes -= u64::from(buf.len);
        if window.is_common(buf) {
            self.flying.common_bytes -= u64::from(buf.len);
        }
        self.tell_in_flight();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{KIB, MIB};

    /// A worker's window as it is unless the host says otherwise.
    fn window() -> Window {
        Window::with_seats((16 << 20) + usize::try_from(spare_bytes(64)).unwrap(), 64, SEAT_BYTES)
    }

    /// A job that takes what it gets, in requests of at most 1 MiB; what it then holds.
    fn fill(window: &mut Window, seat: u32) -> Vec<BufRange> {
        let (mut held, mut mine) = (Vec::new(), 0);
        while let Some(room) = match mine {
            0 => first_room(window, seat, MIB, 512),
            _ => more_room(window, mine, MIB),
        } {
            window.occupy(room);
            held.push(room);
            if !window.is_common(room) {
                break;
            }
            mine += u64::from(room.len);
        }
        held
    }

    fn sum(held: &[BufRange]) -> u64 {
        held.iter().map(|buf| u64::from(buf.len)).sum()
    }

    /// A job alone that got less than it asked for would copy slower than the devices can.
    #[test]
    fn a_job_alone_fills_all_that_its_host_gave_it() {
        assert_eq!(sum(&fill(&mut window(), 0)), 16 * MIB);
    }

    /// The first to die has all. Were its heirs left with nothing, or with crumbs at once, one dead disk would be enough to
    /// stop a host's other jobs or to make them crawl.
    #[test]
    fn jobs_that_die_one_after_the_other_leave_less_and_less_but_never_nothing() {
        let mut w = window();
        let held: Vec<u64> = (0..64).map(|seat| sum(&fill(&mut w, seat)) / KIB).collect();
        assert_eq!(held[..7], [16 * 1024, 1024, 512, 256, 128, 64, 32]);
        assert!(held[7..].iter().all(|&kib| kib == 32), "{held:?}");
    }

    /// A job that copies scattered chunks has many small requests on their way, not one after the other on its seat.
    #[test]
    fn small_requests_are_many() {
        let mut w = window();
        let room = |w: &Window| first_room(w, 0, 4096, 512).map(|room| (room.len, w.is_common(room)));
        assert_eq!(room(&w), Some((4096, true)));
        while w.take(1 << 20).is_some() {}
        assert_eq!(room(&w), Some((4096, false)));
    }

    /// Where requests that never come back lie all over the window, there is no large room; a job that waited for one
    /// would wait for ever.
    #[test]
    fn a_window_in_splinters_gives_small_requests() {
        let mut w = window();
        let all: Vec<_> = std::iter::from_fn(|| w.take(64 << 10)).collect();
        for pair in all.chunks(2) {
            w.give_back(pair[0]);
        }
        let room = first_room(&w, 0, MIB, 512).unwrap();
        assert_eq!((u64::from(room.len), w.is_common(room)), (64 * KIB, true));
    }

    /// Jobs at work together: what one holds more than its share comes back with its requests, and each gets the same.
    #[test]
    fn jobs_at_work_share_most_of_the_window() {
        let mut w = window();
        let mut jobs: Vec<Vec<BufRange>> = (0..3).map(|seat| fill(&mut w, seat)).collect();
        for _ in 0..100 {
            for (seat, held) in (0..).zip(&mut jobs) {
                // One request comes back, and the job takes what it may in its place.
                let back = held.remove(0);
                w.give_back(back);
                let mut mine = sum(held);
                if mine == 0 {
                    *held = fill(&mut w, seat);
                    continue;
                }
                while let Some(room) = more_room(&w, mine, MIB) {
                    w.occupy(room);
                    held.push(room);
                    mine += MIB;
                }
            }
        }
        let shares: Vec<u64> = jobs.iter().map(|held| sum(held) / MIB).collect();
        assert!(shares.iter().all(|&mib| (4..=6).contains(&mib)), "{shares:?} MiB");
    }

    /// Sixty-four jobs at work: none is left to its seat, where requests are small.
    #[test]
    fn as_many_jobs_as_there_may_be_have_more_than_their_seats() {
        let mut w = window();
        let mut jobs: Vec<Vec<BufRange>> = (0..64).map(|seat| fill(&mut w, seat)).collect();
        for _ in 0..100 {
            for (seat, held) in (0..).zip(&mut jobs) {
                let back = held.remove(0);
                w.give_back(back);
                if held.is_empty() {
                    *held = fill(&mut w, seat);
                }
            }
        }
        let least = jobs.iter().map(|held| sum(held)).min().unwrap();
        assert!(least >= 128 * KIB, "{} KiB", least / KIB);
    }
}
