//! Threads of the library, on which no handler of the host's ever runs.
//!
//! A new thread has the signal mask of the one that starts it. So all signals are blocked there for that moment: a thread that blocked
//! them itself, a moment later, could be chosen for a signal in between. `SIGKILL` and `SIGSTOP` cannot be blocked, and a fault of
//! the thread's own (`SIGSEGV`, `SIGBUS`) that is blocked ends the process, see `sigprocmask(2)`.
#![forbid(unsafe_code)]

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

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
