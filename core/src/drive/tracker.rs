//! For hosts that do their own I/O: they say when a request begins and when it has ended.
//!
//! ```text
//! begin -> Go(token)    send the request, to the device that the drive stands on
//!                       ... it completes, well or not ...
//!                       end(token)    now tell the guest
//!       -> Held         the gate is closed: wait until it is open, then begin again
//! ```
//!
//! It may assume that `begin` comes before the request is sent and `end` after it completed and before the guest
//! hears of it. Then every write is marked (*Mark after, before the ack*; *Tracked from birth*), and when the gate is
//! closed and quiet no request of the host's is under way.
//!
//! A host may end a request on another thread than it began it on. Nothing is allocated, and no lock is taken; the
//! time is taken of one request in eight, by chance, and of fewer where a thread makes more than 500,000 a second.
//!
//! A token that is never ended keeps its pass: see [`Gate`](super::Gate) for what that leads to. A token that was
//! ended before, or belongs to another drive, is refused before anything is changed.
//!
//! A host whose writes are plain stores into mapped memory, with no system call between the last store and `end`,
//! must put a `std::sync::atomic::fence(SeqCst)` between the two, as `bitmap/sync.rs` explains; any other way of
//! writing needs none.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Drive;
use super::core::DriveCore;
use super::gate::{Enter, PASSES, Pass};
use super::per_thread;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::monotonic_ns;
use crate::units::ByteRange;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoKind {
    /// Reads; nothing is marked.
    Read,
    /// Writes data.
    Write,
    /// Makes the range read as zeroes.
    WriteZeroes,
    /// Gives space back; the range may read as anything.
    Discard,
    /// Makes durable what was written; it has no range. A switch-over waits for it, nothing is marked.
    Flush,
}

impl IoKind {
    /// Whether the range may read differently afterwards.
    #[inline]
    const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard)
    }

    /// All kinds, each at its number.
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::WriteZeroes, Self::Discard, Self::Flush];

    /// As a number.
    const fn number(self) -> u64 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::WriteZeroes => 2,
            Self::Discard => 3,
            Self::Flush => 4,
        }
    }

    /// From that number.
    fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied()
    }
}

/// A request that is under way; to be ended exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a request that is never ended keeps every switch-over from happening"]
pub struct Token {
    /// The right to be inside the gate.
    pass: Pass,
    /// The bytes.
    range: ByteRange,
    /// What it does to them.
    kind: IoKind,
    /// When it began; 0 = its time is not taken.
    begun_ns: u64,
    /// Where the drive stands while this is under way.
    device_number: u64,
}

impl Token {
    /// The bytes.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// What the request does.
    #[must_use]
    pub fn kind(&self) -> IoKind {
        self.kind
    }

    /// As plain numbers, for a host that can keep nothing else: in C.
    #[must_use]
    pub fn to_words(self) -> [u64; 6] {
        let Self { pass, range, kind, begun_ns, device_number } = self;
        [device_number, pass.to_word(), range.start(), range.end(), kind.number(), begun_ns]
    }

    /// How often the drive had been moved to another device when this request began: which device it must be sent to.
    #[must_use]
    pub fn device_number(&self) -> u64 {
        self.device_number
    }
}

/// What [`Tracker::begin`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a request may be sent only when it was let in"]
pub enum Admission {
    /// Send it, and end the token when it has completed.
    Go(Token),
    /// Do not send it yet: the gate is closed, for a switch-over, or because copy mode auto brakes, which it may before `complete`
    /// is asked (`JobInfo::braking`; never with `CopyModeChoice::Background`). Begin again when the gate is open.
    Held,
}

/// Tells a drive of requests that the host carries out itself. Clones are the same tracker; all may be used from any
/// thread.
///
/// [`begin`](Self::begin) comes before a request is sent, [`end`](Self::end) after it has completed and before the guest hears of
/// it. A request that is `Held` is begun again when the gate is open. A token that is never ended counts as a request under way for
/// ever: then no job of this drive can switch over.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// The shared part of the drive.
    core: Arc<DriveCore<Device>>,
}

impl Drive {
    /// A tracker of this drive.
    #[must_use]
    pub fn tracker(&self) -> Tracker {
        Tracker { core: Arc::clone(self.core()) }
    }
}

impl Tracker {
    /// A request is about to be sent. The range need not be aligned; a flush has an empty one.
    ///
    /// With [`Admission::Go`] the request goes to the device that [`Token::device_number`] names: 0 is the one that the drive
    /// was made with, and each pivot counts one more. [`Self::device`] is that device until the token is ended, for a host
    /// that opened the target through this library only. Tracked writes are followed in background mode, whatever the
    /// job's copy mode is, for only the host can write them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a range that is empty (but for a flush) or goes past the end of the drive,
    /// [`ErrorKind::QueueFull`] when [`PASSES`] requests are under way.
    #[inline]
    pub fn begin(&self, range: ByteRange, kind: IoKind) -> Result<Admission> {
        self.core.begin(range, kind, monotonic_ns)
    }

