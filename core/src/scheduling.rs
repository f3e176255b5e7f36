//! The calling thread's place among the others that want its core (`sched(7)`).
//!
//! The system calls that no safe wrapper of the crates used here offers, hence the module of its own.
#![allow(unsafe_code)]

use std::thread;

/// Lets the calling thread run only where nobody else wants to (`SCHED_IDLE`), or as any thread again (`SCHED_OTHER`);
/// whether that worked.
pub(crate) fn stand_back(back: bool) -> bool {
    let policy = if back { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameter during the call and keeps nothing of it; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const param) == 0 }
}

/// Whether the calling thread may stand back and come forward again.
///
/// Coming forward takes `CAP_SYS_NICE` or an `RLIMIT_NICE` of 20 (`sched(7)`, since Linux 2.6.39), which is tried out on a thread
/// that ends. A thread that its host gave another policy is left alone.
pub(crate) fn may_stand_back() -> bool {
    is_like_any_other()
        && thread::Builder::new()
            .spawn(|| stand_back(true) && stand_back(false))
            .is_ok_and(|probe| probe.join().unwrap_or(false))
}

/// Whether the calling thread is scheduled as threads are unless somebody says otherwise.
fn is_like_any_other() -> bool {
    // SAFETY: a call without memory; 0 is the calling thread.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stood_back_is_like_any_other_again() {
        thread::spawn(|| {
            if may_stand_back() {
                assert!(stand_back(true) && !is_like_any_other());
                assert!(!may_stand_back(), "this is not the default, so it is somebody's choice");
                assert!(stand_back(false));
            }
            assert!(is_like_any_other());
        })
        .join()
        .unwrap();
    }
}
