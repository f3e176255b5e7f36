//! QMP, the control protocol of QEMU's programs, as far as one job needs it.
//!
//! One JSON object per line in each direction. A command is answered by `return` or `error`; events may come at any time,
//! before the answer too, so those are kept until somebody waits for them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Failure, Result};

/// How long one answer or event may take; a whole copy lies between two events.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// A connection that takes commands.
#[derive(Debug)]
pub struct Qmp {
    /// Lines from the program; commands go out on the same socket.
    lines: BufReader<UnixStream>,
    /// Events nobody waited for yet, oldest first.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context(|| socket.display())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context(|| "QMP socket")?;
        Self::negotiate(stream)
    }

    /// Reads the greeting and answers it.
    fn negotiate(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { lines: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.read()?;
        if greeting["QMP"].is_null() {
            return Err(Failure::new(format!("QMP: an unknown greeting: {greeting}")));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Sends a command and gives back its result.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{line}").context(|| command.to_owned())?;
        loop {
            let mut answer = self.read().context(|| command.to_owned())?;
            if !answer["event"].is_null() {
                self.events.push_back(answer);
            } else if let Some(cause) = answer["error"]["desc"].as_str() {
                return Err(Failure::new(format!("{command}: {cause}")));
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Waits for an event; those before it are forgotten.
    pub fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let message = match self.events.pop_front() {
                Some(event) => event,
                None => self.read()?,
            };
            if wanted(&message) {
                return Ok(message);
            }
        }
    }

    /// The next message.
    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line).context(|| "QMP")? {
            0 => Err(Failure::new("QMP: the program closed the connection")),
            _ => serde_json::from_str(&line).context(|| "QMP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_before_the_answer_is_not_lost() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let lines = r#"{"QMP": {}}
            {"return": {}}
            {"event": "EARLY"}
            {"return": 7}
            {"error": {"desc": "no such job"}}
            {"event": "LATE"}
        "#;
        for line in lines.lines() {
            theirs.write_all(line.trim().as_bytes()).unwrap();
            theirs.write_all(b"\n").unwrap();
        }
        let mut qmp = Qmp::negotiate(ours).unwrap();
        assert_eq!(qmp.execute("query", &json!({})).unwrap(), 7);
        assert_eq!(qmp.execute("cancel", &json!({})).unwrap_err().to_string(), "cancel: no such job");
        assert_eq!(qmp.wait_for(|event| event["event"] == "EARLY").unwrap()["event"], "EARLY");
        assert_eq!(qmp.wait_for(|event| event["event"] == "LATE").unwrap()["event"], "LATE");
    }
}
