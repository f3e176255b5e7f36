//! The C ABI: the header is right for every compiler, the library has what it declares, and every function does what it says,
//! called from C. The programs are `tests/c/*.c`; each check in them is named after the property that it holds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code")]

mod c_kit;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use blkmirror_testkit::ScratchDir;
use blkmirror_tests::c::{has_cxx, library, root, try_compile, works};

use self::c_kit::{
    calls, constants, functions, holds, number_types, output, program, run, structures, users,
};

/// Compiles `text` without making anything of it; the complaint if there is one.
fn complaint(compiler: &str, language: &str, standard: &str, text: &str) -> Option<String> {
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Werror", "-fsyntax-only", "-x", language]);
    command.args([standard, "-Iinclude", "-"]).current_dir(root());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    (!ended.status.success())
        .then(|| format!("{compiler} {standard}: {}", String::from_utf8_lossy(&ended.stderr)))
}

/// The languages and standards that the header is for, with the compilers of this machine.
fn compilers() -> Vec<(&'static str, &'static str, &'static str)> {
    let c = ["-std=c99", "-std=c11", "-std=c17"].map(|standard| ("c", standard));
    let cxx = ["-std=c++17", "-std=c++20"].map(|standard| ("c++", standard));
    let all = [("gcc", &c[..]), ("clang", &c[..]), ("g++", &cxx[..]), ("clang++", &cxx[..])];
    let there = all.into_iter().filter(|(compiler, _)| works(compiler));
    there
        .flat_map(|(compiler, of)| of.iter().map(move |&(language, standard)| (compiler, language, standard)))
        .collect()
}

/// Otherwise the header would be an error in somebody's build, or a structure would have padding that differs between compilers.
#[test]
fn the_header_is_clean_c_and_cxx_alone_and_twice_without_padding() {
    let compilers = compilers();
    assert!(compilers.iter().any(|(compiler, ..)| *compiler == "gcc"));
    assert!(!has_cxx() || compilers.iter().any(|(compiler, ..)| *compiler == "g++"));
    let alone = "#include <blkmirror.h>\n";
    let twice = "#include <blkmirror.h>\n#include <blkmirror.h>\nint one(void);\nint one(void) { return BLKM_HELD; }\n";
    for (compiler, language, standard) in compilers {
        for text in [alone, twice] {
            assert_eq!(complaint(compiler, language, standard, text), None);
        }
        // These flags see padding.
        let padded = format!("{alone}struct padded {{ char a; blkm_token b; }};\nextern struct padded c;\n");
        let said = complaint(compiler, language, standard, &padded).unwrap_or_default();
        assert!(said.contains("padd"), "{compiler} {standard}: {said}");
    }
}

/// Otherwise programs would not link, or would come to depend on what is nobody's business.
#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let file = library().join("libblkmirror.so");
    let symbols =
        output("nm", &["-D".as_ref(), "--defined-only".as_ref(), "--format=posix".as_ref(), file.as_ref()]);
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert_eq!(exported, functions());
    let dynamic = output("readelf", &["-d".as_ref(), file.as_ref()]);
    assert!(dynamic.contains("soname: [libblkmirror.so.0]"), "{dynamic}");
}

/// What stands at the head of `layout.c`.
const LAYOUT_HEAD: &str = "\
/*
 * Where everything lies that programs have compiled into them. Nothing here may change or go away in a version with the same soname;
 * structures may grow at their end, and constants be added. Written by
 *
 *     BLKMIRROR_WRITE_LAYOUT=1 cargo test -p blkmirror-tests --test c_abi layout
 */
