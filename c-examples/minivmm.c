/*
 * The heart of a hypervisor's block layer: vCPU threads that write to the guest's disk from guest memory, and a main loop that mirrors the
 * disk meanwhile and moves the guest over.
 *
 *     cc -pthread minivmm.c $(pkg-config --cflags --libs blkmirror) -o minivmm
 *     ./minivmm DISK TARGET RECORD    both disks are overwritten; the file RECORD says which of them is the guest's
 *
 * Each vCPU has a queue, which is its thread's alone: it submits, waits for the completion descriptor and takes the completions. None of
 * them hears of the mirror. Afterwards what the guest wrote last is looked for on the target.
 */
#define _GNU_SOURCE 1
#include <blkmirror.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

enum { VCPUS = 2, SLOTS = 8, BLOCK = 4096, STRIDE = VCPUS * SLOTS };

/* A request of the guest's and its page of guest memory. Each has blocks of its own, so no two requests meet. */
struct slot {
    uint64_t first, block, *page;
};

struct vcpu {
    pthread_t thread;
    blkm_queue *queue;
    struct slot slots[SLOTS];
    uint64_t random;
};

static struct vcpu vcpus[VCPUS];
static uint64_t *versions, blocks; /* Which version the guest was last told is on its disk, block by block. */
static atomic_bool stopping;

/* Ends the program unless all is well; a hypervisor would tell its user, and go on. */
static void must(bool good, const char *why)
{
    if (good)
        return;
    fprintf(stderr, "minivmm: %s\n", why ? why : *blkm_error_msg() ? blkm_error_msg() : strerror(errno));
    exit(1);
}

/* What a version of a block looks like. */
static void fill(uint64_t *page, uint64_t block, uint64_t version)
{
    for (int i = 0; i < BLOCK / 8; i++)
        page[i] = i % 2 ? version : block;
}

/* Writes a new version of one of the slot's blocks. */
static void send(struct vcpu *vcpu, struct slot *slot)
{
    vcpu->random = vcpu->random * 6364136223846793005u + 1442695040888963407u;
    slot->block = slot->first + (vcpu->random >> 33) % (blocks / STRIDE) * STRIDE;
    fill(slot->page, slot->block, versions[slot->block] + 1);
    blkm_queue_write(vcpu->queue, slot->block * BLOCK, slot->page, BLOCK, slot, 0);
}

/* An epoll loop that waits for one descriptor; a hypervisor has one that waits for many. */
static int loop_for(int fd)
{
    struct epoll_event ready = { .events = EPOLLIN };
    int loop = epoll_create1(EPOLL_CLOEXEC);

    must(fd >= 0 && loop >= 0 && epoll_ctl(loop, EPOLL_CTL_ADD, fd, &ready) == 0, NULL);
    return loop;
}

static void *run_vcpu(void *opaque)
{
    struct vcpu *vcpu = opaque;
    blkm_completion done[SLOTS];
    struct epoll_event ready;
    int loop = loop_for(blkm_queue_get_completion_fd(vcpu->queue)), under_way = SLOTS, got;

    for (int i = 0; i < SLOTS; i++)
        send(vcpu, &vcpu->slots[i]);
    while (under_way > 0) {
        must(blkm_queue_submit(vcpu->queue) == 0, NULL);
        epoll_wait(loop, &ready, 1, -1);
        must((got = blkm_queue_process(vcpu->queue, done, 0, SLOTS, 0)) >= 0, NULL);
        for (int i = 0; i < got; i++) {
            struct slot *slot = done[i].user_data;
            must(done[i].ret == 0, done[i].error_msg);
            versions[slot->block]++;
            if (atomic_load(&stopping))
                under_way--;
            else
                send(vcpu, slot);
        }
    }
    blkm_queue_destroy(&vcpu->queue); /* On its own thread, with nothing under way: it does not wait. */
    close(loop);
    return NULL;
}

