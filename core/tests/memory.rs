//! Memory that a host registered with its drive, on the real ring: the bytes are right whichever way they go, the short way is really
//! taken, and never from memory that was unmapped.
#![allow(unsafe_code, reason = "memory of the host's, and a global allocator, cannot be had without")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on; the exemption misses its helpers")]

mod alloc_kit;
mod follow_kit;

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blkmirror_core::ErrorKind;
use blkmirror_core::buffer::{GuestBuffer, HostRegion};
use blkmirror_core::device::{Device, TargetOptions};
use blkmirror_core::drive::queue::{Queue, QueueOptions, RegisteredMemory, WriteFlags};
use blkmirror_core::drive::{Drive, MAX_REGIONS};
use blkmirror_core::mirror::CopyMode;
use blkmirror_core::ring::uring::UringLimits;
use blkmirror_core::units::{KIB, MIB};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::alloc_kit::Telling;
use crate::follow_kit::follow;

thread_local! {
    /// Allocations of this thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts one.
fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

#[global_allocator]
static ALLOCATOR: Telling = Telling(count);

/// Bytes of a disk.
const DISK: u64 = 4 * MIB;
/// Bytes of a request.
const BLOCK: usize = 4096;

/// A disk in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// Each block of it is full of its number.
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("blkmirror-memory").tempdir_in("/dev/shm").unwrap();
        let disk = Self(dir);
        let file = File::create(disk.path()).unwrap();
        for block in 0..DISK / BLOCK as u64 {
            file.write_all_at(&[byte_of(block); BLOCK], block * BLOCK as u64).unwrap();
        }
        disk
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    fn drive(&self) -> Drive {
        Drive::new(Device::open_target(&self.path(), TargetOptions::default()).unwrap()).unwrap()
    }

    /// The bytes of a block.
    fn block(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, block * BLOCK as u64).unwrap();
        bytes
    }
}

/// What a block is full of at first; never 0.
fn byte_of(block: u64) -> u8 {
    u8::try_from(block % 200 + 1).unwrap()
}

/// Anonymous memory that is unmapped at the end.
struct Ram {
    ptr: *mut u8,
    len: usize,
}

impl Ram {
    fn new(len: usize) -> Self {
        Self::at(std::ptr::null_mut(), len, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    fn at(ptr: *mut u8, len: usize, flags: MapFlags) -> Self {
        // SAFETY: new memory; where an address is asked for, this test has just unmapped what was there.
        let ptr = unsafe { mmap_anonymous(ptr.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
        Self { ptr: ptr.unwrap().cast(), len }
    }

    /// Another memory at the same address.
    fn replaced(self) -> Self {
        let (ptr, len) = (self.ptr, self.len);
        drop(self);
        Self::at(ptr, len, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE)
    }

    fn region(&self) -> HostRegion {
        self.part(0, self.len)
    }

    fn part(&self, at: usize, len: usize) -> HostRegion {
        // SAFETY: the tests unmap it from the drive, or drop drive and queues, before they drop the memory.
        unsafe { HostRegion::from_raw(self.ptr.wrapping_add(at), len) }
    }

    fn buffer(&self, at: usize, len: usize) -> GuestBuffer {
        assert!(at + len <= self.len);
        // SAFETY: the tests wait for every completion before they drop or look at the memory.
        unsafe { GuestBuffer::from_raw(self.ptr.wrapping_add(at), len) }
    }

    /// The bytes at a place.
    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: it is mapped, and no request is under way.
        unsafe { std::slice::from_raw_parts(self.ptr.wrapping_add(at), len) }.to_vec()
    }

    fn fill(&self, at: usize, len: usize, byte: u8) {
        assert!(at + len <= self.len);
        // SAFETY: as for `bytes`.
        unsafe { self.ptr.wrapping_add(at).write_bytes(byte, len) };
    }

    fn unmap(&self, drive: &Drive) -> blkmirror_core::Result<()> {
        drive.unmap_memory(self.ptr, self.len)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: made by this, and nothing refers to it any more.
        unsafe { munmap(self.ptr.cast(), self.len) }.unwrap();
    }
}

/// Waits for everything; all must have gone well.
fn finish(queue: &mut Queue) {
    queue.wait(usize::MAX, Some(Duration::from_secs(20))).unwrap();
    assert_eq!(queue.in_flight(), 0);
    while let Some(done) = queue.pop() {
        done.result.unwrap();
    }
}

/// Reads a block to `at` in the memory and checks it. Whether that went through registered memory.
fn read(queue: &mut Queue, ram: &Ram, at: usize, block: u64) -> bool {
    let before = queue.registered_memory().requests;
    ram.fill(at, BLOCK, 0);
    queue.read(block * BLOCK as u64, ram.buffer(at, BLOCK), 1).unwrap();
    finish(queue);
    assert!(ram.bytes(at, BLOCK).iter().all(|&b| b == byte_of(block)), "block {block} at {at:#x}");
    queue.registered_memory().requests > before
}

/// The same for a write of another byte, which is put back.
fn write(queue: &mut Queue, disk: &Disk, ram: &Ram, at: usize, block: u64) -> bool {
    let before = queue.registered_memory().requests;
    for byte in [255, byte_of(block)] {
        ram.fill(at, BLOCK, byte);
        let flags = WriteFlags { fua: byte == 255, ..WriteFlags::default() };
        queue.write(block * BLOCK as u64, ram.buffer(at, BLOCK), flags, 1).unwrap();
        finish(queue);
        assert!(disk.block(block).iter().all(|&b| b == byte), "block {block} at {at:#x}");
    }
    queue.registered_memory().requests > before
}

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

/// Whether a ring of this process has the memory registered; `None` where the kernel does not tell.
fn is_pinned(ram: &Ram) -> Option<bool> {
    let words = format!("{:#x}/{}", ram.ptr.addr(), ram.len);
    let files = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let rings = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let tells = rings.filter(|text| text.contains("UserBufs") && text.contains("0x")).collect::<Vec<_>>();
    (!tells.is_empty()).then(|| tells.iter().any(|text| text.contains(&words)))
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

/// Memory that several threads use, each its part.
struct Shared<'a>(&'a Ram);

impl Shared<'_> {
    fn get(&self) -> &Ram {
        self.0
    }
}

// SAFETY: an address and a length; each thread reads and writes its own part of the memory.
unsafe impl Sync for Shared<'_> {}

#[test]
fn the_number_of_regions_is_bounded_and_each_is_used() {
    let (disk, ram) = (Disk::new(), Ram::new(1 << 20));
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
    let before = ALLOCATIONS.get();
    (0..50).for_each(|_| round(&mut queue));
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(queue.registered_memory().requests > 53 * 30, "{:?}", queue.registered_memory());
}
