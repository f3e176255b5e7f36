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

/**
 * A dirty bitmap of a drive. While it is enabled every guest write marks the chunks that it touches, after it has ended, whatever
 * its result, and before the host hears of it. It stays with the drive over a pivot, and goes on recording through jobs and after
 * them, also one that a job works with: after the job it holds what the job did not copy and what changed since the moment that
 * the target is a copy of. Every function that takes one may be called from any thread.
 *
 * It is in memory only, and does not keep its drive: when the drive is gone (its handle closed, and no queue, tracker or job left)
 * it can be read and changed, but records nothing any more. When the process ends it is gone, however that ends; bitmaps that are
 * kept on a disk are to come with a later version. Until then a host that ends in good order may keep one itself: with no guest
 * request under way and the bitmap disabled, write down its granularity and its areas (`blkm_bitmap_next_dirty_area`), and that
 * this list is complete. The next process takes that note away, durably, before the guest writes anything, makes the bitmap anew
 * with the same granularity, and marks the areas (`blkm_bitmap_set_dirty`). Where there is no such list, as after a crash, only a
 * full copy is right.
 */
typedef struct blkm_bitmap blkm_bitmap;

/**
 * An opened block device or regular file (a raw image). Every function that takes one may be called from any thread.
 *
 * A drive or a job that is given a device keeps it open for itself; the caller closes his handle whenever he likes.
 */
typedef struct blkm_device blkm_device;

/**
 * A disk as a guest sees it. Queues, trackers, bitmaps and jobs hang on it; a completed mirror moves it to the target. Every
 * function that takes one may be called from any thread.
 */
typedef struct blkm_drive blkm_drive;

/**
 * Worker threads that carry jobs: one will do for all disks of a process. Every function that takes one may be called from any
 * thread.
 */
typedef struct blkm_engine blkm_engine;

/** A job that mirrors a drive, or copies a device. Every function that takes one may be called from any thread. */
typedef struct blkm_job blkm_job;

/**
 * A queue of guest requests to a drive. When its ring broke, or a call has answered -ENOTRECOVERABLE, nothing is sent through it
 * any more: destroy it, and see to requests that had no completion as after a crash of the disk, for their memory may be the
 * kernel's.
 *
 * It belongs to the thread that uses it first: one queue for each of the host's threads. It may
 * be created, and destroyed once nobody uses it any more, on any.
 */
typedef struct blkm_queue blkm_queue;

/**
 * Tells a drive of requests that the host carries out itself. Every function that takes one may be called from any thread, and one
 * tracker will do for all; one for each thread costs nothing either.
 */
typedef struct blkm_tracker blkm_tracker;

/* Version, features, errors ----------------------------------------------------------------------------------------------- */

/** Major version of this header. Below 1, a new minor version may break programs. */
#define BLKM_VERSION_MAJOR 0

/** Minor version of this header. */
#define BLKM_VERSION_MINOR 1

/** Patch version of this header. */
#define BLKM_VERSION_PATCH 0

/**
 * The version of the library that is loaded, as `BLKM_VERSION_NUMBER` is made: major * 65536 + minor * 256 + patch.
 *
 * Threads: any. Since 0.1.
 */
uint32_t blkm_version(void);

/**
 * The version of the library that is loaded, such as "0.1.0". Static; never NULL.
 *
 * Threads: any. Since 0.1.
 */
const char *blkm_version_string(void);

/**
 * Whether the library that is loaded has a feature, by name: "auto-escalation", "bitmaps", "copy", "discard", "latency-budget",
 * "live-mirror", "registered-memory", "trackers", "write-blocking", "write-zeroes". Later versions know more names, such as
 * "persistent-bitmaps". What the kernel can do, `blkm_probe` tells.
 *
 * Returns 1 if so, 0 if not or for NULL. Threads: any. Since 0.1.
 */
int blkm_has_feature(const char *name);

/**
 * Whether the kernel lets this process use io_uring as the library needs it: sets up a small ring as an engine would, and takes it
 * down again.
 *
 * Returns 0, or -errno: `-ENOSYS` or `-EPERM` where io_uring is missing, switched off (`sysctl kernel.io_uring_disabled`) or
 * forbidden by a filter, `-EOPNOTSUPP` below Linux 5.15, `-ENOMEM`. Threads: any. Since 0.1.
 */
int blkm_probe(void);

/**
 * What went wrong in the last call that failed on the calling thread, in one line that says what was attempted, where, and why:
 * "cannot open the target /dev/sdb: it is mounted at /srv". "" if none has failed. UTF-8; control characters are escaped.
 *
 * The text belongs to the library and stays until the next call that fails on this thread, or its end. Calls that succeed leave it
 * alone. Completions, events and outcomes of jobs carry a text of their own. Never NULL. Threads: any. Since 0.1.
 */
const char *blkm_error_msg(void);

/* Log --------------------------------------------------------------------------------------------------------------------- */

/** How much is told; each level brings those above. */
typedef uint32_t blkm_log_level;

/** Nothing. */
#define BLKM_LOG_OFF 0

/** Something failed. */
#define BLKM_LOG_ERROR 1

/** Something works less well than it could. */
#define BLKM_LOG_WARN 2

/** What a job does, in some lines. */
#define BLKM_LOG_INFO 3

/** Every change of state. */
#define BLKM_LOG_DEBUG 4

/**
 * Takes a line of the log: `target` says which part of the library speaks, such as "blkmirror_core::engine"; `msg` is one line of
 * UTF-8. Both are good for the length of the call. It is called on any thread, the library's own too, also while guest requests
 * are held. It must return soon, must not call the library, and must not wait for a thread that may be in the library or wait for
 * guest I/O.
 */
typedef void (*blkm_log_fn)(void *opaque, blkm_log_level level, const char *target, const char *msg);

/**
 * Sets who takes the log of the whole process, up to level `max`; NULL: nobody, as at the beginning. When this returns, the
 * handler that was there before is not called any more, and no call of it is under way.
 *
 * Returns 0, or -errno: `-EINVAL` for an unknown level, `-EBUSY` when a call of the old handler does not return, or the program is
 * a Rust program that has a subscriber of its own. Threads: any. Since 0.1.
 */
int blkm_log_set_handler(blkm_log_level max, blkm_log_fn handler, void *opaque);

/* Devices ----------------------------------------------------------------------------------------------------------------- */

/** What a device is opened for. */
typedef uint32_t blkm_role;

/** A guest's disk, to make a drive of: read and written, and held exclusively. */
#define BLKM_ROLE_DISK 1

/** The target of a job: read and written, and held exclusively. */
#define BLKM_ROLE_TARGET 2

/** The source of a copy, or a disk that is only read: opened read-only, without any lock. */
#define BLKM_ROLE_SOURCE 3

/**
 * Take no exclusive hold: no `O_EXCL` on a block device, no lock on a file. For a host that holds it exclusively itself and hands
 * its descriptor over, or whose management sees to it that one process at a time writes. One that is mounted is refused all the
 * same.
 */
#define BLKM_DEVICE_F_ALLOW_SHARED 1

/** How a device is opened. All zero (or NULL) is the default. */
typedef struct blkm_device_opts {
    /** sizeof(blkm_device_opts). */
    size_t struct_size;
    /** `BLKM_DEVICE_F_*`. */
    uint64_t flags;
    /**
     * What error texts call a device that is opened by a descriptor; NULL: "fd N". Copied. UTF-8. One opened by its path is called
     * that.
     */
    const char *name;
    /** Zero. */
    uint64_t reserved[4];
} blkm_device_opts;

/** What a device is made of. */
typedef uint32_t blkm_device_kind;

/** A block device. */
#define BLKM_DEVICE_BLOCK 1

/** A regular file. */
#define BLKM_DEVICE_FILE 2

/** Reads and writes bypass the page cache (`O_DIRECT`). */
#define BLKM_DEVICE_IS_DIRECT 1

/** All of it is known to read as zeroes now: a file that is one hole. */
#define BLKM_DEVICE_IS_ZERO 2

/** A write that asks to be durable (FUA) needs no flush after it. */
#define BLKM_DEVICE_HAS_FUA 4

/** Memory that is mapped with `blkm_mem_region_map` is pinned: none of it may be given back (QEMU: `ram_block_discard_disable`). */
#define BLKM_DEVICE_MAY_PIN 8

/**
 * It is kept from others: a block device is claimed, a file is locked (`blkm_device_open`). Not so for a source, with
 * `BLKM_DEVICE_F_ALLOW_SHARED`, and on a file system without locks.
 */
#define BLKM_DEVICE_IS_LOCKED 16

/**
 * Nobody says what this file system's direct I/O must be aligned to (`statx(2)`, since Linux 6.1), so 4096 is taken, which all
 * that we know are content with. Show the guest no smaller blocks.
 */
#define BLKM_DEVICE_IS_ALIGN_ASSUMED 32

