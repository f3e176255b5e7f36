//! What the commands report: the JSON objects, and the lines for people.
//!
//! The names of the fields are a promise to scripts and benchmarks; fields are added, never renamed.
#![forbid(unsafe_code)]

use blkmirror_core::engine::TargetState;
use blkmirror_core::mirror::Progress;
use blkmirror_core::units::format_size;
use serde::Serialize;

use crate::cpu::{Stopwatch, format_rate, rate};

/// The result of a copy: the object that `copy --json` prints.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct CopyReport {
    /// The source as it was named; none if the command line was refused.
    pub(crate) source: Option<String>,
    /// The target as it was named; none if the command line was refused.
    pub(crate) target: Option<String>,
    /// `complete` (all that was to be copied is there, and flushed), `incomplete`, or `not_copied` (nothing was to be);
    /// none if the target was not touched.
    pub(crate) target_state: Option<&'static str>,
    /// Size of the source.
    pub(crate) bytes_total: u64,
    /// Bytes read and written.
    pub(crate) bytes_copied: u64,
    /// Bytes that became zeroes in the target without being read and written.
    pub(crate) bytes_zeroed: u64,
    /// Bytes with nothing to do.
    pub(crate) bytes_skipped: u64,
    /// Wall time of the copy, without the verification.
    pub(crate) seconds: f64,
    /// CPU time of this process in the copy, without the verification.
    pub(crate) cpu_seconds: f64,
    /// Bytes done per second of wall time.
    pub(crate) bytes_per_second: f64,
    /// Worker threads.
    pub(crate) workers: usize,
    /// Requests that were tried again.
    pub(crate) retries: u64,
    /// Read and write errors.
    pub(crate) errors: u64,
    /// Whether the verification found them equal; none without one.
    pub(crate) verified: Option<bool>,
    /// What is worth knowing about the two sides and is no failure.
    pub(crate) notes: Vec<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

impl CopyReport {
    /// Takes over the counters of a job.
    pub(crate) fn take_progress(&mut self, progress: &Progress) {
        self.bytes_copied = progress.copied_bytes;
        self.bytes_zeroed = progress.zeroed_bytes;
        self.bytes_skipped = progress.skipped_bytes;
        self.workers = progress.workers;
        self.retries = progress.retries;
        self.errors = progress.errors;
    }

    /// Takes over the clocks; the counters must be there already.
    pub(crate) fn take_times(&mut self, stopwatch: &Stopwatch) {
        self.seconds = stopwatch.seconds();
        self.cpu_seconds = stopwatch.cpu_seconds();
        self.bytes_per_second = rate(self.done(), self.seconds);
    }

    /// Says what the target is now.
    pub(crate) fn take_state(&mut self, state: TargetState) {
        self.target_state = Some(match state {
            TargetState::Complete => "complete",
            // Whatever else it may be one day, it is not a copy.
            _ => "incomplete",
        });
    }

    /// Bytes dealt with, in whichever way.
    fn done(&self) -> u64 {
        self.bytes_copied.saturating_add(self.bytes_zeroed).saturating_add(self.bytes_skipped)
    }

    /// What the target is now, in words: `target /dev/x is incomplete: 1 GiB of 2 GiB copied`.
    pub(crate) fn target_in_words(&self) -> String {
        let name = self.target.as_deref().unwrap_or("?");
        match self.target_state {
            Some("complete") => format!("target {name} is complete"),
            Some("not_copied") => format!("target {name} is as it was"),
            Some(_) => format!(
                "target {name} is incomplete: {} of {} done",
                format_size(self.done().min(self.bytes_total)),
                format_size(self.bytes_total)
            ),
            None => format!("target {name} was not touched"),
        }
    }

    /// The summary for people.
    pub(crate) fn summary(&self) -> String {
        let verified = if self.verified == Some(true) { ", verified" } else { "" };
        format!(
            "{} to {}: {} in {:.2} s, {}{verified}\n  copied {}, zeroed {}, skipped {}; {:.2} CPU s, {}\n",
            self.source.as_deref().unwrap_or("?"),
            self.target.as_deref().unwrap_or("?"),
            format_size(self.bytes_total),
            self.seconds,
            format_rate(self.bytes_per_second),
            format_size(self.bytes_copied),
            format_size(self.bytes_zeroed),
            format_size(self.bytes_skipped),
            self.cpu_seconds,
            count(u64::try_from(self.workers).unwrap_or(u64::MAX), "worker"),
        )
    }
}

