/* Queues: every request, refusals, threads, limits, and the completion descriptor. */
#include "kit.h"

static struct scene scene;
static char *memory;

static blkm_queue *begin(uint64_t flags, uint32_t depth)
{
    scene = kit_scene(MIB);
    memory = blkm_blockalign(scene.drive, 64 * KIB);
    CHECK(memory != NULL && (uintptr_t)memory % 4096 == 0);
    memset(memory, 0xa5, 64 * KIB);
    return kit_queue(scene.drive, flags, depth);
}

static void end(blkm_queue *queue)
{
    blkm_queue_destroy(&queue);
    CHECK(queue == NULL);
    blkm_vfree(memory);
    kit_end(&scene);
}

static bool all(const char *at, size_t len, int byte)
{
    size_t i;

    for (i = 0; i < len && at[i] == (char)byte; i++)
        ;
    return i == len;
}

/* What is written is read, in one piece and in several, and zeroes and discards do what they say. */
static void every_kind_of_request_does_what_it_says(void)
{
    blkm_queue *queue = begin(0, 0);
    struct iovec pieces[2] = { { memory + 4096, 512 }, { memory + 12288, 1024 } };
    blkm_queue_info info = { .struct_size = sizeof info };
    int number;

    blkm_queue_write(queue, 8192, memory, 4096, &number, BLKM_REQ_FUA);
    CHECK(kit_take(queue).user_data == &number);
    memset(memory, 0, 4096);
    blkm_queue_read(queue, 8192, memory, 4096, &number, 0);
    kit_done(queue);
    CHECK(all(memory, 4096, 0xa5));
    memset(memory + 4096, 0x11, 512), memset(memory + 12288, 0x22, 1024);
    blkm_queue_writev(queue, 0, pieces, 2, NULL, BLKM_REQ_STABLE_BUFFER);
    kit_done(queue);
    pieces[0].iov_len = 1024, pieces[1].iov_len = 512;
    blkm_queue_readv(queue, 0, pieces, 2, NULL, 0);
    kit_done(queue);
    CHECK(all(memory + 4096, 512, 0x11) && all(memory + 4608, 512, 0x22) && all(memory + 12288, 512, 0x22));
    blkm_queue_readv(queue, 8192, pieces, 1, NULL, 0);
    kit_done(queue);
    CHECK(all(memory + 4096, 1024, 0xa5));
    blkm_queue_write_zeroes(queue, 8192, 4096, NULL, BLKM_REQ_MAY_UNMAP | BLKM_REQ_FUA);
    kit_done(queue);
    blkm_queue_read(queue, 8192, memory, 4096, NULL, 0);
    kit_done(queue);
    CHECK(all(memory, 4096, 0));
    blkm_queue_write_zeroes(queue, 16384, 4096, NULL, BLKM_REQ_NO_FALLBACK | BLKM_REQ_MAY_UNMAP);
    kit_take(queue);
    blkm_queue_discard(queue, 0, 4096, NULL, 0);
    kit_done(queue);
    blkm_queue_flush(queue, &number, 0);
    CHECK(kit_take(queue).user_data == &number);
    OK(blkm_queue_get_info(queue, &info));
    CHECK(info.in_flight == 0 && info.ready == 0 && info.depth == 256 && info.held == 0 && info.register_ret == 0);
    end(queue);
}

