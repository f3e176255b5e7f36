//! Starting workers and jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::courtesy::Courtesy;
use super::home::Home;
use super::job::{Job, JobCore};
use super::worker::{Mail, Part, Worker};
use super::{EngineOptions, MAILBOX_DEPTH, ThreadStart, WorkerHandle, core_set, log};
use crate::device::{Device, DeviceKind, Role};
use crate::drive::{DriveCore, Follower, memory_align_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::mirror::{Bitmaps, DeviceShape, Geometry, MirrorOptions, Share};
use crate::ring::uring::{UringOptions, with_ring};
use crate::ring::{Ring, Wake};
use crate::scheduling;
use crate::threads;

/// A worker's answer when it is ready: its waker and whether its memory is on huge pages, or why it could not start.
type Ready = Result<(Arc<dyn Wake>, bool)>;

/// Starts `count` workers and waits for each.
pub(super) fn workers(
    count: usize,
    options: EngineOptions,
    hook: Option<&ThreadStart>,
) -> Result<Vec<WorkerHandle>> {
    (0..count).map(|index| worker(index, options, hook.cloned())).collect()
}

/// Starts one worker.
fn worker(index: usize, options: EngineOptions, hook: Option<ThreadStart>) -> Result<WorkerHandle> {
    let (inbox, mailbox) = sync_channel(MAILBOX_DEPTH);
    let (ready, answer) = sync_channel::<Ready>(1);
    let body = move || thread_main(index, options, hook, mailbox, &ready);
    let thread = threads::spawn(format!("blkm-{index}"), body)
        .map_err(|e| Error::from_io("start a worker thread", e))?;
    let gone = || Error::new(ErrorKind::Internal, "start a worker").because("its thread ended at once");
    let (waker, contiguous) = answer.recv().map_err(|_| gone())??;
    Ok(WorkerHandle { inbox: Some(inbox), waker, contiguous, thread: Some(thread) })
}

/// A worker's thread.
fn thread_main(
    index: usize,
    options: EngineOptions,
    hook: Option<ThreadStart>,
    mailbox: Receiver<Mail<Device>>,
    ready: &SyncSender<Ready>,
) {
    if options.pin {
        core_set::pin(index);
    }
    // Before the ring and the memory are made, so that a limit that it sets counts for them; after the pinning, which it may undo.
    if let Some(hook) = hook {
        hook(index);
    }
    // Jobs whose targets hang keep all the memory that they have; a part is left to the other jobs of the worker.
    let memory_bytes = options.worker_memory_bytes();
    let outcome = with_ring(UringOptions::new(memory_bytes), |ring| {
        // The engine waits for this answer, so it is always taken.
        let contiguous = ring.huge_bytes().is_some_and(|huge| huge >= memory_bytes);
        log::worker_started(index, ring.setup(), contiguous);
        let _ = ready.send(Ok((ring.waker(), contiguous)));
        let courtesy = scheduling::may_stand_back().then(|| Courtesy::new(scheduling::stand_back));
        Worker::new(ring, mailbox).with_courtesy(courtesy).run(ring);
    });
    if let Err(e) = outcome {
        let _ = ready.send(Err(e));
    }
}

/// Makes a job and gives every worker its part. The caller has counted it in `jobs`; a job that is not made is counted out.
pub(super) fn job(
    (workers, jobs, home): (&[WorkerHandle], &Arc<AtomicUsize>, usize),
    drive: &Arc<DriveCore<Device>>,
    target: Device,
    options: &MirrorOptions,
    announce: &mut dyn FnMut(&Job) -> Result<()>,
) -> Result<Job> {
    let made = make(workers, jobs, home, drive, target, options);
    let (order, parts, job) = made.inspect_err(|_| {
        jobs.fetch_sub(1, Ordering::AcqRel);
    })?;
    // A part that cannot be sent ends the job when it is dropped; the others let go of theirs then.
    let sent: Result<Vec<()>> =
        parts.into_iter().zip(&order).map(|(part, &i)| workers[i].send(part)).collect();
    sent?;
    let announced = announce(&job);
    if announced.is_err() {
        // Before it may start, so that it ends without having begun.
        job.core().share.cancel();
    }
    job.core().share.let_start();
    job.core().wake_all();
    announced.map(|()| job)
}

/// A job, its parts, and which worker each is for. On an error nothing is attached, and the target is untouched.
type Made = (Vec<usize>, Vec<Mail<Device>>, Job);

/// Makes the parts of a job and attaches it to its drive.
fn make(
    workers: &[WorkerHandle],
    jobs: &Arc<AtomicUsize>,
    home: usize,
    drive: &Arc<DriveCore<Device>>,
    target: Device,
    options: &MirrorOptions,
) -> Result<Made> {
    let source = Arc::clone(&drive.place().device);
    check(drive, &source, &target)?;
    let order: Vec<usize> = (0..workers.len()).map(|i| (home + i) % workers.len()).collect();
    let share = share(workers, drive, &source, &target, options)?;
    let wakers: Vec<_> = order.iter().map(|&i| Arc::clone(&workers[i].waker)).collect();
    let names = [source.name().to_owned(), target.name().to_owned()];
    let target = Arc::new(target);
    let devices = for_each_worker(source, &target, workers.len())?;
    let first = Arc::clone(&wakers[0]);
    let no_pivot = no_pivot(drive, &target);
    let job = JobCore::start(
        Arc::clone(&share),
        options,
        names,
        wakers,
        Arc::clone(jobs),
        no_pivot,
        drive.both_latencies(),
    )?;
    // Nobody begins before everybody has his part, so that a job which cannot be started has not written anything.
    share.hold();
    // *Tracked from birth*: from here on guest writes are recorded; the first chunk is decided after every part is sent.
    drive.attach(Arc::new(Follower { share, target: Arc::clone(&target), home: first }))?;
    let mut home = Some(Box::new(Home::new(options, Arc::clone(drive), target)));
    let parts = devices
        .into_iter()
        .enumerate()
        .map(|(number, devices)| Box::new(Part::new(Arc::clone(job.core()), number, devices, home.take())));
    Ok((order, parts.collect(), job))
}

/// Why the drive cannot move to the target: its guest sends requests that the target would refuse.
fn no_pivot(drive: &DriveCore<Device>, target: &Device) -> Option<String> {
    let source = &drive.place().device;
    let (wants, has) = (target.limits().offset_align_bytes, drive.align_bytes());
    if wants > has {
        return Some(format!(
            "it has blocks of {wants} bytes, the guest was promised {has}; make the drive with align_bytes of {wants}, or complete \
             without a pivot"
        ));
    }
    let (wants, promised) = (target.limits().memory_align_bytes.max(512), memory_align_bytes(has, source));
    (wants > promised).then(|| {
        format!(
            "it wants memory aligned to {wants} bytes, the guest was promised {promised}; make the drive with \
             align_bytes of {wants}, or complete without a pivot"
        )
    })
}

/// Whether a job like this could be started now, and end with the drive on the target if `pivot`; changes nothing.
pub(super) fn check_all(
    workers: &[WorkerHandle],
    drive: &DriveCore<Device>,
    target: &Device,
    options: &MirrorOptions,
    pivot: bool,
) -> Result<()> {
    let source = &drive.place().device;
    check(drive, source, target)?;
    geometry(workers, drive, source, target, options)?;
    match no_pivot(drive, target).filter(|_| pivot) {
        Some(why) => {
            Err(Error::new(ErrorKind::WrongSize, "move the drive to").at(target.name()).because(why))
        }
        None => Ok(()),
    }
}

/// Checks that the devices may be used together, and that the source is still all of its drive: what a guest writes behind the end
/// of one that became smaller would be in no bitmap.
fn check(drive: &DriveCore<Device>, source: &Device, target: &Device) -> Result<()> {
    let opened_as = match target.role() {
        Role::Target => None,
        Role::Source => Some("a source"),
        Role::Disk => Some("a guest's disk"),
    };
    if let Some(opened_as) = opened_as {
        return Err(Error::new(ErrorKind::InvalidArgument, "mirror to")
            .at(target.name())
            .because(format!("it was opened as {opened_as}; open it as a target")));
    }
    if let Some(why) = source.overlaps_with(target) {
        return Err(Error::new(ErrorKind::Busy, "mirror to").at(target.name()).because(why));
    }
    let (has, promised) = (source.size_bytes(), drive.size_bytes());
    if has < promised {
        let why = format!("it has {has} bytes now, and its guest was promised {promised}");
        return Err(Error::new(ErrorKind::WrongSize, "mirror").at(source.name()).because(why));
    }
    Ok(())
}

/// The sizes of a job. The disk is as large as the guest was promised: its device may have grown since.
fn geometry(
    workers: &[WorkerHandle],
    drive: &DriveCore<Device>,
    source: &Device,
    target: &Device,
    options: &MirrorOptions,
) -> Result<Geometry> {
    let contiguous = workers.iter().all(|w| w.contiguous);
    let source = DeviceShape { size_bytes: drive.size_bytes(), ..shape(source, contiguous) };
    Geometry::new(options, &source, &shape(target, contiguous), workers.len())
}

/// The state that the workers of a job share.
fn share(
    workers: &[WorkerHandle],
    drive: &DriveCore<Device>,
    source: &Device,
    target: &Device,
    options: &MirrorOptions,
) -> Result<Arc<Share>> {
    let geometry = geometry(workers, drive, source, target, options)?;
    let target_is_zero = options.target_is_zero || target.reads_as_zeroes();
    let bitmaps = Bitmaps::new(&geometry, options)?;
    Ok(Arc::new(Share::new(geometry, options, bitmaps, target_is_zero, workers.len())))
}

/// The devices `count` times over: every worker has open file descriptions of its own, so that their block status calls
/// do not meet on one file position. The first pair is the host's own.
fn for_each_worker(source: Arc<Device>, target: &Arc<Device>, count: usize) -> Result<Vec<[Arc<Device>; 2]>> {
    let more = (1..count).map(|_| Ok([Arc::new(source.reopen()?), Arc::new(target.reopen()?)]));
    let more = more.collect::<Result<Vec<_>>>()?;
    Ok(std::iter::once([source, Arc::clone(target)]).chain(more).collect())
}

/// What the logic must know of a device. `contiguous`: the copy memory is on huge pages, so that a request has few
/// segments.
fn shape(device: &Device, contiguous: bool) -> DeviceShape {
    let limits = device.limits();
    let block_device = device.kind() == DeviceKind::BlockDevice;
    let depth = limits.queue.as_ref().and_then(|q| q.nr_requests).filter(|_| block_device);
    let has_zeroes_command =
        limits.queue.as_ref().and_then(|q| q.write_zeroes_max_bytes).is_some_and(|bytes| bytes > 0);
    DeviceShape {
        name: device.name().to_owned(),
        size_bytes: device.size_bytes(),
        align_bytes: limits.offset_align_bytes.max(limits.logical_block_bytes),
        max_request_bytes: if contiguous {
            limits.max_request_bytes
        } else {
            limits.max_request_scattered_bytes
        },
        queue_depth: depth.and_then(|d| usize::try_from(d).ok()),
        has_holes: !block_device,
        reads_as_zeroes: device.reads_as_zeroes(),
        writes_zeroes: block_device && !has_zeroes_command,
    }
}
