//! A target that is the source, is mounted or is in use is refused by whatever name it is given; afterwards it is free.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_testkit::{Ext4OnLoop, LoopDevice, LoopOptions, MIB, ScratchDir, needs, run::run as tool};
use blkmirror_tests::{Untouched, assert_equal, copy, copy_json, start};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Runs `copy source target` and expects a refusal that names the target and has `words`.
#[track_caller]
fn refuse(source: &Path, target: &Path, words: &[&str]) {
    let name = target.display().to_string();
    let ended = start(copy(source, target, &["--force"])).wait().failed(1, words);
    assert!(ended.stderr.contains(&name), "{ended:?}");
}

#[test]
fn a_file_is_not_copied_onto_itself_by_any_name() {
    let dir = ScratchDir::new().unwrap();
    let disk = Untouched::file(dir.join("disk"), MIB);
    let (hard, soft) = (dir.join("hard"), dir.join("soft"));
    fs::hard_link(disk.path(), &hard).unwrap();
    symlink(disk.path(), &soft).unwrap();
    let dotted = dir.path().join("../").join(dir.path().file_name().unwrap()).join("./disk");
    for name in [disk.path(), &hard, &soft, &dotted] {
        refuse(disk.path(), name, &["same"]);
        refuse(name, disk.path(), &["same"]);
    }
    disk.check();
}

#[test]
fn a_device_is_not_copied_onto_itself_by_any_name() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let device = LoopDevice::in_memory(MIB, LoopOptions::default()).unwrap();
    let disk = Untouched::disk(device.path(), MIB);
    let (soft, node) = (dir.join("soft"), dir.join("node"));
    symlink(device.path(), &soft).unwrap();
    make_node(&device.sysfs("dev").unwrap(), &node);
    refuse(device.path(), device.path(), &[]);
    refuse(device.path(), &soft, &[]);
    // Where device nodes do not work (a nodev mount), the refusal is another one.
    refuse(device.path(), &node, &[]);
    disk.check();
}

/// Makes a block device node for `MAJOR:MINOR`.
fn make_node(number: &str, path: &Path) {
    let (major, minor) = number.split_once(':').unwrap();
    let device = makedev(major.parse().unwrap(), minor.parse().unwrap());
    mknod(path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device).unwrap();
}

#[test]
fn a_loop_device_and_the_file_below_it_are_the_same_disk() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let disk = Untouched::file(dir.join("disk"), MIB);
    let device = LoopDevice::attach(disk.path(), LoopOptions::default()).unwrap();
    refuse(device.path(), disk.path(), &["loop"]);
    refuse(disk.path(), device.path(), &[]);
    // Nor is the file below a loop device written to behind its back.
    let source = dir.random_file("source", MIB, 1).unwrap();
    refuse(&source, disk.path(), &["loop"]);
    disk.check();
}

#[test]
fn a_partition_and_its_disk_are_not_copied_onto_each_other() {
    needs!(Losetup, Partx);
    let dir = ScratchDir::new().unwrap();
    let image = dir.sparse_file("image", 4 * MIB).unwrap();
    write_partition_table(&image);
    let device = LoopDevice::attach(&image, LoopOptions::default()).unwrap();
    let partition = Partition::first_of(&device);
    refuse(device.path(), &partition.path, &[]);
    refuse(&partition.path, device.path(), &[]);
    assert_eq!(fs::read(&image).unwrap()[510..512], [0x55, 0xaa]);
}

/// An MBR with one partition of 2 MiB that starts at 1 MiB.
fn write_partition_table(image: &Path) {
    let mut sector = [0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(image).unwrap(), &sector, 0)
        .unwrap();
}

/// The first partition of a loop device; taken away when dropped.
struct Partition {
    /// Its node.
    path: PathBuf,
    /// The whole disk.
    disk: PathBuf,
}