/* A request that is not accepted comes back like any other, with a text: a host would wait for ever for one that is lost. */
static void what_is_refused_completes_with_a_text(void)
{
    blkm_queue *queue = begin(0, 0);
    struct iovec piece = { memory, 512 };
    blkm_device *source = NULL;
    blkm_drive *read_only = NULL;
    blkm_queue *reads;

    blkm_queue_read(queue, 1, memory, 512, NULL, 0);
    kit_fails(queue, EINVAL, "512");
    blkm_queue_read(queue, 0, memory, 511, NULL, 0);
    kit_fails(queue, EINVAL, "512");
    blkm_queue_read(queue, 0, memory + 1, 512, NULL, 0);
    kit_fails(queue, EINVAL, "512");
    blkm_queue_read(queue, MIB, memory, 512, NULL, 0);
    kit_fails(queue, EINVAL, "1048576");
    blkm_queue_read(queue, UINT64_MAX - 511, memory, 512, NULL, 0);
    kit_fails(queue, EINVAL, "");
    blkm_queue_read(queue, 0, NULL, 512, NULL, 0);
    kit_fails(queue, EINVAL, "NULL");
    blkm_queue_read(queue, 0, memory, 0, NULL, 0);
    kit_fails(queue, EINVAL, "");
    blkm_queue_read(queue, 0, memory, 512, NULL, BLKM_REQ_FUA);
    kit_fails(queue, EINVAL, "0x1");
    blkm_queue_readv(queue, 0, NULL, 1, NULL, 0);
    kit_fails(queue, EINVAL, "iov");
    blkm_queue_readv(queue, 0, &piece, 0, NULL, 0);
    kit_fails(queue, EINVAL, "iov");
    blkm_queue_readv(queue, 0, &piece, -1, NULL, 1);
    kit_fails(queue, EINVAL, "");
    blkm_queue_write(queue, 0, NULL, 512, NULL, 0);
    kit_fails(queue, EINVAL, "NULL");
    blkm_queue_write(queue, 0, memory, 512, NULL, BLKM_REQ_MAY_UNMAP);
    kit_fails(queue, EINVAL, "0x2");
    blkm_queue_writev(queue, 512, &piece, 1, NULL, 64);
    kit_fails(queue, EINVAL, "0x40");
    blkm_queue_writev(queue, 100, &piece, 1, NULL, 0);
    kit_fails(queue, EINVAL, "512");
    blkm_queue_write_zeroes(queue, 0, 100, NULL, 0);
    kit_fails(queue, EINVAL, "512");
    blkm_queue_write_zeroes(queue, 512, UINT64_MAX - 511, NULL, 0);
    kit_fails(queue, EINVAL, "");
    blkm_queue_write_zeroes(queue, 0, 512, NULL, BLKM_REQ_STABLE_BUFFER);
    kit_fails(queue, EINVAL, "0x8");
    blkm_queue_discard(queue, 2 * MIB, 512, NULL, 0);
    kit_fails(queue, EINVAL, "");
    blkm_queue_discard(queue, 0, 512, NULL, 1);
    kit_fails(queue, EINVAL, "0x1");
    blkm_queue_flush(queue, NULL, 1);
    kit_fails(queue, EINVAL, "0x1");

    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_drive_create(source, NULL, &read_only));
    reads = kit_queue(read_only, 0, 1);
    blkm_queue_write(reads, 0, memory, 512, NULL, 0);
    kit_fails(reads, EACCES, "");
    blkm_queue_read(reads, 0, memory, 512, NULL, 0);
    kit_done(reads);
    blkm_queue_destroy(&reads);
    blkm_drive_close(&read_only);
    blkm_device_close(&source);
    end(queue);
}

/* Otherwise requests would be lost, or memory grow, when a host sends more than it said. */
static void beyond_the_depth_each_request_still_completes_once(void)
{
    blkm_queue *queue = begin(0, 2);
    blkm_completion completions[16];
    unsigned seen = 0;
    int taken, i, again = 0;

    for (i = 0; i < 8; i++)
        blkm_queue_read(queue, 0, memory + i * 4096, 512, (void *)(intptr_t)(i + 1), 0);
    for (taken = 0; taken < 8;) {
        int got = blkm_queue_process(queue, completions, 1, 16, LONG_NS);

        CHECK(got > 0);
        for (i = 0; i < got; i++) {
            unsigned bit = 1u << ((intptr_t)completions[i].user_data - 1);

            CHECK((seen & bit) == 0);
            seen |= bit;
            CHECK(completions[i].ret == 0 || (completions[i].ret == -EAGAIN && completions[i].error_msg != NULL));
            again += completions[i].ret == -EAGAIN;
        }
        taken += got;
    }
    CHECK(seen == 0xff && again == 6);
    GIVES(0, blkm_queue_process(queue, completions, 1, 1, 1000000));
    end(queue);
}

static blkm_queue *foreign;

static void *uses_the_queue_of_another(void *unused)
{
    blkm_completion completion;
    blkm_queue_info info = { .struct_size = sizeof info };

    REFUSED(EPERM, "thread", blkm_queue_submit(foreign));
    REFUSED(EPERM, "thread", blkm_queue_poll(foreign));
    REFUSED(EPERM, "thread", blkm_queue_process(foreign, &completion, 0, 1, 0));
    REFUSED(EPERM, "thread", blkm_queue_get_info(foreign, &info));
    CHECK(blkm_queue_get_completion_fd(foreign) >= 0);
    blkm_queue_read(foreign, 0, memory, 512, unused, 0);
    return NULL;
}

