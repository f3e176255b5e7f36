//! Queues of C: each request has one completion, and so has one that was refused.
//!
//! Core says at once that it does not accept a request. So here the queue is asked before and after each request how much there is
//! to take: more means that the request was refused, and its completion is taken, which comes first. On another thread than the
//! queue's even that cannot be asked; then the refusal is known, and the completion is left to the queue's own thread, which must
//! find it.

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem;
use std::ptr;
use std::time::{Duration, Instant};

use blkmirror::{
    BLKM_QUEUE_F_NO_EVENTFD, BLKM_QUEUE_F_NO_REGIONS, BLKM_QUEUE_F_STABLE_BUFFERS, BLKM_REQ_FUA,
    BLKM_REQ_MAY_UNMAP, BLKM_REQ_NO_FALLBACK, BLKM_REQ_STABLE_BUFFER, blkm_completion, blkm_queue,
    blkm_queue_create, blkm_queue_destroy, blkm_queue_discard, blkm_queue_flush, blkm_queue_get_info,
    blkm_queue_info, blkm_queue_opts_init, blkm_queue_poll, blkm_queue_process, blkm_queue_read,
    blkm_queue_readv, blkm_queue_submit, blkm_queue_write, blkm_queue_write_zeroes, blkm_queue_writev,
};
use blkmirror_core::drive::queue::{QueueOptions, WriteFlags, ZeroFlags};
use blkmirror_core::units::ByteRange;

use super::buffer::{GuestBuffer, Memory};
use super::drive::Drive;
use super::error::{Error, ErrorKind, Result, check};
use super::handle::{Handle, facts, options, timeout_ns};

/// Completions that are taken at a time.
const AT_A_TIME: usize = 32;

/// The end of a request.
#[derive(Debug)]
pub struct GuestCompletion {
    /// What the request was called.
    pub tag: u64,
    /// How it ended.
    pub result: Result<()>,
    /// Its memory.
    pub buffer: Option<GuestBuffer>,
}

/// A request that was refused.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub error: Error,
    /// Its memory.
    pub buffer: Option<GuestBuffer>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Rejected {}

/// A request whose completion was not taken.
#[derive(Debug)]
struct Sent {
    /// What it is called.
    tag: u64,
    /// Its memory.
    buffer: Option<GuestBuffer>,
    /// Its refusal is known.
    refused: bool,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    /// C's; there until the drop.
    handle: Option<Handle<blkm_queue>>,
    /// Requests by the number that is their user data.
    sent: HashMap<usize, Sent>,
    /// The next number.
    next: usize,
    /// Completions that were taken from C and not from here.
    ready: VecDeque<GuestCompletion>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        drop(self.handle.take());
        // What was under way may still be the kernel's, says the header.
        mem::forget(mem::take(&mut self.sent));
    }
}

impl Drive {
    /// A queue for one thread.
    ///
    /// # Errors
    /// As C says.
    pub fn queue(&self, chosen: QueueOptions) -> Result<Queue> {
        let mut opts = options(blkm_queue_opts_init);
        opts.depth = u32::try_from(chosen.depth).unwrap();
        opts.staging_bytes = chosen.staging_bytes;
        opts.flags = if chosen.eventfd { 0 } else { BLKM_QUEUE_F_NO_EVENTFD }
            | if chosen.regions { 0 } else { BLKM_QUEUE_F_NO_REGIONS }
            | if chosen.stable_buffers { BLKM_QUEUE_F_STABLE_BUFFERS } else { 0 };
        // SAFETY: a handle that is open, a structure and a variable that live to the end of the call.
        let make = |out| unsafe { blkm_queue_create(self.raw(), &raw const opts, out) };
        let handle = Some(Handle::make(blkm_queue_destroy, make)?);
        Ok(Queue { handle, sent: HashMap::new(), next: 1, ready: VecDeque::new() })
    }
}

impl Queue {
    /// C's handle.
    fn raw(&self) -> *mut blkm_queue {
        self.handle.as_ref().unwrap().raw()
    }

    /// What there is.
    fn info(&self) -> Result<blkm_queue_info> {
        // SAFETY: a handle that is open, and a structure.
        facts(|info| unsafe { blkm_queue_get_info(self.raw(), info) }).map(|(_, info)| info)
    }

