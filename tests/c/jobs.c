/* Jobs: every verb, events in order, outcomes, errors. */
#include "kit.h"

static struct scene scene;
/* Of the last event of the job that is looked at. */
static uint64_t next_seq, last_time;

/* Takes an event of that type; those in between are skipped, and must be in order. */
static blkm_event await(blkm_job *job, blkm_event_type type)
{
    uint64_t end = kit_now_ns() + (uint64_t)LONG_NS;
    struct pollfd wait = { .fd = blkm_engine_get_event_fd(scene.engine), .events = POLLIN };

    for (;;) {
        blkm_event event = { .struct_size = sizeof event };

        CHECK(kit_now_ns() < end);
        if (blkm_engine_next_event(scene.engine, &event) == 0) {
            CHECK(poll(&wait, 1, 1000) >= 0);
            continue;
        }
        CHECK(event.job == job && event.user_data == &scene && event.seq == next_seq++);
        CHECK(event.time_ns >= last_time && strlen(event.msg) > 0 && event.lost == 0);
        last_time = event.time_ns;
        if (event.type == type)
            return event;
    }
}

/* Its events are looked at from now on. */
static blkm_job *watch(blkm_job *job)
{
    next_seq = 0;
    last_time = 0;
    return job;
}

static blkm_job *begin(uint64_t flags, uint64_t speed)
{
    blkm_mirror_opts opts = kit_opts(flags);

    scene = kit_scene(4 * MIB);
    opts.user_data = &scene, opts.speed_bytes_per_s = speed;
    return watch(kit_mirror(&scene, &opts));
}

