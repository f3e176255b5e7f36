//! A disk, its target, an engine, and a job between them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::device::{Device, TargetOptions};
use crate::api::drive::Drive;
use crate::api::engine::{
    Completion, CopyModeChoice, End, Engine, EngineOptions, Event, EventKind, Job, JobStatus, LatencyBudget,
    MirrorOptions, Outcome,
};
use blkmirror_testkit::{FaultDisk, LoopDevice, LoopOptions, ScratchDir};

use super::guest::{GuestPlan, Guests};
use super::history::History;
use super::served::Served;
use super::watchdog::Watchdog;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a disk is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium<'a> {
    /// A file in memory.
    Memory,
    /// A file in this directory.
    FileIn(&'a str),
    /// A loop device.
    Loop,
    /// A disk with faults.
    Faulty,
}

/// A disk that goes away with this.
#[derive(Debug)]
pub struct Place {
    /// What to open.
    pub path: PathBuf,
    /// What to read to see what it holds, past all faults.
    pub content: PathBuf,
    /// The disk with faults, if it is one.
    pub faulty: Option<FaultDisk>,
    /// The server, if another program serves it.
    served: Option<Served>,
    /// Keeps a loop device.
    _device: Option<LoopDevice>,
    /// Keeps a directory in memory.
    _dir: Option<ScratchDir>,
    /// Removes a file.
    _file: Option<tempfile::TempDir>,
}

impl Place {
    /// A disk of `len_bytes`, all zeroes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(medium: Medium<'_>, len_bytes: u64) -> Self {
        let empty = |path: PathBuf| Self {
            content: path.clone(),
            path,
            faulty: None,
            served: None,
            _device: None,
            _dir: None,
            _file: None,
        };
        match medium {
            Medium::Memory => {
                let dir = ScratchDir::new().unwrap();
                Self { _dir: Some(dir), ..empty(PathBuf::new()) }.with_file(len_bytes)
            }
            Medium::FileIn(dir) => {
                let dir = tempfile::Builder::new().prefix("blkmirror-live").tempdir_in(dir).unwrap();
                let path = dir.path().join("disk");
                std::fs::File::create(&path).unwrap().set_len(len_bytes).unwrap();
                Self { _file: Some(dir), ..empty(path) }
            }
            Medium::Loop => {
                let device = LoopDevice::in_memory(len_bytes, LoopOptions::default()).unwrap();
                let path = device.path().to_owned();
                Self { _device: Some(device), ..empty(path) }
            }
            Medium::Faulty => {
                let disk = FaultDisk::of_size(len_bytes).unwrap();
                let content = disk.content_path().to_owned();
                let path = disk.path().to_owned();
                Self { faulty: Some(disk), content, ..empty(path) }
            }
        }
    }

    /// A disk that `qemu-storage-daemon` serves.
    #[must_use]
    pub fn served(disk: Served) -> Self {
        let (path, content) = (disk.path().to_owned(), disk.content().to_owned());
        Self { served: Some(disk), path, content, faulty: None, _device: None, _dir: None, _file: None }
    }

    /// Makes the file in its directory.
    fn with_file(mut self, len_bytes: u64) -> Self {
        let path = self._dir.as_ref().unwrap().sparse_file("disk", len_bytes).unwrap();
        (self.path, self.content) = (path.clone(), path);
        self
    }

    /// Bytes that it holds at `at`, past all faults.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn bytes_at(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.content).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// What changes a disk with faults.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn control(&self) -> &blkmirror_testkit::faultdisk::Control {
        self.faulty.as_ref().unwrap().control()
    }

    /// What serves it.
    ///
    /// # Panics
    /// When it is no disk that another program serves.
    #[must_use]
    pub fn server(&self) -> &Served {
        self.served.as_ref().unwrap()
    }
}

/// Heals disks with faults before anything else is dropped, so that a test that fails does not wait for what hangs.
#[derive(Debug)]
struct Healer(Vec<blkmirror_testkit::faultdisk::Control>);

impl Drop for Healer {
    fn drop(&mut self) {
        for control in &self.0 {
            control.clear_rules();
            let _ = control.release_stuck(None);
        }
    }
}

/// A drive, a target, an engine, and what was written.
#[derive(Debug)]
pub struct Scene {
    /// Dropped first.
    _healer: Healer,
    /// Who copies.
    pub engine: Engine,
    /// The guest's disk.
    pub drive: Drive,
    /// What was written to it.
    pub history: Arc<History>,
    /// Bytes of both disks.
    pub len_bytes: u64,
    /// Where the drive stands at first.
    pub source: Place,
    /// Where it is mirrored to.
    pub target: Place,
    /// Dropped last, so that it sees everything else end.
    _watchdog: Watchdog,
}

impl Scene {
    /// Two disks of `len_bytes`; the source has its first content.
    ///
    /// # Panics
    /// When something cannot be made.
    #[must_use]
    pub fn new(len_bytes: u64, source: Medium<'_>, target: Medium<'_>) -> Self {
        Self::between(len_bytes, Place::new(source, len_bytes), Place::new(target, len_bytes))
    }

