//! Any sequence of calls with any numbers: what crashes, hangs, loses a completion or leaks a descriptor is a bug.
#![no_main]

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use arbitrary::Arbitrary;
use blkmirror::*;
use blkmirror_fuzz::{Disk, check, engine};
use libfuzzer_sys::fuzz_target;

/// Bytes of the disks.
const DISK: u64 = 256 << 10;
/// Bytes of the memory that requests use.
const MEMORY: usize = 128 << 10;
/// Calls in a run.
const CALLS: usize = 96;

/// A call.
#[derive(Arbitrary, Debug)]
enum Call {
    NewQueue {
        depth: u8,
        flags: u8,
        staging: u16,
    },
    DropQueue,
    Read {
        at: u16,
        len: u16,
        shift: u8,
        flags: u8,
    },
    Write {
        at: u16,
        len: u16,
        shift: u8,
        flags: u8,
    },
    Vector {
        at: u16,
        lens: [u8; 3],
        write: bool,
        count: i8,
    },
    Zeroes {
        at: u64,
        len: u64,
        flags: u8,
    },
    Discard {
        at: u16,
        len: u16,
        flags: u8,
    },
    Flush {
        flags: u8,
    },
    Submit,
    Poll,
    Process {
        min: i8,
        max: i8,
    },
    Begin {
        at: u64,
        len: u64,
        kind: u8,
    },
    End {
        result: i8,
        twice: bool,
    },
    Spoil {
        word: u8,
        bits: u64,
    },
    NewBitmap {
        name: u8,
        flags: u8,
        granularity: u64,
    },
    DropBitmap,
    Bitmap {
        verb: u8,
        at: u64,
        len: u64,
        most: u64,
    },
    Mirror {
        flags: u16,
        sync: u8,
        mode: u8,
        errors: [u8; 2],
        speed: u32,
        pause: u64,
        granularity: u32,
        budget: [u8; 2],
    },
    DropJob,
    Job {
        verb: u8,
        number: u64,
    },
    Event,
    MapMemory {
        at: u16,
        len: u16,
    },
    UnmapMemory {
        at: u16,
        len: u16,
    },
    Facts,
}

/// Everything of a run.
struct Run {
    _disks: [Disk; 2],
    devices: [*mut blkm_device; 2],
    drive: *mut blkm_drive,
    tracker: *mut blkm_tracker,
    queue: *mut blkm_queue,
    bitmap: *mut blkm_bitmap,
    job: *mut blkm_job,
    memory: *mut c_void,
    tokens: Vec<blkm_token>,
    /// Requests of the queue that have no completion yet.
    open: usize,
}

impl Run {
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    unsafe fn new() -> Self {
        let disks = [Disk::of(DISK as i64), Disk::of(DISK as i64)];
        let devices = [disks[0].open(BLKM_ROLE_DISK), disks[1].open(BLKM_ROLE_TARGET)];
        let (mut drive, mut tracker) = (null_mut(), null_mut());
        // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
        unsafe {
            assert_eq!(check(blkm_drive_create(devices[0], null(), &raw mut drive)), 0);
            assert_eq!(check(blkm_tracker_create(drive, &raw mut tracker)), 0);
            let memory = blkm_blockalign(drive, MEMORY);
            assert!(!memory.is_null());
            memory.cast::<u8>().write_bytes(7, MEMORY);
            let (queue, bitmap, job) = (null_mut(), null_mut(), null_mut());
            Self {
                _disks: disks,
                devices,
                drive,
                tracker,
                queue,
                bitmap,
                job,
                memory,
                tokens: Vec::new(),
                open: 0,
            }
        }
    }

    /// Memory for a request: `len` bytes that are really there.
    fn piece(&self, shift: u8, len: usize) -> (*mut c_void, usize) {
        let start = usize::from(shift) * if shift & 1 == 0 { 256 } else { 1 };
        (self.memory.wrapping_byte_add(start), len.min(MEMORY - start))
    }

