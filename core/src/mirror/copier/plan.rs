//! Finding work: taking segments and dirty chunks, claiming runs, cutting pieces.

use super::piece::{OpenRun, Phase, Piece, Run};
use super::{Copier, MAX_PIECES, Outing, Step};
use crate::buffer::{BufRange, Window};
use crate::device::ExtentKind;
use crate::mirror::mutation::Mutation;
use crate::mirror::progress::Count;
use crate::units::{ByteRange, Chunk, ChunkRange, MIB};

/// A worker that waits for what others have, and has nothing on its way, looks again after this.
const OTHERS_NS: u64 = 10_000_000;
/// When there is work but all of it is somebody else's now, look again after this.
const MEET_NS: u64 = 1_000_000;

/// Who waits for the speed limit looks at least so often whether it was changed.
const GRANT_LOOK_NS: u64 = 100_000_000;

/// The largest zeroing while the copiers make room for a guest.
const PACED_ZERO_BYTES: u64 = MIB;

/// What cutting led to.
enum Cut {
    /// A piece was made or a hole skipped; go on.
    More,
    /// The run is cut to its end.
    End,
}

impl Copier {
    /// Makes the next piece and returns its first request, or says why there is none.
    pub(super) fn find_work(&mut self, now_ns: u64, window: &mut Window) -> Step {
        if !self.count_in() {
            return Step::Wait(None);
        }
        loop {
            if self.open.is_none()
                && let Err(step) = self.open_run(now_ns)
            {
                return step;
            }
            match self.cut(now_ns, window) {
                Ok(Cut::More) => {
                    if let Some(step) = self.send_ready() {
                        return step;
                    }
                }
                Ok(Cut::End) => self.close_run(),
                Err(step) => return step,
            }
        }
    }

    /// Claims a run; `Err` with the step to take when there is none to be had now.
    fn open_run(&mut self, now_ns: u64) -> Result<(), Step> {
        if self.runs.len() >= MAX_PIECES {
            return Err(Step::Wait(None));
        }
        while self.take_segment() {
            let wanted = self.wanted_of_segment()?;
            let chunks = self.share.geometry.chunks_to_own(wanted);
            let got = self.claim(chunks);
            if got.is_empty() {
                // Somebody else owns what comes first. It is left to the dirty bitmap, so that nobody waits for anybody.
                let unit = wanted.prefix(self.share.geometry.unit_bytes());
                self.share.dirty.mark(unit);
                self.segment = ByteRange::new(unit.end(), self.segment.end());
                continue;
            }
            let range = self.share.geometry.bytes_of(got);
            self.segment = ByteRange::new(range.end(), self.segment.end());
            self.start_run(got, true);
            self.leave_sweep();
            return Ok(());
        }
        self.open_dirty_run(now_ns)
    }

    /// Makes sure that there is a segment; `false` when the sweep has no more.
    fn take_segment(&mut self) -> bool {
        if self.segment.is_empty() {
            self.segment = std::mem::take(&mut self.spare);
        }
        if self.segment.is_empty() && !self.share.sweep.is_over() {
            if !self.sweeping {
                self.sweeping = true;
                self.share.activity.begin_sweep();
            }
            self.segment = self.share.sweep.take(self.share.geometry.segment_bytes).unwrap_or_default();
        }
        self.leave_sweep();
        !self.segment.is_empty()
    }

    /// How much of the segment to claim: a run, or more where there is a long hole.
    fn wanted_of_segment(&mut self) -> Result<ByteRange, Step> {
        let geometry = &self.share.geometry;
        let start = self.segment.start();
        let run = self.segment.prefix(geometry.run_bytes);
        if !geometry.ask_status || geometry.cluster.is_some() {
            return Ok(run);
        }
        let Some(hint) = self.known_at(start, false) else {
            return Err(self.ask(start, false));
        };
        if hint.kind == ExtentKind::Data || hint.range.end() < start.saturating_add(2 * geometry.run_bytes) {
            return Ok(run);
        }
        // Only a hint: the hole is asked for again once its chunks are claimed and their bits cleared.
        let unit = geometry.unit_bytes();
        let hole_end = hint.range.end().min(geometry.disk_bytes);
        let hole_end = if hole_end == geometry.disk_bytes { hole_end } else { hole_end - hole_end % unit };
        if hole_end > self.segment.end() && self.spare.is_empty() {
            let more = self.share.sweep.skip_to(hole_end);
            if more.start() == self.segment.end() {
                self.segment = ByteRange::new(start, more.end().max(self.segment.end()));
            } else {
                self.spare = more;
            }
        }
        let end = hole_end.min(self.segment.end()).min(start.saturating_add(self.share.geometry.hole_bytes));
        Ok(ByteRange::new(start, end))
    }