/* The whole life of a mirror that moves a drive, as its host sees it. */
static void a_mirror_with_pivot_tells_each_step_and_moves_the_drive(void)
{
    blkm_job *job = begin(BLKM_MIRROR_F_MANUAL_FINALIZE | BLKM_MIRROR_F_STRICT_READY, 0);
    blkm_job_info info = { .struct_size = sizeof info };
    blkm_drive_info drive = { .struct_size = sizeof drive };
    blkm_queue *queue = kit_queue(scene.drive, 0, 0);
    char *memory = blkm_blockalign(scene.drive, 4096);
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    blkm_event event = await(job, BLKM_EVENT_STATUS);
    blkm_completion completion;
    int fd = blkm_engine_get_event_fd(scene.engine);

    CHECK(event.from == BLKM_JOB_CREATED && event.status == BLKM_JOB_RUNNING);
    await(job, BLKM_EVENT_READY);
    OK(blkm_drive_get_info(scene.drive, &drive));
    CHECK(drive.flags == BLKM_DRIVE_HAS_JOB && drive.device_number == 0);
    GIVES(BLKM_JOB_READY, blkm_job_get_status(job));
    OK(blkm_job_query(job, &info));
    CHECK(info.disk_bytes == 4 * MIB && info.done_bytes == 4 * MIB && info.copied_bytes == 4 * MIB && info.workers == 1);
    CHECK((info.flags & BLKM_JOBINFO_PIVOTS) == 0 && info.max_pause_ns == kit_opts(0).max_pause_ns);
    CHECK(info.status == BLKM_JOB_READY && info.errors == 0 && (info.flags & BLKM_JOBINFO_HAS_ERROR) == 0);
    REFUSED(EAGAIN, "not over", blkm_job_get_outcome(job, &outcome));
    REFUSED(EPERM, "", blkm_job_dismiss(job));
    REFUSED(EPERM, "", blkm_job_finalize(job));
    REFUSED(EPERM, "", blkm_job_resume(job));
    REFUSED(EINVAL, "BLKM_COMPLETE", blkm_job_complete(job, 2));
    REFUSED(EINVAL, "BLKM_COPY", blkm_job_set_copy_mode(job, BLKM_COPY_AUTO));
    OK(blkm_job_set_copy_mode(job, BLKM_COPY_WRITE_BLOCKING));
    CHECK(await(job, BLKM_EVENT_COPY_MODE).copy_mode == BLKM_COPY_WRITE_BLOCKING);
    memset(memory, 0x3c, 4096);
    blkm_queue_write(queue, 0, memory, 4096, NULL, 0);
    kit_done(queue);
    OK(blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    REFUSED(EPERM, "", blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    event = await(job, BLKM_EVENT_PENDING);
    CHECK(event.flags == BLKM_EVENT_F_PIVOTS && strstr(event.msg, "moves to the target") != NULL);
    OK(blkm_job_query(job, &info));
    CHECK((info.flags & BLKM_JOBINFO_PIVOTS) != 0 && info.flush_ns != BLKM_NEVER_NS);
    /* Held, not refused. */
    blkm_queue_write(queue, 8192, memory, 4096, NULL, 0);
    GIVES(0, blkm_queue_process(queue, &completion, 1, 1, 2000000));
    OK(blkm_job_finalize(job));
    await(job, BLKM_EVENT_CONCLUDED);
    kit_done(queue);
    outcome = kit_outcome(job);
    CHECK(outcome.end == BLKM_END_COMPLETED && outcome.ret == 0 && outcome.error_msg[0] == 0);
    CHECK(outcome.flags == (BLKM_OUTCOME_PIVOTED | BLKM_OUTCOME_TARGET_COMPLETE) && outcome.pause_ns != BLKM_NEVER_NS);
    OK(blkm_drive_get_info(scene.drive, &drive));
    CHECK(drive.device_number == 1 && drive.flags == 0);
    while (kit_readable(fd)) {
        event.struct_size = sizeof event;
        CHECK(blkm_engine_next_event(scene.engine, &event) >= 0);
    }
    GIVES(BLKM_JOB_CONCLUDED, blkm_job_get_status(job));
    OK(blkm_job_dismiss(job));
    GIVES(BLKM_JOB_NULL, blkm_job_get_status(job));
    REFUSED(EPERM, "it is over and was dismissed", blkm_job_pause(job));
    blkm_queue_flush(queue, NULL, 0);
    kit_done(queue);
    blkm_job_close(&job);
    blkm_queue_destroy(&queue);
    blkm_vfree(memory);
    kit_end(&scene);
    /* The one write after the pivot is what they differ in. */
    CHECK(!kit_same(kit_path("disk"), kit_path("target")));
}

/* Otherwise a host could not stop a job, slow it, or let it go on. */
static void a_job_pauses_resumes_and_changes_its_speed(void)
{
    blkm_job *job = begin(0, 64 * KIB);
    blkm_job_info info = { .struct_size = sizeof info };
    blkm_latencies without = { .struct_size = sizeof without }, with = { .struct_size = sizeof with };
    blkm_event event;

    kit_until(job, BLKM_JOB_RUNNING);
    REFUSED(EPERM, "", blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    OK(blkm_job_pause(job));
    REFUSED(EPERM, "", blkm_job_pause(job));
    kit_until(job, BLKM_JOB_PAUSED);
    OK(blkm_job_query(job, &info));
    CHECK(info.speed_bytes_per_s == 64 * KIB && info.done_bytes < 4 * MIB);
    GIVES(0, blkm_job_wait(job, 1000000));
    OK(blkm_job_resume(job));
    OK(blkm_job_set_speed(job, 0));
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_pause(job));
    kit_until(job, BLKM_JOB_STANDBY);
    OK(blkm_job_resume(job));
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_get_latencies(job, &without, &with));
    do
        event = await(job, BLKM_EVENT_STATUS);
    while (event.status != BLKM_JOB_PAUSED);
    OK(blkm_job_complete(job, BLKM_COMPLETE_POINT_IN_TIME));
    CHECK(kit_outcome(job).flags == BLKM_OUTCOME_TARGET_COMPLETE);
    REFUSED(EPERM, "", blkm_job_cancel(job, true));
    CHECK(kit_same(kit_path("disk"), kit_path("target")));
    blkm_job_close(&job);
    kit_end(&scene);
}

/* Otherwise a target that is no copy would be taken for one. */
static void a_job_that_was_cancelled_says_so(void)
{
    blkm_job *job = begin(0, 64 * KIB);
    blkm_outcome outcome;
    char byte = 1;

    OK(blkm_job_cancel(job, true));
    await(job, BLKM_EVENT_CONCLUDED);
    outcome = kit_outcome(job);
    CHECK(outcome.end == BLKM_END_CANCELLED && outcome.ret == -ECANCELED && outcome.flags == 0);
    CHECK(outcome.pause_ns == BLKM_NEVER_NS && strcmp(outcome.error_msg, "the job was cancelled") == 0);
    CHECK(outcome.done_bytes < 4 * MIB && outcome.retries == 0 && outcome.errors == 0);
    GIVES((int)strlen(outcome.error_msg), blkm_job_get_error(job, &byte, 1));
    CHECK(byte == 0);
    REFUSED(EPERM, "it is over", blkm_job_cancel(job, true));
    blkm_job_close(&job);
    job = kit_mirror(&scene, NULL);
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_cancel(job, false));
    CHECK(kit_outcome(job).flags == BLKM_OUTCOME_TARGET_COMPLETE && kit_outcome(job).done_bytes == 4 * MIB);
    GIVES(0, blkm_job_get_error(job, NULL, 0));
    blkm_job_close(&job);
    kit_end(&scene);
}

