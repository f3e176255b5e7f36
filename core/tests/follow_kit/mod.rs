//! A job that follows a drive without an engine: what a guest's requests pay for a job, and nothing of what the job does itself.

use std::sync::Arc;

use blkmirror_core::device::Device;
use blkmirror_core::drive::Drive;
use blkmirror_core::mirror::{Bitmaps, CopyMode, DeviceShape, Geometry, MirrorOptions, Share, SyncMode};
use blkmirror_core::ring::Wake;

/// A home that nobody needs to wake: it never sleeps.
#[derive(Debug)]
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// Lets a job follow the drive in this mode, from sides that are equal on.
pub(crate) fn follow(drive: &Drive, target: Device, mode: CopyMode) -> Arc<Share> {
    let shape = DeviceShape {
        size_bytes: drive.size_bytes(),
        align_bytes: 4096,
        max_request_bytes: 1 << 20,
        ..DeviceShape::default()
    };
    let options = MirrorOptions { sync: SyncMode::None, ..MirrorOptions::default() };
    let geometry = Geometry::new(&options, &shape, &shape, 1).unwrap();
    let bitmaps = Bitmaps::new(&geometry, &options).unwrap();
    let share = Arc::new(Share::new(geometry, &options, bitmaps, false, 1));
    share.choose_copy_mode(mode);
    drive.follow_for_benchmark(Arc::clone(&share), target, Arc::new(Awake)).unwrap();
    share
}
