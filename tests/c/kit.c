#include "kit.h"

/* The check that is running, and where its files are. */
static const char *check_name = "";
static char check_dir[512];

void kit_failed(const char *file, int line, const char *what, const char *text)
{
    fprintf(stderr, "%s:%d: %s: does not hold: %s (last error: %s; errno: %s)\n", file, line, check_name, what, text, strerror(errno));
    _exit(1);
}

void kit_gives(const char *file, int line, const char *call, int number, int got)
{
    if (got != number) {
        fprintf(stderr, "%s gives %d and not %d\n", call, got, number);
        kit_failed(file, line, call, blkm_error_msg());
    }
}

void kit_refused(const char *file, int line, const char *call, int code, const char *word, int got)
{
    if (got != -code || strstr(blkm_error_msg(), word) == NULL) {
        fprintf(stderr, "%s gives %d and not %d with '%s'\n", call, got, -code, word);
        kit_failed(file, line, call, blkm_error_msg());
    }
}

int kit_main(int argc, char **argv, const struct check *checks)
{
    const char *only = argc > 2 ? argv[2] : getenv("BLKMIRROR_CHECK");
    if (argc < 2)
        return 2;
    for (; checks->name != NULL; checks++) {
        if (only != NULL && strcmp(only, checks->name) != 0)
            continue;
        check_name = checks->name;
        snprintf(check_dir, sizeof check_dir, "%s/%s", argv[1], check_name);
        CHECK(mkdir(check_dir, 0777) == 0 || errno == EEXIST);
        checks->run();
    }
    return 0;
}

const char *kit_path(const char *name)
{
    /* Never freed: a handful for a program. Kept where leak checkers find them. */
    static char paths[256][1024];
    static unsigned used;
    char *path = paths[used++ % 256];

    snprintf(path, sizeof paths[0], "%s/%s", check_dir, name);
    return path;
}

