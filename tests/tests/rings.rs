//! Guest requests on the real ring: memory that is the host's, an eventfd instead of a sleep, rings that are dropped in the
//! middle of everything.
#![allow(unsafe_code, reason = "a host vouches for its memory")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blkmirror_core::buffer::{AlignedBuf, BufRange, HostMemory};
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::ring::uring::{OwnedRing, UringLimits, UringOptions, UringRing, with_ring};
use blkmirror_core::ring::{DeviceSlot, Op, Request, Ring, Tag, Wait};
use blkmirror_core::units::ByteRange;
use blkmirror_core::{ErrorKind, Result};
use blkmirror_testkit::faultdisk::{Effect, Operation, Options, Rule, Times};
use blkmirror_testkit::{FaultDisk, LoopDevice, LoopOptions, MIB, ScratchDir, needs};
use nix::libc;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// What hangs longer than this hangs.
const TOO_LONG: Duration = Duration::from_secs(5);
/// Copy memory of the rings here.
const MEMORY: u64 = 2 * MIB;
/// Sleep until something completes.
const ONE: Wait = Wait { completions: 1, batch_ns: 0, timeout_ns: Some(100_000_000) };

/// Sends a request and waits for its end.
#[track_caller]
fn ask(ring: &mut UringRing, device: DeviceSlot, range: ByteRange, op: Op) -> std::result::Result<u64, i32> {
    ring.push(Request { device, range, op }, Tag(7)).unwrap();
    let start = Instant::now();
    loop {
        if let Some(done) = ring.pop() {
            assert_eq!(done.tag, Tag(7));
            return done.result;
        }
        assert!(start.elapsed() < TOO_LONG, "{op:?} does not end");
        ring.enter(ONE).unwrap();
    }
}

/// Goes on with a request from where it stopped until all of it is done; returns how many requests that took.
#[track_caller]
fn ask_all(
    ring: &mut UringRing,
    device: DeviceSlot,
    at: u64,
    memory: HostMemory,
    op: fn(HostMemory) -> Op,
) -> u32 {
    let (mut done, mut requests) = (0, 0);
    while done < memory.len() {
        let rest = memory.skip(done);
        let moved = ask(ring, device, ByteRange::at(at + done, rest.len()), op(rest)).unwrap();
        assert!(moved > 0, "stopped at {done} of {}", memory.len());
        done += moved;
        requests += 1;
    }
    requests
}

/// A write of host memory that is durable at its end.
fn write_through(memory: HostMemory) -> Op {
    Op::WriteHost { memory, fua: true }
}

/// Opens a disk for writing.
fn disk(path: &Path) -> Result<Arc<Device>> {
    Device::open_target(path, TargetOptions::default()).map(Arc::new)
}

/// A buffer and a vector of `count` equal segments that lie in it, in reverse order.
fn scattered(bytes: usize, count: usize) -> (AlignedBuf, Vec<libc::iovec>) {
    let mut buf = AlignedBuf::new(bytes, 4096).unwrap();
    let (base, len) = (buf.as_mut_ptr(), bytes / count);
    let at = |i: usize| base.wrapping_add((count - 1 - i) * len).cast();
    let vector = (0..count).map(|i| libc::iovec { iov_base: at(i), iov_len: len }).collect();
    (buf, vector)
}

