/* Processes that fork: a child has copies of its parent's objects and none of its threads. */
#include "kit.h"

/* One of each kind, with a job that runs. */
struct everything {
    struct scene scene;
    blkm_queue *queue, *fresh;
    blkm_tracker *tracker;
    blkm_bitmap *bitmap;
    blkm_job *job;
    blkm_token token;
    char *memory;
};

static struct everything make_everything(void)
{
    struct everything all = { .scene = kit_scene(4 * MIB) };
    blkm_mirror_opts opts = kit_opts(0);
    blkm_bitmap_opts named = { .struct_size = sizeof named, .name = "b" };

    opts.speed_bytes_per_s = MIB;
    all.memory = blkm_blockalign(all.scene.drive, 4096);
    memset(all.memory, 0, 4096);
    all.queue = kit_queue(all.scene.drive, 0, 0);
    all.fresh = kit_queue(all.scene.drive, 0, 0);
    OK(blkm_tracker_create(all.scene.drive, &all.tracker));
    OK(blkm_bitmap_create(all.scene.drive, &named, &all.bitmap));
    all.job = kit_mirror(&all.scene, &opts);
    blkm_queue_read(all.queue, 0, all.memory, 4096, NULL, 0);
    kit_done(all.queue);
    OK(blkm_tracker_begin(all.tracker, 0, 512, BLKM_IO_WRITE, &all.token));
    return all;
}

#define NO(call) REFUSED(EPERM, "fork(2)", call)

static void nothing_of_the_parents_can_be_used(struct everything *all)
{
    struct scene *scene = &all->scene;
    blkm_device_info device_info = { .struct_size = sizeof device_info };
    blkm_drive_info drive_info = { .struct_size = sizeof drive_info };
    blkm_queue_info queue_info = { .struct_size = sizeof queue_info };
    blkm_bitmap_info bitmap_info = { .struct_size = sizeof bitmap_info };
    blkm_job_info job_info = { .struct_size = sizeof job_info };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    blkm_event event = { .struct_size = sizeof event };
    blkm_bitmap_opts named = { .struct_size = sizeof named, .name = "c" };
    blkm_completion completion;
    blkm_drive *drive = NULL;
    blkm_queue *queue = NULL;
    blkm_tracker *tracker = NULL;
    blkm_bitmap *bitmap = NULL;
    blkm_job *job = NULL;

    NO(blkm_engine_get_workers(scene->engine));
    NO(blkm_engine_get_event_fd(scene->engine));
    NO(blkm_engine_next_event(scene->engine, &event));
    NO(blkm_device_get_info(scene->disk, &device_info));
    NO(blkm_device_flush(scene->disk));
    NO(blkm_device_overlaps(scene->disk, scene->target));
    NO(blkm_drive_create(scene->disk, NULL, &drive));
    NO(blkm_drive_get_info(scene->drive, &drive_info));
    NO(blkm_drive_dup_fd(scene->drive));
    NO(blkm_mem_region_map(scene->drive, all->memory, 4096, 0));
    NO(blkm_queue_create(scene->drive, NULL, &queue));
    NO(blkm_tracker_create(scene->drive, &tracker));
    NO(blkm_bitmap_create(scene->drive, &named, &bitmap));
    CHECK(blkm_blockalign(scene->drive, 512) == NULL);
    NO(blkm_queue_submit(all->queue));
    NO(blkm_queue_poll(all->queue));
    NO(blkm_queue_process(all->queue, &completion, 0, 1, 0));
    NO(blkm_queue_get_info(all->queue, &queue_info));
    NO(blkm_queue_get_completion_fd(all->queue));
    NO(blkm_queue_submit(all->fresh));
    blkm_queue_read(all->queue, 0, all->memory, 4096, NULL, 0);
    blkm_queue_flush(all->fresh, NULL, 0);
    NO(blkm_tracker_begin(all->tracker, 0, 512, BLKM_IO_WRITE, &all->token));
    NO(blkm_tracker_end(all->tracker, &all->token, 0));
    NO(blkm_tracker_wait(all->tracker, -1));
    NO(blkm_bitmap_clear(all->bitmap));
    NO(blkm_bitmap_query(all->bitmap, &bitmap_info));
    NO(blkm_job_get_status(all->job));
    NO(blkm_job_query(all->job, &job_info));
    NO(blkm_job_get_outcome(all->job, &outcome));
    NO(blkm_job_cancel(all->job, true));
    NO(blkm_job_wait(all->job, -1));
    NO(blkm_mirror_start(scene->engine, scene->drive, scene->target, NULL, &job));
    NO(blkm_copy_start(scene->engine, scene->disk, scene->target, NULL, &job));
    CHECK(drive == NULL && queue == NULL && tracker == NULL && bitmap == NULL && job == NULL);
}

static void close_everything(struct everything *all)
{
    blkm_vfree(all->memory);
    blkm_queue_destroy(&all->queue), blkm_queue_destroy(&all->fresh);
    blkm_tracker_close(&all->tracker);
    blkm_bitmap_close(&all->bitmap);
    blkm_job_close(&all->job);
    kit_end(&all->scene);
    CHECK(all->queue == NULL && all->job == NULL && all->scene.engine == NULL && all->scene.drive == NULL);
}

