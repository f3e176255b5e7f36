//! Queues on the real ring: files and loop devices, event loops, threads.
#![allow(unsafe_code, reason = "memory of the host's cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod queue_kit;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::buffer::{AlignedBuf, GuestBuffer};
use blkmirror_core::device::Device;
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_core::units::{ByteRange, MIB};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::queue_kit::{Disk, assert_free, disks, filled, finish, one};

#[test]
fn every_kind_of_request_does_what_it_says() {
    for disk in disks(4 * MIB) {
        let drive = disk.drive();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        for (offset, byte, fua) in [(0, 1, false), (65536, 2, true), (4 * MIB - 8192, 3, false)] {
            queue
                .write(offset, filled(8192, byte), WriteFlags { fua, ..WriteFlags::default() }, offset)
                .unwrap();
        }
        let done = finish(&mut queue);
        assert!(done.len() == 3 && done.values().all(|d| d.result.is_ok() && d.buffer.is_some()), "{done:?}");
        let content = disk.content();
        for (offset, byte) in [(0, 1), (65536, 2), ((4 << 20) - 8192, 3)] {
            assert!(content[offset..offset + 8192].iter().all(|&b| b == byte), "{:?} {offset}", disk.path());
        }
        queue.read(65536, filled(8192, 9), 1).unwrap();
        let read = one(&mut queue).unwrap().unwrap().into_aligned().unwrap();
        assert!(read.iter().all(|&b| b == 2));
        queue.write(0, filled(1 << 20, 7), WriteFlags::default(), 1).unwrap();
        one(&mut queue).unwrap();
        for (punch, fua) in [(false, false), (true, false), (false, true), (true, true)] {
            let start = 4096 * (1 + 2 * u64::from(punch) + 4 * u64::from(fua));
            queue
                .write_zeroes(ByteRange::at(start, 4096), ZeroFlags { punch, fua, ..ZeroFlags::default() }, 1)
                .unwrap();
            one(&mut queue).unwrap();
            let content = disk.content();
            let at = usize::try_from(start).unwrap();
            assert!(
                content[at..at + 4096].iter().all(|&b| b == 0)
                    && content[at - 1] == 7
                    && content[at + 4096] == 7
            );
        }
        queue.discard(ByteRange::at(MIB, MIB), 1).unwrap();
        one(&mut queue).unwrap();
        queue.flush(1).unwrap();
        assert!(one(&mut queue).unwrap().is_none());
    }
}

