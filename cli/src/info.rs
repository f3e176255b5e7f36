//! `blkmirror info`: what a device demands, what the kernel offers, and why something is off.
#![forbid(unsafe_code)]

use std::fmt::Write;

use blkmirror_core::device::{Detail, Device};
use blkmirror_core::ring::{self, Feature, KernelSupport};
use serde::Serialize;

use crate::args::InfoArgs;
use crate::exit::{Failure, Outcome};
use crate::output::{print, print_json};

/// The object that `info --json` prints.
#[derive(Serialize, Default, Debug)]
struct InfoReport {
    /// The device as it was named.
    device: Option<String>,
    /// Its size.
    size_bytes: Option<u64>,
    /// Offsets and lengths of requests are multiples of this.
    offset_align_bytes: Option<u64>,
    /// Addresses of buffers are multiples of this.
    memory_align_bytes: Option<u64>,
    /// The largest request that is not split.
    max_request_bytes: Option<u64>,
    /// Everything known about the device.
    details: Vec<JsonDetail>,
    /// `uname -r`.
    kernel: Option<String>,
    /// The flags that a worker's ring gets.
    ring_flags: Option<&'static str>,
    /// What the kernel offers.
    features: Vec<JsonFeature>,
    /// Why the device or io_uring cannot be used.
    error: Option<String>,
}

/// One thing known about the device.
#[derive(Serialize, Debug)]
struct JsonDetail {
    /// What.
    name: &'static str,
    /// The value.
    value: String,
    /// Where it comes from.
    origin: String,
    /// What it means.
    note: String,
}

/// One thing that a kernel can have.
#[derive(Serialize, Debug)]
struct JsonFeature {
    /// Its name.
    name: &'static str,
    /// Since which kernel.
    since: &'static str,
    /// Whether it is there.
    available: bool,
    /// What it does for blkmirror.
    effect: &'static str,
    /// Why it is off.
    why: String,
}

/// Runs the command.
pub(crate) fn run(args: &InfoArgs) -> Outcome<()> {
    let device = args.device.as_deref().map(Device::open_for_reading).transpose();
    let kernel = ring::probe();
    let first_error = match (&device, &kernel) {
        (Err(error), _) | (_, Err(error)) => Some(Failure::failed(error.to_string())),
        _ => None,
    };
    if args.json {
        let mut report =
            InfoReport { error: first_error.as_ref().map(|f| f.text.clone()), ..Default::default() };
        report.device = args.device.as_ref().map(|path| path.display().to_string());
        if let Ok(Some(device)) = &device {
            report.take_device(device);
        }
        if let Ok(kernel) = kernel {
            report.kernel = Some(kernel.release);
            report.ring_flags = Some(kernel.ring_flags);
            report.features = kernel.items.into_iter().map(JsonFeature::from).collect();
        }
        print_json(&report)?;
    } else {
        let mut text = String::new();
        if let Ok(Some(device)) = &device {
            let _ = writeln!(text, "{}", device.name());
            device_text(&mut text, &device.describe());
            text.push('\n');
        }
        if let Ok(kernel) = &kernel {
            kernel_text(&mut text, kernel);
        }
        print(&text)?;
    }
    first_error.map_or(Ok(()), Err)
}

/// Prints the object of a command line that was refused.
pub(crate) fn print_refusal(error: Option<String>) -> Outcome<()> {
    print_json(&InfoReport { error, ..InfoReport::default() })
}

impl InfoReport {
    /// Takes over what is known about the device.
    fn take_device(&mut self, device: &Device) {
        let limits = device.limits();
        self.size_bytes = Some(device.size_bytes());
        self.offset_align_bytes = Some(limits.offset_align_bytes);
        self.memory_align_bytes = Some(limits.memory_align_bytes);
        self.max_request_bytes = Some(limits.max_request_bytes);
        self.details = device.describe().into_iter().map(JsonDetail::from).collect();
    }
}

impl From<Detail> for JsonDetail {
    fn from(detail: Detail) -> Self {
        let Detail { name, value, origin, note } = detail;
        Self { name, value, origin, note }
    }
}

impl From<Feature> for JsonFeature {
    fn from(feature: Feature) -> Self {
        let Feature { name, since, available, effect, why } = feature;
        Self { name, since, available, effect, why }
    }
}

/// The device's details as a table: name, value, origin in brackets, and the note.
fn device_text(text: &mut String, details: &[Detail]) {
    let width = |of: fn(&Detail) -> &str| details.iter().map(|d| of(d).len()).max().unwrap_or(0);
    let names = width(|d| d.name);
    let values = width(|d| &d.value).min(24);
    for detail in details {
        let Detail { name, value, origin, note } = detail;
        let origin = if origin.is_empty() { String::new() } else { format!("  [{origin}]") };
        let note = if note.is_empty() { String::new() } else { format!("  {note}") };
        let line = format!("  {name:names$}  {value:values$}{origin}{note}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// What the kernel offers, one line each.
fn kernel_text(text: &mut String, kernel: &KernelSupport) {
    let _ = writeln!(text, "kernel {}, ring: {}", kernel.release, kernel.ring_flags);
    let width = kernel.items.iter().map(|item| item.name.len()).max().unwrap_or(0);
    for Feature { name, since, available, effect, why } in &kernel.items {
        let on = if *available { "on " } else { "off" };
        let _ = write!(text, "  {name:width$}  {on}  since {since:<7} {effect}");
        let _ =
            writeln!(text, "{}", if why.is_empty() { String::new() } else { format!("; off because {why}") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who looks at this wants to know what to change.
    #[test]
    fn what_is_off_says_why() {
        let item = |available, why: &str| Feature {
            name: "huge pages",
            since: "5.1",
            available,
            effect: "requests are not split",
            why: why.into(),
        };
        let mut text = String::new();
        let items = vec![item(true, ""), item(false, "RLIMIT_MEMLOCK is 8M")];
        kernel_text(&mut text, &kernel(items));
        assert!(text.contains("on   since 5.1"), "{text}");
        assert!(
            text.contains("off  since 5.1     requests are not split; off because RLIMIT_MEMLOCK"),
            "{text}"
        );
    }

    /// A report with these items; other fields as the running kernel has them.
    fn kernel(items: Vec<Feature>) -> KernelSupport {
        KernelSupport { items, ..ring::probe().unwrap() }
    }

    /// Every number comes with its origin.
    #[test]
    fn details_name_their_origin() {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = Device::open_for_reading(file.path()).unwrap();
        let mut text = String::new();
        device_text(&mut text, &device.describe());
        assert!(text.contains("regular file") && text.contains("[fstat]"), "{text}");
    }
}
