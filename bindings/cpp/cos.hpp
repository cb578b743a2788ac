/* CoS: exact, fast decoding with several language models at once. C++17 interface over cos.h, header only.
 *
 *     auto engine = cosrt::Engine::open("engine.json").value();            load the models, once
 *     cosrt::SessionOptions options;                                       greedy and automatic
 *     auto session = engine.session(options).value();                      a sequence
 *     session.prompt(engine.encode("Once upon").value()).value();
 *     for (auto& step : session.steps()) use(step.value().tokens);         until it is finished
 *
 * Errors. What can fail returns a Result: a value, or an Error with a code and a message. Test it (`if (!result)`) and look
 * at result.error(), or call result.value(), which throws cosrt::Exception instead. Nothing else here throws (but for
 * std::bad_alloc), and the header compiles with -fno-exceptions, where value() of an error ends the process.
 *
 * Ownership. Engine, Session and TextStream free themselves and can be moved, not copied. They may be destroyed in any
 * order: sessions and streams keep what they need of their engine alive. One that was moved from may be assigned to or
 * destroyed; its calls fail with invalid_argument. Spans and string_views that a call returns are lent: each says for how
 * long. Arguments are copied or only read during the call.
 *
 * Threads. As in cos.h: any number of threads may use an engine at once. A session or a text stream is for one thread at a
 * time, any thread; a second one at the same moment gets busy. cancel() and stats() may be called at any time, but moving
 * and destroying are as for any object: nothing else may use it then.
 *
 * Text is UTF-8. What is not said here is in cos.h, which is the manual.
 */

#ifndef COS_HPP
#define COS_HPP

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "cos.h"

