//! Loop devices, made by `losetup`.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::ScratchDir;
use crate::run::{context, run};

/// How a loop device is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopOptions {
    /// Go around the page cache of the file below, so that the device behaves as a disk does.
    pub direct_io: bool,
    /// Logical sector size; `None` for the kernel's default of 512.
    pub sector_bytes: Option<u32>,
    /// Look for a partition table.
    pub partscan: bool,
    /// Refuse writes.
    pub read_only: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { direct_io: true, sector_bytes: None, partscan: false, read_only: false }
    }
}

/// A loop device that is detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    path: PathBuf,
    /// Whether somebody may have changed a queue limit, which outlives the detaching.
    limits_changed: bool,
    /// The file below, if it is ours; removed after the device is detached.
    _backing: Option<ScratchDir>,
}

impl LoopDevice {
    /// Attaches `file`.
    ///
    /// # Errors
    /// When `losetup` fails, or direct I/O was asked for and the kernel did not grant it.
    pub fn attach(file: &Path, options: LoopOptions) -> io::Result<Self> {
        let mut arguments: Vec<String> = vec!["--find".into(), "--show".into()];
        if options.direct_io {
            arguments.push("--direct-io=on".into());
        }
        if let Some(bytes) = options.sector_bytes {
            arguments.push(format!("--sector-size={bytes}"));
        }
        if options.partscan {
            arguments.push("--partscan".into());
        }
        if options.read_only {
            arguments.push("--read-only".into());
        }
        arguments.push(file.display().to_string());
        let device =
            Self { path: PathBuf::from(retried(&arguments)?), limits_changed: false, _backing: None };
        if options.direct_io && device.sysfs("loop/dio")? != "1" {
            return Err(io::Error::other(format!(
                "{}: no direct I/O on {}",
                device.path.display(),
                file.display()
            )));
        }
        // What a former user of this device number set with `blockdev --setro` or in sysfs has outlived the detaching.
        let _ = device.set_max_request_kib(0);
        if !options.read_only && device.sysfs("ro")? != "0" {
            run("blockdev", ["--setrw".as_ref(), device.path.as_os_str()])?;
        }
        Ok(device)
    }

    /// A device of `len_bytes` over a sparse file in memory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn in_memory(len_bytes: u64, options: LoopOptions) -> io::Result<Self> {
        let backing = ScratchDir::new()?;
        let file = backing.sparse_file("disk", len_bytes)?;
        let mut device = Self::attach(&file, options)?;
        device._backing = Some(backing);
        Ok(device)
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `loopN`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The file in `/sys/block/loopN` named `entry`, without the line's end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sysfs(&self, entry: &str) -> io::Result<String> {
        let path = self.sysfs_path(entry);
        let text = fs::read_to_string(&path).map_err(|error| context(path.display(), &error))?;
        Ok(text.trim().to_owned())
    }

    /// Lowers the largest request to `kib` (0: the kernel's default), to look like a disk with small requests.
    ///
    /// # Errors
    /// When the kernel refuses the value.
    pub fn limit_request_kib(&mut self, kib: u64) -> io::Result<()> {
        self.limits_changed = true;
        self.set_max_request_kib(kib)
    }

    /// Takes the size of the file below once more.
    ///
    /// # Errors
    /// When `losetup` fails.
    pub fn refresh_size(&self) -> io::Result<()> {
        run("losetup", ["--set-capacity".as_ref(), self.path.as_os_str()]).map(drop)
    }

    /// Writes `queue/max_sectors_kb`.
    fn set_max_request_kib(&self, kib: u64) -> io::Result<()> {
        fs::write(self.sysfs_path("queue/max_sectors_kb"), kib.to_string())
    }

    /// The path of `entry` in sysfs.
    fn sysfs_path(&self, entry: &str) -> PathBuf {
        Path::new("/sys/block").join(self.name()).join(entry)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if self.limits_changed {
            let _ = self.set_max_request_kib(0);
        }
        // A device somebody still has open is detached by the kernel at the last close.
        let _ = run("losetup", ["--detach".as_ref(), self.path.as_os_str()]);
    }
}

/// `losetup --find` may lose a race for the device it found; then the next try finds another.
fn retried(arguments: &[String]) -> io::Result<String> {
    let mut tries = 0;
    loop {
        match run("losetup", arguments) {
            Err(error) if tries < 10 && error.to_string().contains("busy") => {
                tries += 1;
                thread::sleep(Duration::from_millis(10 * tries));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MIB, fill, needs};

    #[test]
    fn a_loop_device_has_the_sector_size_asked_for_and_goes_away() {
        needs!(Losetup);
        let options = LoopOptions { sector_bytes: Some(4096), ..LoopOptions::default() };
        let device = LoopDevice::in_memory(4 * MIB, options).unwrap();
        assert_eq!(device.sysfs("queue/logical_block_size").unwrap(), "4096");
        fill::random(device.path(), 0, 4 * MIB, 3).unwrap();
        assert_eq!(crate::compare::first_not_random(device.path(), 0, 4 * MIB, 3).unwrap(), None);
        let backing = device.sysfs("loop/backing_file").unwrap();
        assert_eq!(crate::compare::first_not_random(Path::new(&backing), 0, 4 * MIB, 3).unwrap(), None);
        drop(device);
        assert!(!Path::new(&backing).exists());
        let listed = run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).unwrap();
        assert!(!listed.contains(&backing), "{listed}");
    }

    #[test]
    fn a_panic_detaches_the_device() {
        needs!(Losetup);
        let backing = std::sync::Mutex::new(String::new());
        let result = std::panic::catch_unwind(|| {
            let device = LoopDevice::in_memory(MIB, LoopOptions::default()).unwrap();
            *backing.lock().unwrap() = device.sysfs("loop/backing_file").unwrap();
            panic!("as a failing test does");
        });
        assert!(result.is_err());
        let listed = run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).unwrap();
        assert!(!listed.contains(backing.into_inner().unwrap().as_str()), "{listed}");
    }
}
