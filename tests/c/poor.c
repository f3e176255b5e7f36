/*
 * A process that may do little. Called as PROGRAM DIRECTORY HOW:
 *
 *     locked    nobody, with 8 MiB of locked memory
 *     tight     nobody, with so little locked memory that not even a ring fits
 *     files     so few descriptors that something is missing at each step; more each time, until all works
 *     forbidden io_uring is forbidden by a filter
 */
#include "kit.h"

#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define NOBODY 65534

static const char *how;

static void limit(int what, rlim_t number)
{
    struct rlimit limit = { .rlim_cur = number, .rlim_max = number };

    CHECK(setrlimit((__rlimit_resource_t)what, &limit) == 0);
}

/* All rights go; the directory is ours already. */
static void become_nobody(void)
{
    CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

/* One line that names what the host can change. */
static void says(int code, const char *word)
{
    fprintf(stderr, "%d: %s\n", code, blkm_error_msg());
    CHECK(code < 0 && strstr(blkm_error_msg(), word) != NULL && strchr(blkm_error_msg(), '\n') == NULL);
}

/* What a host does, from its start to a pivot; the first error, whose text is the thread's last. Nothing is left open. */
static int everything(const char *disk_path, const char *target_path, bool region, const char **step)
{
    blkm_engine_opts engine_opts = { .struct_size = sizeof engine_opts, .workers = 2 };
    blkm_mirror_opts opts = kit_opts(0);
    blkm_device *disk = NULL, *target = NULL;
    blkm_engine *engine = NULL;
    blkm_drive *drive = NULL;
    blkm_queue *queue = NULL;
    blkm_job *job = NULL;
    char *memory = NULL;
    int code;

#define TRY(what, call) if (*step = what, (code = (call)) < 0) goto out
    TRY("engine", blkm_engine_create(&engine_opts, &engine));
    TRY("disk", blkm_device_open(disk_path, BLKM_ROLE_DISK, NULL, &disk));
    TRY("target", blkm_device_open(target_path, BLKM_ROLE_TARGET, NULL, &target));
    TRY("drive", blkm_drive_create(disk, NULL, &drive));
    TRY("queue", blkm_queue_create(drive, NULL, &queue));
    memory = blkm_blockalign(drive, 16 * MIB);
    CHECK(memory != NULL);
    memset(memory, 0x42, 16 * MIB);
    if (region)
        TRY("region", blkm_mem_region_map(drive, memory, 16 * MIB, 0));
    blkm_queue_write(queue, 0, memory, 4096, NULL, 0);
    TRY("submit", blkm_queue_submit(queue));
    kit_done(queue);
    TRY("mirror", blkm_mirror_start(engine, drive, target, &opts, &job));
    kit_until(job, BLKM_JOB_READY);
    blkm_queue_write(queue, 4096, memory, 4096, NULL, 0);
    kit_done(queue);
    TRY("complete", blkm_job_complete(job, BLKM_COMPLETE_PIVOT));
    CHECK(kit_outcome(job).flags == (BLKM_OUTCOME_PIVOTED | BLKM_OUTCOME_TARGET_COMPLETE));
    if (region) {
        blkm_queue_info info = { .struct_size = sizeof info };

        OK(blkm_queue_get_info(queue, &info));
        CHECK(info.registered_bytes == 0 && info.unregistered_bytes == 16 * MIB && info.register_ret == -ENOMEM);
    }
    code = 0;
out:
    blkm_job_close(&job);
    blkm_queue_destroy(&queue);
    blkm_vfree(memory);
    blkm_drive_close(&drive);
    blkm_device_close(&disk), blkm_device_close(&target);
    blkm_engine_destroy(&engine);
    return code;
}

/* Two equal files at the end prove the mirror: nothing was written after the pivot. */
static void runs(const char *disk, const char *target)
{
    const char *step;

    OK(everything(disk, target, true, &step));
    CHECK(kit_same(disk, target));
}

/* How many descriptors are open. */
static int descriptors(void)
{
    DIR *open_ones = opendir("/proc/self/fd");
    int count = 0;

    CHECK(open_ones != NULL);
    while (readdir(open_ones) != NULL)
        count++;
    closedir(open_ones);
    return count;
}

static void allow_files(rlim_t number)
{
    struct rlimit limits;

    CHECK(getrlimit(RLIMIT_NOFILE, &limits) == 0);
    limits.rlim_cur = number == 0 ? limits.rlim_max : number;
    CHECK(setrlimit(RLIMIT_NOFILE, &limits) == 0);
}

/* Otherwise a host with few descriptors would get half an object, or a riddle, or lose descriptors each time that it tries. */
static void with_few_files(const char *disk, const char *target)
{
    int before = descriptors(), first = dup(0), more, refused = 0, code = -1;

    CHECK(first >= 0 && close(first) == 0);
    for (more = 0; code < 0; more++) {
        const char *step = "";

        CHECK(more < 200);
        allow_files((rlim_t)(first + more));
        code = everything(disk, target, false, &step);
        fprintf(stderr, "%d more, %s: ", more, step);
        if (code < 0) {
            says(code, "file");
            CHECK(strstr(blkm_error_msg(), "ulimit -n") != NULL);
            refused++;
        }
        allow_files(0);
        CHECK(descriptors() == before);
    }
    CHECK(refused > 4);
}

static void forbid_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void a_host_with_few_rights_is_served_or_told_what_to_do(void)
{
    const char *disk = kit_file("disk", 8 * MIB, 3), *target = kit_file("target", 8 * MIB, 0);
    blkm_engine *engine = NULL;

    CHECK(chown(disk, NOBODY, NOBODY) == 0 && chown(target, NOBODY, NOBODY) == 0);
    if (strcmp(how, "locked") == 0) {
        limit(RLIMIT_MEMLOCK, 8 * MIB);
        become_nobody();
        OK(blkm_probe());
        runs(disk, target);
    } else if (strcmp(how, "tight") == 0) {
        limit(RLIMIT_MEMLOCK, 16 * KIB);
        become_nobody();
        /* Kernels before 6.13 do not count the rings. */
        if (blkm_engine_create(NULL, &engine) == 0)
            blkm_engine_destroy(&engine);
        else
            says(-ENOMEM, "ulimit -l");
    } else if (strcmp(how, "files") == 0) {
        with_few_files(disk, target);
        CHECK(kit_same(disk, target));
    } else {
        forbid_io_uring();
        says(blkm_probe(), "seccomp");
        says(blkm_engine_create(NULL, &engine), "io_uring_setup");
        CHECK(engine == NULL);
        REFUSED(EPERM, "io_uring", blkm_probe());
        /* What needs no ring goes on. */
        CHECK(access(disk, F_OK) == 0);
    }
}

int main(int argc, char **argv)
{
    static const struct check checks[] = { HOLDS(a_host_with_few_rights_is_served_or_told_what_to_do), { NULL, NULL } };

    CHECK(argc == 3);
    how = argv[2];
    return kit_main(2, argv, checks);
}
