//! Memory for O_DIRECT.
//!
//! [`AlignedBuf`] is one buffer with a device's alignment, for whoever reads or writes a device by hand. [`Region`] is a
//! worker's copy memory: one mapping on huge pages where the kernel gives them, registered once with the ring, so that
//! a 1 MiB request is one segment for the device and never exceeds its segment limit. [`Window`] hands the region out
//! as byte ranges: many small runs fit in it as well as sixteen of 1 MiB, which is what keeps hundreds of 64 KiB requests
//! in flight where a fixed set of sixteen slots would stall. [`HostMemory`] and [`GuestBuffer`] are memory that is not ours:
//! the data of a guest's request. [`HostRegion`] is what such memory is
//! cut from: a guest's RAM, registered once.

mod aligned;
mod host;
mod host_region;
mod region;
mod window;

pub use aligned::AlignedBuf;
pub use host::{GuestBuffer, HostMemory};
pub use host_region::HostRegion;
pub use region::Region;
pub use window::{BufRange, Window};

/// A worker's copy memory unless the host says otherwise: 16 x 1 MiB.
pub const DEFAULT_WINDOW_BYTES: u64 = 16 << 20;

/// Whether every byte is zero.
///
/// Written over fixed lanes without an early exit inside a block, so that the compiler turns it into vector code on every
/// target; blocks are left at the first byte that is not zero, so data costs next to nothing.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    const BLOCK: usize = 256;
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    blocks.iter().all(|block| block.iter().fold(0, |acc, byte| acc | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0u8; 1000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..1000 {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
