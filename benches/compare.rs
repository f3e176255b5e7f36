//! The comparison with the peers.
#![forbid(unsafe_code)]
fn main() {}
