//! Threads of the library, on which no handler of the host's ever runs.
//!
//! A new thread has the signal mask of the one that starts it. So all signals are blocked there for that moment: a thread that
//! blocked them itself, a moment later, could be chosen for a signal in between. `SIGKILL` and `SIGSTOP` cannot be blocked, and a
//! fault of the thread's own (`SIGSEGV`, `SIGBUS`) that is blocked ends the process, see `sigprocmask(2)`.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

thread_local! {
    /// This thread's number, once it was asked for. Constant at first and without a destructor, so it can be asked for at any time:
    /// the standard library's own name of a thread cannot while the thread ends, where a host may destroy a queue.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// The number of the calling thread; no other thread of the process ever has it.
#[inline]
pub(crate) fn number() -> u64 {
    NUMBER.with(|number| match number.get() {
        0 => {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            // Relaxed: a number on its own.
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
            number.get()
        }
        known => known,
    })
}

/// Starts a thread of this name with all signals blocked.
pub(crate) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let mut before = SigSet::empty();
    // Neither call can fail: the arguments are valid.
    let blocked = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
    let thread = Builder::new().name(name).spawn(body);
    if blocked.is_ok() {
        let _ = before.thread_set_mask();
    }
    thread
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring that took another thread's calls for its own's would run into the kernel's refusal, or worse.
    #[test]
    fn every_thread_has_a_number_of_its_own() {
        let mut all: Vec<u64> = (0..20).map(|_| std::thread::spawn(number).join().unwrap()).collect();
        all.extend([number(), number()]);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 21);
        assert_eq!(number(), number());
    }

    /// Otherwise a host's handler could run on a thread that it knows nothing of, with little stack and in the middle of a request.
    #[test]
    fn a_thread_of_ours_blocks_all_signals_and_its_starter_does_not() {
        let before = SigSet::thread_get_mask().unwrap();
        let (to, from) = std::sync::mpsc::channel();
        let thread = spawn("blkm-test".into(), move || to.send(SigSet::thread_get_mask().unwrap()).unwrap());
        let inside = from.recv().unwrap();
        thread.unwrap().join().unwrap();
        for signal in nix::sys::signal::Signal::iterator() {
            let cannot_be = matches!(signal, nix::sys::signal::SIGKILL | nix::sys::signal::SIGSTOP);
            assert!(inside.contains(signal) || cannot_be, "{signal}");
        }
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
