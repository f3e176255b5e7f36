//! The ceiling: fio reads the source and writes the target at the same time, and copies nothing between them.
//!
//! One process, two threads, each with its own ring: registered buffer and files, O_DIRECT, as many bytes on their way
//! as one of our windows. The ceiling is the slower of the two directions, each over the time it took; as the quicker
//! one ends first and leaves its share of the memory bus to the other, this is a little more than a copy can reach.
//!
//! The buffers are in huge pages, for the reason ours are: 1 MiB of scattered 4 KiB pages is more segments than most queues take.
//! fio can map huge pages, but only from a reserve that somebody must set aside; instead the C library is told to ask for
//! transparent ones (`GLIBC_TUNABLES`, glibc 2.35), which needs no setup and gives the same: with buffers aligned to 2 MiB, not one
//! request of 1 MiB is punted on a loop device.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::contender::{Contender, Line, Pair, Role};
use crate::error::{Context, Failure, Result};
use crate::measure::{Meter, Sample};
use crate::pattern::Pattern;

/// fio with one request size and depth.
#[derive(Debug, Clone, Copy)]
pub struct Fio {
    /// Bytes per request; in a scattered pattern never more than a chunk.
    pub request_bytes: u64,
    /// Requests on their way, in each direction.
    pub depth: u64,
}

impl Fio {
    /// The command: common options, then one section for each direction.
    fn line(&self, pair: &Pair) -> Line {
        let Pair { source, target, disk_bytes, pattern, .. } = pair;
        let (request, useful) = (self.request_bytes, pattern.useful_bytes(*disk_bytes));
        // "read:448k" reads one request and skips 448 KiB.
        let skip = match pattern {
            Pattern::Full => String::new(),
            Pattern::Scattered { chunk_bytes, stride_bytes } => format!(":{}", stride_bytes - chunk_bytes),
        };
        Line::new("fio")
            .with_environment("GLIBC_TUNABLES=glibc.malloc.hugetlb=1")
            .words("--thread --output-format=json --ioengine=io_uring --fixedbufs --registerfiles --direct=1")
            .words("--scramble_buffers=0 --invalidate=0 --allow_file_create=0 --iomem_align=2M --end_fsync=1")
            .words(&format!("--bs={request} --iodepth={} --size={disk_bytes} --io_size={useful}", self.depth))
            .words(&format!("--name=read --rw=read{skip}"))
            .word(format!("--filename={}", source.display()))
            .words(&format!("--name=write --rw=write{skip}"))
            .word(format!("--filename={}", target.display()))
    }
}

impl Contender for Fio {
    fn name(&self) -> String {
        format!("fio {}K x {}", self.request_bytes / 1024, self.depth)
    }

    fn role(&self) -> Role {
        Role::Ceiling
    }

    fn has_own_clock(&self) -> bool {
        true
    }

    fn command_line(&self, pair: &Pair) -> String {
        self.line(pair).to_string()
    }

    fn run(&self, pair: &Pair, meter: &Meter) -> Result<Sample> {
        let start = meter.start()?;
        let output = self.line(pair).output()?;
        let mut sample = meter.finish(&start)?;
        sample.seconds = slower_direction_s(&output, pair.pattern.useful_bytes(pair.disk_bytes))?;
        Ok(sample)
    }
}

/// Seconds of the slower direction in fio's JSON, after a check that both moved all the bytes.
fn slower_direction_s(output: &str, bytes: u64) -> Result<f64> {
    // fio may print a note before the JSON.
    let json = output.find('{').and_then(|at| output.get(at..)).unwrap_or_default();
    let report: Value = serde_json::from_str(json).context(|| "fio's report")?;
    let mut slowest_s = 0.0_f64;
    for (index, direction) in ["read", "write"].into_iter().enumerate() {
        let side = &report["jobs"][index][direction];
        if side["io_bytes"].as_u64() != Some(bytes) {
            let moved = &side["io_bytes"];
            return Err(Failure::new(format!("fio: {direction} moved {moved} bytes instead of {bytes}")));
        }
        let milliseconds = side["runtime"].as_f64().unwrap_or_default();
        slowest_s = slowest_s.max(milliseconds / 1e3);
    }
    if slowest_s > 0.0 { Ok(slowest_s) } else { Err(Failure::new("fio: the run was too short to be timed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_is_the_slower_direction() {
        let report = r#"note
            {"jobs": [{"read": {"io_bytes": 8, "runtime": 150}}, {"write": {"io_bytes": 8, "runtime": 250}}]}"#;
        assert_eq!(slower_direction_s(report, 8).unwrap(), 0.25);
    }

    #[test]
    fn a_run_that_moved_too_little_is_no_ceiling() {
        let report = r#"{"jobs": [{"read": {"io_bytes": 8, "runtime": 1}}, {"write": {"io_bytes": 4, "runtime": 1}}]}"#;
        assert!(slower_direction_s(report, 8).is_err());
    }
}
