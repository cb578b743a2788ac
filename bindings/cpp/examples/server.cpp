// An HTTP server of OpenAI's completions over one engine; tests/servers/README.md says all that it does.
//
//     server CONFIG.json [--port N=8080] [--max-sessions N=32]
//
// Each request decodes in a session of its own, on the thread of its connection; what runs at once shares ONNX Runtime's
// threads. One more thread watches for clients that leave, and cancels their sessions in the midst of a pass.

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cos.hpp"
#include "httplib.h"
#include "openai.hpp"

namespace {

using namespace openai;

/// What one request decodes.
struct Completion {
    cosrt::Session session;
    cosrt::TextStream stream;
    Cutter cutter;
    std::size_t prompt_tokens, tokens = 0;
    bool streams, counts, log_probabilities;
    std::function<bool()> client_left;
    cosrt::Stats seen{};
};

class Service {
public:
    Service(cosrt::Engine engine, std::string model, std::size_t most)
        : engine_(std::move(engine)), model_(std::move(model)), most_(most) {}

    void routes(httplib::Server& server) {
        const json model{{"id", model_}, {"object", "model"}, {"created", started_}, {"owned_by", "cos"}};
        server.Get("/v1/models", [model](const auto&, auto& out) { reply(out, {{"object", "list"}, {"data", {model}}}); });
        server.Get("/v1/models/:id", [this, model](const auto& in, auto& out) {
            if (in.path_params.at("id") != model_) throw unknown_model();
            reply(out, model);
        });
        server.Post("/v1/completions", [this](const auto& in, auto& out) { complete(in, out); });
        server.Get("/metrics", [this](const auto&, auto& out) { out.set_content(metrics(), "text/plain; version=0.0.4"); });
        server.set_exception_handler([this](const auto& in, auto& out, std::exception_ptr thrown) {
            const Problem problem = problem_of(thrown);
            if (in.path == "/v1/completions") count(problem.status);
            reply(out, problem.body(), problem.status);
        });
        server.set_error_handler([](const auto& in, auto& out) {  // what httplib itself refuses
            if (out.body.empty()) reply(out, Problem{out.status, "cannot " + in.method + " " + in.path}.body(), out.status);
        });
    }

    /// Cancel the sessions whose clients have left.
    void watch() {
        const std::lock_guard lock(mutex_);
        for (const auto& job : running_) {
            if (job->client_left()) static_cast<void>(job->session.cancel());
        }
    }

    void drain() {
        draining_ = true;
        while (std::lock_guard(mutex_), !running_.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }

private:
    using Job = std::shared_ptr<Completion>;

    static void reply(httplib::Response& out, const json& body, int status = 200) {
        out.status = status;
        // A message may quote bytes of the request that are no UTF-8.
        out.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace), "application/json");
    }

    void complete(const httplib::Request& in, httplib::Response& out) {
        if (draining_) throw Problem{503, "the server is about to end"};
        const Job job = start(json::parse(in.body), in.is_connection_closed);
        const json head{{"id", "cmpl-" + std::to_string(++last_id_)}, {"object", "text_completion"},
                        {"created", std::time(nullptr)}, {"model", model_}};
        if (job->streams) {
            out.set_chunked_content_provider("text/event-stream", [this, job, head](std::size_t, httplib::DataSink& sink) {
                return stream(job, head, sink);
            }, [this, job](bool) { end(job, 499); });  // a client that left before the first piece
            return;
        }
        std::string text;
        json log_probabilities, finish;
        try {
            decode(*job, [&](const std::string& piece, const json& values, const json& why) {
                text += piece;
                finish = why;
                append(log_probabilities, values);
            });
        } catch (...) {
            end(job, 0);
            throw;
        }
        json body = head;
        body["choices"] = choices(text, log_probabilities, finish);
        body["usage"] = usage(job->prompt_tokens, job->tokens);
        end(job, finish.is_null() ? 499 : 200);
        reply(out, body);
    }

