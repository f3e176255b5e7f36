//! What `make install` puts where, and that a C author gets along with it: no more than `make`, `pkg-config` and a compiler.
//!
//! The README's program and its five commands for a newcomer are run as they are printed there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blkmirror_testkit::{MIB, ScratchDir};
use blkmirror_tests::assert_equal;

/// Bytes of the disks that are copied.
const DISK_BYTES: u64 = 4 * MIB;

/// What may be installed and is named in the Makefile; what is set around the tests is not meant for them.
const PLACES: [&str; 12] = [
    "DESTDIR",
    "PREFIX",
    "BINDIR",
    "LIBDIR",
    "INCLUDEDIR",
    "DATADIR",
    "MANDIR",
    "DOCDIR",
    "PKGCONFIGDIR",
    "BASHCOMPDIR",
    "ZSHCOMPDIR",
    "FISHCOMPDIR",
];

/// What is installed, below the prefix. Headers and examples come on top: all that there are.
const FILES: [&str; 12] = [
    "bin/blkmirror",
    "lib/libblkmirror.a",
    "lib/libblkmirror.so",
    "lib/libblkmirror.so.0",
    concat!("lib/libblkmirror.so.", env!("CARGO_PKG_VERSION")),
    "lib/pkgconfig/blkmirror.pc",
    "share/bash-completion/completions/blkmirror",
    "share/doc/blkmirror/installed",
    "share/fish/vendor_completions.d/blkmirror.fish",
    "share/man/man1/blkmirror.1",
    "share/man/man3/libblkmirror.3",
    "share/zsh/site-functions/_blkmirror",
];

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A text of the repository.
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines between `<!-- name -->` with its opening fence and the closing one of the README.
fn from_readme(name: &str) -> String {
    let readme = text("README.md");
    let (_, rest) = readme.split_once(&format!("<!-- {name} -->\n")).unwrap();
    let (block, _) = rest.split_once(&format!("```\n<!-- /{name} -->\n")).unwrap();
    block.split_once('\n').unwrap().1.to_owned()
}

/// Whether all of these programs are here; says so if not.
fn has(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !is_here(program)).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs {missing}, which CI=true must have");
        // At once and past the test harness, which would swallow it.
        let _ = std::io::stderr().write_all(format!("skipped: needs {missing}\n").as_bytes());
    }
    missing.is_empty()
}

/// Whether `program` is on the path.
fn is_here(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).is_file())
}

/// Runs `script` as a user's shell does, and gives what it printed.
#[track_caller]
fn shell(dir: &Path, script: &str, environment: &[(&str, &str)]) -> String {
    let ended = attempt(dir, script, environment);
    let said = format!("{}{}", ended.1, ended.2);
    assert!(ended.0, "{script}\n{said}");
    ended.1
}

/// The same, with whether it succeeded, its output and its complaints.
fn attempt(dir: &Path, script: &str, environment: &[(&str, &str)]) -> (bool, String, String) {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", script]).current_dir(dir).stdin(Stdio::null());
    // What a `make test` around this was told is not meant for a `make` in here.
    for name in PLACES.into_iter().chain(["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "BLKMIRROR"]) {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// All below `dir` but folders, by their paths below it.
fn files(dir: &Path) -> BTreeSet<String> {
    entries(dir).into_iter().filter(|path| !path.ends_with('/')).collect()
}

/// All below `dir`; folders end in a slash.
fn entries(dir: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
            found.insert(if is_dir { name + "/" } else { name });
            if is_dir {
                folders.push(path);
            }
        }
    }
    found
}

/// What is installed from folder `from` of the repository into `to`: files that end in one of `endings`.
fn all_of(from: &str, to: &str, endings: &[&str]) -> Vec<String> {
    let names = fs::read_dir(root().join(from)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| endings.iter().any(|end| name.ends_with(end)))
        .map(|name| format!("{to}/{name}"))
        .collect()
}

/// A prefix with blkmirror in it, which goes away with this.
struct Installed {
    /// Where it is.
    dir: ScratchDir,
}

impl Installed {
    /// Installs it.
    fn new() -> Self {
        let dir = ScratchDir::new().unwrap();
        shell(root(), "make install PREFIX=\"$HERE\"", &[("HERE", dir.join("prefix").to_str().unwrap())]);
        Self { dir }
    }

    /// Its libraries' folder.
    fn lib(&self) -> PathBuf {
        self.dir.join("prefix/lib")
    }

    /// Compiles `source` outside the repository with `flags`, a line of shell, to a program of this name.
    fn compile(&self, source: &Path, flags: &str, name: &str) -> PathBuf {
        let program = self.dir.join(name);
        let script = format!("\"${{CC:-cc}}\" -Wall -Wextra -Werror \"$SOURCE\" {flags} -o \"$PROGRAM\"");
        let pkgconfig = self.lib().join("pkgconfig");
        shell(
            self.dir.path(),
            &script,
            &[
                ("SOURCE", source.to_str().unwrap()),
                ("PROGRAM", program.to_str().unwrap()),
                ("PKG_CONFIG_PATH", pkgconfig.to_str().unwrap()),
            ],
        );
        program
    }

    /// Runs a program on a source and a target, and compares them.
    #[track_caller]
    fn copies(&self, program: &Path, libraries: &Path) -> String {
        let source = self.dir.random_file("source", DISK_BYTES, 5).unwrap();
        let target = self.dir.sparse_file("target", DISK_BYTES).unwrap();
        let printed = shell(
            self.dir.path(),
            "\"$PROGRAM\" source target",
            &[("PROGRAM", program.to_str().unwrap()), ("LD_LIBRARY_PATH", libraries.to_str().unwrap())],
        );
        assert_equal(&source, &target);
        printed
    }
}

/// What the dynamic section of a file says.
fn dynamic(file: &Path) -> String {
    shell(root(), "readelf -d \"$FILE\"", &[("FILE", file.to_str().unwrap())])
}

/// The value of `key = "value"` or `key = value` in a text.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}")).trim().trim_end_matches(';').trim_matches('"')
}

