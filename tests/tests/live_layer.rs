//! Only the topmost layer is mirrored, live: what lies below it stays as the target has it, but for what the guest writes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;

use blkmirror_testkit::{KIB, MIB};
use blkmirror_tests::api::device::{Extent, ExtentKind};
use blkmirror_tests::api::engine::{Completion, JobStatus, MirrorOptions};
use blkmirror_tests::api::mirror::{ExtentMap, SyncMode};
use blkmirror_tests::api::units::ByteRange;
use blkmirror_tests::live::{GuestPlan, Medium, Scene, until_status};

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;
/// Bytes of a chunk.
const CHUNK: u64 = 64 * KIB;
/// What the target has already.
const BELOW: u8 = 0xbb;

/// What was absent from the layer at the start and is written by the guest belongs to the layer from then on. Taken for absent, it
/// would be missing on the target; and copied although nobody wrote it, it would hide what lies below.
#[test]
fn a_layer_is_mirrored_with_what_guests_add_to_it_and_nothing_that_lies_below_is_touched() {
    let scene = Scene::new(SIZE, Medium::Memory, Medium::Memory);
    fs::write(&scene.target.content, vec![BELOW; usize::try_from(SIZE).unwrap()]).unwrap();
    // Every other MiB belongs to the layer.
    let extent = |mib: u64| Extent { range: ByteRange::at(mib * MIB, MIB), kind: ExtentKind::Data };
    let extents = ExtentMap::from_extents((0..8).step_by(2).map(extent).collect()).unwrap();
    let options = MirrorOptions { sync: SyncMode::Top, extents: Some(extents), ..Scene::options() };
    let begun = scene.history.tick();
    // They write to the layer and to what lies below it, and not to all of that.
    let plan = GuestPlan { start_bytes: MIB / 2, end_bytes: 3 * MIB / 2, ..GuestPlan::over(SIZE, 5) };
    let guests = scene.guests_with(std::slice::from_ref(&plan));
    let job = scene.mirror(options);
    until_status(&job, JobStatus::Ready);
    guests.go_on(200);
    let _ = guests.stop();
    let outcome = scene.complete(&job, Completion::PointInTime);
    assert_eq!(outcome.left_dirty_bytes, 0);

    let written = scene.history.ranges_since(begun);
    let [source, target] = [&scene.source, &scene.target].map(|place| fs::read(&place.content).unwrap());
    let (mut added, mut below) = (0, 0);
    for start in (0..SIZE).step_by(usize::try_from(CHUNK).unwrap()) {
        let chunk = ByteRange::at(start, CHUNK);
        let part = usize::try_from(start).unwrap()..usize::try_from(start + CHUNK).unwrap();
        let in_layer = (start / MIB).is_multiple_of(2);
        let was_written = written.iter().any(|range| range.overlaps(chunk));
        if in_layer || was_written {
            assert!(source[part.clone()] == target[part], "the chunk at {start} was not copied");
            added += u32::from(!in_layer);
        } else {
            assert!(target[part].iter().all(|&byte| byte == BELOW), "the chunk at {start} was touched");
            below += 1;
        }
    }
    assert!(added > 0 && below > 0, "{added} chunks were added, {below} lie below");
}
