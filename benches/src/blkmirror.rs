//! `blkmirror copy`: this project, as its users run it.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::Value;

use crate::contender::{Contender, Line, Pair, Role};
use crate::error::{Context, Failure, Result};
use crate::measure::{Meter, Sample};

/// The release binary with one set of options.
#[derive(Debug, Clone)]
pub struct Blkmirror {
    /// Where the binary is.
    program: PathBuf,
    /// Options beyond what the pair asks for, as one would type them.
    options: &'static str,
}

impl Blkmirror {
    /// Builds the release binary, so that nobody measures yesterday's, and checks that it has a `copy` command.
    pub fn build() -> Result<Self> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        Line::new(&cargo)
            .words("build --release --quiet -p blkmirror --manifest-path")
            .word(manifest)
            .output()?;
        let program = crate::machine::target_folder()?.join("release/blkmirror");
        let help = Line::new(&program.to_string_lossy()).words("copy --help").output()?;
        if !help.contains("--json") {
            return Err(Failure::new("blkmirror: this build has no copy command"));
        }
        Ok(Self { program, options: "" })
    }

    /// The same binary with more options.
    #[must_use]
    pub fn with(&self, options: &'static str) -> Self {
        Self { program: self.program.clone(), options }
    }

    /// What was built.
    pub fn version(&self) -> Result<String> {
        Line::new(&self.program.to_string_lossy()).word("--version").output()
    }

    /// The command.
    pub(crate) fn line(&self, pair: &Pair) -> Line {
        let zero = if pair.target_is_zero { "--target-is-zero" } else { "" };
        Line::new(&self.program.to_string_lossy())
            .words("copy --json")
            .words(zero)
            .words(self.options)
            .word(&pair.source)
            .word(&pair.target)
    }
}

impl Contender for Blkmirror {
    fn name(&self) -> String {
        format!("blkmirror copy {}", self.options).trim_end().to_owned()
    }

    fn role(&self) -> Role {
        Role::Ours
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
        sample.seconds = seconds(&output)?;
        if sample.seconds > sample.process_seconds {
            let Sample { seconds, process_seconds, .. } = sample;
            return Err(Failure::new(format!(
                "blkmirror: claims {seconds} s in a life of {process_seconds} s"
            )));
        }
        Ok(sample)
    }
}

/// The seconds in the report of a copy that ended well.
fn seconds(output: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(output).context(|| "blkmirror's report")?;
    if report["target_state"] != "complete" {
        return Err(Failure::new(format!(
            "blkmirror: the target is {}: {}",
            report["target_state"], report["error"]
        )));
    }
    report["seconds"].as_f64().ok_or_else(|| Failure::new("blkmirror: no seconds in its report"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_target_has_a_time() {
        assert_eq!(seconds(r#"{"target_state": "complete", "seconds": 0.5}"#).unwrap(), 0.5);
        assert!(seconds(r#"{"target_state": "incomplete", "seconds": 0.5, "error": "x"}"#).is_err());
        assert!(seconds("").is_err());
    }
}
