//! A disk, a guest's memory, and requests between the two that check every byte.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use blkmirror_core::buffer::{GuestBuffer, HostRegion};
use blkmirror_core::device::Device;
use blkmirror_core::drive::Drive;
use blkmirror_core::drive::queue::{Queue, WriteFlags};
use blkmirror_core::units::MIB;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of a disk.
pub(crate) const DISK: u64 = 4 * MIB;
/// Bytes of a request.
pub(crate) const BLOCK: usize = 4096;

/// A disk in memory.
pub(crate) struct Disk(tempfile::TempDir);

impl Disk {
    /// Each block of it is full of its number.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("blkmirror-memory").tempdir_in("/dev/shm").unwrap();
        let disk = Self(dir);
        let file = File::create(disk.path()).unwrap();
        for block in 0..DISK / BLOCK as u64 {
            file.write_all_at(&[byte_of(block); BLOCK], block * BLOCK as u64).unwrap();
        }
        disk
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    pub(crate) fn drive(&self) -> Drive {
        Drive::new(Device::open_disk(&self.path()).unwrap()).unwrap()
    }

    /// The bytes of a block.
    pub(crate) fn block(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, block * BLOCK as u64).unwrap();
        bytes
    }
}

/// What a block is full of at first; never 0.
pub(crate) fn byte_of(block: u64) -> u8 {
    u8::try_from(block % 200 + 1).unwrap()
}

/// Anonymous memory that is unmapped at the end.
pub(crate) struct Ram {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
}

impl Ram {
    pub(crate) fn new(len: usize) -> Self {
        Self::at(std::ptr::null_mut(), len, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    pub(crate) fn at(ptr: *mut u8, len: usize, flags: MapFlags) -> Self {
        // SAFETY: new memory; where an address is asked for, this test has just unmapped what was there.
        let ptr = unsafe { mmap_anonymous(ptr.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
        Self { ptr: ptr.unwrap().cast(), len }
    }

    /// Another memory at the same address.
    pub(crate) fn replaced(self) -> Self {
        let (ptr, len) = (self.ptr, self.len);
        drop(self);
        Self::at(ptr, len, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE)
    }

    pub(crate) fn region(&self) -> HostRegion {
        self.part(0, self.len)
    }

    pub(crate) fn part(&self, at: usize, len: usize) -> HostRegion {
        // SAFETY: the tests unmap it from the drive, or drop drive and queues, before they drop the memory.
        unsafe { HostRegion::from_raw(self.ptr.wrapping_add(at), len) }
    }

    pub(crate) fn buffer(&self, at: usize, len: usize) -> GuestBuffer {
        assert!(at + len <= self.len);
        // SAFETY: the tests wait for every completion before they drop or look at the memory.
        unsafe { GuestBuffer::from_raw(self.ptr.wrapping_add(at), len) }
    }

    /// The bytes at a place.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: it is mapped, and no request is under way.
        unsafe { std::slice::from_raw_parts(self.ptr.wrapping_add(at), len) }.to_vec()
    }

    pub(crate) fn fill(&self, at: usize, len: usize, byte: u8) {
        assert!(at + len <= self.len);
        // SAFETY: as for `bytes`.
        unsafe { self.ptr.wrapping_add(at).write_bytes(byte, len) };
    }

    pub(crate) fn unmap(&self, drive: &Drive) -> blkmirror_core::Result<()> {
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
pub(crate) fn finish(queue: &mut Queue) {
    queue.wait(usize::MAX, Some(Duration::from_secs(20))).unwrap();
    assert_eq!(queue.in_flight(), 0);
    while let Some(done) = queue.pop() {
        done.result.unwrap();
    }
}

/// Reads a block to `at` in the memory and checks it. Whether that went through registered memory.
pub(crate) fn read(queue: &mut Queue, ram: &Ram, at: usize, block: u64) -> bool {
    let before = queue.registered_memory().requests;
    ram.fill(at, BLOCK, 0);
    queue.read(block * BLOCK as u64, ram.buffer(at, BLOCK), 1).unwrap();
    finish(queue);
    assert!(ram.bytes(at, BLOCK).iter().all(|&b| b == byte_of(block)), "block {block} at {at:#x}");
    queue.registered_memory().requests > before
}

/// The same for a write of another byte, which is put back.
pub(crate) fn write(queue: &mut Queue, disk: &Disk, ram: &Ram, at: usize, block: u64) -> bool {
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

/// Whether a ring of this process has the memory registered; `None` where the kernel does not tell.
pub(crate) fn is_pinned(ram: &Ram) -> Option<bool> {
    let words = format!("{:#x}/{}", ram.ptr.addr(), ram.len);
    let files = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let rings = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let tells = rings.filter(|text| text.contains("UserBufs") && text.contains("0x")).collect::<Vec<_>>();
    (!tells.is_empty()).then(|| tells.iter().any(|text| text.contains(&words)))
}

/// Memory that several threads use, each its part.
pub(crate) struct Shared<'a>(pub(crate) &'a Ram);

impl Shared<'_> {
    pub(crate) fn get(&self) -> &Ram {
        self.0
    }
}

// SAFETY: an address and a length; each thread reads and writes its own part of the memory.
unsafe impl Sync for Shared<'_> {}
