/*
 * The reader of benches/queue.rs through C: the same arguments, the same line of JSON. benches/src/queued.rs compiles and runs it.
 */
#include <blkmirror.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define BLOCK 4096
#define DEPTH 64
#define WARM_UP_NS 200000000ull

static uint64_t place = 0x123456789abcdef1;
static uint64_t blocks;

/* Places to read, the same on every run. */
static uint64_t next_place(void)
{
    place ^= place << 13;
    place ^= place >> 7;
    place ^= place << 17;
    return place % blocks * BLOCK;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* CPU time of this process so far, with that of the kernel's threads for its rings. */
static double cpu_s(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void die(const char *what)
{
    fprintf(stderr, "queue.c: %s: %s\n", what, blkm_error_msg());
    exit(1);
}

/* Reads until then; how many. */
static uint64_t read_until(blkm_queue *queue, int lot, uint64_t end_ns)
{
    blkm_completion done[DEPTH];
    uint64_t count = 0;

    while (now_ns() < end_ns) {
        int taken = blkm_queue_process(queue, done, lot, DEPTH, -1);

        if (taken < 0)
            die("process");
        for (int i = 0; i < taken; i++) {
            if (done[i].ret < 0)
                die(done[i].error_msg);
            blkm_queue_read(queue, next_place(), done[i].user_data, BLOCK, done[i].user_data, 0);
        }
        count += (uint64_t)taken;
    }
    return count;
}

int main(int argc, char **argv)
{
    const char *disk = NULL;
    uint64_t seconds = 3;
    int lot = 16, eventfd = 0, unmapped = 0;
    blkm_device *device;
    blkm_drive *drive;
    blkm_queue *queue;
    blkm_queue_opts opts;
    blkm_queue_info info = { .struct_size = sizeof info };
    blkm_drive_info shape = { .struct_size = sizeof shape };
    char *memory;

    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "--seconds=", 10))
            seconds = strtoull(argv[i] + 10, NULL, 10);
        else if (!strncmp(argv[i], "--lot=", 6))
            lot = atoi(argv[i] + 6);
        else if (!strcmp(argv[i], "--eventfd"))
            eventfd = 1;
        else if (!strcmp(argv[i], "--unmapped"))
            unmapped = 1;
        else if (!strcmp(argv[i], "--read") && i + 1 < argc)
            disk = argv[++i];
    }
    blkm_queue_opts_init(&opts, sizeof opts);
    if (!eventfd)
        opts.flags = BLKM_QUEUE_F_NO_EVENTFD;
    if (blkm_device_open(disk, BLKM_ROLE_SOURCE, NULL, &device) < 0 || blkm_drive_create(device, NULL, &drive) < 0 ||
        blkm_drive_get_info(drive, &shape) < 0 || blkm_queue_create(drive, &opts, &queue) < 0)
        die("open");
    blocks = shape.size_bytes / BLOCK;
    memory = blkm_blockalign(drive, DEPTH * BLOCK);
    if (!memory)
        die("memory");
    memset(memory, 0, DEPTH * BLOCK);
    if (!unmapped && blkm_mem_region_map(drive, memory, DEPTH * BLOCK, 0) < 0)
        die("map");
    for (int i = 0; i < DEPTH; i++)
        blkm_queue_read(queue, next_place(), memory + i * BLOCK, BLOCK, memory + i * BLOCK, 0);
    read_until(queue, lot, now_ns() + WARM_UP_NS);

    uint64_t begin_ns = now_ns();
    double cpu_before_s = cpu_s();
    uint64_t reads = read_until(queue, lot, begin_ns + seconds * 1000000000u);
    double cpu_taken_s = cpu_s() - cpu_before_s, taken_s = (double)(now_ns() - begin_ns) / 1e9;

    if (blkm_queue_get_info(queue, &info) < 0 || (info.registered_requests > 0) == (unmapped != 0))
        die("registered memory");
    printf("{\"reads\":%" PRIu64 ",\"seconds\":%.9f,\"cpu_s\":%.6f}\n", reads, taken_s, cpu_taken_s);
    blkm_queue_destroy(&queue);
    if (!unmapped)
        blkm_mem_region_unmap(drive, memory, DEPTH * BLOCK);
    blkm_drive_close(&drive);
    blkm_device_close(&device);
    blkm_vfree(memory);
    return 0;
}
