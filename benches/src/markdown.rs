//! The report as Markdown: in full, and as the small table that the README quotes.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::contender::Role;
use crate::report::{Report, Row, ScenarioReport, Summary};
use crate::stats::Spread;
use crate::targets::Target;

/// Everything.
#[must_use]
pub fn full(report: &Report) -> String {
    let mut text = format!("# blkmirror and its peers\n\n{}.\n\n", report.machine.line());
    if report.quick {
        text.push_str("A quick look on small disks: not for quoting.\n\n");
    }
    for scenario in &report.scenarios {
        text.push_str(&section(scenario));
    }
    text.push_str(&targets(&report.targets));
    text.push_str("## How it was run\n\n");
    line(&mut text, &format!("- arguments: `{}`", report.arguments.join(" ")));
    for tool in &report.machine.tools {
        line(&mut text, &format!("- {tool}"));
    }
    line(&mut text, &format!("- punt counter: {}", report.punt_counter));
    for note in &report.notes {
        line(&mut text, &format!("- {note}"));
    }
    text.push_str("\nWhat the numbers mean: docs/BENCHMARKING.md.\n");
    text
}

/// The small table, between its markers.
#[must_use]
pub fn readme(report: &Report) -> String {
    let mut text = String::from("<!-- bench -->\n");
    text.push_str(
        "| | blkmirror | of fio's ceiling | best QEMU tool | speed | CPU s/GiB | QEMU's least | punts |\n",
    );
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for scenario in &report.scenarios {
        let (ours, qemu) = (scenario.ours(), scenario.best_qemu());
        let ceiling = ours.zip(scenario.ceiling()).and_then(|(ours, ceiling)| ours.speed_ratio(ceiling));
        let speed = scenario.lead(|role| role == Role::Qemu);
        let punts = ours.and_then(|ours| ours.summary?.punts_per_gib);
        let cells = [
            scenario.title.clone(),
            number(ours.and_then(Row::rate), 2, " GiB/s"),
            number(ceiling.map(|ratio| ratio * 100.0), 0, " %"),
            number(qemu.and_then(Row::rate), 2, " GiB/s"),
            number(speed, 2, " x"),
            number(ours.and_then(Row::cpu), 3, ""),
            number(scenario.lowest_qemu_cpu(), 3, ""),
            number(punts.map(|punts| punts.median), 0, ""),
        ];
        line(&mut text, &format!("| {} |", cells.join(" | ")));
    }
    let rounds =
        report.scenarios.iter().flat_map(|scenario| &scenario.rows).map(|row| row.samples.len()).max();
    let rounds = rounds.unwrap_or_default();
    line(&mut text, &format!("\nMedians of {rounds} interleaved rounds; {}.", report.machine.line()));
    text.push_str("<!-- /bench -->\n");
    text
}

/// One scenario: table, then the command lines.
fn section(scenario: &ScenarioReport) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let mut text = format!("## {}: {}\n\n", scenario.name, scenario.title);
    let (useful, disk) = (gib(scenario.useful_bytes), gib(scenario.disk_bytes));
    line(&mut text, &format!("{useful} GiB of data on {disk} GiB. {}\n", scenario.limits.join("; ")));
    text.push_str(
        "| contender | GiB/s (min to max) | of ceiling | of best peer | CPU s/GiB | machine CPU s/GiB ",
    );
    text.push_str("| punts/GiB | switches/GiB | process GiB/s | rounds |\n");
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in &scenario.rows {
        match row.summary {
            Some(summary) => line(&mut text, &table_row(scenario, row, &summary)),
            None => line(&mut text, &format!("| {} | did not run |", row.name)),
        }
    }
    text.push_str("\n<details><summary>Command lines</summary>\n\n```\n");
    for row in &scenario.rows {
        line(&mut text, &format!("# {}\n{}", row.name, row.command));
    }
    text.push_str("```\n\n</details>\n\n");
    text
}

/// One contender's line.
fn table_row(scenario: &ScenarioReport, row: &Row, summary: &Summary) -> String {
    let over = |other: Option<&Row>| number(other.and_then(|other| row.speed_ratio(other)), 2, "");
    // The ceiling copies nothing, so it races nobody.
    let peer = scenario.best_peer().filter(|_| row.role != Role::Ceiling);
    let rate = summary.gib_per_s;
    let cells = [
        row.name.clone(),
        format!("{} ({:.2} to {:.2})", bold(row, rate.median), rate.min, rate.max),
        over(scenario.ceiling()),
        over(peer),
        format!("{:.4}", summary.cpu_s_per_gib.median),
        format!("{:.3}", summary.machine_cpu_s_per_gib.median),
        number(summary.punts_per_gib.map(|punts: Spread| punts.median), 0, ""),
        format!("{:.0}", summary.switches_per_gib.median),
        format!("{:.2}", summary.process_gib_per_s.median),
        row.samples.len().to_string(),
    ];
    format!("| {} |", cells.join(" | "))
}

/// Our own numbers stand out.
fn bold(row: &Row, value: f64) -> String {
    match row.role {
        Role::Ours => format!("**{value:.2}**"),
        _ => format!("{value:.2}"),
    }
}

/// The promises.
fn targets(targets: &[Target]) -> String {
    let mut text =
        String::from("## Targets\n\n| scenario | what | wanted | reached | |\n|---|---|---|--:|---|\n");
    for target in targets {
        let Target { scenario, promise, bound, reached } = target;
        let reached = number(*reached, 3, "");
        line(&mut text, &format!("| {scenario} | {promise} | {bound} | {reached} | {} |", target.verdict()));
    }
    text.push('\n');
    text
}

/// A number with so many digits behind the point, or a dash.
fn number(value: Option<f64>, digits: usize, unit: &str) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}{unit}"))
}

/// Adds a line.
pub(crate) fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}
