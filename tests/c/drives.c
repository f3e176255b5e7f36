/* Devices, drives, trackers and bitmaps. */
#include "kit.h"

/* What a device is, how large, where its holes are, and that it can be made durable. */
static void a_device_tells_what_it_is(void)
{
    blkm_device *file = NULL, *same = NULL, *other = NULL;
    blkm_device_info info = { .struct_size = sizeof info };
    blkm_device_opts named = { .struct_size = sizeof named, .name = "the guest's disk" };
    blkm_extent_kind kind = 0;
    uint64_t size = 0, len = 0;
    const char *path = kit_file("file", MIB, 0);
    int fd = open(path, O_RDWR | O_CLOEXEC);

    CHECK(fd >= 0 && pwrite(fd, path, 5, 512 * KIB) == 5);
    OK(blkm_device_open(path, BLKM_ROLE_SOURCE, NULL, &file));
    OK(blkm_device_get_info(file, &info));
    CHECK((info.flags & BLKM_DEVICE_IS_LOCKED) == 0);
    CHECK(info.size_bytes == MIB && info.kind == BLKM_DEVICE_FILE && info.role == BLKM_ROLE_SOURCE);
    CHECK((info.flags & BLKM_DEVICE_MAY_PIN) != 0 && (info.flags & BLKM_DEVICE_IS_ZERO) == 0);
    CHECK(info.request_align_bytes >= 512 && info.memory_align_bytes >= 1 && info.max_request_bytes >= 4096);
    OK(blkm_device_block_status(file, 0, &kind, &len));
    CHECK(kind == BLKM_EXTENT_ZERO && len == 512 * KIB);
    OK(blkm_device_block_status(file, 512 * KIB, &kind, &len));
    CHECK(kind == BLKM_EXTENT_DATA && len > 0);
    OK(blkm_device_block_status(file, MIB, &kind, &len));
    CHECK(len == 0);
    CHECK(ftruncate(fd, 2 * MIB) == 0);
    OK(blkm_device_refresh_size(file, &size));
    CHECK(size == 2 * MIB);
    OK(blkm_device_open_fd(fd, BLKM_ROLE_DISK, &named, &same));
    CHECK(close(fd) == 0);
    OK(blkm_device_flush(same));
    GIVES(1, blkm_device_overlaps(file, same));
    OK(blkm_device_open(kit_file("other", MIB, 0), BLKM_ROLE_SOURCE, NULL, &other));
    GIVES(0, blkm_device_overlaps(file, other));
    OK(blkm_device_get_info(other, &info));
    CHECK((info.flags & BLKM_DEVICE_IS_ZERO) != 0);
    REFUSED(EINVAL, "the guest's disk", blkm_device_write_zeroes(same, 3 * MIB, 4096, false));
    REFUSED(EINVAL, "2^64", blkm_device_write_zeroes(same, 512, UINT64_MAX, false));
    REFUSED(EINVAL, "2^64", blkm_device_discard(same, 512, UINT64_MAX));
    REFUSED(EINVAL, "2^64", blkm_device_preallocate(same, 512, UINT64_MAX));
    REFUSED(EACCES, "file", blkm_device_write_zeroes(file, 0, 4096, false));
    blkm_device_close(&file), blkm_device_close(&same), blkm_device_close(&other);
}

