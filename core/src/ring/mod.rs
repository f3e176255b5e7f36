//! The ring: requests in, completions out.
