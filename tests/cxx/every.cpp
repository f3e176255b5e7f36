#include <blkmirror.hpp>
#include <blkmirror.hpp>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
#include <unistd.h>
using namespace std::chrono_literals;
#define CHECK(what) ((what) ? void() : wrong(__LINE__, #what))
[[noreturn]] static void wrong(int line, const char *what) { std::fprintf(stderr, "line %d: %s\n", line, what), std::exit(1); }
std::size_t other(const blkm::drive &, blkm::mirror_flags);
static_assert(!std::is_copy_constructible_v<blkm::job> && std::is_nothrow_move_constructible_v<blkm::job>);
static_assert(!std::is_copy_constructible_v<blkm::result<blkm::queue>> && std::is_nothrow_move_assignable_v<blkm::result<blkm::queue>>);
static_assert(!std::is_polymorphic_v<blkm::job> && sizeof(blkm::job) == sizeof(void *));
static_assert(blkm::contains(blkm::request_flags::fua | blkm::request_flags::may_unmap, blkm::request_flags::fua));
static_assert(blkm::latency_budget::below(1ms).value() == 1000000);

static void errors() {
    auto failed = blkm::device::open("/nonexistent/disk", blkm::role::disk);
    CHECK(!failed && !failed.has_value() && failed.error().code() == ENOENT);
    const blkm::error kept = failed.error();
    CHECK(kept.text().find("/nonexistent/disk") != std::string_view::npos && std::strlen(kept.c_str()) == kept.text().size());
    CHECK(kept.as_error_code() == std::errc::no_such_file_or_directory);
    CHECK(!blkm::device::open("/another", blkm::role::disk) && kept.text().find("another") == std::string_view::npos);
    // Cut between characters: the last one does not fit whole.
    const std::string text = std::string(510, 'x') + "\xc3\xa4" + "y";
    CHECK(blkm::error(EIO, text).text() == std::string(510, 'x'));
    const blkm::engine none;
    CHECK(!none && none.event_fd().error().code() == EINVAL);
    blkm::result<int> number = 3;
    CHECK(*number == 3 && std::move(number).value_or(4) == 3 && blkm::result<int>(kept).value_or(4) == 4);
    number = blkm::result<int>(kept);
    CHECK(!number && number.error().text() == kept.text());
    // A value that owns is destroyed once, whatever way the result goes.
    auto watched = std::make_shared<int>(1);
    {
        blkm::result<std::shared_ptr<int>> a = std::shared_ptr<int>(watched), b = kept;
        CHECK(watched.use_count() == 2);
        b = std::move(a);
        CHECK(b && **b == 1 && (*b).use_count() == 2);
        b = blkm::result<std::shared_ptr<int>>(kept);
        CHECK(watched.use_count() == 1);
    }
    CHECK(watched.use_count() == 1);
#if BLKM_HPP_EXCEPTIONS
    try {
        (void)blkm::device::open("/nonexistent/disk", blkm::role::disk).value();
        CHECK(false);
    } catch (const std::system_error &error) {
        CHECK(error.code() == std::errc::no_such_file_or_directory && kept.text() == error.what());
    }
    try {
        blkm::result<void>(kept).value();
        CHECK(false);
    } catch (const blkm::exception &error) {
        CHECK(error.why().code() == ENOENT);
    }
    blkm::result<void>().value();
#endif
}