/* A ring is the kernel's for one thread; a host that has it wrong is told, and nothing is lost. */
static void a_wrong_thread_is_refused_and_its_request_completes_on_the_right_one(void)
{
    blkm_queue *queue = begin(0, 0);
    blkm_completion completion;
    int mark;

    foreign = queue;
    GIVES(0, blkm_queue_poll(queue));
    CHECK(!kit_readable(blkm_queue_get_completion_fd(queue)));
    kit_on_a_thread(uses_the_queue_of_another, &mark);
    CHECK(kit_readable(blkm_queue_get_completion_fd(queue)));
    GIVES(1, blkm_queue_poll(queue));
    completion = kit_take(queue);
    CHECK(completion.user_data == &mark && completion.ret == -EPERM && strstr(completion.error_msg, "thread") != NULL);
    end(queue);
}

static void *uses_it_first_and_destroys_it(void *queue)
{
    blkm_queue *own = queue;

    blkm_queue_read(own, 0, memory, 512, NULL, 0);
    kit_done(own);
    blkm_queue_destroy(&own);
    return NULL;
}

static void *uses_it_first(void *queue)
{
    blkm_queue_read(queue, 0, memory, 512, NULL, 0);
    kit_done(queue);
    return NULL;
}

/* A host makes queues in one place and hands them out, and may destroy them in one place, too. */
static void a_queue_is_made_here_and_used_there(void)
{
    blkm_queue *queue = begin(0, 0);

    kit_on_a_thread(uses_it_first_and_destroys_it, queue);
    queue = kit_queue(scene.drive, 0, 0);
    kit_on_a_thread(uses_it_first, queue);
    end(queue);
}

/* Otherwise a host would sleep too long, or not at all. */
static void process_keeps_to_min_max_and_time(void)
{
    blkm_queue *queue = begin(0, 8);
    blkm_completion completions[8];
    uint64_t before = kit_now_ns();
    int i;

    REFUSED(EINVAL, "min -1", blkm_queue_process(queue, completions, -1, 1, 0));
    REFUSED(EINVAL, "max 1", blkm_queue_process(queue, completions, 2, 1, 0));
    REFUSED(EINVAL, "max 0", blkm_queue_process(queue, completions, 0, 0, 0));
    /* Nothing is under way, so it sleeps for nothing, not even for ever. */
    GIVES(0, blkm_queue_process(queue, completions, 1, 1, -1));
    GIVES(0, blkm_queue_process(queue, completions, 0, 1, LONG_NS));
    CHECK(kit_now_ns() - before < (uint64_t)LONG_NS / 2);
    for (i = 0; i < 8; i++)
        blkm_queue_read(queue, 0, memory + i * 4096, 512, NULL, 0);
    GIVES(8, blkm_queue_process(queue, completions, 8, 8, -1));
    for (i = 0; i < 8; i++)
        blkm_queue_read(queue, 0, memory + i * 4096, 512, NULL, 0);
    GIVES(2, blkm_queue_process(queue, completions, 2, 2, LONG_NS));
    for (i = 2; i < 8; i++)
        kit_done(queue);
    end(queue);
}

/* Otherwise an event loop would go to sleep on completions that it has not taken, or spin on none. */
static void the_descriptor_is_readable_while_something_is_left(void)
{
    blkm_queue *queue = begin(0, 8);
    int fd = blkm_queue_get_completion_fd(queue), i;
    uint64_t until = kit_now_ns() + (uint64_t)LONG_NS;

    CHECK(fd >= 0 && fd == blkm_queue_get_completion_fd(queue));
    for (i = 0; i < 4; i++)
        blkm_queue_read(queue, 0, memory + i * 4096, 512, NULL, 0);
    blkm_queue_write(queue, 0, memory, 1, NULL, 0);
    OK(blkm_queue_submit(queue));
    while (blkm_queue_poll(queue) < 5)
        CHECK(kit_now_ns() < until);
    /* Looking takes nothing. */
    GIVES(5, blkm_queue_poll(queue));
    GIVES(5, blkm_queue_poll(queue));
    for (i = 5; i > 0; i--) {
        blkm_queue_info info = { .struct_size = sizeof info };

        /* Looking may have reset it; see the check at the end of this file. */
        CHECK(i == 5 || kit_readable(fd));
        OK(blkm_queue_get_info(queue, &info));
        CHECK(info.ready == (uint64_t)i);
        kit_take(queue);
    }
    GIVES(0, blkm_queue_poll(queue));
    CHECK(!kit_readable(fd));
    end(queue);
}

static void without_an_eventfd_there_is_no_descriptor_and_all_else_works(void)
{
    blkm_queue *queue = begin(BLKM_QUEUE_F_NO_EVENTFD | BLKM_QUEUE_F_STABLE_BUFFERS, 1);

    REFUSED(ENOENT, "BLKM_QUEUE_F_NO_EVENTFD", blkm_queue_get_completion_fd(queue));
    blkm_queue_write(queue, 0, memory, 512, NULL, 0);
    kit_done(queue);
    blkm_queue_write(queue, 1, memory, 512, NULL, 0);
    GIVES(1, blkm_queue_poll(queue));
    kit_fails(queue, EINVAL, "512");
    end(queue);
}

