/* Queues: how they end, what they wait for before that, and what becomes of requests when a ring breaks. */
#include "kit.h"

#include <dirent.h>

static struct scene scene;
static char *memory;
static blkm_queue *queue;

static void begin(void)
{
    scene = kit_scene(MIB);
    memory = blkm_blockalign(scene.drive, 64 * KIB);
    CHECK(memory != NULL);
    memset(memory, 0xa5, 64 * KIB);
    queue = kit_queue(scene.drive, 0, 0);
}

static void end(void)
{
    blkm_queue_destroy(&queue);
    blkm_vfree(memory);
    kit_end(&scene);
}

/* A job that waits for the host's word to switch over: the gate is closed until `switch_over`. */
static blkm_job *pending_job(void)
{
    blkm_mirror_opts opts = kit_opts(BLKM_MIRROR_F_MANUAL_FINALIZE);
    blkm_job *job = kit_mirror(&scene, &opts);

    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    kit_until(job, BLKM_JOB_PENDING);
    return job;
}

static void switch_over(blkm_job *job)
{
    OK(blkm_job_finalize(job));
    CHECK(kit_outcome(job).end == BLKM_END_COMPLETED);
    blkm_job_close(&job);
}

static blkm_queue_info info(void)
{
    blkm_queue_info there = { .struct_size = sizeof there };

    OK(blkm_queue_get_info(queue, &there));
    return there;
}

static void *closes_it_elsewhere(void *unused)
{
    (void)unused;
    REFUSED(EPERM, "thread", blkm_queue_close(&queue, 0));
    CHECK(queue != NULL);
    return NULL;
}

static void *closes_it_unused(void *unused)
{
    (void)unused;
    OK(blkm_queue_close(&queue, 0));
    CHECK(queue == NULL);
    return NULL;
}

/* Otherwise a host that only wants its queue to end in peace would lose completions, and memory that is the kernel's. */
static void a_queue_closes_only_when_nothing_is_lost(void)
{
    blkm_job *job;

    OK(blkm_queue_close(NULL, 0));
    begin();
    kit_on_a_thread(closes_it_unused, NULL);
    OK(blkm_queue_close(&queue, 0));
    queue = kit_queue(scene.drive, 0, 0);
    blkm_queue_read(queue, 0, memory, 512, NULL, 0);
    kit_done(queue);
    kit_on_a_thread(closes_it_elsewhere, NULL);
    job = pending_job();
    blkm_queue_write(queue, 0, memory, 512, NULL, 0);
    REFUSED(EBUSY, "1 requests are under way, 1 of them", blkm_queue_close(&queue, 0));
    REFUSED(EBUSY, "under way", blkm_queue_close(&queue, 20000000));
    CHECK(info().in_flight == 1 && info().held == 1 && info().ready == 0);
    switch_over(job);
    REFUSED(EBUSY, "1 completions were not taken", blkm_queue_close(&queue, LONG_NS));
    CHECK(kit_readable(blkm_queue_get_completion_fd(queue)));
    REFUSED(EBUSY, "not taken", blkm_queue_close(&queue, -1));
    CHECK(info().in_flight == 0 && info().held == 0 && info().ready == 1);
    kit_done(queue);
    blkm_queue_read(queue, 1, memory, 512, NULL, 0);
    REFUSED(EBUSY, "not taken", blkm_queue_close(&queue, -1));
    kit_fails(queue, EINVAL, "512");
    OK(blkm_queue_close(&queue, -1));
    CHECK(queue == NULL);
    end();
}

static void *is_refused(void *mark)
{
    kit_sleep_ms(50);
    blkm_queue_read(queue, 0, memory, 512, mark, 0);
    return NULL;
}

