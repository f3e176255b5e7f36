//! One side of a request: what to send next, and what to make of what came back.
//!
//! A part is a sequence of ring requests, one at a time, until its whole range is done or it has failed. It resumes short
//! transfers, repeats passing errors a bounded number of times, writes zeroes as data where the device cannot zero, and
//! knows nothing of the other side. It assumes that its range and memory are aligned as the drive asks.
#![forbid(unsafe_code)]

use crate::buffer::{BufRange, HostMemory};
use crate::mirror::transient_backoff_ns;
use crate::ring::{DeviceSlot, Op, Request};
use crate::units::{ByteRange, MIB};

/// Zeroing and discarding block a device's lane, so a large range is done in steps of this size.
const ZERO_STEP_BYTES: u64 = 128 * MIB;

/// What a part does to its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Read into the host's memory.
    Read,
    /// Write the data.
    Write {
        /// Durable at its end.
        fua: bool,
    },
    /// Make the range read as zeroes without sending any.
    Zero {
        /// Space may be given back.
        punch: bool,
        /// Durable at its end.
        fua: bool,
        /// Zeroes may be written as data.
        fallback: bool,
    },
    /// Write zeroes as data, because the device cannot zero.
    ZeroData {
        /// Durable at its end.
        fua: bool,
    },
    /// Tell the device that the range is not needed.
    Discard,
    /// Make what was written durable.
    Flush,
}

/// Where a part's data lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    /// It has none.
    None,
    /// In the host's memory.
    Host(HostMemory),
    /// In the queue's own memory.
    Own(BufRange),
}

/// What follows from the end of a ring request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Send the next one.
    Again,
    /// Send the next one at this time.
    At(u64),
    /// The part has ended.
    Ended(Result<(), i32>),
}

/// What a part must know of its surroundings to judge a completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge {
    /// The unit of offsets and lengths.
    pub(super) align_bytes: u64,
    /// The time.
    pub(super) now_ns: u64,
    /// Zeroes to write from.
    pub(super) zeroes: BufRange,
    /// Break the protocol: believe that a short transfer was whole.
    pub(super) short_as_whole: bool,
}

/// One side of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// What it does.
    work: Work,
    /// Where.
    range: ByteRange,
    /// With what.
    data: Data,
    /// Bytes done, a multiple of the alignment.
    done: u64,
    /// Its device takes no write that is durable at its end, so a flush comes after this one.
    flushes: bool,
    /// How often the present step failed for a passing reason.
    tries: u8,
    /// Which seat its device has, until it has ended.
    pub(super) seat: Option<usize>,
    /// Whether a request of it is in the ring.
    pub(super) in_ring: bool,
    /// How it ended.
    pub(super) result: Option<Result<(), i32>>,
}

impl Part {
    /// A part for the device in `seat`.
    pub(super) fn new(work: Work, range: ByteRange, data: Data, seat: Option<usize>) -> Self {
        Self { work, range, data, done: 0, flushes: false, tries: 0, seat, in_ring: false, result: None }
    }

    /// The same for a device that may not honour a write that is to be durable at its end.
    pub(super) fn without_write_through(mut self) -> Self {
        if self.work == (Work::Write { fua: true }) {
            self.work = Work::Write { fua: false };
            self.flushes = true;
        }
        self
    }

    /// Whether its data lies in the host's memory.
    pub(super) fn uses_host_memory(&self) -> bool {
        matches!(self.data, Data::Host(_))
    }

    /// The next ring request.
    pub(super) fn request(&self, device: DeviceSlot, zeroes: BufRange) -> Request {
        let rest = ByteRange::new(self.range.start() + self.done, self.range.end());
        let (range, op) = match (self.work, self.data) {
            (Work::Read, Data::Host(memory)) => {
                let memory = memory.skip(self.done);
                (rest.prefix(memory.len()), Op::ReadHost(memory))
            }
            (Work::Write { fua }, Data::Host(memory)) => {
                let memory = memory.skip(self.done);
                (rest.prefix(memory.len()), Op::WriteHost { memory, fua })
            }
            (Work::Write { fua }, Data::Own(buf)) => {
                let buf = buf.slice(length(self.done), buf.len);
                (rest, if fua { Op::WriteThrough(buf) } else { Op::Write(buf) })
            }
            (Work::ZeroData { .. }, _) => {
                let range = rest.prefix(u64::from(zeroes.len));
                (range, Op::Write(zeroes.slice(0, length(range.len()))))
            }
            (Work::Zero { punch, .. }, _) => (rest.prefix(ZERO_STEP_BYTES), Op::Zero { punch }),
            (Work::Discard, _) => (rest.prefix(ZERO_STEP_BYTES), Op::Discard),
            // A read or write always has data, so what is left here is the flush.
            (Work::Flush | Work::Read | Work::Write { .. }, _) => (ByteRange::default(), Op::Flush),
        };
        Request { device, range, op }
    }

