/* CoS: exact, fast decoding with several language models at once. C++17 interface over cos.h, header only.
 *
 *     auto engine = cosrt::Engine::open("engine.json").value();            load the models, once
 *     cosrt::SessionOptions options;                                       greedy, with an automatic strategy
 *     auto session = engine.session(options).value();                      a sequence
 *     session.prompt(engine.encode("Once upon").value()).value();
 *     for (auto& step : session.steps()) use(step.value().tokens);         until it is finished
 *
 * Errors. A call that can fail returns a Result: a value, or an Error with a code and a message. Test it with
 * `if (!result)` and read result.error(), or call result.value(), which throws cosrt::Exception for an error. Nothing
 * else throws, except std::bad_alloc. With -fno-exceptions, value() of an error ends the process.
 *
 * Ownership. Engine, Session and TextStream free themselves. They can be moved, but not copied. They may be destroyed
 * in any order: a session or stream keeps alive what it needs of its engine. After a move, the old object may be
 * assigned or destroyed, and its calls fail with invalid_argument. A call that returns a span or a string_view says how
 * long it is valid. Arguments are copied, or only read during the call.
 *
 * Threads. As in cos.h: one thread at a time may use a session or a text stream, and any number may use an engine.
 * cancel() and stats() may be called at any time, but no call may run while its object is moved or destroyed.
 *
 * Text is UTF-8. cos.h is the manual, and has what is not said here.
 */

#ifndef COS_HPP
#define COS_HPP

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cos.h"
#include "cos_options.hpp"
#include "cos_result.hpp"
#include "cos_step.hpp"

namespace cosrt {

/// Counts and times of a session, or of all sessions of an engine. cos_stats in cos.h says more.
struct Stats {
    std::uint64_t steps = 0;      ///< Rounds: calls of step(); with step_many(), from one news to the next.
    std::uint64_t tokens = 0;     ///< Tokens committed, without prompts.
    std::uint64_t proposed = 0;   ///< Tokens proposed.
    std::uint64_t tested = 0;     ///< Proposals accepted or rejected. Others were dropped behind a rejection or an end.
    std::uint64_t accepted = 0;   ///< Proposals accepted.
    std::uint64_t forwards = 0;   ///< Passes of all models, without those over nothing but prompt.
    std::uint64_t positions = 0;  ///< Positions that all models scored, without those of prompts.
    std::chrono::nanoseconds model_time{};  ///< Time inside ONNX Runtime, with prompts.
    std::chrono::nanoseconds total_time{};  ///< Time inside step().
    std::uint64_t near_ties = 0;  ///< Greedy choices between two nearly equal scores.
    /// Time inside step() under Strategy::automatic, from the first evaluation of the plan on, without passes over
    /// prompts. standard_time / planned_time is the measured gain of planning, and standard_time / expected_time the
    /// expected gain.
    std::chrono::nanoseconds planned_time{};
    std::chrono::nanoseconds expected_time{};  ///< Time that these tokens were expected to take.
    std::chrono::nanoseconds standard_time{};  ///< Time that Strategy::standard would have taken for these tokens.
    std::uint64_t rows_copied = 0;  ///< Rows of logits that a GPU keeps and that had to be copied to the host.
    std::uint64_t prefix_tokens = 0;      ///< Tokens that models did not compute: a session began with the same.
    std::uint64_t recomputed_tokens = 0;  ///< Tokens computed once more, because other sessions took their memory.
};

namespace detail {

template <auto release>
struct Free {
    template <typename T>
    void operator()(T* handle) const noexcept { release(handle); }
};

/// Converts an error of the C interface, and frees it.
inline Error take(cos_error* error, std::exception_ptr cause = nullptr) {
    const std::unique_ptr<cos_error, Free<cos_error_free>> owner(error);
    return Error{static_cast<Code>(cos_error_code(error)), cos_error_message(error), std::move(cause),
                 cos_error_status(error), cos_error_json(error)};
}

inline Result<void> checked(cos_error* error) {
    if (error) return take(error);
    return {};
}

/// An error if a string has a NUL inside, because it would end there in C.
inline std::optional<Error> contains_nul(const std::string& text) {
    if (text.find('\0') == std::string::npos) return std::nullopt;
    return Error{Code::invalid_argument, "the text has a NUL inside; remove it"};
}

/// The statistics of a session or an engine.
template <typename T>
Result<Stats> stats(cos_error* (*function)(const T*, cos_stats*), const T* of) {
    cos_stats out{};
    out.struct_size = sizeof out;
    if (cos_error* error = function(of, &out)) return take(error);
    const auto time = [](std::uint64_t ns) { return std::chrono::nanoseconds(static_cast<std::int64_t>(ns)); };
    return Stats{out.steps,            out.tokens,            out.proposed,           out.tested,         out.accepted,
                 out.forwards,         out.positions,         time(out.model_ns),     time(out.total_ns), out.near_ties,
                 time(out.planned_ns), time(out.expected_ns), time(out.standard_ns), out.rows_copied,
                 out.prefix_tokens,    out.recomputed_tokens};
}

/// A text that a session or an engine owns.
template <typename T>
Result<std::string_view> text(cos_error* (*function)(const T*, const char**), const T* of) {
    const char* out = nullptr;
    if (cos_error* error = function(of, &out)) return take(error);
    return std::string_view(out);
}

/// Fills a container of a guessed size. If that is too small, asks for the size and fills it again.
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

/// Fills a string that may grow between two calls, so it has no size to ask for.
template <typename Fill>
Result<std::string> growing(std::size_t guess, Fill fill) {
    for (std::string out(guess, '\0');; out.resize(2 * out.size())) {
        const Result<std::size_t> bytes = fill(Span<char>(out));
        if (bytes) return out.resize(*bytes), std::move(out);
        if (bytes.error().code != Code::buffer_too_small) return bytes.error();
    }
}

/// Calls a function of the caller for C, and keeps an exception, which must not enter C.
template <typename Call>
std::int32_t guarded(std::exception_ptr& thrown, Call call) noexcept {
    thrown = nullptr;
#ifdef __cpp_exceptions
    try {
        return call();
    } catch (...) {
        thrown = std::current_exception();
        return -1;
    }
#else
    return call();
#endif
}

struct SessionState;

/// The constraint function of a session. Other options put another one in its place, and a fork has its own.
struct Constraining {
    SessionOptions options;
    SessionState& state;
};

/// The state of a Session, which a move leaves at its address. The session is destroyed before the functions.
struct SessionState {
    std::size_t models = 0;
    Combine combine;
    Weigh weigh;
    std::vector<ModelSummary> summaries;  // for weigh
    std::unique_ptr<Constraining> constraining;
    std::exception_ptr thrown;
    std::unique_ptr<cos_session, Free<cos_free>> handle;

