//! The C examples do what they say, on scratch disks, and the C++ header compiles wherever it may be included.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkmirror_testkit::faultdisk::{Effect, Operation, Rule, Times};
use blkmirror_testkit::{
    Ext4OnLoop, FaultDisk, LoopDevice, LoopOptions, MIB, ScratchDir, needs, run::run as tool,
};
use blkmirror_tests::c::{self, Program};
use blkmirror_tests::{Ended, Started, assert_equal, start};
use nix::sys::signal::Signal;

/// Size of the disks here.
const SIZE: u64 = 8 * MIB;
/// Bytes of a guest write in the examples.
const BLOCK: usize = 4096;
/// The errno of a bad block.
const EIO: i32 = 5;

/// The example of that file name, compiled.
#[track_caller]
fn example(name: &str) -> Program {
    c::compile(&[format!("c-examples/{name}")], &[])
}

/// Starts an example.
#[track_caller]
fn begin(name: &str, arguments: &[&Path]) -> (Program, Started) {
    let program = example(name);
    let started = start(program.command(arguments));
    (program, started)
}

/// Runs an example to its end.
#[track_caller]
fn run(name: &str, arguments: &[&Path]) -> Ended {
    let (_program, started) = begin(name, arguments);
    started.wait()
}

/// Asserts that it ended with `code` and complained with every one of `words`.
#[track_caller]
fn failed(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for word in words {
        assert!(ended.stderr.to_lowercase().contains(&word.to_lowercase()), "'{word}' is missing: {ended:?}");
    }
}

/// The number in front of `word` in what was printed.
#[track_caller]
fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c == ',' || c == ';').collect();
    let at = words.iter().position(|&w| w == word).unwrap_or_else(|| panic!("no '{word}' in '{text}'"));
    words[at - 1].parse().unwrap_or_else(|_| panic!("no number before '{word}' in '{text}'"))
}

/// A disk and the target that it is mirrored to.
struct Disks {
    /// The disk.
    disk: PathBuf,
    /// Its target, full of something else.
    target: PathBuf,
    /// What the disk holds at first.
    original: Vec<u8>,
    /// Holds the files.
    dir: ScratchDir,
    /// Keeps the loop devices.
    _devices: Vec<LoopDevice>,
}

impl Disks {
    /// Two files.
    fn files() -> Self {
        let dir = ScratchDir::new().unwrap();
        let disk = dir.random_file("disk", SIZE, 1).unwrap();
        let target = dir.random_file("target", SIZE, 2).unwrap();
        Self { original: fs::read(&disk).unwrap(), disk, target, dir, _devices: Vec::new() }
    }

    /// Two loop devices.
    fn loops() -> Self {
        let files = Self::files();
        let device = |file: &Path| LoopDevice::attach(file, LoopOptions::default()).unwrap();
        let devices = vec![device(&files.disk), device(&files.target)];
        let [disk, target] = [0, 1].map(|at: usize| devices[at].path().to_owned());
        Self { disk, target, _devices: devices, ..files }
    }

    /// Asserts that the target holds exactly `expected`.
    #[track_caller]
    fn check_target(&self, expected: &[u8]) {
        let wrong = fs::read(&self.target).unwrap().iter().zip(expected).position(|(got, want)| got != want);
        assert_eq!(wrong, None, "the target differs");
        assert_eq!(fs::read(&self.target).unwrap().len(), expected.len());
    }
}

/// What guests leave that write 1, 2, 3, ... into blocks of their own, round and round: `(first block, blocks, writes)` of each.
fn numbered(original: &[u8], guests: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for &(first, blocks, writes) in guests {
        for number in writes.saturating_sub(blocks) + 1..=writes {
            let block = usize::try_from(first + (number - 1) % blocks).unwrap();
            for word in bytes[block * BLOCK..][..BLOCK].chunks_exact_mut(8) {
                word.copy_from_slice(&number.to_le_bytes());
            }
        }
    }
    bytes
}