/* Memory that was mapped spares the kernel a look-up; it must be the same data all the same, and be the host's again at the end. */
static void registered_memory_is_used_and_given_back(void)
{
    blkm_queue *queue = begin(0, 0);
    blkm_queue_info info = { .struct_size = sizeof info };

    REFUSED(EINVAL, "0x1", blkm_mem_region_map(scene.drive, memory, 64 * KIB, 1));
    REFUSED(EINVAL, "", blkm_mem_region_map(scene.drive, memory, 0, 0));
    REFUSED(ENOENT, "", blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    OK(blkm_mem_region_map(scene.drive, memory, 64 * KIB, 0));
    REFUSED(EEXIST, "", blkm_mem_region_map(scene.drive, memory + 4096, 4096, 0));
    blkm_queue_write(queue, 0, memory, 4096, NULL, 0);
    kit_done(queue);
    memset(memory, 0, 4096);
    blkm_queue_read(queue, 0, memory, 4096, NULL, 0);
    kit_done(queue);
    CHECK(all(memory, 4096, 0xa5));
    OK(blkm_queue_get_info(queue, &info));
    CHECK(info.registered_bytes + info.unregistered_bytes == 64 * KIB);
    CHECK((info.registered_bytes > 0) == (info.registered_requests == 2));
    OK(blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    GIVES(0, blkm_queue_poll(queue));
    OK(blkm_queue_get_info(queue, &info));
    CHECK(info.registered_bytes == 0);
    end(queue);
}

/* Otherwise a queue for rare requests would pin all of a guest's memory once more. */
static void a_queue_without_regions_takes_up_none_and_works(void)
{
    blkm_queue *queue = begin(BLKM_QUEUE_F_NO_REGIONS, 0);
    blkm_queue_info info = { .struct_size = sizeof info };

    OK(blkm_mem_region_map(scene.drive, memory, 64 * KIB, 0));
    blkm_queue_write(queue, 0, memory, 4096, NULL, 0);
    REFUSED(EBUSY, "under way", blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    kit_done(queue);
    memset(memory, 0, 4096);
    blkm_queue_read(queue, 0, memory, 4096, NULL, 0);
    kit_done(queue);
    CHECK(all(memory, 4096, 0xa5));
    OK(blkm_queue_get_info(queue, &info));
    CHECK(info.registered_bytes == 0 && info.unregistered_bytes == 0 && info.register_ret == 0);
    OK(blkm_mem_region_unmap(scene.drive, memory, 64 * KIB));
    end(queue);
}

/* A host that goes down in a hurry does not take completions first. */
static void a_queue_may_end_with_requests_under_way(void)
{
    blkm_queue *queue = begin(0, 0);
    int i;

    for (i = 0; i < 16; i++)
        blkm_queue_read(queue, 0, memory + i * 4096, 4096, NULL, 0);
    OK(blkm_queue_submit(queue));
    end(queue);
}

/* Otherwise a host that looks first and then sleeps on the descriptor would sleep on completions that are there. */
static void looking_leaves_the_descriptor_readable(void)
{
    blkm_queue *queue = begin(0, 8);
    uint64_t until = kit_now_ns() + (uint64_t)LONG_NS;

    blkm_queue_read(queue, 0, memory, 512, NULL, 0);
    while (blkm_queue_poll(queue) == 0)
        CHECK(kit_now_ns() < until);
    GIVES(1, blkm_queue_poll(queue));
    CHECK(kit_readable(blkm_queue_get_completion_fd(queue)));
    kit_done(queue);
    end(queue);
}

CHECKS(HOLDS(every_kind_of_request_does_what_it_says), HOLDS(what_is_refused_completes_with_a_text),
       HOLDS(beyond_the_depth_each_request_still_completes_once),
       HOLDS(a_wrong_thread_is_refused_and_its_request_completes_on_the_right_one), HOLDS(a_queue_is_made_here_and_used_there),
       HOLDS(process_keeps_to_min_max_and_time), HOLDS(the_descriptor_is_readable_while_something_is_left),
       HOLDS(without_an_eventfd_there_is_no_descriptor_and_all_else_works), HOLDS(registered_memory_is_used_and_given_back),
       HOLDS(a_queue_without_regions_takes_up_none_and_works), HOLDS(a_queue_may_end_with_requests_under_way), HOLDS(looking_leaves_the_descriptor_readable))