/// If they were written as data after all, a host that only asks for the quick way would wait for as long as for a write.
#[test]
fn zeroes_without_a_fallback_fail_where_the_device_has_no_way_and_change_nothing() {
    let disk = Disk::file(MIB);
    let drive = disk.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    queue.write(0, filled(8192, 7), WriteFlags::default(), 1).unwrap();
    one(&mut queue).unwrap();
    // A file system in memory makes holes, and has no zeroes that keep the space.
    let quick = ZeroFlags { no_fallback: true, ..ZeroFlags::default() };
    queue.write_zeroes(ByteRange::at(0, 4096), quick, 1).unwrap();
    assert_eq!(one(&mut queue).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(disk.content()[..8192].iter().all(|&b| b == 7));
    queue.write_zeroes(ByteRange::at(0, 4096), ZeroFlags { punch: true, ..quick }, 1).unwrap();
    one(&mut queue).unwrap();
    queue.write_zeroes(ByteRange::at(4096, 4096), ZeroFlags::default(), 1).unwrap();
    one(&mut queue).unwrap();
    assert!(disk.content()[..8192].iter().all(|&b| b == 0));
}

/// A host that pops a part of what is there, and sleeps on the eventfd, would sleep over the rest.
#[test]
fn a_host_that_leaves_completions_unpopped_is_called_back() {
    let disk = Disk::file(MIB);
    let drive = disk.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let is_readable = |queue: &Queue| {
        let fd = queue.eventfd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
    assert_eq!(queue.ready(), 0);
    queue.signal();
    assert!(is_readable(&queue), "before its first use, too");
    (0..3).for_each(|tag| queue.read(0, filled(4096, 0), tag).unwrap());
    queue.wait(3, None).unwrap();
    assert_eq!((queue.ready(), queue.in_flight()), (3, 0));
    queue.pop().unwrap().result.unwrap();
    queue.poll().unwrap();
    assert!(!is_readable(&queue) && queue.ready() == 2);
    queue.signal();
    assert!(is_readable(&queue));
    let quiet = drive.queue(QueueOptions { eventfd: false, ..QueueOptions::default() }).unwrap();
    quiet.signal();
}

#[test]
fn vectors_are_written_and_read_in_order() {
    for disk in disks(MIB) {
        let drive = disk.drive();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        let mut pieces: Vec<_> = (1..=5).map(|i| filled(4096 * usize::from(i), i)).collect();
        let vector: Vec<_> = pieces
            .iter_mut()
            .map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: p.len() })
            .collect();
        // SAFETY: the pieces and the vector live to the end of this round, and are not touched before the completion.
        let buffer = unsafe { GuestBuffer::from_iovecs(vector.as_ptr(), vector.len()) };
        queue.write(8192, buffer, WriteFlags::default(), 1).unwrap();
        one(&mut queue).unwrap();
        let flat: Vec<u8> = pieces.iter().flat_map(|p| p.iter().copied()).collect();
        assert_eq!(disk.content()[8192..8192 + flat.len()], flat);
        pieces.iter_mut().for_each(|p| p.fill(0));
        // SAFETY: as above.
        let buffer = unsafe { GuestBuffer::from_iovecs(vector.as_ptr(), vector.len()) };
        queue.read(8192, buffer, 2).unwrap();
        one(&mut queue).unwrap();
        assert_eq!(pieces.iter().flat_map(|p| p.iter().copied()).collect::<Vec<u8>>(), flat);
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_words_and_given_back() {
    let Some(disk) = Disk::loop_device(MIB) else { return };
    let drive = disk.drive();
    assert_eq!(drive.align_bytes(), 512);
    let mut queue = drive.queue(QueueOptions { depth: 2, ..QueueOptions::default() }).unwrap();
    let flags = WriteFlags::default();
    let mut refused = |offset: u64, buffer: GuestBuffer, words: &str| {
        let len = buffer.len();
        let rejected = queue.write(offset, buffer, flags, 1).unwrap_err();
        let text = rejected.to_string();
        assert!(text.contains(words) && !text.contains('\n'), "{text}");
        assert_eq!(rejected.error.kind(), ErrorKind::InvalidArgument, "{text}");
        assert_eq!(rejected.buffer.unwrap().len(), len);
        assert!(queue.read(offset, filled(4096, 0), 1).is_err(), "reads have the same rules");
    };
    let mut memory = filled(8192, 1);
    // SAFETY: the memory lives to the end of this test, and no request with it is accepted.
    let mut raw =
        |at: usize, len: usize| unsafe { GuestBuffer::from_raw(memory.as_mut_ptr().wrapping_add(at), len) };
    refused(100, filled(4096, 1).into(), "multiples of 512 bytes");
    refused(MIB, filled(4096, 1).into(), "ends at 1048576 bytes");
    refused(u64::MAX - 511, filled(4096, 1).into(), "ends at 1048576 bytes");
    let text = |q: &mut Queue, buffer| q.write(0, buffer, flags, 1).unwrap_err().to_string();
    assert!(text(&mut queue, raw(0, 700)).contains("multiples of 512 bytes"));
    assert!(text(&mut queue, raw(0, 0)).contains("empty"));
    assert!(text(&mut queue, raw(1, 512)).contains("start at a multiple of 512 bytes"));
    assert!(queue.discard(ByteRange::at(1, 512), 1).unwrap_err().to_string().contains("multiples of 512"));
    assert!(queue.write_zeroes(ByteRange::at(0, 2 * MIB), ZeroFlags::default(), 1).is_err());
    assert_eq!((queue.in_flight(), queue.pop().is_none()), (0, true), "no completion for what was refused");
    (0..2).for_each(|tag| queue.flush(tag).unwrap());
    assert_eq!(queue.flush(2).unwrap_err().error.kind(), ErrorKind::QueueFull);
    assert_eq!(finish(&mut queue).len(), 2);
    let read_only = Drive::new(Device::open_source(&disk.path()).unwrap()).unwrap();
    let mut queue = read_only.queue(QueueOptions::default()).unwrap();
    let rejected = queue.write(0, filled(4096, 1), flags, 1).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::PermissionDenied);
    queue.read(0, filled(4096, 1), 1).unwrap();
    one(&mut queue).unwrap();
    assert!(drive.queue(QueueOptions { depth: 0, ..QueueOptions::default() }).is_err());
}

/// Sleeps on the queue's eventfd alone, as an event loop does, and takes the signal.
fn sleep_on_eventfd(queue: &Queue) {
    let fd = queue.eventfd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "nothing in ten seconds");
    rustix::io::read(fd, &mut [0u8; 8]).unwrap();
}

#[test]
fn an_event_loop_hears_of_every_completion() {
    for disk in disks(4 * MIB) {
        let drive = disk.drive();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        let (mut sent, mut done) = (0, 0);
        while done < 400 {
            while sent < 400 && sent - done < 20 {
                let at = sent % 64 * 65536;
                match sent % 5 {
                    0 => queue.flush(sent),
                    1 => queue.write_zeroes(ByteRange::at(at, 65536), ZeroFlags::default(), sent),
                    2 => queue.read(at, filled(4096, 0), sent),
                    _ => queue.write(
                        at,
                        filled(65536, 5),
                        WriteFlags { fua: sent % 7 == 0, ..WriteFlags::default() },
                        sent,
                    ),
                }
                .unwrap();
                sent += 1;
            }
            queue.submit().unwrap();
            sleep_on_eventfd(&queue);
            queue.poll().unwrap();
            while let Some(completion) = queue.pop() {
                completion.result.unwrap();
                done += 1;
            }
        }
        let quiet = drive.queue(QueueOptions { eventfd: false, ..QueueOptions::default() }).unwrap();
        assert!(quiet.eventfd().is_none());
    }
}