    bool stream(const Job& job, const json& head, httplib::DataSink& sink) {
        const auto send = [&](const json& event) {
            const std::string line = "data: " + event.dump() + "\n\n";
            return sink.write(line.data(), line.size());
        };
        int status = 499;
        try {
            decode(*job, [&](const std::string& piece, const json& values, const json& finish) {
                if (!finish.is_null()) end(job, status = 200);  // so that who has read the last piece finds it counted
                json event = head;
                event["choices"] = choices(piece, values, finish);
                if (!send(event)) job->session.cancel().value();
            });
            if (status == 499) return end(job, status), false;
            json event = head;
            event["choices"] = json::array();
            event["usage"] = usage(job->prompt_tokens, job->tokens);
            if (job->counts) send(event);
            sink.write("data: [DONE]\n\n", 14);
        } catch (...) {
            const Problem problem = problem_of(std::current_exception());
            end(job, problem.status);
            send(problem.body());
        }
        sink.done();
        return true;
    }

    /// Everything that can be wrong with a request is found here, before anything of an answer is sent.
    Job start(const json& body, std::function<bool()> client_left) {
        if (!body.is_object()) throw Problem{400, "the body must be a JSON object"};
        const auto model = member<std::string>(body, "model", "");
        if (model.empty()) throw Problem{400, "model is missing", "model"};
        if (model != model_) throw unknown_model();
        const auto options = options_of(body);
        const auto prompt = prompt_of(body, engine_);
        Job job(new Completion{engine_.session(options).value(), engine_.text_stream().value(), Cutter(stops_of(body)), prompt.size(),
                               0, member<bool>(body, "stream", false),
                               member<bool>(object(body, "stream_options"), "include_usage", false), options.log_probabilities,
                               std::move(client_left)});
        job->session.prompt(prompt).value();
        const std::lock_guard lock(mutex_);
        if (running_.size() >= most_) throw Problem{429, "too many requests run; try again later", nullptr, "rate_limit_exceeded"};
        running_.insert(job);
        return job;
    }

    /// Decode up to the end or until cancelled. `emit` gets text, log-probabilities, and the finish_reason with the last piece.
    template <typename Emit>
    void decode(Completion& job, Emit emit) {
        json values;
        for (const auto& result : job.session.steps()) {
            tally(job);
            const cosrt::Step& step = result.value();
            std::string text;
            // Token by token, so that nothing behind a stop string counts, however many tokens the step committed.
            for (std::size_t i = 0; i < step.tokens.size() && !job.cutter.found(); i++) {
                const cosrt::Span<const Token> token(&step.tokens[i], 1);
                job.tokens++;
                text += job.cutter.push(job.stream.push(token).value());
                if (!job.log_probabilities) continue;
                values["tokens"].push_back(engine_.decode(token).value());
                values["token_logprobs"].push_back(step.log_probabilities[i]);
                values["top_logprobs"] = values["text_offset"] = nullptr;
            }
            json finish;
            if (step.finish == cosrt::Finish::cancelled) return;
            if (step.finished() && !job.cutter.found()) text += job.cutter.push(job.stream.finish().value(), true);
            if (job.cutter.found() || step.finish == cosrt::Finish::stop) finish = "stop";
            else if (step.finished()) finish = "length";
            if (!text.empty() || !finish.is_null()) emit(text, std::exchange(values, nullptr), finish);
            if (!finish.is_null()) return;
        }
    }

    /// Add what a session did since the last call.
    void tally(Completion& job) {
        const cosrt::Stats now = job.session.stats().value(), &seen = job.seen;
        const std::lock_guard lock(mutex_);
        totals_.tokens += now.tokens - seen.tokens;
        totals_.proposed += now.proposed - seen.proposed;
        totals_.tested += now.tested - seen.tested;
        totals_.accepted += now.accepted - seen.accepted;
        totals_.forwards += now.forwards - seen.forwards;
        totals_.model_time += now.model_time - seen.model_time;
        totals_.total_time += now.total_time - seen.total_time;
        job.seen = now;
    }

