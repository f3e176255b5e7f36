/*
 * Whether the alignment of a device is one that somebody reported. Called as PROGRAM PATH WORD: "assumed" or "reported".
 */
#include "kit.h"

int main(int argc, char **argv)
{
    blkm_device *device = NULL;
    blkm_device_info info = { .struct_size = sizeof info };

    CHECK(argc == 3);
    OK(blkm_device_open(argv[1], BLKM_ROLE_SOURCE, NULL, &device));
    OK(blkm_device_get_info(device, &info));
    fprintf(stderr, "flags 0x%llx, alignment %llu\n", (unsigned long long)info.flags, (unsigned long long)info.request_align_bytes);
    CHECK(((info.flags & BLKM_DEVICE_IS_ALIGN_ASSUMED) != 0) == (strcmp(argv[2], "assumed") == 0));
    CHECK((info.flags & BLKM_DEVICE_IS_ALIGN_ASSUMED) == 0 || info.request_align_bytes == 4096);
    blkm_device_close(&device);
    return 0;
}
