//! What a request through C costs that can be counted: allocations.
#![allow(unsafe_code, reason = "a global allocator, and C functions, cannot be had without")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one of five calls is made, and all have the same contract"
)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

#[path = "../../core/tests/alloc_kit/mod.rs"]
mod alloc_kit;

use std::ffi::{CString, c_int, c_void};
use std::ptr::{null, null_mut};

use alloc_kit::{Telling, allocated_here, count_here};
use blkmirror::*;

#[global_allocator]
static ALLOCATOR: Telling = Telling(count_here);

/// Bytes of the disk, and of the memory.
const BYTES: usize = 1 << 20;
/// Requests at a time.
const DEPTH: usize = 64;

/// A drive on a scratch file, with memory for its requests.
struct Host {
    /// Keeps the file until the end.
    _file: tempfile::NamedTempFile,
    device: *mut blkm_device,
    drive: *mut blkm_drive,
    memory: *mut c_void,
}

impl Host {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES as u64).unwrap();
        let path = CString::new(file.path().to_str().unwrap()).unwrap();
        let (mut device, mut drive) = (null_mut(), null_mut());
        // SAFETY: strings and variables of ours.
        assert_eq!(unsafe { blkm_device_open(path.as_ptr(), BLKM_ROLE_DISK, null(), &raw mut device) }, 0);
        // SAFETY: the same.
        assert_eq!(unsafe { blkm_drive_create(device, null(), &raw mut drive) }, 0);
        // SAFETY: the drive that was made above.
        let memory = unsafe { blkm_blockalign(drive, BYTES) };
        assert!(!memory.is_null());
        Self { _file: file, device, drive, memory }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: made above and closed once; the queues that used the memory are gone.
        unsafe { blkm_vfree(self.memory) };
        // SAFETY: the same.
        unsafe { blkm_drive_close(&raw mut self.drive) };
        // SAFETY: the same.
        unsafe { blkm_device_close(&raw mut self.device) };
    }
}

/// Sends `DEPTH` requests of all kinds, and takes their completions.
fn round(host: &Host, queue: *mut blkm_queue, completions: &mut [blkm_completion; DEPTH]) {
    for number in 0..DEPTH {
        let (at, piece) = ((number * 8192) as u64, host.memory.wrapping_byte_add(number * 8192));
        let tag = std::ptr::without_provenance_mut(number);
        // SAFETY: the memory stays until the completions, which are taken below.
        unsafe {
            match number % 5 {
                0 => blkm_queue_flush(queue, tag, 0),
                1 => blkm_queue_write_zeroes(queue, at, 4096, tag, 0),
                2 => blkm_queue_read(queue, at, piece, 4096, tag, 0),
                3 => blkm_queue_discard(queue, at, 4096, tag, 0),
                _ => blkm_queue_write(queue, at, piece, 4096, tag, 0),
            }
        }
    }
    let mut done = 0;
    while done < DEPTH {
        let room = c_int::try_from(DEPTH).unwrap();
        // SAFETY: there is room for so many.
        let taken = unsafe { blkm_queue_process(queue, completions.as_mut_ptr(), 1, room, -1) };
        for completion in &completions[..usize::try_from(taken).unwrap()] {
            assert_eq!(completion.ret, 0);
            done += 1;
        }
    }
}

/// If a request allocated, a host that has no memory left could not complete what its guest has under way.
#[test]
fn requests_through_c_allocate_nothing_after_the_first() {
    let host = Host::new();
    // SAFETY: memory that stays until the end.
    assert_eq!(unsafe { blkm_mem_region_map(host.drive, host.memory, BYTES, 0) }, 0);
    let mut queue = null_mut();
    // SAFETY: the drive that was made above.
    assert_eq!(unsafe { blkm_queue_create(host.drive, null(), &raw mut queue) }, 0);
    let empty = blkm_completion { user_data: null_mut(), error_msg: null(), ret: 0, flags: 0, reserved: 0 };
    let mut completions = [empty; DEPTH];
    for _ in 0..4 {
        round(&host, queue, &mut completions);
    }
    let before = allocated_here();
    for _ in 0..50 {
        round(&host, queue, &mut completions);
    }
    assert_eq!(allocated_here() - before, 0);
    // SAFETY: made above and destroyed once.
    unsafe { blkm_queue_destroy(&raw mut queue) };
    // A count that could not rise would prove nothing.
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert!(allocated_here() > before);
}

/// Trackers are on the path of every write of their host.
#[test]
fn tracked_requests_through_c_allocate_nothing() {
    let host = Host::new();
    let mut tracker = null_mut();
    // SAFETY: the drive that was made above.
    assert_eq!(unsafe { blkm_tracker_create(host.drive, &raw mut tracker) }, 0);
    let mut token = blkm_token { device_number: 0, opaque: [0; 7] };
    let mut once = || {
        // SAFETY: variables of ours.
        assert_eq!(unsafe { blkm_tracker_begin(tracker, 4096, 4096, BLKM_IO_WRITE, &raw mut token) }, 0);
        // SAFETY: the same.
        assert_eq!(unsafe { blkm_tracker_end(tracker, &raw const token, 0) }, 0);
    };
    once();
    let before = allocated_here();
    (0..10_000).for_each(|_| once());
    assert_eq!(allocated_here() - before, 0);
    // SAFETY: made above and closed once.
    unsafe { blkm_tracker_close(&raw mut tracker) };
}