/* A child that makes what it needs itself is a process like any other. */
static void copy_here(const char *from, const char *to)
{
    blkm_engine *engine = kit_engine();
    blkm_device *source = NULL, *target = NULL;
    blkm_job *job = NULL;

    OK(blkm_device_open(kit_path(from), BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_device_create(kit_path(to), 4 * MIB, &target));
    OK(blkm_copy_start(engine, source, target, NULL, &job));
    CHECK(kit_outcome(job).end == BLKM_END_COMPLETED);
    CHECK(kit_same(kit_path(from), kit_path(to)));
    blkm_job_close(&job);
    blkm_engine_destroy(&engine);
    blkm_device_close(&source), blkm_device_close(&target);
}

/* Otherwise a child would hang on its parent's locks, or send requests into its parent's ring. */
static void a_child_can_use_nothing_close_everything_and_work_by_itself(void)
{
    struct everything all = make_everything();
    pid_t child = fork();

    if (child == 0) {
        alarm(20);
        nothing_of_the_parents_can_be_used(&all);
        close_everything(&all);
        copy_here("disk", "childs");
        exit(0);
    }
    CHECK(child > 0 && kit_child(child) == 0);
    /* And the parent goes on as if nothing had been. */
    blkm_queue_read(all.queue, 0, all.memory, 4096, NULL, 0);
    kit_done(all.queue);
    OK(blkm_tracker_end(all.tracker, &all.token, 0));
    OK(blkm_job_set_speed(all.job, 0));
    kit_until(all.job, BLKM_JOB_READY);
    OK(blkm_job_complete(all.job, BLKM_COMPLETE_POINT_IN_TIME));
    CHECK(kit_outcome(all.job).flags == BLKM_OUTCOME_TARGET_COMPLETE);
    close_everything(&all);
    CHECK(kit_same(kit_path("disk"), kit_path("target")));
}

/* As daemons do: the parent has looked around and ends, the child of its child works. */
static void a_grandchild_works_as_a_daemon_does(void)
{
    struct everything all = make_everything();
    pid_t child = fork(), grandchild;

    if (child == 0) {
        alarm(20);
        copy_here("disk", "childs");
        grandchild = fork();
        if (grandchild == 0) {
            alarm(20);
            nothing_of_the_parents_can_be_used(&all);
            close_everything(&all);
            copy_here("disk", "grandchilds");
            exit(0);
        }
        exit(kit_child(grandchild) == 0 ? 0 : 1);
    }
    CHECK(child > 0 && kit_child(child) == 0);
    close_everything(&all);
}

/* A child must not keep the parent's disks from others for longer than its own copies of the descriptors live. */
static void what_the_child_closed_is_not_closed_in_the_parent(void)
{
    struct everything all = make_everything();
    blkm_device *second = NULL;
    pid_t child = fork();

    if (child == 0) {
        close_everything(&all);
        exit(0);
    }
    CHECK(child > 0 && kit_child(child) == 0);
    REFUSED(EBUSY, "target", blkm_device_open(kit_path("target"), BLKM_ROLE_TARGET, NULL, &second));
    close_everything(&all);
    OK(blkm_device_open(kit_path("target"), BLKM_ROLE_TARGET, NULL, &second));
    blkm_device_close(&second);
}

static void *reads_once(void *argument)
{
    struct everything *all = argument;

    blkm_queue_read(all->fresh, 0, all->memory, 4096, NULL, 0);
    kit_done(all->fresh);
    return NULL;
}

/* Otherwise a host that has started some helper would never open its disk for itself again, although the helper has long ended. */
static void a_child_that_lives_keeps_no_disk_of_a_queue_that_ended_elsewhere_for_longer_than_its_life(void)
{
    struct everything all = make_everything();
    blkm_device *again = NULL;
    pid_t child;

    kit_on_a_thread(reads_once, &all);
    child = fork();
    if (child == 0)
        for (;;)
            pause();
    CHECK(child > 0);
    /* Not the thread of `fresh`; only the kernel could tell that its ring is gone, and the child has a copy of it. */
    OK(blkm_tracker_end(all.tracker, &all.token, 0));
    OK(blkm_job_cancel(all.job, true));
    kit_outcome(all.job);
    close_everything(&all);
    CHECK(kill(child, SIGKILL) == 0 && kit_child(child) == -SIGKILL);
    OK(blkm_device_open(kit_path("disk"), BLKM_ROLE_TARGET, NULL, &again));
    blkm_device_close(&again);
}

CHECKS(HOLDS(a_child_can_use_nothing_close_everything_and_work_by_itself), HOLDS(a_grandchild_works_as_a_daemon_does),
       HOLDS(what_the_child_closed_is_not_closed_in_the_parent),
       HOLDS(a_child_that_lives_keeps_no_disk_of_a_queue_that_ended_elsewhere_for_longer_than_its_life))
