//! What a read or write looks like to the kernel.
//!
//! Requests on the copy memory use it as the registered buffer where there is one. The host's memory is used as it lies: one
//! segment with READ and WRITE, or as a registered buffer of the host's if it lies in one, several with READV and WRITEV. What the
//! kernel does not take at once, more segments than `IOV_MAX` or more bytes than `MAX_RW_COUNT`, is cut off and becomes a short
//! transfer, which its author resumes.
#![forbid(unsafe_code)]

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use crate::buffer::HostMemory;

/// Segments that the kernel takes at once (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;
/// Bytes that the kernel transfers at once: the whole pages below 2 GiB.
const MAX_BYTES: usize = 0x7fff_f000;

/// Which way the data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// From the device.
    Read,
    /// To the device; `through` says that it is durable at the completion.
    Write {
        /// Through the device's cache.
        through: bool,
    },
}

impl Way {
    /// The flags of `pwritev2(2)` for it. FUA is asked for per request, so that other writes keep the cache.
    const fn flags(self) -> i32 {
        match self {
            Self::Write { through: true } => libc::RWF_DSYNC,
            Self::Read | Self::Write { through: false } => 0,
        }
    }
}

/// Where the copy memory is in the kernel's table of buffers; the host's come after it.
const COPY_SLOT: u16 = 0;

/// Where a buffer of the host's is in the kernel's table.
pub(super) const fn slot_of(index: u16) -> u16 {
    COPY_SLOT + 1 + index
}

/// A request on bytes of the copy memory, which is registered as buffer 0 if `fixed`.
pub(super) fn on_copy_memory(
    (device, at): (Fixed, u64),
    way: Way,
    (ptr, len): (*mut u8, u32),
    fixed: bool,
) -> squeue::Entry {
    on_one_segment((device, at), way, (ptr, len), fixed.then_some(COPY_SLOT))
}

/// A request on the host's memory.
pub(super) fn on_host_memory(place: (Fixed, u64), way: Way, memory: HostMemory) -> squeue::Entry {
    let (device, at) = place;
    let Some((iovecs, count)) = memory.iovecs() else {
        let segment = memory.segment(0);
        let len = u32::try_from(segment.len.min(MAX_BYTES)).unwrap_or(0);
        return on_one_segment(place, way, (segment.ptr, len), memory.buffer_index().map(slot_of));
    };
    let count = u32::try_from(count.min(MAX_SEGMENTS)).unwrap_or(0);
    match way {
        Way::Read => opcode::Readv::new(device, iovecs, count).offset(at).build(),
        Way::Write { .. } => {
            opcode::Writev::new(device, iovecs, count).offset(at).rw_flags(way.flags()).build()
        }
    }
}

/// A request on contiguous memory, which is registered if it has a slot.
fn on_one_segment(
    (device, at): (Fixed, u64),
    way: Way,
    (ptr, len): (*mut u8, u32),
    slot: Option<u16>,
) -> squeue::Entry {
    match (way, slot) {
        (Way::Read, Some(slot)) => opcode::ReadFixed::new(device, ptr, len, slot).offset(at).build(),
        (Way::Write { .. }, Some(slot)) => {
            opcode::WriteFixed::new(device, ptr, len, slot).offset(at).rw_flags(way.flags()).build()
        }
        (Way::Read, None) => opcode::Read::new(device, ptr, len).offset(at).build(),
        (Way::Write { .. }, None) => {
            opcode::Write::new(device, ptr, len).offset(at).rw_flags(way.flags()).build()
        }
    }
}
