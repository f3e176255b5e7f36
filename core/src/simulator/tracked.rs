//! The guests of trackers: host threads that do their own I/O and say when it begins and ends.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::model::{BLOCK, fill};
use super::simulation::{Simulation, Wrong};
use crate::drive::queue::Wish;
use crate::drive::{Admission, IoKind, Token};
use crate::ring::sim::SimDisk;
use crate::units::{ByteRange, bytes_u64, bytes_usize};

/// Requests that a guest with a tracker has under way at most.
const TRACKED: usize = 4;
/// Steps that a flush takes at most.
const FLUSH_STEPS: u64 = 30;
/// How long a guest whose request is held waits until it asks again.
const HELD_NS: u64 = 50_000;

/// A request that a host carries out itself.
#[derive(Debug)]
struct Io {
    /// The drive's leave.
    token: Token,
    /// Where the drive stood when it began.
    device: Arc<SimDisk>,
    /// Since when, by the model's clock.
    since: u64,
    /// When it began.
    at_ns: u64,
    /// What is to be done.
    todo: Todo,
}

/// What a host does for one request.
#[derive(Debug)]
enum Todo {
    /// Reads; with what was read, once it was.
    Read(Option<Vec<u8>>),
    /// Changes blocks, one by one.
    Change(Change),
    /// Flushes, which takes its time: a switch-over may come in between, and must wait.
    Flush {
        /// Steps until it is done.
        left: u64,
        /// It does nothing, and says so.
        fails: bool,
    },
}

/// A write, a zeroing or a discard.
#[derive(Debug)]
struct Change {
    /// Which write of the model.
    write: u64,
    /// What it writes.
    word: u64,
    /// Blocks that have not landed.
    left: Vec<u64>,
    /// How many more land before it fails; `None` = it does not fail.
    fails_after: Option<usize>,
}

/// A host thread that does its own I/O.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    /// Requests under way.
    ios: Vec<Io>,
    /// When something happens to one of them.
    pub(super) step_ns: u64,
    /// When the guest asks again.
    pub(super) next_ns: u64,
}

impl Tracked {
    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.ios.is_empty()
    }

    /// Ranges that are being written.
    pub(super) fn writes(&self) -> impl Iterator<Item = ByteRange> {
        self.ios.iter().filter(|io| matches!(io.todo, Todo::Change(_))).map(|io| io.token.range())
    }

    /// When the oldest of them began.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.ios.iter().map(|io| io.at_ns).min()
    }
}

impl Io {
    /// Does a part of it; `false` when there is nothing left to do.
    fn go_on(&mut self, simulation: &Simulation) -> bool {
        match &mut self.todo {
            Todo::Read(seen) if seen.is_none() => {
                let range = self.token.range();
                let part = bytes_usize(range.start())..bytes_usize(range.end());
                *seen = Some(self.device.look(|bytes| bytes[part].to_vec()));
                true
            }
            Todo::Flush { left, fails } if *left > 0 => {
                *left -= 1;
                if *left == 0 && !*fails {
                    self.device.flush();
                }
                true
            }
            Todo::Change(change) if !change.left.is_empty() && change.fails_after != Some(0) => {
                change.land(&self.device, simulation);
                true
            }
            Todo::Read(_) | Todo::Flush { .. } | Todo::Change(_) => false,
        }
    }

    /// How it ends.
    fn result(&self) -> Result<(), i32> {
        match &self.todo {
            Todo::Change(Change { fails_after: Some(_), .. }) | Todo::Flush { fails: true, .. } => {
                Err(libc::EIO)
            }
            Todo::Read(_) | Todo::Flush { .. } | Todo::Change(_) => Ok(()),
        }
    }
}

impl Change {
    /// Some of its blocks land.
    fn land(&mut self, device: &SimDisk, simulation: &Simulation) {
        let most = self.fails_after.unwrap_or(usize::MAX).min(self.left.len());
        let count = bytes_usize(1 + simulation.world.pick(bytes_u64(most)));
        self.fails_after = self.fails_after.map(|more| more - count);
        let mut data = vec![0; bytes_usize(BLOCK)];
        fill(&mut data, self.word);
        for _ in 0..count {
            let block = bytes_usize(simulation.world.pick(bytes_u64(self.left.len())));
            device.write(self.left.swap_remove(block), &data);
        }
    }
}