/* A target is got ready before a job, and held against a second user. */
static void a_target_is_made_prepared_and_held(void)
{
    blkm_device *target = NULL, *second = NULL;
    blkm_device_opts shared = { .struct_size = sizeof shared, .flags = BLKM_DEVICE_F_ALLOW_SHARED };
    blkm_device_info info = { .struct_size = sizeof info };
    const char *path = kit_path("made");
    struct stat status;

    OK(blkm_device_create(path, MIB, &target));
    CHECK(stat(path, &status) == 0 && status.st_size == (off_t)MIB && (status.st_mode & 0777) == 0600);
    REFUSED(EEXIST, "made", blkm_device_create(path, MIB, &second));
    REFUSED(EINVAL, "512", blkm_device_create(kit_path("odd"), 1000, &second));
    REFUSED(EBUSY, "made", blkm_device_open(path, BLKM_ROLE_TARGET, NULL, &second));
    CHECK(strstr(blkm_error_msg(), "BLKM_DEVICE_F_ALLOW_SHARED") != NULL);
    OK(blkm_device_get_info(target, &info));
    CHECK((info.flags & BLKM_DEVICE_IS_LOCKED) != 0 && (info.flags & BLKM_DEVICE_IS_ALIGN_ASSUMED) == 0);
    OK(blkm_device_open(path, BLKM_ROLE_TARGET, &shared, &second));
    OK(blkm_device_get_info(second, &info));
    CHECK((info.flags & BLKM_DEVICE_IS_LOCKED) == 0);
    blkm_device_close(&second);
    OK(blkm_device_preallocate(target, 0, MIB));
    CHECK(stat(path, &status) == 0 && (uint64_t)status.st_blocks * 512 >= MIB);
    OK(blkm_device_discard(target, 0, 512 * KIB));
    OK(blkm_device_write_zeroes(target, 512 * KIB, 512 * KIB, false));
    CHECK(stat(path, &status) == 0 && status.st_blocks == 0);
    blkm_device_close(&target);
    REFUSED(ENOTBLK, "", blkm_device_open("/tmp", BLKM_ROLE_SOURCE, NULL, &target));
    REFUSED(ENOTBLK, "", blkm_device_open("/dev/null", BLKM_ROLE_TARGET, NULL, &target));
}

static void a_drive_is_what_its_device_was(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_drive_info info = { .struct_size = sizeof info };
    blkm_drive_opts large = { .struct_size = sizeof large, .align_bytes = 4096 };
    blkm_latencies without = { .struct_size = sizeof without }, with = { .struct_size = sizeof with };
    blkm_drive *drive = NULL;
    blkm_device *source = NULL;
    char *memory = blkm_blockalign(scene.drive, 1);
    int fd = blkm_drive_dup_fd(scene.drive);

    CHECK(memory != NULL && fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(pread(fd, memory, 512, 0) == 512 && close(fd) == 0);
    blkm_vfree(memory);
    OK(blkm_drive_get_info(scene.drive, &info));
    CHECK(info.size_bytes == MIB && info.align_bytes >= 512 && info.memory_align_bytes >= 512);
    CHECK(info.device_number == 0 && info.flags == 0);
    OK(blkm_drive_get_latencies(scene.drive, &without, &with));
    CHECK(without.count == 0 && with.count == 0);
    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_drive_create(source, &large, &drive));
    blkm_device_close(&source);
    OK(blkm_drive_get_info(drive, &info));
    CHECK(info.align_bytes == 4096 && info.flags == BLKM_DRIVE_IS_READ_ONLY);
    blkm_drive_close(&drive);
    /* What a job writes is not a guest's to write. */
    REFUSED(EINVAL, "target", blkm_drive_create(scene.target, NULL, &drive));
    CHECK(blkm_blockalign(scene.drive, SIZE_MAX) == NULL && strstr(blkm_error_msg(), "memory") != NULL);
    kit_end(&scene);
}

static blkm_tracker *shared_tracker;

static void *ends_it_elsewhere(void *token)
{
    OK(blkm_tracker_end(shared_tracker, token, -EIO));
    return NULL;
}

