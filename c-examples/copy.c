/*
 * Copies a block device or an image to another one, with progress.
 *
 *     cc copy.c $(pkg-config --cflags --libs blkmirror) -o copy
 *     ./copy SOURCE TARGET        TARGET is overwritten; a file that is missing is created
 *
 * Nobody writes to SOURCE meanwhile: for a disk in use see minivmm.c.
 */
#include <blkmirror.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Says what failed; the library has the words. */
static int failed(void)
{
    fprintf(stderr, "copy: %s\n", blkm_error_msg());
    return 1;
}

/* The target, created with the source's size if there is none. */
static int open_target(const char *path, blkm_device *source, blkm_device **target)
{
    blkm_device_info info = { .struct_size = sizeof info };

    if (access(path, F_OK) == 0)
        return blkm_device_open(path, BLKM_ROLE_TARGET, NULL, target);
    if (blkm_device_get_info(source, &info) < 0)
        return -1;
    return blkm_device_create(path, info.size_bytes, target);
}

static void show(blkm_job *job)
{
    blkm_job_info info = { .struct_size = sizeof info };

    if (blkm_job_query(job, &info) == 0)
        fprintf(stderr, "\r%3" PRIu64 " %%  %6" PRIu64 " MiB/s ",
                info.disk_bytes ? info.done_bytes * 100 / info.disk_bytes : 100,
                info.copy_rate_bytes_per_s >> 20);
}

/* Waits for the end of the job, and tells how it ended. */
static int finish(blkm_job *job)
{
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    int over;

    while ((over = blkm_job_wait(job, 200000000)) == 0)
        show(job);
    if (over < 0 || blkm_job_get_outcome(job, &outcome) < 0)
        return failed();
    if (outcome.end != BLKM_END_COMPLETED) {
        fprintf(stderr, "\ncopy: %s\n", outcome.error_msg);
        return 1;
    }
    fprintf(stderr, "\r%" PRIu64 " MiB of data, %" PRIu64 " MiB of holes, %.2f s\n", outcome.copied_bytes >> 20,
            (outcome.zeroed_bytes + outcome.skipped_bytes) >> 20, (double)outcome.elapsed_ns / 1e9);
    return 0;
}

int main(int argc, char **argv)
{
    blkm_device *source = NULL, *target = NULL;
    blkm_engine *engine = NULL;
    blkm_job *job = NULL;
    int code;

    if (argc != 3) {
        fprintf(stderr, "usage: %s SOURCE TARGET\n", argv[0]);
        return 2;
    }
    if (blkm_device_open(argv[1], BLKM_ROLE_SOURCE, NULL, &source) < 0 ||
        open_target(argv[2], source, &target) < 0 ||
        blkm_engine_create(NULL, &engine) < 0 ||
        blkm_copy_start(engine, source, target, NULL, &job) < 0)
        code = failed();
    else
        code = finish(job);
    /* Each accepts NULL, and they may be closed in any order. */
    blkm_job_close(&job);
    blkm_engine_destroy(&engine);
    blkm_device_close(&target);
    blkm_device_close(&source);
    return code;
}
