//! A caller's working bitmap, and the one job that may have it at a time.

use super::windows::{options, turn_all};
use super::*;
use crate::bitmap::DirtyBitmap;
use crate::engine::crew::Crew;
use crate::error::ErrorKind;

/// The disks.
const BYTES: u64 = 1 << 20;

/// A drive and a target.
fn pair() -> (Arc<DriveCore<SimDisk>>, Arc<SimDisk>) {
    (DriveCore::new(SimDisk::new(BYTES), BYTES, 512, true), SimDisk::new(BYTES))
}

/// Two jobs that clear each other's bits would both call clean what neither has copied.
#[test]
fn a_working_bitmap_belongs_to_one_job_at_a_time_and_is_free_however_that_ends() {
    let world = World::new(1, Faults::default());
    let (first, second) = (pair(), pair());
    let mut crew = Crew::new(&world, 2, 2 << 20);
    let bitmap = Arc::new(DirtyBitmap::new(BYTES, Granularity::new(4 * KIB).unwrap()).unwrap());
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