    static std::int32_t call(const float* const* rows, std::size_t models, std::size_t vocab_size, float* out_scores,
                             void* data) noexcept {
        auto& state = *static_cast<SessionState*>(data);
        return guarded(state.thrown, [&] {
            return state.combine(Rows(rows, models, vocab_size), Span<float>(out_scores, vocab_size));
        });
    }

    static std::int32_t call(const Token* tokens, std::size_t count, std::size_t kept, std::uint32_t* mask,
                             std::size_t words, std::uint64_t number, void* data) noexcept {
        auto& constraining = *static_cast<Constraining*>(data);
        return guarded(constraining.state.thrown, [&] {
            return constraining.options.constrain({{tokens, count}, kept, number}, {mask, words});
        });
    }

    static std::int32_t call(const Token* tokens, std::size_t count, const cos_model_summary* models,
                             std::size_t models_count, float* weights, void* data) noexcept {
        auto& state = *static_cast<SessionState*>(data);
        return guarded(state.thrown, [&] {
            state.summaries.clear();
            for (const cos_model_summary& of : Span<const cos_model_summary>(models, models_count)) {
                state.summaries.push_back({of.confidence, of.entropy, of.best});
            }
            return state.weigh({tokens, count}, Span<const ModelSummary>(state.summaries), {weights, models_count});
        });
    }

    /// Gives options the functions that stay for the life of the session.
    void keep(const SessionOptions& from, cos_session_options& options) {
        if (from.combine) combine = from.combine, options.combine = call, options.combine_data = this;
        if (from.weigh) weigh = from.weigh, options.weigh = call, options.weigh_data = this;
    }

