/*
 * A host that carries out guest I/O itself, with threads and pwrite(2), and only tells the library of it.
 *
 *     cc -pthread tracker.c $(pkg-config --cflags --libs blkmirror) -o tracker
 *     ./tracker DISK TARGET       both are overwritten; DISK is mirrored to TARGET, and the guest moves over
 *
 * What it takes: blkm_tracker_begin before each request and blkm_tracker_end after it, to wait while requests are held, and to send each
 * request to the device that its token names. So does a vhost-user back end, or a host with formats of its own above the disk.
 */
#define _GNU_SOURCE 1
#include <blkmirror.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS = 2, BLOCK = 4096, FLUSH_EVERY = 100 };

static blkm_drive *drive;
static blkm_tracker *tracker; /* One will do for all threads. */
static uint64_t blocks;
static atomic_bool stopping;

struct worker {
    pthread_t thread;
    uint64_t index, writes, held;
    /* The disk as this thread has it open, and which device of the drive's that is. */
    int fd;
    uint64_t device_number;
};

static void must(bool good)
{
    if (!good) {
        fprintf(stderr, "tracker: %s\n", blkm_error_msg());
        exit(1);
    }
}

/* Opens the disk of a token, unless it is open. While the token is under way the drive cannot move, so its device is that one. */
static int follow(struct worker *worker, const blkm_token *token)
{
    if (worker->fd >= 0 && worker->device_number == token->device_number)
        return 0;
    if (worker->fd >= 0)
        close(worker->fd);
    worker->device_number = token->device_number;
    worker->fd = blkm_drive_dup_fd(drive);
    return worker->fd < 0 ? worker->fd : 0;
}

/* One guest request from beginning to end: 0, or -errno. A page that is NULL means a flush. */
static int request(struct worker *worker, uint64_t offset, const void *page)
{
    blkm_token token;
    uint64_t len = page ? BLOCK : 0;
    int ret;

    while ((ret = blkm_tracker_begin(tracker, offset, len, page ? BLKM_IO_WRITE : BLKM_IO_FLUSH, &token)) == BLKM_HELD) {
        worker->held++;
        must(blkm_tracker_wait(tracker, -1) >= 0); /* A host with an event loop polls blkm_tracker_get_open_fd instead. */
    }
    if (ret < 0)
        return ret;
    ret = follow(worker, &token);
    if (ret == 0 && page) {
        ssize_t done = pwrite(worker->fd, page, BLOCK, (off_t)offset);
        ret = done == BLOCK ? 0 : done < 0 ? -errno : -EIO;
    } else if (ret == 0) {
        ret = fdatasync(worker->fd) == 0 ? 0 : -errno;
    }
    /* Whatever came of it, and before the guest hears of it: a write that failed may have left anything. */
    must(blkm_tracker_end(tracker, &token, ret) == 0);
    return ret;
}

/* The guest: writes 1, 2, 3, ... to its share of the disk, round and round. */
static void *run(void *opaque)
{
    struct worker *worker = opaque;
    uint64_t share = blocks / THREADS, *page = blkm_blockalign(drive, BLOCK);

    must(page != NULL);
    while (!atomic_load(&stopping)) {
        uint64_t number = worker->writes + 1, block = worker->index * share + worker->writes % share;
        for (int i = 0; i < BLOCK / 8; i++)
            page[i] = number;
        must(request(worker, block * BLOCK, page) == 0);
        worker->writes = number;
        if (number % FLUSH_EVERY == 0)
            must(request(worker, 0, NULL) == 0);
    }
    blkm_vfree(page);
    close(worker->fd);
    return NULL;
}

/* Completes the job when it is ready, and waits until it is over. */
static void follow_job(blkm_engine *engine, blkm_job *job)
{
    blkm_event event = { .struct_size = sizeof event };
    struct pollfd events = { .fd = blkm_engine_get_event_fd(engine), .events = POLLIN };

    while (event.type != BLKM_EVENT_CONCLUDED) {
        if (blkm_engine_next_event(engine, &event) != 1) {
            poll(&events, 1, -1);
            continue;
        }
        fprintf(stderr, "tracker: %s\n", event.msg);
        if (event.type == BLKM_EVENT_READY && blkm_job_complete(job, BLKM_COMPLETE_PIVOT) < 0)
            fprintf(stderr, "tracker: %s\n", blkm_error_msg());
    }
}

int main(int argc, char **argv)
{
    /* The blocks that the guest is shown: its disk may move to devices with such blocks, too. */
    blkm_drive_opts opts = { .struct_size = sizeof opts, .align_bytes = BLOCK };
    blkm_drive_info info = { .struct_size = sizeof info };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    struct worker workers[THREADS] = { 0 };
    blkm_device *disk = NULL, *target = NULL;
    blkm_engine *engine = NULL;
    blkm_job *job = NULL;

    if (argc != 3) {
        fprintf(stderr, "usage: %s DISK TARGET\n", argv[0]);
        return 2;
    }
    must(blkm_device_open(argv[1], BLKM_ROLE_DISK, NULL, &disk) == 0);
    must(blkm_drive_create(disk, &opts, &drive) == 0);
    must(blkm_drive_get_info(drive, &info) == 0);
    must(blkm_tracker_create(drive, &tracker) == 0);
    blocks = info.size_bytes / BLOCK;
    if (blocks < THREADS) {
        fprintf(stderr, "tracker: %s is too small\n", argv[1]);
        return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        workers[i].index = (uint64_t)i;
        workers[i].fd = -1;
        if (pthread_create(&workers[i].thread, NULL, run, &workers[i]) != 0)
            return 1;
    }
    must(blkm_engine_create(NULL, &engine) == 0);
    must(blkm_device_open(argv[2], BLKM_ROLE_TARGET, NULL, &target) == 0);
    must(blkm_mirror_start(engine, drive, target, NULL, &job) == 0);
    blkm_device_close(&target); /* The job has it, and later the drive. */
    follow_job(engine, job);
    must(blkm_job_get_outcome(job, &outcome) == 0);
    usleep(100000); /* The guest goes on, wherever its disk is now. */
    atomic_store(&stopping, true);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        printf("thread %d: %" PRIu64 " writes, held %" PRIu64 " times, last on device %" PRIu64 "\n", i, workers[i].writes,
               workers[i].held, workers[i].device_number);
    }
    blkm_job_close(&job);
    blkm_engine_destroy(&engine);
    blkm_tracker_close(&tracker);
    blkm_drive_close(&drive);
    blkm_device_close(&disk);
    if (outcome.end != BLKM_END_COMPLETED) {
        fprintf(stderr, "tracker: %s\n", outcome.error_msg);
        return 1;
    }
    printf("held for %.1f ms\n", (double)outcome.pause_ns / 1e6);
    return 0;
}
