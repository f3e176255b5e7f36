//! Which cores this process may run on, and pinning to one of them.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of the process's set, in order; core 0 where the kernel does not say.
pub(super) fn allowed() -> Vec<usize> {
    let cores: Vec<usize> = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    };
    if cores.is_empty() { vec![0] } else { cores }
}

/// Pins the calling thread to the `index`-th allowed core, counted round. A refusal leaves it unpinned, which is slower
/// and not wrong.
pub(super) fn pin(index: usize) {
    let cores = allowed();
    if let Some(&cpu) = cores.get(index % cores.len()) {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = sched_setaffinity(None, &set);
    }
}