/* Otherwise a request of a wrong thread would complete only when another one does, which may be never. */
static void a_request_that_is_refused_elsewhere_ends_a_sleep_for_ever(void)
{
    blkm_completion completions[4];
    pthread_t thread;
    blkm_job *job;
    int mark, i;

    begin();
    job = pending_job();
    blkm_queue_read(queue, 4096, memory, 512, NULL, 0);
    alarm(60);
    for (i = 0; i < 2; i++) {
        CHECK(pthread_create(&thread, NULL, is_refused, &mark) == 0);
        GIVES(1, blkm_queue_process(queue, completions, 1, 4, i == 0 ? -1 : LONG_NS));
        CHECK(completions[0].user_data == &mark && completions[0].ret == -EPERM && completions[0].flags == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    alarm(0);
    CHECK(info().in_flight == 1);
    switch_over(job);
    kit_done(queue);
    end();
}

/* Which descriptors are rings. */
static void find_rings(bool is_ring[256])
{
    DIR *all = opendir("/proc/self/fd");
    struct dirent *entry;

    memset(is_ring, 0, 256 * sizeof *is_ring);
    CHECK(all != NULL);
    while ((entry = readdir(all)) != NULL) {
        char to[64] = "";

        if (readlinkat(dirfd(all), entry->d_name, to, sizeof to - 1) > 0 && strcmp(to, "anon_inode:[io_uring]") == 0)
            is_ring[atoi(entry->d_name) % 256] = true;
    }
    closedir(all);
}

/* Uses the queue for the first time, and gives the descriptor of its ring. */
static int make_ring(void)
{
    bool before[256], after[256];
    int fd = 0;

    find_rings(before);
    blkm_queue_read(queue, 0, memory, 512, NULL, 0);
    kit_done(queue);
    find_rings(after);
    while (fd < 256 && before[fd] == after[fd])
        fd++;
    CHECK(fd < 256);
    return fd;
}

/* Otherwise a host would give memory to somebody else that the kernel still reads from or writes to. */
static void completions_of_a_broken_ring_say_that_their_memory_is_in_use(void)
{
    blkm_completion completions[4];
    int ring, saved, null, read, flush;

    begin();
    OK(blkm_mem_region_map(scene.drive, memory, 64 * KIB, 0));
    ring = make_ring();
    saved = dup(ring), null = open("/dev/null", O_RDONLY);
    CHECK(saved >= 0 && null >= 0 && dup2(null, ring) == ring);
    blkm_queue_read(queue, 0, memory, 4096, &read, 0);
    blkm_queue_flush(queue, &flush, 0);
    REFUSED(EOPNOTSUPP, "", blkm_queue_submit(queue));
    CHECK(dup2(saved, ring) == ring && close(saved) == 0 && close(null) == 0);
    /* It could run again, but what was queued there is over. */
    REFUSED(EOPNOTSUPP, "its ring broke", blkm_queue_submit(queue));
    GIVES(2, blkm_queue_poll(queue));
    GIVES(2, blkm_queue_process(queue, completions, 2, 4, -1));
    for (int i = 0; i < 2; i++) {
        bool has_memory = completions[i].user_data == &read;

        CHECK(completions[i].ret == -EOPNOTSUPP && (has_memory || completions[i].user_data == &flush));
        CHECK(completions[i].flags == (has_memory ? BLKM_COMPLETION_F_MEMORY_IN_USE : 0));
    }
    REFUSED(EOPNOTSUPP, "its ring broke", blkm_queue_process(queue, completions, 1, 4, -1));
    REFUSED(EOPNOTSUPP, "its ring broke", blkm_queue_close(&queue, -1));
    REFUSED(EBUSY, "", blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    blkm_queue_destroy(&queue);
    /* The kernel has let go, and here the host hears of it. */
    OK(blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    CHECK(memory[0] != (char)0xa5 && memory[4095] == (char)0xa5);
    end();
}

CHECKS(HOLDS(a_queue_closes_only_when_nothing_is_lost), HOLDS(a_request_that_is_refused_elsewhere_ends_a_sleep_for_ever),
       HOLDS(completions_of_a_broken_ring_say_that_their_memory_is_in_use))