    /// A request no longer runs; its first end is the one that counts. Status 0 leaves the count to the exception handler.
    void end(const Job& job, int status) {
        const std::lock_guard lock(mutex_);
        if (running_.erase(job) && status) requests_[status]++;
    }

    void count(int status) {
        const std::lock_guard lock(mutex_);
        requests_[status]++;
    }

    std::string metrics() {
        const std::lock_guard lock(mutex_);
        const auto seconds = [](std::chrono::nanoseconds time) { return std::chrono::duration<double>(time).count(); };
        const auto number = [](std::uint64_t value) { return static_cast<double>(value); };
        const std::pair<std::string, double> counters[] = {
            {"tokens", number(totals_.tokens)}, {"proposed", number(totals_.proposed)}, {"tested", number(totals_.tested)},
            {"accepted", number(totals_.accepted)}, {"forwards", number(totals_.forwards)},
            {"model_seconds", seconds(totals_.model_time)}, {"step_seconds", seconds(totals_.total_time)}};
        std::string text = "# TYPE cos_requests_running gauge\ncos_requests_running " + std::to_string(running_.size()) + "\n";
        for (const auto& [name, value] : counters) {
            text += "# TYPE cos_" + name + "_total counter\ncos_" + name + "_total " + std::to_string(value) + "\n";
        }
        text += "# TYPE cos_requests_total counter\n";
        for (const auto& [code, number] : requests_) {
            text += "cos_requests_total{code=\"" + std::to_string(code) + "\"} " + std::to_string(number) + "\n";
        }
        return text;
    }

    const cosrt::Engine engine_;
    const std::string model_;
    const std::size_t most_;
    const std::time_t started_ = std::time(nullptr);
    std::atomic<bool> draining_{false};
    std::atomic<std::uint64_t> last_id_{0};
    std::mutex mutex_;  // for all below
    std::set<Job> running_;
    std::map<int, std::uint64_t> requests_;
    cosrt::Stats totals_;
};

int serve(const std::string& config, int port, std::size_t most) {
    // Blocked in all threads, those of ONNX Runtime too, so that this one can wait for them.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    const std::string file = config.substr(config.rfind('/') + 1);
    Service service(cosrt::Engine::open(config).value(), file.substr(0, file.rfind(".json")), most);
    httplib::Server server;
    // A thread for each request that runs, and some for those that are refused or ask for metrics. Connections are not kept
    // alive, since an idle one would hold a thread.
    server.new_task_queue = [most] { return new httplib::ThreadPool(most + 8); };
    server.set_keep_alive_max_count(1);
    server.set_tcp_nodelay(true);
    server.set_payload_max_length(16 << 20);
    server.set_socket_options([](int socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
    service.routes(server);
    if (port == 0) port = server.bind_to_any_port("127.0.0.1");
    else if (!server.bind_to_port("127.0.0.1", port)) port = -1;
    if (port < 0) throw std::runtime_error("cannot listen on the port");

    std::thread listener([&] { server.listen_after_bind(); });
    server.wait_until_ready();
    std::printf("listening on 127.0.0.1:%d\n", port);
    std::fflush(stdout);

    std::atomic<bool> over{false};
    std::thread watcher([&] {
        for (; !over; std::this_thread::sleep_for(std::chrono::milliseconds(50))) service.watch();
    });
    int signal = 0;
    sigwait(&signals, &signal);
    service.drain();
    server.stop();
    listener.join();
    over = true;
    watcher.join();
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    int port = 8080, most = 32;
    bool understood = argc >= 2 && argc % 2 == 0;
    for (int i = 2; understood && i < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--port") port = std::atoi(argv[i + 1]);
        else if (name == "--max-sessions") most = std::atoi(argv[i + 1]);
        else understood = false;
    }
    if (!understood || most < 1) {
        std::fprintf(stderr, "usage: %s CONFIG.json [--port N] [--max-sessions N]\n", argv[0]);
        return 2;
    }
    try {
        return serve(argv[1], port, static_cast<std::size_t>(most));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "server: %s\n", error.what());
        return 1;
    }
}
