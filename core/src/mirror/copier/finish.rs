//! The end of requests: short transfers, errors, zeroes in the data, release.

use super::piece::{Phase, Piece};
use super::{Copier, Outing};
use crate::buffer::{BufRange, Window};
use crate::mirror::mutation::Mutation;
use crate::mirror::policy::{self, Side};
use crate::mirror::progress::Count;
use crate::mirror::share::FailureCause;
use crate::units::ByteRange;

/// The smallest sector there is.
const SECTOR_BYTES: u64 = 512;

/// What the data of a piece says about a part of it.
enum Content {
    /// Zeroes that need no request: the target reads as zeroes there.
    Skip(ByteRange),
    /// Zeroes that the target can make itself.
    Zero(ByteRange),
    /// To be written.
    Data(ByteRange),
}

impl Copier {
    /// A request has ended. `is_zero` says whether a range of the memory holds only zeroes.
    pub fn complete(
        &mut self,
        key: u32,
        result: Result<u64, i32>,
        now_ns: u64,
        window: &mut Window,
        is_zero: &dyn Fn(BufRange) -> bool,
    ) {
        let Some(piece) = self.pieces.get(key as usize).copied() else { return };
        let out_bytes = self.flying.out_bytes();
        match piece.phase {
            Phase::Read { .. } => self.flying.reads -= 1,
            Phase::Write { .. } => self.flying.writes -= 1,
            Phase::Zero { .. } => self.flying.zeroes -= 1,
        }
        match result {
            Err(errno) => self.failed(key, piece, errno, FailureCause::Io, now_ns, window),
            Ok(bytes) => self.succeeded(key, piece, bytes, now_ns, window, is_zero),
        }
        if self.outing != Outing::Over && self.flying.out_bytes() < out_bytes {
            self.outing = Outing::Returning;
            if self.flying.out_bytes() == 0 {
                self.outing = Outing::Over;
                self.share.come_back(now_ns);
            }
        }
    }

    /// A request has done `bytes` bytes.
    fn succeeded(
        &mut self,
        key: u32,
        piece: Piece,
        bytes: u64,
        now_ns: u64,
        window: &mut Window,
        is_zero: &dyn Fn(BufRange) -> bool,
    ) {
        let align = self.share.geometry.align_bytes;
        let (asked, _) = piece.request(!self.share.keep_allocated);
        // A transfer that stopped inside a block is taken up again at the block's start.
        let whole = bytes >= asked.len() || self.share.is_mutated(Mutation::ShortAsWhole);
        let done = if whole { asked.len() } else { bytes - bytes % align };
        if matches!(piece.phase, Phase::Zero { .. }) || done == asked.len() {
            self.part_done(key, piece, asked, window, is_zero);
            return;
        }
        match (piece.phase, bytes) {
            // Only the end of the source gives less than a sector.
            (Phase::Read { .. }, 0..SECTOR_BYTES) => {
                self.failed(key, piece, libc::EIO, FailureCause::SourceShrank, now_ns, window);
            }
            // A device that takes nothing and gives no error is full.
            (_, 0) => self.failed(key, piece, libc::ENOSPC, FailureCause::Io, now_ns, window),
            _ if done == 0 => self.failed(key, piece, libc::EIO, FailureCause::Io, now_ns, window),
            (Phase::Read { done: before }, _) => self.again(key, Phase::Read { done: before + done }),
            (Phase::Write { left }, _) => {
                self.count_copied(piece.run, done);
                self.again(key, Phase::Write { left: ByteRange::new(left.start() + done, left.end()) });
            }
            (Phase::Zero { .. }, _) => {}
        }
    }

    /// A request has done all that it was asked: the piece goes on to what comes next in it.
    fn part_done(
        &mut self,
        key: u32,
        piece: Piece,
        asked: ByteRange,
        window: &mut Window,
        is_zero: &dyn Fn(BufRange) -> bool,
    ) {
        let mut at = match piece.phase {
            Phase::Read { .. } => piece.range.start(),
            Phase::Write { .. } => {
                self.count_copied(piece.run, asked.len());
                asked.end()
            }
            Phase::Zero { .. } => {
                self.share.tallies[self.worker].add(Count::Zeroed, asked.len());
                asked.end()
            }
        };
        while at < piece.range.end() {
            if self.share.is_ending() {
                // What was read is not written any more; the chunk is dirty again.
                self.give_up(key, piece, window);
                return;
            }
            match self.content(&piece, at, is_zero) {
                Content::Skip(part) => {
                    self.share.tallies[self.worker].add(Count::Skipped, part.len());
                    self.leave_unwritten(piece.run);
                    at = part.end();
                }
                Content::Zero(part) => return self.proceed(key, Phase::Zero { part }),
                Content::Data(left) => return self.proceed(key, Phase::Write { left }),
            }
        }
        self.retire(key, piece, window);
    }

