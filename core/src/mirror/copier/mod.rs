//! One worker's part of a job, as a state machine.
//!
//! The worker asks [`Copier::next`] what to do until it says `Wait`, and tells it the end of every request with
//! [`Copier::complete`]. Work comes in *runs*: neighbouring chunks that are claimed together, from the sweep or from the
//! dirty bitmap. A run is cut into *pieces*, each one request to read and then one to write, sized to both devices. The
//! pieces of a run go their own ways; when the last is done the run's claims are released.
//!
//! ```text
//!            sweep / dirty bitmap
//!                  | claim, clear
//!                 run ----cut---> piece: Read --> Write --> done
//!                  |              piece: Zero ----------> done
//!                  |              (hole, target is zero) -> skipped
//!                  +-- all pieces done --> release
//! ```
//!
//! Invariants upheld here:
//! - **Claim, clear, read.** A run's chunks are claimed, then their dirty bits cleared, then their block status is asked
//!   and their data read. A piece that fails sets its dirty bits again at once, and its run's claims are released after.
//! - **One writer per chunk.** Requests to the target are made only for chunks of a claimed run.
//! - **Every buffer has a bound.** Pieces, runs and queues have fixed capacities; memory comes from the window.

mod ask;
mod finish;
mod memory;
mod piece;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use self::ask::Question;
pub use self::memory::{SEAT_BYTES, spare_bytes};
use self::piece::{OpenRun, Phase, Piece, Run};
use super::limiter::Grant;
use super::share::Share;
use crate::buffer::Window;
use crate::device::Extent;
use crate::ring::{DeviceSlot, Op, Request};
use crate::units::{ByteRange, Chunk, bytes_u64};

/// Pieces of one worker at most.
pub(crate) const MAX_PIECES: usize = 4096;
/// Zeroing requests in flight at most; they share one thread.
const MAX_ZEROES: usize = 16;

/// What the worker is to do for this job now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send this request; tell its end with the key.
    Request(Request, u32),
    /// Ask the source's block status and answer with [`Copier::learn`], now or when the answer comes. There is no other
    /// question before that.
    Status {
        /// At this offset.
        offset: u64,
        /// Of what is there now, because the guest has written there since the job began; otherwise an extent list may answer.
        live: bool,
    },
    /// Nothing now. Come back after a completion, or at this time if there is one.
    Wait(Option<u64>),
}

/// One worker's part of a job.
#[derive(Debug)]
pub struct Copier {
    /// What the workers share.
    share: Arc<Share>,
    /// Which worker this is, for its tally.
    worker: usize,
    /// Which part of the worker's window is this job's alone.
    seat: u32,
    /// The source as the ring knows it.
    source: DeviceSlot,
    /// The target as the ring knows it.
    target: DeviceSlot,
    /// Claimed runs.
    runs: Slab<Run>,
    /// Pieces under way.
    pieces: Slab<Piece>,
    /// The run that is being cut.
    open: Option<OpenRun>,
    /// A part of the sweep that is this worker's, and was not claimed yet.
    segment: ByteRange,
    /// Another such part, from skipping a hole.
    spare: ByteRange,
    /// What is known of the source's block status, and whether it was asked live; holes are forgotten when a run is claimed.
    known: Option<(Extent, bool)>,
    /// The question that is on its way.
    asked: Option<Question>,
    /// Where the search for dirty chunks goes on.
    scan: Chunk,
    /// Pieces whose read is to be sent.
    ready_reads: VecDeque<u32>,
    /// Pieces whose write is to be sent.
    ready_writes: VecDeque<u32>,
    /// Pieces whose zeroing is to be sent.
    ready_zeroes: VecDeque<u32>,
    /// Pieces that are sent again later: time and piece.
    parked: Vec<(u64, u32)>,
    /// Permission for the next bytes, reserved and not yet due.
    grant: Option<(Grant, u64)>,
    /// What this worker has on its way, as the job's rest counts it.
    outing: Outing,
    /// Requests in flight: reads, writes, zeroings.
    flying: Flying,
    /// Whether this worker is counted in as holding a part of the sweep.
    sweeping: bool,
    /// Whether this worker is counted in as having work.
    working: bool,
    /// Counted out since the last `take_counted_out`.
    counted_out: bool,
    /// What a broken protocol marks dirty only after it has let others in.
    #[cfg(any(test, feature = "sim"))]
    late: Vec<ByteRange>,
}

