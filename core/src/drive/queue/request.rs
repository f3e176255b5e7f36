//! A guest request, and the fixed table that holds all of a queue.
#![forbid(unsafe_code)]

use super::memory::{HostBuffers, Uses};
use super::options::{WriteFlags, ZeroFlags};
use super::part::{Data, Part, Work};
use super::phase::Phase;
use crate::buffer::{BufRange, GuestBuffer};
use crate::drive::gate::Pass;
use crate::mirror::{ActiveWrite, Side};
use crate::ring::Tag;
use crate::units::ByteRange;

/// What the guest wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// Read a range.
    Read,
    /// Write a range.
    Write(WriteFlags),
    /// Make a range read as zeroes.
    WriteZeroes(ZeroFlags),
    /// A range is not needed any more.
    Discard,
    /// Make what was written durable.
    Flush,
}

impl Wish {
    /// Whether it may change the drive, so that its range must be marked at its end.
    pub(super) const fn changes(self) -> bool {
        matches!(self, Self::Write(_) | Self::WriteZeroes(_) | Self::Discard)
    }

    /// Whether it comes with a buffer.
    pub(super) const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write(_))
    }

    /// Whether the host keeps its data still by a promise for this request alone.
    pub(super) const fn is_stable(self) -> bool {
        matches!(self, Self::Write(WriteFlags { stable: true, .. }))
    }

    /// Whether it fails rather than write zeroes as data.
    pub(super) const fn only_if_quick(self) -> bool {
        matches!(self, Self::WriteZeroes(ZeroFlags { no_fallback: true, .. }))
    }

    /// What it attempts, for errors.
    pub(super) const fn attempt(self) -> &'static str {
        match self {
            Self::Read => "read from the drive",
            Self::Write(_) => "write to the drive",
            Self::WriteZeroes(_) => "write zeroes to the drive",
            Self::Discard => "discard on the drive",
            Self::Flush => "flush the drive",
        }
    }

    /// What its source part does.
    pub(super) const fn on_source(self) -> Work {
        match self {
            Self::Read => Work::Read,
            Self::Write(WriteFlags { fua, .. }) => Work::Write { fua },
            Self::WriteZeroes(ZeroFlags { punch, fua, no_fallback }) => {
                Work::Zero { punch, fua, fallback: !no_fallback }
            }
            Self::Discard => Work::Discard,
            Self::Flush => Work::Flush,
        }
    }

    /// What its target part does; `None`: it never has one. `may_punch`: zeroes may give the target's space back.
    ///
    /// The target is flushed before it is relied on, so nothing is made durable there by itself. A discard goes to the
    /// drive alone: each side may ignore it, and then they would differ; its chunks are copied as what they read afterwards.
    pub(super) const fn on_target(self, may_punch: bool) -> Option<Work> {
        match self {
            Self::Write(_) => Some(Work::Write { fua: false }),
            Self::WriteZeroes(ZeroFlags { punch, .. }) => {
                Some(Work::Zero { punch: punch && may_punch, fua: false, fallback: true })
            }
            Self::Read | Self::Discard | Self::Flush => None,
        }
    }
}

/// A guest request.
#[derive(Debug)]
pub(super) struct Request {
    /// What the guest wants.
    pub(super) wish: Wish,
    /// Where.
    pub(super) range: ByteRange,
    /// What the host calls it.
    pub(super) tag: u64,
    /// The host's buffer; goes back with the completion.
    pub(super) buffer: Option<GuestBuffer>,
    /// The registered regions that it uses.
    pub(super) uses: Uses,
    /// The registered buffer that it is sent through.
    through: Option<u16>,
    /// When it was accepted.
    pub(super) accepted_ns: u64,
    /// Where it stands.
    pub(super) phase: Phase,
    /// Its pass through the gate, while it is inside.
    pub(super) pass: Option<Pass>,
    /// What goes to the drive.
    pub(super) source: Option<Part>,
    /// What goes to the target.
    pub(super) target: Option<Part>,
    /// The right to write to the target, until the request is settled.
    pub(super) active: Option<ActiveWrite>,
    /// The seat of the job that `active` belongs to, kept until the request is settled.
    pub(super) job_seat: Option<usize>,
    /// The stable copy of its data.
    pub(super) staging: Option<BufRange>,
    /// Its range was marked when it was sent already; only the mutation `MarkBefore` does that.
    pub(super) marked: bool,
}

impl Request {
    /// A request that was just accepted.
    pub(super) fn new(
        wish: Wish,
        range: ByteRange,
        buffer: Option<GuestBuffer>,
        tag: u64,
        now_ns: u64,
    ) -> Self {
        Self {
            wish,
            range,
            tag,
            buffer,
            uses: Uses::default(),
            through: None,
            accepted_ns: now_ns,
            phase: Phase::Queued,
            pass: None,
            source: None,
            target: None,
            active: None,
            job_seat: None,
            staging: None,
            marked: false,
        }
    }

