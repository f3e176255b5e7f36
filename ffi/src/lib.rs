//! The C ABI of blkmirror. It has no entry points yet.
#![forbid(unsafe_code)]
