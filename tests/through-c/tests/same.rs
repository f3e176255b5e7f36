//! The same story told to core and to the C library: what a host reads of either is the same, word for word and number for number.
//! The live tests hold both to what they promise; this holds one to the other.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use blkmirror_core::engine::ErrorPolicy;
use blkmirror_testkit::faultdisk::{Effect, Operation, Rule};
use blkmirror_testkit::{FaultDisk, KIB, MIB, ScratchDir, fill, needs};

/// Size of the disks here.
const SIZE: u64 = 4 * MIB;

/// A place for disks.
struct Disks {
    /// Removes them.
    dir: ScratchDir,
}

impl Disks {
    /// None yet.
    fn new() -> Self {
        Self { dir: ScratchDir::new().unwrap() }
    }

    /// A disk of zeroes, always new.
    fn empty(&self, name: &str, len_bytes: u64) -> PathBuf {
        let _ = fs::remove_file(self.dir.path().join(name));
        self.dir.sparse_file(name, len_bytes).unwrap()
    }

    /// One with data in its first half, some of it zeroes.
    fn full(&self, name: &str) -> PathBuf {
        let path = self.empty(name, SIZE);
        fill::random(&path, 0, SIZE / 2, 7).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 64 << 10], MIB).unwrap();
        path
    }
}

/// What is told of an error.
type Told = (i32, String);

