//! Taking away what killed runs left behind.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::dir::{PREFIX, ROOT};
use crate::run::run;

/// Unmounts, detaches and removes every scratch directory whose process is gone; returns what it took away.
///
/// A process id that was given to somebody else in the meantime keeps the leftovers for another day, nothing worse.
///
/// # Errors
/// When the list of directories cannot be read.
pub fn sweep() -> io::Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(ROOT)? {
        let path = entry?.path();
        let owner = path.file_name().and_then(|name| name.to_str()).and_then(owner_of);
        if owner.is_some_and(is_gone) {
            take_away(&path);
            swept.push(path);
        }
    }
    sweep_traces();
    Ok(swept)
}

/// Removes the trace instances of processes that are gone; they keep memory and slow tracepoints down.
fn sweep_traces() {
    let Ok(instances) = fs::read_dir("/sys/kernel/tracing/instances") else { return };
    for instance in instances.flatten() {
        let owner = instance.file_name().to_str().and_then(owner_of);
        if owner.is_some_and(is_gone) {
            let _ = fs::remove_dir(instance.path());
        }
    }
}

/// Whether there is no process of that id.
fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

/// The process id in the name of something that the kit or its users made.
fn owner_of(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

/// Unmounts what is mounted inside `directory`, detaches the loop devices over its files, and removes it.
fn take_away(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The last mounted goes first.
    for line in mounts.lines().rev() {
        let Some(mountpoint) = line.split(' ').nth(1) else { continue };
        if Path::new(mountpoint).starts_with(directory) {
            let _ = umount2(mountpoint, MntFlags::MNT_DETACH);
        }
    }
    let loops = run("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).unwrap_or_default();
    for line in loops.lines() {
        let Some((name, backing)) = line.split_once(char::is_whitespace) else { continue };
        if Path::new(backing.trim()).starts_with(directory) {
            let _ = run("losetup", ["--detach", name]);
        }
    }
    let _ = fs::remove_dir_all(directory);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoopDevice, LoopOptions, MIB, ScratchDir, needs};
    use std::fs::File;
    use std::time::{Duration, Instant};

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner_of("blkmirror-kit-12-3"), Some(12));
        assert_eq!(owner_of("blkmirror-kit-12"), None);
        assert_eq!(owner_of("blkmirror-kit-x-3"), None);
        assert_eq!(owner_of("somebody-elses"), None);
    }

    #[test]
    fn leftovers_of_a_dead_process_go_and_those_of_a_living_one_stay() {
        needs!(Losetup);
        let mine = ScratchDir::new().unwrap();
        // No process has an id this large (the kernel's limit is 2^22).
        let dead = Path::new(ROOT).join(format!("{PREFIX}99999999-0"));
        fs::create_dir_all(&dead).unwrap();
        let image = dead.join("disk");
        File::create(&image).unwrap().set_len(MIB).unwrap();
        let device = LoopDevice::attach(&image, LoopOptions::default()).unwrap();
        std::mem::forget(device);
        // Another test process may sweep at the same moment, so what counts is that it is gone.
        sweep().unwrap();
        assert!(!dead.exists());
        assert!(mine.path().exists());
        // A device that somebody has open in that moment, and be it to list it, is detached when he closes it.
        let is_listed = || {
            let listed = run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).unwrap();
            listed.contains("blkmirror-kit-99999999")
        };
        let patience = Instant::now() + Duration::from_secs(10);
        while is_listed() {
            assert!(Instant::now() < patience, "the loop device is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