/// Where a worker stands between two rests. Pieces that are begun together are one piece to the guest, and are rested for as
/// one; were others let in when the first is done, there would be no rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outing {
    /// Nothing is on its way.
    Over,
    /// Something is, and nothing of it is done.
    Leaving,
    /// A part of it is done.
    Returning,
}

/// How many requests of each kind are in flight, and how many bytes of the window pieces hold.
#[derive(Debug, Default)]
struct Flying {
    /// Reads.
    reads: usize,
    /// Writes.
    writes: usize,
    /// Zeroings.
    zeroes: usize,
    /// Bytes of window.
    bytes: u64,
    /// Those of them that are not of the job's own seat.
    common_bytes: u64,
    /// Bytes that pieces without memory zero; they are in nobody's window, and on their way all the same.
    zeroing_bytes: u64,
}

impl Flying {
    /// Bytes on their way, as the guest feels them.
    fn out_bytes(&self) -> u64 {
        self.bytes + self.zeroing_bytes
    }
}

impl Copier {
    /// A worker's part of a job, on devices attached to its ring: source and target. Of the worker's window the `seat` is its
    /// own.
    #[must_use]
    pub fn new(share: Arc<Share>, worker: usize, seat: u32, [source, target]: [DeviceSlot; 2]) -> Self {
        // Workers begin their search for dirty chunks apart, so that they do not meet on every claim.
        let workers = bytes_u64(share.tallies.len().max(1));
        let scan = Chunk(share.dirty.chunks() / workers * bytes_u64(worker));
        Self {
            share,
            worker,
            seat,
            source,
            target,
            runs: Slab::with_capacity(MAX_PIECES),
            pieces: Slab::with_capacity(MAX_PIECES),
            open: None,
            segment: ByteRange::default(),
            spare: ByteRange::default(),
            known: None,
            asked: None,
            scan,
            ready_reads: VecDeque::with_capacity(MAX_PIECES),
            ready_writes: VecDeque::with_capacity(MAX_PIECES),
            ready_zeroes: VecDeque::with_capacity(MAX_PIECES),
            parked: Vec::with_capacity(MAX_PIECES),
            grant: None,
            outing: Outing::Over,
            flying: Flying::default(),
            sweeping: false,
            working: false,
            counted_out: false,
            #[cfg(any(test, feature = "sim"))]
            late: Vec::new(),
        }
    }

    /// The job's shared state.
    #[must_use]
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// What to do now.
    pub fn next(&mut self, now_ns: u64, window: &mut Window) -> Step {
        #[cfg(any(test, feature = "sim"))]
        self.mark_late();
        if self.share.is_ending() {
            self.abandon(window);
        }
        self.unpark(now_ns);
        if let Some(step) = self.send_ready() {
            return step;
        }
        let step = if self.share.is_ending() || self.share.is_held() {
            Step::Wait(None)
        } else {
            self.find_work(now_ns, window)
        };
        if matches!(step, Step::Wait(_)) {
            self.count_out();
            self.share.tallies[self.worker].set_pieces(self.pieces.len());
        }
        match step {
            Step::Wait(at) => Step::Wait(self.earliest(at)),
            other => other,
        }
    }

    /// Whether this worker counted itself out since this was asked last.
    pub fn take_counted_out(&mut self) -> bool {
        std::mem::take(&mut self.counted_out)
    }