/* Tokens come from the host's memory: whatever is in there may not break the count of requests under way. */
static void a_token_ends_once_anywhere_and_garbage_never(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_tracker *second = NULL;
    blkm_token token, copy, garbage;
    unsigned i;

    OK(blkm_tracker_create(scene.drive, &shared_tracker));
    OK(blkm_tracker_create(scene.drive, &second));
    for (i = BLKM_IO_READ; i <= BLKM_IO_DISCARD; i++) {
        OK(blkm_tracker_begin(shared_tracker, 1, 1, i, &token));
        CHECK(token.device_number == 0);
        copy = token;
        kit_on_a_thread(ends_it_elsewhere, &copy);
        REFUSED(EPERM, "", blkm_tracker_end(shared_tracker, &token, 0));
        REFUSED(EPERM, "", blkm_tracker_end(second, &copy, 0));
    }
    OK(blkm_tracker_begin(shared_tracker, 0, 0, BLKM_IO_FLUSH, &token));
    OK(blkm_tracker_end(second, &token, 0));
    REFUSED(EINVAL, "5", blkm_tracker_begin(shared_tracker, 0, 1, 5, &token));
    REFUSED(EINVAL, "", blkm_tracker_begin(shared_tracker, 0, 0, BLKM_IO_WRITE, &token));
    REFUSED(EINVAL, "", blkm_tracker_begin(shared_tracker, MIB, 1, BLKM_IO_WRITE, &token));
    REFUSED(EINVAL, "2^64", blkm_tracker_begin(shared_tracker, UINT64_MAX, 2, BLKM_IO_WRITE, &token));
    for (i = 0; i < 256; i++) {
        int code;

        memset(&garbage, (int)i, sizeof garbage);
        code = blkm_tracker_end(shared_tracker, &garbage, 0);
        CHECK(code == -EPERM || code == -EINVAL);
    }
    /* One that is real but for a word. */
    OK(blkm_tracker_begin(shared_tracker, 0, 512, BLKM_IO_WRITE, &token));
    for (i = 0; i < 5; i++) {
        garbage = token;
        garbage.opaque[i] ^= 1;
        if (blkm_tracker_end(shared_tracker, &garbage, 0) == 0)
            OK(blkm_tracker_begin(shared_tracker, 0, 512, BLKM_IO_WRITE, &token));
    }
    OK(blkm_tracker_end(shared_tracker, &token, 0));
    GIVES(1, blkm_tracker_wait(shared_tracker, -1));
    CHECK(kit_readable(blkm_tracker_get_open_fd(shared_tracker)));
    blkm_tracker_close(&shared_tracker), blkm_tracker_close(&second);
    kit_end(&scene);
}

/* Otherwise writes would reach the old disk after the switch-over. */
static void requests_are_held_while_a_switch_over_is_pending(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_mirror_opts opts = kit_opts(BLKM_MIRROR_F_MANUAL_FINALIZE);
    blkm_tracker *tracker = NULL;
    blkm_token token;
    blkm_job *job;
    int fd;

    OK(blkm_tracker_create(scene.drive, &tracker));
    fd = blkm_tracker_get_open_fd(tracker);
    CHECK(fd >= 0 && kit_readable(fd));
    job = kit_mirror(&scene, &opts);
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_tracker_begin(tracker, 0, 512, BLKM_IO_WRITE, &token));
    OK(blkm_tracker_end(tracker, &token, 0));
    OK(blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    kit_until(job, BLKM_JOB_PENDING);
    GIVES(BLKM_HELD, blkm_tracker_begin(tracker, 0, 512, BLKM_IO_WRITE, &token));
    CHECK(!kit_readable(fd));
    GIVES(0, blkm_tracker_wait(tracker, 1000000));
    OK(blkm_job_finalize(job));
    GIVES(1, blkm_tracker_wait(tracker, LONG_NS));
    OK(blkm_tracker_begin(tracker, 0, 512, BLKM_IO_WRITE, &token));
    CHECK(token.device_number == 1 && kit_readable(fd));
    OK(blkm_tracker_end(tracker, &token, 0));
    CHECK(kit_outcome(job).flags == (BLKM_OUTCOME_PIVOTED | BLKM_OUTCOME_TARGET_COMPLETE));
    blkm_job_close(&job);
    blkm_tracker_close(&tracker);
    kit_end(&scene);
}

static blkm_bitmap *make_bitmap(blkm_drive *drive, const char *name, uint64_t flags)
{
    blkm_bitmap_opts opts;
    blkm_bitmap *bitmap = NULL;

    blkm_bitmap_opts_init(&opts, sizeof opts);
    opts.name = name, opts.flags = flags, opts.granularity_bytes = 64 * KIB;
    OK(blkm_bitmap_create(drive, &opts, &bitmap));
    return bitmap;
}

static uint64_t dirty(blkm_bitmap *bitmap)
{
    blkm_bitmap_info info = { .struct_size = sizeof info };

    OK(blkm_bitmap_query(bitmap, &info));
    CHECK(info.size_bytes == MIB && info.granularity_bytes == 64 * KIB);
    return info.dirty_bytes;
}