    /// The same with disks that exist.
    ///
    /// # Panics
    /// When something cannot be made.
    #[must_use]
    pub fn between(len_bytes: u64, source: Place, target: Place) -> Self {
        let watchdog = Watchdog::new();
        History::fill(&source.content, len_bytes);
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let disk = Device::open_disk(&source.path).unwrap();
        // As coarse as the coarsest target, so that the drive may move to each of them.
        let align_bytes = if len_bytes.is_multiple_of(4096) { 4096 } else { 512 };
        let drive = Drive::with_align_bytes(disk, align_bytes).unwrap();
        let faulty = [&source, &target].into_iter().filter_map(|place| place.faulty.as_ref());
        let healer = Healer(faulty.map(|disk| disk.control().clone()).collect());
        Self {
            _healer: healer,
            engine,
            drive,
            history: Arc::default(),
            len_bytes,
            source,
            target,
            _watchdog: watchdog,
        }
    }

    /// The longest pause of [`Self::options`].
    pub const MAX_PAUSE: Duration = Duration::from_millis(250);

    /// The choices of most tests: the defaults, but for a latency budget, which would make the copy slow for the time that the
    /// test takes, and with a pause that the flush of a busy file system fits in.
    #[must_use]
    pub fn options() -> MirrorOptions {
        MirrorOptions {
            latency_budget: LatencyBudget::Off,
            max_pause: Some(Self::MAX_PAUSE),
            ..MirrorOptions::default()
        }
    }

    /// The same in a copy mode.
    #[must_use]
    pub fn options_in(copy_mode: CopyModeChoice) -> MirrorOptions {
        MirrorOptions { copy_mode, ..Self::options() }
    }

    /// The target, opened.
    ///
    /// # Panics
    /// When it cannot be.
    #[must_use]
    pub fn open_target(&self) -> Device {
        Device::open_target(&self.target.path, TargetOptions::default()).unwrap()
    }

    /// Starts a job.
    ///
    /// # Panics
    /// When it is refused.
    pub fn mirror(&self, options: MirrorOptions) -> Job {
        self.engine.mirror(&self.drive, self.open_target(), options).unwrap()
    }

    /// Two guests that write all over the disk.
    #[must_use]
    pub fn guests(&self) -> Guests {
        self.guests_with(&[1, 2].map(|seed| GuestPlan::over(self.len_bytes, seed)))
    }

    /// Guests with these plans.
    #[must_use]
    pub fn guests_with(&self, plans: &[GuestPlan]) -> Guests {
        let disks = [self.source.path.clone(), self.target.path.clone()];
        Guests::tracked(&self.drive, &disks, &self.history, plans)
    }

    /// Two guests that write all over the disk, through queues.
    #[must_use]
    pub fn queued_guests(&self) -> Guests {
        self.queued_guests_with(&[1, 2].map(|seed| GuestPlan::over(self.len_bytes, seed)))
    }

    /// Guests with these plans, through queues.
    #[must_use]
    pub fn queued_guests_with(&self, plans: &[GuestPlan]) -> Guests {
        Guests::queued(&self.drive, &self.history, plans)
    }

    /// Asks for the switch-over and waits for the end, which must be good.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    #[must_use]
    pub fn complete(&self, job: &Job, completion: Completion) -> Outcome {
        job.complete(completion).unwrap();
        completed(job)
    }

    /// Asserts that the source holds what the guests wrote last.
    #[track_caller]
    pub fn check_source(&self) {
        self.history.check_last(&self.source.content);
    }

    /// Asserts that the target holds what the guests wrote last.
    #[track_caller]
    pub fn check_target(&self) {
        self.history.check_last(&self.target.content);
    }
}

/// Waits for the end of a job, which must be good.
#[track_caller]
pub(crate) fn completed(job: &Job) -> Outcome {
    let outcome = ended(job);
    assert_eq!(outcome.end, End::Completed, "{:?}", outcome.error);
    outcome
}

/// Waits for the end of a job.
#[track_caller]
fn ended(job: &Job) -> Outcome {
    match job.wait_for(PATIENCE) {
        Some(outcome) => outcome,
        None => panic!("it does not end: {:?}", job.query()),
    }
}

/// Waits for what must become true.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it never comes true that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until what the guest is told is written is on both sides.
///
/// # Panics
/// When it does not come true.
#[track_caller]
pub fn until_synced(job: &Job) {
    until("source and target are in sync", || job.query().actively_synced);
}

/// Waits for a state of a job.
///
/// # Panics
/// When it does not come.
#[track_caller]
pub fn until_status(job: &Job, status: JobStatus) {
    let end = Instant::now() + PATIENCE;
    while job.status() != status {
        let late = Instant::now() >= end || (job.status().is_over() && status != JobStatus::Concluded);
        assert!(!late, "{:?} does not become {status}", job.query());
        thread::sleep(Duration::from_millis(1));
    }
}

/// All events that are there.
#[must_use]
pub fn events_of(job: &Job) -> Vec<Event> {
    std::iter::from_fn(|| job.next_event()).collect()
}

/// The states that the events tell of, in order.
#[must_use]
pub fn statuses_of(events: &[Event]) -> Vec<JobStatus> {
    let status = |event: &Event| match event.what {
        EventKind::Status { to, .. } => Some(to),
        _ => None,
    };
    events.iter().filter_map(status).collect()
}