/* Otherwise a drive on a disk that has grown could not be mirrored any more to a target that is as large as the drive. */
static void a_grown_disk_is_mirrored_in_the_size_of_its_drive(void)
{
    blkm_mirror_opts opts = kit_opts(0);
    blkm_bitmap_opts named = { .struct_size = sizeof named, .name = "b" };
    blkm_drive_info drive = { .struct_size = sizeof drive };
    blkm_job_info info = { .struct_size = sizeof info };
    blkm_bitmap *bitmap = NULL;
    uint64_t size = 0;
    blkm_job *job;

    scene = kit_scene(MIB);
    OK(blkm_bitmap_create(scene.drive, &named, &bitmap));
    OK(blkm_bitmap_set_dirty(bitmap, 0, MIB));
    CHECK(truncate(kit_path("disk"), 2 * MIB) == 0);
    OK(blkm_device_refresh_size(scene.disk, &size));
    CHECK(size == 2 * MIB);
    job = kit_mirror(&scene, &opts);
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_query(job, &info));
    CHECK(info.disk_bytes == MIB && info.copied_bytes == MIB);
    OK(blkm_job_complete(job, BLKM_COMPLETE_POINT_IN_TIME));
    CHECK(kit_outcome(job).flags == BLKM_OUTCOME_TARGET_COMPLETE);
    blkm_job_close(&job);
    /* And by a bitmap, which is as large as the drive, too. */
    opts.sync = BLKM_SYNC_BITMAP, opts.bitmap = bitmap;
    OK(blkm_mirror_check(scene.engine, scene.drive, scene.target, &opts, true));
    job = kit_mirror(&scene, &opts);
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    CHECK(kit_outcome(job).flags == (BLKM_OUTCOME_PIVOTED | BLKM_OUTCOME_TARGET_COMPLETE));
    OK(blkm_drive_get_info(scene.drive, &drive));
    CHECK(drive.size_bytes == MIB && drive.device_number == 1);
    blkm_job_close(&job), blkm_bitmap_close(&bitmap);
    kit_end(&scene);
    CHECK(truncate(kit_path("disk"), MIB) == 0 && kit_same(kit_path("disk"), kit_path("target")));
}

