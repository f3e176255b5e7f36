/*
 * blkmirror for C++17 and later: owners, results and typed names over blkmirror.h, which is the reference for what each call does.
 *
 * What this header adds, and nothing else:
 *   Ownership   Each object has a class that owns it and can be moved, not copied: engine, device, drive, queue, tracker, bitmap,
 *               job, and buffer for memory. Its destructor closes it; objects keep what they need, so the order does not matter. An
 *               owner that is empty (moved from, reset) may be destroyed and assigned to; every call on it is an error, EINVAL.
 *   Errors      A call that can fail returns result<T>: the value, or an error with the errno and the text, copied, so that it can be kept
 *               and passed on. One set of functions serves both styles: look at the result, or ask for .value(), which throws
 *               blkm::exception. So a call that may throw can be told where it is written, and code built with -fno-exceptions uses the
 *               same functions; there .value() does not exist, because the only thing that it could do is end the guest.
 *   Options     Structures with the defaults in place: set what differs. In C++20: drive.mirror(engine, target, {.max_pause = 20ms}).
 *   Facts       Structures derived from those of C: their fields are there under the names of C, and functions give times as
 *               std::chrono and enumerations as enum class.
 *   Texts       Out: std::string_view. In: const char *, because C wants a 0 at the end and nothing is allocated here.
 *
 * Units: bytes, and std::chrono::nanoseconds. Threads: as blkmirror.h says for the object; an owner itself (move, assign, reset) is one
 * thread's at a time. No state, no allocation, no virtual call, no RTTI; every function but .value() is noexcept, unless a function that
 * you hand in throws. All translation units of a program have to agree on whether exceptions are on.
 *
 * c-examples/raii.cpp is a program.
 */
#ifndef BLKMIRROR_HPP
#define BLKMIRROR_HPP

#include <blkmirror.h>

#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#if defined(__cpp_exceptions)
#define BLKM_HPP_EXCEPTIONS 1
#else
#define BLKM_HPP_EXCEPTIONS 0
#endif

namespace blkm {

using std::chrono::nanoseconds;

/** As a timeout: until it has happened, however long that takes. */
inline constexpr nanoseconds forever{-1};
/** As a bound: there is none. */
inline constexpr nanoseconds unlimited{nanoseconds::max()};

/* Results --------------------------------------------------------------------------------------------------------------------- */

/** Why a call failed: an errno and a line of text. A value; it allocates nothing and belongs to no thread. */
class [[nodiscard]] error {
public:
    /** Text beyond this many bytes is cut. */
    static constexpr std::size_t max_text = 511;

    /** Of an errno (positive) and a text, which is copied. */
    error(int code, std::string_view text) noexcept : code_(code) {
        length_ = text.size() < max_text ? text.size() : max_text;
        // No part of a character of UTF-8 is left at the cut.
        while (length_ < text.size() && length_ > 0 && (static_cast<unsigned char>(text[length_]) & 0xC0U) == 0x80U)
            --length_;
        std::memcpy(text_, text.data(), length_);
        text_[length_] = '\0';
    }
    error(const error &other) noexcept : code_(other.code_), length_(other.length_) { std::memcpy(text_, other.text_, length_ + 1); }
    error &operator=(const error &other) noexcept {
        code_ = other.code_;
        length_ = other.length_;
        std::memmove(text_, other.text_, length_ + 1);
        return *this;
    }
    ~error() = default;

    /** Of the call that has just failed on this thread with `ret`, which is -errno. */
    static error last(int ret) noexcept { return {-ret, blkm_error_msg()}; }

    /** The errno, such as ENOSPC. */
    int code() const noexcept { return code_; }
    /** The same for the standard library: compare it with std::errc::no_space_on_device. */
    std::error_code as_error_code() const noexcept { return {code_, std::generic_category()}; }
    /** What was attempted, where, and why it failed, in one line of UTF-8. */
    std::string_view text() const noexcept { return {text_, length_}; }
    /** The same with a 0 at its end. */
    const char *c_str() const noexcept { return text_; }

private:
    int code_;
    std::size_t length_;
    char text_[max_text + 1];
};

#if BLKM_HPP_EXCEPTIONS
/** What result::value throws. what() is the text alone, code() the errno. */
class exception : public std::system_error {
public:
    explicit exception(const blkm::error &why) : std::system_error(why.as_error_code()), why_(why) {}
    const char *what() const noexcept override { return why_.c_str(); }
    /** The error itself. */
    const blkm::error &why() const noexcept { return why_; }

private:
    blkm::error why_;
};
#endif

/** A value, or why there is none. Can be moved. */
template <class T> class [[nodiscard]] result {
public:
    result(T value) noexcept : has_(true) { new (&value_) T(std::move(value)); }
    result(const blkm::error &why) noexcept : has_(false) { new (&error_) blkm::error(why); }
    result(result &&other) noexcept : has_(other.has_) {
        if (has_)
            new (&value_) T(std::move(other.value_));
        else
            new (&error_) blkm::error(other.error_);
    }
    result &operator=(result &&other) noexcept {
        if (this != &other) {
            this->~result();
            new (this) result(std::move(other));
        }
        return *this;
    }
    result(const result &) = delete;
    result &operator=(const result &) = delete;
    ~result() {
        if (has_)
            value_.~T();
    }

    bool has_value() const noexcept { return has_; }
    explicit operator bool() const noexcept { return has_; }

    /** The value; there must be one. */
    T &operator*() & noexcept { return assert(has_), value_; }
    const T &operator*() const & noexcept { return assert(has_), value_; }
    T &&operator*() && noexcept { return assert(has_), std::move(value_); }
    T *operator->() noexcept { return assert(has_), &value_; }
    const T *operator->() const noexcept { return assert(has_), &value_; }
    /** The value, or `other`. */
    template <class U> T value_or(U &&other) && { return has_ ? std::move(value_) : static_cast<T>(std::forward<U>(other)); }
    /** Why there is no value; there must be none. */
    const blkm::error &error() const noexcept { return assert(!has_), error_; }

#if BLKM_HPP_EXCEPTIONS
    /** The value, or throws blkm::exception. */
    T &value() & { return check(), value_; }
    const T &value() const & { return check(), value_; }
    T value() && { return check(), std::move(value_); }

private:
    void check() const {
        if (!has_)
            throw exception(error_);
    }
#endif

private:
    union {
        T value_;
        blkm::error error_;
    };
    bool has_;
};

/** Success, or why not. */
template <> class [[nodiscard]] result<void> {
public:
    result() noexcept = default;
    result(const blkm::error &why) noexcept : error_(why) {}

    bool has_value() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return !error_; }
    /** Why it failed; it must have. */
    const blkm::error &error() const noexcept { return assert(error_), *error_; }
#if BLKM_HPP_EXCEPTIONS
    /** Throws blkm::exception if it failed. */
    void value() const {
        if (error_)
            throw exception(*error_);
    }
#endif

private:
    std::optional<blkm::error> error_;
};

