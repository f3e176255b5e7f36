//! qemu-img convert, with as many coroutines as it allows, out of order, around the page cache.
#![forbid(unsafe_code)]

use crate::contender::{Contender, Line, Pair, Role};
use crate::error::Result;
use crate::measure::{Meter, Sample};

/// qemu-img convert onto an existing target.
#[derive(Debug, Clone, Copy)]
pub struct QemuImg;

impl QemuImg {
    /// `-W -m 16`: sixteen requests at a time in any order. `-n`: the target exists.
    fn line(pair: &Pair) -> Line {
        let zero = if pair.target_is_zero { "--target-is-zero" } else { "" };
        Line::new("qemu-img")
            .words("convert -f raw -O raw -t none -T none -W -m 16 -n")
            .words(zero)
            .word(&pair.source)
            .word(&pair.target)
    }
}

impl Contender for QemuImg {
    fn name(&self) -> String {
        "qemu-img convert".to_owned()
    }

    fn role(&self) -> Role {
        Role::Qemu
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