/// Writes a vector through the disk's cache, reads it back by pieces and by the vector.
fn vectors_meet_the_disk_as_flat_memory(path: &Path, limits: UringLimits) {
    // More segments than the kernel takes at once, so the rest must be asked for.
    const SEGMENTS: usize = 1504;
    const BYTES: usize = SEGMENTS * 512;
    with_ring(UringOptions { limits, ..UringOptions::new(MEMORY) }, |ring| {
        let slot = ring.attach(&disk(path).unwrap()).unwrap();
        let (mut buf, vector) = scattered(BYTES, SEGMENTS);
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = u8::try_from((i / 512 * 7 + i) % 251).unwrap();
        }
        // SAFETY: both live to the end of this block, every request has ended by then, and no reference is used between.
        let memory = unsafe { HostMemory::from_iovecs(vector.as_ptr(), vector.len()) };
        assert!(memory.is_aligned_to(512, 512));
        assert_eq!(ask_all(ring, slot, 4096, memory, write_through), 2);
        let on_disk = fs::read(path).unwrap();
        for (i, block) in on_disk[4096..4096 + BYTES].chunks(512).enumerate() {
            let from = (SEGMENTS - 1 - i) * 512;
            assert!(block == &buf[from..from + 512], "block {i}");
        }
        let written = buf.to_vec();
        buf.fill(0);
        assert_eq!(ask_all(ring, slot, 4096, memory, Op::ReadHost), 2);
        assert!(buf[..] == written[..]);
        // The same in one piece, and with the copy of the ring's own.
        // SAFETY: as above.
        let flat = unsafe { HostMemory::from_raw(buf.as_mut_ptr(), 8192) };
        ring.stage(flat, BufRange { start: 4096, len: 8192 });
        let staged = Op::WriteThrough(BufRange { start: 4096, len: 8192 });
        assert_eq!(ask(ring, slot, ByteRange::at(MIB, 8192), staged), Ok(8192));
        ring.fill_zero(BufRange { start: 4096, len: 4096 });
        assert!(ring.is_zero(BufRange { start: 4096, len: 4096 }));
        let staged = Op::Write(BufRange { start: 4096, len: 8192 });
        assert_eq!(ask(ring, slot, ByteRange::at(MIB + 8192, 8192), staged), Ok(8192));
        assert_eq!(ask_all(ring, slot, MIB + 16384, flat, |memory| Op::WriteHost { memory, fua: false }), 1);
        let on_disk = fs::read(path).unwrap();
        let at = |from: u64, len: usize| &on_disk[usize::try_from(from).unwrap()..][..len];
        assert!(at(MIB, 8192) == &buf[..8192]);
        assert!(at(MIB + 8192, 4096).iter().all(|&b| b == 0) && at(MIB + 12288, 4096) == &buf[4096..8192]);
        assert!(at(MIB + 16384, 8192) == &buf[..8192]);
        // A range outside the ring's memory is left alone, and refused.
        let outside = BufRange { start: u32::try_from(ring.memory_bytes()).unwrap(), len: 512 };
        ring.stage(flat, outside);
        ring.fill_zero(outside);
        let request = Request { device: slot, range: ByteRange::at(0, 512), op: Op::Write(outside) };
        assert!(ring.push(request, Tag(0)).is_err());
        assert!(ask(ring, slot, ByteRange::at(MIB, 8192), Op::Discard).is_ok_and(|done| done == 8192));
        ring.detach(slot);
    })
    .unwrap();
}

#[test]
fn vectored_requests_meet_a_block_device_as_flat_memory() {
    needs!(Losetup);
    let device = LoopDevice::in_memory(4 * MIB, LoopOptions::default()).unwrap();
    vectors_meet_the_disk_as_flat_memory(device.path(), UringLimits::default());
}

#[test]
fn vectored_requests_meet_a_file_as_flat_memory_on_the_poorest_ring_too() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let path = dir.sparse_file("disk", 4 * MIB).unwrap();
    let poor = UringLimits {
        skip_rungs: 3,
        no_new_waits: true,
        no_fixed_buffer: true,
        no_ring_fd: true,
        no_host_buffers: true,
    };
    // Files are aligned to their file system's blocks, so a loop device makes 512 bytes of it.
    let device = LoopDevice::attach(&path, LoopOptions::default()).unwrap();
    vectors_meet_the_disk_as_flat_memory(device.path(), poor);
}

#[test]
fn short_reads_go_on_where_they_stopped() {
    needs!(Fuse);
    let disk_file = FaultDisk::of_size(MIB).unwrap();
    with_ring(UringOptions::new(MEMORY), |ring| {
        let slot = ring.attach(&disk(disk_file.path()).unwrap()).unwrap();
        let (mut buf, vector) = scattered(65536, 4);
        buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::try_from(i / 512 % 251).unwrap());
        // SAFETY: both live to the end of this block, after the last request.
        let memory = unsafe { HostMemory::from_iovecs(vector.as_ptr(), vector.len()) };
        // Short writes to a file of FUSE are errors, so only reads are seen to stop.
        assert_eq!(ask_all(ring, slot, 0, memory, |memory| Op::WriteHost { memory, fua: false }), 1);
        let written = buf.to_vec();
        buf.fill(0);
        disk_file.control().add_rule(Rule::on(Operation::Read, Effect::Short(20480)).times(Times::Count(2)));
        assert!(ask_all(ring, slot, 0, memory, Op::ReadHost) > 1);
        assert!(buf[..] == written[..]);
        let on_disk = fs::read(disk_file.content_path()).unwrap();
        assert!(on_disk[..16384] == written[49152..], "the first segment is the last in memory");
    })
    .unwrap();
}

/// A host's eventfd, as in its event loop.
struct Loop(OwnedFd);

impl Loop {
    /// An eventfd that the ring makes readable.
    fn of(ring: &OwnedRing) -> Self {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        ring.register_eventfd(fd.as_fd()).unwrap();
        Self(fd)
    }