/* Enumerations ---------------------------------------------------------------------------------------------------------------- */

/** What a device is opened for. */
enum class role : std::uint32_t { disk = BLKM_ROLE_DISK, target = BLKM_ROLE_TARGET, source = BLKM_ROLE_SOURCE };
enum class device_kind : std::uint32_t { block = BLKM_DEVICE_BLOCK, file = BLKM_DEVICE_FILE };
enum class extent_kind : std::uint32_t { data = BLKM_EXTENT_DATA, zero = BLKM_EXTENT_ZERO };
enum class io_kind : std::uint32_t {
    read = BLKM_IO_READ,
    write = BLKM_IO_WRITE,
    write_zeroes = BLKM_IO_WRITE_ZEROES,
    discard = BLKM_IO_DISCARD,
    flush = BLKM_IO_FLUSH
};
enum class job_status : std::uint32_t {
    created = BLKM_JOB_CREATED,
    running = BLKM_JOB_RUNNING,
    paused = BLKM_JOB_PAUSED,
    ready = BLKM_JOB_READY,
    standby = BLKM_JOB_STANDBY,
    waiting = BLKM_JOB_WAITING,
    pending = BLKM_JOB_PENDING,
    aborting = BLKM_JOB_ABORTING,
    concluded = BLKM_JOB_CONCLUDED,
    null = BLKM_JOB_NULL
};
enum class sync_mode : std::uint32_t {
    full = BLKM_SYNC_FULL,
    top = BLKM_SYNC_TOP,
    none = BLKM_SYNC_NONE,
    bitmap = BLKM_SYNC_BITMAP
};
enum class copy_mode : std::uint32_t {
    automatic = BLKM_COPY_AUTO,
    background = BLKM_COPY_BACKGROUND,
    write_blocking = BLKM_COPY_WRITE_BLOCKING
};
enum class on_error : std::uint32_t {
    report = BLKM_ON_ERROR_REPORT,
    ignore = BLKM_ON_ERROR_IGNORE,
    enospc = BLKM_ON_ERROR_ENOSPC,
    stop = BLKM_ON_ERROR_STOP
};
enum class error_action : std::uint32_t { report = BLKM_ACTION_REPORT, ignore = BLKM_ACTION_IGNORE, stop = BLKM_ACTION_STOP };
enum class side : std::uint32_t { source = BLKM_SIDE_SOURCE, target = BLKM_SIDE_TARGET };
enum class io_status : std::uint32_t {
    ok = BLKM_IO_STATUS_OK,
    failed = BLKM_IO_STATUS_FAILED,
    no_space = BLKM_IO_STATUS_NOSPACE
};
enum class escalation : std::uint32_t {
    write_blocking = BLKM_ESCALATION_WRITE_BLOCKING,
    budget_loosened = BLKM_ESCALATION_BUDGET_LOOSENED,
    braking = BLKM_ESCALATION_BRAKING
};
enum class escalation_reason : std::uint32_t { not_shrinking = BLKM_REASON_NOT_SHRINKING, missed = BLKM_REASON_MISSED };
enum class budget_level : std::uint32_t {
    chosen = BLKM_BUDGET_CHOSEN,
    four_times = BLKM_BUDGET_FOUR_TIMES,
    lifted = BLKM_BUDGET_LIFTED
};
/** How a switch-over is to end. */
enum class completion_mode : std::uint32_t { pivot = BLKM_COMPLETE_PIVOT, point_in_time = BLKM_COMPLETE_POINT_IN_TIME };
/** How a job ended. */
enum class ending : std::uint32_t {
    completed = BLKM_END_COMPLETED,
    cancelled = BLKM_END_CANCELLED,
    failed = BLKM_END_FAILED
};
enum class event_type : std::uint32_t {
    status = BLKM_EVENT_STATUS,
    ready = BLKM_EVENT_READY,
    error = BLKM_EVENT_ERROR,
    copy_mode = BLKM_EVENT_COPY_MODE,
    escalated = BLKM_EVENT_ESCALATED,
    budget_tightened = BLKM_EVENT_BUDGET_TIGHTENED,
    braking_ended = BLKM_EVENT_BRAKING_ENDED,
    switch_over_missed = BLKM_EVENT_SWITCH_OVER_MISSED,
    pending = BLKM_EVENT_PENDING,
    concluded = BLKM_EVENT_CONCLUDED,
    overflow = BLKM_EVENT_OVERFLOW
};
enum class log_level : std::uint32_t {
    off = BLKM_LOG_OFF,
    error = BLKM_LOG_ERROR,
    warn = BLKM_LOG_WARN,
    info = BLKM_LOG_INFO,
    debug = BLKM_LOG_DEBUG
};

/* Flags are joined with |. */
enum class device_flags : std::uint64_t { none = 0, allow_shared = BLKM_DEVICE_F_ALLOW_SHARED };
enum class queue_flags : std::uint64_t {
    none = 0,
    no_eventfd = BLKM_QUEUE_F_NO_EVENTFD,
    stable_buffers = BLKM_QUEUE_F_STABLE_BUFFERS,
    no_regions = BLKM_QUEUE_F_NO_REGIONS
};
enum class request_flags : std::uint32_t {
    none = 0,
    fua = BLKM_REQ_FUA,
    may_unmap = BLKM_REQ_MAY_UNMAP,
    no_fallback = BLKM_REQ_NO_FALLBACK,
    stable_buffer = BLKM_REQ_STABLE_BUFFER
};
enum class mirror_flags : std::uint64_t {
    none = 0,
    detect_zeroes = BLKM_MIRROR_F_DETECT_ZEROES,
    target_is_zero = BLKM_MIRROR_F_TARGET_IS_ZERO,
    keep_allocated = BLKM_MIRROR_F_KEEP_ALLOCATED,
    strict_ready = BLKM_MIRROR_F_STRICT_READY,
    manual_finalize = BLKM_MIRROR_F_MANUAL_FINALIZE,
    complete = BLKM_MIRROR_F_COMPLETE
};
enum class bitmap_flags : std::uint64_t { none = 0, disabled = BLKM_BITMAP_F_DISABLED };
enum class engine_flags : std::uint64_t { none = 0, pin = BLKM_ENGINE_F_PIN };

