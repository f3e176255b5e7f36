/* Handlers that the library calls on its threads, and what it does to a process with signals. */
#define _GNU_SOURCE 1
#include <dirent.h>
#include <stdatomic.h>

#include "kit.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t started[16];
static unsigned seen;

static void start(void *opaque, uint32_t index)
{
    CHECK(opaque == &seen && index < 16);
    pthread_mutex_lock(&lock);
    CHECK((seen & (1u << index)) == 0);
    seen |= 1u << index;
    started[index] = pthread_self();
    pthread_mutex_unlock(&lock);
}

/* Otherwise a host could not name, confine or account for the workers. */
static void the_host_is_called_on_each_worker_with_its_number(void)
{
    blkm_engine_opts opts;
    blkm_engine *engine = NULL;
    int i, j;

    blkm_engine_opts_init(&opts, sizeof opts);
    opts.workers = 3, opts.window_bytes = MIB, opts.thread_start = start, opts.thread_start_opaque = &seen;
    seen = 0;
    OK(blkm_engine_create(&opts, &engine));
    GIVES(3, blkm_engine_get_workers(engine));
    CHECK(seen == 7);
    for (i = 0; i < 3; i++) {
        CHECK(!pthread_equal(started[i], pthread_self()));
        for (j = 0; j < i; j++)
            CHECK(!pthread_equal(started[i], started[j]));
    }
    blkm_engine_destroy(&engine);
    seen = 0, opts.workers = 1, opts.flags = BLKM_ENGINE_F_PIN;
    OK(blkm_engine_create(&opts, &engine));
    CHECK(seen == 1);
    blkm_engine_destroy(&engine);
}

static atomic_int caught;
static _Thread_local int is_mine;
static atomic_int caught_here;

static void handle(int number)
{
    (void)number;
    caught++;
    caught_here += is_mine;
}

/* The word after `name:` in a thread's status. */
static uint64_t status_word(const char *thread, const char *name)
{
    char path[512], line[256];
    uint64_t word = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/self/task/%s/status", thread);
    file = fopen(path, "re");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            word = strtoull(line + strlen(name), NULL, 16);
    fclose(file);
    return word;
}

/* Every thread but this one blocks all that can be blocked; says how many there are. */
static int others_block_everything(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    int others = 0;

    CHECK(tasks != NULL);
    while ((task = readdir(tasks)) != NULL) {
        /* All 64, but SIGKILL, SIGSTOP, and the two that the C library keeps for itself. */
        uint64_t all = ~(UINT64_C(1) << (SIGKILL - 1) | UINT64_C(1) << (SIGSTOP - 1) | UINT64_C(3) << 31);

        if (task->d_name[0] == '.' || atoi(task->d_name) == getpid())
            continue;
        CHECK((status_word(task->d_name, "SigBlk:") & all) == all);
        others++;
    }
    closedir(tasks);
    return others;
}

/* Otherwise a host's handler would run on a thread of ours, in the middle of anything; or its own mask would be changed. */
static void our_threads_block_all_signals_and_leave_handlers_alone(void)
{
    struct sigaction action = { .sa_handler = handle }, before[32], there;
    struct scene scene;
    blkm_job *job;
    int number;
    sigset_t mask;

    is_mine = 1;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (number = 1; number < 32; number++)
        CHECK(sigaction(number, NULL, &before[number]) == 0);
    scene = kit_scene(4 * MIB);
    CHECK(blkm_device_flush(scene.disk) == 0);
    job = kit_mirror(&scene, NULL);
    /* valgrind has masks of its own. */
    CHECK(getenv("KIT_VALGRIND") != NULL || others_block_everything() >= 1);
    for (number = 0; number < 100; number++)
        CHECK(kill(getpid(), SIGUSR1) == 0);
    kit_until(job, BLKM_JOB_READY);
    CHECK(caught > 0 && caught_here == caught);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0 && sigisemptyset(&mask));
    for (number = 1; number < 32; number++) {
        CHECK(sigaction(number, NULL, &there) == 0);
        CHECK(there.sa_handler == before[number].sa_handler && there.sa_flags == before[number].sa_flags);
    }
    blkm_job_close(&job);
    kit_end(&scene);
}

struct teller {
    atomic_int lines, inside, over;
    blkm_log_level most;
};

static void tell(void *opaque, blkm_log_level level, const char *target, const char *msg)
{
    struct teller *teller = opaque;

    teller->inside++;
    CHECK(!teller->over && level >= BLKM_LOG_ERROR && level <= teller->most);
    CHECK(strncmp(target, "blkmirror", 9) == 0 && msg[0] != 0 && strchr(msg, '\n') == NULL);
    teller->lines++;
    teller->inside--;
}

