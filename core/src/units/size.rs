//! Sizes as people write them: `64K`, `1M`, `2G`.

use super::{GIB, KIB, MIB, TIB};
use crate::error::{Error, ErrorKind, Result};

/// Parses `4096`, `64K`, `1M`, `2G`, `1T`; the units are powers of 1024, `KiB`, `KB` and `k` mean the same as `K`.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for anything else, and for numbers that do not fit in 64 bits.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, "read a size")
            .because(format!("'{text}' {why}; write it as 4096, 64K, 1M, 2G or 1T"))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(bad("is not a size"));
    }
    let number: u64 = number.parse().map_err(|_| bad("is too large"))?;
    let scale = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => KIB,
        "M" | "MB" | "MIB" => MIB,
        "G" | "GB" | "GIB" => GIB,
        "T" | "TB" | "TIB" => TIB,
        fraction if fraction.starts_with(['.', ',']) => return Err(bad("is not a whole number")),
        _ => return Err(bad("has a unit that is not known")),
    };
    number.checked_mul(scale).ok_or_else(|| bad("is too large"))
}

/// Formats bytes for people, with the largest unit that leaves at least one: `1.5 GiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (unit, name) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit {
            let tenths = (u128::from(bytes) * 10 + u128::from(unit / 2)) / u128::from(unit);
            return match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole} {name}"),
                (whole, tenth) => format!("{whole}.{tenth} {name}"),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64K", 65536), ("1m", MIB), ("2GiB", 2 * GIB), ("3T", 3 * TIB)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "64 K", "9Q", "99999999999999999999", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("1.5M").unwrap_err().to_string().contains("'1.5M' is not a whole number"));
    }

    #[test]
    fn sizes_are_shown_with_the_largest_fitting_unit() {
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(GIB), "1 GiB");
        assert_eq!(format_size(u64::MAX), "16777216 TiB");
    }
}
