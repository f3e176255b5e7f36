//! The mirror logic, pure.
