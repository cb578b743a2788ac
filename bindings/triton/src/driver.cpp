// The one thread that decodes all requests of a model.

#include "driver.hpp"

#include <algorithm>

namespace triton {

namespace {

const char* reason_of(cosrt::Finish finish) {
    using cosrt::Finish;
    switch (finish) {
        case Finish::none: return "";
        case Finish::max_tokens:
        case Finish::context_full: return "length";
        default: return "stop";
    }
}

Failure cancelled() { return Failure(TRITONSERVER_ERROR_CANCELLED, "the client cancelled the request"); }

std::string text_of(const Json& body) {
    try {
        return body.dump();
    } catch (const Json::exception& error) {
        throw wrong(std::string("a text is not UTF-8: ") + error.what());
    }
}

double seconds_since(std::uint64_t time) { return static_cast<double>(now() - time) * 1e-9; }

}  // namespace

Driver::Driver(cosrt::Engine engine, const std::string& model, const std::string& version, const Limits& limits)
    : engine_(std::move(engine)),
      model_(model),
      limits_(limits),
      metrics_(model, version),
      sequences_(limits.sequence_idle_seconds),
      thread_([this] { run(); }) {}

Driver::~Driver() {
    {
        const std::lock_guard lock(mutex_);
        stops_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void Driver::take(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept {
    std::unique_ptr<Exchange> exchange;
    bool exchanges = false;  // whether an exchange has the request, and releases it
    Turn turn;
    try {
        exchange = std::make_unique<Exchange>(instance, request);
        exchanges = true;
        const std::string endpoint = endpoint_of(request);
        exchange->names_endpoint = !endpoint.empty();
        Asked asked = read_body(request, endpoint);
        if (!limits_.streams && asked.body.value("stream", Json()) == true) {
            throw wrong("stream is set, but the model is not decoupled; set that in its model_transaction_policy");
        }
        {
            const std::lock_guard lock(mutex_);
            if (queued_ >= limits_.max_queue) {
                throw Failure(TRITONSERVER_ERROR_UNAVAILABLE, "too many requests wait; try again later");
            }
        }
        turn = sequences_.begin(request, asked, engine_);
        cosrt::RequestOptions terms;
        terms.endpoint = asked.chat ? cosrt::Endpoint::chat : cosrt::Endpoint::completion;
        if (exchange->names_endpoint) terms.model = model_;
        terms.max_choices = static_cast<std::uint32_t>(limits_.max_sessions);
        terms.max_prompt_tokens = limits_.max_prompt_tokens, terms.max_tokens = limits_.max_tokens;
        auto decoded = cosrt::Request::start(engine_, text_of(asked.body), terms).value();
        const std::size_t choices = decoded.choices();
        Job job{nullptr, std::move(decoded), std::move(turn), choices, now()};
        auto owner = std::make_unique<Job>(std::move(job));
        owner->exchange = std::move(exchange);
        const std::lock_guard lock(mutex_);
        held_.push_back(instance);
        arrived_.push_back(std::move(owner));
        queued_++;
    } catch (...) {
        const Failure failure = current_failure();
        sequences_.end(turn, false);
        if (exchange) {
            exchange->fail(failure);
        } else if (!exchanges) {
            log(TRITONSERVER_LOG_ERROR, std::string("a request cannot be answered: ") + failure.what());
            ignore(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
        }
    }
    changed_.notify_all();
}

void Driver::drain(const TRITONBACKEND_ModelInstance* instance) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return std::find(held_.begin(), held_.end(), instance) == held_.end(); });
}

void Driver::run() {
    std::uint64_t counted = 0;
    for (;;) {
        {
            std::unique_lock lock(mutex_);
            const auto ready = [&] { return stops_ || !arrived_.empty() || !running_.empty() || !waiting_.empty(); };
            changed_.wait(lock, ready);
            if (stops_ && arrived_.empty() && running_.empty() && waiting_.empty()) return;
            waiting_.splice(waiting_.end(), arrived_);
        }
        try {
            drop_cancelled(waiting_);
            admit();
            for (const auto& job : running_)
                if (job->exchange->cancelled()) static_cast<void>(job->request.cancel());
            if (!running_.empty()) pass();
            // Often enough for whoever reads metrics, and seldom enough to cost nothing.
            if (running_.empty() || now() - counted > 50000000) {
                counted = now();
                metrics_.count(engine_.stats().value());
                metrics_.requests(running_.size(), waiting_.size());
            }
        } catch (...) {
            const Failure failure = current_failure();
            log(TRITONSERVER_LOG_ERROR, std::string("the driver goes on behind an error: ") + failure.what());
            for (Jobs* jobs : {&waiting_, &running_}) {
                for (const auto& job : *jobs) job->exchange->fail(failure), end(*job);
                jobs->clear();
            }
            decoding_ = 0;
        }
    }
}

void Driver::drop_cancelled(Jobs& jobs) {
    for (auto it = jobs.begin(); it != jobs.end();) {
        if (!(*it)->exchange->cancelled()) {
            ++it;
            continue;
        }
        sequences_.end((*it)->turn, false);
        (*it)->exchange->fail(cancelled());
        end(**it);
        it = jobs.erase(it);
    }
}

/// First come, first served.
void Driver::admit() {
    while (!waiting_.empty() && decoding_ + waiting_.front()->choices <= limits_.max_sessions) {
        waiting_.front()->exchange->decoding = now();
        decoding_ += waiting_.front()->choices;
        running_.splice(running_.end(), waiting_, waiting_.begin());
    }
}

void Driver::pass() {
    std::vector<cosrt::Request*> requests;
    for (const auto& job : running_) requests.push_back(&job->request);
    const std::uint64_t begin = now();
    const auto statuses = cosrt::step_requests(requests);
    const std::uint64_t done = now();
    metrics_.pass(decoding_);
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(running_.front()->exchange->instance(), decoding_, begin,
                                                            begin, done, done));
    auto status = statuses.begin();
    for (auto it = running_.begin(); it != running_.end(); ++status) {
        if (!tell(**it, *status)) {
            ++it;
            continue;
        }
        decoding_ -= (*it)->choices;
        it = running_.erase(it);
    }
}

bool Driver::tell(Job& job, const cosrt::Result<cosrt::RequestStatus>& status) {
    try {
        const cosrt::RequestStatus& told = status.value();
        if (told.state == cosrt::RequestState::cancelled) throw cancelled();
        if (!told.open()) job.exchange->decoded = now();
        if (told.streams || !told.open()) respond(job, told);
        if (told.open()) return false;
    } catch (...) {
        sequences_.end(job.turn, false);
        job.exchange->fail(current_failure());
    }
    end(job);
    return true;
}

void Driver::respond(Job& job, const cosrt::RequestStatus& status) {
    std::vector<std::string> texts, reasons;
    std::vector<std::int32_t> indices, counts, tokens, top_tokens;
    std::vector<float> values, top_values;
    std::size_t top = 0;
    for (std::size_t i = 0; i < job.choices; i++) {
        const cosrt::ChoiceNews news = job.request.choice(i).value();
        if (news.text.empty() && news.tokens.empty() && news.finish == cosrt::Finish::none) continue;
        indices.push_back(static_cast<std::int32_t>(i));
        counts.push_back(static_cast<std::int32_t>(news.tokens.size()));
        texts.emplace_back(news.text);
        reasons.emplace_back(reason_of(news.finish));
        tokens.insert(tokens.end(), news.tokens.begin(), news.tokens.end());
        values.insert(values.end(), news.log_probabilities.begin(), news.log_probabilities.end());
        for (std::size_t row = 0; row < news.top_tokens.size(); row++) {
            const auto alternatives = news.top_tokens[row];
            const auto of_them = news.top_log_probabilities[row];
            top = alternatives.size();
            top_tokens.insert(top_tokens.end(), alternatives.begin(), alternatives.end());
            top_values.insert(top_values.end(), of_them.begin(), of_them.end());
        }
    }
    if (indices.empty() && status.open()) return;
    if (!job.turn.id.empty() && !texts.empty()) {
        job.turn.text += texts[0];
        job.turn.answered.insert(job.turn.answered.end(), tokens.begin(), tokens.end());
        job.turn.finish = job.request.choice(0).value().finish;
    }
    if (!tokens.empty()) {
        if (!job.told) metrics_.first_token(seconds_since(job.arrived));
        else metrics_.between_tokens(seconds_since(job.told));
        job.told = now();
    }
    Exchange& exchange = *job.exchange;
    const auto length = [](const auto& list) { return static_cast<std::int64_t>(list.size()); };
    exchange.begin();
    exchange.add("text_output", texts);
    exchange.add("finish_reason", reasons);
    exchange.add("index", TRITONSERVER_TYPE_INT32, indices.data(), {length(indices)});
    exchange.add("tokens_count", TRITONSERVER_TYPE_INT32, counts.data(), {length(counts)});
    exchange.add("tokens", TRITONSERVER_TYPE_INT32, tokens.data(), {length(tokens)});
    if (!values.empty()) exchange.add("log_probabilities", TRITONSERVER_TYPE_FP32, values.data(), {length(values)});
    if (top) {
        const std::vector<std::int64_t> shape{length(top_tokens) / static_cast<std::int64_t>(top),
                                              static_cast<std::int64_t>(top)};
        exchange.add("top_tokens", TRITONSERVER_TYPE_INT32, top_tokens.data(), shape);
        exchange.add("top_log_probabilities", TRITONSERVER_TYPE_FP32, top_values.data(), shape);
    }
    const std::int32_t usage[] = {static_cast<std::int32_t>(status.prompt_tokens),
                                  static_cast<std::int32_t>(status.completion_tokens)};
    exchange.add("usage", TRITONSERVER_TYPE_INT32, usage, {2});
    if (exchange.names_endpoint) exchange.add_answer(200, job.request.answer().value());
    // The client may send its next turn as soon as it has this answer.
    if (!status.open()) sequences_.end(job.turn, true, &engine_);
    exchange.send(!status.open());
}

/// A request has ended, and its last response was sent. Only the first end counts.
void Driver::end(Job& job) {
    if (std::exchange(job.ended, true)) return;
    sequences_.end(job.turn, false);  // unless the turn was answered
    const std::lock_guard lock(mutex_);
    queued_--;
    held_.erase(std::find(held_.begin(), held_.end(), job.exchange->instance()));
    changed_.notify_all();
}

}  // namespace triton
