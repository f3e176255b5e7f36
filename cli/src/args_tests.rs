//! Tests of the command line.

use clap::CommandFactory;

use super::*;

/// Parses a `copy` with two paths and these options.
fn copy(options: &[&str]) -> Result<CopyArgs, String> {
    let line = ["blkmirror", "copy", "a", "b"].iter().chain(options);
    match Cli::try_parse_from(line).map_err(|e| usage_text(&e))?.command {
        Command::Copy(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

/// Clap checks its own declarations only when asked.
#[test]
fn the_declarations_are_consistent() {
    Cli::command().debug_assert();
}

/// A default that moved would change jobs that nobody touched.
#[test]
fn defaults_are_as_documented() {
    let args = copy(&[]).unwrap();
    assert_eq!(args.sync, Sync::Full);
    assert_eq!((args.granularity, args.buf_size, args.threads, args.speed), (None, None, None, 0));
    assert_eq!((args.on_source_error, args.on_target_error), (OnError::Report, OnError::Report));
    assert!(!args.zero_detect && !args.target_is_zero && !args.force && !args.verify && !args.json);
}

/// Sizes are written as in every other storage tool.
#[test]
fn sizes_are_read_with_units() {
    let args =
        copy(&["--granularity", "4K", "--buf-size", "32M", "--speed", "1G", "--threads", "2"]).unwrap();
    assert_eq!(args.granularity.unwrap().bytes(), 4096);
    assert_eq!((args.buf_size, args.speed), (Some(32 << 20), 1 << 30));
    assert_eq!(args.threads.unwrap().get(), 2);
}

/// A wrong number must be refused with a text from which the user sees which one it was.
#[test]
fn absurd_numbers_are_refused_by_the_name_of_the_option() {
    for (option, value) in [
        ("--granularity", "0"),
        ("--granularity", "3000"),
        ("--granularity", "128M"),
        ("--granularity", "-4096"),
        ("--granularity", "99999999999999999999"),
        ("--buf-size", "1"),
        ("--buf-size", "2G"),
        ("--threads", "0"),
        ("--threads", "100000"),
        ("--threads", "two"),
        ("--speed", "fast"),
        ("--speed", "1"),
        ("--speed", "16777216T"),
        ("--target-cluster-size", "1000"),
        ("--target-cluster-size", "4M"),
        ("--sync", "half"),
        ("--on-source-error", "panic"),
        ("--on-target-error", ""),
    ] {
        let text = copy(&[&format!("{option}={value}")]).unwrap_err();
        assert!(text.contains(option), "{option}={value}: {text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

/// The advice to write `-- -1` would lead nowhere.
#[test]
fn a_negative_number_is_refused_as_a_number() {
    for option in ["--granularity", "--buf-size", "--threads", "--speed", "--target-cluster-size"] {
        let text = copy(&[option, "-1"]).unwrap_err();
        assert!(text.contains(option) && text.contains("'-1'") && !text.contains("-- -1"), "{text}");
    }
    assert!(copy(&["--buf-size", "1.5M"]).unwrap_err().contains("is not a whole number"));
}

/// The reason must be there, without "cannot set" in front of it.
#[test]
fn a_refusal_says_why_in_one_line() {
    let text = copy(&["--granularity", "3000"]).unwrap_err();
    assert_eq!(
        text,
        "invalid value '3000' for '--granularity <SIZE>': 3000 bytes is not a power of two from 512 bytes to \
         64 MiB; try 64K (see --help)"
    );
    let error = Cli::try_parse_from(["blkmirror", "copy", "a"]).unwrap_err();
    assert_eq!(usage_text(&error), "the following required arguments were not provided: <DST> (see --help)");
}

/// The man page is written by hand; an option that it forgets is not documented.
#[test]
fn the_man_page_names_every_subcommand_and_option() {
    let page = include_str!("../../docs/man/blkmirror.1").replace("\\-", "-");
    let top = Cli::command();
    let below = |command: &clap::Command| command.get_subcommands().cloned().collect::<Vec<_>>();
    for command in below(&top).iter().flat_map(|command| [below(command), vec![command.clone()]].concat()) {
        let name = command.get_name();
        assert!(
            page.contains(&format!("blkmirror {name}")) || page.contains(&format!("bench {name}")),
            "{name}"
        );
        for option in command.get_arguments().filter_map(|arg| arg.get_long()) {
            assert!(page.contains(&format!("--{option}")), "the man page lacks --{option} of {name}");
        }
    }
    for code in ["0", "1", "2", "130"] {
        assert!(page.contains(&format!(".B {code}\n")), "the man page lacks exit code {code}");
    }
}

/// People look for the exit codes in the help.
#[test]
fn the_help_tells_the_exit_codes() {
    let mut command = Cli::command();
    for name in ["copy", "compare", "info", "demo", "bench"] {
        let help = command.find_subcommand_mut(name).unwrap().render_help().to_string();
        assert!(help.contains("130  interrupted"), "{name}: {help}");
    }
}