    /// Sends a request; `submit` is given the queue, the memory and the user data.
    fn send(
        &mut self,
        tag: u64,
        buffer: Option<GuestBuffer>,
        submit: impl FnOnce(*mut blkm_queue, Option<&mut Memory>, *mut c_void),
    ) -> std::result::Result<(), Rejected> {
        let before = self.info();
        let number = self.next;
        self.next += 1;
        let mut sent = Sent { tag, buffer, refused: false };
        let memory = sent.buffer.as_mut().map(|buffer| &mut buffer.0);
        submit(self.raw(), memory, ptr::without_provenance_mut(number));
        self.sent.insert(number, sent);
        match (before, self.info()) {
            (Ok(before), Ok(after)) if after.ready == before.ready => {
                assert_eq!(after.in_flight, before.in_flight + 1, "neither accepted nor refused");
                Ok(())
            }
            (Ok(_), Ok(_)) => self.refusal(number),
            (Err(error), _) | (_, Err(error)) => {
                let sent = self.sent.get_mut(&number).unwrap();
                sent.refused = true;
                Err(Rejected { error, buffer: sent.buffer.take() })
            }
        }
    }

    /// Takes the completion of a request that was refused.
    fn refusal(&mut self, number: usize) -> std::result::Result<(), Rejected> {
        let [refused] = self.process::<1>(0, Some(Duration::ZERO)).unwrap()[..] else {
            panic!("a refusal has no completion")
        };
        assert_eq!(refused.user_data.addr(), number, "another request was refused");
        let GuestCompletion { result, buffer, .. } = self.ended(&refused).unwrap();
        result.map_err(|error| Rejected { error, buffer })
    }

