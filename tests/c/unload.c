/*
 * A library that is closed while threads that have used it live on, and one that is closed when they have ended. Called as PROGRAM
 * DIRECTORY; the library is found by its soname and not linked.
 *
 * While a thread lives that has something of the library's to take down at its end, the C library leaves it loaded, whoever closes it.
 */
#define _GNU_SOURCE 1
#include <blkmirror.h>
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 4
#define ROUNDS 20
#define CHECK(holds) ((holds) ? (void)0 : failed(__LINE__, #holds))

static void failed(int line, const char *what)
{
    fprintf(stderr, "unload.c:%d: does not hold: %s\n", line, what);
    _exit(1);
}

static void *handle;
static blkm_drive *drive;
static blkm_engine *engine;
static sem_t done, go;

/* The function of that name; typed by the header's declaration. */
#define FIND(name) __typeof__(&name) find_##name; find(#name, &find_##name, sizeof find_##name)
static void find(const char *name, void *function, size_t size)
{
    void *found = dlsym(handle, name);

    CHECK(found != NULL && size == sizeof found);
    memcpy(function, &found, size);
}

/* Leaves behind whatever a thread has of the library's: a text, the use of a queue. It ends after the library is gone. */
static void *uses_the_library(void *unused)
{
    FIND(blkm_job_pause);
    FIND(blkm_error_msg);
    FIND(blkm_queue_create);
    FIND(blkm_queue_flush);
    FIND(blkm_queue_process);
    FIND(blkm_queue_destroy);
    blkm_queue *queue = NULL;
    blkm_completion completion;

    (void)unused;
    CHECK(find_blkm_job_pause(NULL) < 0 && strlen(find_blkm_error_msg()) > 0);
    CHECK(find_blkm_queue_create(drive, NULL, &queue) == 0);
    find_blkm_queue_flush(queue, NULL, 0);
    CHECK(find_blkm_queue_process(queue, &completion, 1, 1, -1) == 1 && completion.ret == 0);
    find_blkm_queue_destroy(&queue);
    sem_post(&done);
    sem_wait(&go);
    return NULL;
}

/* The threads end: with whatever is still registered for their end. */
static void end(const pthread_t *threads)
{
    int i;

    for (i = 0; i < THREADS; i++)
        sem_post(&go);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void once(const char *path, int threads_end_first)
{
    pthread_t threads[THREADS];
    int i;

    handle = dlopen("libblkmirror.so.0", RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        fprintf(stderr, "%s\n", dlerror());
    CHECK(handle != NULL);
    {
        FIND(blkm_device_open);
        FIND(blkm_device_close);
        FIND(blkm_drive_create);
        FIND(blkm_drive_close);
        FIND(blkm_engine_create);
        FIND(blkm_engine_destroy);
        FIND(blkm_job_pause);
        blkm_engine_opts opts = { .struct_size = sizeof opts, .workers = 2, .window_bytes = 1 << 20 };
        blkm_device *device = NULL;

        CHECK(find_blkm_device_open(path, BLKM_ROLE_DISK, NULL, &device) == 0);
        CHECK(find_blkm_drive_create(device, NULL, &drive) == 0);
        CHECK(find_blkm_engine_create(&opts, &engine) == 0);
        CHECK(find_blkm_job_pause(NULL) < 0);
        for (i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, uses_the_library, NULL) == 0);
        for (i = 0; i < THREADS; i++)
            sem_wait(&done);
        find_blkm_device_close(&device);
        find_blkm_drive_close(&drive);
        find_blkm_engine_destroy(&engine);
    }
    if (threads_end_first)
        end(threads);
    CHECK(dlclose(handle) == 0);
    if (!threads_end_first)
        end(threads);
}

static void *on_a_thread(void *path)
{
    once(path, 1);
    return NULL;
}

/* Whether it is there. To ask is to open and close it, so asking once more tells whether the last reason to stay has gone. */
static int is_loaded(void)
{
    void *there = dlopen("libblkmirror.so.0", RTLD_NOW | RTLD_NOLOAD);

    if (there != NULL)
        CHECK(dlclose(there) == 0);
    return there != NULL;
}

int main(int argc, char **argv)
{
    char path[1024];
    FILE *file;
    int i;

    CHECK(argc == 2 && sem_init(&done, 0, 0) == 0 && sem_init(&go, 0, 0) == 0);
    snprintf(path, sizeof path, "%s/disk", argv[1]);
    file = fopen(path, "we");
    CHECK(file != NULL && ftruncate(fileno(file), 1 << 20) == 0 && fclose(file) == 0);
    /* As a plugin's own thread does it. Nothing of the library's is left on any other, so it goes for good each time. */
    for (i = 0; i < ROUNDS; i++) {
        pthread_t thread;

        CHECK(pthread_create(&thread, NULL, on_a_thread, path) == 0 && pthread_join(thread, NULL) == 0);
        is_loaded();
        CHECK(!is_loaded());
    }
    for (i = 0; i < ROUNDS; i++) {
        once(path, i % 2);
        is_loaded();
    }
    return 0;
}
