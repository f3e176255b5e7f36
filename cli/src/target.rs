//! Opens or creates the target of a copy, and refuses what would do harm.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use blkmirror_core::ErrorKind;
use blkmirror_core::device::{Device, DeviceKind, TargetOptions};
use blkmirror_core::units::{ByteRange, format_size};
use rustix::fs::{fstat, fstatvfs};
use rustix::process::geteuid;

use crate::args::CopyArgs;
use crate::exit::{Failure, Outcome};
use crate::signals::{Interrupts, Ticket};

/// The opened target.
pub(crate) struct Target {
    /// The device.
    pub(crate) device: Device,
    /// Registered removal of a file that was created for the job; to be kept once the job runs.
    pub(crate) created: Option<Ticket>,
    /// It is known to read as zeroes, because it was created just now.
    pub(crate) is_zero: bool,
    /// What did not go as asked for and does not matter for the copy.
    pub(crate) note: Option<String>,
}

/// Opens the target, or creates it with the source's size if it is missing.
pub(crate) fn open(args: &CopyArgs, source: &Device, interrupts: &Interrupts) -> Outcome<Target> {
    let bytes = source.size_bytes();
    let mut target = if is_missing(&args.target) {
        refuse_to_create(&args.target)?;
        let device = Device::create_target(&args.target, bytes)?;
        let path = args.target.clone();
        let created = interrupts.on_exit(move || {
            // If it cannot be removed, an empty file stays; the error that brought us here matters more.
            let _ = fs::remove_file(path);
        });
        Target { device, created: Some(created), is_zero: true, note: None }
    } else {
        let device = Device::open_target(&args.target, TargetOptions::default())?;
        if let Some(why) = source.overlaps_with(&device) {
            return Err(Failure::failed(format!(
                "cannot copy {} to {}: the source and the target {why}",
                source.name(),
                device.name()
            )));
        }
        check_size(source, &device, args.force)?;
        Target { device, created: None, is_zero: false, note: None }
    };
    if args.preallocate && target.device.kind() == DeviceKind::RegularFile && bytes > 0 {
        target.note = preallocate(&target.device, bytes)?;
    }
    Ok(target)
}

/// Reserves the first `bytes` of a file. A file system that cannot is no reason to stop, and gives a note.
fn preallocate(target: &Device, bytes: u64) -> Outcome<Option<String>> {
    check_space(target, bytes)?;
    let reserved_before = allocated_bytes(target);
    let Err(error) = target.preallocate(ByteRange::new(0, bytes)) else { return Ok(None) };
    match error.kind() {
        ErrorKind::Unsupported => {
            let why = error.why().unwrap_or("its file system cannot reserve space").to_owned();
            Ok(Some(format!("{}: --preallocate: {why}", target.name())))
        }
        // The kernel reserves piece by piece and does not give back what it has when it comes to the end.
        ErrorKind::NoSpace => {
            let more = allocated_bytes(target).saturating_sub(reserved_before);
            Err(Failure::failed(format!(
                "{error}; {} more than before stays reserved in it: free space and run this again, or give it back with \
                 fallocate --dig-holes",
                format_size(more)
            )))
        }
        _ => Err(error.into()),
    }
}

/// Refuses before anything is reserved, where the file system says that there is too little space.
fn check_space(target: &Device, bytes: u64) -> Outcome<()> {
    // A file system that does not answer, or counts no blocks, is asked by reserving.
    let Ok(space) = fstatvfs(target) else { return Ok(()) };
    let blocks = if geteuid().is_root() { space.f_bfree } else { space.f_bavail };
    let free_bytes = blocks.saturating_mul(space.f_frsize);
    let missing_bytes = bytes.saturating_sub(allocated_bytes(target));
    if space.f_blocks == 0 || missing_bytes <= free_bytes {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "cannot preallocate space in {}: it needs {} more, its file system has {} free; free some, or copy without \
         --preallocate",
        target.name(),
        format_size(missing_bytes),
        format_size(free_bytes)
    )))
}

/// The space that a file takes.
fn allocated_bytes(target: &Device) -> u64 {
    // st_blocks counts 512 bytes whatever the file system's block is.
    fstat(target).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Whether there is nothing by this name; a dangling link is something.
fn is_missing(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// A mistyped device name must not become a file in the memory behind /dev.
fn refuse_to_create(path: &Path) -> Outcome<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let parent = fs::canonicalize(parent).unwrap_or_else(|_| PathBuf::from(parent));
    if parent.starts_with("/dev") && !parent.starts_with("/dev/shm") {
        return Err(Failure::failed(format!(
            "cannot open the target {}: no such device, and files are not created in /dev",
            path.display()
        )));
    }
    Ok(())
}

/// Refuses a target that is too small, and one that is too large unless `force` says otherwise.
fn check_size(source: &Device, target: &Device, force: bool) -> Outcome<()> {
    let (from, to) = (source.size_bytes(), target.size_bytes());
    let sizes = || {
        format!(
            "{} has {to} bytes ({}), the source {} has {from} ({})",
            target.name(),
            format_size(to),
            source.name(),
            format_size(from)
        )
    };
    if to < from {
        return Err(Failure::failed(format!("the target is too small: {}", sizes())));
    }
    if to > from && !force {
        return Err(Failure::failed(format!(
            "the target is larger: {}; --force copies to its beginning",
            sizes()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `dd`'s classic: a typo in the device's name fills the memory.
    #[test]
    fn no_file_is_created_among_the_devices() {
        assert!(refuse_to_create(Path::new("/dev/no-such-disk")).is_err());
        assert!(refuse_to_create(Path::new("/dev/shm/image")).is_ok());
        assert!(refuse_to_create(Path::new("image")).is_ok());
    }
}
