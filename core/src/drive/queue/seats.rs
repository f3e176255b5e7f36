//! The devices that a queue has on its ring: the drive's own, and the target of the job that follows it.
//!
//! A seat is left when nothing sends to it any more: after a pivot or the end of a job, once the last part with a request
//! for it has ended. A target that never answers keeps its seat, and with it stays open and locked, so that no later job
//! can meet a late write.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::drive::follower::Follower;
use crate::error::Result;
use crate::ring::{DeviceSlot, Ring};

/// Seats at most: the drive, a target, and those that stay behind with requests that do not come back.
const SEATS: usize = 8;

/// A device on the ring.
#[derive(Debug)]
pub(super) struct Seat<D> {
    /// The device.
    device: Arc<D>,
    /// The job whose target it is.
    pub(super) follower: Option<Arc<Follower<D>>>,
    /// Where the ring has it.
    pub(super) slot: DeviceSlot,
    /// Parts that have not ended.
    users: usize,
    /// New parts come here.
    current: bool,
    /// Its job is ending, and what waited for the target was given up.
    pub(super) given_up: bool,
}

/// All seats.
#[derive(Debug)]
pub(super) struct Seats<D> {
    /// The seats; `None` is free.
    seats: Box<[Option<Seat<D>>]>,
    /// The drive's seat.
    pub(super) home: Option<usize>,
    /// The target's seat.
    pub(super) target: Option<usize>,
    /// There may be a seat that nobody needs.
    untidy: bool,
}

impl<D: Send + Sync + std::fmt::Debug + 'static> Seats<D> {
    /// No seats yet.
    pub(super) fn new() -> Self {
        Self { seats: (0..SEATS).map(|_| None).collect(), home: None, target: None, untidy: false }
    }

    /// The seat of that number.
    pub(super) fn get(&self, seat: usize) -> Option<&Seat<D>> {
        self.seats.get(seat)?.as_ref()
    }

    /// All that are taken.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Seat<D>)> {
        self.seats.iter_mut().enumerate().filter_map(|(number, seat)| Some((number, seat.as_mut()?)))
    }

    /// A part begins to use a seat.
    pub(super) fn enter(&mut self, seat: usize) {
        if let Some(Some(seat)) = self.seats.get_mut(seat) {
            seat.users += 1;
        }
    }

    /// A part has ended.
    pub(super) fn leave(&mut self, seat: usize) {
        if let Some(Some(seat)) = self.seats.get_mut(seat) {
            seat.users -= 1;
            self.untidy |= seat.users == 0 && !seat.current;
        }
    }

    /// Sits on what the drive stands on and what follows it now.
    ///
    /// # Errors
    /// When the ring takes no more devices. Without a seat for the target, writes go to the drive alone.
    pub(super) fn follow<R: Ring<Device = D>>(
        &mut self,
        ring: &mut R,
        device: &Arc<D>,
        follower: Option<Arc<Follower<D>>>,
    ) -> Result<()> {
        let old = [self.home.take(), self.target.take()];
        let same = |seat: &Seat<D>| match (&seat.follower, &follower) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        self.target = old[1].filter(|&seat| self.get(seat).is_some_and(same));
        self.home = old[0].filter(|&seat| self.get(seat).is_some_and(|s| Arc::ptr_eq(&s.device, device)));
        for seat in old.into_iter().flatten() {
            let stays = self.home == Some(seat) || self.target == Some(seat);
            if let (false, Some(Some(left))) = (stays, self.seats.get_mut(seat)) {
                left.current = false;
                self.untidy = true;
            }
        }
        self.tidy(ring);
        if self.home.is_none() {
            self.home = Some(self.take(ring, device, None)?);
        }
        if let (None, Some(follower)) = (self.target, follower) {
            let target = Arc::clone(&follower.target);
            self.target = self.take(ring, &target, Some(follower)).ok();
        }
        Ok(())
    }

    /// Takes a seat.
    fn take<R: Ring<Device = D>>(
        &mut self,
        ring: &mut R,
        device: &Arc<D>,
        follower: Option<Arc<Follower<D>>>,
    ) -> Result<usize> {
        let free = self.seats.iter().position(Option::is_none).ok_or_else(|| {
            crate::Error::new(crate::ErrorKind::QueueFull, "use another device on a queue").because(
                "too many devices have requests of this queue that do not come back; make a new queue",
            )
        })?;
        let slot = ring.attach(device)?;
        let device = Arc::clone(device);
        let seat = Seat { device, follower, slot, users: 0, current: true, given_up: false };
        self.seats[free] = Some(seat);
        Ok(free)
    }

    /// Gives up the seats that nobody needs.
    pub(super) fn tidy<R: Ring<Device = D>>(&mut self, ring: &mut R) {
        if !std::mem::take(&mut self.untidy) {
            return;
        }
        for place in &mut self.seats {
            if let Some(seat) = place.take_if(|seat| !seat.current && seat.users == 0) {
                ring.detach(seat.slot);
            }
        }
    }
}
