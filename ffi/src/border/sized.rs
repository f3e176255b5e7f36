//! Structures that may grow at their end.
//!
//! Each begins with the size that the caller's header gave it. Options of a caller with an older header are filled up with zeroes,
//! which mean the defaults. What a newer caller has beyond our size must be zero, or he asked for something that we do not know:
//! `-E2BIG`, as `openat2(2)` does. Facts are filled in up to the caller's size. Fields are never moved, renamed in meaning or taken
//! out.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};

use blkmirror_core::{Error, Result};

use super::invalid;

/// No structure will ever be that large; a size above it is a size that was never set.
const ABSURD_BYTES: usize = 4096;

/// A structure that begins with its size.
///
/// # Safety
/// It is `repr(C)` without padding, its first field is a `usize`, and any bytes that C may put into it, zeroes above all, are a
/// value of it: integers, raw pointers, optional functions, and arrays of these.
pub(crate) unsafe trait Structure: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in the first version that had it.
    const FIRST_BYTES: usize;
    /// Whether all that is reserved is zero.
    fn reserved_is_zero(&self) -> bool;
    /// The size that is in it.
    fn set_struct_size(&mut self, bytes: usize);

    /// All zeroes.
    fn zeroed() -> Self {
        // SAFETY: zeroes are a value, by the contract of the trait.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

/// A field that is kept for later.
pub(crate) trait Reserved {
    /// Whether nobody has put anything there.
    fn is_zero(&self) -> bool;
}

impl Reserved for u32 {
    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl<const N: usize> Reserved for [u64; N] {
    fn is_zero(&self) -> bool {
        self.iter().all(|&word| word == 0)
    }
}

/// Reads the size that the caller has put in front.
///
/// # Safety
/// The caller's structure begins at `structure`, which is not NULL.
unsafe fn size_of_callers<T: Structure>(structure: *const T, attempt: &'static str) -> Result<usize> {
    // SAFETY: the caller's promise; the size is first by the contract of the trait.
    let bytes = unsafe { structure.cast::<usize>().read_unaligned() };
    if bytes < T::FIRST_BYTES {
        let why = format!(
            "struct_size of {} is {bytes}, at least {} are needed; set it to sizeof, as its _init function does",
            T::NAME,
            T::FIRST_BYTES
        );
        return Err(invalid(attempt, why));
    }
    if bytes > ABSURD_BYTES {
        let why = format!("struct_size of {} is {bytes}, which is no size of it; was it set?", T::NAME);
        return Err(Error::from_errno(attempt, libc::E2BIG).because(why));
    }
    Ok(bytes)
}

/// Options of the caller's; NULL means the defaults.
///
/// # Safety
/// `options` is NULL or points to as many bytes as its first field says.
pub(crate) unsafe fn read<T: Structure>(options: *const T, attempt: &'static str) -> Result<T> {
    let mut ours = T::zeroed();
    if options.is_null() {
        return Ok(ours);
    }
    // SAFETY: not NULL, and the caller's promise.
    let bytes = unsafe { size_of_callers(options, attempt)? };
    for at in size_of::<T>()..bytes {
        // SAFETY: inside the caller's structure.
        if unsafe { options.cast::<u8>().wrapping_add(at).read() } != 0 {
            let why = format!(
                "byte {at} of {} is set, which this version of the library does not know; use a newer one, or leave it zero",
                T::NAME
            );
            return Err(Error::from_errno(attempt, libc::E2BIG).because(why));
        }
    }
    let into: *mut c_void = (&raw mut ours).cast();
    // SAFETY: as many bytes as both have; any bytes are a value, by the contract of the trait.
    unsafe { std::ptr::copy_nonoverlapping(options.cast(), into, bytes.min(size_of::<T>())) };
    if !ours.reserved_is_zero() {
        return Err(invalid(attempt, format!("a reserved field of {} is not zero", T::NAME)));
    }
    Ok(ours)
}

/// Fills in the caller's structure, up to the size that he has put in front, which stays.
///
/// # Safety
/// `facts` is NULL or points to as many writable bytes as its first field says.
pub(crate) unsafe fn write<T: Structure>(facts: *mut T, mut value: T, attempt: &'static str) -> Result<()> {
    if facts.is_null() {
        return Err(invalid(attempt, format!("{} is NULL", T::NAME)));
    }
    // SAFETY: not NULL, and the caller's promise.
    let bytes = unsafe { size_of_callers(facts, attempt)? };
    value.set_struct_size(bytes);
    let known = bytes.min(size_of::<T>());
    // SAFETY: as many bytes as both have; it has no padding, by the contract of the trait.
    unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), facts.cast(), known) };
    // SAFETY: the rest of the caller's structure.
    unsafe { facts.cast::<u8>().wrapping_add(known).write_bytes(0, bytes - known) };
    Ok(())
}