    /// A request has completed; said before the guest hears of it. Whatever the `result` (an errno if it failed), a
    /// write marks its range: one that failed may have written some of it.
    ///
    /// Where the write was plain stores into mapped memory (DAX, an image that is mapped), with no system call since, a
    /// `std::sync::atomic::fence(SeqCst)` must come before this call, or the write may be missing on the target.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`], and nothing has changed, for a token that was ended before or is none of this
    /// drive's.
    #[inline]
    pub fn end(&self, token: Token, result: std::result::Result<(), i32>) -> Result<()> {
        self.core.end(token, result, monotonic_ns)
    }

    /// The token of these numbers, see [`Token::to_words`]; `None` if they cannot be a token of this drive. Whether it is under
    /// way, [`end`](Self::end) finds out; a range that was changed marks other bytes.
    #[must_use]
    pub fn token_of_words(&self, words: [u64; 6]) -> Option<Token> {
        self.core.token_of_words(words)
    }

    /// Sleeps until the gate is open, at most for `timeout`; whether it is open.
    #[must_use]
    pub fn wait_open(&self, timeout: Duration) -> bool {
        self.core.wait_open(timeout)
    }

    /// A descriptor that is readable exactly while the gate is open, for a host's event loop. It is everybody's: poll
    /// it while requests are held, do not read from it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn opened_fd(&self) -> Result<BorrowedFd<'_>> {
        self.core.opened_fd()
    }

    /// How often the drive was moved to another device.
    #[must_use]
    pub fn device_number(&self) -> u64 {
        self.core.device_number()
    }

    /// The device that the drive stands on; it stays that one while any token is not ended. Its descriptor
    /// ([`Device::as_fd`](std::os::fd::AsFd)) is open as long as the host keeps this.
    #[must_use]
    pub fn device(&self) -> Arc<Device> {
        Arc::clone(&self.core.place().device)
    }
}

impl<D> DriveCore<D> {
    /// See [`Tracker::begin`]; `now_ns` is asked for some requests only.
    #[inline]
    pub(crate) fn begin(
        &self,
        range: ByteRange,
        kind: IoKind,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Admission> {
        if (range.is_empty() && kind != IoKind::Flush) || range.end() > self.size_bytes() {
            return Err(outside(range, self.size_bytes()));
        }
        let pass = match self.gate().enter() {
            Enter::In(pass) => pass,
            Enter::Closed => return Ok(Admission::Held),
            Enter::Full => return Err(full()),
        };
        let begun_ns = per_thread::sampled_ns(now_ns);
        // Inside the gate, so it cannot change before the end.
        let device_number = self.device_number();
        Ok(Admission::Go(Token { pass, range, kind, begun_ns, device_number }))
    }

    /// See [`Tracker::token_of_words`].
    pub(crate) fn token_of_words(&self, words: [u64; 6]) -> Option<Token> {
        let [device_number, pass, start, end, kind, begun_ns] = words;
        let kind = IoKind::from_number(kind)?;
        let (pass, range) = (Pass::from_word(pass), ByteRange::new(start, end));
        (start <= end && end <= self.size_bytes()).then_some(Token {
            pass,
            range,
            kind,
            begun_ns,
            device_number,
        })
    }

    /// See [`Tracker::end`].
    #[inline]
    pub(crate) fn end(
        &self,
        token: Token,
        result: std::result::Result<(), i32>,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<()> {
        // Looked at first, so that a token that is not under way changes nothing.
        let Some(leaving) = self.gate().leaving(token.pass) else { return Err(ended(token)) };
        if token.kind.changes() {
            self.written(token.range);
        }
        leaving.done();
        self.has_left();
        // A failure says nothing about how fast the disk is.
        if token.begun_ns != 0 && result.is_ok() {
            self.record_latency(now_ns().saturating_sub(token.begun_ns));
        }
        Ok(())
    }
}

/// The error for a range that is not on the drive.
#[cold]
fn outside(range: ByteRange, size_bytes: u64) -> Error {
    let why = match range.is_empty() {
        true => "it is empty; a request needs at least one byte".to_owned(),
        false => format!("the drive ends at {size_bytes}"),
    };
    Error::new(ErrorKind::InvalidArgument, "track a request").in_range(range).because(why)
}

/// The error when every pass is out.
#[cold]
fn full() -> Error {
    let why = format!("{PASSES} are under way; end some first, and look for tokens that are never ended");
    Error::new(ErrorKind::QueueFull, "track one more request").because(why)
}

/// The error for a token that is not under way.
#[cold]
fn ended(token: Token) -> Error {
    let why = "it was ended before or belongs to another drive; end each token once";
    Error::new(ErrorKind::WrongState, "end a request").in_range(token.range).because(why)
}
