/*
 * Keeps a backup of a disk in use up to date: one full copy, then only what the guest has written since, as often as you like.
 *
 *     cc -pthread incremental.c $(pkg-config --cflags --libs blkmirror) -o incremental
 *     ./incremental DISK BACKUP ROUNDS     both are overwritten; a BACKUP that is missing is created
 *
 * A bitmap says what was written since the last round. Each round puts a new one in its place before it copies by the old one, so there is
 * no instant in which nobody records. When a round fails, what it has not copied goes into the new bitmap, and the next one sees to it.
 */
#define _GNU_SOURCE 1
#include <blkmirror.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BLOCK = 4096 };

static blkm_drive *drive;
static uint64_t size_bytes;
static atomic_bool stopping;

static void must(bool good)
{
    if (!good) {
        fprintf(stderr, "incremental: %s\n", blkm_error_msg());
        exit(1);
    }
}

/* The guest: writes to the first quarter of the disk, and knows nothing of backups. */
static void *run_guest(void *opaque)
{
    uint64_t blocks = size_bytes / BLOCK / 4 + 1, random = 1, *page = blkm_blockalign(drive, BLOCK);
    blkm_queue *queue = NULL;
    blkm_completion done;

    (void)opaque;
    must(page && blkm_queue_create(drive, NULL, &queue) == 0);
    while (!atomic_load(&stopping)) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        for (int i = 0; i < BLOCK / 8; i++)
            page[i] = random;
        blkm_queue_write(queue, (random >> 33) % blocks * BLOCK, page, BLOCK, NULL, 0);
        must(blkm_queue_process(queue, &done, 1, 1, -1) == 1);
        if (done.ret < 0) {
            fprintf(stderr, "incremental: %s\n", done.error_msg);
            exit(1);
        }
        usleep(1000);
    }
    blkm_queue_destroy(&queue);
    blkm_vfree(page);
    return NULL;
}

/* A bitmap that records from now on. */
static blkm_bitmap *new_bitmap(unsigned round)
{
    blkm_bitmap *bitmap = NULL;
    blkm_bitmap_opts opts = { .struct_size = sizeof opts };
    char name[32];

    snprintf(name, sizeof name, "backup-%u", round);
    opts.name = name;
    must(blkm_bitmap_create(drive, &opts, &bitmap) == 0);
    return bitmap;
}

static int open_backup(const char *path, blkm_device **backup)
{
    int ret = blkm_device_open(path, BLKM_ROLE_TARGET, NULL, backup);

    return ret == -ENOENT ? blkm_device_create(path, size_bytes, backup) : ret;
}

/* Brings the backup to where the disk is now. With a bitmap only what is dirty in it is copied; without, everything. */
static bool back_up(blkm_engine *engine, const char *path, blkm_bitmap *bitmap)
{
    blkm_mirror_opts opts = {
        .struct_size = sizeof opts,
        .flags = BLKM_MIRROR_F_COMPLETE, /* Ends by itself: the backup is the disk as of that moment, and the drive stays. */
        .sync = bitmap ? BLKM_SYNC_BITMAP : BLKM_SYNC_FULL,
        .bitmap = bitmap,
        .max_pause_ns = 1000000000, /* A backup may hold the guest that long at its end, and a slow flush of it must fit in. */
    };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    blkm_device *backup = NULL;
    blkm_job *job = NULL;
    bool good = open_backup(path, &backup) == 0 && blkm_mirror_start(engine, drive, backup, &opts, &job) == 0 &&
                blkm_job_wait(job, -1) == 1 && blkm_job_get_outcome(job, &outcome) == 0;

    if (!good)
        fprintf(stderr, "incremental: %s\n", blkm_error_msg());
    else if (outcome.end != BLKM_END_COMPLETED)
        fprintf(stderr, "incremental: %s\n", outcome.error_msg);
    else
        printf("%s: %" PRIu64 " KiB copied in %.2f s\n", bitmap ? "increment" : "full copy", outcome.copied_bytes >> 10,
               (double)outcome.elapsed_ns / 1e9);
    blkm_job_close(&job);
    blkm_device_close(&backup);
    return good && outcome.end == BLKM_END_COMPLETED;
}

/* How much there is to copy, and where it begins: the areas one after the other, as a program would that copies by itself. */
static void tell(blkm_bitmap *bitmap, unsigned round)
{
    blkm_bitmap_info info = { .struct_size = sizeof info };
    uint64_t at = 0, len = 0, areas = 0;
    int found;

    while ((found = blkm_bitmap_next_dirty_area(bitmap, at, UINT64_MAX, UINT64_MAX, &at, &len)) == 1) {
        areas++;
        at += len;
    }
    must(found == 0 && blkm_bitmap_query(bitmap, &info) == 0);
    printf("round %u: %" PRIu64 " KiB in %" PRIu64 " areas of %s\n", round, info.dirty_bytes >> 10, areas, info.name);
}

/* One round. Gives the bitmap for the next. */
static blkm_bitmap *rotate(blkm_engine *engine, const char *path, blkm_bitmap *old, unsigned round)
{
    blkm_bitmap *new = new_bitmap(round); /* First, or what is written in between would be in none. */

    must(blkm_bitmap_disable(old) == 0);
    tell(old, round);
    /* What the guest writes while the job runs is copied by it, too, and is in the new bitmap all the same: it may be copied twice. */
    if (!back_up(engine, path, old))
        must(blkm_bitmap_merge(new, &old, 1) == 0);
    blkm_bitmap_close(&old);
    return new;
}

int main(int argc, char **argv)
{
    blkm_drive_info info = { .struct_size = sizeof info };
    blkm_device *disk = NULL;
    blkm_engine *engine = NULL;
    blkm_bitmap *bitmap;
    pthread_t guest;
    unsigned rounds = argc == 4 ? (unsigned)atoi(argv[3]) : 0;

    if (rounds == 0) {
        fprintf(stderr, "usage: %s DISK BACKUP ROUNDS\n", argv[0]);
        return 2;
    }
    must(blkm_device_open(argv[1], BLKM_ROLE_DISK, NULL, &disk) == 0 && blkm_drive_create(disk, NULL, &drive) == 0);
    must(blkm_drive_get_info(drive, &info) == 0 && blkm_engine_create(NULL, &engine) == 0);
    size_bytes = info.size_bytes;
    if (pthread_create(&guest, NULL, run_guest, NULL) != 0)
        return 1;

    bitmap = new_bitmap(0);
    if (!back_up(engine, argv[2], NULL))
        return 1;
    for (unsigned round = 1; round < rounds; round++) {
        usleep(100000);
        bitmap = rotate(engine, argv[2], bitmap, round);
    }
    /* The last round is of a disk at rest, so the two are equal. */
    atomic_store(&stopping, true);
    pthread_join(guest, NULL);
    bitmap = rotate(engine, argv[2], bitmap, rounds);
    tell(bitmap, rounds + 1);

    blkm_bitmap_close(&bitmap);
    blkm_engine_destroy(&engine);
    blkm_drive_close(&drive);
    blkm_device_close(&disk);
    return 0;
}