/* Writes down which disk is the guest's. After a crash the file has the old name or the new one, never half of it. */
static bool record(const char *file, const char *disk)
{
    char new[4096];
    int fd, good;
    snprintf(new, sizeof new, "%s.new", file);
    fd = open(new, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    good = fd >= 0 && dprintf(fd, "%s\n", disk) > 0 && fsync(fd) == 0 && rename(new, file) == 0 && syncfs(fd) == 0;
    close(fd);
    return good;
}

/* The main loop while a job runs, until it is over. It alone ends the job, so record and verdict need no lock around both. */
static void follow(blkm_engine *engine, blkm_job *job, char **argv)
{
    blkm_event event = { .struct_size = sizeof event };
    struct epoll_event ready;
    int loop = loop_for(blkm_engine_get_event_fd(engine));

    while (event.type != BLKM_EVENT_CONCLUDED) {
        int ret = 0;
        if (blkm_engine_next_event(engine, &event) != 1) {
            epoll_wait(loop, &ready, 1, -1);
            continue;
        }
        fprintf(stderr, "minivmm: %s\n", event.msg);
        if (event.type == BLKM_EVENT_READY)
            ret = blkm_job_complete(job, BLKM_COMPLETE_PIVOT);
        else if (event.type == BLKM_EVENT_PENDING) /* Both disks are equal, and the guest's requests are held: now. */
            ret = !(event.flags & BLKM_EVENT_F_PIVOTS) || record(argv[3], argv[2]) ? blkm_job_finalize(job) :
                  (record(argv[3], argv[1]), blkm_job_cancel(job, true));
        if (ret < 0) /* Decided otherwise before: the guest goes on, on its old disk. At once, or a crash would lose its writes. */
            record(argv[3], argv[1]), fprintf(stderr, "minivmm: %s\n", blkm_error_msg());
    }
    close(loop);
}

/* Looks on the target for what the guest wrote last. */
static void verify(const char *target, void *page)
{
    uint64_t expected[BLOCK / 8], writes = 0;
    int fd = open(target, O_RDONLY | O_DIRECT | O_CLOEXEC);

    for (uint64_t i = 0; i < blocks; writes += versions[i++]) {
        fill(expected, i, versions[i]);
        if (versions[i] > 0)
            must(pread(fd, page, BLOCK, (off_t)(i * BLOCK)) == BLOCK && memcmp(page, expected, BLOCK) == 0, "a write was lost");
    }
    close(fd);
    printf("all of %" PRIu64 " guest writes are on %s\n", writes, target);
}

int main(int argc, char **argv)
{
    blkm_mirror_opts opts = { .struct_size = sizeof opts, .flags = BLKM_MIRROR_F_MANUAL_FINALIZE };
    blkm_latencies before = { .struct_size = sizeof before }, during = { .struct_size = sizeof during };
    blkm_drive_opts blocks_of = { .struct_size = sizeof blocks_of, .align_bytes = BLOCK }; /* So it may move to disks with such blocks. */
    blkm_drive_info info = { .struct_size = sizeof info };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    blkm_device *disk, *target;
    blkm_engine *engine;
    blkm_drive *drive;
    blkm_job *job;
    uint64_t *ram = mmap(NULL, STRIDE * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    must(argc == 4 && ram != MAP_FAILED, "usage: minivmm DISK TARGET RECORD");
    must(!blkm_device_open(argv[1], BLKM_ROLE_DISK, NULL, &disk) && !blkm_drive_create(disk, &blocks_of, &drive) &&
         !blkm_drive_get_info(drive, &info) && record(argv[3], argv[1]), NULL);
    blocks = info.size_bytes / BLOCK;
    must(blocks >= STRIDE && (versions = calloc(blocks, sizeof *versions)), "the disk is too small");
    /* Requests in registered memory are cheaper. It stays mapped as long as the drive and its queues. */
    must(!blkm_mem_region_map(drive, ram, STRIDE * BLOCK, 0), NULL);
    for (int v = 0; v < VCPUS; v++) {
        for (int s = 0; s < SLOTS; s++)
            vcpus[v].slots[s].first = v * SLOTS + s, vcpus[v].slots[s].page = ram + (v * SLOTS + s) * BLOCK / 8;
        must(!blkm_queue_create(drive, NULL, &vcpus[v].queue), NULL);
        must(!pthread_create(&vcpus[v].thread, NULL, run_vcpu, &vcpus[v]), "no thread");
    }
    must(!blkm_engine_create(NULL, &engine) && !blkm_device_open(argv[2], BLKM_ROLE_TARGET, NULL, &target) &&
         !blkm_mirror_check(engine, drive, target, &opts, true) && !blkm_mirror_start(engine, drive, target, &opts, &job), NULL);
    follow(engine, job, argv);
    must(!blkm_job_get_outcome(job, &outcome) && !blkm_job_get_latencies(job, &before, &during), NULL);
    if (!(outcome.flags & BLKM_OUTCOME_PIVOTED)) { /* Only the outcome says which disk is the guest's, whatever was asked for. */
        record(argv[3], argv[1]);
        must(false, *outcome.error_msg ? outcome.error_msg : "the target is a copy, and the guest stays where it is");
    }
    usleep(100000); /* The guest goes on, on its new disk. */
    atomic_store(&stopping, true);
    for (int v = 0; v < VCPUS; v++)
        pthread_join(vcpus[v].thread, NULL);
    verify(argv[2], ram);
    printf("held for %.1f ms; p99 %.2f ms before, %.2f ms during the job\n", (double)outcome.pause_ns / 1e6,
           (double)before.p99_ns / 1e6, (double)during.p99_ns / 1e6);
}
