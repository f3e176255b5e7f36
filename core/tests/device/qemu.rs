//! Images that QEMU uses, and QEMU on images that we use. Its locks and ours must understand each other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use blkmirror_core::ErrorKind;

use crate::kit::{assert_refused, filled, let_go, needs, on_disk, output, source, spawn, target};

/// A `qemu-io` that holds an image open, as a VMM would.
struct Guest(Child);

impl Guest {
    /// Opens the image for writing and waits until it is open.
    fn start(image: &Path) -> Self {
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "raw"]).arg(image);
        let mut child = spawn(qemu.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "write -P 1 0 4k\n").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("wrote 4096/4096") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "qemu-io ended early");
        }
        Self(child)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether QEMU can open an image for writing now.
fn qemu_can_write(image: &Path) -> bool {
    let mut qemu = Command::new("qemu-io");
    output(qemu.args(["-f", "raw", "-c", "write -P 2 0 4k"]).arg(image)).unwrap().status.success()
}

#[test]
fn an_image_of_a_running_guest_is_a_fine_source_and_no_target() {
    if !needs(&["qemu-io"]) {
        return;
    }
    let dir = on_disk();
    let image = filled(&dir.path().join("disk"), 1 << 20);
    let guest = Guest::start(&image);
    assert_refused(target(&image), ErrorKind::Busy, &image, "in use");
    source(&image).unwrap();
    drop(guest);
    target(&image).unwrap();
}

#[test]
fn our_source_does_not_keep_a_guest_from_its_disk_and_our_target_does() {
    if !needs(&["qemu-io"]) {
        return;
    }
    let dir = on_disk();
    let image = filled(&dir.path().join("disk"), 1 << 20);
    let reader = source(&image).unwrap();
    assert!(qemu_can_write(&image), "Our hands off the source");
    drop(reader);
    let holder = target(&image).unwrap();
    assert!(!qemu_can_write(&image));
    let_go(holder);
    assert!(qemu_can_write(&image));
}