    /// The part on one side.
    pub(super) fn part(&mut self, side: Side) -> Option<&mut Part> {
        match side {
            Side::Source => self.source.as_mut(),
            Side::Target => self.target.as_mut(),
        }
    }

    /// How a side ended; "cancelled" if it did not.
    pub(super) fn result(&self, side: Side) -> Result<(), i32> {
        let part = match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        };
        part.as_ref().and_then(|part| part.result).unwrap_or(Err(libc::ECANCELED))
    }

    /// Finds the registered buffer to send it through.
    #[inline]
    pub(super) fn find_buffer(&mut self, memory: &HostBuffers) {
        let buffer = self.buffer.as_ref();
        self.through = buffer.and_then(|buffer| memory.buffer(buffer.memory(), self.uses));
    }

    /// Where the host's data lies.
    #[inline]
    pub(super) fn host_data(&self) -> Data {
        self.buffer.as_ref().map_or(Data::None, |buffer| Data::Host(buffer.memory().in_buffer(self.through)))
    }

    /// Whether the kernel may be using the host's memory.
    #[inline]
    pub(super) fn lends_host_memory(&self) -> bool {
        [&self.source, &self.target].into_iter().flatten().any(|part| part.in_ring && part.uses_host_memory())
    }
}

/// Which part of which request a ring request belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PartId {
    /// The request's place in the table.
    pub(super) index: u32,
    /// Which part.
    pub(super) side: Side,
}

impl PartId {
    /// As a tag for the ring.
    pub(super) fn tag(self) -> Tag {
        Tag(u64::from(self.index) << 1 | u64::from(self.side == Side::Target))
    }

    /// From the ring's tag.
    pub(super) fn of(tag: Tag) -> Self {
        let side = if tag.0 & 1 == 1 { Side::Target } else { Side::Source };
        Self { index: u32::try_from(tag.0 >> 1).unwrap_or(u32::MAX), side }
    }
}

/// All requests of a queue. Nothing is allocated after it was made.
#[derive(Debug)]
pub(super) struct Table {
    /// The requests.
    places: Box<[Option<Request>]>,
    /// Places that are free.
    free: Vec<u32>,
}

impl Table {
    /// A table for `capacity` requests.
    pub(super) fn new(capacity: usize) -> Self {
        let last = u32::try_from(capacity).unwrap_or(u32::MAX);
        Self { places: (0..last).map(|_| None).collect(), free: (0..last).rev().collect() }
    }

    /// Enters a request; it comes back when the table is full.
    #[inline]
    pub(super) fn insert(&mut self, request: Request) -> Result<u32, Box<Request>> {
        match self.free.pop() {
            Some(index) => {
                self.places[index as usize] = Some(request);
                Ok(index)
            }
            None => Err(Box::new(request)),
        }
    }

    /// The request at a place.
    pub(super) fn get(&mut self, index: u32) -> Option<&mut Request> {
        self.places.get_mut(index as usize)?.as_mut()
    }

    /// Ends a request where it stands, for it is large to move; whether there was one.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let Some(place @ Some(_)) = self.places.get_mut(index as usize) else { return false };
        *place = None;
        self.free.push(index);
        true
    }

    /// Whether there is no request.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// How many places there are.
    pub(super) fn places(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_handed_out_again_only_after_it_was_given_back() {
        let request = || Request::new(Wish::Flush, ByteRange::default(), None, 7, 1);
        let mut table = Table::new(2);
        let (a, b) = (table.insert(request()).unwrap(), table.insert(request()).unwrap());
        assert!(a != b && table.insert(request()).is_err());
        assert!(table.remove(a) && !table.remove(a));
        assert_eq!(table.insert(request()).unwrap(), a);
        assert!(table.get(9).is_none() && !table.remove(9));
    }

    #[test]
    fn a_tag_leads_back_to_its_part() {
        for index in [0, 1, 4095, u32::MAX] {
            for side in [Side::Source, Side::Target] {
                let id = PartId { index, side };
                assert_eq!(PartId::of(id.tag()), id);
            }
        }
    }

    #[test]
    fn what_may_change_the_drive_is_known() {
        let zero = Wish::WriteZeroes(ZeroFlags::default());
        let changing = [Wish::Write(WriteFlags::default()), zero, Wish::Discard];
        assert!(changing.iter().all(|w| w.changes()));
        assert!(!Wish::Read.changes() && !Wish::Flush.changes());
    }
}
