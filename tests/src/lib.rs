//! What the end-to-end tests share: running the command and reading its answer.
#![forbid(unsafe_code)]
