//! What the kernel offers, by name, with the reason when something is off.
//!
//! Nothing is guessed from the version: a ring is set up as a worker would do it, and its answer is reported.
#![forbid(unsafe_code)]

use super::uring::{Setup, UringOptions, with_ring};
use crate::error::Result;

/// One thing that a kernel can have.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Its name in the kernel's documentation.
    pub name: &'static str,
    /// The kernel version that brought it.
    pub since: &'static str,
    /// Whether it is here and in use.
    pub available: bool,
    /// What it is good for.
    pub effect: &'static str,
    /// Why it is off; empty when it is on.
    pub why: String,
}

/// What the kernel offers to blkmirror.
#[derive(Clone, Debug)]
pub struct KernelSupport {
    /// `uname -r`.
    pub release: String,
    /// The flags that a worker's ring gets, in words.
    pub ring_flags: &'static str,
    /// Everything that was asked for.
    pub items: Vec<Feature>,
}

/// The kernel's release, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Sets up a small ring as a worker would, and reports what it got.
///
/// # Errors
/// When io_uring is missing, forbidden or older than Linux 5.15; the text says which and what to do.
pub fn probe() -> Result<KernelSupport> {
    let memory_bytes = crate::buffer::DEFAULT_WINDOW_BYTES;
    let (setup, huge) =
        with_ring(UringOptions::new(memory_bytes), |ring| (ring.setup().clone(), ring.huge_bytes()))?;
    let huge_why = match huge {
        Some(bytes) if bytes >= memory_bytes => String::new(),
        Some(bytes) => format!(
            "only {bytes} of {memory_bytes} bytes are on huge pages; see /sys/kernel/mm/transparent_hugepage/enabled"
        ),
        None => "/proc/self/smaps cannot be read".to_owned(),
    };
    Ok(KernelSupport { release: kernel_release(), ring_flags: setup.flags, items: items(&setup, huge_why) })
}

/// The report, best first.
fn items(setup: &Setup, huge_why: String) -> Vec<Feature> {
    let old =
        |on: bool| if on { String::new() } else { format!("kernel {} does not have it", kernel_release()) };
    let feature =
        |name, since, available, effect, why: String| Feature { name, since, available, effect, why };
    vec![
        feature(
            "SINGLE_ISSUER + DEFER_TASKRUN",
            "6.1",
            setup.deferred,
            "completions are batched on the worker's own thread",
            old(setup.deferred),
        ),
        feature(
            "NO_SQARRAY",
            "6.6",
            setup.no_sq_array,
            "one indirection less per request",
            old(setup.no_sq_array),
        ),
        feature(
            "registered ring",
            "5.18",
            setup.ring_fd,
            "no descriptor look-up per system call",
            old(setup.ring_fd),
        ),
        feature(
            "registered memory",
            "5.1",
            setup.fixed_buffer,
            "no page look-up per request",
            setup.buffer_refused.clone().unwrap_or_default(),
        ),
        feature(
            "huge pages",
            "2.6.38",
            huge_why.is_empty(),
            "1 MiB is one segment, so requests are not split",
            huge_why,
        ),
        feature(
            "MIN_TIMEOUT",
            "6.12",
            setup.min_wait,
            "small completions are collected in batches",
            old(setup.min_wait),
        ),
        feature(
            "NO_IOWAIT",
            "6.15",
            setup.no_iowait,
            "a waiting worker does not show up as iowait",
            old(setup.no_iowait),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_off_says_why() {
        let support = probe().expect("the tests need io_uring");
        assert!(!support.release.is_empty());
        for item in &support.items {
            assert_eq!(item.available, item.why.is_empty(), "{item:?}");
        }
    }
}