/* A job that waits for its finalize. */
static blkm_job *begin_pending(bool pivots)
{
    blkm_job *job = begin(BLKM_MIRROR_F_MANUAL_FINALIZE, 0);
    blkm_event event;

    kit_until(job, BLKM_JOB_READY);
    OK(pivots ? blkm_job_complete(job, BLKM_COMPLETE_PIVOT) : blkm_job_cancel(job, false));
    event = await(job, BLKM_EVENT_PENDING);
    CHECK(event.flags == (pivots ? BLKM_EVENT_F_PIVOTS : 0));
    CHECK((strstr(event.msg, "moves to the target") != NULL) == pivots);
    return job;
}

/* Two threads of a host meet here. */
static int here;

static void meet(void)
{
    __atomic_add_fetch(&here, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&here, __ATOMIC_SEQ_CST) < 2)
        ;
}

static void *finalize(void *job)
{
    meet();
    return (void *)(intptr_t)blkm_job_finalize(job);
}

/* Otherwise a host that has written down which disk is its guest's would find the guest on the other. */
static void of_a_finalize_and_a_cancel_exactly_one_happens(void)
{
    unsigned round;

    for (round = 0; round < (getenv("KIT_FEW") != NULL ? 4 : 24); round++) {
        bool pivots = round % 2 == 0;
        blkm_job *job = begin_pending(pivots);
        blkm_outcome outcome;
        pthread_t other;
        void *answer;
        int cancelled, finalized;

        if (round < 2) {
            OK(blkm_job_finalize(job));
            finalized = 0, cancelled = blkm_job_cancel(job, true);
        } else if (round < 4) {
            OK(blkm_job_cancel(job, true));
            finalized = blkm_job_finalize(job), cancelled = 0;
        } else {
            here = 0;
            CHECK(pthread_create(&other, NULL, finalize, job) == 0);
            meet();
            cancelled = blkm_job_cancel(job, true);
            CHECK(pthread_join(other, &answer) == 0);
            finalized = (int)(intptr_t)answer;
        }
        CHECK((finalized == 0 && cancelled == -EPERM) || (finalized == -EPERM && cancelled == 0));
        if (cancelled != 0) /* "moves to" or, when it is over, "has moved to". */
            CHECK(strstr(blkm_error_msg(), pivots ? "to the target" : "the target is a copy") != NULL);
        outcome = kit_outcome(job);
        CHECK(outcome.end == (finalized == 0 ? BLKM_END_COMPLETED : BLKM_END_CANCELLED));
        CHECK(((outcome.flags & BLKM_OUTCOME_PIVOTED) != 0) == (finalized == 0 && pivots));
        blkm_job_close(&job);
        kit_end(&scene);
    }
}

/* Otherwise a host whose target turns out to be slow could only cancel, and begin from nothing. */
static void the_longest_pause_changes_while_a_job_runs(void)
{
    blkm_job *job = begin(0, 64 * KIB);
    blkm_job_info info = { .struct_size = sizeof info };

    OK(blkm_job_set_max_pause(job, 7000000));
    OK(blkm_job_query(job, &info));
    CHECK(info.max_pause_ns == 7000000 && info.flush_ns == BLKM_NEVER_NS);
    REFUSED(EINVAL, "1 ms", blkm_job_set_max_pause(job, 1000));
    OK(blkm_job_set_max_pause(job, 0));
    OK(blkm_job_query(job, &info));
    CHECK(info.max_pause_ns == 50000000);
    OK(blkm_job_set_max_pause(job, BLKM_NEVER_NS));
    OK(blkm_job_query(job, &info));
    CHECK(info.max_pause_ns == BLKM_NEVER_NS);
    OK(blkm_job_cancel(job, true));
    CHECK(kit_outcome(job).end == BLKM_END_CANCELLED);
    REFUSED(EPERM, "it is over", blkm_job_set_max_pause(job, 0));
    blkm_job_close(&job);
    kit_end(&scene);
}

