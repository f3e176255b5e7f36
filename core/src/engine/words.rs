//! What happened to a job, in words: one line for logs and for hosts, the same in both.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use super::event::EventKind;
use crate::mirror::{BudgetLevel, CopyMode, ErrorAction, Escalation, Side};

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Background => "background",
            Self::WriteBlocking => "write-blocking",
        })
    }
}

impl fmt::Display for BudgetLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chosen => "as it was chosen",
            Self::FourTimes => "four times what was chosen",
            Self::Lifted => "lifted",
        })
    }
}

impl fmt::Display for Escalation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteBlocking => f.write_str("guest writes through queues go to both sides from now on"),
            Self::BudgetLoosened(level) => write!(f, "the latency budget is loosened: {level}"),
            Self::Braking => f.write_str("guest requests are held now and then"),
        }
    }
}

impl fmt::Display for ErrorAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Report => "the job fails",
            Self::Ignore => "it is tried again later",
            Self::Stop => "the job stops until it is resumed",
        })
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { from, to } => write!(f, "the job was {from} and is {to}"),
            Self::Ready => f.write_str("a switch-over is possible"),
            Self::Error { side, errno, range, .. } => {
                let side = match side {
                    Side::Source => "source",
                    Side::Target => "target",
                };
                write!(f, "the {side} failed at {range}: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::CopyMode(mode) => write!(f, "guest writes are followed in mode {mode}"),
            Self::Escalated { step, left_bytes, .. } => {
                write!(f, "{left_bytes} bytes are left and do not become fewer: {step}")
            }
            Self::BudgetTightened(level) => write!(f, "the latency budget is tighter again: {level}"),
            Self::BrakingEnded => f.write_str("the guest is not braked any more"),
            Self::SwitchOverMissed { held_ns, left_bytes } => {
                write!(f, "a switch-over was missed after {held_ns} ns, {left_bytes} bytes were left")
            }
            Self::Pending { pivots: true } => f.write_str(
                "guest requests are held until the job is finalized, and the drive moves to the target then",
            ),
            Self::Pending { pivots: false } => f.write_str(
                "guest requests are held until the job is finalized, and the drive stays where it is",
            ),
            Self::Concluded => f.write_str("the job is over"),
            Self::Overflow(lost) => write!(f, "{lost} events were lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::{JobStatus, Reason};

    /// A host shows these to its users, who know nothing of our names for things.
    #[test]
    fn what_an_event_says_are_words_and_no_names_of_the_source() {
        use BudgetLevel as B;
        let escalated =
            |step| EventKind::Escalated { step, reason: Reason::Missed { missed: 3 }, left_bytes: 5 };
        let mut all = vec![
            EventKind::Status { from: JobStatus::Running, to: JobStatus::Ready },
            EventKind::Ready,
            EventKind::CopyMode(CopyMode::Background),
            EventKind::CopyMode(CopyMode::WriteBlocking),
            escalated(Escalation::WriteBlocking),
            escalated(Escalation::Braking),
            EventKind::BrakingEnded,
            EventKind::SwitchOverMissed { held_ns: 1, left_bytes: 2 },
            EventKind::Pending { pivots: true },
            EventKind::Pending { pivots: false },
            EventKind::Concluded,
            EventKind::Overflow(3),
        ];
        for level in [B::Chosen, B::FourTimes, B::Lifted] {
            all.extend([escalated(Escalation::BudgetLoosened(level)), EventKind::BudgetTightened(level)]);
        }
        let mut texts: Vec<_> = all.iter().map(EventKind::to_string).collect();
        texts.extend([ErrorAction::Report, ErrorAction::Ignore, ErrorAction::Stop].map(|a| a.to_string()));
        for text in &texts {
            let is_word =
                |word: &str| word.chars().all(|c| !c.is_ascii_uppercase()) && !word.contains(['{', '(', '_']);
            assert!(text.split(' ').all(is_word), "{text}");
        }
        let all_texts = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), all_texts, "each says what it is");
    }
}
