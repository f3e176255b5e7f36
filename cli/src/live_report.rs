//! What a live run reports: the JSON object of `bench live`, and the table that it and the demo print.
//!
//! As in `report`, the names of the fields are a promise: fields are added, never renamed.
#![forbid(unsafe_code)]

use std::time::Duration;

use blkmirror_core::engine::{BudgetLevel, Escalation};
use blkmirror_core::units::format_size;
use blkmirror_load::Period;
use serde::Serialize;

use crate::cpu::format_rate;

/// A phase of the run.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct PhaseReport {
    /// What went on.
    pub(crate) name: String,
    /// How long it was watched.
    pub(crate) seconds: f64,
    /// Guest writes that were acknowledged, per second.
    pub(crate) writes_per_second: f64,
    /// Their bytes per second.
    pub(crate) bytes_per_second: f64,
    /// Bytes per second that the job copied beside them; none without a job.
    pub(crate) copied_bytes_per_second: Option<f64>,
    /// Latencies of guest writes, from the time at which they were to be sent.
    pub(crate) p50_us: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99_us: f64,
    /// 999 of 1000 took no longer.
    pub(crate) p999_us: f64,
    /// The longest.
    pub(crate) max_us: f64,
    /// How late writes were sent at the median, because the writer woke up late: part of all of the above.
    pub(crate) sent_late_us: f64,
    /// Guest writes that failed.
    pub(crate) errors: u64,
}

/// Microseconds.
fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl PhaseReport {
    /// How many guest writes it saw.
    fn writes(&self) -> f64 {
        (self.writes_per_second * self.seconds).round()
    }

    /// What the writers saw, and the bytes that a job copied in that time.
    pub(crate) fn new(name: &str, seen: &Period, copied_bytes: Option<u64>) -> Self {
        let latency = seen.latency();
        let seconds = seen.time.as_secs_f64();
        Self {
            name: name.to_owned(),
            seconds,
            writes_per_second: seen.writes_per_s(),
            bytes_per_second: seen.bytes_per_s(),
            copied_bytes_per_second: copied_bytes.map(|bytes| crate::cpu::rate(bytes, seconds)),
            p50_us: micros(latency.p50),
            p99_us: micros(latency.p99),
            p999_us: micros(latency.p999),
            max_us: micros(latency.max),
            sent_late_us: micros(Duration::from_nanos(seen.lateness.value_at_quantile(0.5))),
            errors: seen.errors,
        }
    }
}

/// The result of a live run: the object that `bench live --json` prints.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct LiveReport {
    /// The guest's disk as it was named; none if the command line was refused.
    pub(crate) source: Option<String>,
    /// The target as it was named.
    pub(crate) target: Option<String>,
    /// Bytes of the disk.
    pub(crate) bytes_total: u64,
    /// The phases, in their order.
    pub(crate) phases: Vec<PhaseReport>,
    /// From the start of the job until a switch-over was possible.
    pub(crate) ready_after_seconds: Option<f64>,
    /// Bytes that the job copied, some of them more than once.
    pub(crate) bytes_copied: u64,
    /// Bytes that guest writes wrote to both sides at once.
    pub(crate) bytes_active: u64,
    /// Whether the job turned to write-blocking by itself.
    pub(crate) escalated: bool,
    /// How long guest writes were held at the switch-over.
    pub(crate) pause_ms: Option<f64>,
    /// Whether the guest's disk is the target now.
    pub(crate) pivoted: bool,
    /// Whether every sector of the target is what it must be; none: not found out.
    pub(crate) verified: Option<bool>,
    /// Bytes of the target that the guest wrote.
    pub(crate) written_bytes: u64,
    /// Worth knowing, and no failure.
    pub(crate) notes: Vec<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

/// `850 us`, `1.25 ms`, `3.1 s`.
fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// What there is to say of a step that the job took because its remainder did not shrink; `None` = the report says it elsewhere.
pub(crate) fn step_note(step: Escalation) -> Option<&'static str> {
    match step {
        Escalation::BudgetLoosened(BudgetLevel::FourTimes) => Some(
            "with the latency budget in force the guest would have written faster than the job copied, so the job allowed four \
             times as much",
        ),
        Escalation::BudgetLoosened(_) => Some("... and even so, so the job copied at full speed"),
        Escalation::Braking => Some(
            "the guest wrote faster than the job could copy, so guest writes were held now and then, for --max-pause at most",
        ),
        _ => None,
    }
}

/// The head of the table of phases.
pub(crate) fn header() -> String {
    format!(
        "{:<30} {:>9} {:>12} {:>10} {:>10} {:>10} {:>10}\n",
        "guest writes", "writes/s", "copied", "p50", "p99", "p99.9", "longest"
    )
}