    /// Counts what was written as data.
    fn count_copied(&self, run: usize, bytes: u64) {
        let tally = &self.share.tallies[self.worker];
        tally.add(Count::Copied, bytes);
        if self.runs.get(run).is_some_and(|run| !run.first) {
            tally.add(Count::Recopied, bytes);
        }
    }

    /// What the data says from `at` on: all of it is written, unless zeroes are looked for.
    fn content(&self, piece: &Piece, at: u64, is_zero: &dyn Fn(BufRange) -> bool) -> Content {
        let rest = ByteRange::new(at, piece.range.end());
        if !self.share.zero_detect {
            return Content::Data(rest);
        }
        let unit = self.share.geometry.zero_unit_bytes;
        let zero_at =
            |from: u64| is_zero(piece.memory_of(ByteRange::new(from, piece.range.end()).prefix(unit)));
        let first = zero_at(at);
        let mut end = at;
        while end < rest.end() && (end == at || zero_at(end) == first) {
            end = end.saturating_add(unit).min(rest.end());
        }
        let part = ByteRange::new(at, end);
        match first {
            true if self.target_is_zero(piece.run) => Content::Skip(part),
            true if !self.share.zero_by_writing() => Content::Zero(part),
            _ => Content::Data(part),
        }
    }

    /// The same request goes on with the rest.
    fn again(&mut self, key: u32, phase: Phase) {
        self.share.tallies[self.worker].add(Count::Retries, 1);
        if let Some(piece) = self.pieces.get_mut(key as usize) {
            piece.phase = phase;
        }
        self.enqueue(key);
    }

    /// The piece goes on to its next request.
    fn proceed(&mut self, key: u32, phase: Phase) {
        if let Some(piece) = self.pieces.get_mut(key as usize) {
            piece.phase = phase;
            piece.tries = 0;
        }
        self.enqueue(key);
    }

