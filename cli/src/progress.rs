//! The progress bar: on standard error, and only where a person can see it.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::time::Duration;

use blkmirror_core::units::format_size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn per second.
const HERTZ: u8 = 10;
/// The bar, the bytes, and what else there is to say.
const TEMPLATE: &str = "{prefix} {wide_bar} {percent:>3}% {msg}";

/// A progress bar, or nothing with the same methods.
#[derive(Debug)]
pub(crate) struct Bar {
    /// The bar; none when nobody looks.
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar over `bytes`, named `what`; an invisible one unless `wanted` and standard error is a terminal.
    pub(crate) fn new(wanted: bool, what: &'static str, bytes: u64) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(HERTZ));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Self { bar: Some(bar) }
    }

    /// Moves the bar to `done` bytes of `total`.
    pub(crate) fn set(&self, done: u64, total: u64, rate_bytes_per_s: u64, eta: Option<Duration>) {
        if let Some(bar) = &self.bar {
            bar.set_message(message(done, total, rate_bytes_per_s, eta));
            bar.set_position(done);
        }
    }

    /// Says something, with the bar out of the way.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| crate::output::say(text)),
            None => crate::output::say(text),
        }
    }

    /// Takes the bar off the screen.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `1.2 GiB of 2 GiB, 1.9 GiB/s, 0:05 left`.
fn message(done: u64, total: u64, rate_bytes_per_s: u64, eta: Option<Duration>) -> String {
    let left = eta.map(|eta| format!(", {} left", clock(eta))).unwrap_or_default();
    format!("{} of {}, {}/s{left}", format_size(done), format_size(total), format_size(rate_bytes_per_s))
}

/// `0:05`, `1:02:03`.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rate and remaining time are what people look at.
    #[test]
    fn the_bar_tells_bytes_rate_and_time_left() {
        let text = message(1 << 30, 2 << 30, 512 << 20, Some(Duration::from_secs(2)));
        assert_eq!(text, "1 GiB of 2 GiB, 512 MiB/s, 0:02 left");
        assert_eq!(message(0, 5, 0, None), "0 B of 5 B, 0 B/s");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }

    /// The template is a string that only running it checks.
    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
