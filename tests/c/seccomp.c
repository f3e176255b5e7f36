/*
 * The library under system call filters, one for each group of threads. Called as PROGRAM DIRECTORY [DISK TARGET].
 *
 * ENGINE_CALLS, QUEUE_CALLS and CONTROL_CALLS in the environment are the names of the system calls that are let through: on the engine's
 * threads from thread_start on, on a thread that uses queues and a tracker, and on one that steers jobs once the engine is there. The first
 * other call ends the program, with its name. calls.h has CALL(name) for every name that may come.
 */
#include "kit.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const struct {
    const char *name;
    long number;
} calls[] = {
#define CALL(name) { #name, SYS_##name },
#include "calls.h"
#undef CALL
};
#define CALLS (sizeof calls / sizeof *calls)

#define LEN (4 * MIB)
#define CHUNK (64 * KIB)
#define CHUNKS (LEN / CHUNK)

static const char *name_of(long number)
{
    static char text[32];
    size_t i;

    for (i = 0; i < CALLS; i++)
        if (calls[i].number == number)
            return calls[i].name;
    snprintf(text, sizeof text, "%ld", number);
    return text;
}

static bool listed(const char *list, const char *name)
{
    size_t len = strlen(name);
    const char *at;

    for (at = strstr(list, name); at != NULL; at = strstr(at + 1, name))
        if ((at == list || at[-1] == ' ') && (at[len] == ' ' || at[len] == 0))
            return true;
    return false;
}

struct watched {
    atomic_int fd;
    const char *group;
};

/* Waits for a call that was not let through, and ends the program. */
static void *watch(void *argument)
{
    struct watched *watched = argument;
    struct seccomp_notif notice;

    for (;;) {
        memset(&notice, 0, sizeof notice);
        if (ioctl(watched->fd, SECCOMP_IOCTL_NOTIF_RECV, &notice) == 0) {
            printf("%s %s\n", watched->group, name_of(notice.data.nr));
            fflush(stdout);
            _exit(9);
        }
        if (errno != EINTR && errno != ENOENT)
            return NULL;
    }
}

/* Who watches. It looks around by itself, because a thread that was just confined may not be able to wake anybody. */
static struct watched to_watch[64];
static atomic_int asked;

static void *makes_watchers(void *unused)
{
    int begun;

    for (begun = 0; begun < 64; begun++) {
        pthread_t thread;

        while (to_watch[begun].fd == 0)
            kit_sleep_ms(1);
        CHECK(pthread_create(&thread, NULL, watch, &to_watch[begun]) == 0);
    }
    return unused;
}

