//! dd: one request at a time, around the page cache. What most people have at hand.
#![forbid(unsafe_code)]

use crate::contender::{Contender, Line, Pair, Role};
use crate::error::Result;
use crate::measure::{Meter, Sample};
use crate::pattern::Pattern;

/// dd with direct I/O.
#[derive(Debug, Clone, Copy)]
pub struct Dd;

impl Dd {
    /// Blocks of 1 MiB; in a scattered source blocks of one chunk, of which zero ones are skipped.
    fn line(pair: &Pair) -> Line {
        let options = match pair.pattern {
            Pattern::Full => "bs=1M conv=notrunc,fdatasync".to_owned(),
            Pattern::Scattered { chunk_bytes, .. } => {
                format!("bs={chunk_bytes} conv=notrunc,fdatasync,sparse")
            }
        };
        Line::new("dd")
            .word(format!("if={}", pair.source.display()))
            .word(format!("of={}", pair.target.display()))
            .words("iflag=direct oflag=direct status=none")
            .words(&options)
    }
}

impl Contender for Dd {
    fn name(&self) -> String {
        "dd direct".to_owned()
    }

    fn role(&self) -> Role {
        Role::Other
    }

    fn has_own_clock(&self) -> bool {
        false
    }

    fn command_line(&self, pair: &Pair) -> String {
        Self::line(pair).to_string()
    }

    fn run(&self, pair: &Pair, meter: &Meter) -> Result<Sample> {
        let start = meter.start()?;
        Self::line(pair).output()?;
        meter.finish(&start)
    }
}
