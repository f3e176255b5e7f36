//! What the numbers were measured on, and where the results go.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::contender::{Line, is_installed};
use crate::error::{Context, Failure, Result};

/// The machine and its software.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// When the benchmark began, UTC.
    pub date: String,
    /// Kernel release.
    pub kernel: String,
    /// Name of the CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// First line that each tool prints about its version.
    pub tools: Vec<String>,
}

impl Machine {
    /// Looks around.
    pub fn look() -> Result<Self> {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").context(|| "/proc/cpuinfo")?;
        let cpu = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let tools = ["fio", "qemu-storage-daemon", "qemu-img", "dd"];
        Ok(Self {
            date: Line::new("date").words("-u +%Y-%m-%dT%H:%M:%SZ").output()?.trim().to_owned(),
            kernel: Line::new("uname").word("-r").output()?.trim().to_owned(),
            cpu: cpu.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory_bytes("MemTotal")?,
            tools: tools.into_iter().map(version).collect(),
        })
    }

    /// One line: date, kernel, CPU, cores, memory.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { date, kernel, cpu, cores, memory_bytes, .. } = self;
        let day = date.split('T').next().unwrap_or_default();
        format!("{day}, Linux {kernel}, {cores} x {cpu}, {} GiB memory", memory_bytes.div_ceil(1 << 30))
    }
}

/// What a tool says about its version.
fn version(tool: &str) -> String {
    if !is_installed(tool) {
        return format!("{tool}: not installed");
    }
    let output = Line::new(tool).word("--version").output().unwrap_or_else(|failure| failure.to_string());
    output.lines().next().unwrap_or_default().to_owned()
}

/// A line of /proc/meminfo.
pub fn memory_bytes(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Failure::new(format!("/proc/meminfo: no {name}")))
}

/// The build's target folder: this program lies in `target/release/deps`.
pub fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context(|| "this program's path")?;
    let folder = program.ancestors().nth(3).map(Path::to_path_buf);
    folder.ok_or_else(|| Failure::new(format!("{}: not inside a target folder", program.display())))
}

/// What the queue of a disk takes at once, for the report. A file has no queue of its own.
#[must_use]
pub fn queue_limits(device: &Path) -> Option<String> {
    let queue = Path::new("/sys/block").join(device.file_name()?).join("queue");
    let names = ["max_sectors_kb", "max_segments", "nr_requests"];
    let values = names.into_iter().map(|name| {
        fs::read_to_string(queue.join(name)).ok().map(|value| format!("{name} {}", value.trim()))
    });
    values.collect::<Option<Vec<_>>>().map(|values| values.join(", "))
}