    /// Gives options the constraint function, and returns what owns it for C.
    std::unique_ptr<Constraining> give(const SessionOptions& from, cos_session_options& options) {
        if (!from.constrain) return nullptr;
        auto owner = std::make_unique<Constraining>(Constraining{from, *this});
        options.constrain = call, options.constrain_data = owner.get();
        return owner;
    }

    static Result<Step> step(SessionState* state) {
        cos_step_result result{};
        result.struct_size = sizeof result;
        return told(state, cos_step(state ? state->handle.get() : nullptr, &result), result);
    }

    /// What the library told of a step.
    static Result<Step> told(SessionState* state, cos_error* error, const cos_step_result& result) {
        if (error) {
            // A call that fails with `busy` must not touch `thrown`: it belongs to the thread that is in the session.
            const bool thrown = cos_error_code(error) == COS_ERROR_CALLBACK;
            return take(error, thrown ? std::exchange(state->thrown, nullptr) : nullptr);
        }
        const std::size_t count = result.tokens_count;
        return Step{{result.tokens, count},
                    static_cast<Finish>(result.finish),
                    {result.log_probabilities, result.log_probabilities ? count : 0},
                    {result.top_tokens, count, result.top_count},
                    {result.top_log_probabilities, count, result.top_count},
                    {result.model_log_probabilities, count, state ? state->models : 0},
                    {result.origins, count}};
    }
};

/// The progress function of a call of prepare(), and what it threw.
struct Progress {
    const std::function<bool(double)>& function;
    std::exception_ptr thrown;

    static std::int32_t call(double share, void* data) noexcept {
        auto& progress = *static_cast<Progress*>(data);
        return guarded(progress.thrown, [&]() -> std::int32_t { return !progress.function(share); });
    }
};

}  // namespace detail

/// The steps of a session as a range for `for`. It ends with the step that finishes the sequence, or with an error.
/// After `break`, another steps() goes on. The session may be moved meanwhile, but not destroyed.
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
        Iterator& operator++() { return steps_->advance(), *this; }
        void operator++(int) { steps_->advance(); }
        friend bool operator==(const Iterator& it, End) { return it.done(); }
        friend bool operator!=(const Iterator& it, End) { return !it.done(); }

    private:
        bool done() const { return !steps_->current_; }
        Steps* steps_;
    };

    explicit Steps(detail::SessionState* state) : state_(state) {}
    /// Takes the first step.
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

/// A session: one sequence. Made by Engine::session.
class Session {
public:
    /// Append tokens to the sequence: the first prompt, or the next turn of a chat. A finished sequence goes on. The
    /// next step runs the models over the tokens.
    /// Errors: invalid_argument (no tokens, or a token outside the vocabulary), context_full, busy, poisoned.
    Result<void> prompt(Span<const Token> tokens) {
        return detail::checked(cos_prompt(raw(), detail::pointer(tokens), tokens.size()));
    }

    /// Append tokens as prompt() does, and get their log-probabilities under the combined distribution: of a prompt, or
    /// of an answer that is to be judged. The options say which there are; controls have no effect here. The first
    /// token of a sequence has NaN, and -1 as its top_tokens. It takes as long as a step with such a prompt. If it is
    /// cancelled, it has no tokens. On error and if it is cancelled, nothing is appended. Its spans are valid until the
    /// session's next call. Errors: those of prompt() and step(), invalid_argument (log_probabilities is off).
    Result<Step> score(Span<const Token> tokens) {
        cos_step_result result{};
        result.struct_size = sizeof result;
        cos_error* error = cos_session_score(raw(), detail::pointer(tokens), tokens.size(), &result);
        return detail::SessionState::told(state_.get(), error, result);
    }

    /// Advance the sequence by one round. Commits at least one token, unless the sequence is finished. On error,
    /// nothing is committed, and the next step tries again. Its spans are valid until the session's next call.
    /// Errors: invalid_argument (no prompt yet), numeric, runtime, callback, busy, poisoned, internal.
    Result<Step> step() { return detail::SessionState::step(state_.get()); }

    /// All steps until the sequence is finished, each a Result<Step>: `for (auto& step : session.steps()) ...`.
    [[nodiscard]] Steps steps() { return Steps(state_.get()); }

