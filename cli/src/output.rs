//! Writing to standard output and standard error without ever panicking.
//!
//! `println!` panics when the reader of a pipe has gone. Here a reader who left is no error (`blkmirror info | head`
//! is fine), every other failure to write the answer is one, and messages on standard error are best effort.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::exit::{Exit, Failure, Outcome};

/// Writes `text` to standard output as it is.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes `value` to standard output as one line of JSON.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Outcome<()> {
    let mut line = serde_json::to_string(value)
        .map_err(|e| Failure::failed(format!("cannot write the JSON report: {e}")))?;
    line.push('\n');
    print(&line)
}

/// How a command ends that has printed its result: as it would, unless the result could not be printed.
pub(crate) fn exit_after(printed: Outcome<()>, exit: Exit) -> Exit {
    match printed {
        Ok(()) => exit,
        Err(failure) => {
            say(&failure);
            failure.exit
        }
    }
}

/// Says something on standard error, as one line that starts with the command's name.
pub(crate) fn say(text: impl Display) {
    let line = format!("blkmirror: {}\n", one_line(&text.to_string()));
    // Nobody is left to be told when standard error is gone too.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Says something worth knowing that is no failure.
pub(crate) fn say_note(note: &str) {
    say(format_args!("note: {note}"));
}

/// `text` without line breaks and other control characters; a file name may hold any of them.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file name with a line break in it must not forge a second message.
    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line("a\nblkmirror: b\x1b[2J"), "a?blkmirror: b?[2J");
    }
}