    /// Claims a run of dirty chunks.
    fn open_dirty_run(&mut self, now_ns: u64) -> Result<(), Step> {
        if !self.share.sweep_is_claimed() && !self.share.is_mutated(Mutation::DirtyBeforeSweep) {
            return Err(Step::Wait(Some(now_ns + MEET_NS)));
        }
        if let Some(at) = self.share.round_wait(now_ns) {
            return Err(Step::Wait(Some(at)));
        }
        let geometry = &self.share.geometry;
        let most = (geometry.run_bytes / geometry.granularity.bytes()).max(1);
        let start = self.scan;
        let (mut wrapped, mut met) = (false, false);
        loop {
            let found = self.share.dirty.next_run(self.scan, most);
            let Some(run) = found.filter(|run| !wrapped || run.start() < start.0) else {
                if wrapped || start.0 == 0 {
                    self.scan = Chunk(0);
                    return Err(Step::Wait(met.then_some(now_ns + MEET_NS)));
                }
                wrapped = true;
                self.scan = Chunk(0);
                continue;
            };
            let geometry = &self.share.geometry;
            let got = self.claim(geometry.chunks_to_own(geometry.bytes_of(run)));
            self.scan = Chunk(if got.is_empty() { run.start() + 1 } else { got.end() });
            if !got.is_empty() {
                self.start_run(got, false);
                return Ok(());
            }
            met = true;
        }
    }

    /// Claims the longest free prefix of `chunks`, in whole clusters where there are clusters.
    fn claim(&self, chunks: ChunkRange) -> ChunkRange {
        if self.share.is_mutated(Mutation::NoClaim) {
            return chunks;
        }
        let got = self.share.writers.claim_for_copier(chunks);
        if self.share.geometry.cluster.is_none() || got.len() == chunks.len() || got.is_empty() {
            return got;
        }
        let cluster_chunks = self.share.geometry.unit_bytes() / self.share.geometry.granularity.bytes();
        let keep = ChunkRange::new(got.start(), got.start() + got.len() / cluster_chunks * cluster_chunks);
        self.share.writers.release_by_copier(ChunkRange::new(keep.end(), got.end()));
        keep
    }

    /// Claim, clear, read: the chunks are claimed; now their bits are cleared, and what was known of holes in them is
    /// forgotten, so that a guest write before this moment is seen by the status that is asked after it.
    pub(super) fn start_run(&mut self, chunks: ChunkRange, first: bool) {
        if !self.share.is_mutated(Mutation::ClearLate) {
            self.share.dirty.clean(chunks);
        }
        self.forget_holes();
        let range = self.share.geometry.bytes_of(chunks);
        let run = self.runs.insert(Run { chunks, left: 1, first, whole: true, failed: false });
        self.open = Some(OpenRun { run, at: range.start(), end: range.end(), forced_until: range.start() });
        self.share.tallies[self.worker].set_uncut(range.len());
    }

    /// The run is cut to its end: drops the cutter's hold on it.
    fn close_run(&mut self) {
        if let Some(open) = self.open.take() {
            self.drop_hold(open.run);
        }
    }

    /// Whether the guest wrote the chunk at `at` since the job began, where that matters, and up to where the answer holds.
    fn rewritten_at(&self, at: u64, end: u64) -> (bool, u64) {
        let Some(rewritten) = &self.share.rewritten else { return (false, end) };
        let geometry = &self.share.geometry;
        let (here, chunks) =
            (geometry.granularity.chunk_of(at), geometry.granularity.chunks_touched(ByteRange::new(at, end)));
        match rewritten.next_run(here, chunks.len()) {
            Some(run) if run.start() == here.0 => (true, geometry.bytes_of(run).end().min(end)),
            Some(run) => (false, geometry.bytes_of(run).start().min(end)),
            None => (false, end),
        }
    }

    /// Makes the next piece of the open run, or skips a hole; `Err` with the step to take when it cannot now.
    fn cut(&mut self, now_ns: u64, window: &mut Window) -> Result<Cut, Step> {
        let Some(open) = self.open.filter(|open| open.at < open.end) else { return Ok(Cut::End) };
        if self.pieces.len() >= MAX_PIECES {
            return Err(Step::Wait(None));
        }
        let (kind, end) = self.classify(open)?;
        let whole = ByteRange::new(open.at, end);
        match kind {
            ExtentKind::Data => self.cut_data(open.run, whole, now_ns, window)?,
            ExtentKind::Zero if !self.target_is_zero(open.run) => self.cut_zero(open.run, whole, now_ns)?,
            ExtentKind::Zero | ExtentKind::Absent => {
                self.share.tallies[self.worker].add(Count::Skipped, whole.len());
                self.leave_unwritten(open.run);
                self.advance(whole.end());
            }
        }
        Ok(Cut::More)
    }

