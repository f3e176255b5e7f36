//! The topmost layer of a chain of images, copied into another overlay: what `--sync top` is for.
//!
//! Source and target are qcow2 overlays that `qemu-storage-daemon` shows as raw files, the way a VMM with its own image
//! formats would hand them over. The source has small clusters and the target large ones, so that the layer ends in the
//! middle of a target's cluster. There the rule of the whole cluster at first touch counts: what is not copied of a
//! cluster is filled by the target, from its backing file if that is there, with zeroes if it comes later.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blkmirror_testkit::{KIB, MIB, ScratchDir, StorageDaemon, fill, needs};
use blkmirror_tests::{Ended, copy_json};
use serde_json::Value;

/// Size of the disks here.
const SIZE: u64 = 4 * MIB;
/// The clusters of the target.
const CLUSTER: u64 = 64 * KIB;
/// The clusters of the source's layers.
const SMALL: u64 = 4 * KIB;
/// How a copy into the target's clusters is asked for.
///
/// In both cases one write is under way at a time: the export of QEMU 10.0 mixes up the data of two (so does any other
/// program that writes to it; fio with two writes in flight finds its data swapped).
const WHOLE_CLUSTERS: [&str; 4] =
    ["--granularity=4K", "--target-cluster-size=64K", "--buf-size=64K", "--threads=1"];
/// The same without a word on the clusters.
const CHUNKS_ALONE: [&str; 3] = ["--granularity=4K", "--buf-size=4K", "--threads=1"];

/// What lies where in a layer: first byte, length, and the byte that fills it (0: marked as zero without data).
type Piece = (u64, u64, u8);

/// The bottom of the chain: data and zeroes in turn, so that a cluster of the target has several extents in it.
const BASE: [Piece; 4] =
    [(0, MIB, 0x11), (MIB + 20 * KIB, 300 * KIB, 0x12), (2 * MIB, 8 * KIB, 0x13), (3 * MIB, MIB, 0x14)];

/// The layer in between.
const MIDDLE: [Piece; 2] = [(128 * KIB, 12 * KIB, 0x21), (2 * MIB + 4 * KIB, 200 * KIB, 0x22)];

/// The topmost layer: inside a cluster, over a border, whole clusters, zeroes over data, next to nothing below.
const TOP: [Piece; 9] = [
    (4 * KIB, 4 * KIB, 0x31),
    (124 * KIB, 12 * KIB, 0x32),
    (256 * KIB, 128 * KIB, 0x33),
    (512 * KIB, 64 * KIB, 0),
    (640 * KIB, 4 * KIB, 0),
    (MIB + 64 * KIB, 4 * KIB, 0x34),
    (2 * MIB + 512 * KIB, 8 * KIB, 0x35),
    (3 * MIB + 128 * KIB, 256 * KIB, 0),
    (SIZE - 4 * KIB, 4 * KIB, 0x36),
];

/// The chain of the source, and what it holds.
struct Chain {
    /// Where all of it is.
    dir: ScratchDir,
    /// What a guest sees, as a raw file.
    expected: PathBuf,
    /// The overlay.
    source: PathBuf,
    /// What is below it: the backing file of source and target.
    backing: PathBuf,
}

/// Runs `qemu-img` in `dir`.
#[track_caller]
fn qemu_img(dir: &ScratchDir, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).current_dir(dir.path()).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the image `name` with clusters of `cluster` bytes and, if there is one, a backing file.
#[track_caller]
fn create(dir: &ScratchDir, name: &str, cluster: u64, backing: Option<&str>) -> PathBuf {
    let (clusters, size) = (format!("cluster_size={cluster}"), SIZE.to_string());
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &clusters];
    if let Some(backing) = backing {
        arguments.extend(["-F", "qcow2", "-b", backing]);
    }
    arguments.extend([name, &size]);
    qemu_img(dir, &arguments);
    dir.join(name)
}

/// Writes `pieces` into the image `name`, and into `expected`.
fn write(dir: &ScratchDir, name: &str, pieces: &[Piece], expected: &Path) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2"]).current_dir(dir.path()).stdout(Stdio::null());
    for &(start, len, byte) in pieces {
        let how = if byte == 0 { "-z".into() } else { format!("-P {byte}") };
        command.arg("-c").arg(format!("write {how} {start} {len}"));
        fill::pattern(expected, start, len, byte).unwrap();
    }
    assert!(command.arg(name).status().unwrap().success());
}

