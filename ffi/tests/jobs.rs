//! Jobs through C, where threads meet: who takes a job's events may be faster than who started it.
#![allow(unsafe_code, reason = "C functions cannot be called without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

use std::ffi::CString;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use blkmirror::*;

/// A handle of C's for another thread.
#[derive(Clone, Copy)]
struct Engine(*mut blkm_engine);

// SAFETY: the header says that an engine may be used from any thread.
unsafe impl Send for Engine {}
// SAFETY: the same.
unsafe impl Sync for Engine {}

impl Engine {
    fn get(self) -> *mut blkm_engine {
        self.0
    }
}

fn open(file: &tempfile::NamedTempFile, role: blkm_role) -> *mut blkm_device {
    let path = CString::new(file.path().to_str().unwrap()).unwrap();
    let mut device = null_mut();
    // SAFETY: strings and variables of ours.
    assert_eq!(unsafe { blkm_device_open(path.as_ptr(), role, null(), &raw mut device) }, 0);
    device
}

fn file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 10).unwrap();
    file
}

/// Takes events, and closes each job that is over by the handle that the event brings; how many.
fn close_what_is_over(engine: Engine, done: &AtomicBool) -> usize {
    let mut closed = 0;
    // SAFETY: zeroes are a value of it.
    let mut event: blkm_event = unsafe { std::mem::zeroed() };
    event.struct_size = size_of::<blkm_event>();
    loop {
        let last = done.load(Ordering::Acquire);
        // SAFETY: the engine lives until this thread has ended.
        while unsafe { blkm_engine_next_event(engine.get(), &raw mut event) } == 1 {
            if event.r#type == BLKM_EVENT_CONCLUDED {
                // SAFETY: nobody else uses it: who started it only waits for its pointer.
                unsafe { blkm_job_close(&raw mut event.job) };
                closed += 1;
            }
        }
        if last {
            return closed;
        }
        std::thread::yield_now();
    }
}

/// A handle that was closed while its job was being started would be written to after that, and its events would bring it again.
#[test]
fn a_job_may_be_closed_by_its_events_before_the_call_that_started_it_returns() {
    const JOBS: usize = 300;
    let (files, done) = ([file(), file()], AtomicBool::new(false));
    let mut engine = null_mut();
    // SAFETY: a variable of ours.
    assert_eq!(unsafe { blkm_engine_create(null(), &raw mut engine) }, 0);
    let shared = Engine(engine);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| close_what_is_over(shared, &done));
        for _ in 0..JOBS {
            let mut devices = [open(&files[0], BLKM_ROLE_SOURCE), open(&files[1], BLKM_ROLE_TARGET)];
            let mut job = null_mut();
            // SAFETY: handles and variables of ours.
            assert_eq!(unsafe { blkm_copy_start(engine, devices[0], devices[1], null(), &raw mut job) }, 0);
            assert!(!job.is_null());
            for device in &mut devices {
                // SAFETY: closed once; the job keeps what it needs.
                unsafe { blkm_device_close(device) };
            }
            // The next one opens the target, which this one has locked for a moment longer.
            while is_locked(&files[1]) {
                std::thread::yield_now();
            }
        }
        // Every job is over, but the last may not have been told.
        std::thread::sleep(std::time::Duration::from_millis(200));
        done.store(true, Ordering::Release);
        assert_eq!(taker.join().unwrap(), JOBS);
    });
    // SAFETY: destroyed once.
    unsafe { blkm_engine_destroy(&raw mut engine) };
}

/// Whether somebody has the file locked.
fn is_locked(file: &tempfile::NamedTempFile) -> bool {
    let path = CString::new(file.path().to_str().unwrap()).unwrap();
    let mut device = null_mut();
    // SAFETY: strings and variables of ours.
    let code = unsafe { blkm_device_open(path.as_ptr(), BLKM_ROLE_TARGET, null(), &raw mut device) };
    // SAFETY: closed once, or NULL.
    unsafe { blkm_device_close(&raw mut device) };
    code == -libc::EBUSY
}

