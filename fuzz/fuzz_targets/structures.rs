//! Structures of any size with any bytes, to every function that takes one. Each lies in memory of just the size that it claims, so
//! a read or a write past its end is seen.
#![no_main]

use std::ffi::c_void;
use std::ptr::null_mut;

use blkmirror::*;
use blkmirror_fuzz::{Disk, check, claimed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, usize, Vec<u8>)| {
    let (which, size, bytes) = input;
    let mut memory = claimed(size, &bytes);
    let structure: *mut c_void = memory.pointer();
    let disk = Disk::of(256 << 10);
    // SAFETY: the structure is as long as it claims, or so long that it must be refused before it is read; pointers in it are NULL, see
    // `claimed`. All else is made here.
    unsafe {
        let mut device = disk.open(BLKM_ROLE_DISK);
        let mut drive = null_mut();
        check(blkm_drive_create(device, std::ptr::null(), &raw mut drive));
        match which % 16 {
            0 => {
                let mut other = null_mut();
                check(blkm_device_open_fd(disk.fd(), BLKM_ROLE_SOURCE, structure.cast(), &raw mut other));
                blkm_device_close(&raw mut other);
            }
            1 => drop(check(blkm_device_get_info(device, structure.cast()))),
            2 => {
                let mut other = null_mut();
                check(blkm_drive_create(device, structure.cast(), &raw mut other));
                blkm_drive_close(&raw mut other);
            }
            3 => drop(check(blkm_drive_get_info(drive, structure.cast()))),
            4 => drop(check(blkm_drive_get_latencies(drive, structure.cast(), null_mut()))),
            5 => drop(check(blkm_drive_get_latencies(drive, null_mut(), structure.cast()))),
            6 => {
                let mut queue = null_mut();
                check(blkm_queue_create(drive, structure.cast(), &raw mut queue));
                blkm_queue_destroy(&raw mut queue);
            }
            7 => {
                let mut queue = null_mut();
                check(blkm_queue_create(drive, std::ptr::null(), &raw mut queue));
                check(blkm_queue_get_info(queue, structure.cast()));
                blkm_queue_destroy(&raw mut queue);
            }
            8 => {
                let mut bitmap = null_mut();
                check(blkm_bitmap_create(drive, structure.cast(), &raw mut bitmap));
                blkm_bitmap_close(&raw mut bitmap);
            }
            9 => {
                let opts = blkm_bitmap_opts {
                    struct_size: size_of::<blkm_bitmap_opts>(),
                    flags: 0,
                    name: c"b".as_ptr(),
                    granularity_bytes: 0,
                    reserved: [0; 4],
                };
                let mut bitmap = null_mut();
                check(blkm_bitmap_create(drive, &raw const opts, &raw mut bitmap));
                check(blkm_bitmap_query(bitmap, structure.cast()));
                blkm_bitmap_close(&raw mut bitmap);
            }
            10 => {
                let target = Disk::of(256 << 10);
                let mut other = target.open(BLKM_ROLE_TARGET);
                check(blkm_mirror_check(blkmirror_fuzz::engine(), drive, other, structure.cast(), true));
                blkm_device_close(&raw mut other);
            }
            11 => drop(check(blkm_engine_next_event(blkmirror_fuzz::engine(), structure.cast()))),
            12 => {
                // Few, for each makes threads: only what is refused for its size or its flags.
                if memory.word(1) != 0 || size < 80 {
                    let mut engine = null_mut();
                    check(blkm_engine_create(structure.cast(), &raw mut engine));
                    blkm_engine_destroy(&raw mut engine);
                }
            }
            _ => {
                let room = memory.len();
                blkm_mirror_opts_init(structure.cast(), room);
                blkm_engine_opts_init(structure.cast(), room);
                blkm_bitmap_opts_init(structure.cast(), room);
                blkm_queue_opts_init(structure.cast(), room);
                blkm_drive_opts_init(structure.cast(), room);
                blkm_device_opts_init(structure.cast(), room);
            }
        }
        blkm_drive_close(&raw mut drive);
        blkm_device_close(&raw mut device);
    }
});