    /// Stop the running step, or the next one if none is running: it ends early with Finish::cancelled, and all
    /// committed tokens stay. May be called from any thread at any time. Never waits for a pass.
    Result<void> cancel() const { return detail::checked(cos_cancel(raw())); }

    /// The statistics up to the end of the last call. May be called from any thread at any time.
    Result<Stats> stats() const { return detail::stats(cos_session_stats, raw()); }

    /// How the session decodes now, and why, as JSON that cos_session_describe documents. Valid until the next
    /// describe(). Errors: busy, poisoned.
    Result<std::string_view> describe() const { return detail::text(cos_session_describe, raw()); }

    /// Change the weights from the next token on, for "weighted" and "logits". On error, nothing changes.
    /// Errors: invalid_argument, context_full (the model of a former weight 0 has a shorter context), busy, poisoned.
    Result<void> set_weights(Span<const float> weights) {
        return detail::checked(cos_session_set_weights(raw(), detail::pointer(weights), weights.size()));
    }

    /// Decode by other options from the next token on: what is decoded may change, and how may not. So strategy,
    /// targets, seed, proposal_lengths, routes and priority must be the old ones (the seed of a fork is its own).
    /// `weights`, `combine` and `weigh` are not read. All other members count. A text that max_tokens or a constraint
    /// has ended goes on if the new options allow that. On error, nothing changes.
    /// Errors: invalid_argument (the message names the option), unsupported, busy, poisoned.
    Result<void> set_options(const SessionOptions& options) {
        if (!state_) return Error{Code::invalid_argument, "the session was moved"};
        detail::Given given(options);
        auto constraining = state_->give(options, given.options);
        if (cos_error* error = cos_session_set_options(raw(), &given.options)) return detail::take(error);
        state_->constraining = std::move(constraining);
        return {};
    }

    /// Save the session: its tokens, options and random numbers. Engine::restore() makes a session of the bytes, which
    /// hold the prompt and the text. Errors: unsupported (the session has a function of the caller), busy, poisoned.
    Result<std::vector<std::byte>> save() const {
        return detail::filled<std::vector<std::byte>>(1 << 14, [&](Span<std::byte> out) -> Result<std::size_t> {
            std::size_t size = 0;
            if (cos_error* error = cos_session_save(raw(), out.data(), out.size(), &size)) return detail::take(error);
            return size;
        });
    }

    /// Share computed tokens with sessions of the same scope only, such as those of one tenant. Before the first
    /// prompt. Errors: invalid_argument (the session has tokens, or the scope has a NUL), busy, poisoned.
    Result<void> set_scope(const std::string& scope) {
        if (auto error = detail::contains_nul(scope)) return *error;
        return detail::checked(cos_session_set_scope(raw(), scope.c_str()));
    }

    /// Copy the session in its present state, with another seed. It costs no pass, and both share what was computed.
    /// Errors: unsupported (the session has a combine or a weights function), runtime, busy, poisoned.
    Result<Session> fork(std::uint64_t seed) const {
        if (state_ && state_->combine) return Error{Code::unsupported, "a session with a combine function has no fork"};
        if (state_ && state_->weigh) return Error{Code::unsupported, "a session with a weights function has no fork"};
        cos_session* copy = nullptr;
        if (cos_error* error = cos_session_fork(raw(), seed, &copy)) return detail::take(error);
        auto state = std::make_unique<detail::SessionState>();
        state->models = state_->models;
        state->handle.reset(copy);
        Session fork(std::move(state));
        if (!state_->constraining) return fork;
        SessionOptions own = state_->constraining->options;
        own.seed = seed;
        if (auto set = fork.set_options(own); !set) return set.error();
        return fork;
    }

    /// Forget all tokens from index `length` on, those of prompts too. Errors: invalid_argument, busy, poisoned.
    Result<void> rewind(std::size_t length) { return detail::checked(cos_session_rewind(raw(), length)); }

    /// The session of the C interface, which this object owns.
    cos_session* raw() const noexcept { return state_ ? state_->handle.get() : nullptr; }

private:
    friend class Engine;
    friend std::vector<Result<Step>> step_many(Span<Session* const> sessions);
    explicit Session(std::unique_ptr<detail::SessionState> state) : state_(std::move(state)) {}

    std::unique_ptr<detail::SessionState> state_;
};

