/* NULL in every place, numbers that mean nothing, and the texts of errors. */
#include "kit.h"

/* Every function that takes an object refuses NULL with the object's name; a host's bug is then an error and not a crash. */
static void no_object_is_an_error_that_names_it(void)
{
    blkm_device_info device_info = { .struct_size = sizeof device_info };
    blkm_drive_info drive_info = { .struct_size = sizeof drive_info };
    blkm_queue_info queue_info = { .struct_size = sizeof queue_info };
    blkm_bitmap_info bitmap_info = { .struct_size = sizeof bitmap_info };
    blkm_job_info job_info = { .struct_size = sizeof job_info };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    blkm_event event = { .struct_size = sizeof event };
    blkm_completion completion;
    blkm_token token = { 0 };
    blkm_drive *drive = (void *)&token;
    blkm_queue *queue = (void *)&token;
    blkm_tracker *tracker = (void *)&token;
    blkm_job *job = (void *)&token;
    char byte = 0;

    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_get_info(NULL, &device_info));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_refresh_size(NULL, NULL));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_block_status(NULL, 0, NULL, NULL));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_flush(NULL));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_preallocate(NULL, 0, 512));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_write_zeroes(NULL, 0, 512, true));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_discard(NULL, 0, 512));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_overlaps(NULL, NULL));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_drive_create(NULL, NULL, &drive));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_drive_get_info(NULL, &drive_info));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_drive_dup_fd(NULL));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_drive_get_latencies(NULL, NULL, NULL));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_mem_region_map(NULL, &byte, 1, 0));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_mem_region_unmap(NULL, &byte, 1));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_queue_create(NULL, NULL, &queue));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_tracker_create(NULL, &tracker));
    CHECK(blkm_blockalign(NULL, 512) == NULL && strstr(blkm_error_msg(), "blkm_drive is NULL") != NULL);
    REFUSED(EINVAL, "blkm_queue is NULL", blkm_queue_submit(NULL));
    REFUSED(EINVAL, "blkm_queue is NULL", blkm_queue_poll(NULL));
    REFUSED(EINVAL, "blkm_queue is NULL", blkm_queue_process(NULL, &completion, 0, 1, 0));
    REFUSED(EINVAL, "blkm_queue is NULL", blkm_queue_get_completion_fd(NULL));
    REFUSED(EINVAL, "blkm_queue is NULL", blkm_queue_get_info(NULL, &queue_info));
    REFUSED(EINVAL, "blkm_tracker is NULL", blkm_tracker_begin(NULL, 0, 1, BLKM_IO_WRITE, &token));
    REFUSED(EINVAL, "blkm_tracker is NULL", blkm_tracker_end(NULL, &token, 0));
    REFUSED(EINVAL, "blkm_tracker is NULL", blkm_tracker_wait(NULL, 0));
    REFUSED(EINVAL, "blkm_tracker is NULL", blkm_tracker_get_open_fd(NULL));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_enable(NULL));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_disable(NULL));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_clear(NULL));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_merge(NULL, NULL, 0));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_set_dirty(NULL, 0, 1));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_reset_dirty(NULL, 0, 1));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_query(NULL, &bitmap_info));
    REFUSED(EINVAL, "blkm_bitmap is NULL", blkm_bitmap_next_dirty_area(NULL, 0, 1, 1, NULL, NULL));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_mirror_start(NULL, NULL, NULL, NULL, &job));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_mirror_check(NULL, NULL, NULL, NULL, true));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_copy_start(NULL, NULL, NULL, NULL, &job));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_engine_get_workers(NULL));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_engine_get_event_fd(NULL));
    REFUSED(EINVAL, "blkm_engine is NULL", blkm_engine_next_event(NULL, &event));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_pause(NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_resume(NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_set_speed(NULL, 0));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_set_copy_mode(NULL, BLKM_COPY_BACKGROUND));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_set_max_pause(NULL, 0));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_complete(NULL, BLKM_COMPLETE_PIVOT));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_cancel(NULL, true));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_finalize(NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_dismiss(NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_wait(NULL, 0));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_get_status(NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_query(NULL, &job_info));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_get_latencies(NULL, NULL, NULL));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_get_outcome(NULL, &outcome));
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_get_error(NULL, &byte, 1));
    CHECK(drive == NULL && queue == NULL && tracker == NULL && job == NULL);
}