/* A write beyond this is refused, as on a full or broken disk. */
static void limit_file_size(uint64_t bytes)
{
    struct rlimit limit = { .rlim_cur = bytes, .rlim_max = RLIM_INFINITY };

    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

/* Otherwise nobody would know what went wrong, where, and on which side. */
static void a_job_that_fails_tells_where_and_why(void)
{
    blkm_mirror_opts opts = kit_opts(0);
    blkm_outcome outcome;
    blkm_event event;
    blkm_job *job;
    char text[512], part[16];
    int len;

    scene = kit_scene(4 * MIB);
    limit_file_size(2 * MIB);
    opts.user_data = &scene;
    job = watch(kit_mirror(&scene, &opts));
    event = await(job, BLKM_EVENT_ERROR);
    CHECK(event.ret == -EFBIG && event.side == BLKM_SIDE_TARGET && event.action == BLKM_ACTION_REPORT);
    CHECK(event.offset_bytes + event.len_bytes > 2 * MIB && strstr(event.msg, "target") != NULL);
    await(job, BLKM_EVENT_CONCLUDED);
    outcome = kit_outcome(job);
    CHECK(outcome.end == BLKM_END_FAILED && outcome.ret == -EFBIG && outcome.flags == 0 && outcome.errors > 0);
    CHECK(strstr(outcome.error_msg, "target") != NULL);
    len = blkm_job_get_error(job, text, sizeof text);
    CHECK(len == (int)strlen(text) && strncmp(text, outcome.error_msg, strlen(outcome.error_msg)) == 0);
    GIVES(len, blkm_job_get_error(job, part, sizeof part));
    CHECK(strlen(part) <= 15 && strncmp(text, part, strlen(part)) == 0);
    GIVES(len, blkm_job_get_error(job, NULL, 0));
    blkm_job_close(&job);

    /* A policy that stops it: the host makes room, and it goes on. */
    opts.on_target_error = BLKM_ON_ERROR_STOP;
    job = watch(kit_mirror(&scene, &opts));
    event = await(job, BLKM_EVENT_ERROR);
    CHECK(event.action == BLKM_ACTION_STOP && event.io_status == BLKM_IO_STATUS_FAILED);
    kit_until(job, BLKM_JOB_PAUSED);
    {
        blkm_job_info info = { .struct_size = sizeof info };

        OK(blkm_job_query(job, &info));
        CHECK((info.flags & BLKM_JOBINFO_HAS_ERROR) != 0 && info.last_error_ret == -EFBIG && info.io_status == BLKM_IO_STATUS_FAILED);
        CHECK(info.last_error_side == BLKM_SIDE_TARGET && info.last_error_action == BLKM_ACTION_STOP && info.last_error_time_ns > 0);
    }
    limit_file_size(RLIM_INFINITY);
    OK(blkm_job_resume(job));
    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_complete(job, BLKM_COMPLETE_POINT_IN_TIME));
    CHECK(kit_outcome(job).end == BLKM_END_COMPLETED);
    blkm_job_close(&job);
    kit_end(&scene);
    CHECK(kit_same(kit_path("disk"), kit_path("target")));
}

static void a_copy_completes_by_itself(void)
{
    blkm_device *source = NULL;
    blkm_mirror_opts opts = kit_opts(BLKM_MIRROR_F_DETECT_ZEROES | BLKM_MIRROR_F_TARGET_IS_ZERO);
    blkm_extent extents[2] = { { .offset_bytes = 0, .len_bytes = MIB, .kind = BLKM_EXTENT_DATA },
                               { .offset_bytes = MIB, .len_bytes = MIB, .kind = BLKM_EXTENT_ZERO } };
    blkm_outcome outcome;
    blkm_job *job = NULL;

    scene = kit_scene(4 * MIB);
    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_copy_start(scene.engine, source, scene.target, &opts, &job));
    CHECK(kit_outcome(job).flags == BLKM_OUTCOME_TARGET_COMPLETE);
    CHECK(kit_same(kit_path("disk"), kit_path("target")));
    blkm_job_close(&job);
    opts.flags = BLKM_MIRROR_F_KEEP_ALLOCATED;
    opts.sync = BLKM_SYNC_TOP, opts.extents = extents, opts.extents_len = 2;
    OK(blkm_copy_start(scene.engine, source, scene.target, &opts, &job));
    outcome = kit_outcome(job);
    CHECK(outcome.copied_bytes + outcome.zeroed_bytes == 2 * MIB && outcome.copied_bytes >= MIB);
    blkm_job_close(&job);
    blkm_device_close(&source);
    kit_end(&scene);
}

