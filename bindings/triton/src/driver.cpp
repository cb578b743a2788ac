// The one thread that decodes all requests of a model.

#include "driver.hpp"

#include <algorithm>

namespace triton {

namespace {

Failure cancelled() { return Failure(TRITONSERVER_ERROR_CANCELLED, "the client cancelled the request"); }

std::string text_of(const Json& body) {
    try {
        return body.dump();
    } catch (const Json::exception& error) {
        throw wrong(std::string("a text is not UTF-8: ") + error.what());
    }
}

}  // namespace

Driver::Driver(cosrt::Engine engine, const std::string& model, const std::string& version, const Limits& limits)
    : engine_(std::move(engine)),
      model_(model),
      limits_(limits),
      metrics_(model, version),
      sequences_(limits.sequence_idle_seconds),
      sender_(metrics_, [this](Job& job) {
          const std::lock_guard lock(mutex_);
          queued_--;
          held_.erase(std::find(held_.begin(), held_.end(), job.exchange->instance()));
          changed_.notify_all();
      }),
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
        const auto job = std::make_shared<Job>(std::move(decoded));
        const std::lock_guard lock(mutex_);
        arrived_.push_back(job);
        try {
            held_.push_back(instance);
        } catch (...) {
            arrived_.pop_back();
            throw;
        }
        job->exchange = std::move(exchange), job->turn = std::move(turn);
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
                if (job->broken || job->exchange->cancelled()) static_cast<void>(job->request.cancel());
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
                for (const auto& job : *jobs) fail(job, failure);
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
        fail(*it, cancelled());
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
        if (!tell(*it, *status)) {
            ++it;
            continue;
        }
        decoding_ -= (*it)->choices;
        it = running_.erase(it);
    }
}

bool Driver::tell(const std::shared_ptr<Job>& job, const cosrt::Result<cosrt::RequestStatus>& status) {
    try {
        const cosrt::RequestStatus& told = status.value();
        if (told.state == cosrt::RequestState::cancelled) throw cancelled();
        if (told.open()) {
            if (told.streams) collect(*job, told);
            if (told.streams && news_.any()) sender_.tell(job, news_);
            return false;
        }
        job->exchange->decoded = now();
        collect(*job, told);
        // The client may send its next turn as soon as it has the last response.
        sequences_.end(job->turn, true, &engine_);
        sender_.close(job, news_);
    } catch (...) {
        fail(job, current_failure());
    }
    return true;
}

void Driver::collect(Job& job, const cosrt::RequestStatus& status) {
    news_.choices.resize(job.choices);
    news_.clear();
    for (std::size_t i = 0; i < job.choices; i++) {
        const cosrt::ChoiceNews news = job.request.choice(i).value();
        Told& told = news_.choices[i];
        told.text = news.text, told.finish = news.finish;
        told.tokens.assign(news.tokens.begin(), news.tokens.end());
        told.log_probabilities.assign(news.log_probabilities.begin(), news.log_probabilities.end());
        for (std::size_t row = 0; row < news.top_tokens.size(); row++) {
            const auto tokens = news.top_tokens[row];
            const auto values = news.top_log_probabilities[row];
            told.top_tokens.insert(told.top_tokens.end(), tokens.begin(), tokens.end());
            told.top_log_probabilities.insert(told.top_log_probabilities.end(), values.begin(), values.end());
            news_.top = tokens.size();
        }
    }
    if (job.exchange->names_endpoint) news_.answer = job.request.answer().value();
    news_.usage[0] = static_cast<std::int32_t>(status.prompt_tokens);
    news_.usage[1] = static_cast<std::int32_t>(status.completion_tokens);
    if (job.turn.id.empty()) return;
    const Told& told = news_.choices[0];
    job.turn.text += told.text, job.turn.finish = told.finish;
    job.turn.answered.insert(job.turn.answered.end(), told.tokens.begin(), told.tokens.end());
}

void Driver::fail(const std::shared_ptr<Job>& job, const Failure& failure) {
    sequences_.end(job->turn, false);
    sender_.fail(job, failure);
}

}  // namespace triton
