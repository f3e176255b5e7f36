//! What the models share.
#![forbid(unsafe_code)]

use blkmirror_core::units::ChunkRange;

/// Checks `model` in every interleaving, or with at most `preemptions` forced switches where that would take too long.
pub(crate) fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 100_000;
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&runs);
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{} interleavings", runs.load(std::sync::atomic::Ordering::Relaxed));
}

/// Short for a range of chunks.
pub(crate) fn chunks(start: u64, end: u64) -> ChunkRange {
    ChunkRange::new(start, end)
}
