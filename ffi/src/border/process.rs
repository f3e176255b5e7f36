//! Whether this is the process that made an object.
//!
//! After `fork(2)` the child has a copy of every object and none of its threads: locks may be held for ever, a ring is the
//! parent's. So a call in the child must be refused before it touches anything. A page that the kernel wipes in every child
//! (`MADV_WIPEONFORK`, Linux 4.14) holds the number of the process that objects are made in; each keeps the number that it was made
//! under. To compare them costs a load, where asking for the process id would be a system call. A child that makes objects of its
//! own writes a new number. Who shares the memory, as `vfork(2)` and `posix_spawn(3)` do until they run another program, is the
//! same process here.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the page.
const PAGE_BYTES: usize = 4096;

/// The number of this process; 0 in a child that has made nothing yet.
fn number() -> &'static AtomicU64 {
    static NUMBER: OnceLock<&'static AtomicU64> = OnceLock::new();
    NUMBER.get_or_init(|| page().unwrap_or_else(|| Box::leak(Box::new(AtomicU64::new(0)))))
}

/// A page that is wiped in children. It stays for as long as the process, also when the library is unloaded.
fn page() -> Option<&'static AtomicU64> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping of its own touches nothing.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, access, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page was mapped above.
    let wiped = unsafe { libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) };
    if wiped != 0 {
        return None;
    }
    // SAFETY: mapped for ever, aligned to a page, zeroes are a valid number, and nobody else knows the address.
    unsafe { page.cast::<AtomicU64>().as_ref() }
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// Where the number is now.
    now: &'static AtomicU64,
    /// What it was.
    made_in: u64,
}

impl Process {
    /// This process.
    pub(crate) fn this() -> Self {
        static CHILDREN: AtomicU64 = AtomicU64::new(1);
        let now = number();
        if now.load(Ordering::Relaxed) == 0 {
            // Other than the parent's whatever the process ids are: the child's count goes on from the parent's.
            let fresh = CHILDREN.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
            // Another thread may have been faster; its number is as good.
            let _ = now.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
        Self { now, made_in: now.load(Ordering::Relaxed) }
    }

    /// The number that the process has here.
    pub(crate) fn number(self) -> u64 {
        self.made_in
    }

    /// Whether the process of that number is this one.
    pub(crate) fn is_now(made_in: u64) -> bool {
        number().load(Ordering::Relaxed) == made_in
    }

    /// Whether this is still that process, and not a child of it.
    #[inline]
    pub(crate) fn is_this(self) -> bool {
        self.now.load(Ordering::Relaxed) == self.made_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `child` in a child made by `fork`, and says whether it answered `true`.
    fn in_child(child: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only looks at atomics and ends.
        match unsafe { libc::fork() } {
            0 => {
                let code = i32::from(!child());
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: waits for the child that was made above.
                let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
                waited == pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
            }
        }
    }

    #[test]
    fn a_child_is_another_process_and_its_own_objects_are_its_own() {
        let ours = Process::this();
        assert!(ours.is_this());
        assert!(in_child(|| {
            let before = !ours.is_this();
            let own = Process::this();
            before && own.is_this() && !ours.is_this() && in_child(|| !own.is_this() && !ours.is_this())
        }));
        assert!(ours.is_this());
    }
}