/// Tells the story by one API.
macro_rules! story {
    ($name:ident, $api:path) => {
        /// Told by this API.
        mod $name {
            use std::path::Path;
            use std::time::Duration;

            use api::buffer::AlignedBuf;
            use api::device::{Device, TargetOptions};
            use api::drive::queue::{QueueOptions, WriteFlags, ZeroFlags};
            use api::drive::{Admission, Drive, IoKind};
            use api::engine::{
                Cancel, Completion, CopyModeChoice, Engine, EngineOptions, ErrorPolicy, Job, JobStatus,
                LatencyBudget, MirrorOptions, Outcome,
            };
            use api::units::{ByteRange, Granularity};
            use api::{Error, Result};
            use $api as api;

            use super::{Disks, KIB, MIB, SIZE, Told};

            /// What is told of what must fail.
            fn told<T: std::fmt::Debug>(result: Result<T>) -> Told {
                let error: Error = result.unwrap_err();
                (error.errno(), error.to_string())
            }

            /// A target, opened.
            fn target(path: &Path) -> Device {
                Device::open_target(path, TargetOptions::default()).unwrap()
            }

            /// An engine with one worker.
            fn engine() -> Engine {
                let workers = std::num::NonZeroUsize::new(1);
                Engine::start(EngineOptions { workers, ..EngineOptions::default() }).unwrap()
            }

            /// A job that does the same each time.
            fn options() -> MirrorOptions {
                MirrorOptions {
                    granularity: Some(Granularity::new(64 * KIB).unwrap()),
                    copy_mode: CopyModeChoice::Background,
                    latency_budget: LatencyBudget::Off,
                    max_pause: None,
                    zero_detect: true,
                    strict_ready: true,
                    ..MirrorOptions::default()
                }
            }

            /// Waits for a state.
            fn until(job: &Job, status: JobStatus) {
                let end = std::time::Instant::now() + Duration::from_secs(20);
                while job.status() != status {
                    assert!(std::time::Instant::now() < end, "{:?}", job.query());
                    std::thread::sleep(Duration::from_millis(1));
                }
            }

            /// Devices, drives and options that make no sense.
            pub(super) fn of_devices(disks: &Disks) -> Vec<Told> {
                let (source, small) = (disks.full("source"), disks.empty("small", MIB));
                let odd = disks.empty("odd", 1000);
                let missing = source.with_file_name("missing");
                let directory = source.parent().unwrap();
                let mut all = Vec::new();
                for path in [&*missing, directory, &*odd, Path::new("/dev/null")] {
                    all.push(told(Device::open_source(path)));
                    all.push(told(Device::open_disk(path)));
                    all.push(told(Device::open_target(path, TargetOptions::default())));
                }
                for align_bytes in [1, 1000, 8 * MIB] {
                    let disk = Device::open_disk(&source).unwrap();
                    all.push(told(Drive::with_align_bytes(disk, align_bytes)));
                }
                let (engine, large) = (engine(), disks.empty("large", SIZE));
                let drive = Drive::new(Device::open_disk(&source).unwrap()).unwrap();
                all.push(told(Device::open_target(&source, TargetOptions::default())));
                all.push(told(engine.mirror(&drive, target(&small), options())));
                all.push(told(engine.mirror(&drive, Device::open_source(&large).unwrap(), options())));
                for refused in [
                    MirrorOptions { max_pause: Some(Duration::from_nanos(1)), ..options() },
                    MirrorOptions { buf_size_bytes: u64::MAX, ..options() },
                    MirrorOptions { target_cluster_bytes: Some(3000), ..options() },
                    MirrorOptions { latency_budget: LatencyBudget::Baseline(0.5), ..options() },
                ] {
                    all.push(told(engine.mirror(&drive, target(&large), refused)));
                }
                let window_bytes = 4096;
                all.push(told(Engine::start(EngineOptions { window_bytes, ..EngineOptions::default() })));
                all
            }

            /// Requests that make no sense.
            pub(super) fn of_requests(disks: &Disks) -> Vec<Told> {
                let drive = Drive::new(Device::open_disk(&disks.full("source")).unwrap()).unwrap();
                let mut all =
                    vec![told(drive.queue(QueueOptions { depth: 4096, ..QueueOptions::default() }))];
                let mut queue = drive.queue(QueueOptions { depth: 1, ..QueueOptions::default() }).unwrap();
                let buffer = || AlignedBuf::new(4096, 4096).unwrap();
                for at in [1, SIZE, SIZE - 512, u64::MAX] {
                    all.push(told(queue.read(at, buffer(), 1).map_err(|rejected| rejected.error)));
                    let written = queue.write(at, buffer(), WriteFlags::default(), 1);
                    all.push(told(written.map_err(|rejected| rejected.error)));
                }
                for range in [ByteRange::default(), ByteRange::at(SIZE, 512), ByteRange::at(0, 100)] {
                    let zeroed = queue.write_zeroes(range, ZeroFlags::default(), 1);
                    all.push(told(zeroed.map_err(|rejected| rejected.error)));
                    all.push(told(queue.discard(range, 1).map_err(|rejected| rejected.error)));
                }
                queue.flush(1).unwrap();
                all.push(told(queue.flush(1).map_err(|rejected| rejected.error)));
                let tracker = drive.tracker();
                for range in [ByteRange::default(), ByteRange::at(SIZE, 1), ByteRange::at(SIZE - 1, 2)] {
                    all.push(told(tracker.begin(range, IoKind::Write)));
                }
                let begun = tracker.begin(ByteRange::at(0, 1), IoKind::Discard).unwrap();
                let Admission::Go(token) = begun else { unreachable!("nobody has closed the gate") };
                tracker.end(token, Err(5)).unwrap();
                all.push(told(tracker.end(token, Ok(()))));
                all
            }

            /// A token of another drive, which may even be of bytes that this one does not have.
            pub(super) fn of_strangers(disks: &Disks) -> Vec<Told> {
                let [large, small] = [disks.full("source"), disks.empty("small", MIB)]
                    .map(|path| Drive::new(Device::open_disk(&path).unwrap()).unwrap());
                let (tracker, stranger) = (large.tracker(), small.tracker());
                let mut all = Vec::new();
                for at in [0, SIZE - 1] {
                    let begun = tracker.begin(ByteRange::at(at, 1), IoKind::Write).unwrap();
                    let Admission::Go(token) = begun else { unreachable!("nobody has closed the gate") };
                    all.push(told(stranger.end(token, Ok(()))));
                    tracker.end(token, Ok(())).unwrap();
                }
                all
            }

            /// A queue that is looked at on one thread and used on another.
            pub(super) fn of_a_look(disks: &Disks) -> Vec<String> {
                let drive = Drive::new(Device::open_disk(&disks.full("source")).unwrap()).unwrap();
                let mut queue = drive.queue(QueueOptions::default()).unwrap();
                let before = format!("{} {}", queue.in_flight(), queue.ready());
                let used = std::thread::spawn(move || {
                    queue.flush(7).unwrap();
                    let accepted = queue.in_flight();
                    queue.wait(1, Some(Duration::from_secs(10))).unwrap();
                    let done = queue.pop().unwrap();
                    format!("{accepted} {} {} {}", queue.in_flight(), done.tag, done.result.is_ok())
                });
                vec![before, used.join().unwrap()]
            }

            /// What verbs are told, by a job in several states.
            pub(super) fn of_verbs(disks: &Disks) -> Vec<Told> {
                let engine = engine();
                let drive = Drive::new(Device::open_disk(&disks.full("source")).unwrap()).unwrap();
                let to = disks.empty("target", SIZE);
                let job = engine.mirror(&drive, target(&to), options()).unwrap();
                until(&job, JobStatus::Ready);
                let other = target(&disks.empty("other", SIZE));
                let mut all = vec![told(engine.mirror(&drive, other, options()))];
                let all_verbs = |all: &mut Vec<Told>| {
                    all.extend([job.finalize(), job.resume(), job.dismiss()].map(told));
                };
                all_verbs(&mut all);
                job.pause().unwrap();
                until(&job, JobStatus::Standby);
                all.push(told(job.pause()));
                job.complete(Completion::PointInTime).unwrap();
                all.push(told(job.complete(Completion::Pivot)));
                all.push(told(job.cancel(Cancel::Soft)));
                job.cancel(Cancel::Force).unwrap();
                let _ = job.wait();
                job.dismiss().unwrap();
                all_verbs(&mut all);
                all.extend([job.pause(), job.set_speed(1), job.cancel(Cancel::Force)].map(told));
                all.extend(
                    [None, Some(Duration::from_micros(1))].map(|pause| told(job.set_max_pause(pause))),
                );
                all
            }

            /// How a job ended, but for its times; and that a query says the same afterwards.
            fn end_of(job: &Job) -> Vec<String> {
                let Outcome { end, target, pivoted, error, cancelled, progress: p, left_dirty_bytes, .. } =
                    job.wait_for(Duration::from_secs(20)).unwrap();
                let now = job.query().progress;
                assert_eq!((now.copied_bytes, now.active_bytes), (p.copied_bytes, p.active_bytes));
                assert_eq!((now.zeroed_bytes, now.skipped_bytes), (p.zeroed_bytes, p.skipped_bytes));
                assert_eq!((now.elapsed, now.retries, now.errors), (p.elapsed, p.retries, p.errors));
                let mut all = vec![format!("{end:?} {target:?} {pivoted} {cancelled} {left_dirty_bytes}")];
                all.push(format!("{:?}", error.map(|error| format!("{} {error}", error.errno()))));
                all.push(format!("{} {} {}", p.copied_bytes, p.zeroed_bytes, p.skipped_bytes));
                all.push(format!("{} {} {:?} {}", p.disk_bytes, p.done_bytes, p.status, p.workers));
                let events = std::iter::from_fn(|| job.next_event());
                all.extend(events.map(|event| format!("{} {:?}", event.seq, event.what)));
                all
            }

            /// A job that moves the drive, and says so.
            pub(super) fn of_a_pivot(disks: &Disks) -> Vec<String> {
                let engine = engine();
                let drive = Drive::new(Device::open_disk(&disks.full("source")).unwrap()).unwrap();
                let to = target(&disks.empty("target", SIZE));
                let job = engine.mirror(&drive, to, MirrorOptions { auto_finalize: false, ..options() });
                let job = job.unwrap();
                until(&job, JobStatus::Ready);
                job.set_copy_mode(api::engine::CopyMode::WriteBlocking).unwrap();
                job.complete(Completion::Pivot).unwrap();
                until(&job, JobStatus::Pending);
                assert!(job.query().pivots && job.query().flush.is_some());
                job.finalize().unwrap();
                let mut all = end_of(&job);
                all.push(drive.device_number().to_string());
                all
            }

            /// A copy to a disk that fails.
            pub(super) fn of_a_failure(disks: &Disks, to: &Path, policy: ErrorPolicy) -> Vec<String> {
                let (engine, source) = (engine(), Device::open_source(&disks.full("source")).unwrap());
                let chosen = MirrorOptions { on_target_error: policy, ..options() };
                let job = engine.copy(source, target(to), chosen).unwrap();
                if policy == ErrorPolicy::Stop {
                    until(&job, JobStatus::Paused);
                    job.cancel(Cancel::Force).unwrap();
                }
                let mut all = end_of(&job);
                // What was done beside the error depends on the moment, and on what the target held.
                all.retain(|line| {
                    line.starts_with("Some") || line.contains("Error {") || line.contains("Conc")
                });
                let last = job.query().last_error.unwrap();
                all.push(format!("{:?} {} {:?} {:?}", last.side, last.errno, last.range, last.action));
                all
            }
        }
    };
}
story!(rust, blkmirror_core);
story!(c, blkmirror_tests::api);