/* What sends a request has no answer, and so no crash either. */
static void requests_without_a_queue_are_nothing(void)
{
    char byte = 0;
    struct iovec piece = { .iov_base = &byte, .iov_len = 1 };

    blkm_queue_read(NULL, 0, &byte, 1, NULL, 0);
    blkm_queue_readv(NULL, 0, &piece, 1, NULL, 0);
    blkm_queue_write(NULL, 0, &byte, 1, NULL, 0);
    blkm_queue_writev(NULL, 0, &piece, 1, NULL, 0);
    blkm_queue_write_zeroes(NULL, 0, 1, NULL, 0);
    blkm_queue_discard(NULL, 0, 1, NULL, 0);
    blkm_queue_flush(NULL, NULL, 0);
    CHECK(strstr(blkm_error_msg(), "blkm_queue is NULL") != NULL);
}

/* Otherwise the way out of a function that failed half-way would need an `if` for each object. */
static void nothing_is_closed_without_harm(void)
{
    blkm_engine *engine = NULL;
    blkm_device *device = NULL;
    blkm_drive *drive = NULL;
    blkm_queue *queue = NULL;
    blkm_tracker *tracker = NULL;
    blkm_bitmap *bitmap = NULL;
    blkm_job *job = NULL;

    blkm_engine_destroy(&engine), blkm_engine_destroy(NULL);
    blkm_device_close(&device), blkm_device_close(NULL);
    blkm_drive_close(&drive), blkm_drive_close(NULL);
    blkm_queue_destroy(&queue), blkm_queue_destroy(NULL);
    GIVES(0, blkm_queue_close(&queue, 0));
    GIVES(0, blkm_queue_close(NULL, -1));
    GIVES(0, blkm_has_feature(NULL));
    OK(blkm_log_set_handler(BLKM_LOG_OFF, NULL, NULL));
    blkm_tracker_close(&tracker), blkm_tracker_close(NULL);
    blkm_bitmap_close(&bitmap), blkm_bitmap_close(NULL);
    blkm_job_close(&job), blkm_job_close(NULL);
    blkm_vfree(NULL);
    blkm_device_opts_init(NULL, 100), blkm_drive_opts_init(NULL, 100), blkm_queue_opts_init(NULL, 100);
    blkm_mirror_opts_init(NULL, 100), blkm_engine_opts_init(NULL, 100), blkm_bitmap_opts_init(NULL, 100);
}

