//! A disk, a guest and a copier in virtual time, for the pacer's tests.
//!
//! The disk serves one request after the other: an overhead plus the bytes at its rate, with some noise. The guest sends
//! 4 KiB requests at random times (open loop), whatever became of the ones before. The copier keeps as much on its way as
//! the pace allows; each piece is read from the guest's disk and then written to the target, which is a disk like it or,
//! on a machine where everything shares the same cores, the very same server.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::ladder::Rung;
use super::{GuestLatency, Pace, Pacer, Tick};
use crate::mirror::Rest;
use crate::mirror::estimate::{to_f64, to_u64};

/// A millisecond.
pub(super) const MS: u64 = 1_000_000;
/// What a copier keeps on its way at full speed.
const FULL_BYTES: u64 = 16 << 20;
/// The largest request it makes by itself.
const LARGEST_BYTES: u64 = 1 << 20;

/// What a disk is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) name: &'static str,
    /// Time of a request without any byte.
    pub(super) overhead_ns: u64,
    pub(super) bytes_per_s: u64,
    /// Mean of what a guest's request takes besides, as waking somebody up.
    pub(super) jitter_ns: u64,
    /// Everything stalls now and then: mean time between, mean length; 0 = never.
    pub(super) stalls_ns: (u64, u64),
    /// Whether the target is the same server.
    pub(super) shared: bool,
    /// A load that suits the disk, in requests per second.
    pub(super) load: u64,
}

/// Who decides the pace.
#[derive(Debug)]
pub(super) enum Control {
    Paced(Box<Pacer>),
    /// Always the same; `None` = hold still.
    Fixed(Option<Rung>),
}

/// What happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The guest sends a request.
    Guest,
    /// A piece of so many bytes was read.
    Read(u64),
    /// A piece was written.
    Written(u64),
    /// The copier has rested.
    Rested,
    /// The pacer's turn.
    Tick,
    /// Somebody else takes the machine for a while.
    Stall,
}

/// The whole scene.
#[derive(Debug)]
pub(super) struct Model {
    disk: Disk,
    control: Control,
    tick_ns: u64,
    now_ns: u64,
    random: u64,
    /// Requests per second of the guest.
    load: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// When the source and the target are free again.
    free_ns: [u64; 2],
    /// Guest requests on their way: end, latency.
    pending: VecDeque<(u64, u64)>,
    pace: Pace,
    in_flight_bytes: u64,
    rest: Rest,
    /// Ended guest requests: end, latency.
    pub(super) log: Vec<(u64, u64)>,
    /// Ended copies: end, bytes.
    pub(super) copied: Vec<(u64, u64)>,
    /// What the pacer said: time, pace.
    pub(super) paces: Vec<(u64, Pace)>,
}

impl Model {
    pub(super) fn new(disk: Disk, control: Control, seed: u64, tick_ms: u64) -> Self {
        let mut model = Self {
            disk,
            control,
            tick_ns: tick_ms * MS,
            now_ns: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1,
            load: 0,
            events: BinaryHeap::new(),
            free_ns: [0; 2],
            pending: VecDeque::new(),
            pace: Pace::HOLD,
            in_flight_bytes: 0,
            rest: Rest::default(),
            log: Vec::new(),
            copied: Vec::new(),
            paces: Vec::new(),
        };
        model.at(0, Event::Tick);
        if disk.stalls_ns.0 > 0 {
            model.at(0, Event::Stall);
        }
        model
    }

    /// Runs for `ms` with so many guest requests per second.
    pub(super) fn run(&mut self, ms: u64, load: u64) {
        if self.load == 0 && load > 0 {
            self.at(1, Event::Guest);
        }
        self.load = load;
        let end_ns = self.now_ns + ms * MS;
        while let Some(&Reverse((at_ns, event))) = self.events.peek().filter(|e| e.0.0 < end_ns) {
            self.events.pop();
            self.now_ns = at_ns;
            self.happen(event);
        }
        self.now_ns = end_ns;
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ns / MS
    }

    /// p99 of the guest's requests that ended between two times in ms.
    pub(super) fn p99(&self, from_ms: u64, to_ms: u64) -> u64 {
        let window = from_ms * MS..to_ms * MS;
        let mut all: Vec<u64> = self.log.iter().filter(|l| window.contains(&l.0)).map(|l| l.1).collect();
        all.sort_unstable();
        if all.is_empty() { 0 } else { all[(all.len() - 1) * 99 / 100] }
    }

