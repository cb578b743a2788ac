// The thread that sends the responses of a model.

#include "sender.hpp"

#include <algorithm>
#include <utility>

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

template <typename List>
std::int64_t length(const List& list) {
    return static_cast<std::int64_t>(list.size());
}

double seconds_since(std::uint64_t time) { return static_cast<double>(now() - time) * 1e-9; }

/// Adds what is told of all choices that have news.
void add_choices(Exchange& exchange, const News& news) {
    std::vector<std::string> texts, reasons;
    std::vector<std::int32_t> indices, counts, tokens, top_tokens;
    std::vector<float> values, top_values;
    for (std::size_t i = 0; i < news.choices.size(); i++) {
        const Told& told = news.choices[i];
        if (!told.any()) continue;
        indices.push_back(static_cast<std::int32_t>(i));
        counts.push_back(static_cast<std::int32_t>(told.tokens.size()));
        texts.push_back(told.text);
        reasons.emplace_back(reason_of(told.finish));
        append(tokens, told.tokens), append(values, told.log_probabilities);
        append(top_tokens, told.top_tokens), append(top_values, told.top_log_probabilities);
    }
    exchange.add("text_output", texts);
    exchange.add("finish_reason", reasons);
    exchange.add("index", TRITONSERVER_TYPE_INT32, indices.data(), {length(indices)});
    exchange.add("tokens_count", TRITONSERVER_TYPE_INT32, counts.data(), {length(counts)});
    exchange.add("tokens", TRITONSERVER_TYPE_INT32, tokens.data(), {length(tokens)});
    if (!values.empty()) exchange.add("log_probabilities", TRITONSERVER_TYPE_FP32, values.data(), {length(values)});
    if (!top_tokens.empty()) {
        const auto top = static_cast<std::int64_t>(news.top);
        const std::vector<std::int64_t> shape{length(top_tokens) / top, top};
        exchange.add("top_tokens", TRITONSERVER_TYPE_INT32, top_tokens.data(), shape);
        exchange.add("top_log_probabilities", TRITONSERVER_TYPE_FP32, top_values.data(), shape);
    }
}

}  // namespace

Job::Job(cosrt::Request decoded) : request(std::move(decoded)), choices(request.choices()), arrived(now()) {
    news_.choices.resize(choices);
}

Sender::Sender(Metrics& metrics, std::function<void(Job&)> done)
    : metrics_(metrics), done_(std::move(done)), thread_([this] { run(); }) {}

Sender::~Sender() {
    {
        const std::lock_guard lock(mutex_);
        stops_ = true;
    }
    changed_.notify_one();
    thread_.join();
}

void Sender::tell(const std::shared_ptr<Job>& job, News& news) {
    const std::lock_guard lock(mutex_);
    job->news_.join(news);
    put(job);
}

void Sender::close(const std::shared_ptr<Job>& job, News& news) {
    const std::lock_guard lock(mutex_);
    job->news_.join(news);
    job->closed_ = true;
    put(job);
}

void Sender::fail(const std::shared_ptr<Job>& job, const Failure& failure) {
    const std::lock_guard lock(mutex_);
    if (!job->failure_) job->failure_ = failure;
    job->closed_ = true;
    put(job);
}

/// The lock is held.
void Sender::put(const std::shared_ptr<Job>& job) {
    if (job->queued_) return;
    queue_.push_back(job);
    job->queued_ = true;
    changed_.notify_one();
}

void Sender::run() {
    News news;
    for (;;) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stops_ || !queue_.empty(); });
        if (queue_.empty()) return;
        const std::shared_ptr<Job> job = std::move(queue_.front());
        queue_.pop_front();
        job->queued_ = false;
        news.choices.resize(job->choices);
        news.clear();
        std::swap(job->news_, news);
        const bool last = job->closed_;
        std::optional<Failure> failure;
        if (last) std::swap(failure, job->failure_);
        lock.unlock();

        try {
            const bool is_end = last && !failure;
            if (!job->broken && (news.any() || is_end)) send(*job, news, is_end);
        } catch (...) {
            failure = current_failure();
            job->broken = true;
            lock.lock();
            job->failure_ = failure;
            lock.unlock();
        }
        if (!last) continue;
        if (failure) job->exchange->fail(*failure);
        done_(*job);
    }
}

void Sender::send(Job& job, News& news, bool last) {
    Exchange& exchange = *job.exchange;
    const bool has_tokens = std::any_of(news.choices.begin(), news.choices.end(),
                                        [](const Told& told) { return !told.tokens.empty(); });
    if (has_tokens) {
        if (!job.sent_) metrics_.first_token(seconds_since(job.arrived));
        else metrics_.between_tokens(seconds_since(job.sent_));
        job.sent_ = now();
    }
    exchange.begin();
    add_choices(exchange, news);
    exchange.add("usage", TRITONSERVER_TYPE_INT32, news.usage, {2});
    if (exchange.names_endpoint) exchange.add_answer(200, news.answer);
    exchange.send(last);
}

}  // namespace triton