/* Otherwise a host would begin what can never end, or would destroy a disk. */
static void what_cannot_be_mirrored_is_refused_at_once(void)
{
    blkm_device *small = NULL, *self = NULL;
    blkm_device_opts shared = { .struct_size = sizeof shared, .flags = BLKM_DEVICE_F_ALLOW_SHARED };
    blkm_job *job = NULL, *second = NULL;

    scene = kit_scene(MIB);
    OK(blkm_device_open(kit_file("small", 512 * KIB, 0), BLKM_ROLE_TARGET, NULL, &small));
    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_TARGET, &shared, &self));
    REFUSED(EINVAL, "small", blkm_mirror_start(scene.engine, scene.drive, small, NULL, &job));
    REFUSED(EINVAL, "small", blkm_mirror_check(scene.engine, scene.drive, small, NULL, true));
    REFUSED(EBUSY, "disk", blkm_mirror_start(scene.engine, scene.drive, self, NULL, &job));
    OK(blkm_mirror_check(scene.engine, scene.drive, scene.target, NULL, true));
    job = kit_mirror(&scene, NULL);
    REFUSED(EBUSY, "", blkm_mirror_start(scene.engine, scene.drive, scene.target, NULL, &second));
    CHECK(second == NULL);
    blkm_job_close(&job);
    blkm_device_close(&small), blkm_device_close(&self);
    kit_end(&scene);
}

/* Objects keep what they need, so each order of closing is right; the job is over when its engine is. */
static void everything_may_be_closed_in_every_order(void)
{
    unsigned order;

    for (order = 0; order < 720; order += 1) {
        blkm_job *job = begin(0, 64 * KIB);
        blkm_tracker *tracker = NULL;
        unsigned left[6] = { 0, 1, 2, 3, 4, 5 }, count = 6, number = order;

        OK(blkm_tracker_create(scene.drive, &tracker));
        while (count > 0) {
            unsigned chosen = number % count, which = left[chosen];

            number /= count;
            left[chosen] = left[--count];
            switch (which) {
            case 0: blkm_engine_destroy(&scene.engine); break;
            case 1: blkm_device_close(&scene.disk); break;
            case 2: blkm_drive_close(&scene.drive); break;
            case 3: blkm_device_close(&scene.target); break;
            case 4: blkm_job_close(&job); break;
            default: blkm_tracker_close(&tracker); break;
            }
        }
        CHECK(scene.engine == NULL && scene.disk == NULL && scene.drive == NULL && scene.target == NULL);
        if (getenv("KIT_FEW") != NULL)
            order += 60;
        else
            order += 6;
    }
}

CHECKS(HOLDS(a_mirror_with_pivot_tells_each_step_and_moves_the_drive), HOLDS(a_job_pauses_resumes_and_changes_its_speed),
       HOLDS(a_job_that_was_cancelled_says_so), HOLDS(of_a_finalize_and_a_cancel_exactly_one_happens),
       HOLDS(the_longest_pause_changes_while_a_job_runs), HOLDS(a_job_that_fails_tells_where_and_why),
       HOLDS(a_copy_completes_by_itself), HOLDS(a_grown_disk_is_mirrored_in_the_size_of_its_drive),
       HOLDS(what_cannot_be_mirrored_is_refused_at_once), HOLDS(everything_may_be_closed_in_every_order))