    /// Sleeps until it is readable and reads it; `false` if the time is over first.
    fn is_woken_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let woken = poll(&mut fds, Some(&Timespec::try_from(time).unwrap())).unwrap() > 0;
        woken && rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Reads it until it stays quiet.
    fn settle(&self, ring: &mut UringRing) {
        while self.is_woken_within(Duration::from_millis(30)) {
            ring.enter(Wait::POLL).unwrap();
            assert_eq!(ring.pop(), None);
        }
    }

    /// Comes back when woken and only then, until `count` completions were taken.
    #[track_caller]
    fn collect(&self, ring: &mut UringRing, count: usize) {
        let (start, mut done) = (Instant::now(), 0);
        while done < count {
            assert!(
                self.is_woken_within(TOO_LONG),
                "asleep with {} of {count} completions missing",
                count - done
            );
            ring.enter(Wait::POLL).unwrap();
            while let Some(completion) = ring.pop() {
                completion.result.unwrap();
                done += 1;
            }
            assert!(start.elapsed() < TOO_LONG);
        }
    }
}

/// Rings of every age: with deferred task work, with cooperative, with nothing.
fn every_age() -> impl Iterator<Item = UringOptions> {
    (0..4).map(|skip_rungs| UringOptions {
        limits: UringLimits { skip_rungs, ..UringLimits::default() },
        ..UringOptions::new(MEMORY)
    })
}

#[test]
fn completions_blocking_results_and_wake_ups_make_the_eventfd_readable() {
    needs!(Fuse);
    let options = Options {
        size_bytes: MIB,
        write_latency: Duration::from_millis(5),
        flush_latency: Duration::from_millis(5),
        ..Options::default()
    };
    let slow = FaultDisk::new(&options).unwrap();
    for options in every_age() {
        let mut owned = OwnedRing::new(options).unwrap();
        let host = Loop::of(&owned);
        let ring = owned.ring();
        let slot = ring.attach(&disk(slow.path()).unwrap()).unwrap();
        let range = ByteRange::at(0, 4096);
        let write = Op::Write(BufRange { start: 0, len: 4096 });
        for op in [write, Op::Flush, write, Op::Flush, Op::Zero { punch: true }] {
            for _ in 0..5 {
                host.settle(ring);
                ring.push(Request { device: slot, range, op }, Tag(1)).unwrap();
                ring.enter(Wait::POLL).unwrap();
                host.collect(ring, 1);
            }
        }
        for _ in 0..5 {
            host.settle(ring);
            let waker = ring.waker();
            let other = thread::spawn(move || waker.wake());
            assert!(host.is_woken_within(TOO_LONG), "not woken");
            ring.enter(Wait::POLL).unwrap();
            other.join().unwrap();
        }
        ring.detach(slot);
    }
}

/// The kernel runs only some of the completions that are ready in a call; it must say again that there are more.
#[test]
fn no_completion_stays_behind_when_many_are_ready_at_once() {
    needs!(Fuse);
    let options = Options { size_bytes: MIB, read_latency: Duration::from_millis(30), ..Options::default() };
    let slow = FaultDisk::new(&options).unwrap();
    for options in every_age() {
        let mut owned = OwnedRing::new(options).unwrap();
        let host = Loop::of(&owned);
        let ring = owned.ring();
        let slot = ring.attach(&disk(slow.path()).unwrap()).unwrap();
        host.settle(ring);
        for start in (0..128).map(|i| i * 4096) {
            let op = Op::Read(BufRange { start, len: 4096 });
            let range = ByteRange::at(u64::from(start), 4096);
            ring.push(Request { device: slot, range, op }, Tag(1)).unwrap();
        }
        ring.enter(Wait::POLL).unwrap();
        // All of them are ready before the host looks once.
        thread::sleep(Duration::from_millis(150));
        host.collect(ring, 128);
        ring.detach(slot);
    }
}

#[test]
fn a_ring_takes_one_eventfd_from_its_own_thread() {
    let owned = OwnedRing::new(UringOptions::new(MEMORY)).unwrap();
    let _host = Loop::of(&owned);
    let other = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(owned.register_eventfd(other.as_fd()).unwrap_err().kind(), ErrorKind::WrongState);
    let mut owned = OwnedRing::new(UringOptions::new(MEMORY)).unwrap();
    thread::spawn(move || {
        assert_eq!(owned.register_eventfd(other.as_fd()).unwrap_err().kind(), ErrorKind::WrongState);
        assert_eq!(owned.ring().enter(Wait::POLL).unwrap_err().kind(), ErrorKind::WrongState);
    })
    .join()
    .unwrap();
}

/// Drops a ring, here or elsewhere, and says how long that took.
fn time_to_drop(ring: OwnedRing, elsewhere: bool) -> Duration {
    let start = Instant::now();
    if elsewhere {
        thread::spawn(move || drop(ring)).join().unwrap();
    } else {
        drop(ring);
    }
    start.elapsed()
}