/// The version that `minivmm` left in a block; 0 if it holds what it held at first.
#[track_caller]
fn version(block: usize, bytes: &[u8], original: &[u8]) -> u64 {
    let range = block * BLOCK..(block + 1) * BLOCK;
    if bytes[range.clone()] == original[range.clone()] {
        return 0;
    }
    let words: Vec<u64> =
        bytes[range].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let whole = words.chunks_exact(2).all(|pair| pair == [block as u64, words[1]]);
    assert!(whole, "block {block} holds no version of it as a whole: {:?}", &words[..8]);
    words[1]
}

/// A program that nobody can read in one go is no example.
#[test]
fn every_example_is_short_is_listed_and_has_a_test() {
    let readme = fs::read_to_string(c::root().join("c-examples/README.md")).unwrap();
    let tests = include_str!("c_examples.rs");
    let mut seen = 0;
    for entry in fs::read_dir(c::root().join("c-examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".md") {
            continue;
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 200, "{name} has {lines} lines");
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the README");
        assert!(tests.contains(&format!("(\"{name}\"")), "{name} has no test");
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} examples");
}

#[test]
fn copy_makes_an_equal_target_of_files_and_devices() {
    let disks = Disks::files();
    let new = disks.dir.join("new");
    let ended = run("copy.c", &[&disks.disk, &new]).succeeded();
    assert!(ended.stderr.contains("8 MiB of data"), "{ended:?}");
    assert_equal(&disks.disk, &new);
    let _ = run("copy.c", &[&disks.disk, &disks.target]).succeeded();
    assert_equal(&disks.disk, &disks.target);
    needs!(Losetup);
    let disks = Disks::loops();
    let _ = run("copy.c", &[&disks.disk, &disks.target]).succeeded();
    assert_equal(&disks.disk, &disks.target);
}

#[test]
fn copy_says_what_is_wrong() {
    let disks = Disks::files();
    failed(&run("copy.c", &[&disks.disk]), 2, &["usage"]);
    let missing = disks.dir.join("missing");
    failed(&run("copy.c", &[&missing, &disks.target]), 1, &[missing.to_str().unwrap(), "no such file"]);
    failed(&run("copy.c", &[&disks.disk, &disks.disk]), 1, &[disks.disk.to_str().unwrap()]);
    disks.check_target(&fs::read(disks.dir.random_file("again", SIZE, 2).unwrap()).unwrap());
}

/// Mirrors with `minivmm` and looks at every block of both disks.
#[track_caller]
fn moves_a_guest(disks: &Disks) {
    let record = disks.dir.join("record");
    let ended = run("minivmm.c", &[&disks.disk, &disks.target, &record]).succeeded();
    assert!(ended.stdout.contains("held for") && ended.stdout.contains("p99"), "{ended:?}");
    assert_eq!(fs::read_to_string(&record).unwrap().trim_end(), disks.target.to_str().unwrap());
    let (old, new) = (fs::read(&disks.disk).unwrap(), fs::read(&disks.target).unwrap());
    let (mut writes, mut later) = (0, 0);
    for block in 0..new.len() / BLOCK {
        let [before, now] = [&old, &new].map(|bytes| version(block, bytes, &disks.original));
        assert!(
            before <= now,
            "block {block}: version {now} on the target, {before} on the disk that was left"
        );
        writes += now;
        later += now - before;
    }
    assert_eq!(writes, number_before(&ended.stdout, "guest"), "each write is a version: {ended:?}");
    assert!(later > 0, "the guest went on, on the target alone");
}

#[test]
fn minivmm_moves_its_guest_and_no_write_is_lost() {
    moves_a_guest(&Disks::files());
    needs!(Losetup);
    moves_a_guest(&Disks::loops());
}

