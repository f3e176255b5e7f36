/*
 * Where the calls go in a block driver with an event loop for each thread and coroutines, such as QEMU's. The loop below is a stand-in
 * that a few lines can hold; the functions named glue_* are the driver.
 *
 *     cc qemu_glue.c $(pkg-config --cflags --libs blkmirror) -o qemu_glue
 *     ./qemu_glue DISK TARGET     both are overwritten: some requests, a mirror, a pivot, and a look at what the disk holds then
 */
#include <blkmirror.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* The stand-in for the loops of all threads: what is watched, and what is called when it is readable. */
enum { DISK, JOBS, WATCHED };
static struct { void (*handler)(void *opaque); void *opaque; } handlers[WATCHED];
static struct pollfd fds[WATCHED] = { { .fd = -1 }, { .fd = -1 } };

/* aio_set_fd_handler; a descriptor of -1 is not watched. */
static void loop_watch(int slot, int fd, void (*handler)(void *), void *opaque)
{
    fds[slot] = (struct pollfd){ .fd = fd, .events = POLLIN };
    handlers[slot].handler = handler, handlers[slot].opaque = opaque;
}

static void loop_run_once(void)
{
    poll(fds, WATCHED, -1);
    for (int i = 0; i < WATCHED; i++)
        if (fds[i].fd >= 0 && (fds[i].revents & POLLIN))
            handlers[i].handler(handlers[i].opaque);
}

/* A disk in the host's graph. With several I/O threads there is a queue for each, found by the thread that asks. */
struct disk {
    blkm_drive *drive;
    blkm_queue *queue;
    unsigned in_flight;
};

/* What a coroutine waits for. */
struct request { int ret; bool done; };

/* .bdrv_open: the drive keeps the device, and later the one that it moved to. */
static int glue_open(struct disk *disk, const char *path)
{
    blkm_device *device = NULL;
    int ret = blkm_device_open(path, BLKM_ROLE_DISK, NULL, &device);
    if (ret == 0)
        ret = blkm_drive_create(device, NULL, &disk->drive);
    blkm_device_close(&device);
    return ret; /* error_setg_errno(errp, -ret, "%s", blkm_error_msg()) */
}

/* .bdrv_refresh_limits: what the drive promises to its guest (align_bytes, memory_align_bytes) holds for every device it moves to. */
static int glue_refresh_limits(struct disk *disk, blkm_drive_info *limits)
{
    limits->struct_size = sizeof *limits;
    return blkm_drive_get_info(disk->drive, limits);
}

/* .bdrv_register_buf, for guest memory; before it ram_block_discard_disable(true), because queues pin what is registered. */
static int glue_register_buf(struct disk *disk, void *host, size_t size)
{
    return blkm_mem_region_map(disk->drive, host, size, 0);
}

/* The completion descriptor is readable (io_read), or the loop has seen that by glue_poll (io_poll_ready): wakes the coroutines. One at a
 * time, for a coroutine that drains the disk polls this loop from within, and must find the others. */
static void glue_process(void *opaque)
{
    struct disk *disk = opaque;
    blkm_completion done = { .flags = 0 };
    int got;
    while ((got = blkm_queue_process(disk->queue, &done, 0, 1, 0)) > 0 && !done.flags) {
        *(struct request *)done.user_data = (struct request){ .ret = done.ret, .done = true }; /* aio_co_wake(request->co) */
        disk->in_flight--;
    }
    if (got < 0 || done.flags)
        abort(); /* Its ring broke: the kernel may still write to memory that the guest would use for something else. */
}

/* io_poll: whether there is something to process. Takes nothing. */
static bool glue_poll(void *opaque) { return blkm_queue_poll(((struct disk *)opaque)->queue) > 0; }

/* .bdrv_attach_aio_context: the queue becomes this thread's, and is as deep as its virtqueues together, with some to spare. */
static int glue_attach(struct disk *disk)
{
    const blkm_queue_opts opts = { .struct_size = sizeof opts, .depth = 256 + 64 };
    int ret = blkm_queue_create(disk->drive, &opts, &disk->queue);
    if (ret == 0)
        loop_watch(DISK, blkm_queue_get_completion_fd(disk->queue), glue_process, disk);
    return ret;
}

/* .bdrv_detach_aio_context, in the thread of the context that is left (aio_wait_bh_oneshot), for the queue is that thread's. The disk
 * was drained; only writes to a target that hangs, of a job that is over, may still be under way, and nobody needs them. */
static void glue_detach(struct disk *disk)
{
    loop_watch(DISK, -1, NULL, NULL);
    blkm_queue_close(&disk->queue, 1000000000);
    blkm_queue_destroy(&disk->queue);
}

/* Sends what was queued, at the end of a batch (blk_io_unplug), and waits: qemu_coroutine_yield(). A loop polls before it sleeps. */
static int glue_wait(struct disk *disk, struct request *request)
{
    disk->in_flight++;
    blkm_queue_submit(disk->queue);
    while (!request->done)
        glue_poll(disk) ? glue_process(disk) : loop_run_once();
    return request->ret;
}

/* .bdrv_drain_begin. Requests that a switch-over holds are in flight too: finalize or cancel a job that is pending first. */
static void glue_drain(struct disk *disk)
{
    while (disk->in_flight > 0)
        loop_run_once();
}