impl Chain {
    /// Three layers.
    fn new() -> Self {
        let dir = ScratchDir::new().unwrap();
        let expected = dir.sparse_file("expected.raw", SIZE).unwrap();
        create(&dir, "base.qcow2", SMALL, None);
        write(&dir, "base.qcow2", &BASE, &expected);
        let backing = create(&dir, "middle.qcow2", SMALL, Some("base.qcow2"));
        write(&dir, "middle.qcow2", &MIDDLE, &expected);
        let source = create(&dir, "source.qcow2", SMALL, Some("middle.qcow2"));
        write(&dir, "source.qcow2", &TOP, &expected);
        let chain = Self { dir, expected, source, backing };
        assert_eq!(chain.difference(&chain.source), None, "this test's own idea of the source");
        chain
    }

    /// What differs between the source's content and `image` with all that is below it.
    fn difference(&self, image: &Path) -> Option<String> {
        let compared = Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "qcow2"])
            .args([&self.expected, image])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&compared.stdout).into_owned();
        match compared.status.code() {
            Some(0) => None,
            Some(1) => Some(text),
            code => panic!("qemu-img compare: {code:?} {}", String::from_utf8_lossy(&compared.stderr)),
        }
    }

    /// The clusters of the target that `image` itself holds some of, by their first byte.
    fn clusters_held_by(&self, image: &Path) -> Vec<u64> {
        let map: Value = serde_json::from_str(&self.map_of(image)).unwrap();
        let mut held = Vec::new();
        for extent in map.as_array().unwrap() {
            if extent["depth"] == 0 && extent["present"] == true {
                let number = |name: &str| extent[name].as_u64().unwrap();
                let (start, end) = (number("start"), number("start") + number("length"));
                held.extend((start - start % CLUSTER..end).step_by(usize::try_from(CLUSTER).unwrap()));
            }
        }
        held.dedup();
        held
    }

    /// What `qemu-img map` says of `image`.
    fn map_of(&self, image: &Path) -> String {
        qemu_img(&self.dir, &["map", "--output=json", "-f", "qcow2", image.to_str().unwrap()])
    }

    /// A fresh target, with its backing file or without.
    fn target(&self, backing_is_ready: bool) -> PathBuf {
        create(&self.dir, "target.qcow2", CLUSTER, backing_is_ready.then_some("middle.qcow2"))
    }

    /// Gives the target its backing file, without touching its content.
    fn attach_backing(&self) {
        qemu_img(
            &self.dir,
            &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", "target.qcow2"],
        );
        assert!(self.backing.exists());
    }

    /// Copies the topmost layer of the source into `target`, both shown as raw files.
    fn copy_top(&self, target: &Path, options: &[&str]) -> Ended {
        let map = self.dir.join("map.json");
        fs::write(&map, self.map_of(&self.source)).unwrap();
        let map = format!("--map={}", map.display());
        let exports = Exports::start(&self.dir, &[("source", &self.source), ("target", target)]);
        let all: Vec<&str> = ["--sync=top", &map].into_iter().chain(options.iter().copied()).collect();
        copy_json(&exports.file("source"), &exports.file("target"), &all).succeeded()
    }
}

/// Images that are shown as raw files; taken away when dropped.
struct Exports {
    /// Where the files are.
    dir: PathBuf,
    /// Who shows them.
    _daemon: StorageDaemon,
}

impl Exports {
    /// Shows each image under its name; `source` cannot be written.
    fn start(dir: &ScratchDir, images: &[(&str, &Path)]) -> Self {
        let (mut arguments, mut shown) = (Vec::new(), Vec::new());
        for &(name, image) in images {
            let raw = dir.join(&format!("{name}.raw"));
            fs::write(&raw, "").unwrap();
            let read_only = if name == "source" { "on" } else { "off" };
            let writable = if name == "source" { "off" } else { "on" };
            arguments.extend([
                "--blockdev".to_owned(),
                format!("file,node-name={name}-file,filename={},read-only={read_only}", image.display()),
                "--blockdev".to_owned(),
                format!("qcow2,node-name={name},file={name}-file,read-only={read_only}"),
                "--export".to_owned(),
                format!("fuse,id={name},node-name={name},mountpoint={},writable={writable}", raw.display()),
            ]);
            shown.push(raw);
        }
        let daemon = StorageDaemon::start(&arguments, &dir.join("daemon.pid"), shown).unwrap();
        Self { dir: dir.path().to_owned(), _daemon: daemon }
    }