/// Otherwise a distribution that builds with cargo-c would ship a library of another name than everybody else, and programs would
/// not find it.
#[test]
fn cargo_c_names_the_library_with_the_number_that_the_build_script_gives_it() {
    let (script, manifest) = (text("ffi/build.rs"), text("ffi/Cargo.toml"));
    let abi = value(&script, "const ABI: &str");
    let (_, metadata) = manifest.split_once("[package.metadata.capi.library]\n").unwrap();
    let metadata = metadata.split("\n[").next().unwrap();
    // cargo-c takes so many parts of the version for the name.
    let parts = value(metadata, "version_suffix_components").parse().unwrap();
    let suffix = env!("CARGO_PKG_VERSION").split('.').take(parts).collect::<Vec<_>>().join(".");
    assert_eq!(suffix, abi, "version_suffix_components of ffi/Cargo.toml, and ABI of ffi/build.rs");
    assert_eq!(value(metadata, "name"), "blkmirror");
    assert!(script.contains("-soname,libblkmirror.so.{ABI}"), "{script}");
}

/// Packages would be put together with files missing, or with the folder that they were built in inside.
#[test]
fn all_files_are_installed_below_the_prefix_in_destdir() {
    if !has(&["make", "readelf", "pkg-config"]) {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    // A space: who packages has such paths.
    let stage = dir.join("the stage");
    let at = [("STAGE", stage.to_str().unwrap())];
    shell(root(), "umask 077; make install DESTDIR=\"$STAGE\" PREFIX=/opt/blkm", &at);
    assert_eq!(entries(&stage).first().map(String::as_str), Some("opt/"));
    let prefix = stage.join("opt/blkm");
    let mut wanted: BTreeSet<String> = FILES.iter().map(ToString::to_string).collect();
    wanted.extend(all_of("include", "include", &[".h", ".hpp"]));
    wanted.extend(all_of("c-examples", "share/doc/blkmirror/examples", &[".c", ".cpp"]));
    assert!(wanted.contains("include/blkmirror.h") && wanted.contains("share/doc/blkmirror/examples/copy.c"));
    assert_eq!(files(&prefix), wanted);
    for name in wanted {
        let metadata = fs::metadata(prefix.join(&name)).unwrap();
        let runs = name.starts_with("bin/") || name.contains(".so");
        assert_eq!(metadata.permissions().mode() & 0o777, if runs { 0o755 } else { 0o644 }, "{name}");
        assert!(metadata.len() > 0, "{name}");
    }
    for folder in entries(&prefix).iter().filter(|name| name.ends_with('/')) {
        assert_eq!(
            fs::metadata(prefix.join(folder)).unwrap().permissions().mode() & 0o777,
            0o755,
            "{folder}"
        );
    }
    check_names(&prefix);
    check_pc(&prefix, &[stage.to_str().unwrap(), root().to_str().unwrap()]);
    let completed = fs::read_to_string(prefix.join("share/bash-completion/completions/blkmirror")).unwrap();
    assert!(completed.contains("--target-is-zero"));
}

/// Asserts that a program that is linked to the library finds it.
fn check_names(prefix: &Path) {
    let file = concat!("libblkmirror.so.", env!("CARGO_PKG_VERSION"));
    let lib = prefix.join("lib");
    let said = dynamic(&lib.join(file));
    let soname = said.lines().find_map(|line| line.split_once("soname: [")).unwrap().1.trim_end_matches(']');
    for link in [soname, "libblkmirror.so"] {
        // By name alone, or it would lead nowhere once the package is unpacked.
        assert_eq!(fs::read_link(lib.join(link)).unwrap(), Path::new(file), "{link}");
    }
    assert!(!said.contains("RPATH") && !said.contains("RUNPATH"), "{said}");
    let header = text("include/blkmirror.h");
    for (part, number) in ["MAJOR", "MINOR", "PATCH"].into_iter().zip(env!("CARGO_PKG_VERSION").split('.')) {
        let line = format!("\n#define BLKM_VERSION_{part} {number}\n");
        assert!(header.contains(&line), "the header is of another version");
    }
}

/// Asserts that the file for pkg-config is right, and names none of `paths`.
fn check_pc(prefix: &Path, paths: &[&str]) {
    let pc = fs::read_to_string(prefix.join("lib/pkgconfig/blkmirror.pc")).unwrap();
    assert!(!pc.contains('@') && paths.iter().all(|path| !pc.contains(path)), "{pc}");
    let folder = prefix.join("lib/pkgconfig");
    let ask = |what: &str| {
        let script = format!("pkg-config {what} blkmirror");
        shell(root(), &script, &[("PKG_CONFIG_LIBDIR", folder.to_str().unwrap())]).trim().to_owned()
    };
    assert_eq!(ask("--modversion"), env!("CARGO_PKG_VERSION"));
    assert_eq!(ask("--cflags"), "-I/opt/blkm/include");
    assert_eq!(ask("--libs"), "-L/opt/blkm/lib -lblkmirror");
    let alone = ask("--static --libs");
    assert!(alone.starts_with("-L/opt/blkm/lib -lblkmirror -l") && alone.contains("-lc"), "{alone}");
}

/// A prefix is shared with others: they would miss what they had put there, or be left with what nobody needs.
#[test]
fn uninstall_takes_away_what_install_has_put_there_and_nothing_else() {
    if !has(&["make"]) {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    let stage = dir.join("stage");
    let at = [("STAGE", stage.to_str().unwrap())];
    // Folders that were there, empty or not, and one that somebody put a file into afterwards.
    fs::create_dir_all(stage.join("opt/blkm/share/fish/vendor_completions.d")).unwrap();
    fs::create_dir_all(stage.join("opt/blkm/include")).unwrap();
    fs::write(stage.join("opt/blkm/include/other.h"), "").unwrap();
    let mut before = entries(&stage);
    let install = "make install DESTDIR=\"$STAGE\" PREFIX=/opt/blkm LIBDIR=/usr/lib64";
    shell(root(), install, &at);
    assert!(stage.join("usr/lib64/pkgconfig/blkmirror.pc").is_file());
    // A second time over the first: what that one made is still ours.
    shell(root(), install, &at);
    fs::write(stage.join("opt/blkm/bin/other"), "").unwrap();
    before.extend(["opt/blkm/bin/".to_owned(), "opt/blkm/bin/other".to_owned()]);
    // Where things are, the list says: a LIBDIR that is forgotten is no harm.
    shell(root(), "make uninstall DESTDIR=\"$STAGE\" PREFIX=/opt/blkm", &at);
    assert_eq!(entries(&stage), before);
    let again = attempt(root(), "make uninstall DESTDIR=\"$STAGE\" PREFIX=/opt/blkm", &at);
    assert!(!again.0 && again.2.contains("nothing is installed here"), "{again:?}");
    let relative = attempt(root(), "make install DESTDIR=\"$STAGE\" PREFIX=opt", &at);
    assert!(!relative.0 && relative.2.contains("absolute"), "{relative:?}");
    assert_eq!(entries(&stage), before);
}

/// Somebody with a C compiler and pkg-config would have to find out by himself what else it takes.
#[test]
fn a_c_program_needs_what_pkg_config_says_and_no_more() {
    if !has(&["make", "cc", "pkg-config", "readelf"]) {
        return;
    }
    let installed = Installed::new();
    let copy = installed.dir.join("copy.c");
    fs::copy(root().join("c-examples/copy.c"), &copy).unwrap();
    let program = installed.compile(&copy, "$(pkg-config --cflags --libs blkmirror)", "copy");
    assert!(dynamic(&program).contains("[libblkmirror.so.0]"));
    installed.copies(&program, &installed.lib());
    // As the manual has it.
    let manual = text("docs/man/libblkmirror.3").replace('\\', "");
    let (_, flags) = manual.split_once(".SS Static\n").unwrap();
    let (_, flags) = flags.split_once("cc program.c ").unwrap();
    let (flags, _) = flags.split_once(" -o program").unwrap();
    let program = installed.compile(&copy, flags, "copy-static");
    assert!(!dynamic(&program).contains("libblkmirror"), "{}", dynamic(&program));
    installed.copies(&program, Path::new("/nowhere"));
}

/// What the README and the manual show would not work.
#[test]
fn the_program_of_the_readme_and_the_manual_mirrors_a_disk() {
    if !has(&["make", "cc", "pkg-config"]) {
        return;
    }
    let program = from_readme("from-c");
    assert!(program.lines().count() <= 40);
    let manual =
        text("docs/man/libblkmirror.3").replace("\\e", "\u{1}").replace('\\', "").replace('\u{1}', "\\");
    assert!(manual.contains(&program), "the manual has another program than the README");
    let installed = Installed::new();
    let source = installed.dir.join("mirror.c");
    fs::write(&source, program).unwrap();
    let program = installed.compile(&source, "$(pkg-config --cflags --libs blkmirror)", "mirror");
    let printed = installed.copies(&program, &installed.lib());
    assert!(printed.ends_with("the guest's disk is the target now\n"), "{printed}");
}

/// The README promises that these five commands are all that it takes.
#[test]
fn the_five_commands_of_the_readme_work_in_a_fresh_clone_without_network() {
    if !has(&["git", "make", "cc", "pkg-config"]) {
        return;
    }
    let commands = from_readme("five-commands");
    assert_eq!(commands.lines().count(), 5, "{commands}");
    let dir = ScratchDir::new().unwrap();
    let repository = dir.join("repository");
    let source = dir.random_file("source", DISK_BYTES, 6).unwrap();
    let (home, target) = (dir.join("home"), dir.join("target"));
    fs::create_dir_all(dir.join("home/work")).unwrap();
    // The tree as it is here, also what is not committed yet; nothing of it is changed.
    let publish = "git init --quiet --bare \"$REPOSITORY\" && export GIT_DIR=\"$REPOSITORY\" GIT_WORK_TREE=\"$PWD\" && git add --all \
                   && git -c user.name=tests -c user.email=tests@localhost commit --quiet --message tree";
    shell(root(), publish, &[("REPOSITORY", repository.to_str().unwrap())]);
    // Below the folder of this run's build, so that the next time only what has changed is built.
    let build = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("five-commands");
    let from_here = format!("url.{}.insteadOf", repository.display());
    let (cargo, rustup) = (home_of("CARGO_HOME", ".cargo"), home_of("RUSTUP_HOME", ".rustup"));
    let environment = [
        ("HOME", home.to_str().unwrap()),
        ("SOURCE", source.to_str().unwrap()),
        ("TARGET", target.to_str().unwrap()),
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", from_here.as_str()),
        ("GIT_CONFIG_VALUE_0", "https://github.com/blkmirror/blkmirror"),
        ("CARGO_HOME", cargo.as_str()),
        ("RUSTUP_HOME", rustup.as_str()),
        ("CARGO_NET_OFFLINE", "true"),
        ("CARGO_TARGET_DIR", build.to_str().unwrap()),
        // Whether it builds is asked here, and not how fast it is.
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ];
    shell(&dir.join("home/work"), &commands, &environment);
    assert_equal(&source, &target);
}

/// Where cargo and rustup keep their things, whatever the home is.
fn home_of(variable: &str, below_home: &str) -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    std::env::var(variable).unwrap_or_else(|_| format!("{home}/{below_home}"))
}

/// A function without a word in the manual would be found by nobody.
#[test]
fn the_manual_names_every_function_of_the_header() {
    let (header, manual) = (text("include/blkmirror.h"), text("docs/man/libblkmirror.3"));
    let mut functions = BTreeSet::new();
    // Declarations begin in the first column, comments and members do not; handlers are types.
    for line in header.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())) {
        let name = line.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap();
        if line.contains('(') && name.starts_with("blkm_") {
            functions.insert(name.to_owned());
        }
    }
    assert!(functions.len() > 80 && functions.contains("blkm_error_msg"), "{functions:?}");
    let named: BTreeSet<&str> = manual.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = functions.iter().filter(|name| !named.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/man/libblkmirror.3: {missing:?}");
    // And none that is not there.
    let wrong: Vec<_> = named
        .iter()
        .filter(|name| name.starts_with("blkm_") || name.starts_with("BLKM_"))
        .filter(|name| !header.contains(**name))
        .collect();
    assert!(wrong.is_empty(), "not in include/blkmirror.h: {wrong:?}");
}

/// Readers would see wrong fonts, or half a table.
#[test]
fn the_manual_pages_are_set_without_a_warning() {
    if !has(&["groff"]) {
        return;
    }
    for page in ["blkmirror.1", "libblkmirror.3"] {
        let script = format!("groff -t -ww -man -Tutf8 docs/man/{page}");
        let (good, out, complaints) = attempt(root(), &script, &[]);
        assert!(good && complaints.is_empty() && out.len() > 1000, "{page}: {complaints}");
        let version = concat!("blkmirror ", env!("CARGO_PKG_VERSION"));
        assert!(text(&format!("docs/man/{page}")).contains(version), "{page} is of another version");
    }
}