/// Two who write to a device do not know of each other's writes: a job would take for copied what another has overwritten.
#[test]
fn a_device_that_is_written_is_one_drives_or_one_jobs() {
    let files = [file(), file(), file()];
    let mut disks = [open(&files[0], BLKM_ROLE_DISK), open(&files[1], BLKM_ROLE_DISK)];
    let mut target = open(&files[2], BLKM_ROLE_TARGET);
    let (mut engine, mut drives, mut jobs) = (null_mut(), [null_mut(); 3], [null_mut(); 2]);
    // SAFETY: handles and variables of ours, here and below.
    assert_eq!(unsafe { blkm_engine_create(null(), &raw mut engine) }, 0);
    for (disk, drive) in [(disks[0], 0), (disks[1], 1)] {
        // SAFETY: as above.
        assert_eq!(unsafe { blkm_drive_create(disk, null(), &raw mut drives[drive]) }, 0);
    }
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_drive_create(disks[0], null(), &raw mut drives[2]) }, -libc::EBUSY);
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_mirror_start(engine, drives[0], target, null(), &raw mut jobs[0]) }, 0);
    // SAFETY: as above.
    let code = unsafe { blkm_mirror_start(engine, drives[1], target, null(), &raw mut jobs[1]) };
    assert_eq!(code, -libc::EBUSY);
    assert!(jobs[1].is_null());
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_job_cancel(jobs[0], true) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_job_wait(jobs[0], -1) }, 1);
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_mirror_start(engine, drives[1], target, null(), &raw mut jobs[1]) }, 0);
    // SAFETY: as above.
    unsafe { blkm_drive_close(&raw mut drives[0]) };
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_drive_create(disks[0], null(), &raw mut drives[0]) }, 0, "its drive was closed");
    for job in &mut jobs {
        // SAFETY: closed once.
        unsafe { blkm_job_close(job) };
    }
    // SAFETY: destroyed once.
    unsafe { blkm_engine_destroy(&raw mut engine) };
    for drive in &mut drives {
        // SAFETY: closed once.
        unsafe { blkm_drive_close(drive) };
    }
    for device in disks.iter_mut().chain([&mut target]) {
        // SAFETY: closed once.
        unsafe { blkm_device_close(device) };
    }
}

/// A host that believed in a drive that may be written would send its guest's writes, and they would fail.
#[test]
fn a_drive_that_is_read_only_stays_so_over_a_pivot() {
    let files = [file(), file()];
    let mut devices = [open(&files[0], BLKM_ROLE_SOURCE), open(&files[1], BLKM_ROLE_TARGET)];
    let (mut engine, mut drive, mut job) = (null_mut(), null_mut(), null_mut());
    // SAFETY: handles and variables of ours, here and below.
    assert_eq!(unsafe { blkm_engine_create(null(), &raw mut engine) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_drive_create(devices[0], null(), &raw mut drive) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_mirror_start(engine, drive, devices[1], null(), &raw mut job) }, 0);
    // SAFETY: as above. It is refused until the job is ready.
    while unsafe { blkm_job_complete(job, BLKM_COMPLETE_PIVOT) } < 0 {
        std::thread::yield_now();
    }
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_job_wait(job, -1) }, 1);
    // SAFETY: zeroes are a value of it.
    let mut info: blkm_drive_info = unsafe { std::mem::zeroed() };
    info.struct_size = size_of::<blkm_drive_info>();
    // SAFETY: as above.
    assert_eq!(unsafe { blkm_drive_get_info(drive, &raw mut info) }, 0);
    assert_eq!((info.device_number, info.flags), (1, BLKM_DRIVE_IS_READ_ONLY));
    // SAFETY: closed once.
    unsafe { blkm_job_close(&raw mut job) };
    // SAFETY: closed once.
    unsafe { blkm_drive_close(&raw mut drive) };
    // SAFETY: destroyed once.
    unsafe { blkm_engine_destroy(&raw mut engine) };
    for device in &mut devices {
        // SAFETY: closed once.
        unsafe { blkm_device_close(device) };
    }
}
