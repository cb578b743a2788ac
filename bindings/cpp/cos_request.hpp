/* Requests of OpenAI's protocol. cos.hpp includes it. */

#ifndef COS_REQUEST_HPP
#define COS_REQUEST_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cos.hpp"

namespace cosrt {

/// What the body of a request is.
enum class Endpoint : std::int32_t {
    completion = COS_REQUEST_COMPLETION,  ///< Of POST /v1/completions.
    chat = COS_REQUEST_CHAT,              ///< Of POST /v1/chat/completions.
};

/// What a server knows of a request, and how much it allows.
struct RequestOptions {
    Endpoint endpoint = Endpoint::completion;
    std::optional<std::string> model;     ///< The name of the model; a body with another one is `not_found`.
    std::uint32_t max_choices = 0;        ///< Most choices of all prompts together; 0: 128.
    std::uint32_t max_prompt_tokens = 0;  ///< Most tokens of a prompt; 0: as many as the context has.
    std::uint32_t max_tokens = 0;         ///< Most tokens of a choice; 0: as the body says.
};

/// Whether a request goes on.
enum class RequestState : std::int32_t {
    open = COS_REQUEST_OPEN,            ///< It does.
    done = COS_REQUEST_DONE,            ///< All choices have ended.
    cancelled = COS_REQUEST_CANCELLED,  ///< cancel() ended it.
};

/// How a request stands.
struct RequestStatus {
    RequestState state = RequestState::open;
    bool streams = false;  ///< Whether the body asks for a stream.
    std::uint64_t prompt_tokens = 0;
    std::uint64_t completion_tokens = 0;  ///< Of all choices.

    bool open() const noexcept { return state == RequestState::open; }
};

/// What is to be told of a choice: what the last step brought if the body asks for a stream, and otherwise all of it.
/// The request owns text and spans, which are valid until its next call. Without news, all is empty.
struct ChoiceNews {
    std::string_view text;      ///< It ends before a stop string, and may lag behind the tokens.
    Span<const Token> tokens;   ///< With those of a stop string or a stop token.
    Finish finish = Finish::none;
    Span<const float> log_probabilities;  ///< As in Step, as are the others, as far as the body asks for them.
    Table<Token> top_tokens;
    Table<float> top_log_probabilities;
    Table<float> model_log_probabilities;
    Origins origins;
};

/// A request of OpenAI's protocol: what a body asks for, and the answer. One thread at a time may use it; cancel() and
/// choices() may be called at any time.
class Request {
public:
    /// Check a body, and start what it asks for. Nothing is decoded yet. docs/requests.md lists the members of a body.
    /// Errors, whose status and json answer the client: invalid_argument, unsupported, not_found, context_full,
    /// runtime.
    static Result<Request> start(const Engine& engine, std::string_view body, const RequestOptions& options = {}) {
        if (options.model) {
            if (auto error = detail::contains_nul(*options.model)) return *error;
        }
        cos_request_options given{};
        given.struct_size = sizeof given;
        given.endpoint = static_cast<std::int32_t>(options.endpoint);
        given.max_choices = options.max_choices, given.max_tokens = options.max_tokens;
        given.max_prompt_tokens = options.max_prompt_tokens;
        given.model = options.model ? options.model->c_str() : nullptr;
        cos_request* request = nullptr;
        cos_error* error = cos_request_new(engine.raw(), &given, body.data(), body.size(), &request);
        if (error) return detail::take(error);
        return Request(request, engine.model_count());
    }

    /// The number of choices: prompts times "n". Each decodes in a session of its own.
    std::size_t choices() const noexcept { return cos_request_choices(raw()); }

    /// How it stands, such as before its first step. Errors: the one that has ended it, busy.
    Result<RequestStatus> status() const {
        cos_request_status status{};
        status.struct_size = sizeof status;
        return told(cos_request_get_status(raw(), &status), status);
    }

    /// Decode until a choice has news if the body asks for a stream, and otherwise to the end. Errors: those of
    /// Session::step(); each later step returns it again.
    Result<RequestStatus> step() {
        cos_request_status status{};
        status.struct_size = sizeof status;
        return told(cos_request_step(raw(), &status), status);
    }

    /// What a server sends for the last step: complete server-sent events for a stream, and otherwise the body of the
    /// answer once the request is done. Valid until the next call of the request. Errors: invalid_argument, busy.
    Result<std::string_view> answer() {
        const char* text = nullptr;
        std::size_t bytes = 0;
        if (cos_error* error = cos_request_answer(raw(), &text, &bytes)) return detail::take(error);
        return std::string_view(text, bytes);
    }

    /// What the last step brought of a choice, for servers of another protocol. Errors: invalid_argument, busy.
    Result<ChoiceNews> choice(std::size_t index) const {
        cos_choice_news news{};
        news.struct_size = sizeof news;
        if (cos_error* error = cos_request_choice(raw(), index, &news)) return detail::take(error);
        const std::size_t count = news.tokens_count;
        return ChoiceNews{{news.text, news.text_bytes},
                          {news.tokens, count},
                          static_cast<Finish>(news.finish),
                          {news.log_probabilities, news.log_probabilities ? count : 0},
                          {news.top_tokens, count, news.top_count},
                          {news.top_log_probabilities, count, news.top_count},
                          {news.model_log_probabilities, count, models_},
                          {news.origins, count}};
    }

    /// Let the running or the next step end the request. May be called from any thread. Errors: invalid_argument.
    Result<void> cancel() { return detail::checked(cos_request_cancel(raw())); }

    /// The request of the C interface, which this object owns.
    cos_request* raw() const noexcept { return handle_.get(); }

private:
    friend std::vector<Result<RequestStatus>> step_requests(Span<Request* const> requests);
    Request(cos_request* handle, std::size_t models) : handle_(handle), models_(models) {}

    static Result<RequestStatus> told(cos_error* error, const cos_request_status& status) {
        if (error) return detail::take(error);
        return RequestStatus{static_cast<RequestState>(status.state), status.streams != 0, status.prompt_tokens,
                             status.completion_tokens};
    }

    std::unique_ptr<cos_request, detail::Free<cos_request_free>> handle_;
    std::size_t models_;
};

/// Advance many requests by one pass of each model, on the calling thread; see cos_request_step_many. Returns a status
/// or an error for each, in their order. Errors of a request: invalid_argument (also: a null pointer), busy (also: a
/// request given twice), and all of step().
inline std::vector<Result<RequestStatus>> step_requests(Span<Request* const> requests) {
    std::vector<cos_request*> handles;
    for (const Request* request : requests) handles.push_back(request ? request->raw() : nullptr);
    std::vector<cos_request_status> results(handles.size());
    for (cos_request_status& result : results) result.struct_size = sizeof result;
    std::vector<cos_error*> errors(handles.size());
    cos_error* error = cos_request_step_many(handles.data(), handles.size(), results.data(), errors.data());
    std::vector<Result<RequestStatus>> statuses;
    for (std::size_t i = 0; i < handles.size(); i++) statuses.push_back(Request::told(errors[i], results[i]));
    if (error) statuses.assign(handles.size(), detail::take(error));
    return statuses;
}

}  // namespace cosrt

#endif  // COS_REQUEST_HPP
