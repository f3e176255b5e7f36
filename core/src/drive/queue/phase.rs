//! The life of a guest request, as one table.
//!
//! A request has a source part, which goes to the drive, and in write-blocking a target part, which goes to the job's
//! target at the same time. What happens to the parts are events; what follows from an event is the table:
//!
//! | phase, and what is under way | event | then | to do |
//! |---|---|---|---|
//! | `Queued`: accepted, not inside the gate | `SentAlone` | `Alone` | |
//! | | `SentToBoth` | `Both` | |
//! | | `Lost` | `Over` | answer |
//! | `Alone`: the source part is all there is | `SourceEnded`, `Lost` | `Over` | settle, answer |
//! | `Both`: both parts | `SourceEnded` | `TargetLeft` | |
//! | | `TargetEnded` | `SourceLeft` | |
//! | | `Lost` | `Over` | settle, answer |
//! | `SourceLeft`: the target part has ended | `SourceEnded`, `Lost` | `Over` | settle, answer |
//! | `TargetLeft`: the source part has ended | `TargetEnded`, `Lost` | `Over` | settle, answer |
//! | | `GivenUp` | `Late` | settle, answer |
//! | | `GivenUpLent` | `Lent` | settle |
//! | `Late`: answered; the target's request is still out, with our memory | `TargetEnded`, `Lost` | `Over` | |
//! | `Lent`: settled; the target's request is still out, with the host's memory | `TargetEnded`, `Lost` | `Over` | answer |
//!
//! *Settle*: the dirty bits are set or the active write is ended, and the request leaves the gate. *Answer*: the
//! completion is put where the host finds it. Settling comes first: **Mark after, before the ack**.
//!
//! `GivenUp` is what becomes of the target part when its job is ending and its target does not answer: the data is on the
//! drive, so nothing but the job suffers (**The guest is not our hostage**).
#![forbid(unsafe_code)]

/// Where a request stands; see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Accepted, and not yet inside the gate.
    Queued,
    /// On its way to the drive alone.
    Alone,
    /// On its way to both sides.
    Both,
    /// The target part has ended, the source part not.
    SourceLeft,
    /// The source part has ended, the target part not.
    TargetLeft,
    /// Answered; our memory is still with the target.
    Late,
    /// Settled; the host's memory is still with the target.
    Lent,
    /// Nothing is left.
    Over,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// It entered the gate and goes to the drive alone.
    SentAlone,
    /// It entered the gate and goes to both sides.
    SentToBoth,
    /// The source part ended, well or not.
    SourceEnded,
    /// The target part ended, well or not.
    TargetEnded,
    /// The job ends and the target has not answered; the data is in our memory.
    GivenUp,
    /// The job ends and the target has not answered; the data is in the host's memory.
    GivenUpLent,
    /// The ring broke or the queue is dropped.
    Lost,
}

/// What an event asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// The next phase.
    pub(super) phase: Phase,
    /// Set the dirty bits or end the active write, and leave the gate.
    pub(super) settle: bool,
    /// Tell the host.
    pub(super) answer: bool,
}

/// The table; `None` where the event cannot happen.
pub(super) const fn step(phase: Phase, event: Event) -> Option<Step> {
    let (phase, settle, answer) = match (phase, event) {
        (Phase::Queued, Event::SentAlone) => (Phase::Alone, false, false),
        (Phase::Queued, Event::SentToBoth) => (Phase::Both, false, false),
        (Phase::Both, Event::SourceEnded) => (Phase::TargetLeft, false, false),
        (Phase::Both, Event::TargetEnded) => (Phase::SourceLeft, false, false),
        (Phase::Alone | Phase::SourceLeft, Event::SourceEnded)
        | (Phase::TargetLeft, Event::TargetEnded)
        | (Phase::Alone | Phase::Both | Phase::SourceLeft | Phase::TargetLeft, Event::Lost) => {
            (Phase::Over, true, true)
        }
        (Phase::TargetLeft, Event::GivenUp) => (Phase::Late, true, true),
        (Phase::TargetLeft, Event::GivenUpLent) => (Phase::Lent, true, false),
        (Phase::Late, Event::TargetEnded | Event::Lost) => (Phase::Over, false, false),
        (Phase::Lent, Event::TargetEnded | Event::Lost) | (Phase::Queued, Event::Lost) => {
            (Phase::Over, false, true)
        }
        _ => return None,
    };
    Some(Step { phase, settle, answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::SentAlone,
        Event::SentToBoth,
        Event::SourceEnded,
        Event::TargetEnded,
        Event::GivenUp,
        Event::GivenUpLent,
        Event::Lost,
    ];

    /// Follows every way through the table; calls `end` with the events, settlements and answers of each.
    fn walk(
        phase: Phase,
        way: &mut Vec<Event>,
        counts: (u32, u32),
        end: &mut impl FnMut(&[Event], u32, u32),
    ) {
        assert!(way.len() < 8, "the table has a circle: {way:?}");
        if phase == Phase::Over {
            return end(way, counts.0, counts.1);
        }
        let steps = EVENTS.iter().filter_map(|&e| step(phase, e).map(|s| (e, s)));
        let mut some = false;
        for (event, s) in steps {
            some = true;
            assert!(
                !s.answer || s.settle || counts.0 > 0 || way.is_empty(),
                "an answer before the mark: {way:?}"
            );
            way.push(event);
            walk(s.phase, way, (counts.0 + u32::from(s.settle), counts.1 + u32::from(s.answer)), end);
            way.pop();
        }
        assert!(some, "{phase:?} has no way out");
    }

    #[test]
    fn every_way_ends_with_one_answer_after_one_settlement() {
        let mut ways = 0;
        walk(Phase::Queued, &mut Vec::new(), (0, 0), &mut |way, settled, answered| {
            ways += 1;
            assert_eq!(answered, 1, "{way:?}");
            // What never entered the gate has nothing to settle.
            assert_eq!(settled, u32::from(way != [Event::Lost]), "{way:?}");
        });
        assert_eq!(ways, 12);
    }

    #[test]
    fn nothing_happens_to_a_request_that_is_over() {
        assert!(EVENTS.iter().all(|&e| step(Phase::Over, e).is_none()));
    }

    #[test]
    fn a_part_that_is_under_way_can_always_end() {
        use Phase::{Alone, Both, Late, Lent, SourceLeft, TargetLeft};
        assert!([Alone, Both, SourceLeft].iter().all(|&p| step(p, Event::SourceEnded).is_some()));
        assert!([Both, TargetLeft, Late, Lent].iter().all(|&p| step(p, Event::TargetEnded).is_some()));
    }
}
