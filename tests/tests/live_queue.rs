//! What a host may hand to a queue besides a buffer of its own: discards, and memory in several pieces, without a job and with one
//! that has the writes go to both disks.
#![allow(unsafe_code, reason = "a host vouches for its memory")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::time::Duration;

use blkmirror_testkit::{KIB, MIB, compare, needs};
use blkmirror_tests::api::buffer::{AlignedBuf, GuestBuffer};
use blkmirror_tests::api::drive::queue::{Queue, QueueOptions, WriteFlags};
use blkmirror_tests::api::engine::{Completion, CopyModeChoice, Job, JobStatus};
use blkmirror_tests::api::units::ByteRange;
use blkmirror_tests::live::{Medium, Scene, until_status, until_synced};
use nix::libc;

/// Size of the disks here.
const SIZE: u64 = 2 * MIB;

/// Waits for the one request that is under way, which must succeed; gives its buffer back.
#[track_caller]
fn end_of(queue: &mut Queue) -> Option<GuestBuffer> {
    queue.wait(1, Some(Duration::from_secs(10))).unwrap();
    let done = queue.pop().unwrap();
    done.result.unwrap();
    done.buffer
}

/// A write-blocking job that is in sync.
fn synced(scene: &Scene) -> Job {
    let job = scene.mirror(Scene::options_in(CopyModeChoice::WriteBlocking));
    until_status(&job, JobStatus::Ready);
    until_synced(&job);
    job
}

/// Asserts that exactly the bytes of `discarded` are zero in what begins at `start`, and all others 7.
#[track_caller]
fn assert_hole(bytes: &[u8], start: u64, discarded: ByteRange, whose: &str) {
    let wrong = (start..).zip(bytes).find(|(at, byte)| {
        let inside = discarded.start() <= *at && *at < discarded.end();
        **byte != if inside { 0 } else { 7 }
    });
    assert_eq!(wrong, None, "{whose}, {discarded:?} discarded");
}

/// A discard that got lost on its way would succeed just the same, for a disk need not make use of it, and the guest's space would
/// never come back; one that reached a byte too far would destroy what the guest keeps. A loop device over a file in memory punches
/// holes, so it shows both. With a job, the target is told in the same request or copied afterwards.
#[test]
fn a_discard_reads_as_zeroes_on_a_disk_that_punches_holes_and_spares_its_neighbours() {
    needs!(Losetup);
    for with_job in [false, true] {
        let scene = Scene::new(SIZE, Medium::Loop, Medium::Loop);
        let job = with_job.then(|| synced(&scene));
        let mut queue = scene.drive.queue(QueueOptions::default()).unwrap();
        // One block, some inside a chunk, a border of chunks, many chunks.
        for (at, len) in [(4, 4), (68, 24), (188, 8), (252, 520)].map(|(at, len)| (at * KIB, len * KIB)) {
            // With neighbours of a chunk on either side, as far as there are any.
            let start = at.saturating_sub(64 * KIB);
            let whole = ByteRange::new(start, at + len + 64 * KIB);
            let mut buffer = AlignedBuf::new(usize::try_from(whole.len()).unwrap(), 4096).unwrap();
            buffer.fill(7);
            queue.write(start, buffer, WriteFlags::default(), 1).unwrap();
            let mut buffer = end_of(&mut queue).and_then(GuestBuffer::into_aligned).unwrap();
            assert_hole(&scene.source.bytes_at(start, buffer.len()), start, ByteRange::default(), "before");

            let discarded = ByteRange::at(at, len);
            queue.discard(discarded, 2).unwrap();
            assert!(end_of(&mut queue).is_none());

            buffer.fill(1);
            queue.read(start, buffer, 3).unwrap();
            let buffer = end_of(&mut queue).and_then(GuestBuffer::into_aligned).unwrap();
            assert_hole(&buffer, start, discarded, "through the queue");
            assert_hole(&scene.source.bytes_at(start, buffer.len()), start, discarded, "on the source");
            if let Some(job) = &job {
                until_synced(job);
                assert_hole(&scene.target.bytes_at(start, buffer.len()), start, discarded, "on the target");
            }
        }
        if let Some(job) = job {
            let _ = scene.complete(&job, Completion::PointInTime);
            assert_eq!(
                compare::first_difference(&scene.source.content, &scene.target.content).unwrap(),
                None
            );
        }
    }
}

/// Pieces of memory with content that tells piece, place and round.
fn pieces(round: usize) -> Vec<AlignedBuf> {
    let piece = |(number, blocks): (usize, usize)| {
        let mut piece = AlignedBuf::new(blocks * 4096, 4096).unwrap();
        for (at, byte) in piece.iter_mut().enumerate() {
            *byte = u8::try_from((at / 512 + at + number * 37 + round * 11) % 251).unwrap();
        }
        piece
    };
    [3, 1, 20, 2, 1, 5].into_iter().enumerate().map(piece).collect()
}

/// Memory of a guest lies in pieces. If the copy for the target took them in another order, or stopped after the first, the guest's
/// write would succeed and the target be wrong with nobody to notice; and a host that relies on `actively_synced` relies on the
/// target the moment it hears of the write. Both with a copy of the data and, promised that it stands still, without one.
#[test]
fn a_vector_is_on_the_target_in_its_order_when_its_write_completes() {
    needs!(Losetup);
    for stable_buffers in [false, true] {
        for medium in [Medium::Memory, Medium::FileIn(env!("CARGO_TARGET_TMPDIR")), Medium::Loop] {
            let scene = Scene::new(SIZE, medium, medium);
            let job = synced(&scene);
            let copied = job.query().progress.copied_bytes;
            let options = QueueOptions { stable_buffers, ..QueueOptions::default() };
            let mut queue = scene.drive.queue(options).unwrap();
            // The beginning of a chunk, places inside, the end of the disk; each twice.
            for (round, at) in
                [0, 60 * KIB, MIB + 4 * KIB, SIZE - 128 * KIB].repeat(2).into_iter().enumerate()
            {
                let mut pieces = pieces(round);
                // They lie in memory in any order, so let every other round name them backwards.
                if round % 2 == 1 {
                    pieces.reverse();
                }
                let vector: Vec<_> = pieces
                    .iter_mut()
                    .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
                    .collect();
                // SAFETY: pieces and vector live to the end of this round, and nobody touches them before the completion.
                let buffer = unsafe { GuestBuffer::from_iovecs(vector.as_ptr(), vector.len()) };
                queue.write(at, buffer, WriteFlags::default(), 1).unwrap();
                let _ = end_of(&mut queue);
                let flat = pieces.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<u8>>();
                for (place, side) in [(&scene.target, "target"), (&scene.source, "source")] {
                    let there = place.bytes_at(at, flat.len());
                    let wrong = there.iter().zip(&flat).position(|(is, should)| is != should);
                    assert_eq!(wrong, None, "{side}, {medium:?}, {at}, stable: {stable_buffers}");
                }
                // No copier had a hand in it.
                let info = job.query();
                assert!(info.dirty_bytes == 0 && info.progress.copied_bytes == copied, "{info:?}");
            }
            let outcome = scene.complete(&job, Completion::PointInTime);
            assert_eq!(
                outcome.progress.active_bytes,
                8 * 32 * 4096,
                "every write went to both sides at once"
            );
            let different = compare::first_difference(&scene.source.content, &scene.target.content);
            assert_eq!(different.unwrap(), None, "{medium:?}, stable: {stable_buffers}");
        }
    }
}
