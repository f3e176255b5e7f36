//! What the fuzz targets share: disks in memory, one engine, structures in memory of their size.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use blkmirror::*;

/// The library never answers with anything but an errno or a number, and an errno comes with a text.
///
/// # Panics
/// If it does.
pub fn check(answer: c_int) -> c_int {
    assert!(answer > -4096, "{answer} is no errno");
    if answer < 0 {
        // SAFETY: the text of this thread, which no other call changes meanwhile.
        let text = unsafe { CStr::from_ptr(blkm_error_msg()) }.to_str().expect("the text is UTF-8");
        assert!(text.starts_with("cannot ") && !text.contains('\n'), "{answer}: {text:?}");
        assert_ne!(answer, -libc::ENOTRECOVERABLE, "a panic was caught: {text}");
    }
    answer
}

/// A disk in memory.
#[derive(Debug)]
pub struct Disk(c_int);

impl Disk {
    /// A disk of so many bytes.
    #[must_use]
    pub fn of(bytes: i64) -> Self {
        // SAFETY: makes a file in memory of its own.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "out of descriptors: something leaks");
        // SAFETY: the file that was made above.
        assert_eq!(unsafe { libc::ftruncate(fd, bytes) }, 0);
        Self(fd)
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> c_int {
        self.0
    }

    /// Opens it.
    #[must_use]
    pub fn open(&self, role: blkm_role) -> *mut blkm_device {
        let opts = blkm_device_opts {
            struct_size: size_of::<blkm_device_opts>(),
            flags: BLKM_DEVICE_F_ALLOW_SHARED,
            name: std::ptr::null(),
            reserved: [0; 4],
        };
        let mut device = null_mut();
        // SAFETY: all of it is ours.
        check(unsafe { blkm_device_open_fd(self.0, role, &raw const opts, &raw mut device) });
        device
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: ours, and closed once.
        unsafe { libc::close(self.0) };
    }
}

/// The engine of all runs: making one takes longer than a run.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn engine() -> *mut blkm_engine {
    static ENGINE: OnceLock<usize> = OnceLock::new();
    let address = *ENGINE.get_or_init(|| {
        let mut engine = null_mut();
        // SAFETY: a variable of ours.
        assert_eq!(check(unsafe { blkm_engine_create(std::ptr::null(), &raw mut engine) }), 0);
        engine.expose_provenance()
    });
    std::ptr::with_exposed_provenance_mut(address)
}

/// Memory of just so many bytes.
#[derive(Debug)]
pub struct Claimed {
    memory: *mut u8,
    layout: Layout,
}

impl Claimed {
    /// Where it begins.
    #[must_use]
    pub fn pointer(&mut self) -> *mut c_void {
        self.memory.cast()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at a place, 0 behind the end.
    #[must_use]
    pub fn word(&self, at: usize) -> u64 {
        if (at + 1) * 8 > self.len() {
            return 0;
        }
        // SAFETY: inside, see above.
        unsafe { self.memory.cast::<u64>().add(at).read_unaligned() }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

/// A structure that claims to have `size` bytes, in memory of that size if that is possible at all: what claims more must be
/// refused before it is read. Words that could be pointers are zero, for no library can survive wild ones.
///
/// # Panics
/// If there is no memory.
#[must_use]
pub fn claimed(size: usize, bytes: &[u8]) -> Claimed {
    let room = size.clamp(8, 4096);
    let layout = Layout::from_size_align(room, 8).expect("a small size");
    // SAFETY: not of size 0.
    let memory = unsafe { alloc(layout) };
    assert!(!memory.is_null());
    for at in 0..room {
        let byte = bytes.get(at.wrapping_sub(8)).copied().unwrap_or(0);
        // SAFETY: inside.
        unsafe { memory.add(at).write(byte) };
    }
    // SAFETY: there is room for a word.
    unsafe { memory.cast::<usize>().write(size) };
    for at in 2..room / 8 {
        let mut claimed = Claimed { memory, layout };
        let word = claimed.word(at);
        // Small numbers and single bits stay: sizes, flags, choices. Addresses have bits in their middle.
        if word >> 20 != 0 && !word.is_power_of_two() && word != u64::MAX
            || word != 0 && (at == 2 || at == 3 || at == 4)
        {
            // SAFETY: inside.
            unsafe { claimed.pointer().cast::<u64>().add(at).write(0) };
        }
        std::mem::forget(claimed);
    }
    Claimed { memory, layout }
}
