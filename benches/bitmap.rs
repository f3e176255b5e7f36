//! Criterion benchmarks of the bitmap.
#![forbid(unsafe_code)]
fn main() {}
