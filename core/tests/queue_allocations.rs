//! What a request to a queue costs that can be counted: allocations.
#![allow(unsafe_code, reason = "a global allocator cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod alloc_kit;
mod follow_kit;
mod queue_kit;

use std::path::Path;

use blkmirror_core::buffer::GuestBuffer;
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_core::mirror::CopyMode;
use blkmirror_core::units::{ByteRange, MIB};

use crate::alloc_kit::{Telling, allocated_here, count_here};
use crate::follow_kit::follow;
use crate::queue_kit::{disks, filled};

#[global_allocator]
static ALLOCATOR: Telling = Telling(count_here);

/// If a request allocated, a host that has no memory left could not complete what its guest has under way.
#[test]
fn requests_allocate_nothing_after_the_first() {
    for disk in disks(4 * MIB) {
        let drive = disk.drive();
        no_request_allocates(&drive, &disk.path());
        let bitmaps = ["one", "two"].map(|name| drive.add_bitmap(name, None, true).unwrap());
        no_request_allocates(&drive, &disk.path());
        assert!(bitmaps.iter().all(|bitmap| bitmap.info().dirty_bytes == 4 * MIB));
    }
}

/// The same for what write-blocking adds: the claim, the stable copy, the second write, the mark.
#[test]
fn writes_to_both_sides_allocate_nothing_after_the_first() {
    for (disk, target) in disks(4 * MIB).into_iter().zip(disks(4 * MIB)) {
        let drive = disk.drive();
        let target = Device::open_target(&target.path(), TargetOptions::default()).unwrap();
        let share = follow(&drive, target, CopyMode::WriteBlocking);
        let bitmaps = ["one", "two"].map(|name| drive.add_bitmap(name, None, true).unwrap());
        no_request_allocates(&drive, &disk.path());
        // 48 writes of 4 KiB in each of 53 rounds; a few may meet the zeroes and go to the drive alone.
        let active_bytes = share.progress().active_bytes;
        assert!(active_bytes > 2000 * 4096, "{active_bytes} bytes went to both sides");
        assert!(bitmaps.iter().all(|bitmap| bitmap.info().dirty_bytes == 4 * MIB));
    }
}

/// Sends requests of every kind, many times, and counts.
fn no_request_allocates(drive: &Drive, path: &Path) {
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let mut spare: Vec<GuestBuffer> = (0..64).map(|_| filled(4096, 7).into()).collect();
    let mut round = |queue: &mut Queue, n: u64| {
        for i in 0..64 {
            let at = (n * 64 + i) * 4096 % (4 * MIB);
            let buffer = spare.pop().unwrap();
            match i % 4 {
                0 => queue.read(at, buffer, i).unwrap(),
                _ => queue
                    .write(at, buffer, WriteFlags { fua: i % 8 == 1, ..WriteFlags::default() }, i)
                    .unwrap(),
            }
        }
        queue
            .write_zeroes(
                ByteRange::at(0, 4096),
                ZeroFlags { punch: true, fua: true, ..ZeroFlags::default() },
                64,
            )
            .unwrap();
        queue.flush(65).unwrap();
        queue.wait(66, None).unwrap();
        while let Some(done) = queue.pop() {
            done.result.unwrap();
            spare.extend(done.buffer);
        }
    };
    (0..3).for_each(|n| round(&mut queue, n));
    let before = allocated_here();
    (0..50).for_each(|n| round(&mut queue, n));
    assert_eq!(allocated_here() - before, 0, "{path:?}");
}
