/*
 * blkmirror: mirrors a disk to another one while its guest writes to it, and moves the guest over within a pause that you choose.
 *
 * This file is made from ffi/ and checked in; do not edit it. libblkmirror(3) is the manual, c-examples/ has complete programs.
 *
 * Objects
 *   blkm_engine   worker threads that carry jobs; one for a process
 *   blkm_device   an opened block device or image file
 *   blkm_drive    a disk as its guest sees it
 *   blkm_queue    guest I/O through the library, one for each thread
 *   blkm_tracker  guest I/O that you do yourself: tell us of each request
 *   blkm_bitmap   which parts of a drive were written
 *   blkm_job      a mirror of a drive, or a copy of a device
 * Each is an opaque pointer that a function gives and another takes back: that one takes a pointer to your pointer, sets it to NULL, and
 * accepts NULL. Objects keep what they need: close them in any order.
 *
 * Pointers
 *   A pointer is NULL only where its function says that it may be. An object may be used until it is closed. Strings end with a 0 and are
 *   UTF-8, paths are any bytes. What a function does not say that it keeps, it does not keep.
 *
 * The gate
 *   A drive has a gate that each request of its guest goes through. It is open but for moments: it is closed while a switch-over is
 *   made or pending, and now and then when copy mode auto brakes the guest. Requests that come then are held, and not refused: those
 *   of queues wait, and blkm_tracker_begin says BLKM_HELD. They go on when it opens, on the disk that the drive is on then.
 *
 * Errors
 *   int: not negative is success, negative is -errno, and blkm_error_msg() has the text for the calling thread. Requests, events and
 *   outcomes carry their own. -EINVAL: an argument makes no sense. -EPERM: the object is in a state, or on a thread, that forbids the
 *   call; or it was made before fork(2). -ENOTRECOVERABLE: a bug of the library was caught; the object is of no use any more and can be
 *   closed, all others, and guest I/O through other queues, go on.
 *
 * Structures
 *   Those with struct_size may grow at their end. Options: set them with their _init function, or zero them and set struct_size; zero is
 *   the default of every field. -E2BIG: you use a field that the library does not know yet. Facts: set struct_size before the call; they
 *   are filled in up to that. Times are nanoseconds (_ns), sizes bytes (_bytes).
 *
 * Threads
 *   engine, device, drive, tracker, bitmap, job    every function, from any thread
 *   queue                                          one thread, the first that uses it; destroy: any thread
 *   close and destroy                              while no other call uses the object
 *   handlers (log, thread start)                   called on any thread; they must not call the library
 * The library installs no signal handlers and blocks all signals on its threads. After fork(2) a child cannot use its parent's
 * objects; it may close them, which only forgets them, and make its own. So daemonise before you open devices and make an engine. A
 * child that does not exec shares the parent's open file descriptions: a disk that was open at the fork may stay claimed (O_EXCL,
 * the lock of a file) after the parent has closed it or ended, until the child ends or execs.
 */
#ifndef BLKMIRROR_H
#define BLKMIRROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The version of this header as one number: major * 65536 + minor * 256 + patch. */
#define BLKM_VERSION_NUMBER ((BLKM_VERSION_MAJOR << 16) | (BLKM_VERSION_MINOR << 8) | BLKM_VERSION_PATCH)

/* Whether this header is of version major.minor or newer. */
#define BLKM_CHECK_VERSION(major, minor) \
    (BLKM_VERSION_MAJOR > (major) || (BLKM_VERSION_MAJOR == (major) && BLKM_VERSION_MINOR >= (minor)))

#ifdef __cplusplus
extern "C" {
#endif

/* Objects ----------------------------------------------------------------------------------------------------------------- */