    /// Bytes copied per second between two times in ms.
    pub(super) fn rate(&self, from_ms: u64, to_ms: u64) -> u64 {
        let window = from_ms * MS..to_ms * MS;
        let bytes: u64 = self.copied.iter().filter(|c| window.contains(&c.0)).map(|c| c.1).sum();
        bytes * 1000 / (to_ms - from_ms)
    }

    fn at(&mut self, after_ns: u64, event: Event) {
        self.events.push(Reverse((self.now_ns + after_ns, event)));
    }

    /// A random number of mean 1 that is mostly small and sometimes large.
    fn exponential(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        -((to_f64((z ^ (z >> 31)) >> 12) + 0.5) / to_f64(1 << 52)).ln()
    }

    /// Queues a request at a server; when it ends.
    fn serve(&mut self, server: usize, bytes: u64) -> u64 {
        let time = to_f64(self.disk.overhead_ns) + to_f64(bytes) * 1e9 / to_f64(self.disk.bytes_per_s);
        let time_ns = to_u64(time * (0.8 + 0.2 * self.exponential()));
        let server = if self.disk.shared { 0 } else { server };
        self.free_ns[server] = self.free_ns[server].max(self.now_ns) + time_ns;
        self.free_ns[server]
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Guest if self.load == 0 => {}
            Event::Guest => {
                let end_ns = self.serve(0, 4096);
                let jitter_ns = to_u64(to_f64(self.disk.jitter_ns) * self.exponential());
                self.pending.push_back((end_ns, end_ns + jitter_ns - self.now_ns));
                let gap = self.exponential() * 1e9 / to_f64(self.load);
                self.at(to_u64(gap).max(1), Event::Guest);
            }
            Event::Read(bytes) => {
                let end_ns = self.serve(1, bytes);
                self.at(end_ns - self.now_ns, Event::Written(bytes));
            }
            Event::Written(bytes) => {
                self.copied.push((self.now_ns, bytes));
                self.in_flight_bytes -= bytes;
                if self.in_flight_bytes == 0 {
                    self.rest.end(self.now_ns);
                }
                self.pump();
            }
            Event::Stall => {
                let (between_ns, long_ns) = self.disk.stalls_ns;
                let until_ns = self.now_ns + to_u64(to_f64(long_ns) * self.exponential());
                self.free_ns = self.free_ns.map(|free| free.max(until_ns));
                let next = to_u64(to_f64(between_ns) * self.exponential());
                self.at(next, Event::Stall);
            }
            Event::Rested => self.pump(),
            Event::Tick => self.tick(),
        }
    }

    fn tick(&mut self) {
        let mut guest = GuestLatency::new();
        while let Some(&(end_ns, latency_ns)) = self.pending.front().filter(|p| p.0 <= self.now_ns) {
            self.pending.pop_front();
            guest.record(latency_ns, 1);
            self.log.push((end_ns, latency_ns));
        }
        self.pace = match &mut self.control {
            Control::Paced(pacer) => {
                let guest_waits = !self.pending.is_empty();
                pacer.tick(&Tick {
                    now_ns: self.now_ns,
                    guest: &guest,
                    guest_waits,
                    copying_bytes: self.in_flight_bytes,
                })
            }
            Control::Fixed(rung) => (*rung).map_or(Pace::HOLD, Rung::pace),
        };
        self.paces.push((self.now_ns, self.pace));
        self.pump();
        self.at(self.tick_ns, Event::Tick);
    }

    /// Begins what the pace allows.
    fn pump(&mut self) {
        let bytes = self.pace.request_bytes.min(LARGEST_BYTES);
        while self.in_flight_bytes + bytes <= self.pace.in_flight_bytes.min(FULL_BYTES) {
            if self.in_flight_bytes == 0
                && let Err(until_ns) = self.rest.begin(self.pace.rest_quarters, self.now_ns)
            {
                return self.at(until_ns - self.now_ns, Event::Rested);
            }
            self.in_flight_bytes += bytes;
            let end_ns = self.serve(0, bytes);
            self.at(end_ns - self.now_ns, Event::Read(bytes));
        }
    }
}
