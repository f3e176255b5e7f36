//! Has the kernel send a FUSE file's reads and writes to its server one at a time.
//!
//! Direct reads and writes are "background" requests of FUSE, and the kernel keeps no more of these under way than the connection's
//! `max_background` says; the others wait in the kernel. So the requests of a ring meet at the disk, as on a disk whose queue has
//! one place, and a server that cannot tell two writes apart never sees two.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Asks for it for the FUSE file `path`. `control` is a directory that is made for the kernel's control files.
pub(super) fn ask(path: &Path, control: &Path) -> io::Result<()> {
    // A connection is named by the minor number of its device.
    let number = nix::sys::stat::minor(fs::metadata(path)?.dev());
    fs::create_dir(control)?;
    mount(Some("fusectl"), control, Some("fusectl"), MsFlags::empty(), None::<&str>)?;
    let asked = fs::write(control.join(number.to_string()).join("max_background"), "1");
    umount2(control, MntFlags::MNT_DETACH)?;
    asked
}
