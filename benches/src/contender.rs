//! What a tool must offer to take part, and what all of them need: the pair of disks, and running a command.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Failure, Result};
use crate::measure::{Meter, Sample};
use crate::pattern::Pattern;

/// The two disks of a scenario, as every contender sees them.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Read.
    pub source: PathBuf,
    /// Written.
    pub target: PathBuf,
    /// Size of both.
    pub disk_bytes: u64,
    /// Where the source holds data.
    pub pattern: Pattern,
    /// The target reads as zeroes before the run, and every tool is told so.
    pub target_is_zero: bool,
}

/// Which column of the comparison a contender stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Not a copy: reads and writes at once, as much as the devices give.
    Ceiling,
    /// This project.
    Ours,
    /// A tool of QEMU.
    Qemu,
    /// Any other tool.
    Other,
}

/// One tool with one set of options.
pub trait Contender {
    /// Its name in the tables.
    fn name(&self) -> String;
    /// Its column.
    fn role(&self) -> Role;
    /// Whether `Sample::seconds` is the tool's own clock around the copy. If not, it is the life of the process, and
    /// we compare our own process's life with it.
    fn has_own_clock(&self) -> bool;
    /// The command line, for the report.
    fn command_line(&self, pair: &Pair) -> String;
    /// Copies source to target once (a ceiling: reads the one and writes the other).
    fn run(&self, pair: &Pair, meter: &Meter) -> Result<Sample>;
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Line {
    /// Environment, program, arguments: the whole line, one word each.
    words: Vec<String>,
    /// How many of the words are `NAME=value` in front of the program.
    environment: usize,
}

impl Line {
    /// A line of the program alone.
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self { words: vec![program.to_owned()], environment: 0 }
    }

    /// The same with a variable set.
    #[must_use]
    pub fn with_environment(mut self, variable: &str) -> Self {
        self.words.insert(0, variable.to_owned());
        self.environment += 1;
        self
    }

    /// The same with words that stand in one string, separated by spaces.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(str::to_owned));
        self
    }

    /// The same with one more word, which may hold spaces.
    #[must_use]
    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_string_lossy().into_owned());
        self
    }

    /// The command to start.
    #[must_use]
    pub fn command(&self) -> Command {
        let (environment, line) = self.words.split_at(self.environment);
        let mut command = Command::new(line.first().map(String::as_str).unwrap_or_default());
        command.args(line.iter().skip(1)).stdin(Stdio::null());
        command.envs(environment.iter().filter_map(|variable| variable.split_once('=')));
        command
    }

    /// Runs it to its end and gives back what it printed. A failure quotes its last words.
    pub fn output(&self) -> Result<String> {
        let name = self.words.get(self.environment).cloned().unwrap_or_default();
        let output = self.command().output().context(|| format!("{name}: cannot be started"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let last_words = String::from_utf8_lossy(&output.stderr);
        let last_words = last_words.lines().rfind(|line| !line.is_empty()).unwrap_or("no message");
        Err(Failure::new(format!("{name}: {}: {last_words}", output.status)))
    }
}

impl std::fmt::Display for Line {
    /// As one would type it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, word) in self.words.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:,%+".contains(c));
            if plain {
                write!(f, "{space}{word}")?;
            } else {
                write!(f, "{space}'{word}'")?;
            }
        }
        Ok(())
    }
}

/// Whether a program of this name is on the path.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_it_would_be_typed() {
        let line = Line::new("tool").words("--one --two=2").word("{\"a\": 1}").with_environment("A=b");
        assert_eq!(line.to_string(), "A=b tool --one --two=2 '{\"a\": 1}'");
    }

    #[test]
    fn a_failing_command_is_quoted() {
        let failure =
            Line::new("sh").word("-c").word("echo first >&2; echo last >&2; exit 3").output().unwrap_err();
        assert!(failure.to_string().ends_with("last"), "{failure}");
    }
}