/// Advance many sessions by one pass of each model, on the calling thread; see cos_step_many. Returns a step or an
/// error for each, in their order. A step without tokens that is not finished is no news: the session is in the middle
/// of a round. Errors of a session: invalid_argument (also: a null pointer, a session given twice), and all of step().
inline std::vector<Result<Step>> step_many(Span<Session* const> sessions) {
    std::vector<cos_session*> handles;
    for (const Session* session : sessions) handles.push_back(session ? session->raw() : nullptr);
    std::vector<cos_step_result> results(handles.size());
    for (cos_step_result& result : results) result.struct_size = sizeof result;
    std::vector<cos_error*> errors(handles.size());
    cos_error* error = cos_step_many(handles.data(), handles.size(), results.data(), errors.data());
    std::vector<Result<Step>> steps;
    for (std::size_t i = 0; i < handles.size(); i++) {
        auto* const state = handles[i] ? sessions[i]->state_.get() : nullptr;
        steps.push_back(detail::SessionState::told(state, errors[i], results[i]));
    }
    if (error) steps.assign(handles.size(), detail::take(error));
    return steps;
}

/// Decodes a stream of tokens to text. It gives out whole characters only, and can end the text before a stop string.
/// The text continues a prompt: their texts together are the text of all tokens. If prompt() does not set the prompt,
/// the stream assumes that it ends with a whole word. Made by Engine::text_stream.
class TextStream {
public:
    /// Set the prompt: all tokens before the text, or none. Optional; must come before the first push(), or after
    /// finish(). With some tokenizers, no space begins the text if the prompt is empty, has no text, or ends within a
    /// word. Errors: invalid_argument (also after a push(); nothing changes), busy.
    Result<void> prompt(Span<const Token> tokens) {
        return detail::checked(cos_text_stream_prompt(raw(), detail::pointer(tokens), tokens.size()));
    }

    /// Set whether special tokens give their names. Must come before prompt() and push(). Errors: as for prompt().
    Result<void> show_special(bool show) { return detail::checked(cos_text_stream_show_special(raw(), show)); }

    /// Set the stop strings: the text ends before the first one that is complete, or before the longest of several that
    /// are complete at the same place. They may span tokens, and contain names of special tokens. They replace those
    /// set before, and text that was given out stays. Takes a container of strings or string_views, or braces.
    /// Errors: invalid_argument (a string is empty or not UTF-8; nothing changes), busy.
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

    /// Whether a stop string has ended the text. Pushed tokens then give no text until finish(). After that call, the
    /// answer is about the finished text until the next push().
    bool stopped() const noexcept { return cos_text_stream_stopped(raw()) != 0; }

    /// Push tokens and get the text that they complete, valid until the stream's next call. Unfinished characters, and
    /// text that may become a stop string, are held back. Errors: invalid_argument (no token is taken), busy.
    Result<std::string_view> push(Span<const Token> tokens) {
        const char* text = nullptr;
        std::size_t bytes = 0;
        cos_error* error = cos_text_stream_push(raw(), detail::pointer(tokens), tokens.size(), &text, &bytes);
        if (error) return detail::take(error);
        return std::string_view(text, bytes);
    }

    /// Finish the text and get its rest, up to a stop string, valid until the stream's next call. Bytes that do not
    /// form a character become U+FFFD. The next push() starts a new text without a prompt. The stop strings stay.
    Result<std::string_view> finish() {
        const char* text = nullptr;
        std::size_t bytes = 0;
        if (cos_error* error = cos_text_stream_finish(raw(), &text, &bytes)) return detail::take(error);
        return std::string_view(text, bytes);
    }

    /// The stream of the C interface, which this object owns.
    cos_text_stream* raw() const noexcept { return handle_.get(); }

private:
    friend class Engine;
    explicit TextStream(cos_text_stream* handle) : handle_(handle) {}

    std::unique_ptr<cos_text_stream, detail::Free<cos_text_stream_free>> handle_;
};

/// An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
class Engine {
public:
    /// Make an engine from a configuration file, whose format cos_engine_open documents.
    /// Errors: invalid_argument, config, model (a file is missing or corrupt, a model is not a language model, or the
    /// vocabularies or tokenizers differ), runtime, unsupported (drafts could not be verified with an export).
    static Result<Engine> open(const std::string& config_path) { return make(cos_engine_open, config_path); }

