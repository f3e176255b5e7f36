//! Where the results of a benchmark go: the numbers as JSON, the tables beside it, and to the terminal.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Result};

/// Writes `report` to `json_path` and `text` next to it as Markdown, and prints `text`.
pub(crate) fn publish(json_path: &Path, report: &impl Serialize, text: &str) -> Result<()> {
    let name = |path: &Path| path.display().to_string();
    let json = serde_json::to_string_pretty(report).context(|| name(json_path))?;
    fs::write(json_path, json).context(|| name(json_path))?;
    let markdown_path = json_path.with_extension("md");
    fs::write(&markdown_path, text).context(|| name(&markdown_path))?;
    println!("{text}");
    eprintln!("written: {} and {}", name(json_path), name(&markdown_path));
    Ok(())
}

/// The report that the last run wrote to `json_path`.
pub(crate) fn last<R: DeserializeOwned>(json_path: &Path) -> Result<R> {
    let name = || json_path.display().to_string();
    let text = fs::read_to_string(json_path).context(name)?;
    serde_json::from_str(&text).context(name)
}
