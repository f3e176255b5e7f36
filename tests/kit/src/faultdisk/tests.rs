//! What the tests of the command rely on.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::{SeekFrom, seek};

use super::*;
use crate::{KIB, LoopDevice, LoopOptions, MIB, equal, fill, needs};

/// Opens the disk for reading and writing.
fn open(disk: &FaultDisk) -> File {
    File::options().read(true).write(true).open(disk.path()).unwrap()
}

/// The errno of a failed call.
fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_is_written_is_read_and_has_the_size_asked_for() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(4 * MIB + 512).unwrap();
    fill::random(disk.path(), 0, 4 * MIB + 512, 5).unwrap();
    assert!(equal(disk.path(), disk.content_path()).unwrap());
    assert_eq!(crate::compare::first_not_random(disk.path(), 0, 4 * MIB + 512, 5).unwrap(), None);
    let path = disk.path().to_owned();
    drop(disk);
    assert!(!path.exists());
}

#[test]
fn a_rule_hits_its_range_and_heals() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let file = open(&disk);
    let rule = Rule::on(Operation::Write, Effect::Error(libc::EIO)).within(8192..8193);
    disk.control().add_rule(rule.times(Times::Once));
    file.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(errno(file.write_all_at(&[1; 4096], 8192)), Some(libc::EIO));
    file.write_all_at(&[1; 4096], 8192).unwrap();

    disk.control().add_rule(Rule::on(Operation::Flush, Effect::Error(libc::EIO)));
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    disk.control().clear_rules();
    file.sync_data().unwrap();
    assert_eq!(disk.control().counters().faults, 2);

    disk.control().add_rule(Rule::on(Operation::Read, Effect::Short(512)));
    assert_eq!(file.read_at(&mut [0; 4096], 0).unwrap(), 512);
    disk.control().add_rule(Rule::on(Operation::Write, Effect::Short(1024)));
    assert_eq!(file.write_at(&[0; 4096], 0).unwrap(), 1024);
}

#[test]
fn space_runs_out_and_comes_back() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let file = open(&disk);
    disk.control().set_capacity(64 * KIB);
    file.write_all_at(&[1; 65536], 0).unwrap();
    file.write_all_at(&[2; 65536], 0).unwrap();
    assert_eq!(errno(file.write_all_at(&[1; 4096], 65536)), Some(libc::ENOSPC));
    assert_eq!(
        errno(fallocate(&file, FallocateFlags::empty(), 65536, 4096).map_err(Into::into)),
        Some(libc::ENOSPC)
    );
    disk.control().set_capacity(128 * KIB);
    file.write_all_at(&[1; 4096], 65536).unwrap();
}

#[test]
fn holes_are_punched_zeroed_and_found() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let file = open(&disk);
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 65536, 65536).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 65536);
    assert_eq!(seek(&file, SeekFrom::Data(65536)).unwrap(), 131_072);
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, zero, 262_144, 65536).unwrap();
    assert_eq!(crate::compare::first_not_pattern(disk.path(), 262_144, 65536, 0).unwrap(), None);
    disk.control().set_fallocate_supported(false);
    assert_eq!(fallocate(&file, punch, 0, 4096), Err(nix::Error::EOPNOTSUPP));
    disk.control().set_fallocate_supported(true);
    fallocate(&file, punch, 0, 4096).unwrap();
    disk.control().set_seek_supported(false);
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Err(rustix::io::Errno::INVAL));
}

/// A test of a source that does not say where its holes are would test nothing.
#[test]
fn a_question_for_holes_meets_its_rule() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let file = open(&disk);
    disk.control().add_rule(Rule::on(Operation::Seek, Effect::Error(libc::EIO)).within(4096..8192));
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Hole(4096)), Err(rustix::io::Errno::IO));
    disk.control().clear_rules();
    disk.control().add_rule(Rule::on(Operation::Seek, Effect::Stuck));
    thread::scope(|scope| {
        let asker = scope.spawn(|| seek(&file, SeekFrom::Hole(4096)));
        assert!(disk.control().wait_until(Duration::from_secs(5), |counters| counters.stuck == 1));
        assert_eq!(disk.control().release_stuck(None), 1);
        assert_eq!(asker.join().unwrap(), Ok(4096));
    });
    assert_eq!(disk.control().counters().seeks, 3);
}

#[test]
fn a_disk_shrinks_behind_the_back_of_its_reader() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let file = open(&disk);
    assert_eq!(file.metadata().unwrap().len(), MIB);
    disk.control().set_size(4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4096);
    assert_eq!(file.read_at(&mut [0; 4096], 8192).unwrap(), 0);
}

#[test]
fn latencies_of_many_requests_pass_at_the_same_time() {
    needs!(Fuse);
    let latency = Duration::from_millis(100);
    let disk =
        FaultDisk::new(&Options { size_bytes: MIB, write_latency: latency, ..Options::default() }).unwrap();
    let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(disk.path()).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        for number in 0..64 {
            let file = &file;
            scope.spawn(move || file.write_all_at(&[7; 4096], number * 4096).unwrap());
        }
    });
    let elapsed = started.elapsed();
    assert!(elapsed >= latency && elapsed < 10 * latency, "{elapsed:?}");
    let counters = disk.control().counters();
    assert!(counters.max_writes_in_flight > 32, "{counters:?}");
    assert_eq!(counters.in_flight, 0);
}

#[test]
fn dropping_the_disk_frees_whoever_is_stuck() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    disk.control().add_rule(Rule::on(Operation::Read, Effect::Stuck));
    let path = disk.path().display();
    let mut reader =
        Command::new("dd").arg(format!("if={path}")).arg("of=/dev/null").arg("bs=4096").spawn().unwrap();
    assert!(disk.control().wait_until(Duration::from_secs(5), |counters| counters.stuck == 1));
    drop(disk);
    assert!(!reader.wait().unwrap().success());
}

#[test]
fn stuck_requests_take_effect_when_they_are_released() {
    needs!(Fuse);
    let disk = FaultDisk::of_size(MIB).unwrap();
    disk.control().add_rule(Rule::on(Operation::Write, Effect::Stuck).times(Times::Count(2)));
    let file = open(&disk);
    thread::scope(|scope| {
        let writer = scope.spawn(|| file.write_all_at(&[9; 4096], 0));
        assert!(disk.control().wait_until(Duration::from_secs(5), |counters| counters.stuck == 1));
        assert_eq!(crate::compare::first_not_pattern(disk.content_path(), 0, 4096, 0).unwrap(), None);
        assert_eq!(disk.control().release_stuck(None), 1);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(crate::compare::first_not_pattern(disk.content_path(), 0, 4096, 9).unwrap(), None);
}

#[test]
fn a_loop_device_over_it_is_a_block_device_with_faults() {
    needs!(Fuse, Losetup);
    let disk = FaultDisk::of_size(MIB).unwrap();
    let device = LoopDevice::attach(disk.path(), LoopOptions::default()).unwrap();
    disk.control().add_rule(Rule::on(Operation::Write, Effect::Error(libc::EIO)).within(65536..65537));
    fill::random(device.path(), 0, 4096, 1).unwrap();
    assert_eq!(errno(fill::random(device.path(), 65536, 4096, 1)), Some(libc::EIO));
}