/// A range of bytes in JSON.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JsonRange {
    /// First byte.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// The result of a comparison: the object that `compare --json` prints.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct CompareReport {
    /// The first device as it was named; none if the command line was refused.
    pub(crate) a: Option<String>,
    /// The second device as it was named.
    pub(crate) b: Option<String>,
    /// Size of the first.
    pub(crate) size_a: u64,
    /// Size of the second.
    pub(crate) size_b: u64,
    /// Whether they are equal, sizes included; none if it could not be found out.
    pub(crate) equal: Option<bool>,
    /// Bytes compared, common holes included.
    pub(crate) bytes_compared: u64,
    /// Bytes read from both together.
    pub(crate) bytes_read: u64,
    /// How many ranges differ.
    pub(crate) differing_ranges: u64,
    /// Bytes in them.
    pub(crate) differing_bytes: u64,
    /// The first of them.
    pub(crate) ranges: Vec<JsonRange>,
    /// Wall time.
    pub(crate) seconds: f64,
    /// CPU time of this process.
    pub(crate) cpu_seconds: f64,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

impl CompareReport {
    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let (a, b) = (self.a.as_deref().unwrap_or("?"), self.b.as_deref().unwrap_or("?"));
        let mut text = String::new();
        if self.equal == Some(true) {
            text += &format!("{a} and {b} are equal: {} compared", format_size(self.bytes_compared));
        } else {
            text += &format!("{a} and {b} differ");
            if self.size_a != self.size_b {
                text += &format!(" in size ({} and {} bytes)", self.size_a, self.size_b);
            }
            let compared = format_size(self.bytes_compared);
            if self.differing_ranges > 0 {
                let ranges = count(self.differing_ranges, "range");
                text += &format!(": {} in {ranges} of {compared}", format_size(self.differing_bytes));
            } else {
                text += &format!("; the first {compared} are equal");
            }
        }
        text += &format!(" ({} read, {:.2} s)\n", format_size(self.bytes_read), self.seconds);
        for range in &self.ranges {
            text += &format!("  offset {:>14} length {}\n", range.start, range.length);
        }
        let shown = u64::try_from(self.ranges.len()).unwrap_or(u64::MAX);
        if self.differing_ranges > shown {
            text += &format!("  and {} more\n", count(self.differing_ranges - shown, "range"));
        }
        text
    }
}

/// `1 range`, `2 ranges`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts read these names.
    #[test]
    fn the_json_of_a_copy_has_the_promised_fields() {
        let json = serde_json::to_value(CopyReport::default()).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let mut promised = [
            "source",
            "target",
            "target_state",
            "bytes_total",
            "bytes_copied",
            "bytes_zeroed",
            "bytes_skipped",
            "seconds",
            "cpu_seconds",
            "bytes_per_second",
            "workers",
            "retries",
            "errors",
            "verified",
            "notes",
            "error",
        ];
        promised.sort_unstable();
        assert_eq!(names, promised);
    }

    /// After a failure the first question is what the target now is.
    #[test]
    fn the_state_of_the_target_is_said_in_words() {
        let mut report =
            CopyReport { target: Some("/dev/x".into()), bytes_total: 2 << 30, ..Default::default() };
        assert_eq!(report.target_in_words(), "target /dev/x was not touched");
        report.bytes_copied = 1 << 30;
        report.take_state(TargetState::Incomplete);
        assert_eq!(report.target_in_words(), "target /dev/x is incomplete: 1 GiB of 2 GiB done");
        report.take_state(TargetState::Complete);
        assert_eq!(report.target_in_words(), "target /dev/x is complete");
    }

    /// Sizes that differ are a difference of their own.
    #[test]
    fn different_sizes_are_told_apart_from_different_content() {
        let mut report = CompareReport { size_a: 5, size_b: 6, bytes_compared: 5, ..Default::default() };
        assert!(
            report.text().contains("in size (5 and 6 bytes); the first 5 B are equal"),
            "{}",
            report.text()
        );
        report.differing_ranges = 1;
        assert!(report.text().contains("(5 and 6 bytes): 0 B in 1 range of 5 B"), "{}", report.text());
    }

    /// A thousand ranges must not fill the screen, and none must be forgotten.
    #[test]
    fn differing_ranges_beyond_the_limit_are_counted() {
        let report = CompareReport {
            a: Some("a".into()),
            b: Some("b".into()),
            equal: Some(false),
            differing_ranges: 3,
            differing_bytes: 12288,
            ranges: vec![JsonRange { start: 4096, length: 4096 }],
            ..Default::default()
        };
        let text = report.text();
        assert!(text.starts_with("a and b differ: 12 KiB in 3 ranges of"), "{text}");
        assert!(text.contains("offset           4096 length 4096\n"), "{text}");
        assert!(text.ends_with("  and 2 ranges more\n"), "{text}");
    }
}
