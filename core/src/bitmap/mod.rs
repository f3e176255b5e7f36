//! Dirty bits and in-flight claims.
