/* Version, features, and what the kernel lets us do. */
#include "kit.h"

/* Otherwise a host would decide by numbers that are not those of the package; PACKAGE_VERSION says which those are. */
static void header_library_and_package_are_of_one_version(void)
{
    unsigned major = 99, minor = 99, patch = 99;
    const char *package = getenv("PACKAGE_VERSION");

    CHECK(package != NULL && sscanf(package, "%u.%u.%u", &major, &minor, &patch) == 3);
    CHECK(BLKM_VERSION_MAJOR == major);
    CHECK(BLKM_VERSION_MINOR == minor);
    CHECK(BLKM_VERSION_PATCH == patch);
    CHECK(BLKM_VERSION_NUMBER == major * 65536 + minor * 256 + patch);
    CHECK(blkm_version() == BLKM_VERSION_NUMBER);
    CHECK(strcmp(blkm_version_string(), package) == 0);
}

/* The preprocessor decides with it, so it must be one of its expressions. */
#if !BLKM_CHECK_VERSION(BLKM_VERSION_MAJOR, BLKM_VERSION_MINOR) || BLKM_CHECK_VERSION(BLKM_VERSION_MAJOR + 1, 0) || \
    BLKM_CHECK_VERSION(BLKM_VERSION_MAJOR, BLKM_VERSION_MINOR + 1)
#error BLKM_CHECK_VERSION
#endif
#if BLKM_VERSION_NUMBER >= 0x7fffffff
#error BLKM_VERSION_NUMBER
#endif

static void features_are_known_by_their_names(void)
{
    static const char *const features[] = { "auto-escalation", "copy", "discard", "latency-budget", "live-mirror",
                                            "trackers", "write-blocking", "write-zeroes" };
    size_t i;

    for (i = 0; i < sizeof features / sizeof *features; i++)
        GIVES(1, blkm_has_feature(features[i]));
    GIVES(0, blkm_has_feature("persistent-bitmaps"));
    GIVES(0, blkm_has_feature("cop"));
    GIVES(0, blkm_has_feature("copy2"));
    GIVES(0, blkm_has_feature(""));
    GIVES(0, blkm_has_feature(NULL));
}

/* Otherwise a host would not learn in advance whether it can mirror. */
static void the_probe_leaves_nothing_behind(void)
{
    int before = dup(0), after;

    CHECK(before >= 0 && close(before) == 0);
    OK(blkm_probe());
    OK(blkm_probe());
    after = dup(0);
    CHECK(after == before && close(after) == 0);
}

CHECKS(HOLDS(header_library_and_package_are_of_one_version), HOLDS(features_are_known_by_their_names), HOLDS(the_probe_leaves_nothing_behind))