impl Simulation {
    /// The guest of a tracker asks for something.
    pub(super) fn track(&mut self, number: usize) -> Result<(), Wrong> {
        self.tracked[number].next_ns = self.next_ask_ns();
        if self.tracked[number].ios.len() >= TRACKED {
            self.tracked[number].next_ns = self.world.now_ns() + HELD_NS;
            return Ok(());
        }
        let kind = match self.wish() {
            Wish::Read => IoKind::Read,
            Wish::Write(_) => IoKind::Write,
            Wish::WriteZeroes(_) => IoKind::WriteZeroes,
            Wish::Discard => IoKind::Discard,
            Wish::Flush => IoKind::Flush,
        };
        let range = if kind == IoKind::Flush { ByteRange::default() } else { self.range() };
        let now_ns = self.world.now_ns();
        let token = match self.drive.begin(range, kind, || now_ns).map_err(|e| Wrong::new(e.to_string()))? {
            Admission::Go(token) => token,
            Admission::Held => {
                self.tracked[number].next_ns = now_ns + HELD_NS;
                return Ok(());
            }
        };
        self.asked += 1;
        let since = self.model.tick();
        let todo = self.todo(kind, range);
        let device = Arc::clone(&self.drive.place().device);
        self.tracked[number].ios.push(Io { token, device, since, at_ns: now_ns, todo });
        self.tracked[number].step_ns = now_ns + self.world.pick(100_000);
        Ok(())
    }

    /// What a request asks for; a change is told to the model.
    fn todo(&mut self, kind: IoKind, range: ByteRange) -> Todo {
        let fails = self.errors_possible && self.chance(4);
        match kind {
            IoKind::Read => Todo::Read(None),
            IoKind::Flush => Todo::Flush { left: 1 + self.world.pick(FLUSH_STEPS), fails },
            IoKind::Write | IoKind::WriteZeroes | IoKind::Discard => {
                let write = self.next_tag();
                let word = if kind == IoKind::Write { write } else { 0 };
                self.model.sent(range, write, word);
                let blocks = range.len() / BLOCK;
                let fails_after = fails.then(|| bytes_usize(self.world.pick(blocks)));
                let left = (0..blocks).map(|block| range.start() + block * BLOCK).collect();
                Todo::Change(Change { write, word, left, fails_after })
            }
        }
    }

    /// Something happens to one of a tracker's requests: a part of it is done, or it ends.
    pub(super) fn step_tracked(&mut self, number: usize) -> Result<(), Wrong> {
        let now_ns = self.world.now_ns();
        self.tracked[number].step_ns = now_ns + self.world.pick(100_000);
        let which = bytes_usize(self.world.pick(bytes_u64(self.tracked[number].ios.len()).max(1)));
        if which >= self.tracked[number].ios.len() {
            return Ok(());
        }
        let mut io = self.tracked[number].ios.swap_remove(which);
        if io.go_on(self) {
            self.tracked[number].ios.push(io);
            return Ok(());
        }
        let (token, result) = (io.token, io.result());
        // A switch-over waits for every request that is inside, also for one that changes nothing: its answer is about the
        // device that it was sent to.
        if !Arc::ptr_eq(&io.device, &self.drive.place().device) {
            return Err(Wrong::new(format!("the drive moved under a {:?} of the host's", token.kind())));
        }
        self.drive.end(token, result, || now_ns).map_err(|e| Wrong::new(e.to_string()))?;
        if self.drive.end(token, result, || now_ns).is_ok() {
            return Err(Wrong::new("a token was ended twice and nobody said so"));
        }
        self.completed += 1;
        match io.todo {
            Todo::Read(Some(data)) => {
                let seen = self.model.check(token.range(), &data, io.since);
                seen.map_err(|e| Wrong::new(format!("a host read wrongly: {e}")))?;
            }
            Todo::Flush { fails: false, .. } => self.model.flushed(io.since),
            Todo::Change(Change { write, .. }) => {
                self.write_ended(token.range(), io.since, true)?;
                let whole = result.is_ok() && token.kind() != IoKind::Discard;
                self.model.ended(token.range(), write, whole, false);
            }
            Todo::Read(None) | Todo::Flush { .. } => {}
        }
        Ok(())
    }
}
