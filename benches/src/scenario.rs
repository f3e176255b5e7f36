//! The scratch disks of each scenario, and who runs on them.
//!
//! All disks lie in memory. A *stage* is a scenario built up: a source that holds the pattern, a target that
//! [`Stage::reset`] brings into a known other state before every run, and what must be taken down afterwards.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_testkit::faultdisk::{self, FaultDisk};
use blkmirror_testkit::{Ext4OnLoop, GIB, KIB, LoopDevice, LoopOptions, MIB, fill};

use crate::blkmirror::Blkmirror;
use crate::contender::{Contender, Line, Pair};
use crate::dd::Dd;
use crate::error::{Context, Failure, Result};
use crate::fio::Fio;
use crate::machine;
use crate::pattern::{self, Pattern};
use crate::qemu_img::QemuImg;
use crate::qsd::Qsd;

/// One line of the comparison's programme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Random data from loop device to loop device.
    Loop,
    /// Random data from file to file on ext4, both preallocated.
    Ext4,
    /// A sparse file with 64 KiB of data in every 512 KiB, onto a loop device that is known to be zero.
    Scattered64K,
    /// The same with 4 KiB of data in every 32 KiB.
    Scattered4K,
    /// The 64 KiB chunks onto a file that answers every write after [`WRITE_LATENCY`], however many are on their way.
    Latency,
}

/// A disk far away.
const WRITE_LATENCY: Duration = Duration::from_millis(20);