/* Otherwise an incremental backup would miss what was written, or a job would copy other chunks than those that it was given. */
static void a_bitmap_knows_what_was_written_and_a_job_copies_that(void)
{
    struct scene scene = kit_scene(MIB);
    blkm_bitmap *on = make_bitmap(scene.drive, "on", 0), *off = make_bitmap(scene.drive, "off", BLKM_BITMAP_F_DISABLED);
    blkm_bitmap *sources[2] = { on, off };
    blkm_bitmap_opts again = { .struct_size = sizeof again, .name = "on" };
    blkm_bitmap_info info = { .struct_size = sizeof info };
    blkm_mirror_opts opts = kit_opts(BLKM_MIRROR_F_COMPLETE);
    blkm_tracker *tracker = NULL;
    blkm_bitmap *second = NULL;
    blkm_token token;
    uint64_t at = 0, len = 0;
    blkm_outcome outcome;
    blkm_job *job;

    REFUSED(EEXIST, "on", blkm_bitmap_create(scene.drive, &again, &second));
    OK(blkm_tracker_create(scene.drive, &tracker));
    OK(blkm_tracker_begin(tracker, 65 * KIB, 1, BLKM_IO_WRITE, &token));
    OK(blkm_tracker_end(tracker, &token, 0));
    CHECK(dirty(on) == 64 * KIB && dirty(off) == 0);
    OK(blkm_bitmap_query(on, &info));
    CHECK(info.flags == BLKM_BITMAP_IS_RECORDING && strcmp(info.name, "on") == 0);
    OK(blkm_bitmap_set_dirty(off, 0, 1));
    OK(blkm_bitmap_merge(off, sources, 2));
    OK(blkm_bitmap_merge(off, NULL, 0));
    CHECK(dirty(off) == 128 * KIB);
    GIVES(1, blkm_bitmap_next_dirty_area(off, 0, UINT64_MAX, UINT64_MAX, &at, &len));
    CHECK(at == 0 && len == 128 * KIB);
    GIVES(0, blkm_bitmap_next_dirty_area(off, 128 * KIB, UINT64_MAX, 1, NULL, NULL));
    REFUSED(EINVAL, "", blkm_bitmap_next_dirty_area(off, 0, MIB + 1, 1, &at, &len));
    OK(blkm_bitmap_reset_dirty(off, 0, 64 * KIB + 1));
    CHECK(dirty(off) == 64 * KIB);
    REFUSED(EINVAL, "", blkm_bitmap_set_dirty(off, MIB, 1));
    REFUSED(EINVAL, "2^64", blkm_bitmap_reset_dirty(off, 1, UINT64_MAX));
    sources[1] = NULL;
    REFUSED(EINVAL, "NULL", blkm_bitmap_merge(off, sources, 2));
    REFUSED(EINVAL, "sources", blkm_bitmap_merge(off, NULL, 2));
    OK(blkm_bitmap_disable(on));
    OK(blkm_bitmap_clear(on));
    OK(blkm_bitmap_enable(on));
    CHECK(dirty(on) == 0);

    opts.sync = BLKM_SYNC_BITMAP, opts.bitmap = off, opts.speed_bytes_per_s = 64 * KIB;
    job = kit_mirror(&scene, &opts);
    REFUSED(EBUSY, "", blkm_bitmap_clear(off));
    OK(blkm_bitmap_query(off, &info));
    CHECK((info.flags & BLKM_BITMAP_IS_BUSY) != 0);
    OK(blkm_job_set_speed(job, 0));
    outcome = kit_outcome(job);
    CHECK(outcome.end == BLKM_END_COMPLETED && outcome.copied_bytes == 64 * KIB);
    CHECK(dirty(off) == 0);
    blkm_job_close(&job);
    blkm_tracker_close(&tracker);
    blkm_bitmap_close(&on), blkm_bitmap_close(&off);
    CHECK(on == NULL && off == NULL);
    kit_end(&scene);
}

CHECKS(HOLDS(a_device_tells_what_it_is), HOLDS(a_target_is_made_prepared_and_held), HOLDS(a_drive_is_what_its_device_was),
       HOLDS(a_token_ends_once_anywhere_and_garbage_never), HOLDS(requests_are_held_while_a_switch_over_is_pending),
       HOLDS(a_bitmap_knows_what_was_written_and_a_job_copies_that))
