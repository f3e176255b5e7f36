#include <blkmirror.hpp>
std::size_t other(const blkm::drive &drive, blkm::mirror_flags flags) {
    return blkm::contains(flags, blkm::mirror_flags::complete) ? 0 : drive.info()->size_bytes;
}