    /// Whether nothing of this worker's is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty() && self.open.is_none()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.reads + self.flying.writes + self.flying.zeroes
    }

    /// Moves parked pieces whose time has come back to their queue.
    fn unpark(&mut self, now_ns: u64) {
        let mut i = 0;
        while let Some(&(at, key)) = self.parked.get(i) {
            if at <= now_ns {
                self.parked.swap_remove(i);
                self.enqueue(key);
            } else {
                i += 1;
            }
        }
    }

    /// The earliest of `at` and the times of parked pieces.
    fn earliest(&self, at: Option<u64>) -> Option<u64> {
        self.parked.iter().map(|&(at, _)| at).chain(at).min()
    }

    /// Puts a piece into the queue that its phase belongs to.
    fn enqueue(&mut self, key: u32) {
        match self.pieces.get(key as usize).map(|piece| piece.phase) {
            Some(Phase::Read { .. }) => self.ready_reads.push_back(key),
            Some(Phase::Write { .. }) => self.ready_writes.push_back(key),
            Some(Phase::Zero { .. }) => self.ready_zeroes.push_back(key),
            None => {}
        }
    }

    /// A request of a piece that is ready, writes first: they free memory.
    fn send_ready(&mut self) -> Option<Step> {
        let geometry = &self.share.geometry;
        let (key, side) = if self.flying.writes < geometry.target_depth && !self.ready_writes.is_empty() {
            self.flying.writes += 1;
            (self.ready_writes.pop_front()?, self.target)
        } else if self.flying.zeroes < MAX_ZEROES && !self.ready_zeroes.is_empty() {
            self.flying.zeroes += 1;
            (self.ready_zeroes.pop_front()?, self.target)
        } else if self.flying.reads < geometry.source_depth && !self.ready_reads.is_empty() {
            self.flying.reads += 1;
            (self.ready_reads.pop_front()?, self.source)
        } else {
            return None;
        };
        let (range, op) = self.pieces.get(key as usize)?.request(!self.share.keep_allocated);
        Some(Step::Request(Request { device: side, range, op }, key))
    }

    /// The ring had no room for the last request: it stays ready.
    pub fn push_back(&mut self, request: &Request, key: u32) {
        let (flying, queue) = match request.op {
            Op::Read(_) | Op::ReadHost(_) => (&mut self.flying.reads, &mut self.ready_reads),
            Op::Write(_) | Op::WriteThrough(_) | Op::WriteHost { .. } => {
                (&mut self.flying.writes, &mut self.ready_writes)
            }
            Op::Zero { .. } | Op::Discard | Op::Flush | Op::Status => {
                (&mut self.flying.zeroes, &mut self.ready_zeroes)
            }
        };
        *flying -= 1;
        queue.push_front(key);
    }

    /// Counts this worker in before it looks for work; `false` when the job is over.
    fn count_in(&mut self) -> bool {
        self.working = self.working || self.share.activity.begin_work();
        self.working
    }

    /// Counts this worker out of the sweep when it holds no part of it any more.
    fn leave_sweep(&mut self) {
        if self.sweeping && self.segment.is_empty() && self.spare.is_empty() {
            self.sweeping = false;
            self.share.activity.end_sweep();
        }
    }

    /// Counts this worker out when it has nothing in hand.
    fn count_out(&mut self) {
        let empty =
            self.pieces.is_empty() && self.open.is_none() && self.segment.is_empty() && self.spare.is_empty();
        if self.working && empty {
            self.working = false;
            self.counted_out = true;
            // With nothing in hand a turn is no use.
            self.share.tallies[self.worker].set_waits(false);
            self.share.activity.end_work();
        }
    }

    /// A piece without memory is going to zero so many bytes.
    fn note_zeroing(&mut self, bytes: u64) {
        self.flying.zeroing_bytes += bytes;
        self.tell_in_flight();
    }

    /// It is over.
    fn note_zeroed(&mut self, bytes: u64) {
        self.flying.zeroing_bytes = self.flying.zeroing_bytes.saturating_sub(bytes);
        self.tell_in_flight();
    }

    /// Counts what is on its way, so that a probe of the guest's baseline knows when nothing is.
    fn tell_in_flight(&self) {
        self.share.tallies[self.worker].set_in_flight(self.flying.out_bytes());
    }
}