/// A ring on `path` with so many reads in the kernel.
fn ring_with_reads(path: &Path, options: UringOptions, count: u32) -> OwnedRing {
    let mut owned = OwnedRing::new(options).unwrap();
    let ring = owned.ring();
    let slot = ring.attach(&disk(path).unwrap()).unwrap();
    for start in (0..count).map(|i| i * 4096) {
        let op = Op::Read(BufRange { start, len: 4096 });
        ring.push(Request { device: slot, range: ByteRange::at(0, 4096), op }, Tag(1)).unwrap();
    }
    ring.enter(Wait::POLL).unwrap();
    owned
}

#[test]
fn a_ring_dropped_anywhere_frees_its_devices_once_its_requests_are_done() {
    needs!(Fuse);
    let options = Options { size_bytes: MIB, read_latency: Duration::from_millis(50), ..Options::default() };
    let slow = FaultDisk::new(&options).unwrap();
    for (elsewhere, reads) in [(false, 0), (true, 0), (false, 40), (true, 40)] {
        for options in every_age() {
            let took = time_to_drop(ring_with_reads(slow.path(), options, reads), elsewhere);
            assert!(took < Duration::from_millis(700), "{took:?}");
            // Free at once: neither a leak nor the kernel holds it.
            let again = disk(slow.path());
            assert!(again.is_ok(), "elsewhere: {elsewhere}, {reads} reads, {options:?}: {again:?}");
        }
    }
}

#[test]
fn a_ring_dropped_with_requests_that_hang_neither_hangs_nor_frees_what_they_hold() {
    needs!(Fuse);
    for elsewhere in [false, true] {
        let stuck = FaultDisk::of_size(MIB).unwrap();
        stuck.control().add_rule(Rule::on(Operation::Read, Effect::Stuck));
        let ring = ring_with_reads(stuck.path(), UringOptions::new(MEMORY), 3);
        assert!(stuck.control().wait_until(TOO_LONG, |counters| counters.stuck == 3));
        let took = time_to_drop(ring, elsewhere);
        assert!(took < Duration::from_secs(1), "{took:?}");
        // The device is kept with the memory, so that nobody meets a late write.
        assert_eq!(disk(stuck.path()).unwrap_err().kind(), ErrorKind::Busy, "elsewhere: {elsewhere}");
        assert_eq!(stuck.control().release_stuck(None), 3);
    }
}

/// Flushes that a device has carried out: the 16th word of `/sys/block/NAME/stat` (Documentation/block/stat.rst).
fn flushes(device: &LoopDevice) -> u64 {
    let stat = device.sysfs("stat").unwrap();
    stat.split_whitespace().nth(15).unwrap().parse().unwrap()
}

/// A guest that was told that its write is durable has written nothing for sure if the disk's cache was not asked.
#[test]
fn a_write_through_makes_the_disk_flush_its_cache_and_another_does_not() {
    needs!(Losetup);
    let device = LoopDevice::in_memory(8 * MIB, LoopOptions::default()).unwrap();
    for limits in [UringLimits::default(), UringLimits { no_fixed_buffer: true, ..UringLimits::default() }] {
        with_ring(UringOptions { limits, ..UringOptions::new(MEMORY) }, |ring| {
            let slot = ring.attach(&disk(device.path()).unwrap()).unwrap();
            let mut buf = AlignedBuf::new(8192, 4096).unwrap();
            // SAFETY: it lives to the end of this block, every request has ended by then, and no reference is used between.
            let flat = unsafe { HostMemory::from_raw(buf.as_mut_ptr(), 8192) };
            let copy = BufRange { start: 0, len: 8192 };
            let segment = |at: usize| libc::iovec {
                iov_base: buf.as_ptr().wrapping_add(at).cast_mut().cast(),
                iov_len: 4096,
            };
            let vector = [segment(4096), segment(0)];
            // SAFETY: as above.
            let scattered = unsafe { HostMemory::from_iovecs(vector.as_ptr(), 2) };
            let range = ByteRange::at(65536, 8192);
            for (through, plain) in [
                (Op::WriteThrough(copy), Op::Write(copy)),
                (Op::WriteHost { memory: flat, fua: true }, Op::WriteHost { memory: flat, fua: false }),
                (
                    Op::WriteHost { memory: scattered, fua: true },
                    Op::WriteHost { memory: scattered, fua: false },
                ),
            ] {
                let before = flushes(&device);
                assert_eq!(ask(ring, slot, range, plain), Ok(8192));
                assert_eq!(flushes(&device), before, "{plain:?}");
                assert_eq!(ask(ring, slot, range, through), Ok(8192));
                assert_eq!(flushes(&device), before + 1, "{through:?}");
            }
        })
        .unwrap();
    }
}