/* Otherwise a result would be written through NULL, or NULL read as a structure. */
static void null_for_a_result_or_a_structure_is_an_error(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_queue *queue = kit_queue(scene.drive, 0, 0);
    blkm_tracker *tracker = NULL;
    blkm_bitmap *bitmap = NULL;
    blkm_bitmap_opts named;
    blkm_job *job = kit_mirror(&scene, NULL), *none = (void *)&named;
    blkm_device *no_device = (void *)&named;
    uint64_t size = 0;

    blkm_bitmap_opts_init(&named, sizeof named);
    OK(blkm_tracker_create(scene.drive, &tracker));
    REFUSED(EINVAL, "result is NULL", blkm_tracker_create(scene.drive, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_queue_create(scene.drive, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_drive_create(scene.disk, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_engine_create(NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_device_open("/dev/null", BLKM_ROLE_SOURCE, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_device_open_fd(0, BLKM_ROLE_SOURCE, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_device_create(kit_path("new"), MIB, NULL));
    CHECK(access(kit_path("new"), F_OK) < 0);
    REFUSED(EINVAL, "result is NULL", blkm_mirror_start(scene.engine, scene.drive, scene.target, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_copy_start(scene.engine, scene.disk, scene.target, NULL, NULL));
    REFUSED(EINVAL, "result is NULL", blkm_bitmap_create(scene.drive, &named, NULL));
    REFUSED(EINVAL, "name", blkm_bitmap_create(scene.drive, NULL, &bitmap));
    REFUSED(EINVAL, "path is NULL", blkm_device_open(NULL, BLKM_ROLE_SOURCE, NULL, &no_device));
    CHECK(no_device == NULL);
    REFUSED(EINVAL, "path is NULL", blkm_device_create(NULL, MIB, &no_device));
    REFUSED(EINVAL, "NULL", blkm_device_get_info(scene.disk, NULL));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_device_overlaps(scene.disk, NULL));
    REFUSED(EINVAL, "NULL", blkm_drive_get_info(scene.drive, NULL));
    REFUSED(EINVAL, "NULL", blkm_queue_get_info(queue, NULL));
    REFUSED(EINVAL, "min", blkm_queue_process(queue, NULL, 0, 1, 0));
    REFUSED(EINVAL, "NULL", blkm_tracker_begin(tracker, 0, 512, BLKM_IO_WRITE, NULL));
    REFUSED(EINVAL, "NULL", blkm_tracker_end(tracker, NULL, 0));
    REFUSED(EINVAL, "NULL", blkm_job_query(job, NULL));
    REFUSED(EINVAL, "NULL", blkm_engine_next_event(scene.engine, NULL));
    REFUSED(EINVAL, "blkm_drive is NULL", blkm_mirror_start(scene.engine, NULL, scene.disk, NULL, &none));
    CHECK(none == NULL);
    REFUSED(EINVAL, "blkm_device is NULL", blkm_copy_start(scene.engine, scene.disk, NULL, NULL, &none));
    REFUSED(EINVAL, "blkm_device is NULL", blkm_mirror_check(scene.engine, scene.drive, NULL, NULL, false));
    /* Here it is allowed. */
    OK(blkm_device_refresh_size(scene.disk, NULL));
    OK(blkm_device_refresh_size(scene.disk, &size));
    CHECK(size == MIB);
    OK(blkm_device_block_status(scene.disk, 0, NULL, NULL));
    OK(blkm_drive_get_latencies(scene.drive, NULL, NULL));
    blkm_job_close(&job);
    blkm_queue_destroy(&queue);
    blkm_tracker_close(&tracker);
    kit_end(&scene);
}

/* Otherwise a number of a newer header, or a slip, would be taken for something else. */
static void numbers_that_mean_nothing_are_refused(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_device_opts device = { .struct_size = sizeof device, .flags = 2 };
    blkm_drive_opts drive = { .struct_size = sizeof drive, .flags = 1 };
    blkm_queue_opts queue = { .struct_size = sizeof queue, .flags = 1u << 31 };
    blkm_engine_opts engine = { .struct_size = sizeof engine, .flags = 2 };
    blkm_bitmap_opts bitmap = { .struct_size = sizeof bitmap, .flags = 2, .name = "b" };
    blkm_mirror_opts mirror = kit_opts(64);
    blkm_extent extent = { .len_bytes = 512, .kind = 3 };
    blkm_device *opened = NULL;
    blkm_drive *made = NULL;
    blkm_queue *made_queue = NULL;
    blkm_engine *made_engine = NULL;
    blkm_bitmap *made_bitmap = NULL;
    blkm_job *job = NULL;
    const char *path = kit_path("disk");

    REFUSED(EINVAL, "0x2", blkm_device_open(path, BLKM_ROLE_SOURCE, &device, &opened));
    REFUSED(EINVAL, "role", blkm_device_open(path, 0, NULL, &opened));
    REFUSED(EINVAL, "role", blkm_device_open(path, 4, NULL, &opened));
    REFUSED(EINVAL, "role", blkm_device_open_fd(0, UINT32_MAX, NULL, &opened));
    REFUSED(EBADF, "-1", blkm_device_open_fd(-1, BLKM_ROLE_SOURCE, NULL, &opened));
    REFUSED(EBADF, "fd 900", blkm_device_open_fd(900, BLKM_ROLE_SOURCE, NULL, &opened));
    device.flags = 0, device.name = "\xff";
    REFUSED(EINVAL, "UTF-8", blkm_device_open_fd(0, BLKM_ROLE_SOURCE, &device, &opened));
    REFUSED(EINVAL, "0x1", blkm_drive_create(scene.disk, &drive, &made));
    drive.flags = 0, drive.align_bytes = 513;
    OK(blkm_device_open(path, BLKM_ROLE_SOURCE, NULL, &opened));
    REFUSED(EINVAL, "513", blkm_drive_create(opened, &drive, &made));
    blkm_device_close(&opened);
    REFUSED(EINVAL, "0x80000000", blkm_queue_create(scene.drive, &queue, &made_queue));
    queue.flags = 0, queue.depth = 1025;
    REFUSED(EINVAL, "1025", blkm_queue_create(scene.drive, &queue, &made_queue));
    queue.depth = 1, queue.staging_bytes = 1025 * MIB;
    REFUSED(EINVAL, "staging", blkm_queue_create(scene.drive, &queue, &made_queue));
    REFUSED(EINVAL, "0x2", blkm_engine_create(&engine, &made_engine));
    engine.flags = 0, engine.workers = 257;
    REFUSED(EINVAL, "257", blkm_engine_create(&engine, &made_engine));
    engine.workers = 1, engine.window_bytes = 4096;
    REFUSED(EINVAL, "4096", blkm_engine_create(&engine, &made_engine));
    REFUSED(EINVAL, "0x2", blkm_bitmap_create(scene.drive, &bitmap, &made_bitmap));
    bitmap.flags = 0, bitmap.granularity_bytes = 1000;
    REFUSED(EINVAL, "1000", blkm_bitmap_create(scene.drive, &bitmap, &made_bitmap));
#define START() blkm_mirror_start(scene.engine, scene.drive, scene.target, &mirror, &job)
    REFUSED(EINVAL, "0x40", START());
    mirror = kit_opts(0), mirror.sync = 4;
    REFUSED(EINVAL, "4", START());
    mirror = kit_opts(0), mirror.sync = BLKM_SYNC_BITMAP;
    REFUSED(EINVAL, "bitmap", START());
    mirror = kit_opts(0), mirror.copy_mode = 3;
    REFUSED(EINVAL, "3", START());
    mirror = kit_opts(0), mirror.on_source_error = 4;
    REFUSED(EINVAL, "4", START());
    mirror = kit_opts(0), mirror.on_target_error = 4;
    REFUSED(EINVAL, "4", START());
    mirror = kit_opts(0), mirror.latency_budget = 4;
    REFUSED(EINVAL, "4", START());
    mirror = kit_opts(0), mirror.latency_budget = BLKM_LATENCY_BUDGET_DEFAULT, mirror.latency_budget_value = 1;
    REFUSED(EINVAL, "latency_budget", START());
    mirror = kit_opts(0), mirror.granularity_bytes = 256;
    REFUSED(EINVAL, "256", START());
    mirror = kit_opts(0), mirror.max_pause_ns = 1;
    REFUSED(EINVAL, "ms", START());
    mirror = kit_opts(0), mirror.sync = BLKM_SYNC_TOP, mirror.extents = &extent, mirror.extents_len = 1;
    REFUSED(EINVAL, "3", START());
    mirror.extents = NULL;
    REFUSED(EINVAL, "extents", START());
    CHECK(job == NULL && opened == NULL && made == NULL && made_queue == NULL && made_engine == NULL && made_bitmap == NULL);
    kit_end(&scene);
}

static void *has_no_text_yet(void *unused)
{
    (void)unused;
    CHECK(strcmp(blkm_error_msg(), "") == 0);
    REFUSED(EINVAL, "blkm_job is NULL", blkm_job_pause(NULL));
    return NULL;
}

/* Otherwise a host would print another thread's error, or none. */
static void a_text_is_its_threads_own_and_stays_until_the_next_error(void)
{
    blkm_device *device = NULL;
    char text[1024];

    REFUSED(ENOENT, "no-such-file", blkm_device_open("/no-such-file", BLKM_ROLE_SOURCE, NULL, &device));
    snprintf(text, sizeof text, "%s", blkm_error_msg());
    OK(blkm_device_open(kit_file("file", MIB, 0), BLKM_ROLE_SOURCE, NULL, &device));
    kit_on_a_thread(has_no_text_yet, NULL);
    CHECK(strcmp(text, blkm_error_msg()) == 0);
    CHECK(strchr(text, '\n') == NULL);
    blkm_device_close(&device);
    REFUSED(ENOENT, "no\\nsuch", blkm_device_open("/no\nsuch", BLKM_ROLE_SOURCE, NULL, &device));
    CHECK(strchr(blkm_error_msg(), '\n') == NULL);
}

CHECKS(HOLDS(no_object_is_an_error_that_names_it), HOLDS(requests_without_a_queue_are_nothing), HOLDS(nothing_is_closed_without_harm),
       HOLDS(null_for_a_result_or_a_structure_is_an_error), HOLDS(numbers_that_mean_nothing_are_refused),
       HOLDS(a_text_is_its_threads_own_and_stays_until_the_next_error))
