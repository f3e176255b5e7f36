//! Objects behind opaque pointers.
//!
//! A handle is a box that C holds the only pointer to. Whoever borrows it here does so for the length of a call, and the header
//! says that no other call may be running when it is closed. A call on an object that was made before `fork(2)`, or in which a
//! panic was caught before, is refused before it touches what is inside.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use blkmirror_core::{Error, ErrorKind, Result};

use super::process::Process;
use super::{Answer, bug, fail, guard, invalid};

/// Whether an object may be used.
#[derive(Debug)]
pub(crate) struct Health {
    /// Where it was made.
    process: Process,
    /// A panic was caught in it.
    poisoned: AtomicBool,
}

impl Health {
    /// Of a new object.
    pub(crate) fn new() -> Self {
        Self { process: Process::this(), poisoned: AtomicBool::new(false) }
    }

    /// Why the object may not be used, if so.
    #[inline]
    pub(crate) fn check(&self, attempt: &'static str) -> Result<()> {
        if self.process.is_this() && !self.poisoned.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(self.ill(attempt))
        }
    }

    /// The same in words.
    #[cold]
    fn ill(&self, attempt: &'static str) -> Error {
        if self.process.is_this() {
            return bug(attempt);
        }
        Error::new(ErrorKind::WrongState, attempt).because(
            "it was made before fork(2), and its threads are the parent's; make the engine and all that belongs to it in the process \
             that uses them",
        )
    }

    /// Whether a panic was caught, so that the object's end must not look at what is inside.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// A panic was caught.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }
}

/// An object of which C has a pointer.
pub(crate) trait Object {
    /// Its type's name in C.
    const NAME: &'static str;
    /// Whether it may be used.
    fn health(&self) -> &Health;
}

/// Runs `body` on an object of C's; every error becomes a number and a text.
///
/// # Safety
/// `object` is NULL or a pointer that [`create`] gave and [`close`] has not taken.
#[inline]
pub(crate) unsafe fn with<T: Object, R: Answer>(
    object: *const T,
    attempt: &'static str,
    body: impl FnOnce(&T) -> Result<R>,
) -> c_int {
    // SAFETY: the caller's promise.
    let object = match unsafe { borrow(object, attempt) } {
        Ok(object) => object,
        Err(error) => return fail(&error),
    };
    match catch_unwind(AssertUnwindSafe(|| body(object))) {
        Ok(Ok(answer)) => answer.number(),
        Ok(Err(error)) => fail(&error),
        Err(_) => {
            object.health().poison();
            fail(&bug(attempt))
        }
    }
}

/// Borrows an object of C's that may be used.
///
/// # Safety
/// As [`with`], for as long as the answer is used.
#[inline]
pub(crate) unsafe fn borrow<'a, T: Object>(object: *const T, attempt: &'static str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    let Some(object) = (unsafe { object.as_ref() }) else {
        return Err(invalid(attempt, format!("the {} is NULL", T::NAME)));
    };
    object.health().check(attempt).map(|()| object)
}

