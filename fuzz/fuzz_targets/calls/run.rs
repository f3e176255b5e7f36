//! Everything of a run, made before its first call and closed after its last.
use std::ffi::c_void;
use std::ptr::{null, null_mut};

use blkmirror::*;
use blkmirror_fuzz::{Disk, check};

/// Bytes of the disks.
pub const DISK: u64 = 256 << 10;
/// Bytes of the memory that requests use.
pub const MEMORY: usize = 128 << 10;

/// Everything of a run.
pub struct Run {
    _disks: [Disk; 2],
    pub devices: [*mut blkm_device; 2],
    pub drive: *mut blkm_drive,
    pub tracker: *mut blkm_tracker,
    pub queue: *mut blkm_queue,
    pub bitmap: *mut blkm_bitmap,
    pub job: *mut blkm_job,
    pub memory: *mut c_void,
    pub tokens: Vec<blkm_token>,
    /// Requests of the queue that have no completion yet.
    pub open: usize,
}

impl Run {
    /// Two disks, a drive on the first, its tracker, and memory for requests.
    pub fn new() -> Self {
        let disks = [Disk::of(DISK as i64), Disk::of(DISK as i64)];
        let devices = [disks[0].open(BLKM_ROLE_DISK), disks[1].open(BLKM_ROLE_TARGET)];
        let (mut drive, mut tracker) = (null_mut(), null_mut());
        // SAFETY: the handle was made above, the variable is ours.
        assert_eq!(check(unsafe { blkm_drive_create(devices[0], null(), &raw mut drive) }), 0);
        // SAFETY: the same.
        assert_eq!(check(unsafe { blkm_tracker_create(drive, &raw mut tracker) }), 0);
        // SAFETY: the same.
        let memory = unsafe { blkm_blockalign(drive, MEMORY) };
        assert!(!memory.is_null());
        // SAFETY: it was just allocated with that length.
        unsafe { memory.cast::<u8>().write_bytes(7, MEMORY) };
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

    /// What the drive says of itself stays true.
    ///
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn facts(&mut self) {
        // SAFETY: numbers and arrays of them, which may all be zero.
        let mut info = unsafe { std::mem::zeroed::<blkm_drive_info>() };
        info.struct_size = size_of::<blkm_drive_info>();
        // SAFETY: a handle of this run, a variable of ours.
        assert_eq!(check(unsafe { blkm_drive_get_info(self.drive, &raw mut info) }), 0);
        assert_eq!(info.size_bytes, DISK);
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
