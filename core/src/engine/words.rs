//! What happened to a job, in words: one line for logs and for hosts, the same in both.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use super::event::EventKind;
use crate::mirror::Side;

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
            Self::CopyMode(mode) => write!(f, "guest writes are followed in mode {mode:?}"),
            Self::Escalated { step, left_bytes, .. } => {
                write!(f, "{left_bytes} bytes are left and do not become fewer: {step:?}")
            }
            Self::BudgetTightened(level) => write!(f, "the latency budget is tighter again: {level:?}"),
            Self::BrakingEnded => f.write_str("the guest is not braked any more"),
            Self::SwitchOverMissed { held_ns, left_bytes } => {
                write!(f, "a switch-over was missed after {held_ns} ns, {left_bytes} bytes were left")
            }
            Self::Pending => f.write_str("guest requests are held until the job is finalized"),
            Self::Concluded => f.write_str("the job is over"),
            Self::Overflow(lost) => write!(f, "{lost} events were lost"),
        }
    }
}