/// Makes an object for C. `out` is NULL when it could not be made.
///
/// # Safety
/// `out` is NULL or may be written.
pub(crate) unsafe fn create<T: Object>(
    out: *mut *mut T,
    attempt: &'static str,
    make: impl FnOnce() -> Result<T>,
) -> c_int {
    if out.is_null() {
        return fail(&invalid(attempt, "the pointer to the result is NULL"));
    }
    // SAFETY: not NULL, and the caller's promise.
    unsafe { out.write(std::ptr::null_mut()) };
    guard(attempt, || {
        let made = Box::into_raw(Box::new(make()?));
        // SAFETY: as above.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Ends an object of C's and forgets its pointer. An object of another process is left alone: its memory and its descriptors are
/// this process's copies, and go with it.
///
/// # Safety
/// `slot` is NULL, or holds NULL or a pointer as in [`with`], and no other call on the object is running or comes later.
pub(crate) unsafe fn close<T: Object>(slot: *mut *mut T) {
    if slot.is_null() {
        return;
    }
    // SAFETY: not NULL, and the caller's promise.
    let object = unsafe { slot.replace(std::ptr::null_mut()) };
    // SAFETY: as above.
    let Some(health) = (unsafe { object.as_ref() }).map(T::health) else { return };
    if health.process.is_this() {
        // SAFETY: it came from a box, which is taken back once: its only pointer was overwritten above.
        let object = unsafe { Box::from_raw(object) };
        // Who closes has nobody to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
    }
}

/// Ends an object of C's if `may` says so, and forgets its pointer then; otherwise all stays as it is. Nothing is there to end in a
/// NULL.
///
/// # Safety
/// As [`close`].
pub(crate) unsafe fn close_if<T: Object>(
    slot: *mut *mut T,
    attempt: &'static str,
    may: impl FnOnce(&T) -> Result<()>,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(&object) = (unsafe { slot.as_ref() }) else { return 0 };
    if object.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    let code = unsafe { with(object, attempt, may) };
    if code == 0 {
        // SAFETY: the caller's promise.
        unsafe { close(slot) };
    }
    code
}

/// Declares an object of C.
macro_rules! object {
    ($name:ident) => {
        impl $crate::border::handle::Object for $name {
            const NAME: &'static str = stringify!($name);
            fn health(&self) -> &$crate::border::handle::Health {
                &self.health
            }
        }
    };
}
pub(crate) use object;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[allow(non_camel_case_types, reason = "as the names of C")]
    struct blkm_thing {
        health: Health,
        value: Arc<u32>,
    }
    object!(blkm_thing);

    fn make(value: &Arc<u32>) -> *mut blkm_thing {
        let mut thing = std::ptr::null_mut();
        let made = || Ok(blkm_thing { health: Health::new(), value: Arc::clone(value) });
        // SAFETY: a variable of ours.
        assert_eq!(unsafe { create(&raw mut thing, "make", made) }, 0);
        thing
    }

    fn ask(thing: *const blkm_thing, body: impl FnOnce(&blkm_thing) -> Result<usize>) -> c_int {
        // SAFETY: the tests pass NULL or a thing that is not closed yet.
        unsafe { with(thing, "ask", body) }
    }

    /// Otherwise a bug in the library would take the host, and its guest, down with it.
    #[test]
    fn a_panic_poisons_its_object_and_no_other() {
        let value = Arc::new(7);
        let (mut sick, mut well) = (make(&value), make(&value));
        assert_eq!(ask(sick, |thing| Ok(*thing.value as usize)), 7);
        assert_eq!(ask(sick, |_| panic!("a bug, for this test")), -libc::ENOTRECOVERABLE);
        assert_eq!(ask(sick, |thing| Ok(*thing.value as usize)), -libc::ENOTRECOVERABLE);
        assert_eq!(ask(well, |thing| Ok(*thing.value as usize)), 7);
        for thing in [&raw mut sick, &raw mut well] {
            // SAFETY: closed once, the second time it holds NULL.
            unsafe { close(thing) };
            // SAFETY: as above.
            unsafe { close(thing) };
        }
        assert_eq!(Arc::strong_count(&value), 1);
    }

    /// Otherwise a bug in one call would take objects away that have nothing to do with it.
    #[test]
    fn a_panic_while_one_object_is_made_of_another_poisons_neither() {
        let value = Arc::new(7);
        let (mut well, mut made) = (make(&value), std::ptr::dangling_mut::<blkm_thing>());
        let make_it = || {
            // SAFETY: made above and not closed yet.
            let thing: &blkm_thing = unsafe { borrow(well, "make")? };
            assert_ne!(*thing.value, 7, "a bug, for this test");
            Err(invalid("make", "it is a test"))
        };
        // SAFETY: a variable of ours.
        assert_eq!(unsafe { create(&raw mut made, "make", make_it) }, -libc::ENOTRECOVERABLE);
        assert_eq!(
            guard("look", || -> Result<()> { panic!("a bug, for this test") }),
            -libc::ENOTRECOVERABLE
        );
        assert!(made.is_null());
        assert_eq!(ask(well, |thing| Ok(*thing.value as usize)), 7);
        // SAFETY: closed once.
        unsafe { close(&raw mut well) };
    }

    /// Otherwise a host would lose an object that it still needs, or keep one that is gone.
    #[test]
    fn what_may_not_be_closed_yet_stays_and_what_may_is_gone() {
        let value = Arc::new(7);
        let mut thing = make(&value);
        let no = |_: &blkm_thing| Err(Error::new(ErrorKind::Busy, "close"));
        // SAFETY: a variable of ours.
        assert_eq!(unsafe { close_if(&raw mut thing, "close", no) }, -libc::EBUSY);
        assert_eq!(ask(thing, |thing| Ok(*thing.value as usize)), 7);
        for _ in 0..2 {
            // SAFETY: a variable of ours; the second time it holds NULL.
            assert_eq!(unsafe { close_if(&raw mut thing, "close", |_: &blkm_thing| Ok(())) }, 0);
            assert!(thing.is_null() && Arc::strong_count(&value) == 1);
        }
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { close_if(std::ptr::null_mut::<*mut blkm_thing>(), "close", no) }, 0);
    }

    #[test]
    fn null_is_an_error_for_a_call_and_nothing_to_close() {
        assert_eq!(ask(std::ptr::null(), |_| Ok(0)), -libc::EINVAL);
        // SAFETY: NULL is allowed.
        unsafe { close::<blkm_thing>(std::ptr::null_mut()) };
        let make = || Ok(blkm_thing { health: Health::new(), value: Arc::new(0) });
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { create(std::ptr::null_mut(), "make", make) }, -libc::EINVAL);
    }

    #[test]
    fn what_could_not_be_made_is_null() {
        let mut thing = std::ptr::dangling_mut::<blkm_thing>();
        // SAFETY: a variable of ours.
        let code = unsafe { create(&raw mut thing, "make", || Err(invalid("make", "it is a test"))) };
        assert_eq!((code, thing.is_null()), (-libc::EINVAL, true));
        // SAFETY: a variable of ours.
        let code = unsafe { create(&raw mut thing, "make", || panic!("a bug, for this test")) };
        assert_eq!((code, thing.is_null()), (-libc::ENOTRECOVERABLE, true));
    }

    /// A child that waited for a thread of its parent's would hang.
    #[test]
    fn a_child_is_refused_and_closes_nothing() {
        let value = Arc::new(7);
        let mut thing = make(&value);
        // SAFETY: the child makes no use of locks and ends at once.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let refused = ask(thing, |_| Ok(0)) == -libc::EPERM;
            // SAFETY: closed once.
            unsafe { close(&raw mut thing) };
            let kept = Arc::strong_count(&value) == 2 && thing.is_null();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(!(refused && kept))) };
        }
        let mut status = 0;
        // SAFETY: waits for the child that was made above.
        let _ = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        // SAFETY: closed once.
        unsafe { close(&raw mut thing) };
    }
}