    /// Whether the target reads as zeroes in the chunks of a run.
    pub(super) fn target_is_zero(&self, run: usize) -> bool {
        let trusted = self.share.is_mutated(Mutation::TrustZeroTarget);
        self.share.target_is_zero && self.runs.get(run).is_some_and(|run| run.first || trusted)
    }

    /// What lies at the cutting point and where it ends, both on the devices' alignment.
    fn classify(&mut self, mut open: OpenRun) -> Result<(ExtentKind, u64), Step> {
        let geometry = &self.share.geometry;
        if !geometry.ask_status {
            return Ok((ExtentKind::Data, open.end));
        }
        if open.at < open.forced_until {
            return Ok((ExtentKind::Data, open.forced_until));
        }
        let (live, live_end) = self.rewritten_at(open.at, open.end);
        let Some(extent) = self.known_at(open.at, live) else {
            return Err(self.ask(open.at, live));
        };
        let mut ext_end = extent.range.end().min(live_end);
        if let Some(cluster) = geometry.cluster {
            // A hole in part of a cluster that is written for the first time: the rest of the cluster must not be filled
            // from the target's backing file, so all of it is copied.
            let cluster_end =
                (open.at - open.at % cluster.bytes()).saturating_add(cluster.bytes()).min(open.end);
            let first_touch = self.share.touched.as_ref().is_some_and(|t| !t.test(cluster.chunk_of(open.at)));
            if first_touch && (extent.kind == ExtentKind::Data || ext_end < cluster_end) {
                open.forced_until = cluster_end;
                self.open = Some(open);
                return Ok((ExtentKind::Data, cluster_end));
            }
            ext_end = ext_end.min(cluster_end);
        }
        let align = geometry.align_bytes;
        let up = |at: u64| at.next_multiple_of(align).min(open.end);
        if extent.kind == ExtentKind::Data
            || (extent.kind == ExtentKind::Zero && self.share.zero_by_writing())
        {
            return Ok((ExtentKind::Data, up(ext_end)));
        }
        // The block that a hole ends in holds data too.
        let hole_end = if ext_end == open.end { ext_end } else { ext_end - ext_end % align };
        if hole_end > open.at { Ok((extent.kind, hole_end)) } else { Ok((ExtentKind::Data, up(open.at + 1))) }
    }

    /// Makes a piece that reads and writes, when there is memory and the speed limit allows it.
    fn cut_data(
        &mut self,
        run: usize,
        whole: ByteRange,
        now_ns: u64,
        window: &mut Window,
    ) -> Result<(), Step> {
        if self.ready_reads.len() + self.flying.reads >= self.share.geometry.source_depth {
            return Err(Step::Wait(None));
        }
        let longest = self.share.request_bytes().min(self.most_at_once_bytes()).min(self.share.tail_bytes());
        let wanted = whole.prefix(longest.min(self.granted_bytes(now_ns)));
        let Some(buf) = self.room(window, wanted.len()) else {
            return Err(self.wait_for_others(now_ns));
        };
        let range = wanted.prefix(buf.len.into());
        self.set_out(range.len(), true, now_ns)?;
        self.take_window(window, buf);
        self.add_piece(Piece { run, range, buf, phase: Phase::Read { done: 0 }, tries: 0 });
        self.advance(range.end());
        Ok(())
    }

    /// So many bytes are about to be on their way, once the speed limit, if they count under it, and the job's rest let them.
    fn set_out(&mut self, bytes: u64, count: bool, now_ns: u64) -> Result<(), Step> {
        let is_limited = count && self.wait_for_grant(bytes, now_ns)?;
        self.go_out(now_ns)?;
        if is_limited {
            self.grant = None;
        }
        Ok(())
    }

    /// Counts this worker in as having something on its way, unless it is to rest.
    fn go_out(&mut self, now_ns: u64) -> Result<(), Step> {
        match self.outing {
            Outing::Over => self.share.go_out(now_ns).map_err(|at| Step::Wait(Some(at)))?,
            Outing::Returning if self.share.pace().rest_quarters > 0 => return Err(Step::Wait(None)),
            Outing::Leaving | Outing::Returning => return Ok(()),
        }
        self.outing = Outing::Leaving;
        Ok(())
    }

