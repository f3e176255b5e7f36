//! Talking to the daemon while it serves: one JSON object a line, an answer to each.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the daemon.
#[derive(Debug)]
pub(super) struct Monitor {
    /// Answers, and behind it the socket.
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects and gets through the greeting.
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut this = Self { stream: BufReader::new(stream) };
        assert!(this.line().get("QMP").is_some(), "the daemon does not greet");
        this.execute("qmp_capabilities", "{}");
        this
    }

    /// Has a command carried out.
    pub(super) fn execute(&mut self, command: &str, arguments: &str) {
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\n");
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return;
            }
            // Events of the daemon's come in between.
        }
    }

    /// What it says next.
    fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