/* A mirror from its start to its end, for its lines. */
static void make_lines(struct scene *scene)
{
    blkm_job *job = kit_mirror(scene, NULL);

    kit_until(job, BLKM_JOB_READY);
    OK(blkm_job_complete(job, BLKM_COMPLETE_POINT_IN_TIME));
    kit_outcome(job);
    blkm_job_close(&job);
}

static int lines_at(struct scene *scene, blkm_log_level level)
{
    static struct teller tellers[8];
    struct teller *teller = &tellers[level];

    teller->most = level;
    OK(blkm_log_set_handler(level, tell, teller));
    make_lines(scene);
    OK(blkm_log_set_handler(BLKM_LOG_OFF, NULL, NULL));
    return teller->lines;
}

static void the_log_tells_as_much_as_was_asked_for(void)
{
    struct scene scene = kit_scene(MIB);
    int info, debug;

    REFUSED(EINVAL, "BLKM_LOG", blkm_log_set_handler(BLKM_LOG_DEBUG + 1, tell, NULL));
    CHECK(lines_at(&scene, BLKM_LOG_OFF) == 0);
    CHECK(lines_at(&scene, BLKM_LOG_ERROR) == 0);
    CHECK(lines_at(&scene, BLKM_LOG_WARN) == 0);
    info = lines_at(&scene, BLKM_LOG_INFO);
    debug = lines_at(&scene, BLKM_LOG_DEBUG);
    CHECK(info > 0 && debug > info);
    kit_end(&scene);
}

static atomic_bool enough;

static void *makes_lines_all_the_time(void *scene)
{
    while (!enough)
        make_lines(scene);
    return NULL;
}

/* Otherwise a host that unloads its handler, or frees what it points to, would crash now and then. */
static void a_handler_that_was_replaced_is_not_called_any_more(void)
{
    struct scene scene = kit_scene(MIB);
    static struct teller tellers[200];
    pthread_t thread;
    int i, told = 0;

    CHECK(pthread_create(&thread, NULL, makes_lines_all_the_time, &scene) == 0);
    for (i = 0; i < 200; i++) {
        tellers[i].most = BLKM_LOG_DEBUG;
        OK(blkm_log_set_handler(BLKM_LOG_DEBUG, tell, &tellers[i]));
        if (i > 0) {
            CHECK(tellers[i - 1].inside == 0);
            tellers[i - 1].over = 1;
            told += tellers[i - 1].lines;
        }
        kit_sleep_ms(1);
    }
    OK(blkm_log_set_handler(BLKM_LOG_OFF, NULL, NULL));
    tellers[199].over = 1;
    enough = true;
    CHECK(pthread_join(thread, NULL) == 0 && told > 0);
    kit_end(&scene);
}

static atomic_bool stuck, leave;

static void tell_for_long(void *opaque, blkm_log_level level, const char *target, const char *msg)
{
    (void)opaque, (void)level, (void)target, (void)msg;
    /* What fails here is told, too. */
    if (is_mine)
        return;
    stuck = true;
    while (!leave)
        kit_sleep_ms(1);
}

/* Otherwise whoever sets a handler would hang with the old one. */
static void a_handler_that_does_not_return_makes_others_fail_and_not_hang(void)
{
    struct scene scene = kit_scene(MIB);
    pthread_t thread;

    is_mine = 1;
    enough = false;
    OK(blkm_log_set_handler(BLKM_LOG_DEBUG, tell_for_long, NULL));
    CHECK(pthread_create(&thread, NULL, makes_lines_all_the_time, &scene) == 0);
    while (!stuck)
        kit_sleep_ms(1);
    REFUSED(EBUSY, "does not return", blkm_log_set_handler(BLKM_LOG_OFF, NULL, NULL));
    enough = true;
    leave = true;
    CHECK(pthread_join(thread, NULL) == 0);
    OK(blkm_log_set_handler(BLKM_LOG_OFF, NULL, NULL));
    kit_end(&scene);
}

CHECKS(HOLDS(the_host_is_called_on_each_worker_with_its_number), HOLDS(our_threads_block_all_signals_and_leave_handlers_alone),
       HOLDS(the_log_tells_as_much_as_was_asked_for), HOLDS(a_handler_that_was_replaced_is_not_called_any_more),
       HOLDS(a_handler_that_does_not_return_makes_others_fail_and_not_hang))