int main(int argc, char **argv) {
    CHECK(argc == 3 && blkm::version_number() == BLKM_VERSION_NUMBER && blkm::has_feature("copy") && blkm::probe());
    CHECK(blkm::set_log_handler(blkm::log_level::off, nullptr));
    errors();
    auto disk = std::move(*blkm::device::open(argv[1], blkm::role::disk));
    auto target = std::move(*blkm::device::create(argv[2], disk.info()->size_bytes));
    CHECK(disk.info()->what() == blkm::device_kind::file && disk.info()->opened_as() == blkm::role::disk);
    CHECK(target.info()->is_zero() && *disk.refresh_size() == disk.info()->size_bytes && !*disk.overlaps(target));
    CHECK(target.block_status(0)->kind == blkm::extent_kind::zero && target.block_status(0)->len_bytes > 0);
    CHECK(target.preallocate(0, 65536) && target.write_zeroes(0, 65536) && target.discard(0, 65536) && target.flush());
    (void)(disk.info()->is_direct() && disk.info()->has_fua() && disk.info()->may_pin());
    auto engine = std::move(*blkm::engine::create());
    CHECK(*engine.workers() > 0 && *engine.event_fd() >= 0);
    auto drive = std::move(*blkm::drive::create(disk, blkm::drive_options{4096}));
    CHECK(drive.info()->align_bytes == 4096 && !drive.info()->is_read_only() && !drive.info()->has_job());
    const int fd = *drive.dup_fd();
    CHECK(fd >= 0 && close(fd) == 0 && *blkm::device::open_fd(0, blkm::role::source).error().c_str() != '\0');

    // Requests, more of them than one batch of the loop takes.
    auto queue = std::move(*blkm::queue::create(drive));
    auto memory = std::move(*blkm::buffer::allocate(drive, 8192));
    CHECK(drive.map_memory(memory.data(), memory.size()) && drive.unmap_memory(memory.data(), memory.size()));
    std::memset(memory.data(), 7, memory.size());
    const std::array<iovec, 2> pieces{{{memory.data(), 4096}, {memory.data() + 4096, 4096}}};
    std::size_t ended = 0;
    for (int i = 0; i < 50; ++i)
        queue.write(static_cast<std::uint64_t>(i) * 4096, memory.data(), 4096, nullptr);
    queue.writev(204800, pieces, nullptr, blkm::request_flags::fua);
    queue.flush(&ended);
    const auto good = [&](const blkm::completion &done) { CHECK(done.ok() && done.outcome() && done.text().empty()), ++ended; };
    while (ended < 52)
        CHECK(queue.drain(good, 1));
    queue.readv(204800, std::vector<iovec>(pieces.begin(), pieces.begin() + 1), &memory);
    std::array<blkm_completion, 4> raw{};
    CHECK(queue.submit() && queue.poll() && *queue.process(raw, 1) == 1 && raw[0].user_data == &memory && raw[0].ret == 0);
    queue.write_zeroes(212992, 4096, nullptr, blkm::request_flags::may_unmap);
    queue.discard(217088, 4096, nullptr);
    queue.read(1, memory.data(), 4096, nullptr);
    int refused = 0;
    ended = 0;
    while (ended < 3)
        CHECK(queue.drain([&](const blkm::completion &done) {
            ++ended;
            if (!done.ok())
                CHECK(done.outcome().error().code() == EINVAL && !done.text().empty()), ++refused;
        }, 1, blkm::forever));
    CHECK(refused == 1 && *queue.drain(good) == 0 && *queue.completion_fd() >= 0 && queue.info()->in_flight == 0);
    queue.flush(nullptr);
    CHECK(queue.info()->held == 0 && !queue.close(10s) && queue);
    CHECK(*queue.drain([](const blkm::completion &done) { CHECK(!done.memory_in_use()); }) == 1);
    CHECK(queue.close(0s) && !queue && queue.close(0s));

    auto tracker = std::move(*blkm::tracker::create(drive));
    auto begun = tracker.begin(0, 512, blkm::io_kind::write);
    CHECK(begun && *begun && (*begun)->device_number == 0 && tracker.end(**begun, 0));
    CHECK(tracker.end(*tracker.begin_and_wait(0, 512, blkm::io_kind::read), -EIO) && *tracker.wait(1ms) && *tracker.open_fd() >= 0);
    CHECK(!tracker.begin(~0ULL, 1, blkm::io_kind::write));

    auto bitmap = std::move(*blkm::bitmap::create(drive, "one", {blkm::bitmap_flags::disabled, 4096}));
    const auto two = std::move(*blkm::bitmap::create(drive, "two", {blkm::bitmap_flags::none, 4096}));
    CHECK(!bitmap.info()->is_recording() && two.info()->is_recording() && !two.info()->is_busy() && two.info()->label() == "two");
    CHECK(two.set_dirty(8192, 8192) && two.reset_dirty(12288, 4096) && bitmap.merge(two));
    CHECK((*bitmap.next_dirty(0))->offset_bytes == 8192 && (*bitmap.next_dirty(0))->len_bytes == 4096 && !*bitmap.next_dirty(12288));
    CHECK(bitmap.enable() && bitmap.disable() && bitmap.clear() && !*bitmap.next_dirty(0));
    CHECK(blkm::bitmap::create(drive, "two").error().code() == EEXIST);

    blkm::mirror_options options;
    options.flags = blkm::mirror_flags::manual_finalize | blkm::mirror_flags::strict_ready;
    options.max_pause = blkm::unlimited;
    options.budget = blkm::latency_budget::off();
    options.copy = blkm::copy_mode::background;
    CHECK(options.native().max_pause_ns == BLKM_NEVER_NS && drive.check_mirror(engine, target, options, true));
    auto job = std::move(*drive.mirror(engine, target, options));
    CHECK(job.status() && job.info()->elapsed() >= 0ns && job.pause() && !job.pause() && job.resume() && job.set_speed(0));
    CHECK(job.outcome().error().code() == EAGAIN && !*job.wait(1ms) && job.set_copy_mode(blkm::copy_mode::write_blocking));
    CHECK(job.set_max_pause(20ms) && job.info()->max_pause() == 20ms);
    CHECK(job.set_max_pause(blkm::unlimited) && !job.info()->max_pause());
    CHECK(!job.info()->pivots() && job.set_max_pause(1us).error().code() == EINVAL);
    bool over = false;
    std::size_t pending = 0;
    while (!over)
        CHECK(engine.drain_events([&](const blkm::event &event) {
            CHECK(job.is_about(event) && !event.text().empty() && event.when() <= std::chrono::steady_clock::now());
            if (event.what() == blkm::event_type::ready)
                CHECK(job.complete());
            if (event.what() == blkm::event_type::pending)
                CHECK(event.pivots() && job.info()->pivots() && job.info()->flush_time() && job.finalize()), ++pending;
            over = over || event.what() == blkm::event_type::concluded;
        }));
    CHECK(pending == 1 && *job.wait() && job.outcome()->completed() && job.outcome()->pivoted() && job.outcome()->target_complete());
    CHECK(job.outcome()->how() == blkm::ending::completed && job.outcome()->pause() && job.outcome()->text().empty());
    CHECK(drive.info()->device_number == 1 && job.latencies() && drive.latencies()->without_job.p99() > 0ns);
    CHECK(*job.error_text(nullptr, 0) == 0 && job.dismiss() && *job.status() == blkm::job_status::null);

    // Owners: moved from, given away, taken over, reset.
    blkm::job moved = std::move(job);
    CHECK(moved && !job.native() && !job.cancel(true));
    blkm_job *given = moved.release();
    CHECK(given != nullptr && !moved);
    moved.reset(given);
    moved = blkm::job{};
    CHECK(!moved && other(drive, blkm::mirror_flags::none) > 0);

    // The disk that the drive left is read by a copy, and the copy is not what it is told.
    auto left = blkm::device::open(argv[1], blkm::role::source);
    auto copied = blkm::copy(engine, *left, *blkm::device::create((std::string(argv[2]) + ".copy").c_str(), left->info()->size_bytes));
    CHECK(*copied->wait() && copied->outcome()->completed());
#if __cplusplus >= 202002L
    const blkm::mirror_options named{.max_pause = 20ms, .copy = blkm::copy_mode::background};
    CHECK(named.native().max_pause_ns == 20000000 && named.native().struct_size == sizeof(blkm_mirror_opts));
#endif
    std::puts("good");
}