    /// The request of this part that was in the ring has ended.
    pub(super) fn ended(&mut self, result: Result<u64, i32>, judge: &Judge) -> Next {
        let next = match result {
            Ok(bytes) => self.moved(bytes, judge),
            Err(errno) => self.failed(errno, judge.now_ns),
        };
        if let Next::Ended(result) = next {
            self.result = Some(result);
        }
        next
    }

    /// It transferred so many bytes.
    fn moved(&mut self, bytes: u64, judge: &Judge) -> Next {
        if self.work == Work::Flush {
            return Next::Ended(Ok(()));
        }
        let asked = self.request(DeviceSlot(0), judge.zeroes).range.len();
        let bytes = if judge.short_as_whole && bytes > 0 { asked } else { bytes.min(asked) };
        if bytes == 0 {
            // The end of the device: a read cannot be completed, and a write has no room.
            let errno = if self.work == Work::Read { libc::EIO } else { libc::ENOSPC };
            return Next::Ended(Err(errno));
        }
        // A transfer that stopped inside a block is resumed at the block's start: what is sent must be aligned.
        let whole = if bytes == asked { bytes } else { bytes & !(judge.align_bytes - 1) };
        if whole == 0 {
            return self.failed(libc::EAGAIN, judge.now_ns);
        }
        self.done += whole;
        self.tries = 0;
        if self.done < self.range.len() {
            return Next::Again;
        }
        // Zeroing has no flag that makes it durable, and it may have been done partly in either way.
        if self.flushes || matches!(self.work, Work::Zero { fua: true, .. } | Work::ZeroData { fua: true }) {
            self.work = Work::Flush;
            return Next::Again;
        }
        Next::Ended(Ok(()))
    }

    /// It failed.
    fn failed(&mut self, errno: i32, now_ns: u64) -> Next {
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS);
        match self.work {
            Work::Zero { fua, fallback: true, .. } if unsupported => {
                self.work = Work::ZeroData { fua };
                Next::Again
            }
            Work::Zero { .. } if unsupported => Next::Ended(Err(libc::EOPNOTSUPP)),
            // A discard is advice.
            Work::Discard if unsupported => Next::Ended(Ok(())),
            _ => match transient_backoff_ns(errno, self.tries) {
                Some(wait_ns) => {
                    self.tries += 1;
                    Next::At(now_ns + wait_ns)
                }
                None => Next::Ended(Err(errno)),
            },
        }
    }
}