impl Partition {
    /// Tells the kernel of it, since not every kernel reads partition tables by itself.
    fn first_of(device: &LoopDevice) -> Self {
        let disk = device.path().to_owned();
        tool("partx", ["--add".as_ref(), disk.as_os_str()]).unwrap();
        let path = PathBuf::from(format!("{}p1", disk.display()));
        assert!(path.exists(), "{} did not appear", path.display());
        Self { path, disk }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let _ = tool("partx", ["--delete".as_ref(), self.disk.as_os_str()]);
    }
}

#[test]
fn a_mounted_device_is_no_target_but_a_source() {
    needs!(Ext4);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 16 * MIB, 1).unwrap();
    let fs = Ext4OnLoop::new(16 * MIB).unwrap();
    let precious = Untouched::file(fs.join("precious"), MIB);
    refuse(&source, fs.device().path(), &["mounted"]);
    precious.check();
    let target = dir.join("target");
    let _ = copy_json(fs.device().path(), &target, &[]).succeeded();
}

#[test]
fn a_device_that_somebody_holds_is_refused_until_it_is_let_go() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let device = LoopDevice::in_memory(MIB, LoopOptions::default()).unwrap();
    let disk = Untouched::disk(device.path(), MIB);
    let o_excl = 0o200;
    let holder = File::options().read(true).write(true).custom_flags(o_excl).open(device.path()).unwrap();
    refuse(&source, device.path(), &["in use"]);
    disk.check();
    drop(holder);
    let _ = copy_json(&source, device.path(), &[]).succeeded();
    assert_equal(&source, device.path());
}

#[test]
fn two_copies_do_not_share_a_target_and_the_next_one_may_have_it() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 4 * MIB, 1).unwrap();
    let target = dir.sparse_file("target", 4 * MIB).unwrap();
    let first = start(copy(&source, &target, &["--speed=1M"]));
    std::thread::sleep(Duration::from_millis(400));
    refuse(&source, &target, &["in use"]);
    // Several copies from one source are fine.
    let _ = copy_json(&source, &dir.join("other"), &[]).succeeded();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait().code, Some(130));
    let _ = copy_json(&source, &target, &[]).succeeded();
    assert_equal(&source, &target);
}

#[test]
fn two_copies_do_not_share_a_device_and_the_next_one_may_have_it() {
    needs!(Losetup);
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", 4 * MIB, 1).unwrap();
    let device = LoopDevice::in_memory(4 * MIB, LoopOptions::default()).unwrap();
    let first = start(copy(&source, device.path(), &["--speed=1M"]));
    std::thread::sleep(Duration::from_millis(400));
    refuse(&source, device.path(), &["in use"]);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.wait().code, None);
    // The kernel takes the ring of a killed process down in the background, and the ring holds the device until then.
    let free = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        copy_json(&source, device.path(), &[]).code == Some(0)
    });
    assert!(free, "a killed copy holds its target for ever");
    assert_equal(&source, device.path());
}

/// flock is another kind of lock, of which QEMU and losetup know nothing; the copy must not trip over it.
#[test]
fn a_foreign_flock_on_the_source_does_no_harm() {
    let dir = ScratchDir::new().unwrap();
    let source = dir.random_file("source", MIB, 1).unwrap();
    let held = Flock::lock(File::open(&source).unwrap(), FlockArg::LockExclusive).unwrap();
    let target = dir.join("target");
    let _ = copy_json(&source, &target, &[]).succeeded();
    drop(held);
    assert_equal(&source, &target);
}

#[test]
fn the_source_is_never_written_to() {
    let dir = ScratchDir::new().unwrap();
    let source = Untouched::file(dir.join("source"), MIB);
    let before = fs::metadata(source.path()).unwrap().modified().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let _ = copy_json(source.path(), &dir.join("target"), &["--verify"]).succeeded();
    assert_eq!(fs::metadata(source.path()).unwrap().modified().unwrap(), before);
    source.check();
}