/* The driver's requests: the call, then the wait. BDRV_REQ_FUA and BDRV_REQ_MAY_UNMAP become BLKM_REQ_*. */
#define GLUE_REQUEST(name, parameters, ...) \
    static int name parameters              \
    {                                       \
        struct request request = { 0 };     \
        __VA_ARGS__;                        \
        return glue_wait(disk, &request);   \
    }
GLUE_REQUEST(glue_co_preadv, (struct disk *disk, uint64_t offset, const struct iovec *iov, int n),
             blkm_queue_readv(disk->queue, offset, iov, n, &request, 0))
GLUE_REQUEST(glue_co_pwritev, (struct disk *disk, uint64_t offset, const struct iovec *iov, int n, uint32_t flags),
             blkm_queue_writev(disk->queue, offset, iov, n, &request, flags))
GLUE_REQUEST(glue_co_pwrite_zeroes, (struct disk *disk, uint64_t offset, uint64_t len, uint32_t flags),
             blkm_queue_write_zeroes(disk->queue, offset, len, &request, flags))
GLUE_REQUEST(glue_co_pdiscard, (struct disk *disk, uint64_t offset, uint64_t len),
             blkm_queue_discard(disk->queue, offset, len, &request, 0))
GLUE_REQUEST(glue_co_flush, (struct disk *disk), blkm_queue_flush(disk->queue, &request, 0))

struct mirror {
    blkm_engine *engine; /* One for the process, made after it has daemonised. */
    blkm_job *job;
    blkm_outcome outcome;
};

/* The engine's event descriptor is readable, in the main loop: what a monitor is told, and what it would answer. */
static void glue_job_events(void *opaque)
{
    struct mirror *mirror = opaque;
    blkm_event event = { .struct_size = sizeof event };
    while (blkm_engine_next_event(mirror->engine, &event) == 1)
        if (event.type == BLKM_EVENT_STATUS || event.type == BLKM_EVENT_ERROR) /* JOB_STATUS_CHANGE, BLOCK_JOB_ERROR */
            printf("%s\n", event.msg);
        else if (event.type == BLKM_EVENT_READY) /* BLOCK_JOB_READY; the user asks block-job-complete, or block-job-cancel: */
            blkm_job_complete(mirror->job, BLKM_COMPLETE_PIVOT); /* blkm_job_cancel(mirror->job, force) */
        else if (event.type == BLKM_EVENT_PENDING) /* JOB_PENDING; with BLKM_EVENT_F_PIVOTS write down which disk it is first. */
            blkm_job_finalize(mirror->job);
        else if (event.type == BLKM_EVENT_CONCLUDED) /* BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED */
            blkm_job_get_outcome(mirror->job, &mirror->outcome);
}

/* blockdev-mirror. It may block: in a thread of the pool. */
static int glue_mirror_start(struct mirror *mirror, struct disk *disk, blkm_device *target)
{
    blkm_mirror_opts opts = { .struct_size = sizeof opts, .flags = BLKM_MIRROR_F_MANUAL_FINALIZE, .user_data = disk };
    return blkm_mirror_start(mirror->engine, disk->drive, target, &opts, &mirror->job);
}

int main(int argc, char **argv)
{
    static _Alignas(4096) char ram[2][65536];
    struct iovec out = { ram[0], sizeof ram[0] }, in = { ram[1], sizeof ram[1] };
    struct disk disk = { 0 };
    struct mirror mirror = { .outcome = { .struct_size = sizeof mirror.outcome } };
    blkm_drive_info limits;
    blkm_device *target = NULL;
    memset(ram[0], 'g', sizeof ram[0]);
    if (argc != 3 || glue_open(&disk, argv[1]) || glue_refresh_limits(&disk, &limits) || glue_register_buf(&disk, ram, sizeof ram) ||
        glue_attach(&disk) || glue_co_pwritev(&disk, 0, &out, 1, BLKM_REQ_FUA) || glue_co_pdiscard(&disk, 131072, 65536) ||
        glue_co_pwrite_zeroes(&disk, 65536, 65536, BLKM_REQ_MAY_UNMAP) || blkm_engine_create(NULL, &mirror.engine) ||
        blkm_device_open(argv[2], BLKM_ROLE_TARGET, NULL, &target) || glue_mirror_start(&mirror, &disk, target))
        return fprintf(stderr, "qemu_glue: %s\n", blkm_error_msg()), 1;
    loop_watch(JOBS, blkm_engine_get_event_fd(mirror.engine), glue_job_events, &mirror);
    while (mirror.outcome.end == 0)
        loop_run_once();
    if (glue_co_pwritev(&disk, 196608, &out, 1, 0) || glue_co_flush(&disk) || glue_co_preadv(&disk, 0, &in, 1))
        return fprintf(stderr, "qemu_glue: a request failed\n"), 1;
    glue_drain(&disk);
    glue_detach(&disk);
    printf("%s, the disk reads as %s\n", mirror.outcome.flags & BLKM_OUTCOME_PIVOTED ? "moved" : "stayed",
           memcmp(ram[0], ram[1], sizeof ram[0]) == 0 ? "written" : "something else");
    blkm_job_close(&mirror.job);
    blkm_engine_destroy(&mirror.engine);
    blkm_device_close(&target);
    blkm_drive_close(&disk.drive);
}
