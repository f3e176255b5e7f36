//! Aligned memory and the window.
