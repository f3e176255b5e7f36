//! An allocator that tells of every allocation, for tests that count them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Allocations of this thread alone: the test harness prints and starts tests in its own thread whenever it likes.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

/// Counts an allocation of this thread.
pub(crate) fn count_here() {
    // A thread that ends has taken its locals down: what it allocates then belongs to no request.
    let _ = HERE.try_with(|here| here.set(here.get() + 1));
}

/// Allocations of this thread so far.
pub(crate) fn allocated_here() -> u64 {
    HERE.get()
}

/// The system's allocator; calls the function before each allocation, which must not allocate.
pub(crate) struct Telling(pub(crate) fn());

// SAFETY: every call goes to the system's allocator unchanged; the function that is told allocates nothing.
unsafe impl GlobalAlloc for Telling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0();
        // SAFETY: the caller keeps the contract of `alloc`, which is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.0();
        // SAFETY: the caller keeps the contract of `realloc`, which is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, which is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}