/// What was written down is where the guest is, also when the job does not get there.
#[test]
fn minivmm_keeps_its_guest_where_it_is_when_the_target_fails() {
    needs!(Fuse);
    let disks = Disks::files();
    let bad = FaultDisk::of_size(SIZE).unwrap();
    bad.control().add_rule(Rule::on(Operation::Write, Effect::Error(EIO)).within(MIB..2 * MIB));
    let record = disks.dir.join("record");
    let ended = run("minivmm.c", &[&disks.disk, bad.path(), &record]);
    failed(&ended, 1, &["input/output error", bad.path().to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&record).unwrap().trim_end(), disks.disk.to_str().unwrap());
    // Another disk: the kernel may take a moment to let go of what a process had open whose ring was busy when it ended.
    let disks = Disks::files();
    let small = disks.dir.sparse_file("small", SIZE / 2).unwrap();
    failed(&run("minivmm.c", &[&disks.disk, &small, &record]), 1, &["small"]);
}

#[test]
fn tracker_moves_its_guest_and_no_write_is_lost() {
    for loops in [false, true] {
        if loops {
            needs!(Losetup);
        }
        let disks = if loops { Disks::loops() } else { Disks::files() };
        let ended = run("tracker.c", &[&disks.disk, &disks.target]).succeeded();
        let share = SIZE / BLOCK as u64 / 2;
        let mut guests = Vec::new();
        for (line, first) in ended.stdout.lines().zip([0, share]) {
            assert!(line.ends_with("last on device 1"), "{ended:?}");
            guests.push((first, share, number_before(line, "writes")));
        }
        assert_eq!(guests.len(), 2, "{ended:?}");
        disks.check_target(&numbered(&disks.original, &guests));
    }
}

#[test]
fn raii_moves_its_guest_and_no_write_is_lost() {
    if !c::has_cxx() {
        return;
    }
    let disks = Disks::files();
    let ended = run("raii.cpp", &[&disks.disk, &disks.target]).succeeded();
    let blocks = SIZE / BLOCK as u64;
    disks.check_target(&numbered(&disks.original, &[(0, blocks, number_before(&ended.stdout, "writes"))]));
    let missing = disks.dir.join("missing");
    failed(&run("raii.cpp", &[&missing, &disks.target]), 1, &[missing.to_str().unwrap(), "no such file"]);
}

#[test]
fn incremental_copies_no_more_than_was_written_and_ends_equal() {
    let disks = Disks::files();
    let backup = disks.dir.join("backup");
    let ended = run("incremental.c", &[&disks.disk, &backup, Path::new("3")]).succeeded();
    assert_equal(&disks.disk, &backup);
    assert!(fs::read(&disks.disk).unwrap() != disks.original, "the guest wrote");
    let copied: Vec<u64> = ended
        .stdout
        .lines()
        .filter(|line| line.contains("copied in"))
        .map(|line| number_before(line, "KiB"))
        .collect();
    assert_eq!(copied.len(), 4, "a full copy and three increments: {ended:?}");
    assert!(copied[0] * 1024 >= SIZE && copied[3] > 0, "{ended:?}");
    // The guest writes to the first quarter of the disk alone; the last round is of a disk at rest.
    assert!(copied[3] * 1024 <= SIZE / 4 + 64 * 1024, "{ended:?}");
    assert!(ended.stdout.ends_with("0 KiB in 0 areas of backup-3\n"), "{ended:?}");
}

/// What a round that failed has not copied is left to the next one.
#[test]
fn incremental_makes_up_for_a_round_that_failed() {
    needs!(Fuse);
    // So large that the guest, in the time that is left, does not by chance write again to all that the round has not copied.
    let size = 64 * MIB;
    let dir = ScratchDir::new().unwrap();
    let disk = dir.random_file("disk", size, 1).unwrap();
    let backup = FaultDisk::of_size(size).unwrap();
    let (_program, started) = begin("incremental.c", &[&disk, backup.path(), Path::new("4")]);
    // The full copy has ended when it has flushed; the first round comes a tenth of a second later.
    assert!(backup.control().wait_until(Duration::from_secs(30), |counters| counters.flushes > 0));
    std::thread::sleep(Duration::from_millis(30));
    backup.control().add_rule(Rule::on(Operation::Write, Effect::Error(EIO)).times(Times::Once));
    let ended = started.wait().succeeded();
    assert!(ended.stderr.to_lowercase().contains("input/output error"), "{ended:?}");
    assert_eq!(ended.stdout.matches("increment").count(), 3, "{ended:?}");
    assert_equal(&disk, backup.content_path());
}