namespace cosrt {

/** A token: 0 to Engine::vocab_size() - 1. */
using Token = std::int32_t;

// ---- spans

/**
 * Elements in a row that belong to somebody else. Made from anything with data() and size(), from arrays, and from braces;
 * converts to std::span in C++20, and std::span to it.
 */
template <typename T>
class Span {
    template <typename C>
    using DataOf = decltype(std::declval<C&>().data());
    template <typename C>
    using Fits = std::enable_if_t<std::is_convertible_v<std::remove_pointer_t<DataOf<C>> (*)[], T (*)[]> &&
                                  std::is_convertible_v<decltype(std::declval<C&>().size()), std::size_t>>;

public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using size_type = std::size_t;
    using iterator = T*;

    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N>
    constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    template <typename C, typename = Fits<C>>
    constexpr Span(C& container) noexcept : data_(container.data()), size_(container.size()) {}
    /** Of a temporary, for the length of a call. */
    template <typename C, typename = Fits<const C>, typename = std::enable_if_t<std::is_const_v<T> && !std::is_lvalue_reference_v<C>>>
    constexpr Span(const C&& container) noexcept : data_(container.data()), size_(container.size()) {}
    /** Of `{1, 2, 3}`, for the length of a call. */
    template <typename U = T, typename = std::enable_if_t<std::is_const_v<U>>>
    constexpr Span(const std::initializer_list<value_type>& list) noexcept : Span(list.begin(), list.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T& operator[](std::size_t index) const {
        assert(index < size_);
        return data_[index];
    }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

// ---- errors

/** What kind of error it is. The values are those of COS_ERROR_*, and never change; a later library may have more. */
enum class Code : std::int32_t {
    /** An argument of the call is wrong: missing, out of range, or of the wrong size. */
    invalid_argument = COS_ERROR_INVALID_ARGUMENT,
    /** The engine configuration is wrong. */
    config = COS_ERROR_CONFIG,
    /** A model cannot be loaded, is no language model, or does not fit the others. */
    model = COS_ERROR_MODEL,
    /** ONNX Runtime is missing, too old, or failed. */
    runtime = COS_ERROR_RUNTIME,
    /** The context of the models has no room for the tokens. */
    context_full = COS_ERROR_CONTEXT_FULL,
    /** Logits were NaN or infinite, or left no token possible. */
    numeric = COS_ERROR_NUMERIC,
    /** The session is in use on another thread. */
    busy = COS_ERROR_BUSY,
    /** The request is valid, but this version does not support it. */
    unsupported = COS_ERROR_UNSUPPORTED,
    /** The caller's buffer is too small; the message says what is needed. */
    buffer_too_small = COS_ERROR_BUFFER_TOO_SMALL,
    /** An earlier call on the session ended in `internal`; the session can only be destroyed. */
    poisoned = COS_ERROR_POISONED,
    /** A bug of the library. The process is unharmed. */
    internal = COS_ERROR_INTERNAL,
    /** A combine function failed; Error::cause holds what it threw. */
    callback = COS_ERROR_CALLBACK,
};

/** An error. */
struct Error {
    Code code;
    /** What went wrong, and the mend where there is one: one sentence in UTF-8, for people. */
    std::string message;
    /** What a combine function threw, if that is the reason; otherwise empty. */
    std::exception_ptr cause{};
};

/** What Result::value() throws: an Error. */
class Exception : public std::runtime_error {
public:
    explicit Exception(Error error) : std::runtime_error(error.message), error_(std::make_shared<Error>(std::move(error))) {}
    Code code() const noexcept { return error_->code; }
    const Error& error() const noexcept { return *error_; }

private:
    std::shared_ptr<const Error> error_;  // shared, because exceptions are copied and that must not throw
};

namespace detail {

[[noreturn]] inline void raise(const Error& error) {
#ifdef __cpp_exceptions
    if (error.cause) std::rethrow_exception(error.cause);
    throw Exception(error);
#else
    static_cast<void>(error);
    std::abort();
#endif
}

}  // namespace detail

/** A value or an Error, in the manner of C++23's std::expected. */
template <typename T>
class [[nodiscard]] Result {
public:
    Result(T value) : either_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : either_(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const noexcept { return either_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    /** The value. Of an error: throws it as an Exception, or what a combine function threw, if that was the reason. */
    T& value() & { return checked(); }
    const T& value() const& { return const_cast<Result*>(this)->checked(); }
    T value() && { return std::move(checked()); }

    /** The value, which must be there. */
    T& operator*() & { return *found(); }
    const T& operator*() const& { return *const_cast<Result*>(this)->found(); }
    T operator*() && { return std::move(*found()); }
    T* operator->() { return found(); }
    const T* operator->() const { return const_cast<Result*>(this)->found(); }

    /** The error, which must be there. */
    const Error& error() const {
        assert(!has_value());
        return *std::get_if<1>(&either_);
    }

private:
    T& checked() {
        if (!has_value()) detail::raise(error());
        return *found();
    }
    T* found() {
        assert(has_value());
        return std::get_if<0>(&either_);
    }

    std::variant<T, Error> either_;
};

/** Nothing or an Error. */
template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    bool has_value() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const {
        if (error_) detail::raise(*error_);
    }
    const Error& error() const {
        assert(error_);
        return *error_;
    }

private:
    std::optional<Error> error_;
};

// ---- what a session is asked, and what it says

/** Which models run when. All strategies follow the same distribution. */
enum class Strategy : std::int32_t {
    /** Chosen by the library: what follows the same distribution at the least cost. */
    automatic = COS_STRATEGY_AUTO,
    /** Every model scores every position, nobody proposes: the baseline. */
    standard = COS_STRATEGY_STANDARD,
    /** One model drafts, all others score. */
    speculative = COS_STRATEGY_SPECULATIVE,
    /** Collaborative decoding via speculation: the models take turns in proposing. */
    cos = COS_STRATEGY_COS,
};

/** What positions are verified against. Does not change the distribution. */
enum class Targets : std::int32_t {
    /** Routed under Strategy::automatic where it applies, combined otherwise. */
    automatic = COS_TARGETS_AUTO,
    /** Every position is verified against the combined distribution, which needs all models. */
    combined = COS_TARGETS_COMBINED,
    /** Every position is verified against one model that is drawn from the weights. For "weighted", temperature above 0. */
    routed = COS_TARGETS_ROUTED,
};

/** Why a sequence is finished, or that it is not. */
enum class Finish : std::int32_t {
    /** The sequence goes on. */
    none = COS_FINISH_NONE,
    /** A stop token was committed; it is the last token. */
    stop = COS_FINISH_STOP,
    /** max_tokens were generated since the last prompt. */
    max_tokens = COS_FINISH_MAX_TOKENS,
    /** The context has no room for another token. */
    context_full = COS_FINISH_CONTEXT_FULL,
    /** cancel() was called. */
    cancelled = COS_FINISH_CANCELLED,
};

/** The models' rows of logits for one position, in the engine's order. */
class Rows {
public:
    Rows(const float* const* rows, std::size_t models, std::size_t vocab_size) noexcept
        : rows_(rows), models_(models), vocab_size_(vocab_size) {}

    /** Number of models. */
    std::size_t size() const noexcept { return models_; }
    /** The logits of a model; empty for models that the engine's combination gives the weight 0, and for look-ups. */
    Span<const float> operator[](std::size_t model) const {
        assert(model < models_);
        return rows_[model] ? Span<const float>(rows_[model], vocab_size_) : Span<const float>();
    }

private:
    const float* const* rows_;
    std::size_t models_;
    std::size_t vocab_size_;
};

/**
 * A combination of the caller's own: makes one row of scores from the models' rows, for one position. Returns 0; any other
 * number, or an exception, makes the step fail with Code::callback (an exception is kept in Error::cause).
 *
 * Exactness asks that it depends on the rows alone. It is called inside step(), on its thread, possibly several times and
 * for positions whose tokens are dropped. It must not keep the spans. It may cancel() its session; other calls get busy. All
 * scores are to be written; minus infinity is impossible.
 */
using Combine = std::function<std::int32_t(const Rows& rows, Span<float> scores)>;

/** How a session decodes: by default greedy and automatic. */
struct SessionOptions {
    Strategy strategy = Strategy::automatic;
    /**
     * 0 is greedy: the token of the highest score, among equal ones the lowest. Otherwise scores are divided by it.
     * With "weighted", a small one (0.01 and less) is not greedy: one of the models' own best tokens is drawn. Set 0
     * for the best token of the mixture, or "greedy_below" in the configuration of the engine.
     */
    float temperature = 0;
    /** Sample among this many best tokens of each distribution; 0 is off. */
    std::int32_t top_k = 0;
    /** Sample among the fewest best tokens with this share of the probability; 0 or 1 is off. */
    float top_p = 0;
    /** Sample among tokens with at least this share of the best one's probability; 0 is off. */
    float min_p = 0;
    /** The same seed, strategy (not automatic) and number of threads give the same tokens. */
    std::uint64_t seed = 0;
    /** Most tokens to generate after each prompt; 0 is until the context is full. */
    std::uint32_t max_tokens = 0;
    /** Tokens that each model proposes in a row, in the engine's order, 0 to 64; otherwise chosen by the library. */
    std::optional<std::vector<std::int32_t>> proposal_lengths{};
    /** Weights in place of the engine's, for "weighted" and "logits". */
    std::optional<std::vector<float>> weights{};
    /** Tokens that end the sequence, possibly none; otherwise the end-of-sequence tokens that came with the models. */
    std::optional<std::vector<Token>> stop_tokens{};
    Targets targets = Targets::automatic;
    /** Get the log-probability of each token. It takes the combined distribution, so Targets::routed is an error. */
    bool log_probabilities = false;
    /** A combination in place of the engine's. The session keeps it alive. */
    Combine combine{};
};

/** What a step did. Its spans are lent by the session until the session's next call. */
struct Step {
    /** The tokens that the step committed, at least one unless the sequence is finished. */
    Span<const Token> tokens;
    Finish finish = Finish::none;
    /** The natural logarithm of each token's probability under the combined distribution; empty if not asked for. */
    Span<const float> log_probabilities;

    bool finished() const noexcept { return finish != Finish::none; }
};

/** What a session did so far, or all sessions of an engine. */
struct Stats {
    /** Calls of step(). */
    std::uint64_t steps = 0;
    /** Tokens committed, prompts excluded. */
    std::uint64_t tokens = 0;
    /** Proposals made. */
    std::uint64_t proposed = 0;
    /** Proposals that reached an accept or reject decision; others were dropped behind a rejection or an end. */
    std::uint64_t tested = 0;
    /** Proposals accepted. */
    std::uint64_t accepted = 0;
    /** Passes of all models, those over nothing but prompt excluded. */
    std::uint64_t forwards = 0;
    /** Positions that all models scored, those of the prompt excluded. */
    std::uint64_t positions = 0;
    /** Time inside ONNX Runtime, prompts included. */
    std::chrono::nanoseconds model_time{};
    /** Time inside step(). */
    std::chrono::nanoseconds total_time{};
    /** Greedy choices between two nearly equal scores, which passes of other widths may decide otherwise. */
    std::uint64_t near_ties = 0;
    /**
     * With Strategy::automatic, time inside step() since a first look at the plan, passes over prompts excluded; zero with any
     * other, as the next two are. They are about the same tokens: standard_time / planned_time is the measured gain of
     * planning, standard_time / expected_time the one that was expected.
     */
    std::chrono::nanoseconds planned_time{};
    /** Time that these tokens were expected to take, as the plans were chosen. */
    std::chrono::nanoseconds expected_time{};
    /** Time that Strategy::standard would have taken for them, by the measured times of the models' passes. */
    std::chrono::nanoseconds standard_time{};
    /** Rows of logits that models on a GPU keep there, and that had to be copied to the host; see cos_stats. */
    std::uint64_t rows_copied = 0;
};

// ---- inside

namespace detail {

template <auto release>
struct Free {
    template <typename T>
    void operator()(T* handle) const noexcept { release(handle); }
};

/** An error of the C interface, which is freed. */
inline Error take(cos_error* error, std::exception_ptr cause = nullptr) {
    const std::unique_ptr<cos_error, Free<cos_error_free>> owner(error);
    return Error{static_cast<Code>(cos_error_code(error)), cos_error_message(error), std::move(cause)};
}

inline Result<void> checked(cos_error* error) {
    if (error) return take(error);
    return {};
}

/** The pointer of elements; not NULL where there are none, since that means "not given" to the C interface. */
template <typename C>
auto pointer(const C& elements) noexcept {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(elements.data())>>;
    static const T none{};
    return elements.size() == 0 ? &none : static_cast<const T*>(elements.data());
}

/** A string without a NUL inside, where C would see it end. */
inline std::optional<Error> ends_early(const std::string& text) {
    if (text.find('\0') == std::string::npos) return std::nullopt;
    return Error{Code::invalid_argument, "there is a NUL inside the text"};
}

/** The statistics of a session or an engine. */
template <typename T>
Result<Stats> stats(cos_error* (*function)(const T*, cos_stats*), const T* of) {
    cos_stats out{};
    out.struct_size = sizeof out;
    if (cos_error* error = function(of, &out)) return take(error);
    const auto time = [](std::uint64_t ns) { return std::chrono::nanoseconds(static_cast<std::int64_t>(ns)); };
    return Stats{out.steps,            out.tokens,            out.proposed,           out.tested,         out.accepted,
                 out.forwards,         out.positions,         time(out.model_ns),     time(out.total_ns), out.near_ties,
                 time(out.planned_ns), time(out.expected_ns), time(out.standard_ns), out.rows_copied};
}

/** A text that a session or an engine lends. */
template <typename T>
Result<std::string_view> text(cos_error* (*function)(const T*, const char**), const T* of) {
    const char* out = nullptr;
    if (cos_error* error = function(of, &out)) return take(error);
    return std::string_view(out);
}

/** Fill a container whose size is guessed, and once more with the right size if that was too small. */
template <typename C, typename Fill>
Result<C> filled(std::size_t guess, Fill fill) {
    C out(guess, typename C::value_type{});
    Result<std::size_t> count = fill(Span<typename C::value_type>(out));
    if (!count && count.error().code == Code::buffer_too_small) {
        count = fill(Span<typename C::value_type>());
        if (count) {
            out.resize(*count);
            count = fill(Span<typename C::value_type>(out));
        }
    }
    if (!count) return count.error();
    out.resize(*count);
    return out;
}

/** What a session owns, at an address that stays when it is moved: the combine function goes after the session. */
struct SessionState {
    Combine combine;
    std::exception_ptr thrown;
    std::unique_ptr<cos_session, Free<cos_free>> handle;

    /** Calls the combine function from C, where no exception may go. */
    static std::int32_t call(const float* const* rows, std::size_t models, std::size_t vocab_size, float* out_scores,
                             void* data) noexcept {
        auto& state = *static_cast<SessionState*>(data);
#ifdef __cpp_exceptions
        try {
            return state.combine(Rows(rows, models, vocab_size), Span<float>(out_scores, vocab_size));
        } catch (...) {
            state.thrown = std::current_exception();
            return -1;
        }
#else
        return state.combine(Rows(rows, models, vocab_size), Span<float>(out_scores, vocab_size));
#endif
    }

    static Result<Step> step(SessionState* state) {
        cos_step_result result{};
        result.struct_size = sizeof result;
        if (cos_error* error = cos_step(state ? state->handle.get() : nullptr, &result)) {
            // Another thread gets `busy`, and must not touch what belongs to the one that is in the session.
            const bool thrown = cos_error_code(error) == COS_ERROR_CALLBACK;
            return take(error, thrown ? std::exchange(state->thrown, nullptr) : nullptr);
        }
        const std::size_t values = result.log_probabilities ? result.tokens_count : 0;
        return Step{{result.tokens, result.tokens_count}, static_cast<Finish>(result.finish), {result.log_probabilities, values}};
    }
};

}  // namespace detail

// ---- sessions

/**
 * The steps of a session as a range, for `for`: up to and with the one that finishes the sequence, or an error. Leave it with
 * `break`, and the next steps() goes on. The session must not be destroyed meanwhile; it may be moved.
 */
class Steps {
public:
    struct End {};

    class Iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Result<Step>;
        using difference_type = std::ptrdiff_t;
        using pointer = const Result<Step>*;
        using reference = const Result<Step>&;

        explicit Iterator(Steps* steps) : steps_(steps) {}
        reference operator*() const { return *steps_->current_; }
        pointer operator->() const { return &*steps_->current_; }
        Iterator& operator++() {
            steps_->advance();
            return *this;
        }
        void operator++(int) { steps_->advance(); }
        friend bool operator==(const Iterator& it, End) { return it.done(); }
        friend bool operator!=(const Iterator& it, End) { return !it.done(); }
#if __cplusplus < 202002L  // C++20 makes these itself
        friend bool operator==(End, const Iterator& it) { return it.done(); }
        friend bool operator!=(End, const Iterator& it) { return !it.done(); }
#endif

    private:
        bool done() const { return !steps_->current_; }

        Steps* steps_;
    };

    explicit Steps(detail::SessionState* state) : state_(state) {}
    /** Takes the first step. */
    Iterator begin() {
        current_ = detail::SessionState::step(state_);
        return Iterator(this);
    }
    End end() const { return {}; }

private:
    void advance() {
        if (!*current_ || (*current_)->finished()) current_.reset();
        else current_ = detail::SessionState::step(state_);
    }

    detail::SessionState* state_;
    std::optional<Result<Step>> current_;
};

/** A session: one sequence. Made by Engine::session. */
class Session {
public:
    /**
     * Append tokens to the sequence: its prompt, or the next turn of a chat between steps. A finished sequence goes on. The
     * models see the tokens in the next step.
     *
     * Errors: invalid_argument (no tokens, or one outside the vocabulary), context_full, busy, poisoned.
     */
    Result<void> prompt(Span<const Token> tokens) {
        return detail::checked(cos_prompt(raw(), detail::pointer(tokens), tokens.size()));
    }

    /**
     * Advance the sequence by one round: commits at least one token unless the sequence is finished. On error nothing is
     * committed, and the next step tries again. The step's spans are lent until the session's next call.
     *
     * Errors: invalid_argument (no prompt yet), numeric, runtime, callback, busy, poisoned, internal (poisons the session).
     */
    Result<Step> step() { return detail::SessionState::step(state_.get()); }

    /** All steps until the sequence is finished: `for (auto& step : session.steps()) ...`, where each is a Result<Step>. */
    [[nodiscard]] Steps steps() { return Steps(state_.get()); }

    /**
     * Stop the running step, or else the next one: it ends early with Finish::cancelled. Nothing that was committed is lost.
     * From any thread at any time; never waits for a running pass.
     */
    Result<void> cancel() const { return detail::checked(cos_cancel(raw())); }

    /** What the session did so far, up to the last call that ended. From any thread at any time. */
    Result<Stats> stats() const { return detail::stats(cos_session_stats, raw()); }

    /**
     * How the session decodes now, and why, as JSON that cos_session_describe describes: for a log, a bug report, or a look at
     * what Strategy::automatic does and gains. Lent until the next describe().
     *
     * Errors: busy, poisoned.
     */
    Result<std::string_view> describe() const { return detail::text(cos_session_describe, raw()); }

    /**
     * Decode with other weights from the next token on, for "weighted" and "logits", between steps. On error nothing changes.
     *
     * Errors: invalid_argument, context_full (the sequence is longer than the context of a model whose weight was 0), busy,
     * poisoned.
     */
    Result<void> set_weights(Span<const float> weights) {
        return detail::checked(cos_session_set_weights(raw(), detail::pointer(weights), weights.size()));
    }

    /** The session of the C interface, still owned by this object. */
    cos_session* raw() const noexcept { return state_ ? state_->handle.get() : nullptr; }

private:
    friend class Engine;
    explicit Session(std::unique_ptr<detail::SessionState> state) : state_(std::move(state)) {}

    std::unique_ptr<detail::SessionState> state_;
};

/**
 * Turns a stream of tokens into a stream of text that is cut between characters only, and ends before a stop string if there
 * are any. Made by Engine::text_stream.
 *
 * The text continues a prompt, so the space before its first word stays: the text of the prompt and the text of the stream
 * together are the text of all tokens. Unless prompt() tells the prompt, the stream assumes one that ends with a whole word.
 */
class TextStream {
public:
    /**
     * Tell the stream what its text continues: all tokens before it, or none. With some tokenizers the text depends on it if
     * the prompt is empty, has no text (such as a start token alone), or ends within a word. The call is optional. It comes
     * before the first push(), or after finish(). The stream gives no text for these tokens.
     *
     * Errors: invalid_argument (also after a push(); nothing is changed), busy.
     */
    Result<void> prompt(Span<const Token> tokens) {
        return detail::checked(cos_text_stream_prompt(raw(), detail::pointer(tokens), tokens.size()));
    }

    /**
     * End the text before the first of some strings that appears in it, such as the turn of another speaker: that is the one
     * that is complete first, and the longest of those. They may be of any length, and reach across tokens. Special tokens
     * give no text, but a stop string that is the name of one, or contains it, is found all the same. This replaces the
     * strings set before; what was given out stays. Takes strings or string_views in a row, or `{"one", "two"}`.
     *
     * Errors: invalid_argument (one is empty, or no UTF-8; the strings before stay), busy.
     */
    template <typename Strings = std::initializer_list<std::string_view>>
    Result<void> set_stops(const Strings& stops) {
        std::vector<const char*> pointers;
        std::vector<std::size_t> bytes;
        for (const std::string_view stop : Span<const typename Strings::value_type>(stops)) {
            pointers.push_back(stop.data());
            bytes.push_back(stop.size());
        }
        return detail::checked(cos_text_stream_set_stops(raw(), pointers.data(), bytes.data(), pointers.size()));
    }

    /** Whether a stop string has ended the text, or did when that was finished. Tokens then make no more text until finish(). */
    bool stopped() const noexcept { return cos_text_stream_stopped(raw()) != 0; }

    /**
     * The text that further tokens complete, such as those of a step. The bytes of an unfinished character are held back
     * until it is whole, and what may become a stop string until that is certain. Lent until the stream's next call.
     *
     * Errors: invalid_argument (no token is taken), busy.
     */
    Result<std::string_view> push(Span<const Token> tokens) {
        const char* text = nullptr;
        std::size_t bytes = 0;
        if (cos_error* error = cos_text_stream_push(raw(), detail::pointer(tokens), tokens.size(), &text, &bytes)) {
            return detail::take(error);
        }
        return std::string_view(text, bytes);
    }

    /**
     * The rest of the text: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
     * next push starts a new text with the same stop strings, whose prompt is not known. Lent as by push().
     */
    Result<std::string_view> finish() {
        const char* text = nullptr;
        std::size_t bytes = 0;
        if (cos_error* error = cos_text_stream_finish(raw(), &text, &bytes)) return detail::take(error);
        return std::string_view(text, bytes);
    }

    /** The stream of the C interface, still owned by this object. */
    cos_text_stream* raw() const noexcept { return handle_.get(); }

private:
    friend class Engine;
    explicit TextStream(cos_text_stream* handle) : handle_(handle) {}

    std::unique_ptr<cos_text_stream, detail::Free<cos_text_stream_free>> handle_;
};

// ---- engines

/** An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once. */
class Engine {
public:
    /**
     * Make an engine from a configuration file, which cos_engine_open describes. Relative paths in it are relative to its
     * folder.
     *
     * Errors: invalid_argument, config, model (a file is missing or corrupt, is no language model, or the vocabularies or
     * tokenizers differ), runtime, unsupported (an export that could not be verified with; the message says why).
     */
    static Result<Engine> open(const std::string& config_path) { return make(cos_engine_open, config_path); }

    /** Make an engine from configuration text. Relative paths in it are relative to the working directory. */
    static Result<Engine> from_json(const std::string& config_json) { return make(cos_engine_new, config_json); }

    /** Number of tokens of the vocabulary that the models share. */
    std::size_t vocab_size() const noexcept { return cos_engine_vocab_size(raw()); }

    /** Number of models, in the order of the configuration: the length of weights and proposal_lengths. */
    std::size_t model_count() const noexcept { return cos_engine_model_count(raw()); }

    /** What was recognised of each model, as JSON that cos_engine_describe describes. Lent as long as the engine lives. */
    Result<std::string_view> describe() const { return detail::text(cos_engine_describe, raw()); }

    /** The same as a table for people, such as for a log. Lent as long as the engine lives. */
    Result<std::string_view> describe_table() const { return detail::text(cos_engine_describe_table, raw()); }

    /**
     * Start an empty sequence.
     *
     * Errors: invalid_argument (names the option), unsupported, runtime.
     */
    Result<Session> session(const SessionOptions& options = {}) const {
        auto state = std::make_unique<detail::SessionState>();
        cos_session_options given{};
        given.struct_size = sizeof given;
        given.strategy = static_cast<std::int32_t>(options.strategy);
        given.temperature = options.temperature;
        given.top_k = options.top_k;
        given.top_p = options.top_p;
        given.min_p = options.min_p;
        given.seed = options.seed;
        given.max_tokens = options.max_tokens;
        if (options.proposal_lengths) {
            given.proposal_lengths = detail::pointer(*options.proposal_lengths);
            given.proposal_lengths_count = options.proposal_lengths->size();
        }
        if (options.weights) {
            given.weights = detail::pointer(*options.weights);
            given.weights_count = options.weights->size();
        }
        if (options.stop_tokens) {
            given.stop_tokens = detail::pointer(*options.stop_tokens);
            given.stop_tokens_count = options.stop_tokens->size();
        }
        given.targets = static_cast<std::int32_t>(options.targets);
        given.log_probabilities = options.log_probabilities;
        if (options.combine) {
            state->combine = options.combine;
            given.combine = detail::SessionState::call;
            given.combine_data = state.get();
        }
        cos_session* session = nullptr;
        if (cos_error* error = cos_session_new(raw(), &given, &session)) return detail::take(error);
        state->handle.reset(session);
        return Session(std::move(state));
    }

    /**
     * The tokens of a text, by the tokenizer.json beside the models; with the tokens that the tokenizer puts around a text,
     * such as one for its start, unless add_special is false.
     *
     * Errors: invalid_argument (no UTF-8), unsupported (the models came without a tokenizer.json).
     */
    Result<std::vector<Token>> encode(std::string_view text, bool add_special = true) const {
        return detail::filled<std::vector<Token>>(text.size() + 16, [&](Span<Token> out) { return encode_to(text, out, add_special); });
    }

    /** The same into a buffer: the number of tokens. With an empty one they are counted only. Error: buffer_too_small. */
    Result<std::size_t> encode_to(std::string_view text, Span<Token> out, bool add_special = true) const {
        std::size_t count = 0;
        if (cos_error* error = cos_engine_encode(raw(), detail::pointer(text), text.size(), add_special, out.data(), out.size(), &count)) {
            return detail::take(error);
        }
        return count;
    }

    /**
     * The text of tokens without special tokens. Bytes that are no whole character become U+FFFD; to decode a sequence piece
     * by piece use text_stream().
     *
     * Errors: invalid_argument, unsupported.
     */
    Result<std::string> decode(Span<const Token> tokens) const {
        return detail::filled<std::string>(8 * tokens.size() + 16, [&](Span<char> out) { return decode_to(tokens, out); });
    }

    /** The same into a buffer: the number of bytes. With an empty one they are counted only. Error: buffer_too_small. */
    Result<std::size_t> decode_to(Span<const Token> tokens, Span<char> out) const {
        std::size_t bytes = 0;
        if (cos_error* error = cos_engine_decode(raw(), detail::pointer(tokens), tokens.size(), out.data(), out.size(), &bytes)) {
            return detail::take(error);
        }
        return bytes;
    }

    /** Start a stream of text. Error: unsupported (no tokenizer.json). */
    Result<TextStream> text_stream() const {
        cos_text_stream* stream = nullptr;
        if (cos_error* error = cos_text_stream_new(raw(), &stream)) return detail::take(error);
        return TextStream(stream);
    }

    /** What all sessions did so far, also those that were destroyed: for the metrics of a server. Grows with each step. */
    Result<Stats> stats() const { return detail::stats(cos_engine_stats, raw()); }

    /** The engine of the C interface, still owned by this object. */
    cos_engine* raw() const noexcept { return handle_.get(); }

private:
    explicit Engine(cos_engine* handle) : handle_(handle) {}

    static Result<Engine> make(cos_error* (*function)(const char*, cos_engine**), const std::string& argument) {
        if (auto error = detail::ends_early(argument)) return *error;
        cos_engine* engine = nullptr;
        if (cos_error* error = function(argument.c_str(), &engine)) return detail::take(error);
        return Engine(engine);
    }

    std::unique_ptr<cos_engine, detail::Free<cos_engine_free>> handle_;
};

/** Version of the library that runs, such as "0.1.0". */
inline std::string_view version() noexcept { return cos_version(); }

}  // namespace cosrt

#endif  // COS_HPP