/// Authors of C read the same manuals and bug reports as those of Rust: an error that had another text or number there would be
/// another error.
#[test]
fn errors_have_the_same_numbers_and_texts() {
    let disks = Disks::new();
    assert_eq!(c::of_devices(&disks), rust::of_devices(&disks));
    assert_eq!(c::of_requests(&disks), rust::of_requests(&disks));
    assert_eq!(c::of_verbs(&disks), rust::of_verbs(&disks));
    let strangers = c::of_strangers(&disks);
    assert_eq!(strangers, rust::of_strangers(&disks));
    assert_eq!(strangers.len(), 2);
}

/// A thread that only looks after queues, to show what they have, would make each its own, and the guest's thread would be refused.
#[test]
fn a_queue_is_not_taken_by_looking_at_it() {
    let disks = Disks::new();
    assert_eq!(c::of_a_look(&disks), ["0 0", "1 0 7 true"]);
    assert_eq!(rust::of_a_look(&disks), ["0 0", "1 0 7 true"]);
}

/// A host that hears another order of events, or reads other figures, would come to other decisions.
#[test]
fn a_job_tells_the_same_story() {
    let disks = Disks::new();
    let story = c::of_a_pivot(&disks);
    assert_eq!(story, rust::of_a_pivot(&disks));
    assert!(story.len() > 10, "{story:?}");
}

/// The text of what ended a job is the one thing that its user sees.
#[test]
fn a_job_that_fails_says_so_in_the_same_words() {
    needs!(Fuse);
    let (disks, target) = (Disks::new(), FaultDisk::of_size(SIZE).unwrap());
    for effect in [Effect::Error(5), Effect::Error(28)] {
        target.control().clear_rules();
        target.control().add_rule(Rule::on(Operation::Write, effect).within(MIB + 64 * KIB..MIB + 65 * KIB));
        for policy in [ErrorPolicy::Report, ErrorPolicy::Stop] {
            let story = c::of_a_failure(&disks, target.path(), policy);
            assert_eq!(story, rust::of_a_failure(&disks, target.path(), policy));
        }
    }
}