    /// Make an engine from configuration text. Relative paths in it are relative to the working directory.
    static Result<Engine> from_json(const std::string& config_json) { return make(cos_engine_new, config_json); }

    /// The number of tokens in the vocabulary that all models share.
    std::size_t vocab_size() const noexcept { return cos_engine_vocab_size(raw()); }

    /// The number of models: the length of weights and proposal_lengths, which have the order of the configuration.
    std::size_t model_count() const noexcept { return cos_engine_model_count(raw()); }

    /// What was recognised of each model, as JSON that cos_engine_describe documents. Valid as long as the engine.
    Result<std::string_view> describe() const { return detail::text(cos_engine_describe, raw()); }

    /// The same as a table for people. Valid as long as the engine.
    Result<std::string_view> describe_table() const { return detail::text(cos_engine_describe_table, raw()); }

    /// Prepare for load, before users wait: run the passes that sessions will need most. Else the first sessions are
    /// slow, above all on a GPU. Returns the share that was done, also if the time was over or `progress` has stopped
    /// it. It counts in no statistics, and sessions may decode meanwhile. cos_engine_prepare says more.
    /// Errors: invalid_argument (the message names the option), callback, runtime, numeric.
    Result<double> prepare(const PrepareOptions& options = {}) const {
        detail::Progress progress{options.progress, nullptr};
        cos_prepare_options given{};
        given.struct_size = sizeof given;
        given.sessions = options.sessions, given.tokens = options.tokens;
        given.seconds = options.time.count();
        if (options.progress) given.progress = detail::Progress::call, given.progress_data = &progress;
        double share = 0;
        if (cos_error* error = cos_engine_prepare(raw(), &given, &share)) return detail::take(error);
        if (progress.thrown) return Error{Code::callback, "the progress function threw an exception", progress.thrown};
        return share;
    }

    /// Start an empty sequence. Errors: invalid_argument (the message names the option), unsupported, runtime.
    Result<Session> session(const SessionOptions& options = {}) const {
        auto state = std::make_unique<detail::SessionState>();
        state->models = model_count();
        detail::Given given(options);
        state->keep(options, given.options);
        state->constraining = state->give(options, given.options);
        cos_session* session = nullptr;
        if (cos_error* error = cos_session_new(raw(), &given.options, &session)) return detail::take(error);
        state->handle.reset(session);
        return Session(std::move(state));
    }

    /// Make a session of the bytes of Session::save(), in this or in another process. The engine must have the same
    /// models, and combine them in the same way. Its first step computes all tokens, as after a prompt.
    /// Errors: invalid_argument (the bytes are damaged, or the engine differs), unsupported (another version of the
    /// format), context_full, runtime.
    Result<Session> restore(Span<const std::byte> bytes) const {
        cos_session* session = nullptr;
        cos_error* error = cos_session_restore(raw(), detail::pointer(bytes), bytes.size(), &session);
        if (error) return detail::take(error);
        auto state = std::make_unique<detail::SessionState>();
        state->models = model_count();
        state->handle.reset(session);
        return Session(std::move(state));
    }

    /// Encode a text with the tokenizer.json beside the models. With add_special, the tokens include those that the
    /// tokenizer puts around a text, such as a start token.
    /// Errors: invalid_argument (not UTF-8), unsupported (no model has a tokenizer.json).
    Result<std::vector<Token>> encode(std::string_view text, bool add_special = true) const {
        return converted<std::vector<Token>>(text.size() + 16, cos_engine_encode, text, add_special);
    }

    /// Encode into a buffer, and get the number of tokens. An empty buffer counts them only. Error: buffer_too_small.
    Result<std::size_t> encode_to(std::string_view text, Span<Token> out, bool add_special = true) const {
        return convert(out, cos_engine_encode, text, add_special ? COS_ENCODE_ADD_SPECIAL : 0);
    }

    /// As encode(), but the names of special tokens in the text stay plain text. For what users say.
    Result<std::vector<Token>> encode_plain(std::string_view text, bool add_special = true) const {
        return converted<std::vector<Token>>(text.size() + 16, cos_engine_encode, text, COS_ENCODE_PLAIN | add_special);
    }

