/* Structures that may grow: callers that are older or newer than the library. */
#include "kit.h"

/* Room for a structure and what a later version puts behind it. */
union grown {
    uint64_t words[600];
    blkm_device_opts device_opts;
    blkm_drive_opts drive_opts;
    blkm_queue_opts queue_opts;
    blkm_bitmap_opts bitmap_opts;
    blkm_mirror_opts mirror_opts;
    blkm_engine_opts engine_opts;
    blkm_device_info device_info;
    blkm_drive_info drive_info;
    blkm_latencies latencies;
    blkm_queue_info queue_info;
    blkm_bitmap_info bitmap_info;
    blkm_job_info job_info;
    blkm_outcome outcome;
    blkm_event event;
};

static struct scene scene;
static blkm_queue *queue;
static blkm_job *job;
static blkm_bitmap *bitmap;

static int open_device(const union grown *opts)
{
    blkm_device *device = NULL;
    int code = blkm_device_open(kit_path("disk"), BLKM_ROLE_SOURCE, &opts->device_opts, &device);

    CHECK((code == 0) == (device != NULL));
    blkm_device_close(&device);
    return code;
}

static int make_drive(const union grown *opts)
{
    blkm_device *device = NULL;
    blkm_drive *drive = NULL;
    int code;

    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_SOURCE, NULL, &device));
    code = blkm_drive_create(device, &opts->drive_opts, &drive);
    blkm_drive_close(&drive);
    blkm_device_close(&device);
    return code;
}

static int make_queue(const union grown *opts)
{
    blkm_queue *made = NULL;
    int code = blkm_queue_create(scene.drive, &opts->queue_opts, &made);

    blkm_queue_destroy(&made);
    return code;
}

static int make_bitmap(const union grown *opts)
{
    blkm_bitmap *made = NULL;
    union grown named = *opts;
    int code;

    named.bitmap_opts.name = "made";
    code = blkm_bitmap_create(scene.drive, &named.bitmap_opts, &made);
    blkm_bitmap_close(&made);
    return code;
}

static int make_engine(const union grown *opts)
{
    blkm_engine *made = NULL;
    union grown small = *opts;
    int code;

    small.engine_opts.window_bytes = MIB;
    code = blkm_engine_create(&small.engine_opts, &made);
    blkm_engine_destroy(&made);
    return code;
}

static int check_mirror(const union grown *opts)
{
    return blkm_mirror_check(scene.engine, scene.drive, scene.target, &opts->mirror_opts, false);
}

static void init_device(union grown *opts, size_t size) { blkm_device_opts_init(&opts->device_opts, size); }
static void init_drive(union grown *opts, size_t size) { blkm_drive_opts_init(&opts->drive_opts, size); }
static void init_queue(union grown *opts, size_t size) { blkm_queue_opts_init(&opts->queue_opts, size); }
static void init_bitmap(union grown *opts, size_t size) { blkm_bitmap_opts_init(&opts->bitmap_opts, size); }
static void init_mirror(union grown *opts, size_t size) { blkm_mirror_opts_init(&opts->mirror_opts, size); }
static void init_engine(union grown *opts, size_t size) { blkm_engine_opts_init(&opts->engine_opts, size); }

static const struct {
    size_t size, reserved;
    int (*use)(const union grown *);
    void (*init)(union grown *, size_t);
} options[] = {
    { sizeof(blkm_device_opts), offsetof(blkm_device_opts, reserved), open_device, init_device },
    { sizeof(blkm_drive_opts), offsetof(blkm_drive_opts, reserved), make_drive, init_drive },
    { sizeof(blkm_queue_opts), offsetof(blkm_queue_opts, reserved), make_queue, init_queue },
    { sizeof(blkm_queue_opts), offsetof(blkm_queue_opts, reserved0) & ~(size_t)7, NULL, init_queue },
    { sizeof(blkm_bitmap_opts), offsetof(blkm_bitmap_opts, reserved), make_bitmap, init_bitmap },
    { sizeof(blkm_mirror_opts), offsetof(blkm_mirror_opts, reserved), check_mirror, init_mirror },
    { sizeof(blkm_engine_opts), offsetof(blkm_engine_opts, reserved), make_engine, init_engine },
};

/* Otherwise a program could not be built against a newer header than the library, or would believe that it got what it asked for. */
static void options_of_a_newer_header_are_taken_unless_they_ask_for_more(void)
{
    size_t i;

    scene = kit_scene(MIB);
    for (i = 0; i < sizeof options / sizeof *options; i++) {
        union grown opts;
        size_t size = options[i].size, last;

        memset(&opts, 0x55, sizeof opts);
        options[i].init(&opts, size);
        CHECK(opts.words[0] == size && opts.words[size / 8 - 1] == 0 && opts.words[size / 8] == UINT64_C(0x5555555555555555));
        if (options[i].use == NULL)
            continue;
        OK(options[i].use(&opts));
        options[i].init(&opts, size + 16);
        CHECK(opts.words[0] == size + 16 && opts.words[size / 8 + 1] == 0);
        OK(options[i].use(&opts));
        for (last = size; last < size + 16; last++) {
            ((unsigned char *)&opts)[last] = 1;
            REFUSED(E2BIG, "newer", options[i].use(&opts));
            ((unsigned char *)&opts)[last] = 0;
        }
        opts.words[0] = 4097;
        REFUSED(E2BIG, "4097", options[i].use(&opts));
        opts.words[0] = UINT64_MAX;
        REFUSED(E2BIG, "was it set", options[i].use(&opts));
        for (last = 0; last < 8; last++) {
            opts.words[0] = last;
            REFUSED(EINVAL, "struct_size", options[i].use(&opts));
        }
        opts.words[0] = size - 8;
        REFUSED(EINVAL, "struct_size", options[i].use(&opts));
        options[i].init(&opts, size);
        for (last = options[i].reserved; last < size; last += 8) {
            opts.words[last / 8] = 1;
            REFUSED(EINVAL, "reserved", options[i].use(&opts));
            opts.words[last / 8] = 0;
        }
        OK(options[i].use(&opts));
    }
    kit_end(&scene);
}