    /// A request was submitted to a queue that is there.
    fn sent(&mut self) -> *mut c_void {
        self.open += usize::from(!self.queue.is_null());
        std::ptr::without_provenance_mut(0x5aa5)
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    unsafe fn process(&mut self, min: c_int, max: c_int, timeout_ns: i64) -> c_int {
        let empty =
            blkm_completion { user_data: null_mut(), error_msg: null(), ret: 0, flags: 0, reserved: 0 };
        let mut room = [empty; 128];
        // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
        let taken = check(unsafe { blkm_queue_process(self.queue, room.as_mut_ptr(), min, max, timeout_ns) });
        for done in room.iter().take(usize::try_from(taken).unwrap_or(0)) {
            assert_eq!(done.user_data.addr(), 0x5aa5);
            assert!(done.ret <= 0 && (done.ret < 0) != done.error_msg.is_null());
            self.open = self.open.checked_sub(1).expect("more completions than requests");
        }
        taken
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    unsafe fn drop_queue(&mut self) {
        if self.queue.is_null() {
            return;
        }
        // A closed gate holds requests; without its job it opens.
        // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
        unsafe { self.drop_job() };
        let mut rounds = 0;
        while self.open > 0 {
            // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
            assert!(unsafe { self.process(1, 128, 100_000_000) } >= 0);
            rounds += 1;
            assert!(rounds < 200, "{} requests have no completion", self.open);
        }
        // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
        unsafe { blkm_queue_destroy(&raw mut self.queue) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    unsafe fn drop_job(&mut self) {
        if self.job.is_null() {
            return;
        }
        // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
        unsafe {
            blkm_job_cancel(self.job, true);
            // A queue that is not turned keeps its seat on the target, not the job.
            assert_eq!(
                check(blkm_job_wait(self.job, 20_000_000_000)),
                1,
                "a job that was cancelled by force goes on"
            );
            blkm_job_close(&raw mut self.job);
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    unsafe fn end_all(&mut self) {
        for token in self.tokens.drain(..) {
            // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
            unsafe { blkm_tracker_end(self.tracker, &raw const token, 0) };
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // SAFETY: all of it was made by this run and is closed once.
        unsafe {
            self.end_all();
            self.drop_queue();
            self.drop_job();
            blkm_bitmap_close(&raw mut self.bitmap);
            blkm_tracker_close(&raw mut self.tracker);
            blkm_drive_close(&raw mut self.drive);
            for device in &mut self.devices {
                blkm_device_close(device);
            }
            blkm_vfree(self.memory);
        }
    }
}

/// Makes one call.
///
/// # Safety
/// What it passes on is made by this run, or NULL.
unsafe fn make(run: &mut Run, call: &Call) {
    // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
    unsafe {
        match *call {
            Call::NewQueue { depth, flags, staging } => {
                if run.queue.is_null() {
                    let opts = blkm_queue_opts {
                        struct_size: size_of::<blkm_queue_opts>(),
                        flags: u64::from(flags & 7),
                        staging_bytes: u64::from(staging) << 8,
                        depth: u32::from(depth),
                        reserved0: 0,
                        reserved: [0; 4],
                    };
                    check(blkm_queue_create(run.drive, &raw const opts, &raw mut run.queue));
                }
            }
            Call::DropQueue => run.drop_queue(),
            Call::Read { at, len, shift, flags } => {
                let (piece, len) = run.piece(shift, usize::from(len) << (shift & 4));
                let tag = run.sent();
                blkm_queue_read(
                    run.queue,
                    u64::from(at) << (shift & 7),
                    piece,
                    len,
                    tag,
                    u32::from(flags & 1),
                );
            }
            Call::Write { at, len, shift, flags } => {
                let (piece, len) = run.piece(shift, usize::from(len) << (shift & 4));
                let tag = run.sent();
                blkm_queue_write(
                    run.queue,
                    u64::from(at) << (shift & 7),
                    piece,
                    len,
                    tag,
                    u32::from(flags & 31),
                );
            }
            Call::Vector { at, lens, write, count } => {
                // The array must live until the completion: it lies at the end of the memory, which no piece here reaches.
                let array = run.memory.wrapping_byte_add(MEMORY - 4096).cast::<libc::iovec>();
                if run.open > 0 {
                    return;
                }
                for (number, len) in lens.iter().enumerate() {
                    let base = run.memory.wrapping_byte_add(number * 16384);
                    array.add(number).write(libc::iovec { iov_base: base, iov_len: usize::from(*len) << 6 });
                }
                let count = c_int::from(count).min(3);
                let tag = run.sent();
                let offset = u64::from(at) << 9;
                if write {
                    blkm_queue_writev(run.queue, offset, array, count, tag, 0);
                } else {
                    blkm_queue_readv(run.queue, offset, array, count, tag, 0);
                }
                if !run.queue.is_null() {
                    run.process(1, 128, 1_000_000_000);
                }
            }
            Call::Zeroes { at, len, flags } => {
                let tag = run.sent();
                let bits = u32::from(flags & 15);
                if flags & 64 == 0 {
                    blkm_queue_write_zeroes(run.queue, at, len, tag, bits);
                } else {
                    blkm_queue_write_zeroes(run.queue, at % 512 * 512, len % 512 * 512, tag, bits);
                }
            }
            Call::Discard { at, len, flags } => {
                let tag = run.sent();
                blkm_queue_discard(
                    run.queue,
                    u64::from(at) << 9,
                    u64::from(len) << 9,
                    tag,
                    u32::from(flags & 1),
                );
            }
            Call::Flush { flags } => {
                let tag = run.sent();
                blkm_queue_flush(run.queue, tag, u32::from(flags & 1));
            }
            Call::Submit => drop(check(blkm_queue_submit(run.queue))),
            Call::Poll => {
                let ready = check(blkm_queue_poll(run.queue));
                assert!(ready <= run.open as c_int);
            }
            Call::Process { min, max } => {
                if !run.queue.is_null() {
                    run.process(min.into(), max.into(), 1_000_000);
                }
            }
            Call::Begin { at, len, kind } => {
                let mut token = blkm_token { device_number: 0, opaque: [0; 7] };
                let (at, len) = if kind & 64 == 0 { (at % DISK, len % 65536) } else { (at, len) };
                match check(blkm_tracker_begin(run.tracker, at, len, u32::from(kind & 7), &raw mut token)) {
                    0 => run.tokens.push(token),
                    BLKM_HELD => drop(check(blkm_tracker_wait(run.tracker, 100_000))),
                    _ => {}
                }
            }
            Call::End { result, twice } => {
                if let Some(token) = run.tokens.pop() {
                    assert_eq!(check(blkm_tracker_end(run.tracker, &raw const token, result.into())), 0);
                    if twice {
                        assert!(check(blkm_tracker_end(run.tracker, &raw const token, 0)) < 0);
                    }
                }
            }
            Call::Spoil { word, bits } => {
                if let Some(token) = run.tokens.last() {
                    let mut words = *token;
                    // Only the pass: a spoilt range is a host's lie that cannot be seen.
                    words.opaque[0] ^= bits.max(1) << (word % 64);
                    if words.opaque[0] != token.opaque[0] {
                        check(blkm_tracker_end(run.tracker, &raw const words, 0));
                    }
                }
            }
            Call::NewBitmap { name, flags, granularity } => {
                if run.bitmap.is_null() {
                    let names = [c"a".as_ptr(), c"".as_ptr(), null(), c"\xff".as_ptr()];
                    let opts = blkm_bitmap_opts {
                        struct_size: size_of::<blkm_bitmap_opts>(),
                        flags: u64::from(flags & 3),
                        name: names[usize::from(name % 4)],
                        granularity_bytes: granularity,
                        reserved: [0; 4],
                    };
                    check(blkm_bitmap_create(run.drive, &raw const opts, &raw mut run.bitmap));
                }
            }
            Call::DropBitmap => blkm_bitmap_close(&raw mut run.bitmap),
            Call::Bitmap { verb, at, len, most } => use_bitmap(run.bitmap, verb, (at, len, most)),
            Call::Mirror { flags, sync, mode, errors, speed, pause, granularity, budget } => {
                if run.job.is_null() {
                    let opts = blkm_mirror_opts {
                        struct_size: size_of::<blkm_mirror_opts>(),
                        flags: u64::from(flags & 127),
                        user_data: null_mut(),
                        bitmap: if sync & 4 == 0 { run.bitmap } else { null_mut() },
                        extents: null(),
                        extents_len: 0,
                        speed_bytes_per_s: u64::from(speed),
                        buf_size_bytes: u64::from(flags) << 12,
                        granularity_bytes: u64::from(granularity),
                        target_cluster_bytes: if flags & 256 == 0 { 0 } else { u64::from(granularity) },
                        max_pause_ns: pause,
                        latency_budget_value: u64::from(budget[1]) * 5,
                        latency_budget: u32::from(budget[0] & 7),
                        sync: u32::from(sync & 7),
                        copy_mode: u32::from(mode & 3),
                        on_source_error: u32::from(errors[0] & 7),
                        on_target_error: u32::from(errors[1] & 7),
                        reserved0: 0,
                        reserved: [0; 6],
                    };
                    check(blkm_mirror_start(
                        engine(),
                        run.drive,
                        run.devices[1],
                        &raw const opts,
                        &raw mut run.job,
                    ));
                }
            }
            Call::DropJob => run.drop_job(),
            Call::Job { verb, number } => use_job(run.job, verb, number),
            Call::Event => {
                let mut event = std::mem::zeroed::<blkm_event>();
                event.struct_size = size_of::<blkm_event>();
                if check(blkm_engine_next_event(engine(), &raw mut event)) == 1 {
                    assert_eq!(event.job, run.job);
                    assert!((1..=11).contains(&event.r#type));
                }
            }
            Call::MapMemory { at, len } => {
                let start = run.memory.wrapping_byte_add(usize::from(at));
                check(blkm_mem_region_map(
                    run.drive,
                    start,
                    usize::from(len).min(MEMORY - usize::from(at)),
                    0,
                ));
            }
            Call::UnmapMemory { at, len } => {
                let start = run.memory.wrapping_byte_add(usize::from(at));
                check(blkm_mem_region_unmap(run.drive, start, usize::from(len)));
            }
            Call::Facts => {
                let mut info = std::mem::zeroed::<blkm_drive_info>();
                info.struct_size = size_of::<blkm_drive_info>();
                assert_eq!(check(blkm_drive_get_info(run.drive, &raw mut info)), 0);
                assert_eq!(info.size_bytes, DISK);
            }
        }
    }
}

/// A call on a bitmap that may be NULL.
///
/// # Safety
/// It is NULL, or was made by the run and is not closed.
unsafe fn use_bitmap(bitmap: *mut blkm_bitmap, verb: u8, (at, len, most): (u64, u64, u64)) {
    let (mut found, mut found_len) = (0, 0);
    let (near, short) = if verb & 128 == 0 { (at % DISK, len % DISK) } else { (at, len) };
    // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
    let answer = unsafe {
        match verb % 8 {
            0 => blkm_bitmap_enable(bitmap),
            1 => blkm_bitmap_disable(bitmap),
            2 => blkm_bitmap_clear(bitmap),
            3 => blkm_bitmap_set_dirty(bitmap, near, short),
            4 => blkm_bitmap_reset_dirty(bitmap, near, short),
            5 => blkm_bitmap_merge(bitmap, &raw const bitmap, 1),
            6 => {
                let mut info = std::mem::zeroed::<blkm_bitmap_info>();
                info.struct_size = size_of::<blkm_bitmap_info>();
                let answer = blkm_bitmap_query(bitmap, &raw mut info);
                assert!(info.dirty_bytes <= info.size_bytes);
                answer
            }
            _ => blkm_bitmap_next_dirty_area(
                bitmap,
                near,
                at.max(near),
                most,
                &raw mut found,
                &raw mut found_len,
            ),
        }
    };
    if check(answer) == 1 {
        assert!(found >= near && found_len > 0 && found_len <= most && found + found_len <= DISK);
    }
}

/// A call on a job that may be NULL.
///
/// # Safety
/// It is NULL, or was made by the run and is not closed.
unsafe fn use_job(job: *mut blkm_job, verb: u8, number: u64) {
    // SAFETY: handles, memory and variables of this run, or NULL; see the contract of the function.
    let answer = unsafe {
        match verb % 15 {
            0 => blkm_job_pause(job),
            1 => blkm_job_resume(job),
            2 => blkm_job_set_speed(job, number),
            3 => blkm_job_set_copy_mode(job, (number % 4) as u32),
            13 => blkm_job_set_max_pause(job, number),
            4 => blkm_job_complete(job, (number % 3) as u32),
            5 => blkm_job_cancel(job, number & 1 == 0),
            6 => blkm_job_finalize(job),
            7 => blkm_job_dismiss(job),
            8 => blkm_job_get_status(job),
            9 => {
                let mut info = std::mem::zeroed::<blkm_job_info>();
                info.struct_size = size_of::<blkm_job_info>();
                blkm_job_query(job, &raw mut info)
            }
            10 => {
                let mut outcome = std::mem::zeroed::<blkm_outcome>();
                outcome.struct_size = size_of::<blkm_outcome>();
                blkm_job_get_outcome(job, &raw mut outcome)
            }
            11 => {
                let mut text = [0; 64];
                blkm_job_get_error(job, text.as_mut_ptr(), (number % 65) as usize)
            }
            12 => {
                let mut counts = std::mem::zeroed::<blkm_latencies>();
                counts.struct_size = size_of::<blkm_latencies>();
                blkm_job_get_latencies(job, &raw mut counts, null_mut())
            }
            _ => blkm_job_wait(job, (number % 2_000_000) as i64),
        }
    };
    check(answer);
}

fuzz_target!(|calls: Vec<Call>| {
    // SAFETY: what each call passes on is made by this run, or NULL.
    unsafe {
        let mut run = Run::new();
        for call in calls.iter().take(CALLS) {
            make(&mut run, call);
        }
    }
});