    /// Render messages to text with the chat template beside the models. `json` is an array of messages, or an object
    /// that has tools, documents and variables too, as cos_engine_chat says. For a prompt, use chat_encode().
    /// Errors: invalid_argument (also if the template refuses the messages), unsupported (there is no template).
    Result<std::string> chat(std::string_view json, bool add_generation_prompt = true) const {
        return converted<std::string>(2 * json.size() + 4096, cos_engine_chat, json, add_generation_prompt);
    }

    /// Encode the text of chat() as a whole prompt. Names of control tokens in messages become tokens of plain text, so
    /// only the template writes control tokens. Errors: also invalid_argument if such a name cannot be plain text.
    Result<std::vector<Token>> chat_encode(std::string_view json, bool add_generation_prompt = true) const {
        return converted<std::vector<Token>>(json.size() + 1024, cos_engine_chat_encode, json, add_generation_prompt);
    }

    /// Decode tokens to text. Special tokens give no text. Bytes that do not form a character become U+FFFD. To decode
    /// a sequence piece by piece, use text_stream(). Errors: invalid_argument, unsupported.
    Result<std::string> decode(Span<const Token> tokens) const {
        return converted<std::string>(8 * tokens.size() + 16, cos_engine_decode, tokens);
    }

    /// Decode into a buffer, and get the number of bytes. An empty buffer counts them only. Error: buffer_too_small.
    Result<std::size_t> decode_to(Span<const Token> tokens, Span<char> out) const {
        return convert(out, cos_engine_decode, tokens);
    }

    /// As decode(), but special tokens give their names.
    Result<std::string> decode_special(Span<const Token> tokens) const {
        return converted<std::string>(8 * tokens.size() + 16, cos_engine_decode_special, tokens);
    }

    /// Start a stream of text. Error: unsupported (no model has a tokenizer.json).
    Result<TextStream> text_stream() const {
        cos_text_stream* stream = nullptr;
        if (cos_error* error = cos_text_stream_new(raw(), &stream)) return detail::take(error);
        return TextStream(stream);
    }

    /// The sums over all sessions of the engine, destroyed ones included.
    Result<Stats> stats() const { return detail::stats(cos_engine_stats, raw()); }

    /// The metrics of the engine as text that Prometheus reads: counters, and histograms of what users wait for.
    /// cos_engine_metrics lists them. For a server's answer to GET /metrics, of the type "text/plain; version=0.0.4". A
    /// server may append lines of its own.
    Result<std::string> metrics() const {
        return detail::growing(std::size_t{1} << 15, [&](Span<char> out) -> Result<std::size_t> {
            std::size_t bytes = 0;
            cos_error* error = cos_engine_metrics(raw(), out.data(), out.size(), &bytes);
            if (error) return detail::take(error);
            return bytes;
        });
    }

    /// The engine of the C interface, which this object owns.
    cos_engine* raw() const noexcept { return handle_.get(); }

private:
    explicit Engine(cos_engine* handle) : handle_(handle) {}

    static Result<Engine> make(cos_error* (*function)(const char*, cos_engine**), const std::string& argument) {
        if (auto error = detail::contains_nul(argument)) return *error;
        cos_engine* engine = nullptr;
        if (cos_error* error = function(argument.c_str(), &engine)) return detail::take(error);
        return Engine(engine);
    }

    template <typename Out, typename Function, typename In, typename... Flags>
    Result<std::size_t> convert(Out out, Function function, const In& in, Flags... flags) const {
        std::size_t count = 0;
        cos_error* error = function(raw(), detail::pointer(in), in.size(), flags..., out.data(), out.size(), &count);
        if (error) return detail::take(error);
        return count;
    }

    template <typename C, typename... Args>
    Result<C> converted(std::size_t guess, const Args&... args) const {
        return detail::filled<C>(guess, [&](Span<typename C::value_type> out) { return convert(out, args...); });
    }

    std::unique_ptr<cos_engine, detail::Free<cos_engine_free>> handle_;
};

/// The version of the loaded library, such as "0.1.0".
inline std::string_view version() noexcept { return cos_version(); }

}  // namespace cosrt

#include "cos_best.hpp"
#include "cos_request.hpp"

#endif  // COS_HPP
