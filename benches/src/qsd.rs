//! QEMU's mirror job, run inside qemu-storage-daemon and driven over its QMP socket.
//!
//! The clock runs from the `blockdev-mirror` command to the moment the job is concluded: the copy up to READY, the
//! switch to the target, both flushes. The process CPU time is taken over the same span, so the daemon's start is not
//! held against it; machine time too. Punts and context switches are of the daemon's whole life.
#![forbid(unsafe_code)]

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::contender::{Contender, Line, Pair, Role};
use crate::error::{Context, Failure, Result};
use crate::measure::{Meter, ProcessClock, Sample};
use crate::qmp::Qmp;

/// How long the daemon may take to open its socket.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The job with one set of options.
#[derive(Debug, Clone, Copy)]
pub struct Qsd {
    /// The daemon's way to do I/O: `native` (linux-aio) or `io_uring`.
    pub aio: &'static str,
    /// The dirty bitmap's chunk, if not the default of 64 KiB.
    pub granularity_bytes: Option<u64>,
}

impl Qsd {
    /// The daemon's command line.
    fn line(&self, pair: &Pair, socket: &Path) -> Line {
        // With discard=unmap the job zeroes the target first, which a fresh one takes in no time, and then has
        // the right to skip or punch what is zero in the source; without it, it would write the zeroes out.
        let discard = if pair.target_is_zero { "unmap" } else { "ignore" };
        Line::new("qemu-storage-daemon")
            .words("--chardev")
            .word(format!("socket,id=monitor,path={},server=on,wait=off", socket.display()))
            .words("--monitor chardev=monitor --blockdev")
            .word(self.node("source", &pair.source, json!({"read-only": true})))
            .words("--blockdev")
            .word(self.node("target", &pair.target, json!({"discard": discard})))
    }

    /// A disk of the daemon, around the page cache.
    fn node(&self, name: &str, path: &Path, options: Value) -> String {
        let is_device = path.metadata().is_ok_and(|data| data.file_type().is_block_device());
        let mut node = json!({
            "driver": if is_device { "host_device" } else { "file" },
            "node-name": name,
            "filename": path,
            "aio": self.aio,
            "cache": {"direct": true},
        });
        if let (Some(node), Value::Object(options)) = (node.as_object_mut(), options) {
            node.extend(options);
        }
        node.to_string()
    }

    /// The job's arguments.
    fn job(&self, version: (u64, u64), pair: &Pair) -> Value {
        let mut job = json!({
            "job-id": "copy", "device": "source", "target": "target", "sync": "full", "auto-dismiss": false,
        });
        if let Some(bytes) = self.granularity_bytes {
            job["granularity"] = bytes.into();
        }
        // Older ones cannot be told.
        if pair.target_is_zero && version >= (10, 1) {
            job["target-is-zero"] = true.into();
        }
        job
    }
}

impl Contender for Qsd {
    fn name(&self) -> String {
        match self.granularity_bytes {
            Some(bytes) => format!("QSD mirror {} {}K", self.aio, bytes / 1024),
            None => format!("QSD mirror {}", self.aio),
        }
    }

    fn role(&self) -> Role {
        Role::Qemu
    }

    fn has_own_clock(&self) -> bool {
        true
    }

    fn command_line(&self, pair: &Pair) -> String {
        let job = self.job((0, 0), pair);
        format!("{}, then blockdev-mirror {job}", self.line(pair, Path::new("qmp.sock")))
    }

    fn run(&self, pair: &Pair, meter: &Meter) -> Result<Sample> {
        let folder = TempDir::with_prefix("blkmirror-qsd-").context(|| "scratch directory for a socket")?;
        let socket = folder.path().join("qmp.sock");
        let life = meter.start()?;
        let mut daemon = Daemon::start(&self.line(pair, &socket))?;
        let mut qmp = daemon.connect(&socket)?;
        let version = qmp.execute("query-version", &json!({}))?;
        let number = |part: &str| version["qemu"][part].as_u64().unwrap_or_default();
        let job = self.job((number("major"), number("minor")), pair);
        let clock = ProcessClock::of(daemon.0.id())?;

        let (span, cpu_before_s) = (meter.mark()?, clock.cpu_s()?);
        mirror(&mut qmp, &job)?;
        let seconds = span.elapsed_s();
        let cpu_seconds = clock.cpu_s()? - cpu_before_s;
        let machine_cpu_seconds = meter.machine_cpu_since(&span)?;

        qmp.execute("job-dismiss", &json!({"id": "copy"}))?;
        qmp.execute("quit", &json!({}))?;
        daemon.end()?;
        Ok(Sample { seconds, cpu_seconds, machine_cpu_seconds, ..meter.finish(&life)? })
    }
}

/// Runs the job to its end. The target is the whole copy then.
fn mirror(qmp: &mut Qmp, job: &Value) -> Result<()> {
    qmp.execute("blockdev-mirror", job)?;
    let concluded =
        |event: &Value| event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == "concluded";
    // A job that fails is concluded without ever having been ready.
    let event = qmp.wait_for(|event| event["event"] == "BLOCK_JOB_READY" || concluded(event))?;
    if event["event"] == "BLOCK_JOB_READY" {
        qmp.execute("job-complete", &json!({"id": "copy"}))?;
        qmp.wait_for(concluded)?;
    }
    let jobs = qmp.execute("query-jobs", &json!({}))?;
    match jobs[0]["error"].as_str() {
        Some(error) => Err(Failure::new(format!("blockdev-mirror: {error}"))),
        None => Ok(()),
    }
}

/// The running daemon; killed if we leave early.
struct Daemon(Child);

impl Daemon {
    /// Starts it.
    fn start(line: &Line) -> Result<Self> {
        let mut command = line.command();
        command.stdout(Stdio::null());
        command.spawn().map(Self).context(|| "qemu-storage-daemon: cannot be started")
    }

    /// Waits for its socket.
    fn connect(&mut self, socket: &Path) -> Result<Qmp> {
        let start = Instant::now();
        loop {
            if let Ok(qmp) = Qmp::connect(socket) {
                return Ok(qmp);
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                return Err(Failure::new(format!("qemu-storage-daemon: ended at its start, {status}")));
            }
            if start.elapsed() > START_LIMIT {
                return Err(Failure::new("qemu-storage-daemon: opened no socket"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, after it was told to quit.
    fn end(&mut self) -> Result<()> {
        let status = self.0.wait().context(|| "qemu-storage-daemon")?;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("qemu-storage-daemon: {status}"))) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Does nothing to one that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
