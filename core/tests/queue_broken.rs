//! A queue whose ring the kernel refuses to run for good: here because another file has its descriptor.
#![allow(
    unsafe_code,
    reason = "a descriptor is put in the place of another, and a host vouches for its memory"
)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod queue_kit;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use blkmirror_core::buffer::{AlignedBuf, GuestBuffer};
use blkmirror_core::drive::queue::{Queue, QueueOptions, WriteFlags};
use blkmirror_core::units::MIB;

use crate::queue_kit::{Disk, disks, filled, one};

/// The descriptor of the only ring of this process.
fn ring_fd() -> RawFd {
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let is_ring = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]")
    };
    let rings: Vec<_> = entries.filter(is_ring).collect();
    assert_eq!(rings.len(), 1);
    rings[0].file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Puts `file` in the place of `at`.
fn replace(file: &impl AsRawFd, at: RawFd) {
    // SAFETY: the descriptor at `at` is the ring's, which is not used before the test has ended or put it back.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), at) }, at);
}

/// Sends a write into a ring that does not run, and takes its completion.
fn break_with_a_write(queue: &mut Queue, buffer: GuestBuffer) {
    queue.write(0, buffer, WriteFlags::default(), 7).unwrap();
    queue.flush(8).unwrap();
    let errno = queue.submit().unwrap_err().errno();
    assert_eq!(errno, libc::EOPNOTSUPP);
    for ends in [queue.submit(), queue.poll(), queue.wait(1, None), queue.drain(None).map(drop)] {
        assert_eq!(ends.unwrap_err().errno(), errno, "the reason is forgotten");
    }
    assert_eq!(queue.in_flight(), 0);
    let completions: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    assert_eq!(completions.len(), 2);
    for done in completions {
        assert_eq!(done.result.unwrap_err().errno(), errno);
        assert!(done.buffer.is_none());
        assert_eq!(done.memory_in_use, done.tag == 7, "a flush has no memory");
    }
}

/// Otherwise a write that its host was told has failed would reach the disk after all, from memory that serves something else by
/// then.
#[test]
fn what_a_broken_ring_was_not_given_is_never_sent() {
    disks(MIB).iter().for_each(nothing_is_sent_late);
}

fn nothing_is_sent_late(disk: &Disk) {
    let drive = disk.drive();
    let mut queue = drive.queue(QueueOptions::default()).unwrap();
    queue.write(0, filled(4096, 1), WriteFlags::default(), 1).unwrap();
    one(&mut queue).unwrap();
    let at = ring_fd();
    // SAFETY: a new descriptor, or the assertion below fails.
    let saved = unsafe { libc::dup(at) };
    assert!(saved >= 0);
    // SAFETY: it was made above, and nobody else owns it.
    let saved = unsafe { OwnedFd::from_raw_fd(saved) };
    replace(&File::open("/dev/null").unwrap(), at);
    let mut memory: AlignedBuf = filled(4096, 2);
    // SAFETY: it stays until the queue is gone, and is looked at by nobody but the kernel from here on.
    let buffer = unsafe { GuestBuffer::from_raw(memory.as_mut_ptr(), 4096) };
    break_with_a_write(&mut queue, buffer);
    // The ring would run again.
    replace(&saved, at);
    drop(saved);
    // A broken ring is not closed but dropped.
    let mut queue = queue.close(Duration::ZERO).unwrap_err();
    queue.submit().unwrap_err();
    drop(queue);
    drop(memory);
    assert!(disk.content()[..4096].iter().all(|&byte| byte == 1), "written although it has failed");
    // The kernel lets go of the ring, and with it of the device.
    drive.close().unwrap();
    queue_kit::assert_free(&disk.path());
}
