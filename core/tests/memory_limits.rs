//! How much memory of a host's is registered: up to what the drive and the kernel take, and with those queues that want it.
#![allow(unsafe_code, reason = "memory of the host's cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod memory_kit;

use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::drive::MAX_REGIONS;
use blkmirror_core::drive::queue::{QueueOptions, RegisteredMemory};
use blkmirror_core::ring::uring::UringLimits;
use blkmirror_core::units::{KIB, MIB};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::memory_kit::{BLOCK, Disk, Ram, Shared, finish, is_pinned, read, write};

#[test]
fn the_number_of_regions_is_bounded_and_each_is_used() {
    let (disk, ram) = (Disk::new(), Ram::new((MAX_REGIONS + 1) * 0x4000));
    let drive = disk.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    (0..MAX_REGIONS).rev().for_each(|n| drive.map_memory(ram.part(n * 0x4000, 0x2000)).unwrap());
    let one_more = drive.map_memory(ram.part(MAX_REGIONS * 0x4000, 0x2000)).unwrap_err();
    assert_eq!(one_more.kind(), ErrorKind::LimitReached);
    for n in 0..=MAX_REGIONS {
        assert_eq!(read(&mut queue, &ram, n * 0x4000, n as u64), n < MAX_REGIONS);
        assert!(!read(&mut queue, &ram, n * 0x4000 + 0x2000, n as u64));
    }
}

/// A host hot-plugs memory in many pieces, each a region of its own.
#[test]
fn a_host_with_hot_plugged_memory_has_room_for_256_regions() {
    assert_eq!(MAX_REGIONS, 256);
}

/// Otherwise a queue that is used once in a while would pin all of a guest's memory once more.
#[test]
fn a_queue_without_regions_pins_nothing_and_its_requests_keep_their_memory_from_being_taken_back() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.region()).unwrap();
    let mut queue = drive.queue(QueueOptions { regions: false, ..QueueOptions::default() }).unwrap();
    assert!(!read(&mut queue, &ram, 0x1000, 3));
    assert!(!write(&mut queue, &disk, &ram, 0x1000, 3));
    assert_eq!(queue.registered_memory(), RegisteredMemory::default(), "nothing was asked of the kernel");
    assert_ne!(is_pinned(&ram), Some(true));
    queue.read(0, ram.buffer(0, BLOCK), 1).unwrap();
    assert_eq!(ram.unmap(&drive).unwrap_err().kind(), ErrorKind::Busy, "each counts as using it");
    finish(&mut queue);
    let mut other = drive.queue(QueueOptions::default()).unwrap();
    assert!(read(&mut other, &ram, 0x1000, 3), "it is this queue's own affair");
    assert!(!read(&mut queue, &ram, 0x1000, 3));
    ram.unmap(&drive).unwrap();
}

/// A process without the right to lock memory, and a low limit: what most users are.
#[test]
fn what_may_not_be_locked_goes_unregistered_and_is_not_asked_for_again() {
    let (disk, ram) = (Disk::new(), Ram::new(16 << 20));
    let drive = disk.drive();
    let before = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: Some(8 * MIB), maximum: before.maximum }).unwrap();
    let (drive, disk, ram) = (&drive, &disk, &Shared(&ram));
    // Rights are a thread's.
    let run = move || {
        drop_right_to_lock();
        let ram = ram.get();
        let mut queue = drive.queue(QueueOptions { staging_bytes: MIB, ..QueueOptions::default() }).unwrap();
        drive.map_memory(ram.part(0, 0x100_000)).unwrap();
        drive.map_memory(ram.part(0x200_000, 0xe00_000)).unwrap();
        assert!(read(&mut queue, ram, 0x1000, 1), "the small one has room");
        for n in 0..100 {
            assert!(!read(&mut queue, ram, 0x300_000, n));
        }
        assert!(!write(&mut queue, disk, ram, 0x300_000, 1));
        let report = queue.registered_memory();
        let expected = (MIB, 14 * MIB, Some(libc::ENOMEM));
        assert_eq!((report.bytes, report.refused_bytes, report.refused_errno), expected);
        // With a lower limit yet not even the copy memory is registered, and the table is there all the same.
        let low = Rlimit { current: Some(512 * KIB), maximum: before.maximum };
        drop(queue);
        drive.unmap_memory(ram.ptr, 0x100_000).unwrap();
        setrlimit(Resource::Memlock, low).unwrap();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        drive.map_memory(ram.part(0, 0x10000)).unwrap();
        // The kernel gives back what the first ring had locked when it pleases.
        let patience = Instant::now() + Duration::from_secs(5);
        while queue.poll().is_err() {
            assert!(Instant::now() < patience, "{:?}", queue.poll());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(read(&mut queue, ram, 0x1000, 1) && !read(&mut queue, ram, 0x300_000, 1));
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    setrlimit(Resource::Memlock, before).unwrap();
}

/// Gives up `CAP_IPC_LOCK` in this thread.
fn drop_right_to_lock() {
    let header = [0x2008_0522_u32, 0];
    let mut rights = [0_u32; 6];
    // SAFETY: the structures of capget(2), version 3, for this thread.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), rights.as_mut_ptr()) };
    assert_eq!(got, 0);
    // CAP_IPC_LOCK is 14; the first and the fourth word hold what is in effect.
    rights[0] &= !(1 << 14);
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), rights.as_ptr()) };
    assert_eq!(set, 0);
}

/// What older kernels have not must be done without.
#[test]
fn without_a_table_in_the_kernel_everything_goes_unregistered() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.region()).unwrap();
    let limits = UringLimits::default();
    for (limits, through) in [
        (UringLimits { no_host_buffers: true, ..limits }, false),
        (UringLimits { no_fixed_buffer: true, ..limits }, true),
        (UringLimits { no_host_buffers: true, no_fixed_buffer: true, ..limits }, false),
        (UringLimits { skip_rungs: 1, ..limits }, true),
        (UringLimits { skip_rungs: 2, ..limits }, true),
        (UringLimits { skip_rungs: 3, no_new_waits: true, ..limits }, true),
    ] {
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        queue.limit(limits);
        assert_eq!(read(&mut queue, &ram, 0, 1), through, "{limits:?}");
        assert_eq!(write(&mut queue, &disk, &ram, 0x3000, 2), through, "{limits:?}");
        let report = queue.registered_memory();
        let (bytes, errno) = if through { (MIB, None) } else { (0, Some(libc::EOPNOTSUPP)) };
        assert_eq!((report.bytes, report.refused_bytes), (bytes, MIB - bytes), "{limits:?}");
        assert_eq!(report.refused_errno, errno, "{limits:?}");
    }
}