#[test]
fn a_queue_belongs_to_the_thread_that_used_it_first() {
    let disk = Disk::file(MIB);
    let drive = disk.drive();
    // Made here, first used there.
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    let mut queue = std::thread::spawn(move || {
        queue.write(0, filled(4096, 1), WriteFlags::default(), 1).unwrap();
        one(&mut queue).unwrap();
        queue
    })
    .join()
    .unwrap();
    let rejected = queue.write(0, filled(4096, 1), WriteFlags::default(), 1).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::WrongState);
    assert!(rejected.to_string().contains("belongs to the thread that used it first"), "{rejected}");
    assert!(rejected.buffer.is_some());
    for result in [queue.poll(), queue.submit(), queue.wait(1, None)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::WrongState);
    }
}

#[test]
fn each_thread_has_its_own_queue_on_one_drive() {
    for disk in disks(8 * MIB) {
        let drive = disk.drive();
        std::thread::scope(|scope| {
            for half in 0..2u8 {
                let mut queue = drive.queue(QueueOptions::default()).unwrap();
                scope.spawn(move || {
                    for n in 0..1024u64 {
                        let at = u64::from(half) * 4 * MIB + n * 4096;
                        queue.write(at, filled(4096, half + 1), WriteFlags::default(), n).unwrap();
                        if n % 64 == 63 {
                            assert!(finish(&mut queue).values().all(|d| d.result.is_ok()));
                        }
                    }
                });
            }
        });
        let content = disk.content();
        assert!(content[..4 << 20].iter().all(|&b| b == 1) && content[4 << 20..].iter().all(|&b| b == 2));
    }
}

#[test]
fn a_queue_that_is_dropped_with_requests_under_way_lets_its_device_go() {
    for disk in disks(16 * MIB) {
        for elsewhere in [false, true] {
            let drive = disk.drive();
            let mut queue = drive.queue(QueueOptions::default()).unwrap();
            let mut queue = std::thread::spawn(move || {
                (0..64).for_each(|n| {
                    queue.write(n * 65536, filled(65536, 1), WriteFlags::default(), n).unwrap();
                });
                (64..100).for_each(|n| queue.flush(n).unwrap());
                queue.submit().unwrap();
                queue.write(0, filled(4096, 2), WriteFlags::default(), 100).unwrap();
                // Dropped on its own thread, or on one that cannot use its ring any more.
                if elsewhere {
                    queue.wait(usize::MAX, None).unwrap();
                }
                elsewhere.then_some(queue)
            })
            .join()
            .unwrap();
            let before = Instant::now();
            drop(queue.take());
            drive.close().unwrap();
            assert!(before.elapsed() < Duration::from_secs(2));
            // Opened exclusively, so this works only when nobody holds the first one any more.
            assert_free(&disk.path());
        }
    }
}

/// Chance.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Each block holds the number of its last write, which is what a read must find.
#[test]
fn random_requests_at_depth_128_read_what_was_written_last() {
    for disk in disks(32 * MIB) {
        let drive = disk.drive();
        let mut queue = drive.queue(QueueOptions::default()).unwrap();
        let blocks = 32 * MIB / 4096;
        let mut last = vec![0u64; usize::try_from(blocks).unwrap()];
        let mut busy = vec![false; last.len()];
        let mut spare: Vec<AlignedBuf> = (0..128).map(|_| filled(4096, 0)).collect();
        let (mut seed, mut serial, mut done) = (0x1234_5678_9abc_def1, 0u64, 0u64);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            while let Some(mut buffer) = spare.pop() {
                let block = next(&mut seed) % blocks;
                let index = usize::try_from(block).unwrap();
                if std::mem::replace(&mut busy[index], true) {
                    spare.push(buffer);
                    break;
                }
                if next(&mut seed).is_multiple_of(3) {
                    queue.read(block * 4096, buffer, block << 1).unwrap();
                } else {
                    serial += 1;
                    last[index] = serial;
                    buffer.as_chunks_mut::<8>().0.fill(serial.to_le_bytes());
                    queue.write(block * 4096, buffer, WriteFlags::default(), block << 1 | 1).unwrap();
                }
            }
            queue.wait(32, None).unwrap();
            while let Some(completion) = queue.pop() {
                completion.result.unwrap();
                let index = usize::try_from(completion.tag >> 1).unwrap();
                let buffer = completion.buffer.unwrap().into_aligned().unwrap();
                if completion.tag & 1 == 0 {
                    let word = last[index].to_le_bytes();
                    assert!(buffer.as_chunks::<8>().0.iter().all(|w| *w == word), "block {index}");
                }
                busy[index] = false;
                spare.push(buffer);
                done += 1;
            }
        }
        println!("{:?}: {done} requests in a second", disk.path());
        finish(&mut queue);
        let mut block = [0; 8];
        let file = File::open(disk.path()).unwrap();
        for (index, serial) in last.iter().enumerate() {
            file.read_exact_at(&mut block, index as u64 * 4096).unwrap();
            assert_eq!(u64::from_le_bytes(block), *serial, "block {index}");
        }
        assert!(drive.latencies_without_job().count() >= done);
    }
}
