/*
 * What the C programs of these tests share: checks that say what did not hold, files, and a drive with a job to look at.
 *
 * A program is called as PROGRAM DIRECTORY [CHECK]: it runs its checks, or the one that is named, each in a directory of its own below
 * DIRECTORY, and ends with 1 at the first that does not hold.
 */
#ifndef KIT_H
#define KIT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <blkmirror.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
/* Longer than anything takes here. */
#define LONG_NS ((int64_t)20 * 1000 * 1000 * 1000)

/* Ends the program unless it holds. */
#define CHECK(holds) ((holds) ? (void)0 : kit_failed(__FILE__, __LINE__, #holds, blkm_error_msg()))
/* The call succeeds with this number. */
#define GIVES(number, call) kit_gives(__FILE__, __LINE__, #call, (number), (call))
/* The call succeeds with 0. */
#define OK(call) GIVES(0, call)
/* The call fails with -code, and the thread's text has the word in it. */
#define REFUSED(code, word, call) kit_refused(__FILE__, __LINE__, #call, (code), (word), (call))

void kit_failed(const char *file, int line, const char *what, const char *text);
void kit_gives(const char *file, int line, const char *call, int number, int got);
void kit_refused(const char *file, int line, const char *call, int code, const char *word, int got);

/* A property, and the function that looks whether it holds. */
struct check {
    const char *name;
    void (*run)(void);
};
#define CHECKS(...)                                                      \
    int main(int argc, char **argv)                                      \
    {                                                                    \
        static const struct check checks[] = { __VA_ARGS__, { NULL, NULL } }; \
        return kit_main(argc, argv, checks);                             \
    }
#define HOLDS(name) { #name, name }
int kit_main(int argc, char **argv, const struct check *checks);

/* The path of a file in the check's directory; good for the program's life. */
const char *kit_path(const char *name);
/* Makes it, full of bytes that depend on `seed`; 0: one hole. */
const char *kit_file(const char *name, uint64_t len, unsigned seed);
/* Whether both have the same bytes. */
bool kit_same(const char *a, const char *b);
bool kit_readable(int fd);
void kit_sleep_ms(long ms);
uint64_t kit_now_ns(void);
/* Runs it on a thread of its own, and waits for its end. */
void kit_on_a_thread(void *(*run)(void *), void *argument);
/* Waits for a child; its exit code, or -signal. */
int kit_child(pid_t child);

/* A disk with data, its drive, an engine with one worker, and an empty target. */
struct scene {
    blkm_engine *engine;
    blkm_device *disk;
    blkm_drive *drive;
    blkm_device *target;
};
struct scene kit_scene(uint64_t len);
void kit_end(struct scene *scene);
blkm_engine *kit_engine(void);
/* A mirror of the scene; NULL options are the defaults. */
blkm_job *kit_mirror(struct scene *scene, const blkm_mirror_opts *opts);
blkm_mirror_opts kit_opts(uint64_t flags);
/* Waits until it is in that state. */
void kit_until(blkm_job *job, blkm_job_status status);
/* Waits for its end, and gives its outcome. */
blkm_outcome kit_outcome(blkm_job *job);

/* Takes one completion. */
blkm_completion kit_take(blkm_queue *queue);
/* Takes one, which must be a success. */
void kit_done(blkm_queue *queue);
/* Takes one, which must have failed like that. */
void kit_fails(blkm_queue *queue, int code, const char *word);
blkm_queue *kit_queue(blkm_drive *drive, uint64_t flags, uint32_t depth);

#endif
