/*
 * A guest's disk is mirrored while the guest writes to it, and the guest moves over to the target: blkmirror.hpp at work.
 *
 *     c++ -std=c++17 -pthread raii.cpp $(pkg-config --cflags --libs blkmirror) -o raii
 *     ./raii DISK TARGET          both are overwritten; TARGET is created if it is missing
 *
 * Errors are shown both ways: on the guest's thread results are looked at, elsewhere .value() throws.
 */
#include <blkmirror.hpp>

#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <poll.h>
#include <string_view>
#include <thread>

using namespace std::chrono_literals;

namespace {

constexpr std::size_t block_bytes = 4096;

void say(std::string_view text) { std::fprintf(stderr, "raii: %.*s\n", static_cast<int>(text.size()), text.data()); }

/* A thread of the host that carries out a guest's writes: 1, 2, 3, ... round and round. It never hears of the mirror. */
class guest {
public:
    guest(const blkm::drive &of, std::uint64_t blocks)
        : page_(blkm::buffer::allocate(of, block_bytes).value()), queue_(blkm::queue::create(of).value()), blocks_(blocks),
          thread_([this] { run(); }) {}
    ~guest() { stop(); }
    guest(const guest &) = delete;
    guest &operator=(const guest &) = delete;

    /* How many writes were acknowledged; failed() says whether that is the end of them. */
    std::uint64_t stop() {
        stopping_ = true;
        if (thread_.joinable())
            thread_.join();
        return writes_;
    }
    bool failed() const { return failed_; }

private:
    void run() {
        for (std::uint64_t number = 1; !stopping_ && !failed_; ++number) {
            for (std::size_t at = 0; at < block_bytes; at += sizeof number)
                std::memcpy(page_.data() + at, &number, sizeof number);
            queue_.write((number - 1) % blocks_ * block_bytes, page_.data(), block_bytes, nullptr);
            // A host with an event loop waits for completion_fd() instead, and drains without sleeping.
            const auto taken = queue_.drain([this](const blkm::completion &done) { ended(done); }, 1);
            if (!taken) {
                say(taken.error().text());
                failed_ = true;
            }
        }
        // On its own thread. Nothing of the guest's is under way; what a target that hangs may still have is not waited for any
        // longer.
        if (const auto closed = queue_.close(std::chrono::seconds(5)); !closed)
            say(closed.error().text());
    }
    void ended(const blkm::completion &done) {
        if (done.ok())
            ++writes_;
        else {
            say(done.text());
            failed_ = true;
        }
        if (done.memory_in_use())
            page_.release(); // The kernel may have it for as long as this process lives.
    }

    blkm::buffer page_;
    blkm::queue queue_;
    std::uint64_t blocks_;
    std::uint64_t writes_ = 0;
    std::atomic<bool> stopping_{false}, failed_{false};
    std::thread thread_; // Last: it uses all of the above.
};

blkm::device open_target(const char *path, std::uint64_t size_bytes) {
    auto target = blkm::device::open(path, blkm::role::target);
    if (!target && target.error().as_error_code() == std::errc::no_such_file_or_directory)
        target = blkm::device::create(path, size_bytes);
    return std::move(target).value();
}

/* The event loop of the host, as long as the job runs. */
blkm::outcome follow(const blkm::engine &engine, const blkm::job &job) {
    pollfd events{engine.event_fd().value(), POLLIN, 0};
    bool over = false;

    while (!over) {
        poll(&events, 1, -1);
        engine
            .drain_events([&](const blkm::event &event) {
                if (!job.is_about(event))
                    return;
                say(event.text());
                blkm::result<void> asked;
                switch (event.what()) {
                case blkm::event_type::ready:
                    asked = job.complete(blkm::completion_mode::pivot);
                    break;
                case blkm::event_type::pending:
                    // Both disks are equal and the guest's requests are held: write down here, durably, that its disk is the
                    // target.
                    asked = job.finalize();
                    break;
                case blkm::event_type::concluded:
                    over = true;
                    break;
                default:
                    break;
                }
                if (!asked) // The job has moved on since the event; its outcome says why.
                    say(asked.error().text());
            })
            .value();
    }
    return job.outcome().value();
}

int run(const char *disk_path, const char *target_path) {
    const auto engine = blkm::engine::create().value();
    blkm::drive_options sized;
    sized.align_bytes = block_bytes; // The guest sees blocks of that size, so its disk may move to devices with such blocks.
    const auto drive = blkm::drive::create(blkm::device::open(disk_path, blkm::role::disk).value(), sized).value();
    const auto size_bytes = drive.info().value().size_bytes;
    if (size_bytes < block_bytes)
        return say("the disk is too small"), 1;
    const auto target = open_target(target_path, size_bytes);

    blkm::mirror_options options;
    options.flags = blkm::mirror_flags::manual_finalize | blkm::mirror_flags::detect_zeroes;
    options.max_pause = 100ms;
    options.budget = blkm::latency_budget::percent_of_baseline(300);
    drive.check_mirror(engine, target, options, true).value();

    guest writer(drive, size_bytes / block_bytes);
    std::this_thread::sleep_for(200ms); // So that it is known what its requests take without a job.
    const auto job = drive.mirror(engine, target, options).value();
    const auto outcome = follow(engine, job);
    std::this_thread::sleep_for(100ms); // The guest goes on, wherever its disk is now.
    const auto writes = writer.stop();
    if (!outcome.completed())
        return say(outcome.text()), 1;

    const auto took = job.latencies().value();
    const auto us = [](blkm::nanoseconds time) { return std::chrono::duration<double, std::micro>(time).count(); };
    std::printf("%" PRIu64 " writes; held for %.1f ms; p99 %.0f us before, %.0f us during the job\n", writes,
                us(outcome.pause().value_or(0ns)) / 1e3, us(took.without_job.p99()), us(took.with_job.p99()));
    return writer.failed() ? 1 : 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s DISK TARGET\n", argv[0]);
        return 2;
    }
    try {
        return run(argv[1], argv[2]);
    } catch (const std::exception &why) {
        say(why.what());
        return 1;
    }
}