    /// Until when to wait for memory, the turn or a faster pace. What is on its way wakes this worker when it ends. With nothing
    /// there it looks again by itself: others let go of memory and turns, and little may be left all of a sudden, without telling.
    fn wait_for_others(&self, now_ns: u64) -> Step {
        Step::Wait((self.in_flight() == 0).then_some(now_ns + OTHERS_NS))
    }

    /// What a reservation that was not used yet is for; without one, or when none is needed, there is no bound.
    fn granted_bytes(&self, now_ns: u64) -> u64 {
        if self.share.is_urgent() {
            return u64::MAX;
        }
        let held = self.grant.filter(|(grant, _)| self.share.limiter.holds(*grant, now_ns));
        held.map_or(u64::MAX, |(_, bytes)| bytes)
    }

    /// Holds a reservation for `bytes` until its time has come; whether one is used, for a switch-over needs none.
    ///
    /// What was reserved before a switch-over is kept for after it. Were it dropped, each closing of the gate would push the
    /// line of time on by a slot for each worker, far ahead of now where that happens every few milliseconds.
    fn wait_for_grant(&mut self, bytes: u64, now_ns: u64) -> Result<bool, Step> {
        if self.share.is_urgent() {
            return Ok(false);
        }
        let limiter = &self.share.limiter;
        let grant = match self.grant {
            Some((grant, _)) if limiter.holds(grant, now_ns) => grant,
            given => limiter.reserve(now_ns, bytes, given.map(|(grant, _)| grant)),
        };
        self.grant = Some((grant, bytes));
        // One that lies far away may become void without anybody knowing who waits for it.
        let until_ns = grant.start_ns.min(now_ns + GRANT_LOOK_NS);
        if grant.start_ns > now_ns { Err(Step::Wait(Some(until_ns))) } else { Ok(true) }
    }

    /// The largest request that the speed limit and the pace allow, in whole blocks.
    fn most_at_once_bytes(&self) -> u64 {
        let (limit, align) = (self.share.most_at_once_bytes(), self.share.geometry.align_bytes);
        (limit - limit % align).max(align)
    }

    /// Makes a piece that zeroes, when the pace allows it. The speed limit is asked only where zeroes are really written: a
    /// hole costs next to nothing, and a sparse disk would take as long as a full one.
    fn cut_zero(&mut self, run: usize, whole: ByteRange, now_ns: u64) -> Result<(), Step> {
        if self.ready_zeroes.len() >= super::MAX_ZEROES || !self.may_zero() {
            return Err(self.wait_for_others(now_ns));
        }
        let mut longest = self.share.geometry.zero_bytes;
        if self.share.writes_zeroes() {
            let most = self.most_at_once_bytes().min(self.share.geometry.buf_bytes);
            longest = longest.min(most).min(self.granted_bytes(now_ns));
        } else if self.share.is_paced() {
            longest = longest.min(PACED_ZERO_BYTES.max(self.share.geometry.align_bytes));
        }
        let part = whole.prefix(longest);
        self.set_out(part.len(), self.share.writes_zeroes(), now_ns)?;
        self.note_zeroing(part.len());
        self.add_piece(Piece {
            run,
            range: part,
            buf: BufRange::default(),
            phase: Phase::Zero { part },
            tries: 0,
        });
        self.advance(part.end());
        Ok(())
    }

    /// Whether the pace allows a zeroing: while it holds the copiers back, one at a time, and only beside so much data that
    /// something is left of it. Zeroes that are written are at no time more than data would be, for a guest that comes back
    /// waits behind them.
    fn may_zero(&self) -> bool {
        let (data, zeroing) = (self.flying.bytes, self.flying.zeroing_bytes);
        if self.share.is_paced() {
            return zeroing == 0 && data < self.share.paced_bytes(self.worker);
        }
        zeroing == 0 || !self.share.writes_zeroes() || data + zeroing < self.share.geometry.buf_bytes
    }

    /// Enters a piece and makes it ready.
    fn add_piece(&mut self, piece: Piece) {
        if let Some(run) = self.runs.get_mut(piece.run) {
            run.left += 1;
        }
        // There are fewer than MAX_PIECES, which fits.
        let key = u32::try_from(self.pieces.insert(piece)).unwrap_or(u32::MAX);
        self.share.tallies[self.worker].set_pieces(self.pieces.len());
        self.enqueue(key);
    }

    /// Moves the cutting point.
    fn advance(&mut self, to: u64) {
        if let Some(open) = &mut self.open {
            open.at = to;
            self.share.tallies[self.worker].set_uncut(open.end - to);
        }
    }
}
