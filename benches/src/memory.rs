//! How much memory `blkmirror copy` holds for a large disk.
//!
//! A sparse source of 1 TiB with a little data in it, on a small file system: everything whose size follows the disk shows
//! (bitmaps, maps of extents), and the copy takes a second. The kernel keeps the high-water mark of a process's
//! resident memory, but only while the process lives, so it is read again and again until the end.
#![forbid(unsafe_code)]

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use blkmirror_testkit::{Ext4OnLoop, GIB, KIB, MIB, fill};
use serde_json::Value;

use crate::blkmirror::Blkmirror;
use crate::contender::Pair;
use crate::error::{Context, Failure, Result};
use crate::pattern::{Pattern, SEED};
use crate::targets::{Bound, Target};

/// Size of the source.
const DISK_BYTES: u64 = 1024 * GIB;
/// 8192 chunks, 512 MiB of data.
const PATTERN: Pattern = Pattern::Scattered { chunk_bytes: 64 * KIB, stride_bytes: 128 * MIB };
/// What a worker may hold: its window of 16 x 1 MiB.
const WINDOW_MIB: f64 = 16.0;
/// What the process may hold besides.
const REST_MIB: f64 = 24.0;

/// Runs a copy and compares its memory with the promise.
pub fn measure(ours: &Blkmirror) -> Result<Target> {
    let files = Ext4OnLoop::new(2 * GIB).context(|| "ext4")?;
    let source = files.join("source");
    let Pattern::Scattered { chunk_bytes, stride_bytes } = PATTERN else {
        return Err(Failure::new("the memory test needs a sparse source"));
    };
    fill::scattered_file(&source, DISK_BYTES, chunk_bytes, stride_bytes, SEED).context(|| "ext4 source")?;
    let target = files.sparse_file("target", DISK_BYTES).context(|| "ext4 target")?;
    let pair = Pair { source, target, disk_bytes: DISK_BYTES, pattern: PATTERN, target_is_zero: true };

    let mut command = ours.line(&pair).command();
    let mut child = command.stdout(Stdio::piped()).spawn().context(|| "blkmirror")?;
    let mut resident_kib = 0;
    let status = loop {
        resident_kib = resident_kib.max(high_water_kib(child.id()).unwrap_or_default());
        if let Some(status) = child.try_wait().context(|| "blkmirror")? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let report = child.stdout.take().map(std::io::read_to_string).transpose().context(|| "blkmirror")?;
    let report: Value = serde_json::from_str(&report.unwrap_or_default()).context(|| "blkmirror's report")?;
    let workers = report["workers"].as_f64().filter(|_| status.success());
    let workers = workers.ok_or_else(|| Failure::new(format!("blkmirror: {status}: {}", report["error"])))?;
    Ok(Target {
        scenario: "memory".to_owned(),
        promise: format!("resident MiB for a sparse source of 1 TiB, {workers} workers"),
        bound: Bound::AtMost(WINDOW_MIB * workers + REST_MIB),
        reached: (resident_kib > 0).then(|| f64::from(resident_kib) / 1024.0),
    })
}

/// The most that a living process has held so far.
fn high_water_kib(process_id: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_living_process_has_a_high_water_mark() {
        assert!(super::high_water_kib(std::process::id()).unwrap() > 0);
    }
}
