//! The last steps of a job: of one that is all copied and flushed behind the closed gate, and of one that was cancelled or has
//! failed.

use super::{Act, Coordinator, End, GRACE_NS, MOVE_AGAIN_NS, MOVES, Seal, Stage};
use crate::mirror::share::Share;
use crate::mirror::states::{JobStatus, Turn};

impl Coordinator {
    /// The steps to the end.
    pub(super) fn sealed(&mut self, seal: Seal, share: &Share, now_ns: u64) -> Act {
        let (next, act) = match seal {
            Seal::Announced if now_ns < self.retry_at_ns => return Act::Rest,
            // Else somebody has cancelled it since this was looked at, and wakes us.
            Seal::Announced if !self.is_decided(share) => return Act::Rest,
            Seal::Announced if share.wants_pivot() => (Seal::Moved, Act::Pivot),
            Seal::Announced | Seal::Moved => (Seal::Detached, Act::LetGo),
            Seal::Detached => {
                self.pause_ns = self.closed_at_ns.take().map(|at| now_ns.saturating_sub(at));
                (Seal::Opened, Act::OpenGate)
            }
            Seal::Opened => {
                self.stage = Stage::Over;
                return Act::Conclude(End::Completed);
            }
        };
        self.stage = Stage::Sealed(next);
        act
    }

    /// The next step of a switch-over that is decided, for who has no ring any more; `Rest` if there is none. `moved`: the drive is
    /// on the target, for a step that was said may not have been taken.
    pub fn carry_on(&mut self, share: &Share, moved: bool, now_ns: u64) -> Act {
        let Stage::Sealed(said) = self.stage else { return Act::Rest };
        if !share.is_decided() {
            return Act::Rest;
        }
        self.retry_at_ns = 0;
        let again = said == Seal::Moved && share.wants_pivot() && !moved;
        self.sealed(if again { Seal::Announced } else { said }, share, now_ns)
    }

    /// Whether the switch-over is carried out. Where the host need not be asked, this decides it.
    fn is_decided(&self, share: &Share) -> bool {
        share.is_decided() || (self.auto_finalize && share.decide())
    }

    /// A job that was cancelled or has failed: over when nothing is under way, or when waiting has no end.
    pub(super) fn end(&mut self, share: &Share, now_ns: u64) -> Act {
        if self.closed_at_ns.take().is_some() {
            share.set_urgent(false);
            return Act::OpenGate;
        }
        if share.status() != JobStatus::Aborting {
            share.turn(Turn::Abort);
            self.ending_since_ns = now_ns;
            return Act::Rouse;
        }
        if self.stage == Stage::Ending {
            self.stage = Stage::Over;
            return Act::Conclude(if share.is_cancelled() { End::Cancelled } else { End::Failed });
        }
        let quiet = share.is_idle() && self.flush_covers.is_none();
        if quiet || now_ns >= self.ending_since_ns + GRACE_NS {
            self.stage = Stage::Ending;
            return Act::LetGo;
        }
        Act::Rest
    }

    /// The drive refused to move: somebody looks whether the gate is open, and has not stepped back yet. Asks again soon.
    ///
    /// `false` when that was so too often, which cannot be: then the job does not complete, and the caller fails it.
    pub fn not_moved(&mut self, now_ns: u64) -> bool {
        self.refused_moves += 1;
        let again = self.refused_moves < MOVES;
        self.stage = if again { Stage::Sealed(Seal::Announced) } else { Stage::Final };
        self.retry_at_ns = now_ns + MOVE_AGAIN_NS;
        again
    }
}

#[cfg(test)]
mod tests {
    use super::super::Purpose;
    use super::*;
    use crate::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions};

    /// A job of a disk of one chunk.
    fn share() -> Share {
        let shape = DeviceShape {
            size_bytes: 65536,
            align_bytes: 512,
            max_request_bytes: 65536,
            ..DeviceShape::default()
        };
        let options = MirrorOptions::default();
        let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
        let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
        Share::new(geometry, &options, bitmaps, false, 1)
    }

    /// Otherwise a job whose worker broke in the middle would say that the drive has moved, and it has not.
    #[test]
    fn who_carries_on_a_move_that_was_not_made_makes_it() {
        for moved in [false, true] {
            let share = share();
            assert!(share.complete(true) && share.decide());
            let mut c = Coordinator::new(&MirrorOptions::default());
            c.stage = Stage::Sealed(Seal::Moved);
            let act = c.carry_on(&share, moved, 1000);
            assert_eq!(act, if moved { Act::LetGo } else { Act::Pivot });
        }
        let mut undecided = Coordinator::new(&MirrorOptions::default());
        undecided.stage = Stage::Sealed(Seal::Announced);
        assert_eq!(undecided.carry_on(&share(), false, 1000), Act::Rest);
    }

    /// Behind the gate guests wait. A retry that the worker does not wake up for would hold them half a second for nothing.
    #[test]
    fn what_is_tried_again_behind_the_gate_is_tried_again_in_time() {
        let mut moving = Coordinator::new(&MirrorOptions::default());
        assert!(moving.not_moved(1000));
        assert_eq!(moving.deadline_ns(1000), Some(1000 + MOVE_AGAIN_NS));
        for stage in [Stage::Final, Stage::Flushing(Purpose::BehindGate)] {
            let mut c = Coordinator::new(&MirrorOptions::default());
            (c.stage, c.closed_at_ns, c.retry_at_ns) = (stage, Some(1000), 2000);
            assert_eq!(c.deadline_ns(1000), Some(2000));
            assert!(c.deadline_ns(3000).is_some_and(|at| at > 3000), "until the pause is over");
        }
    }
}