/// A file system of 24 MiB with 4 MiB left, and what takes the rest.
fn nearly_full() -> (Ext4OnLoop, PathBuf) {
    let small = Ext4OnLoop::new(24 * MIB).unwrap();
    let _ = fs::remove_dir(small.join("lost+found"));
    let free: u64 =
        tool("stat", ["-f", "-c", "%a", small.path().to_str().unwrap()]).unwrap().parse().unwrap();
    let filler = small.preallocated_file("filler", free * 4096 - 4 * MIB).unwrap();
    fs::File::open(small.path()).unwrap().sync_all().unwrap();
    (small, filler)
}

#[test]
fn errors_waits_for_space_and_goes_on() {
    needs!(Ext4);
    let disks = Disks::files();
    let (small, filler) = nearly_full();
    let target = small.join("target");
    let (_program, mut started) = begin("errors.c", &[&disks.disk, &target]);
    assert!(started.complains("free some space", Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(started.runs(), "{:?}", started.wait());
    fs::remove_file(filler).unwrap();
    let ended = started.wait().succeeded();
    failed(&ended, 0, &["no space left on device", "going on at"]);
    assert_equal(&disks.disk, &target);
}

#[test]
fn errors_is_cancelled_by_a_signal_while_it_waits() {
    needs!(Ext4);
    let disks = Disks::files();
    let (small, _filler) = nearly_full();
    let (_program, started) = begin("errors.c", &[&disks.disk, &small.join("target")]);
    assert!(started.complains("free some space", Duration::from_secs(20)));
    started.signal(Signal::SIGINT);
    failed(&started.wait(), 3, &["cancelled", "MiB are missing"]);
}

#[test]
fn errors_tries_a_source_again_but_not_for_ever() {
    needs!(Fuse);
    let disks = Disks::files();
    let source = FaultDisk::of_size(SIZE).unwrap();
    fs::write(source.content_path(), &disks.original).unwrap();
    let bad = Rule::on(Operation::Read, Effect::Error(EIO)).within(MIB..MIB + 4096);
    source.control().add_rule(bad.clone().times(Times::Once));
    let ended = run("errors.c", &[source.path(), &disks.target]).succeeded();
    failed(&ended, 0, &["the source fails at byte", "errno 5", "going on at"]);
    disks.check_target(&disks.original);
    source.control().add_rule(bad);
    let ended = run("errors.c", &[source.path(), &disks.target]);
    failed(&ended, 3, &["given up", "cancelled"]);
    assert_eq!(ended.stderr.matches("going on at").count(), 5, "{ended:?}");
}

#[test]
fn errors_gives_up_at_once_where_the_target_fails_otherwise() {
    needs!(Fuse);
    let disks = Disks::files();
    let target = FaultDisk::of_size(SIZE).unwrap();
    target.control().add_rule(Rule::on(Operation::Write, Effect::Error(EIO)).within(MIB..MIB + 4096));
    let ended = run("errors.c", &[&disks.disk, target.path()]);
    failed(&ended, 1, &["input/output error", target.path().to_str().unwrap()]);
    assert!(!ended.stderr.contains("going on"), "{ended:?}");
}

#[test]
fn qemu_glue_carries_requests_and_a_pivot() {
    let disks = Disks::files();
    let ended = run("qemu_glue.c", &[&disks.disk, &disks.target]).succeeded();
    assert!(ended.stdout.ends_with("moved, the disk reads as written\n"), "{ended:?}");
    let at = |range: std::ops::Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        fs::File::open(&disks.target).unwrap().read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    };
    let part: u64 = 65536;
    assert!(at(0..part).iter().chain(&at(3 * part..4 * part)).all(|&byte| byte == b'g'));
    assert!(at(part..2 * part).iter().all(|&byte| byte == 0));
    assert!(at(4 * part..SIZE) == disks.original[4 * 65536..]);
    let old = fs::read(&disks.disk).unwrap();
    assert!(old[3 * 65536..] == disks.original[3 * 65536..], "the disk that was left is left alone");
    failed(
        &run("qemu_glue.c", &[&disks.dir.join("missing"), &disks.target]),
        1,
        &["missing", "no such file"],
    );
}

/// The words of `text` that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !is_word(c)).filter(|word| word.starts_with(prefix)).collect()
}

