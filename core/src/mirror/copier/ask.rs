//! What is known of the source's holes, and the question that is on its way.
//!
//! A local file system answers at once. One that may hang is asked with a request whose answer comes later or never, so a question
//! is something that can be under way, like a piece: the copier goes on with its pieces, and can be abandoned. There is one
//! question at a time, so that no answer is taken for another's.
//!
//! **Claim, clear, read.** An answer is as old as its question. When a run's bits are cleared, the marks of all guest writes until
//! then are gone, so whatever was asked before, answered or not, says nothing about that run's holes any more.

use super::{Copier, Step};
use crate::device::{Extent, ExtentKind};
use crate::mirror::mutation::Mutation;
use crate::units::ByteRange;

/// A question for block status that was not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Question {
    /// As in [`Step::Status`].
    offset: u64,
    /// As in [`Step::Status`].
    live: bool,
    /// Bits were cleared since it was asked, or the job has ended: the answer will be forgotten.
    is_stale: bool,
}

impl Copier {
    /// The question for what is at `offset`, or the wait for the answer to the one before.
    pub(super) fn ask(&mut self, offset: u64, live: bool) -> Step {
        if self.is_asking() {
            return Step::Wait(None);
        }
        self.asked = Some(Question { offset, live, is_stale: false });
        Step::Status { offset, live }
    }

    /// The ring had no room for the question of the last step: it is asked again.
    pub fn not_asked(&mut self) {
        self.asked = None;
    }

    /// Whether a question is on its way.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// The answer to [`Step::Status`]. A file system that cannot say (`None`) has data there.
    pub fn learn(&mut self, status: Option<Extent>) {
        let Some(Question { offset, live, is_stale }) = self.asked.take() else { return };
        if is_stale {
            return;
        }
        let data = || Extent {
            range: ByteRange::new(offset, self.share.geometry.disk_bytes),
            kind: ExtentKind::Data,
        };
        let mut extent =
            status.filter(|e| e.range.start() <= offset && offset < e.range.end()).unwrap_or_else(data);
        if self.share.top && !live && extent.kind == ExtentKind::Zero {
            extent.kind = ExtentKind::Absent;
        }
        self.known = Some((extent, live));
    }

    /// What is known of the source at `offset`, asked live or not.
    pub(super) fn known_at(&self, offset: u64, live: bool) -> Option<Extent> {
        let here = |(known, asked): (Extent, bool)| {
            (asked == live && known.range.start() <= offset && offset < known.range.end()).then_some(known)
        };
        self.known.and_then(here)
    }

    /// Bits were cleared: what was asked before is not relied on any more. Data that became a hole is still copied right.
    pub(super) fn forget_holes(&mut self) {
        if self.share.is_mutated(Mutation::StaleStatus) {
            return;
        }
        if self.known.is_some_and(|(known, _)| known.kind != ExtentKind::Data) {
            self.known = None;
        }
        if let Some(question) = &mut self.asked {
            question.is_stale = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::buffer::Window;
    use crate::mirror::{Bitmaps, DeviceShape, Geometry, LatencyBudget, MirrorOptions, Share};
    use crate::ring::{DeviceSlot, Op};
    use crate::units::{ChunkRange, KIB, MIB};

    /// A copier of a disk of 8 MiB, and memory for it.
    fn copier() -> (Copier, Window) {
        let options = MirrorOptions { latency_budget: LatencyBudget::Off, ..MirrorOptions::default() };
        let shape = DeviceShape {
            size_bytes: 8 * MIB,
            align_bytes: 512,
            max_request_bytes: 256 * KIB,
            has_holes: true,
            ..DeviceShape::default()
        };
        let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
        let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
        let share = Share::new(geometry, &options, bitmaps, false, 1);
        (Copier::new(Arc::new(share), 0, 0, [DeviceSlot(0), DeviceSlot(1)]), Window::new(4 << 20))
    }

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange::new(start, end), kind }
    }

    /// A guest's write between question and clearing left a mark that is gone, and the answer still says "hole".
    #[test]
    fn an_answer_to_a_question_from_before_the_bits_were_cleared_is_forgotten() {
        let (mut copier, _) = copier();
        assert_eq!(copier.ask(0, false), Step::Status { offset: 0, live: false });
        copier.start_run(ChunkRange::new(0, 4), true);
        assert_eq!(
            copier.ask(0, false),
            Step::Wait(None),
            "the old answer is waited for, or it might be taken for the new one"
        );
        copier.learn(Some(extent(0, 8 * MIB, ExtentKind::Zero)));
        assert_eq!(copier.known_at(0, false), None);
        assert_eq!(copier.ask(0, false), Step::Status { offset: 0, live: false });
        copier.learn(Some(extent(0, 65536, ExtentKind::Data)));
        assert_eq!(copier.known_at(0, false), Some(extent(0, 65536, ExtentKind::Data)));
        copier.learn(Some(extent(0, 65536, ExtentKind::Zero)));
        assert_eq!(copier.known_at(0, false).map(|known| known.kind), Some(ExtentKind::Data), "nobody asked");
    }

    /// A source that is slow to say where its holes are would also be read slowly, and a hanging one would keep memory.
    #[test]
    fn pieces_go_on_while_a_question_is_on_its_way_and_the_job_can_be_cancelled() {
        let (mut copier, mut window) = copier();
        assert_eq!(copier.next(0, &mut window), Step::Status { offset: 0, live: false });
        copier.learn(Some(extent(0, 64 * KIB, ExtentKind::Data)));
        let Step::Request(read, key) = copier.next(0, &mut window) else { panic!("there is data") };
        assert_eq!(
            (read.op, read.range),
            (Op::Read(crate::buffer::BufRange { start: 0, len: 65536 }), ByteRange::new(0, 65536))
        );
        assert_eq!(copier.next(0, &mut window), Step::Status { offset: 65536, live: false });
        assert_eq!(copier.next(0, &mut window), Step::Wait(None));
        copier.complete(key, Ok(65536), 0, &mut window, &|_| false);
        let Step::Request(write, key) = copier.next(0, &mut window) else { panic!("it was read") };
        assert!(matches!(write.op, Op::Write(_)));
        copier.complete(key, Ok(65536), 0, &mut window, &|_| false);
        assert_eq!((copier.next(0, &mut window), copier.is_asking()), (Step::Wait(None), true));
        copier.share().cancel();
        assert_eq!(copier.next(0, &mut window), Step::Wait(None));
        assert!(copier.is_idle() && copier.share().is_idle(), "nobody waits for the answer");
        assert!(copier.share().dirty.test(crate::units::Chunk(1)), "what was not asked about is not copied");
        copier.learn(Some(extent(65536, 8 * MIB, ExtentKind::Zero)));
        assert_eq!(copier.next(0, &mut window), Step::Wait(None));
        assert_eq!(window.used_bytes(), 0);
    }

    /// A full lane would end the copy, or leave out what lies behind the question.
    #[test]
    fn a_question_that_found_no_room_is_asked_again() {
        let (mut copier, mut window) = copier();
        for _ in 0..3 {
            assert_eq!(copier.next(0, &mut window), Step::Status { offset: 0, live: false });
            copier.not_asked();
        }
        assert_eq!(copier.next(0, &mut window), Step::Status { offset: 0, live: false });
        copier.learn(None);
        let Step::Request(read, _) = copier.next(0, &mut window) else { panic!("who cannot say has data") };
        assert_eq!(read.range.start(), 0);
    }
}
