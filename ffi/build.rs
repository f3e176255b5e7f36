//! Names the shared library, so that programs look for `libblkmirror.so.0` and not for a file that a later version may replace.

/// Part of the name: raised when programs that were linked before would not work any more.
const ABI: &str = "0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libblkmirror.so.{ABI}");
}
