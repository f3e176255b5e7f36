/*
 * Copies a disk like copy.c, but does not give up at the first error: a full target, or a source that does not answer for a while.
 *
 *     cc errors.c $(pkg-config --cflags --libs blkmirror) -o errors
 *     ./errors SOURCE TARGET      TARGET is overwritten; a file that is missing is created
 *
 * A target without space stops the job where it is. The user frees some, and the job goes on, for nothing that was copied is lost. A
 * source that fails stops it too, and is tried again some times. Ctrl-C ends it; the target is no copy then.
 */
#define _GNU_SOURCE 1
#include <blkmirror.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { AGAIN_MS = 1000, TRIES = 5 };

/* Errors that one stop of the job comes from are told once. */
struct stop {
    bool told;
    int tries;
};

/* What an event has to say about an error. The number is for programs, the text for people. */
static void tell(const blkm_event *event, struct stop *stop)
{
    const char *side = event->side == BLKM_SIDE_SOURCE ? "source" : "target";

    if (event->action != BLKM_ACTION_STOP || stop->told)
        return;
    stop->told = true;
    fprintf(stderr, "errors: %s\n", event->msg);
    if (event->io_status == BLKM_IO_STATUS_NOSPACE)
        fprintf(stderr, "errors: the %s is full; free some space, it is tried again every second (Ctrl-C gives up)\n", side);
    else
        fprintf(stderr, "errors: the %s fails at byte %" PRIu64 " (errno %d); it is tried again\n", side, event->offset_bytes,
                -event->ret);
}

/* Takes all events; whether the job is over. */
static bool take_events(blkm_engine *engine, struct stop *stop)
{
    blkm_event event = { .struct_size = sizeof event };
    bool over = false;

    while (blkm_engine_next_event(engine, &event) == 1) {
        if (event.type == BLKM_EVENT_ERROR)
            tell(&event, stop);
        else if (event.type == BLKM_EVENT_OVERFLOW)
            fprintf(stderr, "errors: %s\n", event.msg); /* Nothing that is needed here: the job's state is asked for below. */
        over = over || event.type == BLKM_EVENT_CONCLUDED;
    }
    return over;
}

/* Lets a job that an error has stopped go on, if there is hope. */
static void again(blkm_job *job, struct stop *stop)
{
    blkm_job_info info = { .struct_size = sizeof info };

    if (blkm_job_query(job, &info) < 0 || info.status != BLKM_JOB_PAUSED || info.io_status == BLKM_IO_STATUS_OK)
        return;
    if (info.io_status == BLKM_IO_STATUS_FAILED && ++stop->tries > TRIES) {
        fprintf(stderr, "errors: given up\n");
        blkm_job_cancel(job, true);
        return;
    }
    fprintf(stderr, "errors: going on at %" PRIu64 " of %" PRIu64 " MiB\n", info.done_bytes >> 20, info.disk_bytes >> 20);
    stop->told = false;
    if (blkm_job_resume(job) < 0)
        fprintf(stderr, "errors: %s\n", blkm_error_msg());
}

/* Follows the job to its end; gives the exit code. */
static int follow(blkm_engine *engine, blkm_job *job, int signals)
{
    struct pollfd fds[2] = { { .fd = blkm_engine_get_event_fd(engine), .events = POLLIN }, { .fd = signals, .events = POLLIN } };
    blkm_outcome outcome = { .struct_size = sizeof outcome };
    struct stop stop = { 0 };
    struct signalfd_siginfo signal;

    while (!take_events(engine, &stop)) {
        int ready = poll(fds, 2, AGAIN_MS);
        if (ready == 0)
            again(job, &stop);
        if (ready > 0 && (fds[1].revents & POLLIN) && read(signals, &signal, sizeof signal) == sizeof signal)
            blkm_job_cancel(job, true);
    }
    if (blkm_job_get_outcome(job, &outcome) < 0) {
        fprintf(stderr, "errors: %s\n", blkm_error_msg());
        return 1;
    }
    switch (outcome.end) {
    case BLKM_END_COMPLETED:
        printf("%" PRIu64 " MiB copied\n", outcome.copied_bytes >> 20);
        return 0;
    case BLKM_END_CANCELLED:
        fprintf(stderr, "errors: cancelled, %" PRIu64 " MiB are missing\n", outcome.left_dirty_bytes >> 20);
        return 3;
    default:
        fprintf(stderr, "errors: %s\n", outcome.error_msg);
        return 1;
    }
}

/* The target, created with the source's size if there is none. */
static int open_target(const char *path, blkm_device *source, blkm_device **target)
{
    blkm_device_info info = { .struct_size = sizeof info };
    int ret = blkm_device_open(path, BLKM_ROLE_TARGET, NULL, target);

    if (ret == -ENOENT && (ret = blkm_device_get_info(source, &info)) == 0)
        ret = blkm_device_create(path, info.size_bytes, target);
    return ret;
}

int main(int argc, char **argv)
{
    blkm_mirror_opts opts = {
        .struct_size = sizeof opts,
        /* A cable may come back, a volume may grow; anything else that happens to the target ends the job. */
        .on_source_error = BLKM_ON_ERROR_STOP,
        .on_target_error = BLKM_ON_ERROR_ENOSPC,
    };
    blkm_device *source = NULL, *target = NULL;
    blkm_engine *engine = NULL;
    blkm_job *job = NULL;
    sigset_t mask;
    int signals, code = 1;

    if (argc != 3) {
        fprintf(stderr, "usage: %s SOURCE TARGET\n", argv[0]);
        return 2;
    }
    /* Signals come by a descriptor. The library's own threads block them all. */
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signals = signalfd(-1, &mask, SFD_CLOEXEC);
    if (blkm_device_open(argv[1], BLKM_ROLE_SOURCE, NULL, &source) < 0 || open_target(argv[2], source, &target) < 0 ||
        blkm_engine_create(NULL, &engine) < 0 || blkm_copy_start(engine, source, target, &opts, &job) < 0)
        fprintf(stderr, "errors: %s\n", blkm_error_msg());
    else
        code = follow(engine, job, signals);
    blkm_job_close(&job);
    blkm_engine_destroy(&engine);
    blkm_device_close(&target);
    blkm_device_close(&source);
    close(signals);
    return code;
}