#include <blkmirror.h>
#include <stddef.h>

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define FIELD(type, field, at, bytes) \\
    _Static_assert(offsetof(type, field) == (at) && sizeof(((type *)0)->field) == (bytes), #type \".\" #field)
#define NUMBER(macro, number) _Static_assert((macro) == (number), #macro)

";

/// The assertions of `layout.c`, as a program that is made for that sees them.
fn made_layout() -> String {
    let mut text =
        "#include <blkmirror.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n".to_owned();
    for name in number_types() {
        writeln!(text, "printf(\"SIZE({name}, %zu);\\n\", sizeof({name}));").unwrap();
    }
    for (name, fields) in structures() {
        writeln!(text, "printf(\"\\nSIZE({name}, %zu);\\n\", sizeof({name}));").unwrap();
        for field in fields {
            let place = format!("offsetof({name}, {field}), sizeof((({name} *)0)->{field})");
            writeln!(text, "printf(\"FIELD({name}, {field}, %zu, %zu);\\n\", {place});").unwrap();
        }
    }
    text.push_str("puts(\"\");\n");
    for name in constants() {
        writeln!(text, "printf(\"NUMBER({name}, %lluu);\\n\", (unsigned long long){name});").unwrap();
    }
    let dir = ScratchDir::new().unwrap();
    fs::write(dir.join("layout.c"), text + "return 0;\n}\n").unwrap();
    let made = try_compile("cc", &[dir.join("layout.c")], &[]).unwrap();
    LAYOUT_HEAD.to_owned() + &run(made.command([] as [&str; 0])).succeeded().stdout
}

/// Otherwise a change that breaks every program that was built before would pass for a tidy-up.
#[test]
fn the_layout_is_the_recorded_one_and_all_of_it_is_recorded() {
    let path = root().join("tests/c/layout.c");
    if std::env::var_os("BLKMIRROR_WRITE_LAYOUT").is_some() {
        fs::write(&path, made_layout()).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    for (name, fields) in structures() {
        assert!(there.contains(&format!("SIZE({name}, ")), "layout.c does not know {name}");
        for field in fields {
            assert!(
                there.contains(&format!("FIELD({name}, {field}, ")),
                "layout.c does not know {name}.{field}"
            );
        }
    }
    for name in number_types() {
        assert!(there.contains(&format!("SIZE({name}, ")), "layout.c does not know {name}");
    }
    for name in constants() {
        assert!(there.contains(&format!("NUMBER({name}, ")), "layout.c does not know {name}");
    }
    try_compile("cc", &["tests/c/layout.c"], &["-c"]).unwrap();
    // And it would be noticed.
    let moved = there.replacen("FIELD(blkm_token, opaque, 8, 56)", "FIELD(blkm_token, opaque, 16, 56)", 1);
    assert_ne!(moved, there);
    let dir = ScratchDir::new().unwrap();
    fs::write(dir.join("moved.c"), moved).unwrap();
    assert!(try_compile("cc", &[dir.join("moved.c")], &["-c"]).unwrap_err().contains("blkm_token"));
}

/// Otherwise a host would decide by a version that is not the library's.
#[test]
fn the_versions_of_header_library_and_package_are_one() {
    holds("version");
    // The number is of all three parts.
    let dir = ScratchDir::new().unwrap();
    let version = program("version", &[]);
    let parts: Vec<u32> = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
    for at in 0..3 {
        let mut other = parts.clone();
        other[at] += 1;
        let mut command = version.command([dir.path()]);
        command.env("PACKAGE_VERSION", format!("{}.{}.{}", other[0], other[1], other[2]));
        assert_eq!(blkmirror_tests::start(command).wait().code, Some(1), "{other:?}");
    }
}

/// A function that no C program calls may be declared wrongly, or not work, and nobody would know.
#[test]
fn every_function_is_called_from_c() {
    let called: BTreeSet<String> = users().iter().flat_map(|text| calls(text)).collect();
    let missing: Vec<_> = functions().into_iter().filter(|name| !called.contains(name)).collect();
    assert!(missing.is_empty(), "no program in tests/c or c-examples calls {missing:?}");
}

/// Otherwise a host's slip would be a crash of its guest.
#[test]
fn null_and_numbers_without_meaning_are_errors_with_texts() {
    holds("null");
}

/// Otherwise programs could not be built against another version than the one that they run with.
#[test]
fn structures_grow_without_harm_to_older_and_newer_callers() {
    holds("sized");
}

/// Otherwise requests would get lost, or be completed twice, or a host would sleep on what is there.
#[test]
fn queues_complete_every_request_once_on_their_thread() {
    holds("queues");
}

/// Otherwise a host would lose completions at the end, or give away memory that is the kernel's.
#[test]
fn queues_end_when_nothing_is_lost_and_say_what_is() {
    holds("queue_end");
}

/// Otherwise hosts that do their own I/O would lose writes.
#[test]
fn drives_trackers_and_bitmaps_do_what_they_say() {
    holds("drives");
}

/// Otherwise a host could not follow a job, steer it, or know how it ended.
#[test]
fn jobs_obey_tell_and_end_as_they_say() {
    holds("jobs");
}

/// Otherwise the library would get in the way of its host's threads, signals and log.
#[test]
fn handlers_threads_and_signals_are_the_hosts() {
    holds("threads");
}