const char *kit_file(const char *name, uint64_t len, unsigned seed)
{
    const char *path = kit_path(name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1, at;
    uint64_t block[512];

    CHECK(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
    for (at = 0; seed != 0 && at < len; at += sizeof block) {
        size_t i;

        for (i = 0; i < 512; i++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
            block[i] = state | 1;
        }
        CHECK(pwrite(fd, block, sizeof block, (off_t)at) == (ssize_t)sizeof block);
    }
    CHECK(close(fd) == 0);
    return path;
}

bool kit_same(const char *a, const char *b)
{
    static char left[65536], right[65536];
    int fa = open(a, O_RDONLY | O_CLOEXEC), fb = open(b, O_RDONLY | O_CLOEXEC);
    bool same = fa >= 0 && fb >= 0;

    while (same) {
        ssize_t got = read(fa, left, sizeof left);

        same = got >= 0 && read(fb, right, sizeof right) == got && memcmp(left, right, (size_t)got) == 0;
        if (got <= 0)
            break;
    }
    CHECK(close(fa) == 0 && close(fb) == 0);
    return same;
}

bool kit_readable(int fd)
{
    struct pollfd wait = { .fd = fd, .events = POLLIN };
    int got = poll(&wait, 1, 0);

    CHECK(got >= 0 && (wait.revents & ~POLLIN) == 0);
    return got == 1;
}

void kit_sleep_ms(long ms)
{
    struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

    while (nanosleep(&time, &time) < 0 && errno == EINTR)
        ;
}

uint64_t kit_now_ns(void)
{
    struct timespec now;

    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kit_on_a_thread(void *(*run)(void *), void *argument)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, run, argument) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

int kit_child(pid_t child)
{
    int status = 0;
    pid_t got;

    do
        got = waitpid(child, &status, 0);
    while (got < 0 && errno == EINTR);
    CHECK(got == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

blkm_engine *kit_engine(void)
{
    blkm_engine_opts opts;
    blkm_engine *engine = NULL;

    blkm_engine_opts_init(&opts, sizeof opts);
    opts.workers = 1;
    opts.window_bytes = MIB;
    OK(blkm_engine_create(&opts, &engine));
    CHECK(engine != NULL);
    return engine;
}

struct scene kit_scene(uint64_t len)
{
    struct scene scene = { .engine = kit_engine() };

    OK(blkm_device_open(kit_file("disk", len, 7), BLKM_ROLE_DISK, NULL, &scene.disk));
    OK(blkm_drive_create(scene.disk, NULL, &scene.drive));
    OK(blkm_device_open(kit_file("target", len, 0), BLKM_ROLE_TARGET, NULL, &scene.target));
    return scene;
}

void kit_end(struct scene *scene)
{
    blkm_device_close(&scene->target);
    blkm_drive_close(&scene->drive);
    blkm_device_close(&scene->disk);
    blkm_engine_destroy(&scene->engine);
}

blkm_mirror_opts kit_opts(uint64_t flags)
{
    blkm_mirror_opts opts;

    blkm_mirror_opts_init(&opts, sizeof opts);
    opts.flags = flags;
    opts.granularity_bytes = 64 * KIB;
    opts.latency_budget = BLKM_LATENCY_BUDGET_OFF;
    /* Machines that run tests stand still now and then. */
    opts.max_pause_ns = 2000000000u;
    return opts;
}

blkm_job *kit_mirror(struct scene *scene, const blkm_mirror_opts *opts)
{
    blkm_job *job = NULL;

    OK(blkm_mirror_start(scene->engine, scene->drive, scene->target, opts, &job));
    CHECK(job != NULL);
    return job;
}

void kit_until(blkm_job *job, blkm_job_status status)
{
    uint64_t end = kit_now_ns() + (uint64_t)LONG_NS;

    while (blkm_job_get_status(job) != (int)status) {
        if (kit_now_ns() > end)
            fprintf(stderr, "the job is %d and never becomes %u\n", blkm_job_get_status(job), status);
        CHECK(kit_now_ns() < end);
        kit_sleep_ms(1);
    }
}

blkm_outcome kit_outcome(blkm_job *job)
{
    blkm_outcome outcome = { .struct_size = sizeof outcome };

    GIVES(1, blkm_job_wait(job, LONG_NS));
    OK(blkm_job_get_outcome(job, &outcome));
    return outcome;
}

blkm_queue *kit_queue(blkm_drive *drive, uint64_t flags, uint32_t depth)
{
    blkm_queue_opts opts;
    blkm_queue *queue = NULL;

    blkm_queue_opts_init(&opts, sizeof opts);
    opts.flags = flags;
    opts.depth = depth;
    opts.staging_bytes = MIB;
    OK(blkm_queue_create(drive, &opts, &queue));
    CHECK(queue != NULL);
    return queue;
}

blkm_completion kit_take(blkm_queue *queue)
{
    blkm_completion completion = { .ret = 1 };

    GIVES(1, blkm_queue_process(queue, &completion, 1, 1, LONG_NS));
    CHECK(completion.ret <= 0 && completion.flags == 0 && completion.reserved == 0);
    CHECK((completion.ret < 0) == (completion.error_msg != NULL));
    return completion;
}

void kit_done(blkm_queue *queue)
{
    blkm_completion completion = kit_take(queue);

    if (completion.ret != 0)
        kit_failed(__FILE__, __LINE__, "a request completes", completion.error_msg);
}

void kit_fails(blkm_queue *queue, int code, const char *word)
{
    blkm_completion completion = kit_take(queue);

    if (completion.ret != -code || strstr(completion.error_msg, word) == NULL) {
        fprintf(stderr, "the request gives %d and not %d with '%s'\n", completion.ret, -code, word);
        kit_failed(__FILE__, __LINE__, "a request is refused", completion.error_msg ? completion.error_msg : "success");
    }
}