/// A length inside the queue's own memory, which is smaller than 4 GiB.
fn length(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROES: BufRange = BufRange { start: 0, len: 8192 };
    const MEMORY: BufRange = BufRange { start: 65536, len: 16384 };

    fn judge() -> Judge {
        Judge { align_bytes: 512, now_ns: 1000, zeroes: ZEROES, short_as_whole: false }
    }

    /// A part over 16 KiB at 4096.
    fn part(work: Work) -> Part {
        Part::new(work, ByteRange::at(4096, 16384), Data::Own(MEMORY), Some(0))
    }

    fn asks(part: &Part) -> (ByteRange, Op) {
        let request = part.request(DeviceSlot(3), ZEROES);
        assert_eq!(request.device, DeviceSlot(3));
        (request.range, request.op)
    }

    #[test]
    fn a_short_transfer_goes_on_where_a_block_starts() {
        let mut p = part(Work::Write { fua: false });
        assert_eq!(p.ended(Ok(4096 + 100), &judge()), Next::Again);
        let rest = BufRange { start: 65536 + 4096, len: 12288 };
        assert_eq!(asks(&p), (ByteRange::at(8192, 12288), Op::Write(rest)));
        assert_eq!(p.ended(Ok(12288), &judge()), Next::Ended(Ok(())));
        assert_eq!(p.result, Some(Ok(())));
    }

    #[test]
    fn no_progress_is_an_error_and_not_an_endless_loop() {
        let mut write = part(Work::Write { fua: true });
        assert!(matches!(asks(&write).1, Op::WriteThrough(_)));
        assert_eq!(write.ended(Ok(0), &judge()), Next::Ended(Err(libc::ENOSPC)));
        let mut read = part(Work::Read);
        assert_eq!(read.ended(Ok(0), &judge()), Next::Ended(Err(libc::EIO)));
        // Less than a block each time, or EAGAIN each time: repeated a bounded number of times.
        for result in [Ok(100), Err(libc::EAGAIN), Err(libc::EINTR)] {
            let mut p = part(Work::Write { fua: false });
            let tries =
                (0..100).take_while(|_| matches!(p.ended(result, &judge()), Next::At(at) if at > 1000));
            assert_eq!(tries.count(), 10, "{result:?}");
            assert!(p.result.is_some_and(|r| r.is_err()));
        }
    }

    #[test]
    fn progress_makes_up_for_earlier_failures() {
        let mut p = part(Work::Write { fua: false });
        for _ in 0..9 {
            assert!(matches!(p.ended(Err(libc::EAGAIN), &judge()), Next::At(_)));
        }
        assert_eq!(p.ended(Ok(512), &judge()), Next::Again);
        assert!(matches!(p.ended(Err(libc::EAGAIN), &judge()), Next::At(_)));
    }

    #[test]
    fn a_device_that_cannot_zero_is_written_zeroes_and_flushed_if_they_must_last() {
        for fua in [false, true] {
            let mut p = part(Work::Zero { punch: true, fua, fallback: true });
            assert_eq!(asks(&p), (ByteRange::at(4096, 16384), Op::Zero { punch: true }));
            assert_eq!(p.ended(Err(libc::EOPNOTSUPP), &judge()), Next::Again);
            assert_eq!(asks(&p), (ByteRange::at(4096, 8192), Op::Write(ZEROES)));
            assert_eq!(p.ended(Ok(8192), &judge()), Next::Again);
            assert_eq!(asks(&p), (ByteRange::at(12288, 8192), Op::Write(ZEROES)));
            let last = p.ended(Ok(8192), &judge());
            if fua {
                assert_eq!((last, asks(&p).1), (Next::Again, Op::Flush));
                assert_eq!(p.ended(Err(libc::EIO), &judge()), Next::Ended(Err(libc::EIO)));
            } else {
                assert_eq!(last, Next::Ended(Ok(())));
            }
        }
    }

    /// If it were written as data, a host that asked for the quick way alone would wait for as long as for a write.
    #[test]
    fn zeroes_without_a_fallback_are_refused_where_the_device_cannot_zero() {
        for errno in [libc::EOPNOTSUPP, libc::ENOSYS] {
            let mut p = part(Work::Zero { punch: true, fua: true, fallback: false });
            assert_eq!(p.ended(Err(errno), &judge()), Next::Ended(Err(libc::EOPNOTSUPP)));
        }
        let mut p = part(Work::Zero { punch: true, fua: false, fallback: false });
        assert_eq!(p.ended(Ok(16384), &judge()), Next::Ended(Ok(())));
    }

    /// If the flush came before the last byte, or were forgotten, what the guest holds for durable would be lost with the power.
    #[test]
    fn a_durable_write_is_flushed_once_it_is_whole_where_the_device_does_not_write_through() {
        let mut p = part(Work::Write { fua: true }).without_write_through();
        assert!(!matches!(asks(&p).1, Op::WriteThrough(_) | Op::WriteHost { fua: true, .. }));
        assert_eq!(p.ended(Ok(8192), &judge()), Next::Again);
        assert_ne!(asks(&p).1, Op::Flush);
        assert_eq!(p.ended(Ok(8192), &judge()), Next::Again);
        assert_eq!(asks(&p).1, Op::Flush);
        assert_eq!(p.ended(Err(libc::EIO), &judge()), Next::Ended(Err(libc::EIO)));
        let mut plain = part(Work::Write { fua: false }).without_write_through();
        assert_eq!(plain.ended(Ok(16384), &judge()), Next::Ended(Ok(())));
    }

    #[test]
    fn a_discard_that_is_not_supported_has_succeeded_and_one_that_fails_has_not() {
        assert_eq!(part(Work::Discard).ended(Err(libc::EOPNOTSUPP), &judge()), Next::Ended(Ok(())));
        assert_eq!(part(Work::Discard).ended(Err(libc::EIO), &judge()), Next::Ended(Err(libc::EIO)));
        let huge = Part::new(Work::Discard, ByteRange::at(0, 1 << 40), Data::None, None);
        assert_eq!(asks(&huge), (ByteRange::at(0, ZERO_STEP_BYTES), Op::Discard));
    }
}