/// Whoever adds to the C header adds to the C++ header.
#[test]
fn the_cxx_header_has_all_that_the_c_header_has() {
    let read = |name: &str| fs::read_to_string(c::root().join("include").join(name)).unwrap();
    let (header, cxx) = (read("blkmirror.h"), read("blkmirror.hpp"));
    let mut known = words(&cxx, "blkm_");
    known.extend(words(&cxx, "BLKM_"));
    let functions = words(&header, "blkm_").into_iter().filter(|name| {
        // The _init functions are what the constructors of the options are.
        header.contains(&format!("{name}(")) && !name.ends_with("_init")
    });
    let constants = header.lines().filter_map(|line| line.strip_prefix("#define ")).filter_map(|line| {
        let name = line.split([' ', '(']).next().unwrap();
        (!name.contains("VERSION") && name != "BLKMIRROR_H").then_some(name)
    });
    let missing: Vec<&str> = functions.chain(constants).filter(|name| !known.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// With and without exceptions, as both standards, included twice, in two translation units, by every compiler that is there.
#[test]
fn the_cxx_header_works_in_every_variant() {
    if !c::has_cxx() {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    let sources = [("every.cpp", EVERY), ("other.cpp", OTHER)].map(|(name, text)| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    });
    for compiler in [c::cxx(), "clang++"] {
        if !c::works(compiler) {
            continue;
        }
        for standard in ["-std=c++17", "-std=c++20"] {
            for dialect in [&["-Wconversion"][..], &["-Wconversion", "-fno-exceptions", "-fno-rtti"]] {
                let program = c::try_compile(compiler, &sources, &[dialect, &[standard]].concat()).unwrap();
                let (disk, target) = (dir.join("disk"), dir.join("target"));
                for old in [&target, &dir.join("target.copy")] {
                    let _ = fs::remove_file(old);
                }
                fs::write(&disk, vec![1; 1 << 20]).unwrap();
                let ended = start(program.command([&disk, &target])).wait().succeeded();
                assert_eq!(ended.stdout, "good\n", "{compiler} {standard} {dialect:?}");
            }
        }
    }
}

/// Misuse does not compile: an owner is not copied, a result is not thrown away, and without exceptions nothing can throw.
#[test]
fn the_cxx_header_refuses_misuse() {
    if !c::has_cxx() {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    let source = dir.join("misuse.cpp");
    let compile = |body: &str, flags: &[&str]| {
        let text = format!("#include <blkmirror.hpp>\nint main() {{\n    blkm::job job;\n    {body}\n}}\n");
        fs::write(&source, text).unwrap();
        c::try_compile(c::cxx(), &[&source], flags).map(drop)
    };
    assert_eq!(compile("(void)job.pause();", &[]), Ok(()));
    for thrown_away in ["job.pause();", "job.info();"] {
        assert!(compile(thrown_away, &[]).unwrap_err().contains("nodiscard"));
    }
    assert!(compile("blkm::job other = job;", &[]).unwrap_err().contains("deleted"));
    assert_eq!(compile("(void)job.info().value();", &[]), Ok(()));
    assert!(compile("(void)job.info().value();", &["-fno-exceptions"]).unwrap_err().contains("value"));
}

/// Every function of the C++ header, most of them on real disks.
const EVERY: &str = include_str!("../cxx/every.cpp");

/// Another translation unit.
const OTHER: &str = include_str!("../cxx/other.cpp");