/* The 32 bits that keep the structures without padding are for later, too. */
static void small_reserved_fields_are_zero(void)
{
    blkm_queue_opts queue_opts = { .struct_size = sizeof queue_opts, .reserved0 = 1 };
    blkm_engine_opts engine_opts = { .struct_size = sizeof engine_opts, .reserved0 = 1 };
    blkm_mirror_opts mirror_opts = { .struct_size = sizeof mirror_opts, .reserved0 = 1 };
    blkm_engine *engine = NULL;

    scene = kit_scene(MIB);
    REFUSED(EINVAL, "reserved", blkm_queue_create(scene.drive, &queue_opts, &queue));
    REFUSED(EINVAL, "reserved", blkm_engine_create(&engine_opts, &engine));
    REFUSED(EINVAL, "reserved", blkm_mirror_start(scene.engine, scene.drive, scene.target, &mirror_opts, &job));
    kit_end(&scene);
}

static int fill_device(union grown *facts) { return blkm_device_get_info(scene.disk, &facts->device_info); }
static int fill_drive(union grown *facts) { return blkm_drive_get_info(scene.drive, &facts->drive_info); }
static int fill_latencies(union grown *facts) { return blkm_drive_get_latencies(scene.drive, &facts->latencies, NULL); }
static int fill_latencies_with(union grown *facts) { return blkm_drive_get_latencies(scene.drive, NULL, &facts->latencies); }
static int fill_job_latencies(union grown *facts) { return blkm_job_get_latencies(job, &facts->latencies, NULL); }
static int fill_queue(union grown *facts) { return blkm_queue_get_info(queue, &facts->queue_info); }
static int fill_bitmap(union grown *facts) { return blkm_bitmap_query(bitmap, &facts->bitmap_info); }
static int fill_job(union grown *facts) { return blkm_job_query(job, &facts->job_info); }
static int fill_outcome(union grown *facts) { return blkm_job_get_outcome(job, &facts->outcome); }
static int fill_event(union grown *facts)
{
    int code = blkm_engine_next_event(scene.engine, &facts->event);

    return code > 0 ? 0 : code < 0 ? code : -EAGAIN;
}

static const struct {
    size_t size;
    int (*fill)(union grown *);
} facts_of[] = {
    { sizeof(blkm_device_info), fill_device }, { sizeof(blkm_drive_info), fill_drive },
    { sizeof(blkm_latencies), fill_latencies }, { sizeof(blkm_latencies), fill_latencies_with },
    { sizeof(blkm_latencies), fill_job_latencies }, { sizeof(blkm_queue_info), fill_queue },
    { sizeof(blkm_bitmap_info), fill_bitmap }, { sizeof(blkm_job_info), fill_job },
    { sizeof(blkm_outcome), fill_outcome }, { sizeof(blkm_event), fill_event },
};

/* Otherwise the library would write past an older program's structure, or leave noise in a newer one's. */
static void facts_fill_what_the_caller_has_and_nothing_behind(void)
{
    blkm_bitmap_opts named;
    size_t i;

    scene = kit_scene(MIB);
    queue = kit_queue(scene.drive, 0, 0);
    blkm_bitmap_opts_init(&named, sizeof named);
    named.name = "b";
    OK(blkm_bitmap_create(scene.drive, &named, &bitmap));
    job = kit_mirror(&scene, NULL);
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_cancel(job, true));
    kit_outcome(job);
    for (i = 0; i < sizeof facts_of / sizeof *facts_of; i++) {
        union grown facts;
        size_t size = facts_of[i].size;

        memset(&facts, 0x55, sizeof facts);
        facts.words[0] = size;
        OK(facts_of[i].fill(&facts));
        CHECK(facts.words[0] == size && facts.words[size / 8 - 1] == 0 && facts.words[size / 8] == UINT64_C(0x5555555555555555));
        facts.words[0] = size + 16;
        OK(facts_of[i].fill(&facts));
        CHECK(facts.words[0] == size + 16 && facts.words[size / 8] == 0 && facts.words[size / 8 + 1] == 0);
        CHECK(facts.words[size / 8 + 2] == UINT64_C(0x5555555555555555));
        facts.words[0] = size - 8;
        REFUSED(EINVAL, "struct_size", facts_of[i].fill(&facts));
        facts.words[0] = 0;
        REFUSED(EINVAL, "struct_size", facts_of[i].fill(&facts));
        facts.words[0] = UINT64_C(0x5555555555555555);
        REFUSED(E2BIG, "was it set", facts_of[i].fill(&facts));
    }
    blkm_job_close(&job);
    blkm_bitmap_close(&bitmap);
    blkm_queue_destroy(&queue);
    kit_end(&scene);
}

CHECKS(HOLDS(options_of_a_newer_header_are_taken_unless_they_ask_for_more), HOLDS(small_reserved_fields_are_zero),
       HOLDS(facts_fill_what_the_caller_has_and_nothing_behind))
