//! Memory that O_DIRECT takes, without unsafe code.
#![forbid(unsafe_code)]

/// What every device accepts as the alignment of memory, offsets and lengths: the largest logical block there is.
pub(crate) const ALIGN_BYTES: usize = 4096;

/// Zeroed memory whose start is aligned.
pub(crate) struct Aligned {
    /// More than is needed, to find an aligned start in it.
    memory: Vec<u8>,
    /// The aligned start.
    start: usize,
    /// Bytes from there.
    len: usize,
}

impl Aligned {
    /// `len` zeroed bytes.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN_BYTES];
        // `align_offset` may in theory give up; then the vector's own start has to do.
        let start =
            Some(memory.as_ptr().align_offset(ALIGN_BYTES)).filter(|at| *at < ALIGN_BYTES).unwrap_or(0);
        Self { memory, start, len }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }

    /// The bytes, to be written to.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel refuses anything else with EINVAL.
    #[test]
    fn the_start_is_aligned_and_the_length_is_as_asked() {
        let mut memory = Aligned::new(12345);
        assert_eq!(memory.bytes().as_ptr().align_offset(ALIGN_BYTES), 0);
        assert_eq!(memory.bytes_mut().len(), 12345);
    }
}