/* Lets only the listed calls through on this thread and on those that it makes. */
static void confine(const char *group, const char *list)
{
    static _Thread_local struct sock_filter code[2 * CALLS + 8];
    struct sock_fprog program = { .filter = code };
    unsigned short at = 0;
    int place = asked++;
    size_t i;

    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (i = 0; i < CALLS; i++) {
        if (!listed(list, calls[i].name))
            continue;
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i].number, 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    program.len = at;
    CHECK(place < 64 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    to_watch[place].group = group;
    /* The last call that is made freely. */
    to_watch[place].fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void on_worker(void *opaque, uint32_t index)
{
    (void)index;
    confine("engine", opaque);
}

static blkm_drive *drive;
static blkm_tracker *tracker;
static atomic_bool begin, enough;
static atomic_int written;

/* What the disk must hold: each chunk is full of one byte. */
static unsigned char model[CHUNKS];

static void one(blkm_queue *queue, unsigned char *memory, unsigned number)
{
    unsigned chunk = number * 7 % CHUNKS;
    blkm_token token;

    switch (number % 8) {
    case 0:
        blkm_queue_write_zeroes(queue, chunk * CHUNK, CHUNK, NULL, number & 8 ? BLKM_REQ_MAY_UNMAP : BLKM_REQ_FUA);
        model[chunk] = 0;
        break;
    case 1:
        blkm_queue_flush(queue, NULL, 0);
        break;
    case 2:
        /* It may read as anything from now on. */
        blkm_queue_discard(queue, chunk * CHUNK, CHUNK, NULL, 0);
        kit_take(queue);
        memset(memory, 9, CHUNK);
        blkm_queue_write(queue, chunk * CHUNK, memory, CHUNK, NULL, BLKM_REQ_FUA);
        model[chunk] = 9;
        break;
    case 3:
        if (blkm_tracker_begin(tracker, chunk * CHUNK, 512, BLKM_IO_READ, &token) == 0)
            OK(blkm_tracker_end(tracker, &token, 0));
        else
            CHECK(blkm_tracker_wait(tracker, LONG_NS) == 1);
        /* fall through */
    default:
        memset(memory, (int)(number & 0xff), CHUNK);
        blkm_queue_write(queue, chunk * CHUNK, memory, CHUNK, NULL, 0);
        model[chunk] = (unsigned char)number;
        break;
    }
    kit_done(queue);
    blkm_queue_read(queue, 1, memory, 512, NULL, 0);
    kit_fails(queue, EINVAL, "");
}

static void *guest(void *unused)
{
    unsigned char *memory = blkm_blockalign(drive, CHUNK), *region = blkm_blockalign(drive, CHUNK);
    blkm_queue *queue, *left = kit_queue(drive, 0, 0);
    unsigned number, chunk;

    OK(blkm_tracker_create(drive, &tracker));
    while (!begin)
        kit_sleep_ms(1);
    confine("queue", getenv("QUEUE_CALLS"));
    queue = kit_queue(drive, 0, 0);
    OK(blkm_mem_region_map(drive, region, CHUNK, 0));
    for (number = 1; !enough || number < 4 * CHUNKS; number++) {
        one(queue, number & 1 ? memory : region, number);
        written++;
    }
    for (chunk = 0; chunk < CHUNKS; chunk++) {
        size_t i;

        blkm_queue_read(queue, chunk * CHUNK, memory, CHUNK, NULL, 0);
        kit_done(queue);
        for (i = 0; i < CHUNK; i++)
            CHECK(memory[i] == model[chunk]);
    }
    OK(blkm_mem_region_unmap(drive, region, CHUNK));
    blkm_queue_read(left, 0, memory, CHUNK, NULL, 0);
    OK(blkm_queue_submit(left));
    blkm_queue_destroy(&left);
    blkm_queue_destroy(&queue);
    blkm_tracker_close(&tracker);
    blkm_vfree(memory), blkm_vfree(region);
    return unused;
}

static blkm_engine *engine;
static blkm_device *disk, *target, *plain;
static const char *disk_path, *target_path, *plain_path;

static void line(void *opaque, blkm_log_level level, const char *from, const char *msg)
{
    (void)opaque, (void)level, (void)from, (void)msg;
}

static blkm_outcome ended(blkm_job *job)
{
    blkm_outcome outcome = kit_outcome(job);
    blkm_event event = { .struct_size = sizeof event };

    while (blkm_engine_next_event(engine, &event) == 1)
        ;
    blkm_job_close(&job);
    return outcome;
}

/* Without a sleep of our own, whose call would be taken for the library's. */
static void until(blkm_job *job, blkm_job_status status)
{
    uint64_t end = kit_now_ns() + (uint64_t)LONG_NS;

    while (blkm_job_get_status(job) != (int)status) {
        CHECK(kit_now_ns() < end);
        GIVES(0, blkm_job_wait(job, 1000000));
    }
}

static void *host(void *unused)
{
    blkm_mirror_opts opts = kit_opts(BLKM_MIRROR_F_DETECT_ZEROES);
    blkm_bitmap_opts named = { .struct_size = sizeof named, .name = "b" };
    struct rlimit small = { .rlim_cur = MIB, .rlim_max = RLIM_INFINITY }, large = { .rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY };
    blkm_bitmap *bitmap = NULL;
    blkm_device *source = NULL;
    blkm_job *job = NULL;
    int before;

    confine("control", getenv("CONTROL_CALLS"));
    /* Errors: of a path, and of a target that takes no more. */
    REFUSED(ENOENT, "nothing", blkm_device_open("/nothing", BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_device_create(plain_path, LEN, &plain));
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    OK(blkm_mirror_start(engine, drive, plain, NULL, &job));
    CHECK(ended(job).end == BLKM_END_FAILED);
    CHECK(setrlimit(RLIMIT_FSIZE, &large) == 0);
    begin = true;
    /* A mirror with a bitmap that is cancelled in the middle. */
    OK(blkm_bitmap_create(drive, &named, &bitmap));
    OK(blkm_bitmap_set_dirty(bitmap, 0, LEN));
    opts.sync = BLKM_SYNC_BITMAP, opts.bitmap = bitmap, opts.speed_bytes_per_s = MIB;
    OK(blkm_mirror_start(engine, drive, plain, &opts, &job));
    OK(blkm_job_pause(job));
    until(job, BLKM_JOB_PAUSED);
    OK(blkm_job_resume(job));
    OK(blkm_job_cancel(job, true));
    CHECK(ended(job).end == BLKM_END_CANCELLED);
    blkm_bitmap_close(&bitmap);
    /* Zeroes, discards, space, sizes. */
    OK(blkm_device_preallocate(plain, 0, LEN));
    OK(blkm_device_write_zeroes(plain, 0, LEN, false));
    OK(blkm_device_discard(plain, 0, LEN));
    OK(blkm_device_flush(plain));
    OK(blkm_device_refresh_size(plain, NULL));
    OK(blkm_device_block_status(plain, 0, NULL, NULL));
    /* The mirror, with a pivot, while the guest writes. */
    OK(blkm_device_open(target_path, BLKM_ROLE_TARGET, NULL, &target));
    GIVES(0, blkm_device_overlaps(plain, target));
    opts = kit_opts(BLKM_MIRROR_F_DETECT_ZEROES);
    opts.copy_mode = BLKM_COPY_WRITE_BLOCKING;
    OK(blkm_mirror_start(engine, drive, target, &opts, &job));
    until(job, BLKM_JOB_READY);
    OK(blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    CHECK(ended(job).flags == (BLKM_OUTCOME_PIVOTED | BLKM_OUTCOME_TARGET_COMPLETE));
    for (before = written; written < before + 8;)
        ;
    enough = true;
    return unused;
}

/* A copy of a file with holes and data, when the guest is gone. */
static void *copies(void *unused)
{
    blkm_device *source = NULL;
    blkm_job *job = NULL;

    confine("control", getenv("CONTROL_CALLS"));
    OK(blkm_device_open(target_path, BLKM_ROLE_SOURCE, NULL, &source));
    OK(blkm_copy_start(engine, source, plain, NULL, &job));
    CHECK(ended(job).end == BLKM_END_COMPLETED);
    blkm_device_close(&source), blkm_device_close(&plain);
    blkm_engine_destroy(&engine);
    return unused;
}

/* Otherwise there would be nothing to copy before the guest has begun. */
static void fill(void)
{
    unsigned char *memory = blkm_blockalign(drive, CHUNK);
    blkm_queue *queue = kit_queue(drive, 0, 0);
    unsigned chunk;

    for (chunk = CHUNKS / 2; chunk < CHUNKS; chunk++) {
        memset(memory, model[chunk] = 5, CHUNK);
        blkm_queue_write(queue, chunk * CHUNK, memory, CHUNK, NULL, 0);
        kit_done(queue);
    }
    blkm_queue_destroy(&queue);
    blkm_vfree(memory);
}

static void a_mirror_with_pivot_under_writes_needs_these_calls_and_no_others(void)
{
    blkm_engine_opts opts = { .struct_size = sizeof opts, .workers = 2, .window_bytes = MIB };
    pthread_t watcher, guests, hosts;

    signal(SIGXFSZ, SIG_IGN);
    if (disk_path == NULL) {
        disk_path = kit_file("disk", LEN, 0);
        target_path = kit_file("target", LEN, 3);
    }
    plain_path = kit_path("plain");
    CHECK(pthread_create(&watcher, NULL, makes_watchers, NULL) == 0);
    OK(blkm_log_set_handler(BLKM_LOG_DEBUG, line, NULL));
    opts.thread_start = on_worker, opts.thread_start_opaque = getenv("ENGINE_CALLS");
    OK(blkm_engine_create(&opts, &engine));
    OK(blkm_device_open(disk_path, BLKM_ROLE_DISK, NULL, &disk));
    OK(blkm_device_write_zeroes(disk, 0, LEN, false));
    OK(blkm_drive_create(disk, NULL, &drive));
    blkm_device_close(&disk);
    fill();
    CHECK(pthread_create(&guests, NULL, guest, NULL) == 0);
    CHECK(pthread_create(&hosts, NULL, host, NULL) == 0);
    CHECK(pthread_join(hosts, NULL) == 0 && pthread_join(guests, NULL) == 0);
    blkm_drive_close(&drive);
    blkm_device_close(&target);
    kit_on_a_thread(copies, NULL);
    CHECK(kit_same(target_path, plain_path));
}

int main(int argc, char **argv)
{
    static const struct check checks[] = { HOLDS(a_mirror_with_pivot_under_writes_needs_these_calls_and_no_others), { NULL, NULL } };

    CHECK(getenv("ENGINE_CALLS") != NULL && getenv("QUEUE_CALLS") != NULL && getenv("CONTROL_CALLS") != NULL);
    if (argc == 4) {
        disk_path = argv[2];
        target_path = argv[3];
        argc = 2;
    }
    return kit_main(argc, argv, checks);
}
