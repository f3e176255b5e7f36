//! Memory that a host registered with its drive, on the real ring: the bytes are right whichever way they go, and the short way is
//! really taken.
#![allow(unsafe_code, reason = "memory of the host's, and a global allocator, cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod alloc_kit;
mod follow_kit;
mod memory_kit;

use blkmirror_core::ErrorKind;
use blkmirror_core::buffer::{GuestBuffer, HostRegion};
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::queue::{Queue, QueueOptions, RegisteredMemory, WriteFlags};
use blkmirror_core::mirror::CopyMode;
use rustix::mm::{MapFlags, ProtFlags};

use crate::alloc_kit::{Telling, allocated_here, count_here};
use crate::follow_kit::follow;
use crate::memory_kit::{BLOCK, Disk, Ram, finish, read, write};

#[global_allocator]
static ALLOCATOR: Telling = Telling(count_here);

#[test]
fn requests_inside_mapped_memory_have_the_right_bytes_and_go_through_it() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.part(0x10000, 0x20000)).unwrap();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    assert_eq!(queue.registered_memory(), RegisteredMemory::default(), "nothing before its first use");
    // First and last block of the region, and those just outside or half so.
    for (at, inside) in [
        (0x10000, true),
        (0x2f000, true),
        (0x1f200, true),
        (0xf000, false),
        (0x30000, false),
        (0xfe00, false),
        (0x2f200, false),
        (0x80000, false),
    ] {
        assert_eq!(read(&mut queue, &ram, at, 3), inside, "{at:#x}");
        assert_eq!(write(&mut queue, &disk, &ram, at, 5), inside, "{at:#x}");
    }
    let report = queue.registered_memory();
    assert_eq!((report.bytes, report.refused_bytes, report.refused_errno), (0x20000, 0, None));
}

/// A vector of one entry is what most hosts send; one of several goes as it always did.
#[test]
fn a_vector_of_one_entry_goes_through_mapped_memory_and_one_of_several_does_not() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.region()).unwrap();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    for count in [1, 2] {
        let vector: Vec<_> = (0..count)
            .map(|n| libc::iovec { iov_base: ram.ptr.wrapping_add(n * 0x8000).cast(), iov_len: BLOCK })
            .collect();
        // SAFETY: vector and memory live until the completion.
        let buffer = unsafe { GuestBuffer::from_iovecs(vector.as_ptr(), vector.len()) };
        queue.read(0, buffer, 1).unwrap();
        assert_eq!(ram.unmap(&drive).unwrap_err().kind(), ErrorKind::Busy, "each counts as using it");
        finish(&mut queue);
        (0..count).for_each(|n| assert_eq!(ram.bytes(n * 0x8000, BLOCK), disk.block(n as u64)));
        assert_eq!(queue.registered_memory().requests, 1, "{count}");
    }
}

/// The kernel registers a GiB at a time.
#[test]
fn a_request_over_the_border_of_a_gibibyte_is_right_and_goes_unregistered() {
    const GIB: usize = 1 << 30;
    let (disk, len) = (Disk::new(), 2 << 20);
    let drive = disk.drive();
    let reserved = Reserved::new(GIB + len);
    drive.map_memory(reserved.region()).unwrap();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    queue.poll().unwrap();
    let report = queue.registered_memory();
    assert_eq!((report.bytes, report.refused_errno), ((GIB + len) as u64, None), "{report:?}");
    for (at, through) in [
        (GIB - BLOCK, true),
        (GIB - 512, false),
        (GIB - BLOCK + 512, false),
        (GIB, true),
        (GIB + len - BLOCK, true),
    ] {
        assert_eq!(read(&mut queue, &reserved.0, at, 7), through, "{at:#x}");
        assert_eq!(write(&mut queue, &disk, &reserved.0, at, 9), through, "{at:#x}");
    }
    reserved.0.unmap(&drive).unwrap();
}

/// A GiB and more that costs 2 MiB: the same small file, mapped again and again.
struct Reserved(Ram);

impl Reserved {
    fn new(len: usize) -> Self {
        const STEP: usize = 2 << 20;
        let ram = Ram::new(len);
        let name = rustix::fs::memfd_create("blkmirror-ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&name, STEP as u64).unwrap();
        for at in (0..len).step_by(STEP) {
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
            let to = ram.ptr.wrapping_add(at).cast();
            // SAFETY: inside the memory that this test has just made, and nothing refers to it.
            unsafe { rustix::mm::mmap(to, STEP.min(len - at), prot, flags, &name, 0) }.unwrap();
        }
        Self(ram)
    }

    fn region(&self) -> HostRegion {
        self.0.region()
    }
}

/// Write-blocking from the host's own memory: both sides through it.
#[test]
fn stable_writes_to_both_sides_go_through_mapped_memory() {
    let (disk, other, ram) = (Disk::new(), Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.region()).unwrap();
    let target = Device::open_target(&other.path(), TargetOptions::default()).unwrap();
    let share = follow(&drive, target, CopyMode::WriteBlocking);
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    for (n, stable) in [(1, false), (2, true)] {
        let before = queue.registered_memory().requests;
        ram.fill(0, BLOCK, 250 + n);
        let flags = WriteFlags { stable, ..WriteFlags::default() };
        queue.write(8192, ram.buffer(0, BLOCK), flags, 1).unwrap();
        finish(&mut queue);
        assert!(disk.block(2) == [250 + n; BLOCK] && other.block(2) == [250 + n; BLOCK]);
        // The copy is in the queue's own memory.
        assert_eq!(queue.registered_memory().requests - before, if stable { 2 } else { 0 });
    }
    assert_eq!(share.progress().active_bytes, 2 * BLOCK as u64);
}

/// If a request allocated, a host that has no memory left could not complete what its guest has under way.
#[test]
fn requests_through_mapped_memory_allocate_nothing() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    (0..20).for_each(|n| drive.map_memory(ram.part(n * 0x8000, 0x8000)).unwrap());
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let round = |queue: &mut Queue| {
        for i in 0..64 {
            let (at, buffer) = (i as u64 * BLOCK as u64, ram.buffer(i * 2 * BLOCK, BLOCK));
            if i % 2 == 0 {
                queue.read(at, buffer, 1)
            } else {
                queue.write(at, buffer, WriteFlags::default(), 1)
            }
            .unwrap();
        }
        queue.wait(64, None).unwrap();
        while let Some(done) = queue.pop() {
            done.result.unwrap();
        }
    };
    (0..3).for_each(|_| round(&mut queue));
    let before = allocated_here();
    (0..50).for_each(|_| round(&mut queue));
    assert_eq!(allocated_here() - before, 0);
    assert!(queue.registered_memory().requests > 53 * 30, "{:?}", queue.registered_memory());
}
