//! The `blkmirror` command.
#![forbid(unsafe_code)]

fn main() {}