    /// The raw file `name`.
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.raw"))
    }
}

/// With its backing file present the target fills the rest of a cluster itself, from the right layer.
#[test]
fn an_overlay_on_its_backing_file_reads_as_the_source_and_holds_no_more_than_its_layer() {
    needs!(QemuImg, QemuStorageDaemon, Fuse);
    let chain = Chain::new();
    for options in [&WHOLE_CLUSTERS[..], &CHUNKS_ALONE] {
        let target = chain.target(true);
        chain.copy_top(&target, options);
        assert_eq!(chain.difference(&target), None, "{options:?}");
        let (held, wanted) = (chain.clusters_held_by(&target), chain.clusters_held_by(&chain.source));
        assert_eq!(held, wanted, "{options:?}");
    }
}

/// The backing file is moved beside the job, and attached when both have arrived.
#[test]
fn an_overlay_whose_backing_file_comes_later_reads_as_the_source() {
    needs!(QemuImg, QemuStorageDaemon, Fuse);
    let chain = Chain::new();
    for extra in [&[][..], &["--zero-detect"], &["--target-is-zero"]] {
        let target = chain.target(false);
        chain.copy_top(&target, &[&WHOLE_CLUSTERS, extra].concat());
        chain.attach_backing();
        assert_eq!(chain.difference(&target), None, "{extra:?}");
        assert_eq!(chain.clusters_held_by(&target), chain.clusters_held_by(&chain.source), "{extra:?}");
    }
}

/// Shows that the test before this one can fail: the rest of a cluster then is the zeroes that the target filled it with.
#[test]
fn without_whole_clusters_a_backing_file_that_comes_later_does_not_show_through() {
    needs!(QemuImg, QemuStorageDaemon, Fuse);
    let chain = Chain::new();
    let target = chain.target(false);
    chain.copy_top(&target, &CHUNKS_ALONE);
    chain.attach_backing();
    let difference = chain.difference(&target).expect("filled with zeroes by the target");
    // The first cluster: its first chunk is not in the topmost layer.
    assert!(difference.contains("at offset 0"), "{difference}");
}

/// A sparse raw file is a layer too: its data is what it holds.
#[test]
fn the_data_of_a_sparse_file_lands_in_an_overlay_and_its_holes_show_the_backing_file() {
    needs!(QemuImg, QemuStorageDaemon, Fuse);
    let chain = Chain::new();
    let layer = chain.dir.sparse_file("layer.raw", SIZE).unwrap();
    for &(start, len, _) in &TOP {
        fill::pattern(&layer, start, len, 0x77).unwrap();
        fill::pattern(&chain.expected, start, len, 0x77).unwrap();
    }
    // What an overlay over the middle layer would read as; the source's own zeroes are data here.
    let target = chain.target(true);
    {
        let exports = Exports::start(&chain.dir, &[("target", &target)]);
        let options = [&["--sync=top"], &CHUNKS_ALONE[..]].concat();
        let ended = copy_json(&layer, &exports.file("target"), &options).succeeded();
        assert_eq!(ended.number("bytes_copied"), TOP.iter().map(|piece| piece.1).sum::<u64>());
    }
    assert_eq!(chain.difference(&target), None);
    assert_eq!(chain.clusters_held_by(&target), chain.clusters_held_by(&chain.source));
}

/// The helpers above are only as good as the tool's answer.
#[test]
fn the_tools_say_what_a_layer_holds() {
    needs!(QemuImg);
    let chain = Chain::new();
    let held = chain.clusters_held_by(&chain.source);
    assert!(
        held.contains(&0) && held.contains(&(SIZE - CLUSTER)) && !held.contains(&(192 * KIB)),
        "{held:?}"
    );
}