    /// Has C process completions, and takes at most `N` of them.
    fn process<const N: usize>(
        &mut self,
        min: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<blkm_completion>> {
        let none = blkm_completion {
            user_data: ptr::null_mut(),
            error_msg: ptr::null(),
            ret: 1,
            flags: 1,
            reserved: 1,
        };
        let mut taken = vec![none; N];
        let (min, max) = (c_int::try_from(min).unwrap(), c_int::try_from(N).unwrap());
        let timeout = timeout_ns(timeout);
        // SAFETY: a handle that is open, and room for `max`.
        let count = unsafe { blkm_queue_process(self.raw(), taken.as_mut_ptr(), min, max, timeout) };
        taken.truncate(usize::try_from(check(count)?).unwrap());
        Ok(taken)
    }

    /// What has become of a request; `None` if that was known.
    fn ended(&mut self, completion: &blkm_completion) -> Option<GuestCompletion> {
        let blkm_completion { user_data, error_msg, ret, flags, reserved } = *completion;
        assert_eq!((flags, reserved), (0, 0), "no ring breaks here");
        assert_eq!(error_msg.is_null(), ret == 0, "a text exactly for an error");
        let sent = self.sent.remove(&user_data.addr()).expect("each request has one completion");
        let result = if ret == 0 { Ok(()) } else { Err(Error::told(ret, error_msg)) };
        if sent.refused {
            let error = result.expect_err("it came from another thread");
            assert!(error.kind() == ErrorKind::WrongState && error.to_string().contains("thread"), "{error}");
            return None;
        }
        Some(GuestCompletion { tag: sent.tag, result, buffer: sent.buffer })
    }

    /// Reads into `buffer`.
    ///
    /// # Errors
    /// As C's completion says.
    pub fn read(
        &mut self,
        at: u64,
        buffer: impl Into<GuestBuffer>,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        self.send(tag, Some(buffer.into()), |queue, memory, word| match memory.unwrap() {
            Memory::Here(buffer) => {
                let (first, len) = (buffer.as_mut_ptr(), buffer.len());
                // SAFETY: a handle that is open; the buffer is kept until the completion.
                unsafe { blkm_queue_read(queue, at, first.cast(), len, word, 0) };
            }
            Memory::Pieces { first, count } => {
                // SAFETY: a handle that is open; the pieces are the caller's promise.
                unsafe { blkm_queue_readv(queue, at, *first, *count, word, 0) };
            }
        })
    }

    /// Writes `buffer`.
    ///
    /// # Errors
    /// As C's completion says.
    pub fn write(
        &mut self,
        at: u64,
        buffer: impl Into<GuestBuffer>,
        how: WriteFlags,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        let flags =
            if how.fua { BLKM_REQ_FUA } else { 0 } | if how.stable { BLKM_REQ_STABLE_BUFFER } else { 0 };
        self.send(tag, Some(buffer.into()), |queue, memory, word| match memory.unwrap() {
            Memory::Here(buffer) => {
                let (first, len) = (buffer.as_mut_ptr(), buffer.len());
                // SAFETY: a handle that is open; the buffer is kept until the completion.
                unsafe { blkm_queue_write(queue, at, first.cast(), len, word, flags) };
            }
            Memory::Pieces { first, count } => {
                // SAFETY: a handle that is open; the pieces are the caller's promise.
                unsafe { blkm_queue_writev(queue, at, *first, *count, word, flags) };
            }
        })
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As C's completion says.
    pub fn write_zeroes(
        &mut self,
        range: ByteRange,
        how: ZeroFlags,
        tag: u64,
    ) -> std::result::Result<(), Rejected> {
        let flags = if how.punch { BLKM_REQ_MAY_UNMAP } else { 0 }
            | if how.fua { BLKM_REQ_FUA } else { 0 }
            | if how.no_fallback { BLKM_REQ_NO_FALLBACK } else { 0 };
        self.send(tag, None, |queue, _, word| {
            // SAFETY: a handle that is open.
            unsafe { blkm_queue_write_zeroes(queue, range.start(), range.len(), word, flags) };
        })
    }

    /// A range is not needed any more.
    ///
    /// # Errors
    /// As C's completion says.
    pub fn discard(&mut self, range: ByteRange, tag: u64) -> std::result::Result<(), Rejected> {
        self.send(tag, None, |queue, _, word| {
            // SAFETY: a handle that is open.
            unsafe { blkm_queue_discard(queue, range.start(), range.len(), word, 0) };
        })
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As C's completion says.
    pub fn flush(&mut self, tag: u64) -> std::result::Result<(), Rejected> {
        self.send(tag, None, |queue, _, word| {
            // SAFETY: a handle that is open.
            unsafe { blkm_queue_flush(queue, word, 0) };
        })
    }

    /// Sends what was accepted.
    ///
    /// # Errors
    /// As C says.
    pub fn submit(&mut self) -> Result<()> {
        // SAFETY: a handle that is open.
        let ret = check(unsafe { blkm_queue_submit(self.raw()) })?;
        assert_eq!(ret, 0);
        Ok(())
    }

    /// The same, and collects completions without sleeping.
    ///
    /// # Errors
    /// As C says.
    pub fn poll(&mut self) -> Result<()> {
        // SAFETY: a handle that is open.
        let there = usize::try_from(check(unsafe { blkm_queue_poll(self.raw()) })?).unwrap();
        self.wait(self.ready.len() + there.min(AT_A_TIME), Some(Duration::ZERO))
    }

    /// Waits until so many completions can be popped, no request is under way, or the time is over.
    ///
    /// # Errors
    /// As C says.
    pub fn wait(&mut self, min: usize, timeout: Option<Duration>) -> Result<()> {
        let end = timeout.map(|time| Instant::now() + time);
        loop {
            let missing = min.saturating_sub(self.ready.len());
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let taken = self.process::<AT_A_TIME>(missing.min(AT_A_TIME), left)?;
            for completion in &taken {
                if let Some(ended) = self.ended(completion) {
                    self.ready.push_back(ended);
                }
            }
            // After as many as it takes at a time there may be more.
            let satisfied = self.ready.len() >= min && taken.len() < AT_A_TIME;
            if satisfied || taken.is_empty() {
                return Ok(());
            }
        }
    }

    /// Completions that can be popped.
    ///
    /// # Panics
    /// On another thread than that of a queue in use.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len() + usize::try_from(self.info().unwrap().ready).unwrap()
    }

    /// Requests that have not completed.
    ///
    /// # Panics
    /// On another thread than that of a queue in use.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.info().unwrap().in_flight).unwrap()
    }

    /// Takes a completion.
    pub fn pop(&mut self) -> Option<GuestCompletion> {
        self.ready.pop_front()
    }
}