/** What a device demands; sizes in bytes. */
typedef struct blkm_device_info {
    /** Set by the caller: sizeof(blkm_device_info). */
    size_t struct_size;
    /** `BLKM_DEVICE_IS_*`, `BLKM_DEVICE_HAS_*`, `BLKM_DEVICE_MAY_*`. */
    uint64_t flags;
    /** Its size when it was last looked at. */
    uint64_t size_bytes;
    /** What offset and length of a request must be multiples of. */
    uint64_t request_align_bytes;
    /** What the address of a request's memory must be a multiple of. */
    uint64_t memory_align_bytes;
    /** Its logical block. */
    uint64_t logical_block_bytes;
    /** What it writes without reading first. */
    uint64_t physical_block_bytes;
    /** The largest request that the kernel does not split, from memory in huge pages. */
    uint64_t max_request_bytes;
    /** The same from memory in scattered pages. */
    uint64_t max_request_scattered_bytes;
    /**
     * The most that one discard of the device covers; 0: it has none, or it is not known. Larger requests are split by the
     * library.
     */
    uint64_t max_discard_bytes;
    /** The same for the device's command for zeroes; 0: zeroes are written, or it is not known. */
    uint64_t max_write_zeroes_bytes;
    /** Block device or file. */
    blkm_device_kind kind;
    /** What it was opened for. */
    blkm_role role;
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_device_info;

/** What the bytes of an extent are. */
typedef uint32_t blkm_extent_kind;

/** Data, or what must be taken for data. */
#define BLKM_EXTENT_DATA 1

/** A hole: reads as zeroes. */
#define BLKM_EXTENT_ZERO 2

/**
 * Sets options to the defaults for the size that the caller's header has: `blkm_device_opts_init(&opts, sizeof(opts))`.
 *
 * Since 0.1.
 */
void blkm_device_opts_init(struct blkm_device_opts *opts, size_t struct_size);

/**
 * Opens a block device or an image file by its path, past the page cache where that is possible.
 *
 * As a disk or a target it is kept from others: `O_EXCL` on a block device, which keeps away mounts and whoever claims it the same
 * way; a write lock over all bytes (`F_OFD_SETLK`) on a file, which is advisory. Both hang on an open file description of the
 * library's own, so a second opening is refused in this process, too, and they last until the last user of the device has closed
 * it. A source takes no lock.
 *
 * They cannot be handed over to another process. When a guest moves to another process on this host, as with live migration to a
 * new version of the hypervisor, the old one stops the guest, takes all completions, and closes queues, jobs, drive and device;
 * then the new one opens it. Where the new one must have it open before, both open it with `BLKM_DEVICE_F_ALLOW_SHARED`. Whether a
 * device is kept from others is chosen when it is opened, and for as long as anybody uses it: a hold cannot be taken later, nor
 * given up before.
 *
 * What is locked or claimed is tried again for 200 ms before it is refused: the kernel takes the rings of a process that was
 * killed, or that ended with requests under way, apart after the process is gone, and keeps its files locked until then (measured:
 * 50 ms as a rule, over a second while many writes were under way; so a host that restarts tries again for some seconds).
 *
 * `opts` may be NULL. On success `*out` is the device, to be closed with `blkm_device_close`; else it is NULL.
 *
 * Returns 0, or -errno with a text that names the file and the cause: `-ENOENT`, `-EACCES`, `-EBUSY` (mounted, swap, locked,
 * held), `-ENOTBLK` (a directory, a character device), `-EINVAL` (its size is no multiple of 512, an unknown role or flag). It
 * blocks as long as the file system does. Threads: any. Since 0.1.
 */
int blkm_device_open(const char *path, blkm_role role, const struct blkm_device_opts *opts, struct blkm_device **out);

/**
 * The same for a descriptor of the caller's, who keeps his and closes it whenever he likes. The file is opened anew through
 * /proc/self/fd, so a lock or an `O_EXCL` of the caller's own counts as somebody else's: pass `BLKM_DEVICE_F_ALLOW_SHARED` then.
 * Where opening anew is forbidden, the descriptor is duplicated: it should have `O_DIRECT` (`BLKM_DEVICE_IS_DIRECT` tells), must
 * be open for writing unless the role is that of a source, and a block device needs `BLKM_DEVICE_F_ALLOW_SHARED`, else `-EACCES`.
 *
 * Returns as `blkm_device_open`, and `-EBADF`. Threads: any. Since 0.1.
 */
int blkm_device_open_fd(int fd, blkm_role role, const struct blkm_device_opts *opts, struct blkm_device **out);

/**
 * Creates a regular file of `size_bytes`, one hole, with mode 0600, and opens it as a target. Its name is durable when this
 * returns: its directory is flushed, or, where that may not be read, its file system (`syncfs(2)`). It blocks until then. Where it
 * fails there is no file.
 *
 * A size above the process's `RLIMIT_FSIZE` raises SIGXFSZ, which ends a process that neither handles nor ignores it; otherwise it
 * is `-EFBIG`. Writes past that limit in any file do the same.
 *
 * Returns 0, or -errno: `-EEXIST`, also for a symbolic link to nothing; `-EINVAL` if the size is no multiple of 512; what the file
 * system says. Threads: any. Since 0.1.
 */
int blkm_device_create(const char *path, uint64_t size_bytes, struct blkm_device **out);

/**
 * Closes the caller's handle and sets `*device` to NULL. NULL, and a pointer to NULL, are allowed. Drives and jobs that use the
 * device keep it open. Threads: any, while no other call uses this handle. Since 0.1.
 */
void blkm_device_close(struct blkm_device **device);

/**
 * Fills in what is known of a device, up to `info->struct_size`, which the caller has set.
 *
 * Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
 */
int blkm_device_get_info(struct blkm_device *device, struct blkm_device_info *info);

/**
 * Looks at the size again, after a file or a volume has grown. `size_bytes` may be NULL. Drives that exist keep their size, and so
 * do their jobs (`blkm_drive_create`).
 *
 * Returns 0, or -errno. Threads: any. Since 0.1.
 */
int blkm_device_refresh_size(struct blkm_device *device, uint64_t *size_bytes);

/**
 * What lies at `offset_bytes` (`BLKM_EXTENT_*`), and for how many bytes from there it is so. Asked of the file system
 * (`SEEK_DATA`); a block device is all data. `kind` and `len_bytes` may be NULL. At the end of the device the length is 0.
 *
 * Returns 0, or -errno. It blocks as long as the file system does. Threads: any. Since 0.1.
 */
int blkm_device_block_status(struct blkm_device *device, uint64_t offset_bytes, blkm_extent_kind *kind, uint64_t *len_bytes);

/**
 * Makes durable what was written to the device, through whatever descriptor (`fdatasync(2)`). It blocks until then.
 *
 * Returns 0, or -errno. Threads: any. Since 0.1.
 */
int blkm_device_flush(struct blkm_device *device);

/**
 * Reserves space for a range of a file (`fallocate(2)`), so that writes there cannot run out of it. Nothing to do on a block
 * device. Offset and length are multiples of its logical block. It blocks until then.
 *
 * Returns 0, or -errno: `-ENOSPC`, `-EOPNOTSUPP`, `-EACCES` for a source. Threads: any. Since 0.1.
 */
int blkm_device_preallocate(struct blkm_device *device, uint64_t offset_bytes, uint64_t len_bytes);

/**
 * Makes a range read as zeroes without writing any, and gives its space back unless `keep_allocated`. For a target before a job;
 * not for a disk in use, whose drive would not hear of it. Offset and length are multiples of its logical block. It blocks until
 * then.
 *
 * Returns 0, or -errno: `-EOPNOTSUPP` where only writing zeroes would help, `-EACCES` for a source. Threads: any. Since 0.1.
 */
int blkm_device_write_zeroes(struct blkm_device *device, uint64_t offset_bytes, uint64_t len_bytes, bool keep_allocated);

/**
 * Tells a device that a range is not needed, before a job; see `blkm_device_write_zeroes`. It blocks until then.
 *
 * Returns 0, or -errno: `-EOPNOTSUPP`, `-EACCES` for a source. Threads: any. Since 0.1.
 */
int blkm_device_discard(struct blkm_device *device, uint64_t offset_bytes, uint64_t len_bytes);

/**
 * Whether two devices share bytes: the same file or device under two names, a partition and its disk, a loop device and its file.
 *
 * Returns 1 if so, 0 if not, or -errno. Threads: any. Since 0.1.
 */
int blkm_device_overlaps(struct blkm_device *device, struct blkm_device *other);

/* Drives ------------------------------------------------------------------------------------------------------------------ */

/** How a drive is made. All zero (or NULL) is the default. */
typedef struct blkm_drive_opts {
    /** sizeof(blkm_drive_opts). */
    size_t struct_size;
    /** Zero. */
    uint64_t flags;
    /**
     * What offsets and lengths of queued requests must be multiples of: the logical block that the guest is shown. A power of two,
     * at least the device's blocks, and the size is a multiple of it. 0: the device's. Larger blocks let the drive move to a
     * device that has such blocks; memory must be aligned to them then, too.
     */
    uint64_t align_bytes;
    /** Zero. */
    uint64_t reserved[4];
} blkm_drive_opts;

/** The drive may not be written: its device was opened as a source. A pivot does not change it. */
#define BLKM_DRIVE_IS_READ_ONLY 1

/** A job runs on the drive now: from its start until it is concluded. */
#define BLKM_DRIVE_HAS_JOB 2

/** What a drive is. */
typedef struct blkm_drive_info {
    /** Set by the caller: sizeof(blkm_drive_info). */
    size_t struct_size;
    /** `BLKM_DRIVE_IS_*`, `BLKM_DRIVE_HAS_*`. */
    uint64_t flags;
    /** Bytes of the drive. */
    uint64_t size_bytes;
    /** What offsets and lengths of queued requests must be multiples of. A pivot does not change it. */
    uint64_t align_bytes;
    /**
     * What every address of a queued request's memory must be a multiple of, at least 512. Ask once, before the first job: a pivot
     * may lower it, and queues in use keep the old one.
     */
    uint64_t memory_align_bytes;
    /** How often the drive was moved to another device: 0 until the first pivot. */
    uint64_t device_number;
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_drive_info;

/** How long requests took, in nanoseconds, from a histogram whose buckets are 3 % wide. */
typedef struct blkm_latencies {
    /** Set by the caller: sizeof(blkm_latencies). */
    size_t struct_size;
    /** How many requests were counted. Those that failed are not; of trackers one in eight or fewer is. */
    uint64_t count;
    /** Half of them took no longer. */
    uint64_t p50_ns;
    /** 90 of 100 took no longer. */
    uint64_t p90_ns;
    /** 99 of 100. */
    uint64_t p99_ns;
    /** 999 of 1000. */
    uint64_t p99_9_ns;
    /** 9999 of 10,000; with fewer requests than that it is the longest. */
    uint64_t p99_99_ns;
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_latencies;

/**
 * Sets options to the defaults for the size that the caller's header has.
 *
 * Since 0.1.
 */
void blkm_drive_opts_init(struct blkm_drive_opts *opts, size_t struct_size);

/**
 * Makes a drive on a device that was opened as a disk, or as a source for one that is only read. The drive keeps the device open
 * for itself. `opts` may be NULL. On success `*out` is the drive, to be closed with `blkm_drive_close`; else it is NULL.
 *
 * Queues do not bounce: what is not aligned is refused. A host that shows its guest blocks of 512 bytes and may move it to a disk
 * with larger ones sets `align_bytes` to those and sees to the rest itself; it cannot be changed later. Nor can the size, which a
 * job goes by, too: for a disk that has grown, close the drive and all that hangs on it, look at the size with
 * `blkm_device_refresh_size`, and make them anew. After a pivot the drive's device is one that was opened as a target, of which no
 * drive is made: close all, that device as well, and open the disk anew by its path as `BLKM_ROLE_DISK`.
 *
 * Returns 0, or -errno: `-EINVAL` if the blocks asked for are not possible, or for a device opened as a target; `-EBUSY` while
 * another drive or a job has the device. Threads: any. Since 0.1.
 */
int blkm_drive_create(struct blkm_device *device, const struct blkm_drive_opts *opts, struct blkm_drive **out);

/**
 * Closes the caller's handle and sets `*drive` to NULL. NULL, and a pointer to NULL, are allowed. Queues, trackers, bitmaps and
 * jobs of the drive live on; its device is closed with the last of them. Threads: any, while no other call uses this handle. Since
 * 0.1.
 */
void blkm_drive_close(struct blkm_drive **drive);

/**
 * Fills in what a drive is, up to `info->struct_size`, which the caller has set.
 *
 * Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
 */
int blkm_drive_get_info(struct blkm_drive *drive, struct blkm_drive_info *info);

/**
 * A new descriptor of the device that the drive stands on now, for a host that does its own I/O (see `blkm_tracker_begin`). Fetch
 * it while a token of yours is under way, for the drive does not move then, and the token's `device_number` says which device it
 * is (c-examples/tracker.c); by a number that was read before, it may have moved in between.
 *
 * It is the caller's to close, has `O_CLOEXEC` set, `O_DIRECT` where the device is `BLKM_DEVICE_IS_DIRECT`, and shares its file
 * position with the library: use `pread(2)` and its kin. It is a duplicate of the descriptor that the device is claimed by: a
 * block device that the drive has left stays claimed until you have closed every such descriptor of it, too.
 *
 * Returns the descriptor, or -errno. Threads: any. Since 0.1.
 */
int blkm_drive_dup_fd(struct blkm_drive *drive);

/**
 * What requests of the drive's queues and trackers took, since it was made: while no job ran, and while one did. Either may be
 * NULL.
 *
 * Returns 0, or -errno. Threads: any. Since 0.1.
 */
int blkm_drive_get_latencies(struct blkm_drive *drive, struct blkm_latencies *without_job, struct blkm_latencies *with_job);

/* Memory for requests ----------------------------------------------------------------------------------------------------- */

/**
 * Memory for requests of a drive: at least `len_bytes`, aligned as the drive's queues want it, in whole blocks, not cleared. It is
 * given back with `blkm_vfree`, and may be used with every drive whose alignment is not larger.
 *
 * Returns the memory, or NULL with a text (`blkm_error_msg`). Threads: any. Since 0.1.
 */
void *blkm_blockalign(struct blkm_drive *drive, size_t len_bytes);

/** Gives memory of `blkm_blockalign` back. NULL is allowed. Threads: any. Since 0.1. */
void blkm_vfree(void *memory);

/**
 * Registers memory of the host's with a drive, such as its guest's RAM, once for all queues: requests whose data lies in one piece
 * inside it spare the kernel the look-up of its pages, which for small requests is a good part of their cost. Map it before the
 * first request. `flags` is zero.
 *
 * From then on none of its pages may be given back or replaced (`madvise(2)`, balloons, free page reporting, virtio-mem,
 * userfaultfd): the kernel would go on with the old ones, and the guest's data would be wrong. The kernel takes 1 GiB at a time; a
 * request across such a border, counted from the region's start, or from one region into the next, is sent as if it were not
 * mapped.
 *
 * The memory stays mapped as it is, readable and writable, until `blkm_mem_region_unmap` of it has succeeded, or the drive and all
 * its queues are closed.
 *
 * What it costs: each queue takes it up when it is used next, on its own thread, which does nothing else meanwhile. The kernel
 * pins every page then, and fetches those that are not there: 1 GiB takes in the order of 40 ms in small pages, of 5 ms in huge
 * ones, and seconds where the pages are not there yet (measured on a virtual machine). A queue for rare requests does without
 * (`BLKM_QUEUE_F_NO_REGIONS`). However many regions there are, finding its own costs a request 10 to 20 ns.
 *
 * The kernel pins the pages once for each queue, and counts them each time against `RLIMIT_MEMLOCK`, unless the process has
 * CAP_IPC_LOCK when the ring is made (of a worker: with the engine; of a queue: when it is used first). The count is the user's,
 * not the process's: the limit of each process must have room for the sum over all processes of that user, of the mapped bytes of
 * each drive times its queues, and of the copy memory of all workers (`window_bytes` and 4 MiB) and queues (`staging_bytes`). What
 * the kernel refuses is used unregistered, which `blkm_queue_get_info` tells of regions; what a process then gets depends on who
 * came first.
 *
 * Returns 0, or -errno: `-EINVAL` for memory that is empty or wraps, or flags; `-EEXIST` when it overlaps another region;
 * `-EMFILE` with 256 regions, or when all of them together need more than 4095 pieces of 1 GiB (4 TiB). Threads: any. Since 0.1.
 */
int blkm_mem_region_map(struct blkm_drive *drive, void *addr, size_t len_bytes, uint64_t flags);

/**
 * Takes a region back, given as it was mapped. From when this has succeeded the host may unmap the memory, or map other memory at
 * the same address. Its pages stay pinned until every queue of the drive that took it up has been used once more; their completion
 * descriptors are made readable for that.
 *
 * Returns 0, or -errno, and nothing has changed: `-ENOENT` for what is no region; `-EBUSY` while a request that came after it was
 * mapped has memory in it, or in more than seven regions, and is under way. The memory of any request stays as it is until its
 * completion, mapped with a drive or not. Threads: any. Since 0.1.
 */
int blkm_mem_region_unmap(struct blkm_drive *drive, void *addr, size_t len_bytes);

/* Queues: guest I/O through the library ----------------------------------------------------------------------------------- */

/** The queue has no completion descriptor; the host only processes it. An optimisation for hosts that poll. */
#define BLKM_QUEUE_F_NO_EVENTFD 1

/**
 * The data of writes does not change before their completion, so write-blocking needs no copy of it. The price: while a target
 * hangs such a write does not complete, even when its job has failed.
 */
#define BLKM_QUEUE_F_STABLE_BUFFERS 2

/**
 * The queue takes up no memory regions (`blkm_mem_region_map`), which pins them once less. For rare requests, as of a control
 * path: those work all the same, and keep a region from being unmapped as those of any queue do.
 */
#define BLKM_QUEUE_F_NO_REGIONS 4

/** How a queue is made. All zero (or NULL) is the default. */
typedef struct blkm_queue_opts {
    /** sizeof(blkm_queue_opts). */
    size_t struct_size;
    /** `BLKM_QUEUE_F_*`. */
    uint64_t flags;
    /**
     * Memory for the stable copies that write-blocking needs, at most 1 GiB; 0: 4 MiB. A write that finds no room in it goes to
     * the drive alone and is copied later.
     */
    uint64_t staging_bytes;
    /**
     * Requests that are accepted and whose completions were not taken yet, at most: 1 to 1024; 0: 256. One more completes with
     * -EAGAIN, so count yours and hold the rest. Size it as what your guest can have under way on this queue, the sum of the sizes
     * of the virtqueues that one thread serves, and a few more for requests of the host's own; a deeper one costs about 1.5 KiB a
     * request from its first use on.
     */
    uint32_t depth;
    /** Zero. */
    uint32_t reserved0;
    /** Zero. */
    uint64_t reserved[4];
} blkm_queue_opts;

/**
 * The queue's ring broke (`io_uring_enter` fails for good), and the kernel may still have the memory of this request, to read from
 * it or to write to it, also when the queue was destroyed. Do not free it, and do not use it for anything else, for as long as the
 * process lives. That holds for a guest's memory, too: a guest that is told that its request has failed will use it again, so
 * rather stop the guest. Only memory inside a region is known to be free again: once `blkm_mem_region_unmap` gives the region
 * back, which may be when the queue was destroyed.
 */
#define BLKM_COMPLETION_F_MEMORY_IN_USE 1

/** The end of a request. */
typedef struct blkm_completion {
    /** What the request was sent with. */
    void *user_data;
    /** Why it failed, in words; NULL if it did not. Good until the queue is processed again or destroyed. */
    const char *error_msg;
    /** 0, or -errno. */
    int32_t ret;
    /** `BLKM_COMPLETION_F_*`. */
    uint32_t flags;
    /** Zero so far. */
    uint64_t reserved;
} blkm_completion;

/** What a queue has. */
typedef struct blkm_queue_info {
    /** Set by the caller: sizeof(blkm_queue_info). */
    size_t struct_size;
    /** Requests that were accepted and have not completed; those that wait for the drive's gate, too. */
    uint64_t in_flight;
    /** Completions that can be taken. */
    uint64_t ready;
    /** Bytes of memory regions that the kernel has taken for this queue. */
    uint64_t registered_bytes;
    /** Bytes that it has refused; requests there are sent without. */
    uint64_t unregistered_bytes;
    /** Requests to a device so far that went through registered memory. */
    uint64_t registered_requests;
    /** Why it refused last: -errno, such as -ENOMEM for `RLIMIT_MEMLOCK`; 0: it did not. */
    int32_t register_ret;
    /** Requests accepted at most. */
    uint32_t depth;
    /**
     * Of those in flight, requests that wait because the drive's gate is closed: a job is switching over, or waits for
     * `blkm_job_finalize`. They go on by themselves when it opens.
     */
    uint64_t held;
    /** Zero so far. */
    uint64_t reserved[3];
} blkm_queue_info;

/**
 * Sets options to the defaults for the size that the caller's header has.
 *
 * Since 0.1.
 */
void blkm_queue_opts_init(struct blkm_queue_opts *opts, size_t struct_size);

/**
 * Makes a queue of a drive, for one of the host's threads: the first that sends or processes with it. Its io_uring is made then,
 * on that thread, so queues may be made in one place and handed out. `opts` may be NULL. On success `*out` is the queue, to be
 * ended with `blkm_queue_close` or `blkm_queue_destroy`; else it is NULL.
 *
 * Returns 0, or -errno: `-EINVAL`, `-EMFILE`. Threads: any. Since 0.1.
 */
int blkm_queue_create(struct blkm_drive *drive, const struct blkm_queue_opts *opts, struct blkm_queue **out);

/**
 * Ends a queue, whatever is under way, and sets `*queue` to NULL. NULL, and a pointer to NULL, are allowed.
 *
 * A host that is in no hurry uses `blkm_queue_close`, which loses nothing. Here requests under way get no completion any more, and
 * their memory may still be the kernel's: do not free or use it, as with `BLKM_COMPLETION_F_MEMORY_IN_USE`. On the queue's own
 * thread it waits for them, at most about 600 ms; a write that a hanging disk of the guest's may still carry out later makes a job
 * that follows the drive fail, and keeps every later job of the drive from switching over. A write to the target of a job that has
 * ended does neither, so a queue that has nothing else left is destroyed without a loss.
 *
 * Threads: best the queue's own; any, while no other call uses the queue. Since 0.1.
 */
void blkm_queue_destroy(struct blkm_queue **queue);

/**
 * Ends a queue if nothing is lost by that, and sets `*queue` to NULL then. NULL, and a pointer to NULL, are nothing to end.
 *
 * It sends what was submitted and sleeps until nothing is under way, no longer than `timeout_ns` (0: not at all; negative: for
 * ever). Requests that wait for the drive's gate are under way; so are writes to the target of a job that has ended, which nobody
 * else waits for: one that hangs keeps the queue from closing, so rather wait some seconds and destroy it. Completions that can be
 * taken keep the queue from ending, before and after that: take them with `blkm_queue_process` and close again.
 *
 * Returns 0, or -errno, and the queue is as it was: `-EBUSY` while something is under way or a completion was not taken; `-EPERM`
 * on another thread than the queue's, if it has one; when the ring broke: take its completions, and destroy it. Threads: the
 * queue's; any before one has sent or processed with it. Since 0.1.
 */
int blkm_queue_close(struct blkm_queue **queue, int64_t timeout_ns);

/**
 * Fills in what a queue has, up to `info->struct_size`, which the caller has set.
 *
 * Returns 0, or -errno: `-EINVAL`; `-EPERM` on another thread than the queue's. Threads: the queue's; any before one has sent or
 * processed with it, which this does not count as. Since 0.1.
 */
int blkm_queue_get_info(struct blkm_queue *queue, struct blkm_queue_info *info);

/** Writes, zeroes: durable when the request completes (forced unit access). */
#define BLKM_REQ_FUA 1

/** Zeroes: space may be given back. */
#define BLKM_REQ_MAY_UNMAP 2

/** Zeroes: fail with -EOPNOTSUPP where the device has no quick way to zero, instead of writing them as data. */
#define BLKM_REQ_NO_FALLBACK 4

/**
 * Writes: the data does not change before the completion, so write-blocking needs no copy of it; see
 * `BLKM_QUEUE_F_STABLE_BUFFERS`.
 */
#define BLKM_REQ_STABLE_BUFFER 8

/**
 * Reads `len_bytes` at `offset_bytes` into `buffer`.
 *
 * Offset and length are multiples of the drive's `align_bytes`, the address is one of its `memory_align_bytes`. The memory stays
 * mapped and is not used otherwise until the completion, which brings `user_data` back. `flags` is zero. Nothing is sent before
 * `blkm_queue_submit`, `blkm_queue_poll` or `blkm_queue_process`.
 *
 * There is exactly one completion: 0, or -errno with a text: `-EINVAL` for a range off the drive or not aligned, or unknown flags;
 * `-EAGAIN` when the queue's depth is used up; `-EPERM` on another thread than the queue's; what the device says.
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_read(struct blkm_queue *queue,
                     uint64_t offset_bytes,
                     void *buffer,
                     size_t len_bytes,
                     void *user_data,
                     uint32_t flags);

/**
 * Reads into several pieces of memory, in their order: as `blkm_queue_read`. The length of each is a multiple of the drive's
 * `align_bytes`. The array, too, stays as it is until the completion.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_readv(struct blkm_queue *queue,
                      uint64_t offset_bytes,
                      const struct iovec *iov,
                      int iovcnt,
                      void *user_data,
                      uint32_t flags);

/**
 * Writes `len_bytes` from `buffer` at `offset_bytes`; `flags`: `BLKM_REQ_FUA`, `BLKM_REQ_STABLE_BUFFER`. All else as
 * `blkm_queue_read`, and `-EACCES` for a drive that is read-only.
 *
 * The guest may change the data before the completion: which bytes are on the disk then is its own affair, but a mirror has the
 * same.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_write(struct blkm_queue *queue,
                      uint64_t offset_bytes,
                      const void *buffer,
                      size_t len_bytes,
                      void *user_data,
                      uint32_t flags);

/**
 * Writes from several pieces of memory, in their order: as `blkm_queue_write` and `blkm_queue_readv`.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_writev(struct blkm_queue *queue,
                       uint64_t offset_bytes,
                       const struct iovec *iov,
                       int iovcnt,
                       void *user_data,
                       uint32_t flags);

/**
 * Makes a range read as zeroes; written as data where the device knows no better. `flags`: `BLKM_REQ_MAY_UNMAP`,
 * `BLKM_REQ_NO_FALLBACK`, `BLKM_REQ_FUA`. All else as `blkm_queue_write`.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_write_zeroes(struct blkm_queue *queue, uint64_t offset_bytes, uint64_t len_bytes, void *user_data, uint32_t flags);

/**
 * Says that a range is not needed any more. A device that cannot make use of that changes nothing and succeeds. `flags` is zero.
 * All else as `blkm_queue_write`.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_discard(struct blkm_queue *queue, uint64_t offset_bytes, uint64_t len_bytes, void *user_data, uint32_t flags);

/**
 * Makes every write durable that completed before this call. `flags` is zero.
 *
 * Threads: the queue's. Since 0.1.
 */
void blkm_queue_flush(struct blkm_queue *queue, void *user_data, uint32_t flags);

/**
 * Sends what was submitted, without looking for completions: one system call. `blkm_queue_process` and `blkm_queue_poll` do so,
 * too.
 *
 * Returns 0, or -errno: `-EPERM` on another thread than the queue's; when the ring could not be made or broke, and then every
 * request has completed with an error. Threads: the queue's. Since 0.1.
 */
int blkm_queue_submit(struct blkm_queue *queue);

/**
 * Sends what was submitted, and says how many completions can be taken now; takes none.
 *
 * It asks the kernel each time, for a completion is shown to the queue only when its thread comes for it: one system call
 * (`io_uring_enter`); with a completion descriptor a second, which resets it, and while there is something to take a third, which
 * makes it readable again. A loop that polls without a pause calls `blkm_queue_process` at once, which needs no third, and makes
 * its queue with `BLKM_QUEUE_F_NO_EVENTFD` if it never sleeps, which needs no second.
 *
 * Returns their number, or -errno as `blkm_queue_submit`. Threads: the queue's. Since 0.1.
 */
int blkm_queue_poll(struct blkm_queue *queue);

/**
 * Sends what was submitted, sleeps until `min` completions can be taken, and takes up to `max` of them into `completions`, in any
 * order.
 *
 * It sleeps no longer than `timeout_ns` (0: not at all; negative: for ever), nor when fewer than `min` requests are under way.
 * Requests that wait for the drive's gate are under way. If more than `max` are there, the completion descriptor stays readable.
 *
 * Returns how many were taken, 0 if there were none, or -errno: `-EINVAL` unless 0 <= min <= max and 1 <= max; `-EPERM` on another
 * thread than the queue's; when the ring could not be made or broke, once every completion is taken. Threads: the queue's. Since
 * 0.1.
 */
int blkm_queue_process(struct blkm_queue *queue, struct blkm_completion *completions, int min, int max, int64_t timeout_ns);

/**
 * The queue's completion descriptor, an eventfd: readable when there may be completions to take. Wait for it, level-triggered or
 * edge-triggered, and call `blkm_queue_process`, which resets it; never read from it. It may be readable when there is nothing to
 * take, as when the drive's gate opens. It belongs to the queue.
 *
 * It is there from the start to the end of the queue, or not at all (`BLKM_QUEUE_F_NO_EVENTFD`): it cannot be switched off for a
 * while, as other libraries can. A host that polls now and sleeps then leaves it as it is and pays a signal of the kernel's for
 * each batch of completions and a `read(2)` for each `blkm_queue_process` and `blkm_queue_poll`.
 *
 * Returns the descriptor, or -errno: `-ENOENT` with `BLKM_QUEUE_F_NO_EVENTFD`. Threads: any. Since 0.1.
 */
int blkm_queue_get_completion_fd(struct blkm_queue *queue);

/* Trackers: guest I/O that the host does itself --------------------------------------------------------------------------- */

/** What a tracked request does. */
typedef uint32_t blkm_io_kind;

/** Reads; nothing is marked. */
#define BLKM_IO_READ 0

/** Writes data. */
#define BLKM_IO_WRITE 1

/** Makes the range read as zeroes. */
#define BLKM_IO_WRITE_ZEROES 2

/** Gives space back; the range may read as anything. */
#define BLKM_IO_DISCARD 3

/** Makes durable what was written; its range is empty. */
#define BLKM_IO_FLUSH 4

/**
 * `blkm_tracker_begin`: not now. The gate is closed, for a switch-over or because copy mode auto brakes the guest; a later version
 * may hold requests for other reasons. Wait until `blkm_tracker_wait` or the descriptor says that it is open, and begin again.
 */
#define BLKM_HELD 1

/** A tracked request that is under way. The caller keeps it; it may be copied and moved, and is ended once. */
typedef struct blkm_token {
    /** Which device the request must be sent to: 0 is the one that the drive was made on, and each pivot counts one more. */
    uint64_t device_number;
    /** The library's. */
    uint64_t opaque[7];
} blkm_token;

/**
 * Makes a tracker of a drive. On success `*out` is the tracker, to be closed with `blkm_tracker_close`; else it is NULL.
 *
 * Returns 0, or -errno. Threads: any. Since 0.1.
 */
int blkm_tracker_create(struct blkm_drive *drive, struct blkm_tracker **out);

/**
 * Closes the caller's handle and sets `*tracker` to NULL. NULL, and a pointer to NULL, are allowed. Tokens can be ended with
 * another tracker of the drive. Threads: any, while no other call uses this handle. Since 0.1.
 */
void blkm_tracker_close(struct blkm_tracker **tracker);

/**
 * A request (`BLKM_IO_*`) is about to be sent. The range need not be aligned; that of a flush is empty. Nothing is allocated, and
 * no lock is taken. Tracked writes are followed in background, whatever the job's copy mode is.
 *
 * Returns 0, and `*token` is to be ended with `blkm_tracker_end`: send the request now, to the device that `token->device_number`
 * names. `BLKM_HELD`: do not send it; wait, and begin again. -errno: `-EINVAL` for a range that is empty or not on the drive, or
 * an unknown kind; `-EAGAIN` when 4096 are under way on the drive, which is counted over all its trackers and queues: nothing was
 * begun; hold the request, and begin again when one of yours has ended (`blkm_tracker_wait` and the descriptor tell of the gate
 * alone), or after a moment if none of yours is under way. A host that never has more than that many under way never sees it.
 *
 * A switch-over closes the gate and waits for every token that is under way. So never make the end of a token wait for the gate:
 * not by sleeping in `blkm_tracker_wait` or for the descriptor before you end it, nor by waiting for a completion of a queue of
 * the same drive; and one request of the guest's is one token, not several that are begun one after the other. Each would wait for
 * the other: the switch-over would be missed again and again, and with a `max_pause_ns` of `BLKM_NEVER_NS` both would wait for
 * ever. A token that is never ended keeps every job of the drive from switching over.
 *
 * Threads: any. Since 0.1.
 */
int blkm_tracker_begin(struct blkm_tracker *tracker,
                       uint64_t offset_bytes,
                       uint64_t len_bytes,
                       blkm_io_kind kind,
                       struct blkm_token *token);

/**
 * A request has completed with `result` (0, or -errno if it failed): said before the guest hears of it, because a write marks its
 * range here, whatever its result. Where the write was plain stores into mapped memory, with no system call since, a full memory
 * barrier (`atomic_thread_fence(memory_order_seq_cst)`) must come before.
 *
 * Returns 0; `-EPERM`, and nothing was changed, for a token that was ended before or is none of this drive's; `-EINVAL`.
 * Threads: any, also another than the one that began it. Since 0.1.
 */
int blkm_tracker_end(struct blkm_tracker *tracker, const struct blkm_token *token, int result);

/**
 * Sleeps until the drive's gate is open, at most for `timeout_ns`; negative: for ever. Never while the thread has a token to
 * end (`blkm_tracker_begin`).
 *
 * Returns 1 if it is open, 0 if the time is over, or -errno. Threads: any. Since 0.1.
 */
int blkm_tracker_wait(struct blkm_tracker *tracker, int64_t timeout_ns);

/**
 * A descriptor that is readable exactly while the drive's gate is open, for an event loop: poll it while requests are held, never
 * read from it. It belongs to the library and is good until every handle of the drive is closed.
 *
 * Returns the descriptor, or -errno. Threads: any. Since 0.1.
 */
int blkm_tracker_get_open_fd(struct blkm_tracker *tracker);

/* Bitmaps ----------------------------------------------------------------------------------------------------------------- */

/** It does not record until it is enabled. */
#define BLKM_BITMAP_F_DISABLED 1

/** How a bitmap is made. All zero but for the name is the default. */
typedef struct blkm_bitmap_opts {
    /** sizeof(blkm_bitmap_opts). */
    size_t struct_size;
    /** `BLKM_BITMAP_F_*`. */
    uint64_t flags;
    /** Its name: 1 to 255 bytes of UTF-8, unlike those of the drive's other bitmaps. Copied. */
    const char *name;
    /** Bytes that a bit stands for: a power of two from 512 bytes on; 0: 64 KiB. */
    uint64_t granularity_bytes;
    /** Zero. */
    uint64_t reserved[4];
} blkm_bitmap_opts;

/** Guest writes are recorded in it, by the drive or by the job that works with it. */
#define BLKM_BITMAP_IS_RECORDING 1

/** A job works with it: it cannot be changed. */
#define BLKM_BITMAP_IS_BUSY 2

/** What a bitmap is now. As QEMU's BlockDirtyInfo. */
typedef struct blkm_bitmap_info {
    /** Set by the caller: sizeof(blkm_bitmap_info). */
    size_t struct_size;
    /** `BLKM_BITMAP_IS_*`. */
    uint64_t flags;
    /** Bytes of the drive. */
    uint64_t size_bytes;
    /** Bytes that a bit stands for. */
    uint64_t granularity_bytes;
    /** Bytes of the chunks that are dirty, the last one counted as long as it is; exact when nobody writes. */
    uint64_t dirty_bytes;
    /** Its name. */
    char name[256];
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_bitmap_info;

/**
 * Sets options to the defaults for the size that the caller's header has; the name is the caller's to set.
 *
 * Since 0.1.
 */
void blkm_bitmap_opts_init(struct blkm_bitmap_opts *opts, size_t struct_size);

/**
 * Adds a bitmap to a drive, with nothing dirty in it. Unless it is made disabled, every write that ends after this has returned is
 * in it. On success `*out` is the bitmap, to be closed with `blkm_bitmap_close`; else it is NULL. It lives in memory; see
 * `blkm_bitmap`.
 *
 * Returns 0, or -errno: `-EEXIST` for a name that the drive's bitmaps have already; `-EINVAL` without a name or for one that is
 * empty, too long or no UTF-8, for a granularity that is none, and for a drive of more than 64 TiB; `-EMFILE` when the drive has
 * 64 bitmaps; `-ENOMEM`. Threads: any. Since 0.1.
 */
int blkm_bitmap_create(struct blkm_drive *drive, const struct blkm_bitmap_opts *opts, struct blkm_bitmap **out);

/**
 * Closes the caller's handle and sets `*bitmap` to NULL: the bitmap leaves its drive, once a job that works with it is over. NULL,
 * and a pointer to NULL, are allowed. Threads: any, while no other call uses this handle. Since 0.1.
 */
void blkm_bitmap_close(struct blkm_bitmap **bitmap);

/**
 * Lets it record: every write that ends after this has returned is in it.
 *
 * Returns 0, or -errno: `-EBUSY` while a job works with it, `-EPERM` when its drive is gone. Threads: any. Since 0.1.
 */
int blkm_bitmap_enable(struct blkm_bitmap *bitmap);

/**
 * Lets it not record any more: when this has returned, no guest write changes it.
 *
 * Returns 0, or -errno: `-EBUSY` while a job works with it. Threads: any. Since 0.1.
 */
int blkm_bitmap_disable(struct blkm_bitmap *bitmap);

/**
 * Makes everything clean. While it records, a write that ends meanwhile is in it, or is seen by who reads the drive afterwards.
 *
 * Returns 0, or -errno: `-EBUSY` while a job works with it. Threads: any. Since 0.1.
 */
int blkm_bitmap_clear(struct blkm_bitmap *bitmap);

/**
 * Marks in `target` what is dirty in any of the `count` bitmaps at `sources`, of this drive or of others; it may be among them
 * itself. All or nothing.
 *
 * Returns 0, or -errno, and nothing has changed: `-EINVAL` unless all have the same size and granularity, or for NULL, `-EBUSY`
 * while a job works with one of them. Threads: any. Since 0.1.
 */
int blkm_bitmap_merge(struct blkm_bitmap *target, struct blkm_bitmap *const *sources, size_t count);

/**
 * Marks every chunk that a range touches.
 *
 * Returns 0, or -errno: `-EINVAL` for a range past the end of the drive, `-EBUSY` while a job works with it. Threads: any. Since
 * 0.1.
 */
int blkm_bitmap_set_dirty(struct blkm_bitmap *bitmap, uint64_t offset_bytes, uint64_t len_bytes);

/**
 * Makes clean every chunk that lies in a range as a whole; the last one of the drive does when its last byte does.
 *
 * Returns 0, or -errno as `blkm_bitmap_set_dirty`. Threads: any. Since 0.1.
 */
int blkm_bitmap_reset_dirty(struct blkm_bitmap *bitmap, uint64_t offset_bytes, uint64_t len_bytes);

/**
 * Fills in what a bitmap is, up to `info->struct_size`, which the caller has set.
 *
 * Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
 */
int blkm_bitmap_query(struct blkm_bitmap *bitmap, struct blkm_bitmap_info *info);

/**
 * The first dirty area between `start_bytes` and `end_bytes`, and at most `max_len_bytes` of it, into `*offset_bytes` and
 * `*len_bytes`; either may be NULL. To see all, ask again from `*offset_bytes + *len_bytes` on. `end_bytes` may be `UINT64_MAX`
 * for the drive's end.
 *
 * Returns 1 if there is one, 0 if not, or -errno: `-EINVAL` when that is no range of the drive, or the length is 0.
 * Threads: any. Since 0.1.
 */
int blkm_bitmap_next_dirty_area(struct blkm_bitmap *bitmap,
                                uint64_t start_bytes,
                                uint64_t end_bytes,
                                uint64_t max_len_bytes,
                                uint64_t *offset_bytes,
                                uint64_t *len_bytes);

/* Jobs -------------------------------------------------------------------------------------------------------------------- */

/** Where a job stands. As QEMU's JobStatus. */
typedef uint32_t blkm_job_status;

/** Made, and not yet taken up by a worker. */
#define BLKM_JOB_CREATED 1

/** Copying, or following, and not ready. */
#define BLKM_JOB_RUNNING 2

/** Paused by the host or stopped by an error policy, before it was ready. */
#define BLKM_JOB_PAUSED 3

/** A switch-over is possible: the forecast of its pause fitted into `max_pause_ns` when the job came to this state. */
#define BLKM_JOB_READY 4

/** Paused or stopped after it was ready. */
#define BLKM_JOB_STANDBY 5

/** Everything is copied and flushed, and guest requests are held. */
#define BLKM_JOB_WAITING 6

/** The same, and the host has to finalize. */
#define BLKM_JOB_PENDING 7

/** Cancelled or failed, and not yet over. */
#define BLKM_JOB_ABORTING 8

/** Over; the outcome is there. */
#define BLKM_JOB_CONCLUDED 9

/** The host has dismissed it. */
#define BLKM_JOB_NULL 10

/** What the first pass of a job copies. */
typedef uint32_t blkm_sync_mode;

/** Everything. */
#define BLKM_SYNC_FULL 0

/** What the topmost layer holds: what SEEK_DATA finds, or what `extents` say. */
#define BLKM_SYNC_TOP 1

/** Nothing; only later writes are followed. */
#define BLKM_SYNC_NONE 2

/** What is dirty in `bitmap`. */
#define BLKM_SYNC_BITMAP 3

/** How guest writes are followed. */
typedef uint32_t blkm_copy_mode;

/**
 * Background, and write-blocking when the remainder stops shrinking, which it stays then; if that does not help, guest requests
 * are held now and then. After the step to write-blocking a target that hangs holds guest writes until the job is cancelled by
 * force, and those from stable buffers (`BLKM_QUEUE_F_STABLE_BUFFERS`) even after that, until the target answers: choose
 * `BLKM_COPY_BACKGROUND` unless you supervise how long guest writes take.
 */
#define BLKM_COPY_AUTO 0

/** They go to the source and mark their chunks; copiers come round. */
#define BLKM_COPY_BACKGROUND 1

/**
 * They go to the source and the target at once, and the guest is told when both are done. For queues. A target that hangs holds
 * writes until the job is cancelled by force, and those from stable buffers even after that: there is no time limit and no event.
 */
#define BLKM_COPY_WRITE_BLOCKING 2

/** What an error leads to. As QEMU's on-source-error and on-target-error. */
typedef uint32_t blkm_on_error;

/** The job fails. */
#define BLKM_ON_ERROR_REPORT 0

/** The chunk stays dirty and is tried again, in rounds that come up to a second apart. */
#define BLKM_ON_ERROR_IGNORE 1

/** No space stops the job, anything else fails it. */
#define BLKM_ON_ERROR_ENOSPC 2

/** The job stops where it is until `blkm_job_resume`. */
#define BLKM_ON_ERROR_STOP 3

/** What is done about one error. */
typedef uint32_t blkm_error_action;

/** The job fails. */
#define BLKM_ACTION_REPORT 1

/** The chunk stays dirty and is tried again later. */
#define BLKM_ACTION_IGNORE 2

/** The job stops until it is resumed. */
#define BLKM_ACTION_STOP 3

/** Which side of a job. */
typedef uint32_t blkm_side;

/** Reads. */
#define BLKM_SIDE_SOURCE 1

/** Writes, zeroing, flushes. */
#define BLKM_SIDE_TARGET 2

/** What errors have done to a job. */
typedef uint32_t blkm_io_status;

/** Nothing that stops it. */
#define BLKM_IO_STATUS_OK 0

/** An error stopped it. */
#define BLKM_IO_STATUS_FAILED 1

/** A full target stopped it. */
#define BLKM_IO_STATUS_NOSPACE 2

/** What is done about a remainder that does not shrink. */
typedef uint32_t blkm_escalation;

/** Guest writes through queues go to both sides. */
#define BLKM_ESCALATION_WRITE_BLOCKING 1

/** The latency budget is loosened. */
#define BLKM_ESCALATION_BUDGET_LOOSENED 2

/** Guest requests are held again and again, for `max_pause_ns` at most each time. */
#define BLKM_ESCALATION_BRAKING 3

/** Why something is done. */
typedef uint32_t blkm_escalation_reason;

/** The remainder no longer shrinks. */
#define BLKM_REASON_NOT_SHRINKING 1

/**
 * Switch-overs were missed, or the flush before one took too long for the guest's writes. Also look for tokens that are never
 * ended.
 */
#define BLKM_REASON_MISSED 2

/** How much of the latency budget is in force. */
typedef uint32_t blkm_budget_level;

/** All of it; also where none was chosen. */
#define BLKM_BUDGET_CHOSEN 0

/** Four times what was chosen. */
#define BLKM_BUDGET_FOUR_TIMES 1

/** Nothing of it: the job copies at full speed. */
#define BLKM_BUDGET_LIFTED 2

/** Look for zeroes in the data and carry them over as holes. */
#define BLKM_MIRROR_F_DETECT_ZEROES 1

/** The target is known to read as zeroes, so holes need no request. */
#define BLKM_MIRROR_F_TARGET_IS_ZERO 2

/** Zeroes leave the target's space allocated; by default they give it back (QEMU's unmap). */
#define BLKM_MIRROR_F_KEEP_ALLOCATED 4

/** Ready only when nothing at all is dirty or in flight (QEMU's meaning), not as soon as a switch-over would fit. */
#define BLKM_MIRROR_F_STRICT_READY 8

/**
 * At the end, whichever it is (a pivot, a point in time, a soft cancel, the end of a copy), the job stays pending, with guest
 * requests held for as long, until `blkm_job_finalize` or `blkm_job_cancel`; `BLKM_EVENT_PENDING` says whether the drive is about
 * to move. If it is, this is the moment to write down, durably, that the target is the disk from now on (how, is said there): a
 * host that may crash and start again sets it. Do not wait for guest requests on the thread that is to finalize.
 */
#define BLKM_MIRROR_F_MANUAL_FINALIZE 16

/** The job completes by itself when everything is copied, without a pivot: the target is a copy as of then. It is never ready. */
#define BLKM_MIRROR_F_COMPLETE 32

/** How a latency budget is meant. */
typedef uint32_t blkm_latency_budget;

/** Twice what the guest's p99 is without the job. */
#define BLKM_LATENCY_BUDGET_DEFAULT 0

/** No bound: the job copies at full speed. */
#define BLKM_LATENCY_BUDGET_OFF 1

/** The guest's p99 is to stay below `latency_budget_value` nanoseconds. */
#define BLKM_LATENCY_BUDGET_ABSOLUTE 2

/** The guest's p99 is to stay below `latency_budget_value` percent of what it is without the job; more than 100. */
#define BLKM_LATENCY_BUDGET_BASELINE 3

/** No bound, where a structure has a number of nanoseconds; "not known", in one that is filled in. */
#define BLKM_NEVER_NS 18446744073709551615ull

/** A range of a disk and what it is. */
typedef struct blkm_extent {
    /** Where it begins. */
    uint64_t offset_bytes;
    /** How long it is. */
    uint64_t len_bytes;
    /** `BLKM_EXTENT_DATA` or `BLKM_EXTENT_ZERO`. What no extent covers is not in the topmost layer. */
    blkm_extent_kind kind;
    /** Zero. */
    uint32_t reserved0;
} blkm_extent;

/**
 * What a host chooses for a job. All zero (or NULL) is the default: everything is copied, guest writes are followed in copy mode
 * auto, the guest's p99 is to stay below twice what it was, the switch-over takes 50 ms at most, the first error ends the job.
 */
typedef struct blkm_mirror_opts {
    /** sizeof(blkm_mirror_opts). */
    size_t struct_size;
    /** `BLKM_MIRROR_F_*`. */
    uint64_t flags;
    /** Comes back in the job's events. */
    void *user_data;
    /**
     * With `BLKM_SYNC_BITMAP`: the working bitmap, a `blkm_bitmap *`. The job owns it while it runs; at its end it says what is
     * not copied.
     */
    struct blkm_bitmap *bitmap;
    /**
     * With `BLKM_SYNC_TOP`: what the topmost layer holds, in rising order without overlap, instead of SEEK_DATA; NULL: none.
     * Copied.
     */
    const struct blkm_extent *extents;
    /** How many extents. */
    size_t extents_len;
    /** Bytes per second at most; 0: no limit. It is smooth: no burst is longer than 2 ms of it. */
    uint64_t speed_bytes_per_s;
    /** Bytes in flight per worker, at most 2 GiB; 0: 16 MiB. */
    uint64_t buf_size_bytes;
    /**
     * Bytes that a dirty bit stands for: a power of two from 512 bytes on; 0: the target's cluster size within 4 KiB..64 KiB, else
     * 64 KiB.
     */
    uint64_t granularity_bytes;
    /** The cluster size of a target that has a backing file: the first touch of a cluster copies all of it. 0: it has none. */
    uint64_t target_cluster_bytes;
    /**
     * How long guest requests may be held at a switch-over, at least 1 ms; 0: 50 ms; `BLKM_NEVER_NS`: as long as it takes. It must
     * have room for a flush of the target: while one takes longer than three quarters of this, the job of a guest that writes
     * becomes neither ready nor over, in any copy mode, and no event tells of it: see `flush_ns` of `blkm_job_query`.
     * `blkm_job_set_max_pause` changes it. The time in which a job is pending comes on top.
     */
    uint64_t max_pause_ns;
    /** Nanoseconds or percent, see `latency_budget`. */
    uint64_t latency_budget_value;
    /** How `latency_budget_value` is meant: `BLKM_LATENCY_BUDGET_*`. */
    blkm_latency_budget latency_budget;
    /** What the first pass copies. */
    blkm_sync_mode sync;
    /** How guest writes are followed. */
    blkm_copy_mode copy_mode;
    /** What a failed read leads to. A source that became shorter ends the job whatever is chosen. */
    blkm_on_error on_source_error;
    /** What a failed write or zeroing leads to. A failed flush ends the job whatever is chosen. */
    blkm_on_error on_target_error;
    /** Zero. */
    uint32_t reserved0;
    /** Zero. */
    uint64_t reserved[6];
} blkm_mirror_opts;

/**
 * Sets options to the defaults for the size that the caller's header has.
 *
 * Since 0.1.
 */
void blkm_mirror_opts_init(struct blkm_mirror_opts *opts, size_t struct_size);

/**
 * Starts a job that mirrors `drive` to `target`, which was opened as a target, and follows the guest's writes until it is
 * completed or cancelled. The target is held until the job is over, and longer if the drive moves to it; the caller may close his
 * handle of it. Whether the drive could move to it is not asked here: `blkm_mirror_check` does. `opts` may be NULL. On success
 * `*out` is the job, to be closed with `blkm_job_close`; else it is NULL, and the target is untouched.
 *
 * Events of the job may come, and its handle be in `*out`, before this returns; it then returns 0.
 *
 * It opens both devices once more for each worker but the first, on the calling thread, and blocks for as long as their file
 * systems do, so do not call it from an event loop. Where that is forbidden, or /proc is missing, their descriptors are duplicated
 * instead.
 *
 * Returns 0, or -errno: `-EBUSY` when a job runs on the drive, both are the same, the bitmap is in use, or the target is: by
 * another job or drive, or by the requests of a job that is over and may still land (`blkm_job_wait` waits for them for a while);
 * `-EINVAL` for an option that makes no sense or a target that is too small; `-EAGAIN` when the engine carries 64 jobs, or many
 * are being started at once; `-ENOMEM`; `-EMFILE`; what else the kernel says when it opens a device once more, such as `-ENXIO`
 * for one that is gone. Threads: any. Since 0.1.
 */
int blkm_mirror_start(struct blkm_engine *engine,
                      struct blkm_drive *drive,
                      struct blkm_device *target,
                      const struct blkm_mirror_opts *opts,
                      struct blkm_job **out);

/**
 * Whether `blkm_mirror_start` would take these, and, if `pivot`, whether the drive could move to the target at the end. Changes
 * nothing.
 *
 * Returns 0, or -errno as `blkm_mirror_start` and `blkm_job_complete`, but for what depends on the moment. Threads: any. Since
 * 0.1.
 */
int blkm_mirror_check(struct blkm_engine *engine,
                      struct blkm_drive *drive,
                      struct blkm_device *target,
                      const struct blkm_mirror_opts *opts,
                      bool pivot);

/**
 * Starts a job that copies `source`, which nobody writes meanwhile, to `target`, and completes by itself. Of the options those
 * about following a guest are ignored. All else as `blkm_mirror_start`.
 *
 * Threads: any. Since 0.1.
 */
int blkm_copy_start(struct blkm_engine *engine,
                    struct blkm_device *source,
                    struct blkm_device *target,
                    const struct blkm_mirror_opts *opts,
                    struct blkm_job **out);

/**
 * Closes the caller's handle and sets `*job` to NULL. NULL, and a pointer to NULL, are allowed. A job that is not over runs on and
 * ends as it was asked to, or with its engine, and nobody hears of it; one that would have to be finalized, and was not, is
 * cancelled (`BLKM_EVENT_PENDING` says what to write down before). Who holds the disks after a job: `blkm_job_get_outcome`.
 *
 * Threads: any, while no other call uses this handle; not between taking an event of the job and using its `job`. Since 0.1.
 */
void blkm_job_close(struct blkm_job **job);

/** How a switch-over is to end. */
typedef uint32_t blkm_completion_mode;

/**
 * The drive moves to the target. Guest requests are acknowledged there before the host hears of the end, so one that may crash and
 * start again sets `BLKM_MIRROR_F_MANUAL_FINALIZE` and writes the disk down at `BLKM_EVENT_PENDING`.
 */
#define BLKM_COMPLETE_PIVOT 0

/** The drive stays where it is; the target is a copy as of that moment. */
#define BLKM_COMPLETE_POINT_IN_TIME 1

/**
 * Pauses a job: what is in flight is finished, and then it is paused, or standby if it was ready. Guest writes go on being
 * recorded, and in write-blocking mode go on to both sides.
 *
 * Returns 0, or -errno: `-EPERM` in a state that forbids it, or when the host has paused it already. Threads: any. Since 0.1.
 */
int blkm_job_pause(struct blkm_job *job);

/**
 * Goes on after a pause, or after an error policy stopped the job.
 *
 * Returns 0, or -errno: `-EPERM` in a state that forbids it, or when it is neither. Threads: any. Since 0.1.
 */
int blkm_job_resume(struct blkm_job *job);

/**
 * Changes the speed limit at once; 0: none.
 *
 * Returns 0, or -errno: `-EPERM` in a state that forbids it. Threads: any. Since 0.1.
 */
int blkm_job_set_speed(struct blkm_job *job, uint64_t bytes_per_s);

/**
 * Changes how guest writes are followed (`BLKM_COPY_BACKGROUND`, `BLKM_COPY_WRITE_BLOCKING`), from each queue's next request on. A
 * job in copy mode auto stays in the mode that was chosen last.
 *
 * Returns 0, or -errno: `-EPERM` in a state that forbids it, `-EINVAL` for another mode. Threads: any. Since 0.1.
 */
int blkm_job_set_copy_mode(struct blkm_job *job, blkm_copy_mode mode);

/**
 * Changes `max_pause_ns` of a running job, with the same meaning, at once: also of a switch-over that is being tried; and what did
 * not fit before is tried anew.
 *
 * Returns 0, or -errno: `-EPERM` in a state that forbids it, `-EINVAL` for less than 1 ms. Threads: any. Since 0.1.
 */
int blkm_job_set_max_pause(struct blkm_job *job, uint64_t max_pause_ns);

/**
 * Asks for the switch-over of a job that is ready: as soon as it fits into `max_pause_ns`, guest requests are held, the rest is
 * copied, the target is flushed, and with `BLKM_COMPLETE_PIVOT` the drive moves to the target. Returns at once; events tell the
 * end. It may never fit, above all with `BLKM_COPY_BACKGROUND`; a host that cannot wait cancels.
 *
 * Returns 0, or -errno: `-EPERM` before `BLKM_EVENT_READY`, in a state that forbids it, or when the end was asked for already;
 * `-EINVAL` for a pivot to a target with larger blocks than the guest was promised, or an unknown mode. Threads: any. Since 0.1.
 */
int blkm_job_complete(struct blkm_job *job, blkm_completion_mode mode);

/**
 * Ends a job. By `force` it is over within a second even if requests hang, and the target is no copy. Without, a job that is ready
 * or standby ends as with `BLKM_COMPLETE_POINT_IN_TIME` (QEMU's block-job-cancel), and waits like `blkm_job_complete`, one in
 * standby for `blkm_job_resume`; any other ends as by force.
 *
 * A pending job that is cancelled lets guest requests go on, on the old disk, before any event tells of it, and so does one that
 * is closed or whose engine is destroyed: who has written down the target as the guest's disk takes that back, durably, before,
 * under the lock that `BLKM_EVENT_PENDING` speaks of.
 *
 * How a job ends is decided once, by whichever comes first: a cancel by force, `blkm_job_finalize`, or, without
 * `BLKM_MIRROR_F_MANUAL_FINALIZE`, the job itself when everything is copied and flushed and guest requests are held. Success of a
 * cancel by force means that it has decided it: the drive does not move, and a finalize is refused. `-EPERM` means that nothing
 * was changed by it: the job is over, or the switch-over was decided before, and `blkm_error_msg` says whether the drive
 * moves. Closing the job or destroying its engine does not change what was decided.
 *
 * Returns 0, or -errno: `-EPERM` when the job is over, the switch-over is decided, or, without `force`, the end was asked for
 * already. Threads: any. Since 0.1.
 */
int blkm_job_cancel(struct blkm_job *job, bool force);

/**
 * Carries out a switch-over that is pending. Success means that this is decided: a cancel is refused from then on, and the job
 * completes, also when the ring of a worker breaks, unless the library has a bug in that very step. What to write down before,
 * under which lock, and what to do when it is refused: `BLKM_EVENT_PENDING`.
 *
 * Returns 0, or -errno: `-EPERM` in any other state, and when the job was cancelled, has failed or was finalized before:
 * `blkm_error_msg` says which. Threads: any. Since 0.1.
 */
int blkm_job_finalize(struct blkm_job *job);

/**
 * Says that the outcome of a job that is over was read; its state is `BLKM_JOB_NULL` then, and every verb is refused. Not needed
 * before `blkm_job_close`.
 *
 * Returns 0, or -errno: `-EPERM` in any other state. Threads: any. Since 0.1.
 */
int blkm_job_dismiss(struct blkm_job *job);

/**
 * Sleeps until the job is over and its workers have let go of the devices, at most for `timeout_ns`; negative: for ever. For
 * programs without an event loop. A job that follows a guest is over only once somebody has completed or cancelled it.
 *
 * Returns 1 if it is over, 0 if the time is, or -errno. Threads: any. Since 0.1.
 */
int blkm_job_wait(struct blkm_job *job, int64_t timeout_ns);

/** A switch-over begun now would fit into `max_pause_ns`. A forecast, and no permission. */
#define BLKM_JOBINFO_FITS_NOW 1

/** Copy mode auto holds guest requests now and then. */
#define BLKM_JOBINFO_BRAKING 2

/**
 * Write-blocking, and nothing is dirty or under way: what the guest is told is written through queues is on both sides, on the
 * target perhaps only in its cache.
 */
#define BLKM_JOBINFO_ACTIVELY_SYNCED 4

/** The host has asked for the end. */
#define BLKM_JOBINFO_COMPLETING 8

/** `last_error_*` are set: a request has failed for good, whatever was done about it. */
#define BLKM_JOBINFO_HAS_ERROR 16

/** The end that the host has asked for moves the drive to the target. Whether it has moved is `BLKM_OUTCOME_PIVOTED`. */
#define BLKM_JOBINFO_PIVOTS 32

/** Where a job stands and what it has done. Bytes and state are of this moment; rates and forecasts at most half a second old. */
typedef struct blkm_job_info {
    /** Set by the caller: sizeof(blkm_job_info). */
    size_t struct_size;
    /** `BLKM_JOBINFO_*`. */
    uint64_t flags;
    /** Bytes done plus bytes left; only the difference to `offset_bytes` has meaning, as in QEMU. */
    uint64_t len_bytes;
    /** Bytes dealt with so far; grows while the job follows the guest. */
    uint64_t offset_bytes;
    /** Bytes that differ or may differ. */
    uint64_t dirty_bytes;
    /** Bytes that turn dirty per second. */
    uint64_t dirty_rate_bytes_per_s;
    /** Bytes copied per second. */
    uint64_t copy_rate_bytes_per_s;
    /** Time until nothing is left at these rates; `BLKM_NEVER_NS`: not in sight. */
    uint64_t eta_ns;
    /** How long a switch-over begun now would hold guest requests, `flush_ns` included; `BLKM_NEVER_NS`: not known yet. */
    uint64_t predicted_pause_ns;
    /** The speed limit; 0: none. */
    uint64_t speed_bytes_per_s;
    /** Bytes of the disk. */
    uint64_t disk_bytes;
    /** Bytes of the disk that were dealt with; not more than `disk_bytes`. */
    uint64_t done_bytes;
    /** Bytes written to the target as data. */
    uint64_t copied_bytes;
    /** Bytes made zero on the target without sending them. */
    uint64_t zeroed_bytes;
    /** Bytes that needed no request. */
    uint64_t skipped_bytes;
    /** Bytes of `copied_bytes` that were copied again because the guest had written there. */
    uint64_t recopied_bytes;
    /** Bytes that guest writes took to both sides themselves. */
    uint64_t active_bytes;
    /** Bytes being copied now. */
    uint64_t in_flight_bytes;
    /** Time since the job was started. */
    uint64_t elapsed_ns;
    /** Requests sent again after a passing error or a short transfer. */
    uint64_t retries;
    /** Requests that failed for good. */
    uint64_t errors;
    /** Last error: where. */
    uint64_t last_error_offset_bytes;
    /** Last error: how much; 0 for a flush. */
    uint64_t last_error_len_bytes;
    /** Last error: CLOCK_MONOTONIC when it was noticed. */
    uint64_t last_error_time_ns;
    /** Last error: -errno. */
    int32_t last_error_ret;
    /** Last error: which side. */
    blkm_side last_error_side;
    /** Last error: what was done about it. */
    blkm_error_action last_error_action;
    /** The job's state. */
    blkm_job_status status;
    /** How guest writes are followed now. */
    blkm_copy_mode copy_mode;
    /** How much of the latency budget is in force. */
    blkm_budget_level budget_level;
    /** What errors have done to the job. */
    blkm_io_status io_status;
    /** Switch-overs that did not fit so far. */
    uint32_t missed;
    /** Workers that share the job. */
    uint32_t workers;
    /** Zero so far. */
    uint32_t reserved0;
    /**
     * What a flush of the target is expected to take: the slowest of the last few, less if that is long ago; `BLKM_NEVER_NS`: none
     * has ended yet. While it is longer than three quarters of `max_pause_ns`, no switch-over fits, however little is dirty:
     * `blkm_job_set_max_pause`.
     */
    uint64_t flush_ns;
    /** How long guest requests may be held now; `BLKM_NEVER_NS`: as long as it takes. */
    uint64_t max_pause_ns;
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_job_info;

/** How a job ended. */
typedef uint32_t blkm_end;

/** The target equals the source as of the switch-over, as far as the sync mode asked, and is flushed. */
#define BLKM_END_COMPLETED 1

/** The host cancelled it; the target is no copy. */
#define BLKM_END_CANCELLED 2

/** It failed; the target is no copy. */
#define BLKM_END_FAILED 3

/** The drive stands on the target now. */
#define BLKM_OUTCOME_PIVOTED 1

/** The target is complete. */
#define BLKM_OUTCOME_TARGET_COMPLETE 2

/** How a job ended, and what it did. */
typedef struct blkm_outcome {
    /** Set by the caller: sizeof(blkm_outcome). */
    size_t struct_size;
    /** `BLKM_OUTCOME_*`. */
    uint64_t flags;
    /** How long guest requests were held at the switch-over; `BLKM_NEVER_NS`: there was none. */
    uint64_t pause_ns;
    /** Bytes that were not copied, in whole chunks. */
    uint64_t left_dirty_bytes;
    /** Bytes written to the target as data. */
    uint64_t copied_bytes;
    /** Bytes made zero on the target without sending them. */
    uint64_t zeroed_bytes;
    /** Bytes that needed no request. */
    uint64_t skipped_bytes;
    /** Bytes that guest writes took to both sides themselves. */
    uint64_t active_bytes;
    /** Time from start to end. */
    uint64_t elapsed_ns;
    /** How it ended: `BLKM_END_*`. */
    blkm_end end;
    /** 0 if it completed, else -errno; -ECANCELED if it was cancelled. */
    int32_t ret;
    /** Why it failed, or that it was cancelled, in words; "" if it completed. */
    char error_msg[256];
    /** Bytes of the disk that were dealt with. */
    uint64_t done_bytes;
    /** Requests sent again after a passing error or a short transfer. */
    uint64_t retries;
    /** Requests that failed for good. */
    uint64_t errors;
    /** Zero so far. */
    uint64_t reserved[3];
} blkm_outcome;

/**
 * Where a job stands: `BLKM_JOB_*`.
 *
 * Returns the state, or -errno. Threads: any. Since 0.1.
 */
int blkm_job_get_status(struct blkm_job *job);

/**
 * Fills in where a job stands and what it has done, up to `info->struct_size`, which the caller has set.
 *
 * Returns 0, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any. Since 0.1.
 */
int blkm_job_query(struct blkm_job *job, struct blkm_job_info *info);

/**
 * What the guest's requests took since the job began, and what they took before, without one. Either may be NULL.
 *
 * Returns 0, or -errno: `-EINVAL` for a size that is too small. Threads: any. Since 0.1.
 */
int blkm_job_get_latencies(struct blkm_job *job, struct blkm_latencies *without_job, struct blkm_latencies *with_job);

/**
 * How the job ended, filled in up to `outcome->struct_size`, which the caller has set. There from `BLKM_EVENT_CONCLUDED` on.
 *
 * Who still has the disks open then, besides the caller's own handles of them:
 *
 * - Completed, with a pivot: the target is the drive's, for as long as the drive is on it. The drive lets go of the source; a queue
 *   closes it when its thread uses the queue next, or with the queue.
 * - Completed without a pivot (a point in time, a soft cancel), cancelled, failed: the source stays the drive's. The target is let
 *   go; in write-blocking mode a queue closes it when its thread uses the queue next, or with the queue.
 * - The job itself, and a copy has nobody else: its workers close both within moments, which `blkm_job_wait` waits for, 250 ms at
 *   most; only a worker whose requests hang keeps both until these come back. The handle of the job holds neither.
 * - You, with descriptors that `blkm_drive_dup_fd` gave: each keeps its device open, and a block device claimed, until you close
 *   it.
 *
 * Returns 0, or -errno: `-EAGAIN` while the job is not over, `-EINVAL` for NULL or a size that is too small. Threads: any. Since
 * 0.1.
 */
int blkm_job_get_outcome(struct blkm_job *job, struct blkm_outcome *outcome);

/**
 * Why the job did not complete, the text of `error_msg` in its outcome whole, copied as `snprintf(3)` does: cut to `buf_len` bytes
 * with its ending 0. `buf` may be NULL if `buf_len` is 0.
 *
 * Returns the length of the whole text without its ending 0, 0 if the job has completed or is not over, or -errno. Threads: any.
 * Since 0.1.
 */
int blkm_job_get_error(struct blkm_job *job, char *buf, size_t buf_len);

/* Engines and events ------------------------------------------------------------------------------------------------------ */

/** What happened to a job. */
typedef uint32_t blkm_event_type;

/** The job's state has changed, from `from` to `status`. */
#define BLKM_EVENT_STATUS 1

/** A switch-over is possible: `blkm_job_complete` may be asked. The first time only. */
#define BLKM_EVENT_READY 2

/** A request of the job failed for good: `ret`, `side`, `offset_bytes`, `len_bytes` (0 for a flush), `action`, `io_status`. */
#define BLKM_EVENT_ERROR 3

/** The host has changed how guest writes are followed: `copy_mode`. */
#define BLKM_EVENT_COPY_MODE 4

/**
 * The remainder stopped shrinking, or switch-overs were missed, and something is done about it: `step`, `reason`, `left_bytes`,
 * `budget_level` for `BLKM_ESCALATION_BUDGET_LOOSENED`. Nothing needs to be asked for; but after `BLKM_ESCALATION_WRITE_BLOCKING`
 * a target that hangs holds guest writes until the job is cancelled by force.
 */
#define BLKM_EVENT_ESCALATED 5

/** A latency budget that was loosened has come back to `budget_level`. */
#define BLKM_EVENT_BUDGET_TIGHTENED 6

/** Copy mode auto does not brake the guest any more. */
#define BLKM_EVENT_BRAKING_ENDED 7

/** A switch-over did not fit into its time and will be tried again: `held_ns`, `left_bytes`. */
#define BLKM_EVENT_SWITCH_OVER_MISSED 8

/**
 * Everything is copied and flushed, and guest requests are held. With `BLKM_EVENT_F_PIVOTS` the drive is about to move: it is the
 * moment to write down, durably, that the target is the guest's disk from now on. Without, the drive stays where it is, and there
 * is nothing to write down. `blkm_job_finalize` goes on. Only with `BLKM_MIRROR_F_MANUAL_FINALIZE`.
 *
 * How the job ends is decided in one step; what you write down and that step are two. So where more than one thread of yours may
 * end it, hold one lock of yours around writing down the target and `blkm_job_finalize`, and the same one around writing down the
 * old disk and `blkm_job_cancel` by force, `blkm_job_close` or `blkm_engine_destroy`. Once finalize has succeeded what is written
 * down stays, unless the outcome comes without `BLKM_OUTCOME_PIVOTED`: note that under the lock, too.
 *
 * A pending job may also fail by itself, but only if the worker that would carry it out breaks: its ring, or by a bug that is
 * caught; whatever else fails changes nothing any more. Guest requests then go on, on the old disk, before anybody can take back
 * what is written down, and finalize is refused: write down the old disk at once, before anything else, and not only when the
 * outcome is there. A host that crashes before it has, and starts its guest on the target, loses what the guest has written in
 * between.
 */
#define BLKM_EVENT_PENDING 9

/** The job is over; `blkm_job_get_outcome` tells how. */
#define BLKM_EVENT_CONCLUDED 10

/**
 * So many events (`lost`) were lost here, because nobody took them. What a job tells of only once is never among them: ready,
 * pending, concluded, and the changes of state to these. `blkm_job_query` says how the job stands.
 */
#define BLKM_EVENT_OVERFLOW 11

/** Pending: the drive moves to the target once the job is finalized. */
#define BLKM_EVENT_F_PIVOTS 1

/** Something that happened to a job. Later versions may bring other types; ignore those that you do not know. */
typedef struct blkm_event {
    /** Set by the caller: sizeof(blkm_event). */
    size_t struct_size;
    /** Whose it is: the caller's handle, good until he closes it. */
    struct blkm_job *job;
    /** What the job was started with. */
    void *user_data;
    /** Counts the job's events from 0; a gap is as long as the overflow that fills it says. */
    uint64_t seq;
    /** CLOCK_MONOTONIC when it was noticed. */
    uint64_t time_ns;
    /** Error: where. */
    uint64_t offset_bytes;
    /** Error: how much; 0 for a flush. */
    uint64_t len_bytes;
    /** Escalated, switch-over missed: bytes that were left. */
    uint64_t left_bytes;
    /** Switch-over missed: how long guest requests were held. */
    uint64_t held_ns;
    /** Overflow: how many events. */
    uint64_t lost;
    /** What it is: `BLKM_EVENT_*`. */
    blkm_event_type type;
    /** Status: what it was. */
    blkm_job_status from;
    /** Status: what it is; otherwise 0. */
    blkm_job_status status;
    /** Error: -errno. */
    int32_t ret;
    /** Error: which side. */
    blkm_side side;
    /** Error: what is done about it. */
    blkm_error_action action;
    /** Error: what the job's I/O status is by that. */
    blkm_io_status io_status;
    /** Copy mode: which. */
    blkm_copy_mode copy_mode;
    /** Escalated: what is done. */
    blkm_escalation step;
    /** Escalated: why. */
    blkm_escalation_reason reason;
    /** Escalated, budget tightened: how much of the budget is in force. */
    blkm_budget_level budget_level;
    /** `BLKM_EVENT_F_*`. */
    uint32_t flags;
    /** The same in words, for a log. */
    char msg[192];
    /** Zero so far. */
    uint64_t reserved[4];
} blkm_event;

/**
 * A function of the host's that each worker's thread calls once, before anything else: to name the thread, or to confine it
 * (control groups, seccomp, scheduling). `opaque` is the host's `thread_start_opaque`, `index` counts the workers from 0. It must
 * return, must not call the library, and may be called on several threads at once.
 */
typedef void (*blkm_thread_start_fn)(void *opaque, uint32_t index);

/** Pin each worker to a core of the process's set. For machines that do nothing else. */
#define BLKM_ENGINE_F_PIN 1

/** How an engine is made. All zero (or NULL) is the default. */
typedef struct blkm_engine_opts {
    /** sizeof(blkm_engine_opts). */
    size_t struct_size;
    /** `BLKM_ENGINE_F_*`. */
    uint64_t flags;
    /** Copy memory of each worker, at least 1 MiB; requests in flight live in it. 0: 16 MiB. A worker has 4 MiB more. */
    uint64_t window_bytes;
    /** Each worker's thread calls this first; NULL: nothing. */
    blkm_thread_start_fn thread_start;
    /** Handed to it. */
    void *thread_start_opaque;
    /** Worker threads, at most 256; 0: one for every two cores, at most four. */
    uint32_t workers;
    /** Zero. */
    uint32_t reserved0;
    /** Zero. */
    uint64_t reserved[4];
} blkm_engine_opts;

/**
 * Sets options to the defaults for the size that the caller's header has.
 *
 * Since 0.1.
 */
void blkm_engine_opts_init(struct blkm_engine_opts *opts, size_t struct_size);

/**
 * Starts an engine: returns when each worker has its ring and memory. Its threads block all signals. Make it in the process that
 * uses it, after `fork(2)` and daemonising. `opts` may be NULL. On success `*out` is the engine, to be destroyed with
 * `blkm_engine_destroy`; else it is NULL.
 *
 * Returns 0, or -errno: `-EINVAL` for an option that makes no sense, `-ENOMEM`, `-EMFILE`, `-EAGAIN` when no thread can be
 * started, and what `blkm_probe` says where io_uring is missing or forbidden. Threads: any. Since 0.1.
 */
int blkm_engine_create(const struct blkm_engine_opts *opts, struct blkm_engine **out);

/**
 * Ends an engine and sets `*engine` to NULL. NULL, and a pointer to NULL, are allowed. Jobs that are not over are cancelled, one
 * that is pending and not finalized too, unless their switch-over is decided (`blkm_job_cancel`; `BLKM_EVENT_PENDING` says what to
 * write down before); their handles stay good, and their events can no longer be taken. It joins the workers: it returns at once,
 * or within about a second while requests hang.
 *
 * Threads: any but the engine's, while no other call uses the engine. Since 0.1.
 */
void blkm_engine_destroy(struct blkm_engine **engine);

/**
 * How many workers an engine has.
 *
 * Returns their number, or -errno. Threads: any. Since 0.1.
 */
int blkm_engine_get_workers(struct blkm_engine *engine);

/**
 * A descriptor that is readable while there are events of any of the engine's jobs to take. Wait for it, level-triggered, and call
 * `blkm_engine_next_event` until it returns 0; never read from it. It belongs to the engine.
 *
 * Returns the descriptor, or -errno. Threads: any. Since 0.1.
 */
int blkm_engine_get_event_fd(struct blkm_engine *engine);

/**
 * Takes the next event of the engine's jobs, filled in up to `event->struct_size`, which the caller has set. Never blocks. A job's
 * own events come in their order; those of different jobs in any (`time_ns` tells). Events of a job whose handle was closed are
 * gone.
 *
 * Returns 1 if there was one, 0 if not, or -errno: `-EINVAL` for NULL or a size that is too small. Threads: any; each event goes
 * to one caller. Since 0.1.
 */
int blkm_engine_next_event(struct blkm_engine *engine, struct blkm_event *event);

#ifdef __cplusplus
}
#endif
#endif /* BLKMIRROR_H */