/// Whether the caller's structure can be filled in: for who must know before something happens that cannot be taken back.
///
/// # Safety
/// As [`write()`].
pub(crate) unsafe fn check<T: Structure>(facts: *const T, attempt: &'static str) -> Result<()> {
    if facts.is_null() {
        return Err(invalid(attempt, format!("{} is NULL", T::NAME)));
    }
    // SAFETY: not NULL, and the caller's promise.
    unsafe { size_of_callers(facts, attempt) }.map(|_| ())
}

/// Sets the caller's structure to the defaults: zeroes, and its size. A NULL, or a size that has not even room for the size, is
/// ignored.
///
/// # Safety
/// `options` is NULL or points to `bytes` writable bytes.
pub(crate) unsafe fn init<T: Structure>(options: *mut T, bytes: usize) {
    if options.is_null() || bytes < size_of::<usize>() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { options.cast::<u8>().write_bytes(0, bytes) };
    // SAFETY: there is room for it.
    unsafe { options.cast::<usize>().write_unaligned(bytes) };
}

/// Declares a structure of C to be one that begins with its size; `first` is how large it was when it came.
macro_rules! structure {
    ($name:ident, first $bytes:expr $(, reserved $($reserved:ident),+)?) => {
        // SAFETY: `repr(C)`, `struct_size` first, only integers, pointers, functions that may be missing, and arrays of these; the
        // header is compiled with -Wpadded, so there is no padding.
        unsafe impl $crate::border::sized::Structure for $name {
            const NAME: &'static str = stringify!($name);
            const FIRST_BYTES: usize = $bytes;
            fn reserved_is_zero(&self) -> bool {
                true $($(&& $crate::border::sized::Reserved::is_zero(&self.$reserved))+)?
            }
            fn set_struct_size(&mut self, bytes: usize) {
                self.struct_size = bytes;
            }
        }
        const _: () = assert!(std::mem::offset_of!($name, struct_size) == 0);
        const _: () = assert!($bytes <= std::mem::size_of::<$name>());
    };
}
pub(crate) use structure;

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: usize,
        old: u64,
        new: u64,
        reserved: [u64; 2],
    }
    structure!(Now, first 16, reserved reserved);

    /// Bytes as a caller with another header has them, aligned as C does.
    fn callers(words: &[u64]) -> Vec<u64> {
        words.to_vec()
    }

    fn read_words(words: &[u64]) -> Result<Now> {
        let words = callers(words);
        // SAFETY: every test's first word is the size of what follows, or is refused before it is used.
        unsafe { read(words.as_ptr().cast::<Now>(), "test") }
    }

    #[test]
    fn an_older_caller_gets_the_defaults_for_what_he_does_not_know() {
        let got = read_words(&[16, 7]).unwrap();
        assert_eq!((got.old, got.new), (7, 0));
    }

    #[test]
    fn a_newer_caller_is_understood_unless_he_asks_for_what_we_do_not_know() {
        assert_eq!(read_words(&[56, 7, 8, 0, 0, 0, 0]).unwrap().new, 8);
        assert_eq!(read_words(&[56, 7, 8, 0, 0, 0, 1]).unwrap_err().errno(), libc::E2BIG);
        assert_eq!(read_words(&[56, 7, 8, 0, 0, 1 << 63, 0]).unwrap_err().errno(), libc::E2BIG);
    }

    #[test]
    fn a_size_that_cannot_be_is_refused_before_anything_is_read() {
        for size in [0, 8, 15, 4097, u64::MAX] {
            let error = read_words(&[size, 7]).unwrap_err();
            assert!(error.to_string().contains("struct_size of Now"), "{error}");
        }
    }

    #[test]
    fn what_is_reserved_must_be_zero() {
        let error = read_words(&[40, 1, 2, 0, 3]).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
    }

    #[test]
    fn facts_fill_the_callers_size_and_not_a_byte_more() {
        let value = Now { struct_size: 40, old: 1, new: 2, reserved: [0; 2] };
        for (size, expect) in [(16, [16, 1, 9, 9, 9, 9, 9]), (56, [56, 1, 2, 0, 0, 0, 0])] {
            let mut words = [9_u64; 7];
            words[0] = size;
            // SAFETY: the size is that of the array or less.
            unsafe { write(words.as_mut_ptr().cast::<Now>(), value, "test") }.unwrap();
            assert_eq!(words, expect);
        }
    }

    #[test]
    fn defaults_are_zeroes_for_the_size_that_the_caller_knows() {
        let mut words = [9_u64; 4];
        // SAFETY: shorter than the array.
        unsafe { init(words.as_mut_ptr().cast::<Now>(), 24) };
        assert_eq!(words, [24, 0, 0, 9]);
        // SAFETY: too small for anything, so nothing is written.
        unsafe { init(words.as_mut_ptr().cast::<Now>(), 7) };
        assert_eq!(words[0], 24);
    }
}