/// A row of the table of phases.
pub(crate) fn row(phase: &PhaseReport) -> String {
    let copied = phase.copied_bytes_per_second.map_or_else(|| "-".to_owned(), format_rate);
    // One in a hundred of fewer than that is just the longest.
    let of_at_least = |writes: f64, us| if phase.writes() < writes { "-".to_owned() } else { time(us) };
    format!(
        "{:<30} {:>9.0} {copied:>12} {:>10} {:>10} {:>10} {:>10}\n",
        phase.name,
        phase.writes_per_second,
        time(phase.p50_us),
        of_at_least(100.0, phase.p99_us),
        of_at_least(1000.0, phase.p999_us),
        time(phase.max_us)
    )
}

/// What the table of phases does not say itself.
pub(crate) fn legend() -> &'static str {
    "times run from when a write was to be sent until the guest knew that it was done; \"copied\" is the job's own copying.\n\
     In background, writes go to the source and are copied later; in write-blocking, they go to both disks at once.\n\
     While it copies, the job gives way to the guest: it tries to keep p99 below twice what it was without a job. A write of\n\
     4 KiB makes its chunk of 64 KiB dirty, which is copied as a whole. \"-\" is no job, or too few writes to tell.\n\
     A block device does not say where its holes are, so all of it is copied.\n"
}

impl LiveReport {
    /// How the switch-over went, in lines for people.
    pub(crate) fn ending(&self) -> String {
        let mut text = String::new();
        if let Some(seconds) = self.ready_after_seconds {
            let mode = if self.escalated { ", after turning to write-blocking by itself" } else { "" };
            text += &format!(
                "ready after {seconds:.2} s{mode}; {} copied, {} written to both sides at once\n",
                format_size(self.bytes_copied),
                format_size(self.bytes_active)
            );
        }
        if let Some(pause_ms) = self.pause_ms {
            let what = if self.pivoted { "switched over to the target" } else { "target complete" };
            text += &format!("{what}; guest writes were held for {pause_ms:.2} ms\n");
        }
        match self.verified {
            Some(true) => {
                text += &format!(
                    "verified: every sector of the target is right, {} of it written by the guest\n",
                    format_size(self.written_bytes)
                );
            }
            Some(false) => text += "verified: NO, the target is WRONG\n",
            None => {}
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts read these names.
    #[test]
    fn the_json_of_a_live_run_has_the_promised_fields() {
        let report = LiveReport { phases: vec![PhaseReport::default()], ..LiveReport::default() };
        let json = serde_json::to_value(report).unwrap();
        let names = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let mut promised = [
            "source",
            "target",
            "bytes_total",
            "phases",
            "ready_after_seconds",
            "bytes_copied",
            "bytes_active",
            "escalated",
            "pause_ms",
            "pivoted",
            "verified",
            "written_bytes",
            "notes",
            "error",
        ];
        promised.sort_unstable();
        assert_eq!(names(&json), promised);
        let mut promised = [
            "name",
            "seconds",
            "writes_per_second",
            "bytes_per_second",
            "copied_bytes_per_second",
            "p50_us",
            "p99_us",
            "p999_us",
            "max_us",
            "sent_late_us",
            "errors",
        ];
        promised.sort_unstable();
        assert_eq!(names(&json["phases"][0]), promised);
    }

    /// A row must stay under its head, whatever the numbers.
    #[test]
    fn rows_line_up_with_the_header() {
        let phase = PhaseReport {
            name: "without a job".into(),
            seconds: 1.0,
            writes_per_second: 999_999.0,
            p50_us: 42.0,
            p99_us: 1234.0,
            p999_us: 2.5e6,
            copied_bytes_per_second: Some(1.5 * 1024.0 * 1024.0 * 1024.0),
            ..PhaseReport::default()
        };
        let row = row(&phase);
        assert_eq!(row.len(), header().len());
        assert!(row.contains("1.5 GiB/s      42 us    1.23 ms     2.50 s"), "{row}");
        let few = super::row(&PhaseReport { writes_per_second: 99.0, ..phase });
        assert!(few.contains("1.5 GiB/s      42 us          -          -"), "{few}");
    }

    /// The last lines are what people look at.
    #[test]
    fn the_ending_tells_pause_and_proof() {
        let mut report = LiveReport {
            ready_after_seconds: Some(1.5),
            pause_ms: Some(3.25),
            pivoted: true,
            verified: Some(true),
            ..LiveReport::default()
        };
        let text = report.ending();
        assert!(text.contains("held for 3.25 ms") && text.contains("every sector of the target is right"));
        report.verified = Some(false);
        assert!(report.ending().contains("NO, the target is WRONG"));
    }
}
