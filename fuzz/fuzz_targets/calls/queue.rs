//! Calls on a queue that may be NULL, and on memory regions: exactly one completion for each request.
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use blkmirror::*;
use blkmirror_fuzz::check;

use crate::run::{MEMORY, Run};

/// What requests are sent with.
const TAG: usize = 0x5aa5;

// SAFETY of all calls below: they pass on handles, memory and variables of the run, or NULL, as its contract says.
impl Run {
    /// Memory for a request: `len` bytes that are really there.
    fn piece(&self, shift: u8, len: usize) -> (*mut c_void, usize) {
        let start = usize::from(shift) * if shift & 1 == 0 { 256 } else { 1 };
        (self.memory.wrapping_byte_add(start), len.min(MEMORY - start))
    }

    /// A request is submitted, to a queue if it is there.
    fn sent(&mut self) -> *mut c_void {
        self.open += usize::from(!self.queue.is_null());
        std::ptr::without_provenance_mut(TAG)
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn new_queue(&mut self, depth: u8, flags: u8, staging: u16) {
        if !self.queue.is_null() {
            return;
        }
        let opts = blkm_queue_opts {
            struct_size: size_of::<blkm_queue_opts>(),
            flags: u64::from(flags & 15),
            staging_bytes: u64::from(staging) << 8,
            depth: u32::from(depth),
            reserved0: 0,
            reserved: [0; 4],
        };
        // SAFETY: see above.
        check(unsafe { blkm_queue_create(self.drive, &raw const opts, &raw mut self.queue) });
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn drop_queue(&mut self) {
        if self.queue.is_null() {
            return;
        }
        // A closed gate holds requests; without its job it opens.
        // SAFETY: the caller's promise.
        unsafe { self.drop_job() };
        let mut rounds = 0;
        while self.open > 0 {
            // SAFETY: the same.
            assert!(unsafe { self.process(1, 128, 100_000_000) } >= 0);
            rounds += 1;
            assert!(rounds < 200, "{} requests have no completion", self.open);
        }
        // SAFETY: see above.
        unsafe { blkm_queue_destroy(&raw mut self.queue) };
    }

    /// Closes it only if nothing is lost by that.
    ///
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn close_queue(&mut self, wait: u8) {
        let was = self.queue;
        // SAFETY: see above.
        let closed = check(unsafe { blkm_queue_close(&raw mut self.queue, i64::from(wait) << 12) });
        if closed == 0 {
            assert!(self.open == 0 && self.queue.is_null(), "{} requests had no completion", self.open);
        } else {
            assert_eq!(self.queue, was);
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn process(&mut self, min: c_int, max: c_int, timeout_ns: i64) -> c_int {
        let empty =
            blkm_completion { user_data: null_mut(), error_msg: null(), ret: 0, flags: 0, reserved: 0 };
        let mut room = [empty; 128];
        // SAFETY: see above; `max` is at most 128.
        let taken = check(unsafe { blkm_queue_process(self.queue, room.as_mut_ptr(), min, max, timeout_ns) });
        for done in room.iter().take(usize::try_from(taken).unwrap_or(0)) {
            assert_eq!(done.user_data.addr(), TAG);
            assert!(done.ret <= 0 && (done.ret < 0) != done.error_msg.is_null());
            self.open = self.open.checked_sub(1).expect("more completions than requests");
        }
        taken
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn process_some(&mut self, min: i8, max: i8) {
        if !self.queue.is_null() {
            // SAFETY: the caller's promise.
            unsafe { self.process(min.into(), max.into(), 1_000_000) };
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn transfer(&mut self, write: bool, (at, len): (u16, u16), shift: u8, flags: u8) {
        let (piece, len) = self.piece(shift, usize::from(len) << (shift & 4));
        let (tag, offset) = (self.sent(), u64::from(at) << (shift & 7));
        if write {
            // SAFETY: see above.
            unsafe { blkm_queue_write(self.queue, offset, piece, len, tag, u32::from(flags & 31)) };
        } else {
            // SAFETY: see above.
            unsafe { blkm_queue_read(self.queue, offset, piece, len, tag, u32::from(flags & 1)) };
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn vector(&mut self, at: u16, lens: [u8; 3], write: bool, count: i8) {
        // The array must live until the completion: it lies at the end of the memory, which no piece here reaches.
        let array = self.memory.wrapping_byte_add(MEMORY - 4096).cast::<libc::iovec>();
        if self.open > 0 {
            return;
        }
        for (number, len) in lens.iter().enumerate() {
            let base = self.memory.wrapping_byte_add(number * 16384);
            let piece = libc::iovec { iov_base: base, iov_len: usize::from(*len) << 6 };
            // SAFETY: there is room for 256 of them.
            unsafe { array.add(number).write(piece) };
        }
        let count = c_int::from(count).min(3);
        let (tag, offset) = (self.sent(), u64::from(at) << 9);
        if write {
            // SAFETY: see above.
            unsafe { blkm_queue_writev(self.queue, offset, array, count, tag, 0) };
        } else {
            // SAFETY: see above.
            unsafe { blkm_queue_readv(self.queue, offset, array, count, tag, 0) };
        }
        if !self.queue.is_null() {
            // SAFETY: the caller's promise.
            unsafe { self.process(1, 128, 1_000_000_000) };
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn zeroes(&mut self, at: u64, len: u64, flags: u8) {
        let tag = self.sent();
        let (at, len) = if flags & 64 == 0 { (at, len) } else { (at % 512 * 512, len % 512 * 512) };
        // SAFETY: see above.
        unsafe { blkm_queue_write_zeroes(self.queue, at, len, tag, u32::from(flags & 15)) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn discard(&mut self, at: u16, len: u16, flags: u8) {
        let (tag, at, len) = (self.sent(), u64::from(at) << 9, u64::from(len) << 9);
        // SAFETY: see above.
        unsafe { blkm_queue_discard(self.queue, at, len, tag, u32::from(flags & 1)) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn flush(&mut self, flags: u8) {
        let tag = self.sent();
        // SAFETY: see above.
        unsafe { blkm_queue_flush(self.queue, tag, u32::from(flags & 1)) };
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn submit(&mut self) {
        // SAFETY: see above.
        check(unsafe { blkm_queue_submit(self.queue) });
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn poll(&mut self) {
        // SAFETY: see above.
        let ready = check(unsafe { blkm_queue_poll(self.queue) });
        assert!(ready <= self.open as c_int);
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn map_memory(&mut self, at: u16, len: u16) {
        let (start, at) = (self.memory.wrapping_byte_add(usize::from(at)), usize::from(at));
        // SAFETY: see above; it lies inside the memory.
        check(unsafe { blkm_mem_region_map(self.drive, start, usize::from(len).min(MEMORY - at), 0) });
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn unmap_memory(&mut self, at: u16, len: u16) {
        let start = self.memory.wrapping_byte_add(usize::from(at));
        // SAFETY: see above.
        check(unsafe { blkm_mem_region_unmap(self.drive, start, usize::from(len)) });
    }
}