impl Scenario {
    /// All of them, in the order they run.
    pub const ALL: [Self; 5] = [Self::Loop, Self::Ext4, Self::Scattered64K, Self::Scattered4K, Self::Latency];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Ext4 => "ext4",
            Self::Scattered64K => "scattered-64k",
            Self::Scattered4K => "scattered-4k",
            Self::Latency => "latency",
        }
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Loop => "loop device to loop device, random data",
            Self::Ext4 => "preallocated ext4 file to ext4 file, random data",
            Self::Scattered64K => "scattered 64 KiB chunks, sparse ext4 file to empty loop device",
            Self::Scattered4K => "scattered 4 KiB chunks, sparse ext4 file to empty loop device",
            Self::Latency => "20 ms write latency, scattered 64 KiB chunks to an empty slow file",
        }
    }

    /// Where its source holds data.
    #[must_use]
    pub fn pattern(self) -> Pattern {
        match self {
            Self::Loop | Self::Ext4 => Pattern::Full,
            Self::Scattered64K | Self::Latency => {
                Pattern::Scattered { chunk_bytes: 64 * KIB, stride_bytes: 512 * KIB }
            }
            Self::Scattered4K => Pattern::Scattered { chunk_bytes: 4 * KIB, stride_bytes: 32 * KIB },
        }
    }

    /// The size of its disks: as large as is useful, or what the free memory allows.
    pub fn disk_bytes(self, quick: bool) -> Result<u64> {
        let full = match self {
            Self::Loop | Self::Ext4 => 2 * GIB,
            Self::Scattered64K | Self::Scattered4K => 8 * GIB,
            // 256 MiB of data: five seconds for a tool with 16 requests on their way.
            Self::Latency => 2 * GIB,
        };
        let mut size = if quick { full / 4 } else { full };
        // In memory lie the source's data and the whole target: not every tool leaves the holes out.
        let free_bytes = machine::memory_bytes("MemAvailable")?;
        while (self.pattern().useful_bytes(size) + size) / 3 * 4 > free_bytes {
            size /= 2;
        }
        if size < 64 * MIB {
            return Err(Failure::new(format!("{}: too little memory is free for the disks", self.name())));
        }
        Ok(size)
    }

    /// Who takes part. `ours` is `None` while there is no `blkmirror copy`.
    #[must_use]
    pub fn contenders(self, ours: Option<&Blkmirror>) -> Vec<Box<dyn Contender>> {
        let mut list: Vec<Box<dyn Contender>> = Vec::new();
        let fio = |request_bytes, depth| Box::new(Fio { request_bytes, depth });
        let qsd = |aio, granularity_bytes| Box::new(Qsd { aio, granularity_bytes });
        match self {
            Self::Loop | Self::Ext4 => {
                list.push(fio(MIB, 16));
                list.push(fio(512 * KIB, 32));
                list.extend(ours.map(|ours| Box::new(ours.clone()) as Box<dyn Contender>));
                list.push(qsd("native", None));
                list.push(qsd("io_uring", None));
                list.push(Box::new(QemuImg));
                list.push(Box::new(Dd));
            }
            Self::Scattered64K => {
                list.push(fio(64 * KIB, 16));
                list.push(fio(64 * KIB, 64));
                list.extend(ours.map(|ours| Box::new(ours.clone()) as Box<dyn Contender>));
                list.push(qsd("native", None));
                list.push(qsd("io_uring", None));
                list.push(Box::new(QemuImg));
                list.push(Box::new(Dd));
            }
            Self::Scattered4K => {
                // No deeper: the loop device's queue holds 128 requests, and what exceeds it is punted.
                list.push(fio(4 * KIB, 32));
                list.push(fio(4 * KIB, 64));
                list.extend(ours.map(|ours| Box::new(ours.with("--granularity 4K")) as Box<dyn Contender>));
                // A fine bitmap copies no hole; the default one copies eight times the data in a sixteenth of the requests,
                // and is usually the better for it. QEMU is judged by its best.
                list.push(qsd("native", Some(4 * KIB)));
                list.push(qsd("native", None));
                list.push(qsd("io_uring", None));
                list.push(Box::new(QemuImg));
            }
            Self::Latency => {
                // As many bytes on their way as two workers of ours have; fewer requests would measure the latency.
                list.push(fio(64 * KIB, 512));
                list.extend(ours.map(|ours| Box::new(ours.clone()) as Box<dyn Contender>));
                list.push(qsd("native", None));
                list.push(qsd("io_uring", None));
                list.push(Box::new(QemuImg));
            }
        }
        list
    }

    /// Builds the disks and fills the source.
    pub fn build(self, disk_bytes: u64) -> Result<Stage> {
        let pattern = self.pattern();
        let stage = match self {
            Self::Loop => {
                let (source, target) = (loop_device(disk_bytes)?, loop_device(disk_bytes)?);
                let pair = pair(source.path(), target.path(), disk_bytes, pattern);
                let limits = limits([&source, &target]);
                Stage { pair, limits, held: Held::Loops([source, target]) }
            }
            Self::Ext4 => {
                // Room for both files and the file system's own tables.
                let files = Ext4OnLoop::new(2 * disk_bytes + disk_bytes / 8 + 64 * MIB).context(|| "ext4")?;
                let source = files.preallocated_file("source", disk_bytes).context(|| "ext4 source")?;
                let target = files.preallocated_file("target", disk_bytes).context(|| "ext4 target")?;
                let pair = pair(&source, &target, disk_bytes, pattern);
                let limits = limits([files.device()]);
                Stage { pair, limits, held: Held::Files(files) }
            }
            Self::Scattered64K | Self::Scattered4K => {
                let (files, source) = sparse_source(pattern.useful_bytes(disk_bytes), disk_bytes)?;
                let target = loop_device(disk_bytes)?;
                let pair = Pair { target_is_zero: true, ..pair(&source, target.path(), disk_bytes, pattern) };
                let limits = limits([files.device(), &target]);
                Stage { pair, limits, held: Held::FilesAndLoop(files, target) }
            }
            Self::Latency => {
                let (files, source) = sparse_source(pattern.useful_bytes(disk_bytes), disk_bytes)?;
                let options = faultdisk::Options {
                    size_bytes: disk_bytes,
                    write_latency: WRITE_LATENCY,
                    ..faultdisk::Options::default()
                };
                let target = FaultDisk::new(&options).context(|| "slow file")?;
                let pair = Pair { target_is_zero: true, ..pair(&source, target.path(), disk_bytes, pattern) };
                let limits = limits([files.device()]);
                Stage { pair, limits, held: Held::FilesAndSlow(files, target) }
            }
        };
        stage.fill()?;
        Ok(stage)
    }
}

