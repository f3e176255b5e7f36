//! How a ring is set up: the best set of flags that this kernel takes, named, with a clear error where there is none.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, Submitter};
use rustix::process::{Resource, getrlimit};

use crate::buffer::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::uring::{MAX_HOST_BUFFERS, UringLimits};

/// Sets of flags, best first, each with the kernel that brought it.
const LADDER: [Rung; 4] = [
    Rung {
        name: "single issuer, deferred task work, no SQ array",
        since: "6.6",
        single: true,
        coop: false,
        no_array: true,
    },
    Rung {
        name: "single issuer, deferred task work",
        since: "6.1",
        single: true,
        coop: false,
        no_array: false,
    },
    Rung { name: "cooperative task work", since: "5.19", single: false, coop: true, no_array: false },
    Rung { name: "no flags", since: "5.15", single: false, coop: false, no_array: false },
];

/// One set of flags.
#[derive(Clone, Copy, Debug)]
struct Rung {
    /// For people.
    name: &'static str,
    /// The first kernel that takes it.
    since: &'static str,
    /// SINGLE_ISSUER and DEFER_TASKRUN.
    single: bool,
    /// COOP_TASKRUN.
    coop: bool,
    /// NO_SQARRAY.
    no_array: bool,
}

/// What a ring ended up with.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The flags in words.
    pub flags: &'static str,
    /// The kernel that brought these flags.
    pub flags_since: &'static str,
    /// SINGLE_ISSUER and DEFER_TASKRUN are on.
    pub deferred: bool,
    /// NO_SQARRAY is on.
    pub no_sq_array: bool,
    /// The copy memory is registered as one buffer.
    pub fixed_buffer: bool,
    /// The ring's own descriptor is registered.
    pub ring_fd: bool,
    /// The kernel can wait for a batch of completions (6.12).
    pub min_wait: bool,
    /// A sleep in the ring can be kept out of the iowait statistics (6.15).
    pub no_iowait: bool,
    /// Why the memory is not registered, if it is not.
    pub buffer_refused: Option<String>,
    /// Places for memory of the host's in the kernel's table.
    pub host_buffers: u16,
}

/// What is asked for beside the flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Places for memory of the host's.
    pub(super) host_buffers: u16,
    /// What to do without.
    pub(super) limits: UringLimits,
}

/// Builds a ring with the best flags that the kernel takes.
pub(super) fn build(entries: u32, cq_entries: u32, limits: UringLimits) -> Result<(IoUring, Setup)> {
    let mut last = io::Error::from_raw_os_error(libc::ENOSYS);
    for rung in LADDER.into_iter().skip(limits.skip_rungs.min(LADDER.len() - 1)) {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(cq_entries).dontfork();
        if rung.single {
            builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        }
        if rung.coop {
            builder.setup_coop_taskrun().setup_submit_all();
        }
        if rung.no_array {
            builder.setup_no_sqarray();
        }
        match builder.build(entries) {
            Ok(ring) => return accept(ring, rung, limits),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
            Err(e) => return Err(refused(e)),
        }
    }
    Err(refused(last))
}

/// Checks that the kernel has the floor of what is needed, and notes what it has beyond.
fn accept(ring: IoUring, rung: Rung, limits: UringLimits) -> Result<(IoUring, Setup)> {
    let params = ring.params();
    // All of these came by 5.11; a kernel without them cannot time a wait or keep every completion.
    let floor = params.is_feature_ext_arg() && params.is_feature_nodrop() && params.is_feature_fast_poll();
    if !floor {
        return Err(too_old());
    }
    let setup = Setup {
        flags: rung.name,
        flags_since: rung.since,
        deferred: rung.single,
        no_sq_array: rung.no_array,
        min_wait: params.is_feature_min_timeout() && !limits.no_new_waits,
        no_iowait: params.is_feature_no_iowait() && !limits.no_new_waits,
        ..Setup::default()
    };
    Ok((ring, setup))
}

/// The error for a kernel below the floor.
fn too_old() -> Error {
    Error::new(ErrorKind::Unsupported, "set up io_uring").because(format!(
        "kernel {} is too old; blkmirror needs Linux 5.15 or newer",
        crate::ring::probe::kernel_release()
    ))
}