namespace detail {
template <class E> struct is_flags : std::false_type {};
template <> struct is_flags<device_flags> : std::true_type {};
template <> struct is_flags<queue_flags> : std::true_type {};
template <> struct is_flags<request_flags> : std::true_type {};
template <> struct is_flags<mirror_flags> : std::true_type {};
template <> struct is_flags<bitmap_flags> : std::true_type {};
template <> struct is_flags<engine_flags> : std::true_type {};

/** The number that C has for it. */
template <class E> constexpr std::underlying_type_t<E> number(E value) noexcept { return static_cast<std::underlying_type_t<E>>(value); }

/** A bound or a time for C. */
constexpr std::uint64_t bound(nanoseconds time) noexcept {
    return time == unlimited ? BLKM_NEVER_NS : static_cast<std::uint64_t>(time.count() < 0 ? 0 : time.count());
}
/** A time from C that may not be known. */
inline std::optional<nanoseconds> known(std::uint64_t ns) noexcept {
    if (ns > static_cast<std::uint64_t>(nanoseconds::max().count()))
        return std::nullopt;
    return nanoseconds{static_cast<std::int64_t>(ns)};
}
inline nanoseconds span_of(std::uint64_t ns) noexcept { return known(ns).value_or(unlimited); }

inline result<void> checked(int ret) noexcept {
    if (ret < 0)
        return error::last(ret);
    return {};
}
/** For calls that answer with a number. */
inline result<int> counted(int ret) noexcept {
    if (ret < 0)
        return error::last(ret);
    return ret;
}
/** For calls that answer with yes or no. */
inline result<bool> answered(int ret) noexcept {
    if (ret < 0)
        return error::last(ret);
    return ret > 0;
}

/** Fills in facts `T`, which are those of C and nothing more. */
template <class T, class C, class Object> result<T> asked(int (*get)(Object *, C *), Object *object) noexcept {
    static_assert(std::is_base_of_v<C, T> && sizeof(T) == sizeof(C), "facts add functions, no data");
    T facts{};
    facts.struct_size = sizeof(C);
    const int ret = get(object, &facts);
    if (ret < 0)
        return error::last(ret);
    return facts;
}

/** The only owner of an object of C's. */
template <class C, void (*Close)(C **)> class owner {
public:
    using native_type = C;

    owner() noexcept = default;
    /** Takes over an object that C gave. */
    explicit owner(C *object) noexcept : object_(object) {}
    owner(owner &&other) noexcept : object_(other.release()) {}
    owner &operator=(owner &&other) noexcept {
        if (this != &other)
            reset(other.release());
        return *this;
    }
    owner(const owner &) = delete;
    owner &operator=(const owner &) = delete;
    ~owner() { reset(); }

    /** Whether it owns one. */
    explicit operator bool() const noexcept { return object_ != nullptr; }
    /** The object for calls of C; it stays this owner's. */
    C *native() const noexcept { return object_; }
    /** Gives the object away; the caller closes it. */
    [[nodiscard]] C *release() noexcept { return std::exchange(object_, nullptr); }
    /** Closes the object, and owns `other` from now on. */
    void reset(C *other = nullptr) noexcept {
        C *old = std::exchange(object_, other);
        Close(&old);
    }

private:
    C *object_ = nullptr;
};

/** Owns what `make` puts into its argument. */
template <class T, class Make> result<T> made(Make make) noexcept {
    typename T::native_type *object = nullptr;
    const int ret = make(&object);
    if (ret < 0)
        return error::last(ret);
    return T(object);
}
} // namespace detail

template <class E, std::enable_if_t<detail::is_flags<E>::value, int> = 0> constexpr E operator|(E a, E b) noexcept {
    return static_cast<E>(detail::number(a) | detail::number(b));
}
/** Whether `set` has all of `flags`. */
template <class E, std::enable_if_t<detail::is_flags<E>::value, int> = 0> constexpr bool contains(E set, E flags) noexcept {
    return (detail::number(set) & detail::number(flags)) == detail::number(flags);
}

