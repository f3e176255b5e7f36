//! Why a benchmark stopped: one line of text that names the thing and the cause.
//!
//! Nobody handles these in code; they end the program (or drop one contender), so a text is all they carry.
#![forbid(unsafe_code)]

use std::fmt;

/// A failure, in words for the person who runs the benchmark.
#[derive(Debug, Clone)]
pub struct Failure(String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// What nearly every function here returns.
pub type Result<T> = std::result::Result<T, Failure>;

/// Puts the name of the thing in front of a lower error's text.
pub trait Context<T> {
    /// The failure "`thing`: cause". The name is only made when it is needed.
    fn context<N: fmt::Display>(self, thing: impl FnOnce() -> N) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context<N: fmt::Display>(self, thing: impl FnOnce() -> N) -> Result<T> {
        self.map_err(|cause| Failure(format!("{}: {cause}", thing())))
    }
}
