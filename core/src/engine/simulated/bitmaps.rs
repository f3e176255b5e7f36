//! A caller's working bitmap, and the one job that may have it at a time.

use super::windows::{options, turn_all};
use super::*;
use crate::bitmap::{DirtyBitmap, Hold};
use crate::engine::crew::Crew;
use crate::error::{ErrorKind, Result};
use crate::units::ChunkRange;

/// The disks.
const BYTES: u64 = 1 << 20;

/// A drive and a target.
fn pair() -> (Arc<DriveCore<SimDisk>>, Arc<SimDisk>) {
    (DriveCore::new(SimDisk::new(BYTES), BYTES, 512, true), SimDisk::new(BYTES))
}

/// What a job is told of them.
fn shape_of_disks() -> DeviceShape {
    DeviceShape { size_bytes: BYTES, align_bytes: 512, max_request_bytes: 64 * KIB, ..DeviceShape::default() }
}

/// A bitmap for them.
fn working_bitmap() -> Arc<DirtyBitmap> {
    Arc::new(DirtyBitmap::new(BYTES, Granularity::new(4 * KIB).unwrap()).unwrap())
}

/// Two jobs that clear each other's bits would both call clean what neither has copied.
#[test]
fn a_working_bitmap_belongs_to_one_job_at_a_time_and_is_free_however_that_ends() {
    let world = World::new(1, Faults::default());
    let (first, second) = (pair(), pair());
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let bitmap = working_bitmap();
    let options = MirrorOptions { bitmap: Some(Arc::clone(&bitmap)), granularity: None, ..options() };
    // A start that is refused for another reason keeps nothing.
    let (own, _) = crew.start(&first.0, &first.1, &super::windows::options(), None).unwrap();
    assert_eq!(crew.start(&first.0, &first.1, &options, None).unwrap_err().kind(), ErrorKind::Busy);
    own.cancel(Cancel::Force).unwrap();
    turn_all(&mut crew, &world, 2000);
    for end in 0..3 {
        bitmap.set_bytes(ByteRange::new(0, BYTES));
        first.1.set_dead(end == 2);
        let (job, share) = crew.start(&first.0, &first.1, &options, None).unwrap();
        turn_all(&mut crew, &world, 10);
        let refused = crew.start(&second.0, &second.1, &options, None).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("bitmap"), "{refused}");
        assert!(!second.0.has_job(), "a refused job hangs on the drive");
        match end {
            0 => job.cancel(Cancel::Force).unwrap(),
            1 => share.fail(crate::mirror::Failure {
                side: crate::mirror::Side::Source,
                errno: libc::EIO,
                range: ByteRange::default(),
                cause: crate::mirror::FailureCause::Io,
            }),
            _ => job.cancel(Cancel::Force).unwrap(),
        }
        turn_all(&mut crew, &world, 2000);
        assert!(Crew::outcome(&job).is_some(), "{:?}", job.query());
        if end == 2 {
            // Its requests hang, and some day they set bits.
            assert_eq!(crew.start(&second.0, &second.1, &options, None).unwrap_err().kind(), ErrorKind::Busy);
        }
    }
}

/// A guest write that a job had sent to both sides outlives the job's workers where its disk is slow. Would its end still mark the
/// bitmap when another job has it, that one would not be woken for the mark; and a queue that comes too late would clear what is
/// the other's by then.
#[test]
fn a_working_bitmap_is_busy_until_the_last_active_write_has_ended_and_none_begins_after() {
    let (shape, bitmap) = (shape_of_disks(), working_bitmap());
    let options = MirrorOptions { bitmap: Some(Arc::clone(&bitmap)), granularity: None, ..options() };
    let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
    let share = || {
        Bitmaps::new(&geometry, &options)
            .map(|bitmaps| Share::new(geometry.clone(), &options, bitmaps, false, 1))
    };
    for ends_well in [true, false] {
        let first = share().unwrap();
        first.choose_copy_mode(crate::mirror::CopyMode::WriteBlocking);
        let range = ByteRange::at(8 * KIB, 4 * KIB);
        bitmap.set_bytes(range);
        let write = first.begin_active(range, 1).unwrap();
        let other = first.begin_active(ByteRange::at(64 * KIB, 4 * KIB), 1).unwrap();
        assert!(first.begin_active(range, 1).is_none(), "they overlap");
        first.release_bitmap();
        assert_eq!(share().map(drop).unwrap_err().kind(), ErrorKind::Busy);
        let _ = first.cancel_active(other);
        assert_eq!(share().map(drop).unwrap_err().kind(), ErrorKind::Busy);
        let target = if ends_well { Ok(()) } else { Err(libc::EIO) };
        let _ = first.end_active(write, Ok(()), target, 2);
        assert_eq!(bitmap.counted(), u64::from(!ends_well));
        let second = share().unwrap();
        assert!(first.begin_active(range, 3).is_none(), "the bitmap is another job's");
        bitmap.clear(ChunkRange::new(0, 100));
        drop(second);
        // A write that nobody can end any more does not keep the bitmap for ever.
        let third = share().unwrap();
        third.choose_copy_mode(crate::mirror::CopyMode::WriteBlocking);
        let _lost = third.begin_active(range, 1).unwrap();
    }
}

/// A job that counted before the bitmap was its own would not know of bits that the job before it set last. With too few counted,
/// it says that nothing is left, and is ready, while chunks are dirty.
#[test]
fn a_working_bitmap_is_counted_when_it_is_the_jobs_own() {
    let (shape, bitmap) = (shape_of_disks(), working_bitmap());
    let options = MirrorOptions { bitmap: Some(Arc::clone(&bitmap)), granularity: None, ..options() };
    let share = || -> Result<Share> {
        let geometry = Geometry::new(&options, &shape, &shape, 1)?;
        let bitmaps = Bitmaps::new(&geometry, &options)?;
        // The job before this one would set its last bits here, if it could still have the bitmap.
        assert!(Hold::take(&bitmap).is_err(), "it is counted while another job may have it");
        Ok(Share::new(geometry, &options, bitmaps, false, 1))
    };
    let before = Hold::take(&bitmap).unwrap();
    assert_eq!(share().map(drop).unwrap_err().kind(), ErrorKind::Busy);
    bitmap.set(ChunkRange::new(3, 10));
    before.release();
    let counted = share().unwrap();
    assert_eq!(counted.dirty.dirty_bytes(), 7 * 4 * KIB);
    // A start that goes no further leaves it to the next.
    assert_eq!(share().map(drop).unwrap_err().kind(), ErrorKind::Busy);
    drop(counted);
    assert_eq!(share().unwrap().dirty.dirty_bytes(), 7 * 4 * KIB);
    let (drive, target) = pair();
    let crew = Crew::new(&World::new(1, Faults::default()), 1, 2 << 20);
    let (_own, _) = crew.start(&drive, &target, &super::windows::options(), None).unwrap();
    for _ in 0..2 {
        let refused = crew.start(&drive, &target, &options, None).unwrap_err();
        assert!(!refused.to_string().contains("bitmap"), "{refused}");
        assert!(share().is_ok(), "a refused start keeps the bitmap");
    }
}