/** Objects that lie one after the other, and are somebody else's. Made from a pointer and a number, or from anything with data() and size(). */
template <class T> class span {
public:
    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Container, class = decltype(static_cast<T *>(std::declval<Container &>().data()))>
    constexpr span(Container &&of) noexcept : data_(of.data()), size_(of.size()) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* The library ----------------------------------------------------------------------------------------------------------------- */

/** The version that is loaded, such as "0.1.0". */
inline std::string_view version() noexcept { return blkm_version_string(); }
/** The same as one number, as BLKM_VERSION_NUMBER is made. */
inline std::uint32_t version_number() noexcept { return blkm_version(); }
/** Whether the library that is loaded has a feature, by name, such as "bitmaps". */
inline bool has_feature(const char *name) noexcept { return blkm_has_feature(name) == 1; }
/** Whether the kernel lets this process use io_uring as the library needs it. */
inline result<void> probe() noexcept { return detail::checked(blkm_probe()); }
/** Who takes the log of the whole process. The handler must not call the library, and must not throw. */
inline result<void> set_log_handler(log_level max, blkm_log_fn handler, void *opaque = nullptr) noexcept {
    return detail::checked(blkm_log_set_handler(detail::number(max), handler, opaque));
}

/* Devices --------------------------------------------------------------------------------------------------------------------- */

/** How a device is opened: blkm_device_opts. */
struct device_options {
    device_flags flags = device_flags::none;
    /** What error texts call a device that is opened by a descriptor. Copied; nullptr: "fd N". */
    const char *name = nullptr;

    blkm_device_opts native() const noexcept {
        blkm_device_opts opts{};
        opts.struct_size = sizeof opts;
        opts.flags = detail::number(flags);
        opts.name = name;
        return opts;
    }
};

/** What a device demands: the fields of blkm_device_info. */
struct device_info : blkm_device_info {
    device_kind what() const noexcept { return device_kind{kind}; }
    blkm::role opened_as() const noexcept { return blkm::role{blkm_device_info::role}; }
    bool is_direct() const noexcept { return (flags & BLKM_DEVICE_IS_DIRECT) != 0; }
    bool is_zero() const noexcept { return (flags & BLKM_DEVICE_IS_ZERO) != 0; }
    bool has_fua() const noexcept { return (flags & BLKM_DEVICE_HAS_FUA) != 0; }
    bool may_pin() const noexcept { return (flags & BLKM_DEVICE_MAY_PIN) != 0; }
    bool is_locked() const noexcept { return (flags & BLKM_DEVICE_IS_LOCKED) != 0; }
    bool is_align_assumed() const noexcept { return (flags & BLKM_DEVICE_IS_ALIGN_ASSUMED) != 0; }
};

/** What lies somewhere, and for how long it is so; a length of 0 is the device's end. */
struct block_status {
    extent_kind kind;
    std::uint64_t len_bytes;
};

/** An opened block device or image file. Threads: any. */
class device : public detail::owner<blkm_device, blkm_device_close> {
public:
    using owner::owner;

    /** blkm_device_open. For a std::string or a std::filesystem::path: .c_str(). */
    static result<device> open(const char *path, role as, const device_options &options = {}) noexcept {
        const blkm_device_opts opts = options.native();
        return detail::made<device>([&](blkm_device **out) { return blkm_device_open(path, detail::number(as), &opts, out); });
    }
    /** blkm_device_open_fd: `fd` is duplicated and stays the caller's. */
    static result<device> open_fd(int fd, role as, const device_options &options = {}) noexcept {
        const blkm_device_opts opts = options.native();
        return detail::made<device>([&](blkm_device **out) { return blkm_device_open_fd(fd, detail::number(as), &opts, out); });
    }
    /** blkm_device_create: a new file, one hole, opened as a target. */
    static result<device> create(const char *path, std::uint64_t size_bytes) noexcept {
        return detail::made<device>([&](blkm_device **out) { return blkm_device_create(path, size_bytes, out); });
    }

    result<device_info> info() const noexcept { return detail::asked<device_info>(blkm_device_get_info, native()); }
    /** Looks at the size again. Drives that exist keep theirs. */
    result<std::uint64_t> refresh_size() const noexcept {
        std::uint64_t size_bytes = 0;
        const int ret = blkm_device_refresh_size(native(), &size_bytes);
        if (ret < 0)
            return blkm::error::last(ret);
        return size_bytes;
    }
    result<blkm::block_status> block_status(std::uint64_t offset_bytes) const noexcept {
        blkm_extent_kind kind = 0;
        std::uint64_t len_bytes = 0;
        const int ret = blkm_device_block_status(native(), offset_bytes, &kind, &len_bytes);
        if (ret < 0)
            return blkm::error::last(ret);
        return blkm::block_status{extent_kind{kind}, len_bytes};
    }
    result<void> flush() const noexcept { return detail::checked(blkm_device_flush(native())); }
    result<void> preallocate(std::uint64_t offset_bytes, std::uint64_t len_bytes) const noexcept {
        return detail::checked(blkm_device_preallocate(native(), offset_bytes, len_bytes));
    }
    result<void> write_zeroes(std::uint64_t offset_bytes, std::uint64_t len_bytes, bool keep_allocated = false) const noexcept {
        return detail::checked(blkm_device_write_zeroes(native(), offset_bytes, len_bytes, keep_allocated));
    }
    result<void> discard(std::uint64_t offset_bytes, std::uint64_t len_bytes) const noexcept {
        return detail::checked(blkm_device_discard(native(), offset_bytes, len_bytes));
    }
    /** Whether the two share bytes. */
    result<bool> overlaps(const device &other) const noexcept {
        return detail::answered(blkm_device_overlaps(native(), other.native()));
    }
};

/* Engines and events ---------------------------------------------------------------------------------------------------------- */

/** How an engine is made: blkm_engine_opts. */
struct engine_options {
    engine_flags flags = engine_flags::none;
    /** Copy memory of each worker; 0: 16 MiB. */
    std::uint64_t window_bytes = 0;
    /** Called first thing on each worker's thread. It must not call the library, and must not throw. */
    blkm_thread_start_fn thread_start = nullptr;
    /** Handed to it. */
    void *thread_start_opaque = nullptr;
    /** Worker threads; 0: one for every two cores, at most four. */
    std::uint32_t workers = 0;

    blkm_engine_opts native() const noexcept {
        blkm_engine_opts opts{};
        opts.struct_size = sizeof opts;
        opts.flags = detail::number(flags);
        opts.window_bytes = window_bytes;
        opts.thread_start = thread_start;
        opts.thread_start_opaque = thread_start_opaque;
        opts.workers = workers;
        return opts;
    }
};

/**
 * Something that happened to a job: a value, with the fields of blkm_event. `job` in it is only there to be compared (job::is_about)
 * or used until the job's owner closes it. Types that you do not know are to be ignored.
 */
struct event : blkm_event {
    event() noexcept : blkm_event{} { struct_size = sizeof(blkm_event); }

    event_type what() const noexcept { return event_type{type}; }
    /** When it was noticed. */
    std::chrono::steady_clock::time_point when() const noexcept {
        return std::chrono::steady_clock::time_point{detail::span_of(time_ns)};
    }
    /** Status: what it was, and what it is. */
    job_status old_status() const noexcept { return job_status{from}; }
    job_status new_status() const noexcept { return job_status{status}; }
    /** Pending: the drive moves to the target once the job is finalized. */
    bool pivots() const noexcept { return (flags & BLKM_EVENT_F_PIVOTS) != 0; }
    /** Error: the errno. */
    int code() const noexcept { return -ret; }
    blkm::side where() const noexcept { return blkm::side{blkm_event::side}; }
    error_action taken() const noexcept { return error_action{action}; }
    blkm::io_status job_io_status() const noexcept { return blkm::io_status{blkm_event::io_status}; }
    /** Copy mode: which. */
    blkm::copy_mode mode() const noexcept { return blkm::copy_mode{blkm_event::copy_mode}; }
    /** Escalated: what is done, and why. */
    escalation measure() const noexcept { return escalation{step}; }
    escalation_reason why() const noexcept { return escalation_reason{reason}; }
    blkm::budget_level budget() const noexcept { return blkm::budget_level{blkm_event::budget_level}; }
    /** Switch-over missed: how long guest requests were held. */
    nanoseconds held() const noexcept { return detail::span_of(held_ns); }
    /** The same in words, for a log. */
    std::string_view text() const noexcept { return msg; }
};

/** Worker threads that carry jobs. Threads: any; not destroyed on one of its own. */
class engine : public detail::owner<blkm_engine, blkm_engine_destroy> {
public:
    using owner::owner;

    /** blkm_engine_create: in the process that uses it, after fork(2). */
    static result<engine> create(const engine_options &options = {}) noexcept {
        const blkm_engine_opts opts = options.native();
        return detail::made<engine>([&](blkm_engine **out) { return blkm_engine_create(&opts, out); });
    }

    result<int> workers() const noexcept { return detail::counted(blkm_engine_get_workers(native())); }
    /** Readable while there are events to take; to be waited for only. It belongs to the engine. */
    result<int> event_fd() const noexcept { return detail::counted(blkm_engine_get_event_fd(native())); }
    /** Takes the next event, if there is one; never blocks. */
    result<bool> next_event(event &into) const noexcept {
        into.struct_size = sizeof(blkm_event);
        return detail::answered(blkm_engine_next_event(native(), &into));
    }
    /** Takes every event that is there and hands it to `take(const event &)`; gives their number. */
    template <class Take> result<std::size_t> drain_events(Take &&take) const {
        std::size_t taken = 0;
        for (event next;; ++taken) {
            const result<bool> there = next_event(next);
            if (!there)
                return there.error();
            if (!*there)
                return taken;
            take(static_cast<const event &>(next));
        }
    }
};

/* Jobs ------------------------------------------------------------------------------------------------------------------------ */

/** What the guest's p99 may come to while a job copies. */
class latency_budget {
public:
    /** Twice what it is without the job. */
    constexpr latency_budget() noexcept = default;
    /** No bound: the job copies at full speed. */
    static constexpr latency_budget off() noexcept { return {BLKM_LATENCY_BUDGET_OFF, 0}; }
    /** It is to stay below `p99`. */
    static constexpr latency_budget below(nanoseconds p99) noexcept { return {BLKM_LATENCY_BUDGET_ABSOLUTE, detail::bound(p99)}; }
    /** It is to stay below `percent` of what it is without the job; more than 100. */
    static constexpr latency_budget percent_of_baseline(std::uint64_t percent) noexcept {
        return {BLKM_LATENCY_BUDGET_BASELINE, percent};
    }
    constexpr blkm_latency_budget kind() const noexcept { return kind_; }
    constexpr std::uint64_t value() const noexcept { return value_; }

private:
    constexpr latency_budget(blkm_latency_budget kind, std::uint64_t value) noexcept : kind_(kind), value_(value) {}
    blkm_latency_budget kind_ = BLKM_LATENCY_BUDGET_DEFAULT;
    std::uint64_t value_ = 0;
};

/** What a host chooses for a job: blkm_mirror_opts. */
struct mirror_options {
    mirror_flags flags = mirror_flags::none;
    /** Comes back in the job's events. */
    void *user_data = nullptr;
    /** With sync_mode::bitmap: the working bitmap. */
    blkm_bitmap *bitmap = nullptr;
    /** With sync_mode::top: what the topmost layer holds. Copied. */
    span<const blkm_extent> extents = {};
    /** At most; 0: no limit. */
    std::uint64_t speed_bytes_per_s = 0;
    /** In flight per worker; 0: 16 MiB. */
    std::uint64_t buf_size_bytes = 0;
    /** What a dirty bit stands for; 0: chosen. */
    std::uint64_t granularity_bytes = 0;
    /** The cluster size of a target that has a backing file; 0: it has none. */
    std::uint64_t target_cluster_bytes = 0;
    /** How long guest requests may be held at a switch-over; `unlimited`: as long as it takes. 0: 50 ms. */
    nanoseconds max_pause{0};
    latency_budget budget{};
    sync_mode sync = sync_mode::full;
    copy_mode copy = copy_mode::automatic;
    on_error on_source_error = on_error::report;
    on_error on_target_error = on_error::report;

    blkm_mirror_opts native() const noexcept {
        blkm_mirror_opts opts{};
        opts.struct_size = sizeof opts;
        opts.flags = detail::number(flags);
        opts.user_data = user_data;
        opts.bitmap = bitmap;
        opts.extents = extents.data();
        opts.extents_len = extents.size();
        opts.speed_bytes_per_s = speed_bytes_per_s;
        opts.buf_size_bytes = buf_size_bytes;
        opts.granularity_bytes = granularity_bytes;
        opts.target_cluster_bytes = target_cluster_bytes;
        opts.max_pause_ns = detail::bound(max_pause);
        opts.latency_budget_value = budget.value();
        opts.latency_budget = budget.kind();
        opts.sync = detail::number(sync);
        opts.copy_mode = detail::number(copy);
        opts.on_source_error = detail::number(on_source_error);
        opts.on_target_error = detail::number(on_target_error);
        return opts;
    }
};

/** Where a job stands and what it has done: the fields of blkm_job_info. */
struct job_info : blkm_job_info {
    job_status state() const noexcept { return job_status{status}; }
    blkm::copy_mode mode() const noexcept { return blkm::copy_mode{blkm_job_info::copy_mode}; }
    blkm::budget_level budget() const noexcept { return blkm::budget_level{blkm_job_info::budget_level}; }
    blkm::io_status io() const noexcept { return blkm::io_status{blkm_job_info::io_status}; }
    /** Time until nothing is left; none: not in sight. */
    std::optional<nanoseconds> eta() const noexcept { return detail::known(eta_ns); }
    /** How long a switch-over begun now would hold guest requests; none: not known yet. */
    std::optional<nanoseconds> predicted_pause() const noexcept { return detail::known(predicted_pause_ns); }
    /** The part of it that is a flush of the target; none: none has ended yet. */
    std::optional<nanoseconds> flush_time() const noexcept { return detail::known(flush_ns); }
    /** How long guest requests may be held now; none: as long as it takes. */
    std::optional<nanoseconds> max_pause() const noexcept { return detail::known(max_pause_ns); }
    nanoseconds elapsed() const noexcept { return detail::span_of(elapsed_ns); }
    bool fits_now() const noexcept { return (flags & BLKM_JOBINFO_FITS_NOW) != 0; }
    bool is_braking() const noexcept { return (flags & BLKM_JOBINFO_BRAKING) != 0; }
    bool is_actively_synced() const noexcept { return (flags & BLKM_JOBINFO_ACTIVELY_SYNCED) != 0; }
    bool is_completing() const noexcept { return (flags & BLKM_JOBINFO_COMPLETING) != 0; }
    /** The end that was asked for moves the drive. */
    bool pivots() const noexcept { return (flags & BLKM_JOBINFO_PIVOTS) != 0; }
    bool has_error() const noexcept { return (flags & BLKM_JOBINFO_HAS_ERROR) != 0; }
    /** The last error, if there was one: where, and what was done about it. */
    side error_side() const noexcept { return side{last_error_side}; }
    error_action error_taken() const noexcept { return error_action{last_error_action}; }
};

/** How a job ended, and what it did: the fields of blkm_outcome. */
struct outcome : blkm_outcome {
    ending how() const noexcept { return ending{end}; }
    bool completed() const noexcept { return end == BLKM_END_COMPLETED; }
    /** The drive stands on the target now. */
    bool pivoted() const noexcept { return (flags & BLKM_OUTCOME_PIVOTED) != 0; }
    bool target_complete() const noexcept { return (flags & BLKM_OUTCOME_TARGET_COMPLETE) != 0; }
    /** How long guest requests were held at the switch-over; none: there was none. */
    std::optional<nanoseconds> pause() const noexcept { return detail::known(pause_ns); }
    nanoseconds elapsed() const noexcept { return detail::span_of(elapsed_ns); }
    /** Why it failed, or that it was cancelled; "" if it completed. */
    std::string_view text() const noexcept { return error_msg; }
};

/** How long requests took: the fields of blkm_latencies. */
struct latencies : blkm_latencies {
    nanoseconds p50() const noexcept { return detail::span_of(p50_ns); }
    nanoseconds p90() const noexcept { return detail::span_of(p90_ns); }
    nanoseconds p99() const noexcept { return detail::span_of(p99_ns); }
    nanoseconds p99_9() const noexcept { return detail::span_of(p99_9_ns); }
    nanoseconds p99_99() const noexcept { return detail::span_of(p99_99_ns); }
};

/** How long they took while no job ran, and while one did. */
struct latencies_by_job {
    latencies without_job;
    latencies with_job;
};

namespace detail {
template <class Object>
result<latencies_by_job> latencies_of(int (*get)(Object *, blkm_latencies *, blkm_latencies *), Object *object) noexcept {
    latencies_by_job both{};
    both.without_job.struct_size = both.with_job.struct_size = sizeof(blkm_latencies);
    const int ret = get(object, &both.without_job, &both.with_job);
    if (ret < 0)
        return error::last(ret);
    return both;
}
} // namespace detail

/** A mirror or a copy. An owner that is destroyed leaves the job running. Threads: any. */
class job : public detail::owner<blkm_job, blkm_job_close> {
public:
    using owner::owner;

    /** Whether an event is of this job. */
    bool is_about(const event &happened) const noexcept { return native() != nullptr && happened.job == native(); }

    result<void> pause() const noexcept { return detail::checked(blkm_job_pause(native())); }
    result<void> resume() const noexcept { return detail::checked(blkm_job_resume(native())); }
    /** Bytes per second at most; 0: no limit. */
    result<void> set_speed(std::uint64_t bytes_per_s) const noexcept {
        return detail::checked(blkm_job_set_speed(native(), bytes_per_s));
    }
    result<void> set_copy_mode(copy_mode mode) const noexcept {
        return detail::checked(blkm_job_set_copy_mode(native(), detail::number(mode)));
    }
    /** How long guest requests may be held from now on; `unlimited`: as long as it takes. */
    result<void> set_max_pause(nanoseconds pause) const noexcept {
        return detail::checked(blkm_job_set_max_pause(native(), detail::bound(pause)));
    }
    /** Asks for the switch-over of a job that is ready; returns at once. */
    result<void> complete(completion_mode mode = completion_mode::pivot) const noexcept {
        return detail::checked(blkm_job_complete(native(), detail::number(mode)));
    }
    /**
     * Asks for the end. Without `force` a job that is ready ends with a copy as of that moment. By force success decides that it is
     * cancelled, and EPERM says that its switch-over was decided before, or that it is over.
     */
    result<void> cancel(bool force) const noexcept { return detail::checked(blkm_job_cancel(native(), force)); }
    /** Carries out a switch-over that is pending; success decides it, and a cancel is refused from then on. */
    result<void> finalize() const noexcept { return detail::checked(blkm_job_finalize(native())); }
    result<void> dismiss() const noexcept { return detail::checked(blkm_job_dismiss(native())); }
    /** Sleeps until the job is over, at most for `timeout`; whether it is over. */
    result<bool> wait(nanoseconds timeout = forever) const noexcept {
        return detail::answered(blkm_job_wait(native(), timeout.count()));
    }

    result<job_status> status() const noexcept {
        const int ret = blkm_job_get_status(native());
        if (ret < 0)
            return blkm::error::last(ret);
        return static_cast<job_status>(ret);
    }
    result<job_info> info() const noexcept { return detail::asked<job_info>(blkm_job_query, native()); }
    result<latencies_by_job> latencies() const noexcept { return detail::latencies_of(blkm_job_get_latencies, native()); }
    /** How it ended; EAGAIN while it has not. */
    result<blkm::outcome> outcome() const noexcept { return detail::asked<blkm::outcome>(blkm_job_get_outcome, native()); }
    /** The text of the error that ended it, cut to `buf_len` bytes with a 0; gives the length of the whole text. */
    result<int> error_text(char *buf, std::size_t buf_len) const noexcept {
        return detail::counted(blkm_job_get_error(native(), buf, buf_len));
    }
};

/** Starts a copy of a device that nobody writes meanwhile: blkm_copy_start. */
inline result<job> copy(const engine &on, const device &source, const device &target, const mirror_options &options = {}) noexcept {
    const blkm_mirror_opts opts = options.native();
    return detail::made<job>(
        [&](blkm_job **out) { return blkm_copy_start(on.native(), source.native(), target.native(), &opts, out); });
}

/* Drives ---------------------------------------------------------------------------------------------------------------------- */

/** How a drive is made: blkm_drive_opts. */
struct drive_options {
    /** The logical block that the guest is shown; 0: the device's. */
    std::uint64_t align_bytes = 0;

    blkm_drive_opts native() const noexcept {
        blkm_drive_opts opts{};
        opts.struct_size = sizeof opts;
        opts.align_bytes = align_bytes;
        return opts;
    }
};

/** What a drive is: the fields of blkm_drive_info. */
struct drive_info : blkm_drive_info {
    bool is_read_only() const noexcept { return (flags & BLKM_DRIVE_IS_READ_ONLY) != 0; }
    bool has_job() const noexcept { return (flags & BLKM_DRIVE_HAS_JOB) != 0; }
};

/** A disk as its guest sees it. Threads: any. */
class drive : public detail::owner<blkm_drive, blkm_drive_close> {
public:
    using owner::owner;

    /** blkm_drive_create: it keeps the device open for itself. */
    static result<drive> create(const device &on, const drive_options &options = {}) noexcept {
        const blkm_drive_opts opts = options.native();
        return detail::made<drive>([&](blkm_drive **out) { return blkm_drive_create(on.native(), &opts, out); });
    }

    result<drive_info> info() const noexcept { return detail::asked<drive_info>(blkm_drive_get_info, native()); }
    /** A new descriptor of the device that the drive stands on now; the caller closes it. */
    result<int> dup_fd() const noexcept { return detail::counted(blkm_drive_dup_fd(native())); }
    result<latencies_by_job> latencies() const noexcept { return detail::latencies_of(blkm_drive_get_latencies, native()); }

    /** Registers memory of the host's for all queues of the drive; it stays mapped until unmap_memory has succeeded. */
    result<void> map_memory(void *addr, std::size_t len_bytes) const noexcept {
        return detail::checked(blkm_mem_region_map(native(), addr, len_bytes, 0));
    }
    /** Takes it back, given as it was mapped. */
    result<void> unmap_memory(void *addr, std::size_t len_bytes) const noexcept {
        return detail::checked(blkm_mem_region_unmap(native(), addr, len_bytes));
    }

    /** blkm_mirror_start: blocks for as long as the file systems do. */
    result<job> mirror(const engine &on, const device &target, const mirror_options &options = {}) const noexcept {
        const blkm_mirror_opts opts = options.native();
        return detail::made<job>(
            [&](blkm_job **out) { return blkm_mirror_start(on.native(), native(), target.native(), &opts, out); });
    }
    /** Whether `mirror` would take these, and, if `pivot`, whether the drive could move there at the end. */
    result<void> check_mirror(const engine &on, const device &target, const mirror_options &options, bool pivot) const noexcept {
        const blkm_mirror_opts opts = options.native();
        return detail::checked(blkm_mirror_check(on.native(), native(), target.native(), &opts, pivot));
    }
};

/** Memory for requests: blkm_blockalign. */
class buffer {
public:
    buffer() noexcept = default;
    buffer(buffer &&other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    buffer &operator=(buffer &&other) noexcept {
        if (this != &other) {
            blkm_vfree(data_);
            data_ = std::exchange(other.data_, nullptr);
            size_ = std::exchange(other.size_, 0);
        }
        return *this;
    }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
    ~buffer() { blkm_vfree(data_); }

    /** At least `len_bytes` for requests of `of`, not cleared. */
    static result<buffer> allocate(const drive &of, std::size_t len_bytes) noexcept {
        void *data = blkm_blockalign(of.native(), len_bytes);
        if (data == nullptr)
            return error{ENOMEM, blkm_error_msg()};
        return buffer{static_cast<std::byte *>(data), len_bytes};
    }

    std::byte *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    /** Gives it away, to be freed with blkm_vfree(): never, after a completion with memory_in_use(). Empty afterwards. */
    std::byte *release() noexcept {
        size_ = 0;
        return std::exchange(data_, nullptr);
    }

private:
    buffer(std::byte *data, std::size_t size) noexcept : data_(data), size_(size) {}
    std::byte *data_ = nullptr;
    std::size_t size_ = 0;
};

/* Queues ---------------------------------------------------------------------------------------------------------------------- */

/** How a queue is made: blkm_queue_opts. */
struct queue_options {
    queue_flags flags = queue_flags::none;
    /** Memory for the stable copies that write-blocking needs; 0: 4 MiB. */
    std::uint64_t staging_bytes = 0;
    /** Requests under way at most; 0: 256. As many as the guest can have under way on this queue. */
    std::uint32_t depth = 0;

    blkm_queue_opts native() const noexcept {
        blkm_queue_opts opts{};
        opts.struct_size = sizeof opts;
        opts.flags = detail::number(flags);
        opts.staging_bytes = staging_bytes;
        opts.depth = depth;
        return opts;
    }
};

/** What a queue has: the fields of blkm_queue_info. */
struct queue_info : blkm_queue_info {};

/** The end of a request: the fields of blkm_completion. Its text is good until the queue is processed again. */
struct completion : blkm_completion {
    explicit completion(const blkm_completion &of) noexcept : blkm_completion(of) {}

    bool ok() const noexcept { return ret == 0; }
    /** The queue's ring broke, and the kernel may still use the memory of this request: BLKM_COMPLETION_F_MEMORY_IN_USE. */
    bool memory_in_use() const noexcept { return (flags & BLKM_COMPLETION_F_MEMORY_IN_USE) != 0; }
    /** Success, or the error with its text copied. */
    result<void> outcome() const noexcept {
        if (ret < 0)
            return error{-ret, text()};
        return {};
    }
    /** Why it failed, or that it was cancelled; "" if it completed. */
    std::string_view text() const noexcept { return error_msg != nullptr ? std::string_view{error_msg} : std::string_view{}; }
};

/**
 * Guest I/O through the library. Threads: one, the first that sends or processes with it, but for making, moving and destroying it.
 *
 * Requests return nothing: each has exactly one completion. Their memory, and the arrays of iovecs, stay as they are until then.
 * Nothing is sent before submit, poll, process or drain.
 */
class queue : public detail::owner<blkm_queue, blkm_queue_destroy> {
public:
    using owner::owner;

    static result<queue> create(const drive &of, const queue_options &options = {}) noexcept {
        const blkm_queue_opts opts = options.native();
        return detail::made<queue>([&](blkm_queue **out) { return blkm_queue_create(of.native(), &opts, out); });
    }
    /**
     * Ends it if nothing is lost by that: sleeps until nothing is under way, and fails with EBUSY when the time is over first or a
     * completion was not taken; then it is as it was. To destroy it, as this object's end does, loses what is under way. A target that
     * hangs after its job has ended keeps it from closing, so rather give it some seconds. An empty one is closed already.
     */
    result<void> close(nanoseconds timeout) noexcept {
        blkm_queue *object = native();
        const int ret = blkm_queue_close(&object, timeout.count());
        if (ret == 0)
            static_cast<void>(release());
        return detail::checked(ret);
    }

    void read(std::uint64_t offset_bytes, void *into, std::size_t len_bytes, void *user_data) const noexcept {
        blkm_queue_read(native(), offset_bytes, into, len_bytes, user_data, 0);
    }
    void readv(std::uint64_t offset_bytes, span<const iovec> into, void *user_data) const noexcept {
        blkm_queue_readv(native(), offset_bytes, into.data(), pieces(into), user_data, 0);
    }
    void write(std::uint64_t offset_bytes, const void *from, std::size_t len_bytes, void *user_data,
               request_flags flags = request_flags::none) const noexcept {
        blkm_queue_write(native(), offset_bytes, from, len_bytes, user_data, detail::number(flags));
    }
    void writev(std::uint64_t offset_bytes, span<const iovec> from, void *user_data,
                request_flags flags = request_flags::none) const noexcept {
        blkm_queue_writev(native(), offset_bytes, from.data(), pieces(from), user_data, detail::number(flags));
    }
    void write_zeroes(std::uint64_t offset_bytes, std::uint64_t len_bytes, void *user_data,
                      request_flags flags = request_flags::none) const noexcept {
        blkm_queue_write_zeroes(native(), offset_bytes, len_bytes, user_data, detail::number(flags));
    }
    void discard(std::uint64_t offset_bytes, std::uint64_t len_bytes, void *user_data) const noexcept {
        blkm_queue_discard(native(), offset_bytes, len_bytes, user_data, 0);
    }
    void flush(void *user_data) const noexcept { blkm_queue_flush(native(), user_data, 0); }

    result<void> submit() const noexcept { return detail::checked(blkm_queue_submit(native())); }
    /** How many completions can be taken now; takes none. */
    result<int> poll() const noexcept { return detail::counted(blkm_queue_poll(native())); }
    /** Sleeps until `min` completions can be taken, takes as many as fit into `into`, and gives their number. */
    result<int> process(span<blkm_completion> into, int min = 0, nanoseconds timeout = forever) const noexcept {
        return detail::counted(blkm_queue_process(native(), into.data(), min, static_cast<int>(into.size()), timeout.count()));
    }
    /**
     * The completion loop: sends what was submitted, sleeps until `min` completions can be taken (0: does not sleep), hands every one that
     * is there to `take(const completion &)`, and gives their number. `take` may send new requests with this queue; they are sent
     * before drain returns. It must not process or drain the queue itself: the texts of what is still to be handed over would go. For an event loop: call it with no more arguments whenever completion_fd is readable.
     */
    template <class Take> result<std::size_t> drain(Take &&take, int min = 0, nanoseconds timeout = forever) const {
        constexpr int batch = 32;
        blkm_completion ended[batch];
        std::size_t taken = 0;
        for (int wanted = min < batch ? min : batch;; wanted = 0) {
            const int got = blkm_queue_process(native(), ended, wanted, batch, timeout.count());
            // Completions that were handed out count for more than an error that comes again with the next call.
            if (got < 0 && taken == 0)
                return error::last(got);
            if (got <= 0)
                return taken;
            for (int i = 0; i < got; ++i)
                take(completion{ended[i]});
            taken += static_cast<std::size_t>(got);
        }
    }
    /** Readable when there may be completions to take; to be waited for only. It belongs to the queue. Threads: any. */
    result<int> completion_fd() const noexcept { return detail::counted(blkm_queue_get_completion_fd(native())); }
    result<queue_info> info() const noexcept { return detail::asked<queue_info>(blkm_queue_get_info, native()); }

private:
    using error = blkm::error;

    /** More pieces than any request may have are a number that the library refuses. */
    static int pieces(span<const iovec> of) noexcept { return of.size() > 0x7fffffff ? 0x7fffffff : static_cast<int>(of.size()); }
};

/* Trackers -------------------------------------------------------------------------------------------------------------------- */

/** A tracked request that is under way; ended once, with tracker::end. `device_number` says which device to send it to. */
using token = blkm_token;

/** Tells a drive of requests that the host carries out itself. Threads: any. */
class tracker : public detail::owner<blkm_tracker, blkm_tracker_close> {
public:
    using owner::owner;

    static result<tracker> create(const drive &of) noexcept {
        return detail::made<tracker>([&](blkm_tracker **out) { return blkm_tracker_create(of.native(), out); });
    }

    /** A request is about to be sent. No token: not now; wait until the gate is open, and begin again. */
    result<std::optional<token>> begin(std::uint64_t offset_bytes, std::uint64_t len_bytes, io_kind kind) const noexcept {
        token begun{};
        const int ret = blkm_tracker_begin(native(), offset_bytes, len_bytes, detail::number(kind), &begun);
        if (ret < 0)
            return error::last(ret);
        return ret == BLKM_HELD ? std::optional<token>{} : std::optional<token>{begun};
    }
    /** The same, and sleeps while the gate is closed: for hosts with a thread for each request. */
    result<token> begin_and_wait(std::uint64_t offset_bytes, std::uint64_t len_bytes, io_kind kind) const noexcept {
        for (;;) {
            const auto begun = begin(offset_bytes, len_bytes, kind);
            if (!begun)
                return begun.error();
            if (*begun)
                return **begun;
            if (const auto open = wait(); !open)
                return open.error();
        }
    }
    /** A request has completed with `ret` (0, or -errno): said before the guest hears of it. */
    result<void> end(const token &begun, int ret) const noexcept { return detail::checked(blkm_tracker_end(native(), &begun, ret)); }
    /** Sleeps until the gate is open, at most for `timeout`; whether it is open. */
    result<bool> wait(nanoseconds timeout = forever) const noexcept {
        return detail::answered(blkm_tracker_wait(native(), timeout.count()));
    }
    /** Readable exactly while the gate is open; to be waited for only. It belongs to the library. */
    result<int> open_fd() const noexcept { return detail::counted(blkm_tracker_get_open_fd(native())); }

private:
    using error = blkm::error;
};

/* Bitmaps --------------------------------------------------------------------------------------------------------------------- */

/** How a bitmap is made: blkm_bitmap_opts. */
struct bitmap_options {
    bitmap_flags flags = bitmap_flags::none;
    /** What a bit stands for; 0: 64 KiB. */
    std::uint64_t granularity_bytes = 0;

    blkm_bitmap_opts native(const char *name) const noexcept {
        blkm_bitmap_opts opts{};
        opts.struct_size = sizeof opts;
        opts.flags = detail::number(flags);
        opts.name = name;
        opts.granularity_bytes = granularity_bytes;
        return opts;
    }
};

/** What a bitmap is now: the fields of blkm_bitmap_info. */
struct bitmap_info : blkm_bitmap_info {
    bool is_recording() const noexcept { return (flags & BLKM_BITMAP_IS_RECORDING) != 0; }
    bool is_busy() const noexcept { return (flags & BLKM_BITMAP_IS_BUSY) != 0; }
    std::string_view label() const noexcept { return name; }
};

/** A part of a drive. */
struct area {
    std::uint64_t offset_bytes;
    std::uint64_t len_bytes;
};

/** Which parts of a drive were written. For a job: mirror_options::bitmap = bitmap.native(). Threads: any. */
class bitmap : public detail::owner<blkm_bitmap, blkm_bitmap_close> {
public:
    using owner::owner;

    /** blkm_bitmap_create: with nothing dirty in it. The name is copied. */
    static result<bitmap> create(const drive &of, const char *name, const bitmap_options &options = {}) noexcept {
        const blkm_bitmap_opts opts = options.native(name);
        return detail::made<bitmap>([&](blkm_bitmap **out) { return blkm_bitmap_create(of.native(), &opts, out); });
    }

    /** Every write that ends after this has returned is in it. */
    result<void> enable() const noexcept { return detail::checked(blkm_bitmap_enable(native())); }
    /** When this has returned, no guest write changes it. */
    result<void> disable() const noexcept { return detail::checked(blkm_bitmap_disable(native())); }
    result<void> clear() const noexcept { return detail::checked(blkm_bitmap_clear(native())); }
    /** Marks what is dirty in any of `sources`: all or nothing. */
    result<void> merge(span<blkm_bitmap *const> sources) const noexcept {
        return detail::checked(blkm_bitmap_merge(native(), sources.data(), sources.size()));
    }
    result<void> merge(const bitmap &source) const noexcept {
        blkm_bitmap *const one = source.native();
        return merge(span<blkm_bitmap *const>{&one, 1});
    }
    result<void> set_dirty(std::uint64_t offset_bytes, std::uint64_t len_bytes) const noexcept {
        return detail::checked(blkm_bitmap_set_dirty(native(), offset_bytes, len_bytes));
    }
    result<void> reset_dirty(std::uint64_t offset_bytes, std::uint64_t len_bytes) const noexcept {
        return detail::checked(blkm_bitmap_reset_dirty(native(), offset_bytes, len_bytes));
    }
    result<bitmap_info> info() const noexcept { return detail::asked<bitmap_info>(blkm_bitmap_query, native()); }
    /** The first dirty area from `start_bytes` on, and at most `max_len_bytes` of it; none: there is none. */
    result<std::optional<area>> next_dirty(std::uint64_t start_bytes, std::uint64_t end_bytes = UINT64_MAX,
                                           std::uint64_t max_len_bytes = UINT64_MAX) const noexcept {
        area found{};
        const int ret = blkm_bitmap_next_dirty_area(native(), start_bytes, end_bytes, max_len_bytes, &found.offset_bytes,
                                                    &found.len_bytes);
        if (ret < 0)
            return error::last(ret);
        return ret > 0 ? std::optional<area>{found} : std::optional<area>{};
    }

private:
    using error = blkm::error;
};

} // namespace blkm

#endif /* BLKMIRROR_HPP */
