//! The command as a user meets it: exit codes, one line of text, one JSON object, and what is left behind.
//!
//! On plain files and without root; devices, errors and full disks are in the tests at the top of the tree.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use serde_json::Value;

    /// The command, in an empty directory.
    struct Scene {
        /// The directory, on a file system with O_DIRECT.
        directory: tempfile::TempDir,
    }

    impl Scene {
        /// An empty directory.
        fn new() -> Self {
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            Self { directory }
        }

        /// A path in the directory.
        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// A file of `bytes` that is not zero anywhere.
        fn file(&self, name: &str, bytes: usize) -> PathBuf {
            let content: Vec<u8> = (0..bytes).map(|i| u8::try_from(i / 512 % 251 + 1).unwrap()).collect();
            fs::write(self.path(name), content).unwrap();
            self.path(name)
        }

        /// The command with these words, not yet started.
        fn command(&self, words: &[&str]) -> Command {
            let mut command = Command::new(env!("CARGO_BIN_EXE_blkmirror"));
            command.args(words).current_dir(self.directory.path()).stdin(Stdio::null());
            command
        }

        /// Runs the command to its end.
        fn run(&self, words: &[&str]) -> Output {
            self.command(words).output().unwrap()
        }
    }

    /// What was said on standard error; it must be one line from us, or nothing.
    fn said(output: &Output) -> String {
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(text.is_empty() || text.starts_with("blkmirror: "), "{text}");
        assert!(text.lines().count() <= 1, "{text}");
        text
    }

    /// Standard output, which must be exactly one JSON object.
    fn json(output: &Output) -> Value {
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(value.is_object());
        value
    }

    /// Sends a signal with the shell's own command.
    fn send(signal: &str, pid: u32) {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }

    /// Whether two files are equal.
    fn same(a: &Path, b: &Path) -> bool {
        fs::read(a).unwrap() == fs::read(b).unwrap()
    }

    /// The first thing that everybody tries.
    #[test]
    fn a_copy_creates_the_target_verifies_and_reports() {
        let scene = Scene::new();
        let source = scene.file("a", (3 << 20) + 512);
        let output = scene.run(&["copy", "a", "b", "--verify", "--json"]);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        let report = json(&output);
        assert_eq!(report["target_state"], "complete");
        assert_eq!(report["verified"], true);
        assert_eq!(report["error"], Value::Null);
        assert_eq!(report["bytes_total"], (3 << 20) + 512);
        assert!(same(&source, &scene.path("b")));
    }

    /// A script must be able to read the answer whatever happened.
    #[test]
    fn json_is_one_object_on_every_failure() {
        let scene = Scene::new();
        scene.file("a", 8192);
        scene.file("small", 4096);
        for (words, code) in [
            (&["copy", "nope", "b", "--json"][..], 1),
            (&["copy", "a", "a", "--json"], 1),
            (&["copy", "a", "small", "--json"], 1),
            (&["copy", "a", "--json"], 2),
            (&["copy", "a", "b", "--json", "--threads", "0"], 2),
            (&["copy", "a", "b", "--json", "--map", "m"], 2),
            (&["copy", "a", "b", "--json", "--sync", "none", "--verify"], 2),
            (&["compare", "a", "nope", "--json"], 1),
            (&["compare", "a", "--json"], 2),
        ] {
            let output = scene.run(words);
            assert_eq!(output.status.code(), Some(code), "{words:?}");
            let error = json(&output)["error"].as_str().unwrap().to_owned();
            assert_eq!(said(&output), format!("blkmirror: {error}\n"), "{words:?}");
        }
        assert!(!scene.path("b").exists());
    }

    /// Whatever is refused must leave the target as it was.
    #[test]
    fn a_refused_copy_touches_nothing() {
        let scene = Scene::new();
        scene.file("a", 8192);
        let before = fs::read(scene.file("large", 12288)).unwrap();
        for words in [
            &["copy", "a", "large"][..],
            &["copy", "a", "new", "--map", "nope", "--sync", "top"],
            &["copy", "nope", "new"],
            &["copy", "a", "no-such-directory/new"],
            &["copy", ".", "new"],
            &["copy", "/dev/null", "new"],
            &["copy", "a", "/dev/no-such-disk"],
        ] {
            let output = scene.run(words);
            assert_eq!(output.status.code(), Some(1), "{words:?}");
            assert!(said(&output).contains("cannot ") || said(&output).contains("larger"), "{words:?}");
        }
        assert_eq!(fs::read(scene.path("large")).unwrap(), before);
        assert!(!scene.path("new").exists());
    }

    /// What lies behind the source's end belongs to somebody else.
    #[test]
    fn force_copies_to_the_beginning_of_a_larger_target() {
        let scene = Scene::new();
        let source = fs::read(scene.file("a", 8192)).unwrap();
        fs::write(scene.path("b"), vec![0xee; 16384]).unwrap();
        assert_eq!(scene.run(&["copy", "a", "b", "--force", "--verify"]).status.code(), Some(0));
        let target = fs::read(scene.path("b")).unwrap();
        assert_eq!(target[..8192], source);
        assert!(target[8192..].iter().all(|byte| *byte == 0xee));
    }

    /// An empty disk is a disk.
    #[test]
    fn an_empty_source_is_copied_with_success() {
        let scene = Scene::new();
        scene.file("a", 0);
        let output = scene.run(&["copy", "a", "b", "--verify", "--json"]);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        assert_eq!(json(&output)["bytes_copied"], 0);
        assert_eq!(fs::metadata(scene.path("b")).unwrap().len(), 0);
    }

    /// With `--sync top` the rest of the target must stay as it is.
    #[test]
    fn only_the_extents_of_the_map_are_copied() {
        let scene = Scene::new();
        let source = fs::read(scene.file("a", 256 << 10)).unwrap();
        fs::write(scene.path("b"), vec![0xee; 256 << 10]).unwrap();
        let map = r#"[{"start":0,"length":65536,"depth":1,"present":true,"zero":false,"data":true},
            {"start":65536,"length":65536,"depth":0,"present":true,"zero":false,"data":true},
            {"start":131072,"length":65536,"depth":0,"present":true,"zero":true,"data":false}]"#;
        fs::write(scene.path("map"), map).unwrap();
        let output = scene.run(&["copy", "a", "b", "--sync", "top", "--map", "map"]);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        let target = fs::read(scene.path("b")).unwrap();
        let all = |range: std::ops::Range<usize>, value: u8| target[range].iter().all(|byte| *byte == value);
        assert!(all(0..65536, 0xee) && all(196_608..262_144, 0xee));
        assert_eq!(target[65536..131_072], source[65536..131_072]);
        assert!(all(131_072..196_608, 0));
    }

    /// Exit code and text of a comparison are made for scripts and for people.
    #[test]
    fn compare_tells_where_two_files_differ() {
        let scene = Scene::new();
        scene.file("a", 65536);
        let mut other = fs::read(scene.file("b", 65536)).unwrap();
        assert_eq!(scene.run(&["compare", "a", "b"]).status.code(), Some(0));
        other[20000] ^= 1;
        fs::write(scene.path("b"), &other).unwrap();
        let output = scene.run(&["compare", "a", "b"]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("differ: 4 KiB in 1 range") && text.contains("16384 length 4096"), "{text}");
        let output = scene.run(&["compare", "a", "b", "--json"]);
        assert_eq!(json(&output)["ranges"][0]["start"], 16384);
        fs::write(scene.path("b"), &other[..32768]).unwrap();
        assert_eq!(json(&scene.run(&["compare", "a", "b", "--json"]))["equal"], false);
    }

    /// `blkmirror ... | head` must end in silence.
    #[test]
    fn a_reader_who_leaves_is_no_panic() {
        let scene = Scene::new();
        for words in [&["completions", "bash"][..], &["copy", "--help"], &["info"]] {
            let mut child =
                scene.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            let output = child.wait_with_output().unwrap();
            assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()), "{words:?}");
        }
    }

    /// An answer that could not be written must not pass for a success.
    #[test]
    fn a_full_standard_output_is_a_failure() {
        let scene = Scene::new();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = scene.command(&["completions", "bash"]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("standard output"));
    }

    /// The kernel's way to say "too large" kills whoever does not listen.
    #[test]
    fn a_file_size_limit_is_an_error_with_its_cause_and_leaves_no_target() {
        let scene = Scene::new();
        scene.file("a", 4 << 20);
        let line = "ulimit -f 1024; exec \"$0\" copy a b --json";
        let output = Command::new("sh")
            .args(["-c", line, env!("CARGO_BIN_EXE_blkmirror")])
            .current_dir(scene.directory.path())
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.status.signal()), (Some(1), None));
        assert!(said(&output).contains("ulimit -f"), "{}", said(&output));
        assert!(json(&output)["target_state"].is_null());
        assert!(!scene.path("b").exists());
        fs::write(scene.path("b"), vec![0xee; 4 << 20]).unwrap();
        let output = Command::new("sh")
            .args(["-c", line, env!("CARGO_BIN_EXE_blkmirror")])
            .current_dir(scene.directory.path())
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.status.signal()), (Some(1), None));
        assert!(said(&output).contains("ulimit -f"), "{}", said(&output));
        assert_eq!(json(&output)["target_state"], "incomplete");
    }

    /// Whoever mirrors an image in use should know, unless they asked for silence.
    #[test]
    fn a_source_that_somebody_writes_to_gives_a_note_and_a_copy() {
        let scene = Scene::new();
        let lock = fs::File::options().write(true).open(scene.file("a", 8192)).unwrap();
        let whole = nix::libc::flock {
            l_type: nix::libc::F_WRLCK.try_into().unwrap(),
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        let output = scene.run(&["copy", "a", "b", "--json"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(said(&output).starts_with("blkmirror: note: a: somebody holds"), "{}", said(&output));
        let note = json(&output)["notes"][0].as_str().unwrap().to_owned();
        assert_eq!(said(&output), format!("blkmirror: note: {note}\n"));
        let output = scene.run(&["copy", "a", "b", "--json", "--quiet"]);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        assert_eq!(json(&output)["notes"].as_array().unwrap().len(), 1);
    }

    /// A success that copied nothing must not pass for a copy.
    #[test]
    fn a_copy_of_nothing_says_so() {
        let scene = Scene::new();
        scene.file("a", 8192);
        let before = vec![0xee; 8192];
        fs::write(scene.path("b"), &before).unwrap();
        let output = scene.run(&["copy", "a", "b", "--sync", "none", "--json"]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(said(&output), "blkmirror: note: --sync none copies nothing: the target is as it was\n");
        assert_eq!(json(&output)["target_state"], "not_copied");
        assert_eq!(fs::read(scene.path("b")).unwrap(), before);
    }

    /// More than the file system has must be refused while nothing is lost.
    #[test]
    fn preallocation_beyond_the_free_space_is_refused_before_it_begins() {
        let scene = Scene::new();
        // Larger than any disk that tests run on, and within the largest file of the usual file systems.
        for name in ["a", "b"] {
            fs::File::create(scene.path(name)).unwrap().set_len(15 << 40).unwrap();
        }
        let output = scene.run(&["copy", "a", "b", "--preallocate", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("copy without --preallocate"), "{}", said(&output));
        assert_eq!(fs::metadata(scene.path("b")).unwrap().blocks(), 0);
    }

    /// What is wrong is the list, and where.
    #[test]
    fn a_map_with_parts_of_sectors_is_wrong_usage() {
        let scene = Scene::new();
        scene.file("a", 8192);
        let map = r#"[{"start":512,"length":100,"depth":0,"zero":false,"data":true}]"#;
        fs::write(scene.path("map"), map).unwrap();
        let output = scene.run(&["copy", "a", "b", "--sync", "top", "--map", "map"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("the extent at 512 with 100 bytes"), "{}", said(&output));
        assert!(!scene.path("b").exists());
    }

    /// Little memory must be enough for the largest units.
    #[test]
    fn the_smallest_buffer_copies_with_the_largest_granularity_and_cluster() {
        let scene = Scene::new();
        let source = scene.file("a", (5 << 20) + 512);
        let options = ["--buf-size", "4K", "--granularity", "64M", "--target-cluster-size", "2M"];
        let words = [&["copy", "a", "b", "--verify"][..], &options].concat();
        let output = scene.run(&words);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        assert!(same(&source, &scene.path("b")));
    }

    /// Neither of the two is a source.
    #[test]
    fn compare_and_info_do_not_speak_of_a_source() {
        let scene = Scene::new();
        scene.file("a", 4096);
        std::os::unix::fs::symlink("nowhere", scene.path("dangling")).unwrap();
        for words in [&["compare", "a", "nope"][..], &["info", "nope"]] {
            let text = said(&scene.run(words));
            assert_eq!(text, "blkmirror: cannot open nope: no such file or device\n", "{words:?}");
        }
        let text = said(&scene.run(&["copy", "a", "dangling"]));
        assert!(text.contains("cannot open the target dangling: it is a symbolic link to nothing"), "{text}");
    }

    /// Whoever presses Ctrl-C wants the prompt back, and to know what the target is now.
    #[test]
    fn a_signal_ends_a_copy_within_a_second_and_says_what_the_target_is() {
        for signal in ["-INT", "-TERM"] {
            let scene = Scene::new();
            scene.file("a", 32 << 20);
            let words = ["copy", "a", "b", "--speed", "2M", "--json"];
            let child = scene.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(500));
            let asked = Instant::now();
            send(signal, child.id());
            let output = child.wait_with_output().unwrap();
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            assert_eq!((output.status.code(), output.status.signal()), (Some(130), None));
            assert_eq!(json(&output)["target_state"], "incomplete");
            let text = said(&output);
            assert!(text.contains("target b is incomplete: ") && text.contains(" of 32 MiB done"), "{text}");
            assert!(scene.path("b").exists());
        }
    }

    /// The demo is the first command that people run, perhaps where there is little space.
    #[test]
    fn the_demo_ends_verified_and_leaves_nothing_behind() {
        let scene = Scene::new();
        let output = scene.run(&["demo", "--size", "8M", "--dir", ".", "--time", "200ms", "--rate", "200"]);
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.matches(" yes\n").count() >= 2 && !text.contains(" NO\n"), "{text}");
        assert!(text.contains("switched over to the target") && text.contains("every sector"), "{text}");
        for head in ["writes/s", "copied", "p50", "p99", "p99.9"] {
            assert!(
                text.lines().any(|l| l.starts_with("guest writes") && l.contains(head)),
                "{head}: {text}"
            );
        }
        // What the writers saw must be told for each phase, however short it was on a small disk.
        for row in [
            "without a job",
            "copying, background",
            "ready, write-blocking",
            "switching over",
            "on the target",
        ] {
            assert!(text.lines().any(|line| line.starts_with(row)), "{row}: {text}");
        }
        assert!(text.contains("guest writes were held for") && text.contains("times run from"), "{text}");
        assert_eq!(fs::read_dir(scene.directory.path()).unwrap().count(), 0);
    }

    /// Both disks are overwritten, so both must survive a command line that does not say so.
    #[test]
    fn bench_live_touches_nothing_without_consent() {
        let scene = Scene::new();
        let [source, target] = ["a", "b"].map(|name| scene.file(name, 1 << 20));
        let before = [&source, &target].map(|path| fs::read(path).unwrap());
        let output = scene.run(&["bench", "live", "a", "b", "--json"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("overwrite a with test data"), "{}", said(&output));
        assert!(json(&output)["error"].as_str().unwrap().contains("--yes"));
        assert_eq!([&source, &target].map(|path| fs::read(path).unwrap()), before);
    }

    /// The numbers are only worth something with the proof beside them.
    #[test]
    fn bench_live_switches_over_under_load_and_proves_the_target() {
        let scene = Scene::new();
        scene.file("a", 8 << 20);
        scene.file("b", 8 << 20);
        let words = ["bench", "live", "a", "b", "--yes", "--json", "--time", "200ms", "--rate", "500"];
        let output =
            scene.run(&[&words[..], &["--pattern", "zipf", "--copy-mode", "write-blocking"]].concat());
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
        let report = json(&output);
        assert_eq!((&report["verified"], &report["pivoted"]), (&true.into(), &true.into()), "{report}");
        let names: Vec<_> = report["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
        assert_eq!(names.len(), 5, "{report}");
        assert_eq!(names[2], "ready, write-blocking");
        assert!(report["pause_ms"].as_f64().unwrap() >= 0.0);
    }

    /// A guest's disk and its copy are no place for a guess.
    #[test]
    fn bench_live_refuses_disks_that_do_not_fit() {
        let scene = Scene::new();
        scene.file("a", 2 << 20);
        scene.file("small", 1 << 20);
        let before = fs::read(scene.path("a")).unwrap();
        for target in ["small", "a", "missing"] {
            let output = scene.run(&["bench", "live", "a", target, "--yes", "--time", "100ms"]);
            assert_eq!(output.status.code(), Some(1), "{target}: {}", said(&output));
            assert_eq!(said(&output).lines().count(), 1, "{target}: {}", said(&output));
            assert!(
                fs::read(scene.path("a")).unwrap() == before,
                "{target}: refused, and the source was written"
            );
        }
    }
}
