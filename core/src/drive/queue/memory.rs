//! The drive's memory regions on a queue's ring: which requests use them, and which of those go through a registered buffer.
//!
//! A queue looks at the drive's list when the generation has changed, at the latest before it sends. What is new it registers, what
//! is gone it takes off; both on its own thread, for the ring is that thread's. Registering pins every page, which takes the kernel
//! some tens of milliseconds for a GiB of small pages; so a host maps its guest's memory before the first request.
//!
//! What the kernel refuses (the limit on locked memory, an old kernel) goes unregistered, and is not tried again until its region
//! is mapped anew; requests there work as before and look their pages up.
//!
//! `drive/in_use.rs` says why no request is sent through the buffer of memory that was unmapped.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::buffer::HostMemory;
use crate::drive::core::DriveCore;
use crate::drive::in_use::{InUse, MAX_REGIONS, RegionSet};
use crate::drive::memory::{Mapped, Regions};
use crate::ring::Ring;

/// How much of the drive's mapped memory is registered with a queue's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RegisteredMemory {
    /// Bytes that are registered.
    pub bytes: u64,
    /// Bytes that the kernel refused. Requests there work all the same and cost a little more.
    pub refused_bytes: u64,
    /// The errno of the last refusal. `ENOMEM`: the limit on locked memory is too low (`ulimit -l`), for each queue locks all of
    /// it; `EOPNOTSUPP`: this kernel has no place for registered memory.
    pub refused_errno: Option<i32>,
    /// Requests to a device so far that went through registered memory.
    pub requests: u64,
}

/// What a request uses, from when it was accepted until it is answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    /// The regions.
    regions: RegionSet,
    /// The list that they were looked up in.
    serial: u64,
    /// Where in it.
    at: usize,
}

/// A region on the ring.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Which one it is.
    region: Mapped,
    /// How many of its pieces are registered, from the first on.
    pieces: usize,
    /// Bytes of those.
    bytes: u64,
}

impl Known {
    /// Bytes that the kernel refused.
    fn refused_bytes(&self) -> u64 {
        crate::units::bytes_u64(self.region.region.len()) - self.bytes
    }
}

/// The memory regions as a queue sees them.
#[derive(Debug)]
pub(super) struct HostBuffers {
    /// What this queue's requests use.
    in_use: Arc<InUse>,
    /// The drive's list as it was when it was looked at.
    regions: Arc<Regions>,
    /// The drive's generation then.
    seen: u64,
    /// The list that the ring follows.
    on_ring: u64,
    /// The regions on the ring, by place; no places for a queue that takes none up.
    known: Box<[Option<Known>]>,
    /// The errno of the last refusal.
    refused: Option<i32>,
}

impl HostBuffers {
    /// Nothing on the ring yet, and nothing ever unless it `takes_regions`. What its requests use is counted either way.
    pub(super) fn new<D>(drive: &DriveCore<D>, takes_regions: bool) -> Self {
        let in_use = drive.memory().add_queue();
        // Generations are counted up from 0, so this is none that was seen.
        Self {
            in_use,
            regions: Arc::default(),
            seen: u64::MAX,
            on_ring: 0,
            known: vec![None; if takes_regions { MAX_REGIONS } else { 0 }].into(),
            refused: None,
        }
    }

    /// Looks at the drive's list, if it may have changed.
    #[inline]
    pub(super) fn look<D>(&mut self, drive: &DriveCore<D>) {
        let generation = drive.generation();
        if self.seen != generation {
            self.regions = drive.memory().regions();
            self.seen = generation;
        }
    }

    /// A request with this memory was accepted.
    #[inline]
    pub(super) fn begin(&mut self, memory: HostMemory) -> Uses {
        let (regions, at) = self.regions.touched(memory);
        self.in_use.begin(regions);
        Uses { regions, serial: self.regions.serial, at }
    }

    /// Stands between [`begin`](Self::begin) of requests and the look that decides how they are sent.
    #[inline]
    pub(super) fn settle(&self) {
        self.in_use.settle();
    }

    /// The buffer to send a request through, as of the last look, which came after `settle`.
    #[inline]
    pub(super) fn buffer(&self, memory: HostMemory, uses: Uses) -> Option<u16> {
        if uses.regions.is_empty() {
            return None;
        }
        let piece = self.regions.piece(memory, uses.serial, uses.at)?;
        let known = self.known.get(usize::from(piece.place))?.as_ref()?;
        (usize::from(piece.number) < known.pieces).then_some(piece.buffer)
    }

    /// The kernel is done with a request's memory.
    #[inline]
    pub(super) fn end(&self, uses: &mut Uses) {
        self.in_use.end(std::mem::take(&mut uses.regions));
    }

    /// The ring has ended and let go of everything.
    pub(super) fn over(&self) {
        self.in_use.clear();
    }

    /// Whether the ring does not follow the list yet.
    #[inline]
    pub(super) fn is_behind(&self) -> bool {
        self.on_ring != self.regions.serial
    }

    /// Has the ring follow the list that was looked at.
    #[cold]
    pub(super) fn follow<R: Ring>(&mut self, ring: &mut R) {
        self.on_ring = self.regions.serial;
        // What is gone first: its buffers may be what is new has been given.
        for place in &mut self.known {
            if let Some(gone) = place.take_if(|known| !self.regions.has(&known.region)) {
                gone.region.pieces().take(gone.pieces).for_each(|(buffer, _)| ring.unregister_memory(buffer));
            }
        }
        let regions = Arc::clone(&self.regions);
        for region in regions.iter() {
            if let Some(place @ None) = self.known.get_mut(usize::from(region.place)) {
                let (known, refused) = register(ring, *region);
                *place = Some(known);
                self.refused = refused.or(self.refused);
            }
        }
    }

    /// What is registered.
    pub(super) fn report(&self, requests: u64) -> RegisteredMemory {
        let known = self.known.iter().flatten();
        RegisteredMemory {
            bytes: known.clone().map(|known| known.bytes).sum(),
            refused_bytes: known.map(Known::refused_bytes).sum(),
            refused_errno: self.refused,
            requests,
        }
    }
}

/// Registers the pieces of a region, up to the first that is refused: the next would be for the same reason, after its pages were
/// pinned in vain.
fn register<R: Ring>(ring: &mut R, region: Mapped) -> (Known, Option<i32>) {
    let mut known = Known { region, pieces: 0, bytes: 0 };
    for (buffer, piece) in region.pieces() {
        let done = if ring.host_buffers() == 0 {
            Err(libc::EOPNOTSUPP)
        } else {
            ring.register_memory(buffer, piece)
        };
        if let Err(errno) = done {
            return (known, Some(errno));
        }
        known.pieces += 1;
        known.bytes += crate::units::bytes_u64(piece.len());
    }
    (known, None)
}
