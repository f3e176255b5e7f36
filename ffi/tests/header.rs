//! The header is made from the crate, and what is checked in is that.
//!
//! `BLKMIRROR_WRITE_HEADER=1 cargo test -p blkmirror-ffi --test header` writes it.
//!
//! cbindgen sorts by kind: all constants, all types, all functions. People look things up by topic. So what it makes is sorted once
//! more: topics as listed here, and within one as in the crate's files.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What the header begins with, up to the first topic.
const HEAD: &str = include_str!("../header-head.h");
/// What it ends with.
const TAIL: &str = "\n#ifdef __cplusplus\n}\n#endif\n#endif /* BLKMIRROR_H */\n";

/// The topics in the order in which they are needed, and the files that hold it.
const TOPICS: [(&str, &[&str]); 10] = [
    ("Version, features, errors", &["version.rs"]),
    ("Log", &["log.rs"]),
    ("Devices", &["device.rs"]),
    ("Drives", &["drive.rs"]),
    ("Memory for requests", &["memory.rs"]),
    (
        "Queues: guest I/O through the library",
        &["queue/mod.rs", "queue/requests.rs", "queue/process.rs", "queue/guarded.rs"],
    ),
    ("Trackers: guest I/O that the host does itself", &["tracker.rs"]),
    ("Bitmaps", &["bitmap.rs"]),
    ("Jobs", &["job/names.rs", "job/options.rs", "job/mod.rs", "job/verbs.rs", "job/facts.rs"]),
    ("Engines and events", &["event.rs", "engine.rs"]),
];

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The crate's sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// What cbindgen makes of the crate.
fn bindings() -> String {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_crate(crate_dir).with_config(config).generate().unwrap();
    let mut bytes = Vec::new();
    bindings.write(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Comments of one line on one line.
fn compact(item: &str) -> String {
    let lines: Vec<&str> = item.lines().collect();
    let (mut out, mut at) = (String::new(), 0);
    while let Some(line) = lines.get(at) {
        let text = lines.get(at + 1).and_then(|text| text.trim_start().strip_prefix("* "));
        match (line.trim_start(), text, lines.get(at + 2).map(|end| end.trim_start())) {
            ("/**", Some(text), Some("*/")) => {
                let indent = &line[..line.len() - 3];
                writeln!(out, "{indent}/** {text} */").unwrap();
                at += 3;
            }
            _ => {
                writeln!(out, "{line}").unwrap();
                at += 1;
            }
        }
    }
    out
}

/// The name that an item of the header declares.
fn name(item: &str) -> &str {
    let code = item.rsplit_once("*/\n").map_or(item, |(_, code)| code);
    let code = if code.is_empty() { item } else { code };
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    if let Some(define) = code.strip_prefix("#define ") {
        return &define[..word(define)];
    }
    // The last member of a structure has a comment, too: its name stands at its end.
    if let Some((_, end)) = item.rsplit_once("\n} ") {
        return end.trim_end_matches([';', '\n']);
    }
    let start = match code.find("(*") {
        Some(at) => at + 2,
        None => code.find("blkm_").map_or(0, |first| match code.find('(') {
            Some(bracket) => code[..bracket].rfind("blkm_").unwrap_or(first),
            None => code.rfind("blkm_").unwrap_or(first),
        }),
    };
    &code[start..start + word(&code[start..])]
}

/// Where an item is defined: its topic, the file of that, the place in it.
fn place(name: &str) -> (usize, usize, usize) {
    for (topic, (_, files)) in TOPICS.iter().enumerate() {
        for (number, file) in files.iter().enumerate() {
            let text = std::fs::read_to_string(sources().join(file)).unwrap();
            let definitions =
                ["const", "type", "struct", "extern \"C\" fn"].map(|kind| format!("{kind} {name}"));
            let ends = |at: usize| text[at..].starts_with(|c: char| !c.is_alphanumeric() && c != '_');
            let found = definitions
                .iter()
                .filter_map(|definition| text.match_indices(definition).find(|(at, d)| ends(at + d.len())))
                .map(|(at, _)| at)
                .min();
            if let Some(at) = found {
                return (topic, number, at);
            }
        }
    }
    panic!("no file of a topic defines {name}");
}

/// The header as the crate has it now.
fn made() -> String {
    let bindings = bindings();
    let (objects, items): (Vec<&str>, Vec<&str>) = bindings
        .trim()
        .split("\n\n")
        .partition(|item| !item.contains('{') && item.contains("typedef struct "));
    let mut placed: Vec<_> = items.into_iter().map(|item| (place(name(item)), item)).collect();
    placed.sort_unstable();
    let mut header = HEAD.to_owned();
    let put = |header: &mut String, item: &str| write!(header, "\n{}", compact(item)).unwrap();
    objects.into_iter().for_each(|item| put(&mut header, item));
    let mut last = None;
    for ((topic, ..), item) in placed {
        if last.replace(topic) != Some(topic) {
            let title = TOPICS[topic].0;
            let rule = "-".repeat(120_usize.saturating_sub(title.len()));
            write!(header, "\n/* {title} {rule} */\n").unwrap();
        }
        put(&mut header, item);
    }
    header + TAIL
}

/// Otherwise programs would be compiled against functions that are not there.
#[test]
fn the_header_that_is_checked_in_is_the_one_that_is_made() {
    let (path, made) = (root().join("include/blkmirror.h"), made());
    if std::env::var_os("BLKMIRROR_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(made.lines()).position(|(a, b)| a != b);
    assert!(
        there == made,
        "{} is not what ffi/ makes, from line {} on; write it anew with BLKMIRROR_WRITE_HEADER=1 cargo test -p blkmirror-ffi --test header",
        path.display(),
        differs.map_or(0, |line| line + 1)
    );
}

/// A file with functions that no topic names would not be in the header.
#[test]
fn every_file_with_functions_has_a_topic() {
    let source = sources();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let exports = std::fs::read_to_string(&path).unwrap().contains("#[unsafe(no_mangle)]");
            let name = path.strip_prefix(&source).unwrap().to_str().unwrap();
            assert!(!exports || TOPICS.iter().any(|(_, files)| files.contains(&name)), "{name}");
        }
    }
}