    /// A request failed: send it again, or put its chunks back and ask the policy.
    fn failed(
        &mut self,
        key: u32,
        piece: Piece,
        errno: i32,
        cause: FailureCause,
        now_ns: u64,
        window: &mut Window,
    ) {
        let (asked, _) = piece.request(!self.share.keep_allocated);
        let zeroing = matches!(piece.phase, Phase::Zero { .. });
        if zeroing && matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) {
            self.share.set_zero_by_writing();
            match piece.buf.len {
                // There is no memory to write zeroes from: the chunks are copied as data in a later pass.
                0 => self.give_up(key, piece, window),
                // What was read is zero, so it is written.
                _ => self.proceed(key, Phase::Write { left: asked }),
            }
            return;
        }
        if let Some(wait) = policy::transient_backoff_ns(errno, piece.tries) {
            if self.share.is_ending() {
                // It would have passed, so it is no error of the job's: the job ends for another reason.
                self.give_up(key, piece, window);
                return;
            }
            self.share.tallies[self.worker].add(Count::Retries, 1);
            if let Some(piece) = self.pieces.get_mut(key as usize) {
                piece.tries += 1;
            }
            self.parked.push((now_ns + wait, key));
            return;
        }
        self.share.tallies[self.worker].add(Count::Errors, 1);
        let side = if matches!(piece.phase, Phase::Read { .. }) { Side::Source } else { Side::Target };
        self.share.suspect(side, asked);
        self.give_up(key, piece, window);
        let notice = self.share.on_error(side, errno, asked, cause, now_ns);
        self.share.post(notice);
    }

    /// The piece's chunks are dirty again, then its hold on the run is dropped.
    fn give_up(&mut self, key: u32, piece: Piece, window: &mut Window) {
        self.leave_failed(piece.run);
        #[cfg(any(test, feature = "sim"))]
        if self.share.is_mutated(Mutation::ReleaseBeforeRedirty) {
            self.retire(key, piece, window);
            self.late.push(piece.range);
            return;
        }
        if !self.share.is_mutated(Mutation::ForgetFailure) {
            self.share.dirty.mark(piece.range);
        }
        self.retire(key, piece, window);
    }

    /// The second half of a broken protocol: between release and mark everybody else may have a turn, as if another thread
    /// had come in between.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn mark_late(&mut self) {
        for range in self.late.drain(..) {
            self.share.dirty.mark(range);
        }
    }

    /// Not all of the run was written, so its cluster was not touched as a whole.
    pub(super) fn leave_unwritten(&mut self, run: usize) {
        if let Some(run) = self.runs.get_mut(run) {
            run.whole = false;
        }
    }

    /// A part of the run was not copied, and is dirty again.
    fn leave_failed(&mut self, run: usize) {
        if let Some(run) = self.runs.get_mut(run) {
            (run.whole, run.failed) = (false, true);
        }
    }

    /// The piece is over: its memory goes back, its hold on the run is dropped.
    fn retire(&mut self, key: u32, piece: Piece, window: &mut Window) {
        self.pieces.try_remove(key as usize);
        match piece.buf.len {
            0 => self.note_zeroed(piece.range.len()),
            _ => self.give_window(window, piece.buf),
        }
        self.drop_hold(piece.run);
    }

    /// One hold on a run less; the last one releases its claims.
    pub(super) fn drop_hold(&mut self, key: usize) {
        let Some(run) = self.runs.get_mut(key) else { return };
        run.left -= 1;
        if run.left > 0 {
            return;
        }
        let (chunks, whole, failed) = (run.chunks, run.whole, run.failed);
        self.runs.try_remove(key);
        if let (Some(touched), true) = (&self.share.touched, whole) {
            touched.set_bytes(self.share.geometry.bytes_of(chunks));
        }
        if self.share.is_mutated(Mutation::ClearLate) {
            self.share.dirty.clean(chunks);
        }
        self.share.made_up_for(chunks, failed);
        if !self.share.is_mutated(Mutation::NoClaim) {
            self.share.writers.release_by_copier(chunks);
        }
    }

    /// The job ends early: everything that is not in flight is put back, so that "dirty" says what is missing.
    pub(super) fn abandon(&mut self, window: &mut Window) {
        self.forget_holes();
        if let Some(open) = self.open.take() {
            self.share.dirty.mark(ByteRange::new(open.at, open.end));
            self.leave_failed(open.run);
            self.drop_hold(open.run);
            self.share.tallies[self.worker].set_uncut(0);
        }
        for part in [std::mem::take(&mut self.segment), std::mem::take(&mut self.spare)] {
            self.share.dirty.mark(part);
        }
        self.leave_sweep();
        self.grant = None;
        while let Some(key) = self.next_not_sent() {
            if let Some(piece) = self.pieces.get(key as usize).copied() {
                self.give_up(key, piece, window);
            }
        }
        // What is under way may never come back. It is dirty until it is known to be copied, and nobody will ask then.
        for (_, piece) in &self.pieces {
            self.share.dirty.mark(piece.range);
        }
    }

    /// The worker is lost to this job: all that it had in hand is dirty again. Claims stay, for requests may be under way.
    pub fn lose(&mut self) {
        for (_, run) in &self.runs {
            self.share.dirty.mark_chunks(run.chunks);
        }
        for part in [std::mem::take(&mut self.segment), std::mem::take(&mut self.spare)] {
            self.share.dirty.mark(part);
        }
    }

    /// The logic broke: the memory of its pieces goes back, nothing else is trusted. None of them may be in flight.
    pub fn give_up_memory(&mut self, window: &mut Window) {
        while let Some(key) = self.pieces.iter().next().map(|(key, _)| key) {
            let buf = self.pieces.remove(key).buf;
            if buf.len > 0 {
                window.give_back(buf);
            }
        }
    }

    /// A piece whose request was not sent.
    fn next_not_sent(&mut self) -> Option<u32> {
        self.ready_reads
            .pop_front()
            .or_else(|| self.ready_writes.pop_front())
            .or_else(|| self.ready_zeroes.pop_front())
            .or_else(|| self.parked.pop().map(|(_, key)| key))
    }
}