/// A scenario built up. Everything goes away when it is dropped.
#[derive(Debug)]
pub struct Stage {
    /// The disks.
    pub pair: Pair,
    /// What the queues of the block devices take at once.
    pub limits: Vec<String>,
    /// What the pair stands on.
    held: Held,
}

/// What must live as long as the stage.
#[derive(Debug)]
enum Held {
    /// Two loop devices.
    Loops(#[expect(dead_code, reason = "held for its drop")] [LoopDevice; 2]),
    /// A file system with both files.
    Files(#[expect(dead_code, reason = "held for its drop")] Ext4OnLoop),
    /// A file system with the source, and the target.
    FilesAndLoop(
        #[expect(dead_code, reason = "held for its drop")] Ext4OnLoop,
        #[expect(dead_code, reason = "held for its drop")] LoopDevice,
    ),
    /// The same with a slow target.
    FilesAndSlow(#[expect(dead_code, reason = "held for its drop")] Ext4OnLoop, FaultDisk),
}

impl Stage {
    /// Writes the pattern to the source and checks that it arrived.
    fn fill(&self) -> Result<()> {
        let Pair { source, disk_bytes, pattern, .. } = &self.pair;
        match *pattern {
            Pattern::Full => pattern::write_full(source, *disk_bytes)?,
            Pattern::Scattered { chunk_bytes, stride_bytes } => {
                fill::scattered_file(source, *disk_bytes, chunk_bytes, stride_bytes, pattern::SEED)
                    .context(|| source.display().to_string())?;
            }
        }
        self.check_source()
    }

    /// Brings the target into its known state, in which it differs from the source.
    ///
    /// A target that need not be zero is overwritten in every byte, which also keeps its memory allocated; one that must
    /// be zero is emptied, and has to find new memory in every run, as a fresh disk has.
    pub fn reset(&self) -> Result<()> {
        let Pair { target, disk_bytes, .. } = &self.pair;
        match &self.held {
            Held::Loops(_) | Held::Files(_) => pattern::spoil(target, *disk_bytes),
            Held::FilesAndLoop(..) => Line::new("blkdiscard").word(target).output().map(drop),
            Held::FilesAndSlow(_, slow) => {
                let control = slow.control();
                control.set_size(0).and_then(|()| control.set_size(*disk_bytes)).context(|| "slow file")
            }
        }
    }

    /// Fails unless the target holds what the source was given.
    pub fn check_target(&self) -> Result<()> {
        // What the slow file's server has stored is the disk itself; no need to wait for it.
        let target = match &self.held {
            Held::FilesAndSlow(_, slow) => slow.content_path(),
            _ => &self.pair.target,
        };
        pattern::check(target, self.pair.pattern, self.pair.disk_bytes)
    }

    /// Fails unless the source still holds what it was given.
    pub fn check_source(&self) -> Result<()> {
        pattern::check(&self.pair.source, self.pair.pattern, self.pair.disk_bytes)
    }
}

/// A sparse file on a file system with room for its data.
fn sparse_source(useful_bytes: u64, disk_bytes: u64) -> Result<(Ext4OnLoop, PathBuf)> {
    let files = Ext4OnLoop::new(useful_bytes + useful_bytes / 4 + 64 * MIB).context(|| "ext4")?;
    let source = files.sparse_file("source", disk_bytes).context(|| "ext4 source")?;
    Ok((files, source))
}

/// A pair whose target nobody knows anything about.
fn pair(source: &Path, target: &Path, disk_bytes: u64, pattern: Pattern) -> Pair {
    let (source, target) = (source.to_path_buf(), target.to_path_buf());
    Pair { source, target, disk_bytes, pattern, target_is_zero: false }
}

/// A loop device in memory, around the page cache.
fn loop_device(disk_bytes: u64) -> Result<LoopDevice> {
    LoopDevice::in_memory(disk_bytes, LoopOptions::default()).context(|| "loop device")
}

/// The queue limits of the devices, for the report.
fn limits<'d>(devices: impl IntoIterator<Item = &'d LoopDevice>) -> Vec<String> {
    let line =
        |device: &LoopDevice| Some(format!("{}: {}", device.name(), machine::queue_limits(device.path())?));
    devices.into_iter().filter_map(line).collect()
}
