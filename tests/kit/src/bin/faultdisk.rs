//! `faultdisk MOUNTPOINT`: serves a disk with latency and faults over the file MOUNTPOINT until SIGTERM or SIGINT.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use blkmirror_testkit::faultdisk::{Control, Effect, FaultDisk, Operation, Options, Rule, Times};
use nix::sys::signal::{SigSet, Signal};

/// What the command understands.
const USAGE: &str = "\
usage: faultdisk MOUNTPOINT (--backing FILE | --size BYTES) [--read-latency-us N] [--write-latency-us N]
                 [--flush-latency-us N] [--capacity BYTES] [--allocate] [--no-fallocate]
                 [--no-seek] [--error OPERATION:OFFSET:LENGTH:ERRNO:TIMES]...
  MOUNTPOINT  a regular file, made if it is missing; the disk appears in its place
  OPERATION   read, write, flush, fallocate or seek
  --allocate  takes the disk's memory now, so that first writes are as fast as later ones
  LENGTH      in bytes; 0 means to the end
  ERRNO       EIO, ENOSPC, EAGAIN, ETIMEDOUT, EOPNOTSUPP, a number, or stuck
  TIMES       once, forever or a number
Ends at SIGTERM or SIGINT, and prints what the disk has done as one line of JSON.";

/// The command line, understood.
#[derive(Default)]
struct Arguments {
    /// What the disk is made of.
    options: Options,
    /// Bytes that may be allocated.
    capacity: Option<u64>,
    /// fallocate fails.
    no_fallocate: bool,
    /// SEEK_DATA and SEEK_HOLE fail.
    no_seek: bool,
    /// The faults.
    rules: Vec<Rule>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(complaint) => {
            let _ = writeln!(io::stderr(), "faultdisk: {complaint}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "faultdisk: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal comes.
fn serve(arguments: Arguments) -> io::Result<()> {
    // Blocked before any thread starts, so that the signal waits for us and for nobody else.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    if let Some(mountpoint) = arguments.options.mountpoint.as_ref().filter(|path| !path.exists()) {
        File::create(mountpoint)?;
    }
    let disk = FaultDisk::new(&arguments.options)?;
    let control = disk.control();
    control.set_capacity(arguments.capacity.unwrap_or(u64::MAX));
    control.set_fallocate_supported(!arguments.no_fallocate);
    control.set_seek_supported(!arguments.no_seek);
    arguments.rules.into_iter().for_each(|rule| control.add_rule(rule));
    writeln!(io::stdout(), "{}", disk.path().display())?;
    signals.wait()?;
    report(control)
}

/// Prints the counters.
fn report(control: &Control) -> io::Result<()> {
    let counters = control.counters();
    writeln!(
        io::stdout(),
        "{{\"reads\":{},\"writes\":{},\"flushes\":{},\"fallocates\":{},\"read_bytes\":{},\"written_bytes\":{},\
         \"faults\":{},\"max_reads_in_flight\":{},\"max_writes_in_flight\":{}}}",
        counters.reads,
        counters.writes,
        counters.flushes,
        counters.fallocates,
        counters.read_bytes,
        counters.written_bytes,
        counters.faults,
        counters.max_reads_in_flight,
        counters.max_writes_in_flight,
    )
}

/// Understands the command line.
fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let options = &mut arguments.options;
        match word.as_str() {
            "--backing" => options.backing = Some(PathBuf::from(value()?)),
            "--size" => options.size_bytes = number(&value()?)?,
            "--read-latency-us" => options.read_latency = Duration::from_micros(number(&value()?)?),
            "--write-latency-us" => options.write_latency = Duration::from_micros(number(&value()?)?),
            "--flush-latency-us" => options.flush_latency = Duration::from_micros(number(&value()?)?),
            "--capacity" => arguments.capacity = Some(number(&value()?)?),
            "--allocate" => options.allocated = true,
            "--no-fallocate" => arguments.no_fallocate = true,
            "--no-seek" => arguments.no_seek = true,
            "--error" => arguments.rules.push(rule(&value()?)?),
            _ if word.starts_with('-') => return Err(format!("{word} is not known")),
            _ => options.mountpoint = Some(PathBuf::from(word)),
        }
    }
    if arguments.options.mountpoint.is_none() {
        return Err("MOUNTPOINT is missing".into());
    }
    if arguments.options.backing.is_none() && arguments.options.size_bytes == 0 {
        return Err("--backing or --size is missing".into());
    }
    Ok(arguments)
}

/// `write:4096:512:EIO:once`
fn rule(text: &str) -> Result<Rule, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let &[operation, offset, length, errno, times] = parts.as_slice() else {
        return Err(format!("'{text}' is not OPERATION:OFFSET:LENGTH:ERRNO:TIMES"));
    };
    let operation = match operation {
        "read" => Operation::Read,
        "write" => Operation::Write,
        "flush" => Operation::Flush,
        "fallocate" => Operation::Fallocate,
        "seek" => Operation::Seek,
        _ => return Err(format!("'{operation}' is not an operation")),
    };
    let effect = match errno {
        "stuck" => Effect::Stuck,
        "EIO" => Effect::Error(libc::EIO),
        "ENOSPC" => Effect::Error(libc::ENOSPC),
        "EAGAIN" => Effect::Error(libc::EAGAIN),
        "ETIMEDOUT" => Effect::Error(libc::ETIMEDOUT),
        "EOPNOTSUPP" => Effect::Error(libc::EOPNOTSUPP),
        other => Effect::Error(other.parse().map_err(|_| format!("'{other}' is not an errno"))?),
    };
    let times = match times {
        "once" => Times::Once,
        "forever" => Times::Forever,
        count => Times::Count(number(count)?),
    };
    let offset = number(offset)?;
    let end = match number(length)? {
        0 => u64::MAX,
        length => offset.saturating_add(length),
    };
    Ok(Rule::on(operation, effect).within(offset..end).times(times))
}

/// A plain number.
fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}