/// The error for a ring that was not given, with what to do about it.
pub(super) fn refused(e: io::Error) -> Error {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let disabled = disabled.ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let why = match (e.raw_os_error(), disabled) {
        (Some(libc::ENOSYS), _) => {
            "this kernel has no io_uring, or a seccomp filter hides it; use Linux 5.15 or newer and allow \
             io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), 2) => {
            "io_uring is switched off for everybody; allow it with: sysctl kernel.io_uring_disabled=0".to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), 1) => {
            "io_uring is reserved for CAP_SYS_ADMIN and the group in kernel.io_uring_group; join that group or allow \
             everybody with: sysctl kernel.io_uring_disabled=0"
                .to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is forbidden here, most likely by a seccomp filter (containers do that); allow io_uring_setup, \
             io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "too many files are open; raise the limit (ulimit -n 256)".to_owned(),
        (Some(libc::EINVAL), _) => return too_old(),
        (Some(libc::ENOMEM), _) => {
            "the memory for the rings may not be locked; raise the limit (ulimit -l) or use fewer workers".to_owned()
        }
        _ => return Error::from_io("set up io_uring", e),
    };
    Error::from_io("set up io_uring", e).because(why)
}

impl Setup {
    /// Registers the devices' table, the copy memory and the ring's descriptor, as far as the kernel allows. Returns how
    /// many devices the table holds; after them comes `sentinel`, for as long as the ring lives.
    pub(super) fn register(
        &mut self,
        submitter: &mut Submitter<'_>,
        region: &Region,
        (devices, sentinel): (usize, BorrowedFd<'_>),
        Asked { host_buffers, limits }: Asked,
    ) -> Result<usize> {
        // The kernel counts the table against the limit on open files, whether its slots are in use or not.
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let devices = devices.min(usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(1));
        let mut table = vec![-1; devices];
        table.push(sentinel.as_raw_fd());
        submitter.register_files(&table).map_err(refused)?;
        let host_buffers = if limits.no_host_buffers { 0 } else { host_buffers.min(MAX_HOST_BUFFERS) };
        self.register_buffers(submitter, (!limits.no_fixed_buffer).then_some(region), host_buffers);
        self.ring_fd = !limits.no_ring_fd && submitter.register_ring_fd().is_ok();
        Ok(devices)
    }

    /// Registers the copy memory as one buffer, and after it empty places for the host's; without a buffer every request looks its
    /// pages up. A place without an address is an empty one since Linux 5.13, which also brought the filling of such places; the
    /// register call that makes a table of empty places by a flag needs 5.19, and is not needed.
    fn register_buffers(&mut self, submitter: &Submitter<'_>, copy: Option<&Region>, host_buffers: u16) {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut table = vec![empty; 1 + usize::from(host_buffers)];
        if let Some(region) = copy {
            table[0] = libc::iovec { iov_base: region.as_ptr().cast(), iov_len: region.len() };
            if self.register_table(submitter, &table) {
                (self.fixed_buffer, self.host_buffers) = (true, host_buffers);
                return;
            }
            // Its size may be what was refused, or the table's; each may do without the other.
            table[0] = empty;
        }
        if host_buffers > 0 && self.register_table(submitter, &table) {
            self.host_buffers = host_buffers;
        }
    }

    /// Registers a table; whether the kernel took it.
    fn register_table(&mut self, submitter: &Submitter<'_>, table: &[libc::iovec]) -> bool {
        // SAFETY: what is not empty in it is the copy memory, which stays mapped until the ring is gone (`own` drops them in this order
        // or leaks it).
        match unsafe { submitter.register_buffers(table) } {
            Ok(()) => true,
            Err(e) => {
                self.buffer_refused.get_or_insert_with(|| why_not_registered(&e));
                false
            }
        }
    }
}

/// Why the kernel did not take the copy memory.
fn why_not_registered(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOMEM) => "the limit on locked memory is too low (ulimit -l)".to_owned(),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_says_what_to_do() {
        for (errno, words) in [
            (libc::ENOSYS, "5.15"),
            (libc::EPERM, "io_uring"),
            (libc::EINVAL, "too old"),
            (libc::ENOMEM, "ulimit"),
        ] {
            let text = refused(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(words) && !text.contains('\n'), "{errno}: {text}");
        }
    }
}
