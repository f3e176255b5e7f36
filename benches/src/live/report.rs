//! The results of the live benchmark: what target/live.json holds, and the tables.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::markdown::line;
use crate::targets::{Bound, Target};

/// Everything one call of the benchmark found out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// The benchmark's own arguments.
    pub arguments: Vec<String>,
    /// Small disks and few rounds; not for quoting.
    pub quick: bool,
    /// The parts that ran.
    pub parts: Vec<Part>,
    /// Whatever a reader must know.
    pub notes: Vec<String>,
}

/// One part's results.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Part {
    /// Its name on the command line.
    pub name: String,
    /// What it does, in a sentence or two.
    pub title: String,
    /// The head of its table.
    pub head: Vec<String>,
    /// Its table.
    pub rows: Vec<Vec<String>>,
    /// What was wanted and what was reached.
    pub targets: Vec<Target>,
    /// Every sample.
    pub samples: serde_json::Value,
    /// Whatever a reader must know.
    pub notes: Vec<String>,
}

impl Part {
    /// A part without results.
    #[must_use]
    pub fn new(name: &str, title: impl Into<String>, head: &[&str]) -> Self {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        Self { name: name.to_owned(), title: title.into(), head, ..Self::default() }
    }

    /// Adds a promise.
    pub fn promise(&mut self, promise: impl Into<String>, bound: Bound, reached: Option<f64>) {
        let scenario = self.name.clone();
        self.targets.push(Target { scenario, promise: promise.into(), bound, reached });
    }
}

impl Report {
    /// Everything as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# Live mirroring\n\n{}.\n\n", self.machine.line());
        if self.quick {
            text.push_str("A quick look on small disks: not for quoting.\n\n");
        }
        for part in &self.parts {
            line(&mut text, &format!("## {}\n\n{}\n", part.name, part.title));
            table(&mut text, &part.head, &part.rows);
            part.notes.iter().for_each(|note| line(&mut text, &format!("- {note}")));
            text.push('\n');
        }
        text.push_str("## Targets\n\n");
        self.targets(&mut text);
        text.push_str("\n## How it was run\n\n");
        line(&mut text, &format!("- arguments: `{}`", self.arguments.join(" ")));
        self.notes.iter().for_each(|note| line(&mut text, &format!("- {note}")));
        text.push_str("\nWhat the numbers mean: docs/BENCHMARKING.md.\n");
        text
    }

    /// The table for the README, between its markers.
    #[must_use]
    pub fn readme(&self) -> String {
        let mut text = String::from("<!-- live -->\n");
        self.targets(&mut text);
        line(&mut text, &format!("\n`cargo bench --bench live`; {}.", self.machine.line()));
        text.push_str("<!-- /live -->\n");
        text
    }

    /// The promises of all parts.
    fn targets(&self, text: &mut String) {
        let head = ["part", "what", "wanted", "reached", ""].map(str::to_owned);
        let row = |target: &Target| {
            let reached = target.reached.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
            vec![
                target.scenario.clone(),
                target.promise.clone(),
                target.bound.to_string(),
                reached,
                target.verdict().to_owned(),
            ]
        };
        let rows: Vec<_> = self.parts.iter().flat_map(|part| &part.targets).map(row).collect();
        table(text, &head, &rows);
    }
}

/// A table in Markdown.
fn table(text: &mut String, head: &[String], rows: &[Vec<String>]) {
    line(text, &format!("| {} |", head.join(" | ")));
    line(text, &format!("|---{}|", "|--:".repeat(head.len().saturating_sub(1))));
    rows.iter().for_each(|row| line(text, &format!("| {} |", row.join(" | "))));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A promise that was missed must be in the table as what it is.
    #[test]
    fn the_report_names_every_promise_and_its_verdict() {
        let mut part = Part::new("gentle", "Writers and a copy.", &["", "p99"]);
        part.rows.push(vec!["no job".to_owned(), "190 us".to_owned()]);
        part.promise("p99 over that without a job", Bound::AtMost(1.5), Some(1.25));
        part.promise("copy rate", Bound::AtLeast(0.25), Some(0.125));
        part.promise("nothing", Bound::AtLeast(1.0), None);
        let machine = Machine {
            date: "2026-11-20T00:00:00Z".to_owned(),
            kernel: "6.18".to_owned(),
            cpu: "CPU".to_owned(),
            cores: 2,
            memory_bytes: 1 << 30,
            tools: Vec::new(),
        };
        let report =
            Report { machine, arguments: Vec::new(), quick: false, parts: vec![part], notes: Vec::new() };
        let text = report.markdown();
        assert!(text.contains("| no job | 190 us |\n"), "{text}");
        assert!(text.contains("| at most 1.5 | 1.25 | PASS |") && text.contains("| 0.12 | MISS |"), "{text}");
        assert!(report.readme().contains("| - | not measured |"));
    }
}
