//! Memory of a drive that is taken back, on the real ring: never while a request uses it, and never used after that.
#![allow(unsafe_code, reason = "memory of the host's cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod memory_kit;

use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::drive::queue::{Queue, QueueOptions};

use crate::memory_kit::{BLOCK, Disk, Ram, Shared, finish, is_pinned, read, write};

/// The heart of it: a read that went to the old pages would leave the guest's memory as it was.
#[test]
fn other_memory_at_the_same_address_is_never_served_from_the_old_pages() {
    let disk = Disk::new();
    let drive = disk.drive();
    let mut ram = Ram::new(1 << 20);
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    for round in 0..20 {
        drive.map_memory(ram.region()).unwrap();
        assert!(read(&mut queue, &ram, 0x3000, round));
        assert!(write(&mut queue, &disk, &ram, 0x3000, round));
        ram.unmap(&drive).unwrap();
        ram = ram.replaced();
        assert!(!read(&mut queue, &ram, 0x3000, round + 1), "it is not mapped now");
        assert!(!write(&mut queue, &disk, &ram, 0x3000, round + 1));
        if round % 2 == 0 {
            ram = ram.replaced();
        }
        // Mapped anew without the queue having been turned in between, in every other round.
        drive.map_memory(ram.region()).unwrap();
        if round % 3 == 0 {
            queue.poll().unwrap();
        }
        ram.unmap(&drive).unwrap();
        ram = ram.replaced();
    }
    queue.poll().unwrap();
    assert_eq!(queue.registered_memory().bytes, 0);
}

#[test]
fn memory_of_a_request_under_way_is_busy_until_it_is_complete() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    drive.map_memory(ram.part(0, 0x10000)).unwrap();
    drive.map_memory(ram.part(0x20000, 0x10000)).unwrap();
    let mut queues: Vec<_> = (0..3).map(|_| drive.queue(QueueOptions::default()).unwrap()).collect();
    let unmap = |at: usize| drive.unmap_memory(ram.ptr.wrapping_add(at), 0x10000);
    for queue in &mut queues {
        // Accepted and not sent; half of it lies in the region.
        queue.read(0, ram.buffer(0x1f000, 2 * BLOCK), 1).unwrap();
        let error = unmap(0x20000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("under way") && !error.to_string().contains('\n'), "{error}");
        queue.submit().unwrap();
        finish(queue);
    }
    unmap(0x20000).unwrap();
    assert_eq!(unmap(0x20000).unwrap_err().kind(), ErrorKind::NotFound);
    // Refused and lost requests use nothing any more.
    assert!(queues[0].read(1, ram.buffer(0, BLOCK), 1).is_err());
    queues[1].read(0, ram.buffer(0, BLOCK), 1).unwrap();
    assert_eq!(unmap(0).unwrap_err().kind(), ErrorKind::Busy);
    drop(queues);
    unmap(0).unwrap();
}

/// A queue that nobody uses must come round, or the kernel keeps the pages.
#[test]
fn an_idle_queue_is_called_and_then_lets_the_pages_go() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    queue.poll().unwrap();
    let called = |queue: &Queue| {
        let fd = queue.eventfd().unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
    // Its own wake-up may call it once more than there is something to do.
    let quiet = |queue: &mut Queue| assert!((0..10).any(|_| queue.poll().is_ok() && !called(queue)));
    quiet(&mut queue);
    for (change, bytes) in [(true, 1 << 20), (false, 0)] {
        if change { drive.map_memory(ram.region()) } else { ram.unmap(&drive) }.unwrap();
        assert!(called(&queue));
        assert_ne!(queue.registered_memory().bytes, bytes, "not before it is turned");
        queue.poll().unwrap();
        assert_eq!(queue.registered_memory().bytes, bytes);
        quiet(&mut queue);
        if let Some(is_pinned) = is_pinned(&ram) {
            assert_eq!(is_pinned, change, "what the kernel says of its rings");
        }
    }
}

/// Threads with queues of their own read while another maps and unmaps what they use; whatever way it goes, the bytes are right.
#[test]
fn memory_is_mapped_and_unmapped_while_queues_use_it() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
    let drive = disk.drive();
    let until = Instant::now() + Duration::from_millis(700);
    let (ram, drive) = (&Shared(&ram), &drive);
    let (through, around, unmapped, busy) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2_usize)
            .map(|n| {
                scope.spawn(move || {
                    let mut queue = drive.queue(QueueOptions::default()).unwrap();
                    let (mut seed, mut through, mut around) = (n as u64 + 1, 0_u64, 0_u64);
                    while Instant::now() < until {
                        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(11);
                        let at = n * 0x80000 + usize::try_from((seed >> 40) % 0x7f).unwrap() * BLOCK;
                        // Nobody could unmap what is always in use.
                        std::thread::sleep(Duration::from_micros(20));
                        match read(&mut queue, ram.get(), at, (seed >> 33) % 1024) {
                            true => through += 1,
                            false => around += 1,
                        }
                    }
                    (through, around)
                })
            })
            .collect();
        let (mut unmapped, mut busy) = (0_u64, 0_u64);
        while Instant::now() < until {
            drive.map_memory(ram.get().region()).unwrap();
            std::thread::sleep(Duration::from_micros(500));
            while let Err(e) = ram.get().unmap(drive) {
                assert_eq!(e.kind(), ErrorKind::Busy);
                busy += 1;
                std::thread::yield_now();
            }
            unmapped += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        let sum = readers.into_iter().map(|r| r.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        (sum.0, sum.1, unmapped, busy)
    });
    println!(
        "{through} through mapped memory, {around} around; unmapped {unmapped} times, busy {busy} times"
    );
    assert!(through > 100 && around > 10 && unmapped > 20, "{through} {around} {unmapped}");
}
